"""SAM 2 and 2.1 as a tracker: points, boxes and masks in any frame (Ravi et al., arXiv 2408.00714)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import Sam2
    from rvseg_jax.trackers.sam2.session import Sam2Session

TINY = "zoo/sam2_tiny"
SIZES = ("tiny", "small", "base_plus", "large")


class Sam2Tracker:
    """The model with its compiled programs, which all sessions share."""

    name = "sam2"
    accepts: tuple[str, ...] = ("points", "box", "mask")

    def __init__(self, model: "Sam2") -> None:
        from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms

        self.config = model.cfg
        self.programs = TrackingPrograms(model)

    def session(self, *, objects: int = 1) -> "Sam2Session":
        """A new video; see `trackers.base.Session`."""
        from rvseg_jax.trackers.sam2.session import Sam2Session

        return Sam2Session(self.programs, objects=objects)


def load(
    checkpoint: Path | None,
    *,
    dtype: str | None = None,
    mesh: Any = None,
    postprocessing: bool = True,
    **settings: Any,
) -> Sam2Tracker:
    """The tracker with the weights of a checkpoint, or with the bundled tiny ones.

    Args:
      checkpoint: folder made by `rvseg convert` or exported by training; None for the bundled weights.
      dtype: precision by name; None takes the number format of the weights.
      mesh: devices that the weights are spread over.
      postprocessing: what upstream's `build_sam2_video_predictor` switches on: an unstable mask gives way to the best
        of several, clicked masks are remembered as binary, and holes of up to 8 cells are filled.
      settings: fields of `TrackingConfig` to change, such as `non_overlap_masks` or `fill_hole_area`.

    Raises:
      InputError: if the folder is no checkpoint of SAM 2, or a setting is unknown or does not fit.
    """
    from rvseg_jax.parts.loading import load_part
    from rvseg_jax.parts.settings import changed

    model = cast("Sam2", load_part(TINY if checkpoint is None else checkpoint, "sam2", dtype=dtype, mesh=mesh))
    config = model.cfg.with_postprocessing() if postprocessing else model.cfg
    model.cfg = dataclasses.replace(config, tracking=changed(config.tracking, settings, "sam2"))
    return Sam2Tracker(model)


def describe() -> dict[str, Any]:
    """Parameter counts, licence of weights and published presets, as JSON-able values."""
    from rvseg_jax.convert import registry
    from rvseg_jax.models.sam2.config import Sam2Config
    from rvseg_jax.models.sam2.model import Sam2
    from rvseg_jax.parts.bundle import is_bundle
    from rvseg_jax.parts.loading import parameter_count
    from rvseg_jax.zoo import resolve

    counts = {}
    for size in SIZES:
        for version in ("sam2", "sam2_1"):
            config = getattr(Sam2Config, f"{version}_{size}")()
            counts[f"{version}_{size}"] = parameter_count(lambda rngs, c=config: Sam2(c, rngs=rngs))  # type: ignore[misc]
    return {
        "tracker": "sam2",
        "paper": "SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714",
        "accepts": list(Sam2Tracker.accepts),
        "parameters": counts,
        "licence": registry.part("sam2").licence,
        "tiny": "bundled, Apache-2.0" if is_bundle(resolve(TINY)) else "not bundled",
    }
