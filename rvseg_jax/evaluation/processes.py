"""Which share of an evaluation this process has: by flag, or by its place among the processes of one JAX run."""

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import parts
from rvseg_jax.evaluation.parts import WHOLE, Part


def share(shard: str | None) -> tuple[Part, bool]:
    """This process's part, and whether the other parts run beside it as processes of one JAX run.

    Args:
      shard: "K/N" for processes that know nothing of each other; None takes the place in the JAX run, if there is
        one (see `parallel.initialize`).

    Raises:
      InputError: for a malformed shard, or one inside a JAX run of several processes.
    """
    import jax

    from rvseg_jax import parallel

    parallel.initialize()
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return (WHOLE if shard is None else parts.parse(shard)), False
    if shard is not None:
        raise InputError(f"--shard {shard} inside a run of {jax.process_count()} processes, which is divided by itself")
    return Part(jax.process_index(), jax.process_count()), True
