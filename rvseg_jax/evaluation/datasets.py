"""Datasets that can be evaluated on, as sources of decoded samples."""

from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.sources import ReferringSample, ReferringVideo, Source

MEVIS = "mevis"
MOVING_SHAPES = "moving_shapes"
NAMES = (MEVIS, MOVING_SHAPES)
MEVIS_PROTOCOL = "MeViS: mean over (video, expression) of the mean over all frames of J and F"
_MEVIS_SPLIT = "valid_u"


class DecodedVideos:
    """Samples of a source of undecoded videos; consecutive sentences of one video share the decoded frames."""

    def __init__(self, videos: Source[ReferringVideo], *, with_frames: bool = True) -> None:
        """Wrap a source.

        Args:
          videos: such as `Mevis(folder)`.
          with_frames: False leaves the pixels black, which is all that scoring a folder of predictions needs.
        """
        self._videos = videos
        self._with_frames = with_frames
        self._last: tuple[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> ReferringSample:
        """Sample `index`, decoded whole.

        Raises:
          InputError: where a file of it is missing, cannot be decoded, or does not fit the others.
        """
        video = self._videos[index]
        if self._last is None or self._last[0] != video.video:
            self._last = (video.video, self._frames(video))
        names = tuple(video.frames.names)
        return ReferringSample(self._last[1], video.masks(), video.text, video.video, video.expression, names, "")

    def _frames(self, video: ReferringVideo) -> np.ndarray:
        if self._with_frames:
            return video.frames.read()
        return np.broadcast_to(np.uint8(0), (len(video.frames), *video.frames.size(), 3))


def mevis(root: Path, *, split: str | None, frames: Path | None, with_frames: bool = True) -> DecodedVideos:
    """A split of MeViS, version 1 or 2, or of any dataset on disk in that form.

    Args:
      root: the dataset's folder, or the folder of one split.
      split: the folder below `root`, `valid_u` if not given; ignored where `root` is a split's folder.
      frames: where the folders of frames lie, if not in the split's `JPEGImages`.
      with_frames: see `DecodedVideos`.

    Raises:
      InputError: if the files are missing, or the split's masks are not public.
    """
    own = (root / meta_expressions.FILE_NAME).is_file()
    folder = root if own else root / (split or _MEVIS_SPLIT)
    videos = Mevis(folder, frames=frames)
    if not videos.has_masks:
        raise InputError(f"{folder} has no mask_dict.json: its truth is not public, evaluate on {_MEVIS_SPLIT}")
    return DecodedVideos(videos, with_frames=with_frames)
