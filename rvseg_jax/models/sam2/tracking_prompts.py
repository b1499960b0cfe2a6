"""What users ask of frames of a video, as arrays of fixed size that compiled functions take."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.prompt_encoder import BACKGROUND, BOTTOM_RIGHT, EMPTY, FOREGROUND, TOP_LEFT
from rvseg_jax.ops.resize import resize

# Predicted logits are clipped to this before they are a prompt themselves.
_LARGEST_LOGIT = 32.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackPrompts:
    """Prompts of one frame for all rows. A row has a mask, or points and perhaps logits, or nothing.

    Shapes: points [B, P, 2], labels int [B, P], mask bool [B, S, S], has_mask bool [B], logits [B, H, W],
      has_logits bool [B].

    Attributes:
      points: (x, y) in pixels of the model's square image, corners of a box first.
      labels: 1 foreground, 0 background, 2 and 3 corners of a box, -2 for no point.
      mask: the object itself; what it says is the output.
      logits: an earlier prediction of this frame, which points correct.
    """

    points: jax.Array
    labels: jax.Array
    mask: jax.Array
    has_mask: jax.Array
    logits: jax.Array
    has_logits: jax.Array

    @property
    def given(self) -> jax.Array:
        """Which rows have a prompt. Shapes: -> bool [B]."""
        return self.has_mask | jnp.any(self.labels != EMPTY, axis=1)


@dataclass(frozen=True)
class RowPrompt:
    """Prompt of one object in one frame.

    Shapes: points [P, 2], labels int [P], mask bool [S, S], logits [H, W].

    Attributes:
      points, labels, mask, logits: as in `TrackPrompts`; `scaled_points` and `scaled_mask` make them from a video's.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | jax.Array | None = None
    logits: np.ndarray | jax.Array | None = None


def scaled_points(
    cfg: Sam2Config,
    video_size: tuple[int, int],
    *,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    box: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Points in pixels of the model's image, the corners of the box in front.

    Shapes: points [P, 2] as (x, y), labels int [P], box [4] as xyxy, in pixels of the video
      -> float32 [P (+ 2), 2], int32 [P (+ 2)].

    Args:
      video_size: (height, width) of the video.

    Raises:
      InputError: if there are neither points nor a box, labels do not fit the points, or are not 0 or 1.

    Source: `SAM2VideoPredictor.add_new_points_or_box`.
    """
    if points is None and box is None:
        raise InputError("neither points nor a box: give at least one of them")
    places = np.zeros((0, 2), np.float32) if points is None else np.asarray(points, np.float32)
    kinds = np.zeros(0, np.int32) if labels is None else np.asarray(labels, np.int32)
    if places.ndim != 2 or places.shape[1] != 2 or kinds.shape != places.shape[:1]:
        raise InputError(f"points {places.shape} and labels {kinds.shape} must be [P, 2] and [P]: one label a point")
    if not np.isin(kinds, (BACKGROUND, FOREGROUND)).all():
        raise InputError(f"labels {kinds.tolist()} must be 1 (on the object) or 0 (not on it)")
    if box is not None:
        corners = np.asarray(box, np.float32)
        if corners.size != 4:
            raise InputError(f"a box of shape {corners.shape} must be 4 numbers: x0, y0, x1, y1")
        places = np.concatenate([corners.reshape(2, 2), places])
        kinds = np.concatenate([np.array([TOP_LEFT, BOTTOM_RIGHT], np.int32), kinds])
    if not np.isfinite(places).all():
        raise InputError("a point or box has a coordinate that is no finite number")
    height, width = video_size
    scaled = places / np.array([width, height], np.float32) * np.float32(cfg.image_size)
    return scaled.astype(np.float32), kinds


def scaled_mask(cfg: Sam2Config, mask: np.ndarray) -> np.ndarray:
    """A mask in the size of the model's image.

    Shapes: mask bool [Hv, Wv] of the video -> bool [S, S].

    Raises:
      InputError: if it is no mask of two axes.

    Source: `SAM2VideoPredictor.add_new_mask`.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"a mask of shape {mask.shape} must be [H, W], one object a mask")
    size = (cfg.image_size, cfg.image_size)
    values = (mask != 0).astype(np.float32)
    if mask.shape == size:
        return values > 0
    return np.asarray(resize(jnp.asarray(values)[..., None], size, mode="bilinear", antialias=True)[..., 0] >= 0.5)


def batched_prompts(cfg: Sam2Config, rows: Sequence[RowPrompt | None], *, least_points: int = 2) -> TrackPrompts:
    """Prompts of some rows as one batch, padded to the next power of two of points.

    Args:
      rows: one entry a row, None for no prompt.
      least_points: the smallest number of points that the batch is padded to.

    Raises:
      InputError: if a row has a mask and points, or an array of another shape than `RowPrompt` says.
    """
    count = max([least_points, *(len(row.points) for row in rows if row is not None and row.points is not None)])
    count = 1 << (count - 1).bit_length()
    size, low, batch = cfg.image_size, cfg.low_res_size, len(rows)
    points = np.zeros((batch, count, 2), np.float32)
    labels = np.full((batch, count), EMPTY, np.int32)
    mask, has_mask = np.zeros((batch, size, size), bool), np.zeros(batch, bool)
    logits, has_logits = np.zeros((batch, low, low), np.float32), np.zeros(batch, bool)
    for index, row in enumerate(rows):
        if row is None:
            continue
        if (row.mask is None) == (row.points is None):
            raise InputError(f"row {index} needs a mask or points, and not both")
        if row.mask is not None:
            mask[index] = _shaped(row.mask, (size, size), f"mask of row {index}")
            has_mask[index] = True
            continue
        assert row.points is not None
        if row.labels is None or len(row.labels) != len(row.points) or not len(row.points):
            raise InputError(f"row {index} needs one label a point, and at least one point")
        points[index, : len(row.points)], labels[index, : len(row.labels)] = row.points, row.labels
        if row.logits is not None:
            logits[index] = _shaped(row.logits, (low, low), f"logits of row {index}")
            has_logits[index] = True
    logits = np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    arrays = (points, labels, mask, has_mask, logits, has_logits)
    return TrackPrompts(*(jnp.asarray(array) for array in arrays))


def _shaped(array: np.ndarray | jax.Array, shape: tuple[int, int], what: str) -> np.ndarray:
    if array.shape != shape:
        raise InputError(f"the {what} is {array.shape} and must be {shape}")
    return np.asarray(array)
