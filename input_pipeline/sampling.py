"""Which frames of a video make up a training clip."""

import numpy as np


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
