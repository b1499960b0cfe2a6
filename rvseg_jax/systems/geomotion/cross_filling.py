"""Masks sharpened by SAM 2: even frames are followed from the odd ones, and odd ones from the even (RoMo's recipe).

So every mask that is given out was followed there, and none is its own prompt.

Source: `refine_sam` of `GeoMotion:motion_seg_inference.py`.
"""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from rvseg_jax.models.sam2.model import ImageFeatures
from rvseg_jax.models.sam2.tracking import Place
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.models.sam2.tracking_prompts import RowPrompt, batched_prompts, scaled_mask
from rvseg_jax.models.sam2.tracking_state import empty_state
from rvseg_jax.processing.sam2 import square_frame
from rvseg_jax.trackers.base import room_for


def cross_filled(
    programs: TrackingPrograms, frames: Sequence[np.ndarray], probabilities: np.ndarray, *, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of SAM 2 for the frames that it could be asked about.

    Upstream stops with an error where no odd, or no even, frame shows anything above the threshold; here the frames
    that would be followed from them are left as they are.

    Shapes: frames T of uint8 [H, W, 3], probabilities [T, S, S] -> logits float32 [T, S, S], filled bool [T].

    Args:
      programs: of a SAM 2 with memory.
      threshold: probability above which a pixel is part of a prompt.
    """
    masks = probabilities > threshold
    logits, filled = np.zeros(probabilities.shape, np.float32), np.zeros(len(frames), bool)
    for parity in (1, 0):
        seeds = [t for t in range(parity, len(frames), 2) if masks[t].any()]
        if not seeds:
            continue
        wanted = range(1 - parity, len(frames), 2)
        for t, found in _followed(programs, frames, masks, seeds):
            if t in wanted:
                logits[t] = found
        filled[list(wanted)] = True
    return logits, filled


def _followed(
    programs: TrackingPrograms,
    frames: Sequence[np.ndarray],
    masks: np.ndarray,
    seeds: Sequence[int],
) -> Iterable[tuple[int, np.ndarray]]:
    """Logits of all frames but the seeds, forwards from the first frame; every seed is known before that."""
    cfg, size = programs.cfg, (masks.shape[1], masks.shape[2])
    state = empty_state(cfg, 1, prompted_slots=room_for(len(seeds)))

    def features(t: int) -> ImageFeatures:
        return programs.encode_image(jnp.asarray(square_frame(frames[t], cfg.image_size))[None])

    for t in seeds:
        place = Place.of(1, t, num_frames=len(frames))
        prompt = batched_prompts(cfg, [RowPrompt(mask=scaled_mask(cfg, masks[t]))])
        seen = programs.observe(features(t), None, prompt, place)
        state = programs.settle(state, seen, place, jnp.ones(1, jnp.bool_))
    for t in sorted(set(range(len(frames))) - set(seeds)):
        state, seen = programs.track_step(state, features(t), Place.of(1, t, num_frames=len(frames)))
        yield t, np.asarray(programs.enlarged(seen.logits, size)[0])
