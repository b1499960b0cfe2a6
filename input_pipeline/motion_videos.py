"""Samples of motion segmentation: what moves by itself, whatever it is and however the camera moves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class MotionSample:
    """A clip with one mask of all that moves by itself.

    Attributes:
      frames: uint8 [T, H, W, 3], RGB.
      masks: bool [T, H, W], all that moves; False in frames without truth.
      video: name of the video.
      frame_names: names of the frames, as the dataset has them, without suffix.
      kind: what makes the clip hard, where the dataset says so, else "".
      valid: bool [T, H, W], False where the truth is void; None where the dataset knows no void.
      known: bool [T], which frames have truth; None where all have.
    """

    frames: np.ndarray
    masks: np.ndarray
    video: str
    frame_names: tuple[str, ...]
    kind: str = ""
    valid: np.ndarray | None = field(default=None, kw_only=True)
    known: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    @property
    def annotated(self) -> Sequence[int]:
        """Places of the frames that have truth, rising."""
        return range(len(self)) if self.known is None else np.flatnonzero(self.known).tolist()

    def sample(self, places: Sequence[int]) -> "MotionSample":
        """The clip of some frames, repeats allowed, with the fields of this class alone."""
        chosen = list(places)
        return MotionSample(
            self.frames[chosen],
            self.masks[chosen],
            self.video,
            tuple(self.frame_names[place] for place in chosen),
            self.kind,
            valid=None if self.valid is None else self.valid[chosen],
            known=None if self.known is None else self.known[chosen],
        )


class MotionVideo(Protocol):
    """A video with the truth of what moves, of which clips are decoded when they are asked for."""

    @property
    def annotated(self) -> Sequence[int]:
        """Places of the frames that have truth, rising."""

    def __len__(self) -> int:
        """Number of frames."""

    def sample(self, places: Sequence[int]) -> MotionSample:
        """The clip of some frames, repeats allowed."""
