"""A video through SAM 2: rows of its state are objects, and a frame is one call of a compiled step."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from rvseg_jax.models.sam2.tracking import Place
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts, scaled_mask, scaled_points
from rvseg_jax.models.sam2.tracking_state import TrackState, empty_state, grown, without_rows
from rvseg_jax.processing.sam2 import square_frame
from rvseg_jax.trackers.base import Session, logger, room_for
from rvseg_jax.trackers.prompts import KINDS, Prompt


class Sam2Session(Session):
    """A video. See `Session`; a prompt may be points, a box or a mask.

    Every prompted frame of an object stays in memory, as in upstream: memory grows with the prompts of an object, in
    powers of two, and not with the frames.
    """

    accepts = KINDS

    def __init__(self, programs: TrackingPrograms, *, objects: int = 1) -> None:
        super().__init__()
        self._programs, self._cfg = programs, programs.cfg
        self._rows: list[int | None] = [None] * room_for(objects)  # the object of each row of the state
        self._prompted: dict[int, int] = {}  # prompted frames of each object
        self._state: TrackState | None = None

    def _step(self, frame: np.ndarray, prompts: Mapping[int, Prompt], end: bool) -> tuple[np.ndarray, np.ndarray]:
        state = self._with_room(prompts)
        features = self._programs.encode_image(jnp.asarray(square_frame(frame, self._cfg.image_size))[None])
        place = Place.of(len(self._rows), self._frame)
        asked = None
        if prompts:
            wanted = [None if row is None or row not in prompts else prompts[row] for row in self._rows]
            asked = batched_prompts(self._cfg, [self._scaled(prompt) for prompt in wanted])
        self._state, seen = self._programs.track_step(state, features, place, asked)
        chosen = np.array([self._rows.index(object_id) for object_id in self.ids])
        logits = self._programs.enlarged(seen.logits, (frame.shape[0], frame.shape[1]))
        scores = 1 / (1 + np.exp(-np.asarray(seen.object_score, np.float32)[chosen]))
        return np.asarray(logits > 0)[chosen], scores

    def _forget(self, object_id: int) -> None:
        row = self._rows.index(object_id)
        self._rows[row] = None
        del self._prompted[object_id]
        if self._state is not None:
            self._state = without_rows(self._state, jnp.arange(len(self._rows)) == row)

    def _with_room(self, prompts: Mapping[int, Prompt]) -> TrackState:
        """The state with a row for every object and a slot for every prompted frame, of twice the size if too small."""
        for object_id in prompts:
            self._prompted[object_id] = self._prompted.get(object_id, 0) + 1
            if object_id not in self._rows:
                if None not in self._rows:
                    self._rows += [None] * len(self._rows)
                self._rows[self._rows.index(None)] = object_id
        rows, slots = len(self._rows), room_for(max(self._prompted.values(), default=1))
        if self._state is None:
            return empty_state(self._cfg, rows, prompted_slots=slots)
        slots = max(slots, self._state.prompted.frame.shape[1])
        if (rows, slots) != self._state.prompted.frame.shape:
            logger.info("compiling for %d objects with %d prompted frames each", rows, slots)
            return grown(self._state, rows=rows, prompted_slots=slots)
        return self._state

    def _scaled(self, prompt: Prompt | None) -> RowPrompt | None:
        if prompt is None or self._size is None:
            return None
        if prompt.mask is not None:
            return RowPrompt(mask=scaled_mask(self._cfg, prompt.mask))
        points, labels = scaled_points(
            self._cfg, self._size, points=prompt.points, labels=prompt.labels, box=prompt.box
        )
        return RowPrompt(points, labels)
