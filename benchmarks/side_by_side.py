"""What the benchmarks share: random weights, and calls of several sides in turn, so that a slow spell meets all."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def machine() -> str:
    """The device and the versions that figures belong to."""
    return f"{platform.machine()} {jax.devices()[0].device_kind}, jax {jax.__version__}"


def random_model(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """A model with random weights, matrices scaled by their inputs; its own initialisers would compile for long."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 100
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / fan**0.5, leaf.dtype)

    return graph, jax.tree.map(values, shapes)


def compare(name: str, sides: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Calls each side in turn, prints the medians and the ratio of the first to the others, and returns the medians.

    Args:
      name: what is measured, with its shape.
      sides: {name: call that returns when the result is there}.
      repeats: timed rounds; one before them compiles.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        for side, call in sides.items():
            start = time.perf_counter()
            call()
            if repeat:
                times[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(taken) for side, taken in times.items()}
    first, *others = medians
    line = ", ".join(f"{side} {1000 * value:.0f} ms" for side, value in medians.items())
    ratios = "".join(f", ratio to {side} {medians[first] / medians[side]:.2f}" for side in others)
    print(f"{name}: {line}{ratios}", flush=True)
    return medians
