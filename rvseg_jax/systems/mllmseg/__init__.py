"""MLLMSeg: a vision-language model that points at what phrases name in an image (arXiv 2508.04107)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvseg_jax.systems.mllmseg.system import MLLMSegSystem

TINY = "zoo/mllmseg_tiny"
READS_TEXT = True
FOR_IMAGES = True


def load(checkpoint: Path | None, *, dtype: str | None = None, mesh: Any = None, **settings: Any) -> "MLLMSegSystem":
    """The system with the weights of a checkpoint, or with the bundled tiny ones.

    Args:
      checkpoint: folder made by `rvseg convert` or exported by training; None for the bundled weights.
      dtype: precision by name, see `core.precision`; None takes the number format of the weights.
      mesh: devices that the weights are spread over.
      settings: fields of `MLLMSegSystemConfig` to change, such as `together` or `threshold`.

    Raises:
      InputError: if the folder is no checkpoint of MLLMSeg, or a setting is unknown or does not fit.
    """
    from rvseg_jax.systems.mllmseg import loading

    return loading.load(checkpoint, dtype=dtype, mesh=mesh, **settings)


def describe() -> dict[str, Any]:
    """Parts, parameter counts, licences of weights and published presets, as JSON-able values."""
    from rvseg_jax.systems.mllmseg import loading

    return loading.describe()
