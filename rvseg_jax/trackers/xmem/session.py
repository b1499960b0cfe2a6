"""A video through XMem: objects are planes of its state, in the order in which they appeared."""

from collections.abc import Mapping

import numpy as np

from rvseg_jax.models.xmem.inference import Propagator, Track
from rvseg_jax.processing.xmem import label_image, prepare_frame, prepare_masks, working_size
from rvseg_jax.trackers.base import Session, logger, room_for
from rvseg_jax.trackers.prompts import Prompt


class XMemSession(Session):
    """A video. See `Session`; a prompt is a mask.

    An object that is removed is no longer reported, but keeps its memory: XMem's objects share one.
    """

    accepts = ("mask",)

    def __init__(self, propagator: Propagator, *, objects: int = 1) -> None:
        super().__init__()
        self._propagator = propagator
        self._planes: list[int] = []  # the object of each plane, those that were removed among them
        self._room = room_for(objects)
        self._track: Track | None = None

    def _step(self, frame: np.ndarray, prompts: Mapping[int, Prompt], end: bool) -> tuple[np.ndarray, np.ndarray]:
        size = working_size(frame.shape[0], frame.shape[1], self._propagator.cfg.size)
        self._planes += [object_id for object_id in prompts if object_id not in self._planes]
        track = self._with_room(size)
        masks, labelled = None, None
        if prompts:
            given = np.zeros((self._room, *frame.shape[:2]), bool)
            labelled = [self._planes.index(object_id) for object_id in prompts]
            for plane, prompt in zip(labelled, prompts.values(), strict=True):
                assert prompt.mask is not None
                given[plane] = prompt.mask
            masks = prepare_masks(given, size)
        found, self._track = self._propagator.step(track, prepare_frame(frame, size), masks, labelled, end=end)
        planes = np.asarray(found, np.float32)
        labels = label_image(planes, (frame.shape[0], frame.shape[1]))
        chosen = [self._planes.index(object_id) + 1 for object_id in self.ids]
        return np.stack([labels == plane for plane in chosen]), planes[chosen].max(axis=(1, 2))

    def _forget(self, object_id: int) -> None:
        """Its plane stays; another object of this number takes it up again."""

    def _with_room(self, size: tuple[int, int]) -> Track:
        if self._track is None:
            self._room = max(self._room, room_for(len(self._planes)))
            return self._propagator.start(size, self._room)
        if len(self._planes) > self._room:
            self._room = room_for(len(self._planes))
            logger.info("%d objects: compiling for %d", len(self._planes), self._room)
            return self._propagator.grow(self._track, self._room)
        return self._track
