"""Long clips in pieces: overlapping windows whose logits fade into each other.

The rule: every window has the same number of frames; neighbours share `overlap` of them, and in these the weight
moves linearly from the earlier window to the later. The last window ends at the last frame, so it shares more.
A clip of at most one window's length runs whole, which is what upstream always does.
"""

from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np

Piece = tuple[int, np.ndarray]


def windows(frames: Iterable[np.ndarray], length: int | None, overlap: int) -> Iterator[Piece]:
    """Cuts a stream of frames into windows of `length`; holds no more than that many frames.

    Without a length all frames are one window.

    Shapes: frames [...] each -> (index of the first frame, [t, ...]); t is `length`, or all frames of a
      shorter clip.

    Raises:
      ValueError: unless 0 <= overlap < length.
    """
    if length is not None and not 0 <= overlap < length:
        raise ValueError(f"windows of {length} frames cannot share {overlap}")
    held: list[np.ndarray] = []
    start, next_start = 0, 0
    for frame in frames:
        if len(held) == length:
            # A further frame has come, so that this window is not the last.
            if start >= next_start:
                yield start, np.stack(held)
                next_start = start + length - overlap
            held.pop(0)
            start += 1
        held.append(frame)
    if held:
        yield start, np.stack(held)


def faded(pieces: Iterable[Piece]) -> Generator[Piece, None, None]:
    """Joins overlapping windows of values, frames on axis 1, into consecutive pieces.

    Shapes: (start, [N, t, ...]) with ascending starts -> (start, [N, t', ...]), each frame once, in order.
    """
    start, held = 0, None
    for next_start, values in pieces:
        if held is not None:
            shared = start + held.shape[1] - next_start
            if shared < held.shape[1]:
                yield start, held[:, : held.shape[1] - shared]
            if shared:
                weight = np.arange(1, shared + 1, dtype=np.float32) / (shared + 1)
                weight = weight.reshape(1, -1, *(1,) * (values.ndim - 2))
                mixed = (1 - weight) * held[:, -shared:] + weight * values[:, :shared]
                values = np.concatenate([mixed.astype(values.dtype), values[:, shared:]], axis=1)
        start, held = next_start, values
    if held is not None:
        yield start, held


def sharing_frames(length: int) -> int:
    """Frames that neighbouring windows share: a quarter, at most 16."""
    return min(length // 4, 16)


WindowFunction = Callable[[np.ndarray], np.ndarray]


def run_windows(
    frames: Iterable[np.ndarray], function: WindowFunction, *, length: int | None, overlap: int
) -> Generator[Piece, None, None]:
    """Applies `function` ([t, ...] -> [N, t, ...]) window by window and joins the results."""
    return faded((start, function(window)) for start, window in windows(frames, length, overlap))
