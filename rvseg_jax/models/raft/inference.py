"""Flow of many pairs of frames: any size, in batches that fit in memory, cut over the devices of a mesh.

Frames are resized to the next multiple of 8 and the flow back, as GeoMotion does (`GeoMotion:motion_seg_inference.py`).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.memory import free_bytes
from rvseg_jax.models.raft.config import STRIDE, RaftConfig
from rvseg_jax.models.raft.model import RAFT, SHARDING
from rvseg_jax.ops.correlation import pair_bytes
from rvseg_jax.ops.resize import resize
from rvseg_jax.parallel import batch_shardings, current_rules, shardings

# Arrays that an encoder holds at once, in units of its first feature map; channels of the maps of an update. With them
# the estimate is 1.15 to 1.3 times the temporaries that XLA plans on CPU for `large` at 256x320 pixels.
_ENCODER_ARRAYS = 8
_UPDATE_CHANNELS = 6144


class ClipFlow(NamedTuple):
    """Flow between neighbouring frames, in pixels (x, y).

    Attributes:
      forward: float32 [T - 1, H, W, 2], from frame t to frame t + 1.
      backward: float32 [T - 1, H, W, 2], from frame t + 1 to frame t.
    """

    forward: np.ndarray
    backward: np.ndarray


class FlowRunner:
    """Compiled programs of a model; a size of frames compiles once for a number of pairs, and the last batch is filled.

    Args:
      mesh: devices over which pairs are cut; one device if absent.
      max_bytes: of arrays that a batch may take on a device; half of what is free if absent.
      num_flow_updates: how often the flow is updated; that of the config if absent.
    """

    def __init__(
        self,
        model: RAFT,
        *,
        mesh: jax.sharding.Mesh | None = None,
        max_bytes: int | None = None,
        num_flow_updates: int | None = None,
    ):
        graph, state = nnx.split(model)
        self.cfg, self.mesh, self.max_bytes = model.cfg, mesh, max_bytes
        self._state: Any = nnx.to_pure_dict(state)
        self._parts = 1
        if mesh is not None:
            rows = batch_shardings(jax.ShapeDtypeStruct((mesh.size, 1), jnp.float32), mesh, current_rules())
            self._parts = mesh.size // rows.shard_shape((mesh.size, 1))[0]
            self._rows = rows
            self._state = jax.device_put(self._state, shardings(self._state, SHARDING, current_rules(), mesh))

        def of_pairs(state: Any, first: jax.Array, second: jax.Array) -> jax.Array:
            model: Any = nnx.merge(graph, state)
            flow = model(_enlarged(first), _enlarged(second), num_flow_updates=num_flow_updates)
            return _reduced(flow, first.shape[1:3])

        def encode(state: Any, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
            model: Any = nnx.merge(graph, state)
            images = _enlarged(frames)
            return model.encode_features(images), model.encode_context(images)

        def of_encoded(state: Any, encoded: Any, first: jax.Array, second: jax.Array, size: Any) -> jax.Array:
            model: Any = nnx.merge(graph, state)
            features, context = encoded
            start = model.begin(features[first], features[second], context[first])
            return _reduced(model.last_flow(start, num_flow_updates=num_flow_updates), size)

        self._of_pairs, self._encode = jax.jit(of_pairs), jax.jit(encode)
        self._of_encoded = jax.jit(of_encoded, static_argnums=4)

    def pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The flow from each first frame to its second one.

        Shapes: first, second float [P, H, W, 3] in 0..1 -> float32 [P, H, W, 2], (x, y) in pixels.

        Raises:
          InputError: for arrays of other or different shapes, integers, or frames that are too small.
        """
        if first.shape != second.shape:
            raise InputError(f"frames of shapes {first.shape} and {second.shape}: give two of the same shape")
        count, height, width = self._checked(first)
        self._checked(second)
        flow = np.empty((count, height, width, 2), np.float32)
        for start, length in self._batches(count, pair_memory(self.cfg, height, width)):
            here = slice(start, min(start + length, count))
            with self._on_mesh():
                made = self._of_pairs(self._state, *(self._placed(x[here], length) for x in (first, second)))
            flow[here] = np.asarray(made)[: here.stop - start]
        return flow

    def clip(self, frames: np.ndarray) -> ClipFlow:
        """The flow between neighbouring frames in both directions, each frame encoded once (less at batch ends).

        Shapes: frames float [T, H, W, 3] in 0..1.

        Raises:
          InputError: as `pairs`.
        """
        count, height, width = self._checked(frames)
        steps = max(count - 1, 0)
        forward, backward = np.empty((2, steps, height, width, 2), np.float32)
        for start, length in self._batches(steps, 2 * pair_memory(self.cfg, height, width)):
            stop = min(start + length, steps)
            rows = -(-(length + 1) // self._parts) * self._parts
            before = np.arange(length)
            first, second = np.concatenate([before, before + 1]), np.concatenate([before + 1, before])
            with self._on_mesh():
                encoded = self._encode(self._state, self._placed(frames[start : stop + 1], rows))
                made = self._of_encoded(self._state, encoded, first, second, (height, width))
            flow = np.asarray(made)
            forward[start:stop] = flow[: stop - start]
            backward[start:stop] = flow[length : length + stop - start]
        return ClipFlow(forward, backward)

    def _checked(self, frames: np.ndarray) -> tuple[int, int, int]:
        if frames.ndim != 4 or frames.shape[-1] != 3 or not np.issubdtype(frames.dtype, np.floating):
            raise InputError(
                f"frames of shape {frames.shape} and type {frames.dtype}: give floats [T, H, W, 3] in 0..1"
            )
        count, height, width, _ = frames.shape
        if min(_enlarged_size(height, width)) < self.cfg.min_size:
            least = self.cfg.min_size - STRIDE + 1
            raise InputError(f"frames of {height}x{width} pixels: both sides must be at least {least}")
        return count, height, width

    def _batches(self, count: int, memory: int) -> Iterator[tuple[int, int]]:
        """(start, length) of batches; all have the same length, which the devices divide."""
        allowed = free_bytes() // 2 if self.max_bytes is None else self.max_bytes
        most = max(allowed // memory, 1) * self._parts
        batches = -(-count // most)
        length = -(-count // (batches * self._parts)) * self._parts if batches else 0
        yield from ((start, length) for start in range(0, count, length or 1))

    def _placed(self, frames: np.ndarray, length: int) -> jax.Array:
        """Frames on the devices, filled up to `length` by repeating the last."""
        missing = length - len(frames)
        filled = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
        filled = filled.astype(np.float32, copy=False)
        return jnp.asarray(filled) if self.mesh is None else jax.device_put(filled, self._rows)

    def _on_mesh(self) -> Any:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def pair_memory(cfg: RaftConfig, height: int, width: int) -> int:
    """Bytes of arrays that the flow of one pair takes at inference, beside the weights; an estimate from above."""
    height, width = _enlarged_size(height, width)
    pixels = height * width // STRIDE**2
    pairs = pair_bytes(height // STRIDE, width // STRIDE, cfg.corr_block_num_levels)
    fits = cfg.corr_lookup == "all_pairs" or (cfg.corr_lookup == "auto" and pairs <= cfg.corr_max_bytes)
    first = max(cfg.feature_encoder_layers[0], cfg.context_encoder_layers[0])
    encoder = 4 * (height // 2) * (width // 2) * first * _ENCODER_ARRAYS
    return encoder + 4 * pixels * _UPDATE_CHANNELS + (pairs if fits else 0)


def clips_flow(model: RAFT, clips: jax.Array, *, num_flow_updates: int | None = None) -> tuple[jax.Array, jax.Array]:
    """The flow between neighbouring frames of clips in both directions, as `FlowRunner.clip`, inside of a jit.

    Shapes: clips [B, T, H, W, 3] in 0..1, T at least 2 -> forward and backward float32 [B, T - 1, H, W, 2] in pixels.
    """
    videos, frames = clips.shape[:2]
    images = _enlarged(clips.reshape(-1, *clips.shape[2:]))
    places = np.arange(videos * frames).reshape(videos, frames)
    before, after = places[:, :-1].ravel(), places[:, 1:].ravel()
    first, second = np.concatenate([before, after]), np.concatenate([after, before])
    features, context = model.encode_features(images), model.encode_context(images)
    start = model.begin(features[first], features[second], context[first])
    flow = _reduced(model.last_flow(start, num_flow_updates=num_flow_updates), clips.shape[2:4])
    forward, backward = flow.reshape(2, videos, frames - 1, *flow.shape[1:])
    return forward, backward


def _enlarged_size(height: int, width: int) -> tuple[int, int]:
    return math.ceil(height / STRIDE) * STRIDE, math.ceil(width / STRIDE) * STRIDE


def _enlarged(frames: jax.Array) -> jax.Array:
    """Frames as the model takes them. Shapes: [P, H, W, 3] in 0..1 -> [P, H', W', 3] in -1..1, multiples of 8."""
    return 2 * resize(frames, _enlarged_size(*frames.shape[1:3]), mode="bilinear") - 1


def _reduced(flow: jax.Array, size: Sequence[int]) -> jax.Array:
    """Flow at another size, in its pixels. Shapes: [P, H', W', 2] -> [P, *size, 2]."""
    height, width = size
    scale = jnp.array([width / flow.shape[2], height / flow.shape[1]], jnp.float32)
    return resize(flow, (height, width), mode="bilinear") * scale
