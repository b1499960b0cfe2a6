"""`jax.jit` whose shardings must be said."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def pjit(
    fun: Callable[..., Any],
    *,
    in_shardings: Any,
    out_shardings: Any,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
) -> Any:
    """`jax.jit` with the shardings of all arguments and results required.

    Left to itself, the compiler may keep gradients, optimizer states and outputs whole on every device: for a
    1.1B-parameter transformer on 64 chips that was 4.1 GiB of outputs a chip in place of 0.26.

    Args:
      fun: function of positional arguments.
      in_shardings, out_shardings: trees of `NamedSharding` like the arguments and the result, or prefixes of
        them: one sharding may stand for a whole sub-tree.
      donate_argnums, static_argnums: as for `jax.jit`. Static arguments have no entry in `in_shardings`.

    Returns:
      The compiled function, with `lower` as `jax.jit` has. Call it under `jax.set_mesh(mesh)`, which
      `constrain` reads.

    Raises:
      ValueError: if either of the shardings is None.
    """
    for name, value in (("in_shardings", in_shardings), ("out_shardings", out_shardings)):
        if value is None:
            raise ValueError(f"pjit: {name} is None: give a sharding for every array, or use jax.jit")
    return jax.jit(
        fun,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=donate_argnums,
        static_argnums=static_argnums,
    )
