"""FlowRVS: flow matching from video latent to mask latent (arXiv 2510.06139)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvseg_jax.systems.flowrvs.system import FlowRVS

TINY = "zoo/flowrvs_tiny"
READS_TEXT = True
FOR_IMAGES = False


def load(checkpoint: Path | None, *, dtype: str | None = None, mesh: Any = None, **settings: Any) -> "FlowRVS":
    """The system with the weights of a checkpoint, or with the bundled tiny ones.

    Args:
      checkpoint: folder made by `rvseg convert` or exported by training; None for the bundled weights.
      dtype: precision by name, see `core.precision`; None takes the number format of the weights.
      mesh: devices that the weights are spread over.
      settings: fields of `FlowRVSConfig` to change, such as `num_steps`, `text_length` or `mask_latent_space`.

    Raises:
      InputError: if the folder is no checkpoint of FlowRVS, or a setting is unknown or does not fit.
    """
    from rvseg_jax.systems.flowrvs import loading

    return loading.load(checkpoint, dtype=dtype, mesh=mesh, **settings)


def describe() -> dict[str, Any]:
    """Parts, parameter counts, licences of weights and published presets, as JSON-able values."""
    from rvseg_jax.systems.flowrvs import loading

    return loading.describe()
