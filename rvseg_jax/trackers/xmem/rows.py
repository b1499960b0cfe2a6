"""Training clips of XMem's last stages, as in upstream's `dataset/vos_dataset.py`; numpy only, for data workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rvseg_jax.input_pipeline.sources import Source, TrackingSample, TrackingVideo
from rvseg_jax.trackers.rows import ClipRow


@dataclass(frozen=True)
class JumpRow(ClipRow):
    """A clip of frames each of which lies at most `longest_stride` frames of the video from another one of them."""

    def __call__(self, video: TrackingVideo, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `ClipRow`; of a `SparseVideo` the stride counts the frames that it leaves out."""
        every = video.every if isinstance(video, SparseVideo) else 1
        scaled = replace(self, longest_stride=max(self.longest_stride // every, 1))
        return super(JumpRow, scaled).__call__(video, rng)

    def _places(self, length: int, rng: np.random.Generator) -> list[int]:
        """Frames of the clip; the last one is repeated where the video is too short."""
        chosen = [int(rng.integers(length))]
        near: set[int] = set()
        while len(chosen) < min(self.frames, length):
            first, last = chosen[-1] - self.longest_stride, chosen[-1] + self.longest_stride
            near = near.union(range(max(first, 0), min(last + 1, length))).difference(chosen)
            chosen.append(sorted(near)[int(rng.integers(len(near)))])
        places = sorted(chosen)
        places += places[-1:] * (self.frames - len(places))
        return places[::-1] if rng.random() < 0.5 else places


@dataclass(frozen=True)
class StagedRow:
    """A row whose longest stride changes in the course of training.

    Attributes:
      row: with the stride of the beginning.
      stages: (samples taken before, stride from then on), ascending.
    """

    row: ClipRow
    stages: tuple[tuple[int, int], ...]

    def at(self, position: int) -> ClipRow:
        """The row for the sample at a position in the order of training."""
        strides = [stride for start, stride in self.stages if start <= position]
        return replace(self.row, longest_stride=strides[-1]) if strides else self.row

    def __call__(self, video: TrackingVideo, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """A row of the beginning."""
        return self.row(video, rng)


@dataclass(frozen=True)
class SparseVideo:
    """A video of which only every `every`-th frame is there."""

    video: TrackingVideo
    every: int

    def __len__(self) -> int:
        return len(self.video)

    def sample(self, places: Sequence[int]) -> TrackingSample:
        """The clip of some of the frames that are there."""
        return self.video.sample(places)


@dataclass(frozen=True)
class SparseClips:
    """Videos as `SparseVideo`."""

    videos: Source[TrackingVideo]
    every: int

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        return f"{self.videos!r}, every {self.every} frames"

    def __getitem__(self, index: int) -> SparseVideo:
        return SparseVideo(self.videos[index], self.every)
