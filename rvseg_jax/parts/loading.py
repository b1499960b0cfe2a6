"""A part with its weights, whatever made the checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from rvseg_jax.core import precision as precisions
from rvseg_jax.core.errors import InputError
from rvseg_jax.parts import bundle
from rvseg_jax.zoo import resolve


def load_part(folder: str | Path, part: str, *, dtype: str | None, mesh: Any) -> nnx.Module:
    """A part of an export of training, of the bundled weights, or of a converted checkpoint.

    Args:
      folder: "zoo/..." is bundled.
      dtype: precision by name; None takes the number format of the weights.
      mesh: devices that the weights of a converted checkpoint are spread over.

    Raises:
      InputError: if the folder is none of these, or lacks the part.
    """
    folder = resolve(folder)
    if bundle.is_bundle(folder):
        return bundle.load_part(folder, part, precisions.by_name(dtype or "float32"))
    from rvseg_jax.convert.manifest import NAME
    from rvseg_jax.convert.store import load_part as load_converted

    if not (folder / NAME).is_file():
        raise InputError(
            f"{folder} holds neither an export of training nor a converted checkpoint: "
            f"convert one with `rvseg convert convert {part} FILE -o DIR`"
        )
    return load_converted(folder, part, mesh=mesh, precision=precisions.by_name(dtype) if dtype else None)


def settings_of(folder: str | Path) -> dict[str, Any]:
    """What an export or the bundled weights say of how they are to be used; nothing of a converted checkpoint."""
    folder = resolve(folder)
    return dict(bundle.description(folder).get("settings", {})) if bundle.is_bundle(folder) else {}


def parameter_count(model: Callable[[nnx.Rngs], nnx.Module]) -> int:
    """Number of parameters of a model that is not built, statistics of batch norms not counted."""
    state = nnx.state(nnx.eval_shape(lambda: model(nnx.Rngs(params=0))), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
