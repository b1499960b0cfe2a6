"""Training rows of motion segmentation, made in data workers, and the mixture of GeoMotion's recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.mixture import Mixture
from rvseg_jax.input_pipeline.motion_videos import MotionVideo
from rvseg_jax.input_pipeline.motion_views import centre_square, jittered, tri_view
from rvseg_jax.input_pipeline.sources import Source

Views = Literal["whole", "square", "jittered", "tri_view"]


@dataclass(frozen=True)
class MotionRow:
    """A clip of a video, of frames that have truth.

    Attributes:
      frames: frames of a clip, T.
      size: side of the square frames, S.
      strides: annotated frames of the video from one frame of the clip to the next, each as likely as any other.
      view: "whole" squashes the frames; "square" takes the one in the middle; "jittered" and "tri_view" as the
        functions of `motion_views`.
    """

    frames: int = 12
    size: int = 518
    strides: tuple[int, ...] = (1,)
    view: Views = "square"

    def __post_init__(self) -> None:
        if min(self.frames, self.size, *self.strides) < 1:
            raise ValueError(f"frames {self.frames}, size {self.size} and strides {self.strides} must be at least 1")
        if self.view not in ("whole", "square", "jittered", "tri_view"):
            raise ValueError(f"view {self.view!r}: choose from whole, square, jittered, tri_view")

    def __call__(self, video: MotionVideo, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row.

        Shapes: -> {"frames": uint8 [T, S, S, 3], "masks": bool [T, S, S], "valid": bool [T, S, S], False where void}.

        Raises:
          InputError: for a video without truth.
        """
        clip = video.sample(self.places(video, rng))
        if self.view == "tri_view":
            clip = tri_view(clip, rng)
        elif self.view == "jittered":
            clip = jittered(clip, rng)
        elif self.view == "square":
            clip = centre_square(clip)
        valid = np.ones(clip.masks.shape, bool) if clip.valid is None else clip.valid
        return {
            "frames": _resized(clip.frames, self.size, Image.Resampling.LANCZOS),
            "masks": _resized(clip.masks.astype(np.uint8), self.size, Image.Resampling.NEAREST) > 0,
            "valid": _resized(valid.astype(np.uint8), self.size, Image.Resampling.NEAREST) > 0,
        }

    def places(self, video: MotionVideo, rng: np.random.Generator) -> list[int]:
        """Frames of a clip; the last one is repeated where the video is too short.

        Raises:
          InputError: for a video without truth.
        """
        known = video.annotated
        if not len(known):
            raise InputError(f"{getattr(video, 'name', 'a video')} has no truth of what moves: leave it out")
        stride = int(rng.choice(self.strides))
        start = int(rng.integers(max(0, len(known) - self.frames * stride) + 1))
        return [int(known[min(start + step * stride, len(known) - 1)]) for step in range(self.frames)]


# GeoMotion's training sets: what is drawn of each, and in which shares of twenty.
RECIPE: dict[str, tuple[MotionRow, int]] = {
    "got10k": (MotionRow(strides=(4,), view="tri_view"), 3),
    "hoi4d": (MotionRow(), 4),
    "dynamic_stereo": (MotionRow(strides=(4,), view="jittered"), 4),
    "gotmoving": (MotionRow(strides=(1, 2, 4), view="tri_view"), 5),
    "dynamic_verse": (MotionRow(view="tri_view"), 4),
}


@dataclass(frozen=True)
class Drawn:
    """A video and how rows are made of it."""

    video: MotionVideo
    row: MotionRow


class _WithRow:
    """A source whose videos know how rows are made of them."""

    def __init__(self, source: Source[MotionVideo], row: MotionRow) -> None:
        self._source, self._row = source, row

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return repr(self._source)

    def __getitem__(self, index: int) -> Drawn:
        return Drawn(self._source[index], self._row)


def mixed(sources: Mapping[str, Source[MotionVideo]], *, frames: int = 12, size: int = 518) -> Source[Any]:
    """Training sets in the shares of GeoMotion's recipe, which `drawn_row` makes rows of.

    Args:
      sources: by the names of `RECIPE`, all or some of them.
      frames, size: of the clips.

    Raises: InputError for a name that the recipe does not know.
    """
    unknown = [name for name in sources if name not in RECIPE]
    if unknown or not sources:
        raise InputError(f"{unknown or 'nothing'} given; the recipe knows {', '.join(RECIPE)}")
    parts, weights = [], []
    for name, source in sources.items():
        row, weight = RECIPE[name]
        parts.append(_WithRow(source, replace(row, frames=frames, size=size)))
        weights.append(weight)
    return Mixture(parts, weights)


def drawn_row(item: Drawn, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A row of an item of `mixed`, see `MotionRow`."""
    return item.row(item.video, rng)


def _resized(images: np.ndarray, size: int, kernel: Image.Resampling) -> np.ndarray:
    """Images squashed to squares by Pillow. Shapes: uint8 [T, H, W, ...] -> [T, S, S, ...]."""
    images = np.ascontiguousarray(images)
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), kernel)) for image in images])
