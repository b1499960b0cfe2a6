"""A whole video through a tracker: prompts by frame in, all objects of every frame out, in order."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.memory import free_bytes
from rvseg_jax.formats import rle
from rvseg_jax.processing.video import IteratorVideo, Video
from rvseg_jax.trackers.base import TrackedFrame, Tracker, check_request
from rvseg_jax.trackers.prompts import Prompt

# Prompts by frame, and by object in a frame.
Prompts = Mapping[int, Mapping[int, Prompt]]


def check_prompts(tracker: Tracker, prompts: Prompts) -> tuple[int, ...]:
    """The objects that are prompted, rising.

    Raises:
      InputError: where there is none, a frame or object has an impossible number, or the tracker takes no such prompt.
    """
    found: set[int] = set()
    for frame, objects in prompts.items():
        if frame < 0:
            raise InputError(f"a prompt for frame {frame}: frames are numbered from 0")
        for object_id, prompt in objects.items():
            check_request(object_id, prompt, tracker.accepts)
            found.add(object_id)
    if not found:
        raise InputError("nothing to follow: give points, a box or a mask of an object")
    return tuple(sorted(found))


def follow(tracker: Tracker, video: Video, prompts: Prompts, *, backward: bool = False) -> Iterator[TrackedFrame]:
    """The objects of every frame, those of all prompts in one order; empty masks where an object is not known yet.

    Frames are read one by one, and memory does not grow with the length of the video.

    Args:
      backward: also follow objects from their first prompt towards the beginning; the frames before the last of
        those prompts are then held in memory.

    Raises:
      InputError: as `check_prompts`; if the video ends before a prompt; for `backward` on a clip that can be read only
        once, or frames that do not fit into memory.
    """
    ids = check_prompts(tracker, prompts)
    earlier = _backward(tracker, video, prompts, ids) if backward else {}
    session = tracker.session(objects=len(ids))
    images = iter(video)
    image, index = next(images, None), 0
    while image is not None:
        for object_id, prompt in prompts.get(index, {}).items():
            session.prompt(object_id, prompt)
        following = next(images, None)
        yield _filled(session.step(image, end=following is None), ids, earlier.pop(index, {}))
        image, index = following, index + 1
    late = [frame for frame in prompts if frame >= index]
    if late:
        raise InputError(f"a prompt is for frame {min(late)}, but {video.name} ends after {index} frames")


def _filled(found: TrackedFrame, ids: tuple[int, ...], earlier: Mapping[int, tuple[Any, float]]) -> TrackedFrame:
    """All of `ids`, with the masks of objects that are found only on the way back."""
    masks = np.zeros((len(ids), *found.masks.shape[1:]), bool)
    scores = np.zeros(len(ids), np.float32)
    for place, object_id in enumerate(ids):
        if object_id in found.ids:
            masks[place] = found[object_id]
            scores[place] = found.scores[found.ids.index(object_id)]
        elif object_id in earlier:
            mask, scores[place] = earlier[object_id]
            masks[place] = rle.decode(mask)
    return TrackedFrame(found.index, ids, masks, scores)


def _backward(
    tracker: Tracker, video: Video, prompts: Prompts, ids: tuple[int, ...]
) -> dict[int, dict[int, tuple[Any, float]]]:
    """Masks and scores of objects in the frames before their first prompts: {frame: {object: (RLE, score)}}."""
    first = {object_id: min(frame for frame in prompts if object_id in prompts[frame]) for object_id in ids}
    last = max(first.values())
    if last == 0:
        return {}
    if isinstance(video, IteratorVideo):
        raise InputError("a clip that can be read only once cannot be followed backwards; give a file or a folder")
    needed = (last + 1) * video.height * video.width * 3
    if needed > free_bytes() // 2:
        raise InputError(
            f"following backwards from frame {last} holds {needed / 2**30:.1f} GiB of frames, more than half of the "
            "free memory: prompt an earlier frame"
        )
    images = [image for _, image in zip(range(last + 1), video, strict=False)]
    session = tracker.session(objects=len(ids))
    found: dict[int, dict[int, tuple[Any, float]]] = {}
    for frame in range(len(images) - 1, -1, -1):
        for object_id in ids:
            if first[object_id] == frame:
                session.prompt(object_id, prompts[frame][object_id])
        seen = session.step(images.pop(), end=frame == 0)
        found[frame] = {
            object_id: (rle.encode(mask), float(score))
            for object_id, mask, score in zip(seen.ids, seen.masks, seen.scores, strict=True)
        }
    return found
