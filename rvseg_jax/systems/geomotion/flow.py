"""How far pixels move, from optical flow in both directions."""

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.models.raft.inference import ClipFlow, FlowRunner, clips_flow
from rvseg_jax.models.raft.model import RAFT


def magnitudes(runner: FlowRunner, frames: np.ndarray) -> np.ndarray:
    """For each pixel the longer one of its ways to the frame before and after; zero for a single frame.

    Shapes: frames uint8 [T, H, W, 3] -> float32 [T, H, W] in pixels.

    Source: `GeoMotion:motion_seg_inference.py`.
    """
    if len(frames) < 2:
        return np.zeros(frames.shape[:3], np.float32)
    return longest(runner.clip(frames.astype(np.float32) / 255))


def magnitudes_in_step(model: RAFT, clips: jax.Array) -> jax.Array:
    """As `magnitudes`, inside of a jit. Shapes: clips [B, T, H, W, 3] in 0..1 -> float32 [B, T, H, W]."""
    if clips.shape[1] < 2:
        return jnp.zeros(clips.shape[:4])
    ahead, back = (jnp.linalg.norm(way, axis=-1) for way in clips_flow(model, clips))
    ends = ((0, 0), (0, 1), (0, 0), (0, 0))
    return jnp.maximum(jnp.pad(ahead, ends), jnp.pad(back, (ends[0], ends[1][::-1], *ends[2:])))


def longest(flow: ClipFlow) -> np.ndarray:
    """As `magnitudes`, of flow that is known. Shapes: -> float32 [T, H, W], T one more than there are steps."""
    ahead, back = (np.linalg.norm(way, axis=-1) for way in flow)
    found = np.zeros((len(ahead) + 1, *ahead.shape[1:]), np.float32)
    found[:-1] = ahead
    found[1:] = np.maximum(found[1:], back)
    return found
