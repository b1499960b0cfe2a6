"""A video frame by frame: which frames are remembered, and what one frame does to the memories.

As upstream's `inference/inference_core.py`. Every frame is one of two compiled programs, whatever the length of the
video and the number of objects that the memory has room for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.xmem.config import STRIDE, MemoryConfig
from rvseg_jax.models.xmem.consolidation import make_room
from rvseg_jax.models.xmem.memory import Memory, appear, empty_memory, read, remember, with_room
from rvseg_jax.models.xmem.network import ImageFeatures, XMem, aggregate

# On the host a bool, in a program an array [].
Flag = bool | jax.Array


class Duties(NamedTuple):
    """What is to be done with a frame.

    Attributes:
      store: put it into working memory.
      segment: predict its masks.
      deep: update the sensory memory from the values that are stored.
      update: update the sensory memory from the decoder.
    """

    store: Flag
    segment: Flag
    deep: Flag
    update: Flag


@dataclass(frozen=True)
class Clock:
    """Where a video stands.

    Attributes:
      frame: number of the last frame, -1 before the first.
      last_memory, last_deep: the last frames that were stored, and deeply updated from.
    """

    frame: int
    last_memory: int
    last_deep: int

    @classmethod
    def start(cls, cfg: MemoryConfig) -> "Clock":
        """Before the first frame."""
        return cls(frame=-1, last_memory=0, last_deep=-cfg.deep_update_every)

    def tick(self, cfg: MemoryConfig, *, given: bool, complete: bool, end: bool) -> tuple[Duties, "Clock"]:
        """The duties of the next frame, and the clock after it.

        Args:
          given: whether the frame comes with a mask.
          complete: whether that holds every object, so that nothing is left to predict.
          end: whether the frame is the last, whose memory nobody would read.

        Source: `InferenceCore.step`.
        """
        frame = self.frame + 1
        store = (given or frame - self.last_memory >= cfg.mem_every) and not end
        synchronised = cfg.deep_update_every < 0
        deep = store if synchronised else frame - self.last_deep >= cfg.deep_update_every and not end
        duties = Duties(
            store=store,
            segment=frame > 0 and not complete,
            deep=deep and store,
            update=not end and not (synchronised and deep),
        )
        after = replace(
            self,
            frame=frame,
            last_memory=frame if store else self.last_memory,
            last_deep=frame if deep and store else self.last_deep,
        )
        return duties, after


@dataclass(frozen=True)
class Track:
    """A video that is being segmented.

    Attributes:
      memory: on the device; the next step takes it over, so that a track serves for one step only.
      objects: how many have appeared, in the order of their planes.
      size: height and width of the frames in pixels.
    """

    clock: Clock
    memory: Memory
    objects: int
    size: tuple[int, int]


class Propagator:
    """Segments videos from masks of some of their frames.

    Attributes:
      cfg: how the memories are run.
      weights: of the model, which may be replaced by others of the same shapes.
      compiled: programs compiled so far: at most two for each size of frames and number of objects with room.
    """

    def __init__(self, model: XMem, cfg: MemoryConfig | None = None):
        self.cfg = MemoryConfig() if cfg is None else cfg
        self._model = model.cfg
        self.compiled = 0
        graph, self.weights = nnx.split(model)
        sharding = jax.tree.leaves(self.weights)[0].sharding
        self._place = NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding
        self._plain = self._program(partial(_plain_frame, graph, self.cfg))
        self._memory = self._program(partial(_memory_frame, graph, self.cfg))

    def _program(self, function: Callable[..., tuple[jax.Array, Memory]]) -> Callable[..., tuple[jax.Array, Memory]]:
        """`function(weights, memory, ...)` compiled, with the memory donated."""

        def counted(*arguments: Any) -> tuple[jax.Array, Memory]:
            self.compiled += 1  # runs only when JAX traces the function
            return function(*arguments)

        return jax.jit(counted, donate_argnums=1)

    def start(self, size: tuple[int, int], objects: int = 1) -> Track:
        """A video before its first frame.

        Args:
          size: height and width of its frames in pixels.
          objects: how many the memory has room for; more cost time whether they appear or not.

        Raises:
          InputError: if there is no pixel or no object.
        """
        # Beside the weights from the start: arrays that lie anywhere would make the second frame compile again.
        memory = jax.device_put(empty_memory(self._model, self.cfg, size=size, objects=objects), self._place)
        return Track(Clock.start(self.cfg), memory, 0, (size[0], size[1]))

    def grow(self, track: Track, objects: int) -> Track:
        """The same video with room for more objects; the programs are compiled again for the new number."""
        return replace(track, memory=jax.device_put(with_room(track.memory, objects), self._place))

    def step(
        self,
        track: Track,
        frame: Any,
        mask: Any = None,
        labelled: Sequence[int] | None = None,
        *,
        end: bool = False,
    ) -> tuple[jax.Array, Track]:
        """The masks of the next frame, and the video after it.

        Shapes: frame float32 [H, W, 3], normalised by ImageNet's mean and deviation; mask [O, H, W] in 0..1, one plane
        an object with room -> probabilities float32 [O + 1, H, W], background first, 0 for objects that have not
        appeared.

        Args:
          mask: masks given for this frame, else None.
          labelled: the planes of `mask` that count, all that are not empty if None. A plane that was not labelled
            before makes its object appear; objects appear in the order of the planes. The other objects are
            predicted, and give way where the mask says that an object is.
          end: whether this is the last frame; no memory is kept of it.

        Raises:
          InputError: for arrays of another shape, objects out of order, or a first frame without a mask.
        """
        frame = jnp.asarray(frame, jnp.float32)
        if frame.shape != (*track.size, 3):
            raise InputError(f"a frame of shape {frame.shape}: this video has frames of {(*track.size, 3)}")
        planes = _labelled(track, mask, labelled)
        complete = len(planes) > 0 and set(range(track.objects)) <= set(planes)
        objects = max([track.objects, *(plane + 1 for plane in planes)])
        if objects == 0:
            raise InputError("no object has appeared yet: give a mask with the first frame")
        duties, clock = track.clock.tick(self.cfg, given=bool(planes), complete=complete, end=end)
        if planes or duties.store:
            room = track.memory.present.shape[0]
            given = np.zeros((room, *track.size), np.float32) if mask is None else mask
            flags = np.isin(np.arange(room), planes)
            probabilities, memory = self._memory(
                self.weights, track.memory, frame, jnp.asarray(given, jnp.float32), flags, _as_arrays(duties)
            )
        else:
            probabilities, memory = self._plain(self.weights, track.memory, frame, jnp.asarray(duties.update))
        return probabilities, replace(track, clock=clock, memory=memory, objects=objects)


def _as_arrays(duties: Duties) -> Duties:
    return Duties(*(jnp.asarray(duty) for duty in duties))


def _labelled(track: Track, mask: Any, labelled: Sequence[int] | None) -> list[int]:
    """The planes of a mask that count, checked."""
    room = track.memory.present.shape[0]
    if mask is None:
        if labelled:
            raise InputError(f"labelled {list(labelled)} without a mask: give both or none")
        return []
    if tuple(mask.shape) != (room, *track.size):
        raise InputError(
            f"a mask of shape {tuple(mask.shape)}: give {(room, *track.size)}, a plane an object with room"
        )
    if labelled is None:
        labelled = np.flatnonzero(np.asarray(mask).reshape(room, -1).any(axis=1)).tolist()
    planes = sorted({int(plane) for plane in labelled})
    new = [plane for plane in planes if plane >= track.objects]
    if (planes and not 0 <= planes[0] <= planes[-1] < room) or new != list(
        range(track.objects, track.objects + len(new))
    ):
        raise InputError(
            f"labelled planes {planes}: there is room for {room} objects, and the next to appear is {track.objects}"
        )
    return planes


def _plain_frame(
    graph: nnx.GraphDef[XMem], cfg: MemoryConfig, weights: Any, memory: Memory, frame: jax.Array, update: Flag
) -> tuple[jax.Array, Memory]:
    """A frame that is predicted and not remembered."""
    model = nnx.merge(graph, weights)
    features = model.encode_key(_padded(frame)[None])
    probabilities, memory = _predicted(model, cfg, memory, features, update)
    return _unpadded(probabilities, frame.shape[:2]), memory


def _memory_frame(
    graph: nnx.GraphDef[XMem],
    cfg: MemoryConfig,
    weights: Any,
    memory: Memory,
    frame: jax.Array,
    mask: jax.Array,
    labelled: jax.Array,
    duties: Duties,
) -> tuple[jax.Array, Memory]:
    """A frame that comes with a mask, or is remembered, or both."""
    model = nnx.merge(graph, weights)
    image = _padded(frame)[None]
    mask = jnp.moveaxis(_padded(jnp.moveaxis(mask, 0, -1)), -1, 0)
    features = model.encode_key(image)

    def predict() -> tuple[jax.Array, tuple[jax.Array, ...]]:
        probabilities, after = _predicted(model, cfg, memory, features, duties.update)
        return probabilities, (after.hidden, after.use, after.life)

    def skip() -> tuple[jax.Array, tuple[jax.Array, ...]]:
        blank = jnp.zeros((mask.shape[0] + 1, *mask.shape[1:]))
        return blank, (memory.hidden, memory.use, memory.life)

    predicted, (hidden, use, life) = jax.lax.cond(duties.segment, predict, skip)
    memory = appear(replace(memory, hidden=hidden, use=use, life=life), labelled)

    # The prediction gives way where the mask has an object, and fills the planes that the mask leaves open.
    others = jnp.where(mask.sum(0) > 0.5, 0, predicted[1:])
    planes = jnp.where(labelled[:, None, None], mask, others)
    _, merged = aggregate(planes, memory.present[:, None, None], axis=0)
    probabilities = jnp.where(jnp.any(labelled), merged, predicted)

    value, deep = model.encode_value(image, features.f16, memory.hidden[None], probabilities[None, 1:])
    # Frames that are not stored have no deep update.
    memory = replace(memory, hidden=_chosen(memory, duties.deep, deep[0]))
    kept = (features.key[0], features.shrinkage[0], features.selection[0], value[0])
    memory = make_room(remember(memory, *kept, duties.store), cfg)
    return _unpadded(probabilities, frame.shape[:2]), memory


def _predicted(
    model: XMem, cfg: MemoryConfig, memory: Memory, features: ImageFeatures, update: Flag
) -> tuple[jax.Array, Memory]:
    """Probabilities [O + 1, H, W] from memory, which counts the read and, if `update`, changes its sensory part."""
    readout, memory = read(memory, features.key[0], features.selection[0], cfg)
    logits, hidden = model.segment(features, readout[None], memory.hidden[None])
    _, probabilities = aggregate(jax.nn.sigmoid(logits[0]), memory.present[:, None, None], axis=0)
    return probabilities, replace(memory, hidden=_chosen(memory, update, hidden[0]))


def _chosen(memory: Memory, update: Flag, hidden: jax.Array) -> jax.Array:
    """The new sensory memory of objects that are there, if `update`; that of the others stays zero."""
    return jnp.where(memory.present[:, None, None, None] & update, hidden, memory.hidden)


def _borders(size: Sequence[int]) -> list[tuple[int, int]]:
    """What makes the sides multiples of 16; of an odd border the larger part lies behind."""
    missing = [-side % STRIDE for side in size]
    return [(border // 2, border - border // 2) for border in missing]


def _padded(x: jax.Array) -> jax.Array:
    """Shapes: [H, W, C] -> [H', W', C] with zeros around."""
    return jnp.pad(x, (*_borders(x.shape[:2]), (0, 0)))


def _unpadded(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Shapes: [C, H', W'] -> [C, H, W]."""
    (top, _), (left, _) = _borders(size)
    return x[:, top : top + size[0], left : left + size[1]]
