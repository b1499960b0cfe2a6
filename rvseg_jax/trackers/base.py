"""What a tracker offers (frames and prompts in, masks of each object out), and the registry."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.trackers.prompts import Prompt

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """The objects of one frame.

    Shapes: masks bool [N, H, W] at the size of the frame; scores float32 [N].

    Attributes:
      index: number of the frame in its session, 0 for the first.
      ids: number of each object, in the order in which they appeared.
      scores: confidence in 0..1 that the object is to be seen.
    """

    index: int
    ids: tuple[int, ...]
    masks: np.ndarray
    scores: np.ndarray

    def __getitem__(self, object_id: int) -> np.ndarray:
        """The mask of an object.

        Raises:
          KeyError: if there is no such object.
        """
        if object_id not in self.ids:
            raise KeyError(object_id)
        return self.masks[self.ids.index(object_id)]


class Session(ABC):
    """A video that is being tracked, frame by frame.

        session.add(1, box=(40, 60, 120, 200))      # speaks of the frame that comes next
        for frame in video:                         # uint8 [H, W, 3], RGB
            masks = session.step(frame)[1]

    Memory does not grow with the number of frames. Objects may be added before any frame, and removed.

    Attributes:
      accepts: the kinds of prompts that this tracker understands.
      ids: objects that were added, in order.
    """

    accepts: tuple[str, ...]

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._size: tuple[int, int] | None = None
        self._frame = -1
        self._queued: dict[int, Prompt] = {}

    @property
    def frames(self) -> int:
        """Frames so far."""
        return self._frame + 1

    def add(self, object_id: int, *, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None) -> None:
        """Says where an object is in the frame that comes next; one that is known already is corrected there.

        Args:
          object_id: its number, 1 and up.
          points, labels, box, mask: see `Prompt`.

        Raises:
          InputError: for what is no prompt, one of a kind that the tracker does not take, or a second one for the
            same object and frame.
        """
        self.prompt(object_id, Prompt.of(points=points, labels=labels, box=box, mask=mask))

    def prompt(self, object_id: int, prompt: Prompt) -> None:
        """As `add`."""
        check_request(object_id, prompt, self.accepts)
        if object_id in self._queued:
            raise InputError(
                f"object {object_id} has a prompt for frame {self._frame + 1} already: give it all at once"
            )
        self._queued[int(object_id)] = prompt

    def remove(self, object_id: int) -> None:
        """Forgets an object.

        Raises:
          InputError: if there is none of this number.
        """
        if object_id not in self.ids and object_id not in self._queued:
            raise InputError(f"there is no object {object_id}: there are {self.ids}")
        self._queued.pop(object_id, None)
        if object_id in self.ids:
            self._forget(object_id)
            self.ids.remove(object_id)

    def step(self, frame: Any, *, end: bool = False) -> TrackedFrame:
        """The masks of the next frame.

        Shapes: frame uint8 [H, W, 3], RGB.

        Args:
          end: says that no frame follows, which may save the work of remembering this one.

        Raises:
          InputError: for something else than such a frame, one of another size than those before it, or a prompt
            that does not fit it. The session is then as before.
        """
        image = _checked(frame, self._size, self._frame + 1)
        size = (image.shape[0], image.shape[1])
        for object_id, prompt in self._queued.items():
            what = f"object {object_id} in frame {self._frame + 1}"
            prompt.check(size, what, appears=object_id not in self.ids)
        prompts, self._queued = self._queued, {}
        self._size, self._frame = size, self._frame + 1
        self.ids += [object_id for object_id in prompts if object_id not in self.ids]
        if not self.ids:
            return TrackedFrame(self._frame, (), np.zeros((0, *size), bool), np.zeros(0, np.float32))
        masks, scores = self._step(image, prompts, end)
        return TrackedFrame(self._frame, tuple(self.ids), masks, scores)

    @abstractmethod
    def _step(self, frame: np.ndarray, prompts: Mapping[int, Prompt], end: bool) -> tuple[np.ndarray, np.ndarray]:
        """Masks [N, H, W] and scores [N] of `ids`, which hold the objects of `prompts` already."""

    @abstractmethod
    def _forget(self, object_id: int) -> None:
        """Lets go of an object that is in `ids`."""


def check_request(object_id: Any, prompt: Prompt, accepts: Sequence[str]) -> None:
    """Whether a tracker can follow this object from this prompt.

    Raises:
      InputError: for a number below 1, or a kind of prompt that the tracker does not take.
    """
    if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)) or object_id < 1:
        raise InputError(f"object {object_id!r}: number objects 1, 2, ...")
    for kind in prompt.kinds:
        if kind not in accepts:
            raise InputError(
                f"object {object_id}: this tracker takes no {kind}, only {', '.join(accepts)}; "
                "sam2 takes points, boxes and masks"
            )


def room_for(objects: int) -> int:
    """Objects that state is made for: the next power of two, so that few numbers of them are compiled for."""
    return 1 << max(objects - 1, 0).bit_length()


def _checked(frame: Any, size: tuple[int, int] | None, index: int) -> np.ndarray:
    image = np.asarray(frame)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"frame {index} is {image.dtype}{list(image.shape)}: give uint8 [H, W, 3], RGB")
    if size is not None and image.shape[:2] != size:
        raise InputError(
            f"frame {index} has {image.shape[1]}x{image.shape[0]} pixels, those before it {size[1]}x{size[0]}: "
            "resize it, or begin a new session"
        )
    return image


class Tracker(Protocol):
    """A loaded tracker.

    Attributes:
      name: as `rv.load` knows it.
      accepts: the kinds of prompts that it understands.
    """

    name: str
    accepts: tuple[str, ...]

    def session(self, *, objects: int = 1) -> Session:
        """A new video.

        Args:
          objects: how many there will be, if that is known: more can be added, but compile anew.
        """
        ...


class TrackerModule(Protocol):
    """The module of a tracker, `rvseg_jax.trackers.<name>`."""

    def load(self, checkpoint: Path | None, *, dtype: str | None, mesh: Any, **options: Any) -> Tracker:
        """Builds the tracker from a converted checkpoint folder, or with the bundled tiny weights."""
        ...

    def describe(self) -> dict[str, Any]:
        """Parameter counts, licence of weights and published presets, as JSON-able values."""
        ...


_MODULES = {"sam2": "rvseg_jax.trackers.sam2", "xmem": "rvseg_jax.trackers.xmem"}


def names() -> list[str]:
    """Names of the trackers, sorted."""
    return sorted(_MODULES)


def module(name: str) -> TrackerModule:
    """The module of a tracker, imported now.

    Raises:
      InputError: for an unknown name.
    """
    if name not in _MODULES:
        raise InputError(f"no tracker is called {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(_MODULES[name])
