"""XMem as a tracker: masks of one or several frames through long videos (Cheng and Schwing, arXiv 2207.07115)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rvseg_jax.models.xmem.config import MemoryConfig
    from rvseg_jax.models.xmem.network import XMem
    from rvseg_jax.trackers.xmem.session import XMemSession

TINY = "zoo/xmem_tiny"


class XMemTracker:
    """The model with its compiled programs, which all sessions share."""

    name = "xmem"
    accepts: tuple[str, ...] = ("mask",)

    def __init__(self, model: "XMem", memory: "MemoryConfig | None" = None) -> None:
        from rvseg_jax.models.xmem.inference import Propagator

        self.config = model.cfg
        self.propagator = Propagator(model, memory)

    def session(self, *, objects: int = 1) -> "XMemSession":
        """A new video; see `trackers.base.Session`."""
        from rvseg_jax.trackers.xmem.session import XMemSession

        return XMemSession(self.propagator, objects=objects)


def load(checkpoint: Path | None, *, dtype: str | None = None, mesh: Any = None, **settings: Any) -> XMemTracker:
    """The tracker with the weights of a checkpoint, or with the bundled tiny ones.

    Args:
      checkpoint: folder made by `rvseg convert` or exported by training; None for the bundled weights. Those two work
        at the size that they were trained at, the published weights at 480 pixels of the shorter side.
      dtype: precision by name; None takes the number format of the weights.
      mesh: devices that the weights are spread over.
      settings: fields of `MemoryConfig` to change, such as `size`, `mem_every` or `top_k`.

    Raises:
      InputError: if the folder is no checkpoint of XMem, or a setting is unknown or does not fit.
    """
    from rvseg_jax.models.xmem.config import MemoryConfig
    from rvseg_jax.parts.loading import load_part, settings_of
    from rvseg_jax.parts.settings import changed

    folder = TINY if checkpoint is None else checkpoint
    model = cast("XMem", load_part(folder, "xmem", dtype=dtype, mesh=mesh))
    return XMemTracker(model, changed(MemoryConfig(), settings_of(folder) | settings, "xmem"))


def describe() -> dict[str, Any]:
    """Parameter counts, licence of weights and published presets, as JSON-able values."""
    from rvseg_jax.convert import registry
    from rvseg_jax.models.xmem.config import XMemConfig
    from rvseg_jax.models.xmem.network import XMem
    from rvseg_jax.parts.bundle import is_bundle
    from rvseg_jax.parts.loading import parameter_count
    from rvseg_jax.zoo import resolve

    presets = {"published": XMemConfig.published(), "without_sensory": XMemConfig.without_sensory()}
    return {
        "tracker": "xmem",
        "paper": "XMem: Long-Term Video Object Segmentation with an Atkinson-Shiffrin Memory Model, arXiv 2207.07115",
        "accepts": list(XMemTracker.accepts),
        "parameters": {
            name: parameter_count(lambda rngs, c=config: XMem(c, rngs=rngs))  # type: ignore[misc]
            for name, config in presets.items()
        },
        "licence": registry.part("xmem").licence,
        "tiny": "bundled, Apache-2.0" if is_bundle(resolve(TINY)) else "not bundled",
    }
