"""Which videos and which of their frames make up training clips."""

from typing import Protocol

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.input_pipeline.sources import ReferringVideo, Source

logger = get_logger(__name__)


def anchors(video_frames: int, clip_frames: int) -> list[int]:
    """Anchor frames of a video: every `clip_frames`-th, from the first.

    Raises: ValueError unless both are positive.
    """
    if video_frames < 1 or clip_frames < 1:
        raise ValueError(f"a video of {video_frames} frames has no clips of {clip_frames}: both must be positive")
    return list(range(0, video_frames, clip_frames))


def sparse_around(anchor: int, video_frames: int, clip_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Frames of a sparse clip around an anchor, as FlowRVS and ReferFormer draw them.

    The clip holds the anchor, one frame 1 to 3 before it and one 1 to 3 after it (clamped to the video), and
    random frames from outside that span. The last frame of the span counts as outside, so it may be there
    twice, as upstream. Where the outside is too small, the others come from the whole video; where that is too
    small too, every frame comes as often as needed. One frame is the anchor alone; two are it and the later one.

    Args:
      anchor: a frame, 0 <= anchor < video_frames.
      video_frames: length of the video.
      clip_frames: how many frames to draw.
      rng: source of randomness.

    Returns:
      int64 [clip_frames], rising.

    Raises: ValueError for an anchor outside the video, or no frames to draw.

    Source: FlowRVS datasets/mevis.py, `__getitem__`.
    """
    if not 0 <= anchor < video_frames or clip_frames < 1:
        raise ValueError(f"cannot draw {clip_frames} frames around frame {anchor} of {video_frames}")
    before = max(anchor - int(rng.integers(1, 4)), 0)
    after = min(anchor + int(rng.integers(1, 4)), video_frames - 1)
    local = [anchor, after, before][:clip_frames]
    wanted = clip_frames - len(local)
    outside = np.concatenate([np.arange(before), np.arange(after, video_frames)])
    if len(outside) > wanted:
        drawn = rng.choice(outside, wanted, replace=False)
    else:
        repeats, rest = divmod(wanted, video_frames)
        drawn = np.concatenate(
            [np.tile(np.arange(video_frames), repeats), rng.choice(video_frames, rest, replace=False)]
        )
    return np.sort(np.concatenate([np.array(local, np.int64), drawn.astype(np.int64)]))


def contiguous(video_frames: int, clip_frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random run of neighbouring frames; a shorter video repeats its last frame.

    Returns:
      int64 [clip_frames], rising.

    Raises: ValueError unless both lengths are positive.
    """
    if video_frames < 1 or clip_frames < 1:
        raise ValueError(f"cannot draw {clip_frames} frames of a video of {video_frames}: both must be positive")
    start = int(rng.integers(0, max(video_frames - clip_frames, 0) + 1))
    return np.minimum(np.arange(start, start + clip_frames), video_frames - 1)


class CountedSource(Source[ReferringVideo], Protocol):
    """A source that knows how many frames its videos have."""

    def frame_count(self, index: int) -> int: ...


class LongEnough:
    """The items of a source whose videos have at least as many frames as a clip; the log says how many are left out.

    Source: FlowRVS datasets/ytvos.py, which leaves such videos of Ref-YouTube-VOS out.
    """

    def __init__(self, source: CountedSource, frames: int) -> None:
        """Counts the frames of every item.

        Args:
          source: what to choose from.
          frames: least frames of a video.

        Raises: InputError where no video is long enough.
        """
        self.source, self.frames = source, frames
        self._kept = np.array([i for i in range(len(source)) if source.frame_count(i) >= frames], np.int64)
        self.left_out = len(source) - len(self._kept)
        if not len(self._kept):
            raise InputError(f"no video of {source!r} has {frames} frames; take shorter clips")
        if self.left_out:
            logger.info(
                "%r: %d of %d items left out, their videos have fewer than %d frames",
                source,
                self.left_out,
                len(source),
                frames,
            )

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"{self.source!r} from {self.frames} frames on"

    def frame_count(self, index: int) -> int:
        """Frames of the video of item `index`."""
        return self.source.frame_count(int(self._kept[index]))

    def __getitem__(self, index: int) -> ReferringVideo:
        return self.source[int(self._kept[index])]
