"""Masks carried through a video by a tracker, from the frame in which a phrase first names something."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rvseg_jax.processing.video import Video
from rvseg_jax.systems.base import Verdict
from rvseg_jax.trackers import base as trackers
from rvseg_jax.trackers.base import Session, Tracker

if TYPE_CHECKING:
    from rvseg_jax.systems.mllmseg.system import ImageAnswers, MLLMSegSystem


def tracker_of(name: str, checkpoint: str) -> Tracker:
    """A tracker by name.

    Args:
      checkpoint: folder of its weights; "" takes the bundled tiny ones.
    """
    return trackers.module(name).load(Path(checkpoint) if checkpoint else None, dtype=None, mesh=None)


def carried(
    system: "MLLMSegSystem", tracker: Tracker, video: Video, texts: Sequence[str], *, threshold: float | None
) -> Iterator[tuple[np.ndarray, list[Verdict]]]:
    """Masks of all phrases in every frame, and what became of each.

    A phrase is asked about in the first frame, and in every `ask_every`-th one after it until it names something there;
    from that frame on the tracker has it. The score of a frame that the tracker has filled is the tracker's.

    Shapes: yields masks bool [N, H, W].
    """
    session = tracker.session(objects=len(texts))
    verdicts = [Verdict("no_target", 0.0) for _ in texts]
    images = iter(video)
    image, index = next(images, None), 0
    while image is not None:
        waiting = [number for number in range(len(texts)) if number + 1 not in session.ids]
        if waiting and index % system.config.ask_every == 0:
            (answers,) = system.answer([image], [[texts[number] for number in waiting]], threshold=threshold)
            _begin(session, waiting, answers, verdicts)
        following = next(images, None)
        found = session.step(image, end=following is None)
        masks = np.zeros((len(texts), *image.shape[:2]), bool)
        for object_id, mask, score in zip(found.ids, found.masks, found.scores, strict=True):
            masks[object_id - 1] = mask
            verdicts[object_id - 1] = Verdict("ok", float(score)) if mask.any() else Verdict("no_target", 0.0)
        yield masks, list(verdicts)
        image, index = following, index + 1


def _begin(session: Session, waiting: Sequence[int], answers: "ImageAnswers", verdicts: list[Verdict]) -> None:
    """Gives the tracker what was found; keeps how the rest ended."""
    for number, mask, verdict in zip(waiting, answers.masks, answers.verdicts, strict=True):
        verdicts[number] = verdict
        if verdict.status == "ok" and mask.any():
            session.add(number + 1, mask=mask)
