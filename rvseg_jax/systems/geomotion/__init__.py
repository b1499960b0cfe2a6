"""GeoMotion: what moves by itself in a video, from Pi3's geometry and RAFT's flow (arXiv 2602.21810)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvseg_jax.systems.geomotion.system import GeoMotionSystem

TINY = "zoo/geomotion_tiny"
READS_TEXT = False
FOR_IMAGES = False


def load(checkpoint: Path | None, *, dtype: str | None = None, mesh: Any = None, **settings: Any) -> "GeoMotionSystem":
    """The system with the weights of a checkpoint, or with the bundled tiny ones.

    Args:
      checkpoint: folder made by `rvseg convert` or exported by training; None for the bundled weights.
      dtype: precision by name, see `core.precision`; None takes the number format of the weights.
      mesh: devices that the weights, and pairs of frames, are spread over.
      settings: fields of `GeoMotionSystemConfig` to change, such as `stride` or `threshold`; `published=True` sets
        those of upstream's evaluation first.

    Raises:
      InputError: if the folder is no checkpoint of GeoMotion, or a setting is unknown or does not fit.
    """
    from rvseg_jax.systems.geomotion import loading

    return loading.load(checkpoint, dtype=dtype, mesh=mesh, **settings)


def describe() -> dict[str, Any]:
    """Parts, parameter counts, licences of weights and published presets, as JSON-able values."""
    from rvseg_jax.systems.geomotion import loading

    return loading.describe()
