"""Where training clips of trackers come from."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from rvseg_jax.input_pipeline.datasets.davis import Davis, DavisClips
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import TrackingShapes, TrackingShapesConfig


@dataclass(frozen=True)
class ClipsConfig:
    """Training clips.

    Attributes:
      shapes: procedural clips, where `root` names no folder; also the clips of validation.
      root: a dataset in DAVIS's layout.
      split, year, resolution: see `datasets.davis.Davis`.
      frames: frames of a clip.
      objects: objects of a clip.
      longest_stride: frames of the video from one frame of a clip to the next, at most.
      crop: cut squares at random; otherwise frames are squashed.
    """

    shapes: TrackingShapesConfig = TrackingShapesConfig()
    root: str = ""
    split: str = "train"
    year: Literal["", "2016", "2017"] = ""
    resolution: str = "480p"
    frames: int = 8
    objects: int = 2
    longest_stride: int = 2
    crop: bool = False

    def __post_init__(self) -> None:
        if min(self.frames, self.objects, self.longest_stride) < 1:
            raise ValueError(
                f"clips of {self.frames} frames with {self.objects} objects at a stride of {self.longest_stride}: "
                "each must be at least 1"
            )


def source(config: ClipsConfig, split: str) -> Any:
    """Videos of a split of training, "train" or "validation"."""
    if split == "train" and config.root:
        return DavisClips(Davis(config.root, config.split, year=config.year, resolution=config.resolution))
    return TrackingShapes(replace(config.shapes, split="train" if split == "train" else "valid"))
