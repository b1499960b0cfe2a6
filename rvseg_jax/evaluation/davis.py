"""Region similarity J and boundary measure F of DAVIS, with their statistics over a sequence.

Source: davisvideochallenge/davis2017-evaluation, `davis2017/metrics.py` and `davis2017/utils.py`; MeViS, ReVOS and
RGA3 evaluate with copies of it. Values are equal to theirs, bit for bit; the work is done on packed masks
(`evaluation/bit_masks.py`), inside the bounding box of the two boundaries.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rvseg_jax.evaluation import bit_masks

DEFAULT_BOUND = 0.008


@dataclass(frozen=True)
class Statistics:
    """Summary of per-frame scores: their mean, the share above one half, and the loss from first to last quarter."""

    mean: float
    recall: float
    decay: float


def boundary_radius(height: int, width: int, bound_th: float = DEFAULT_BOUND) -> int:
    """Tolerance of the boundary measure in pixels.

    Args:
      height, width: size of the frame in pixels.
      bound_th: below 1 a share of the diagonal (rounded up), otherwise whole pixels.

    Raises:
      ValueError: if `bound_th` is negative, or above 1 and no whole number.
    """
    if bound_th < 0 or (bound_th >= 1 and bound_th != int(bound_th)):
        raise ValueError(f"bound_th is {bound_th}: give a share of the diagonal below 1 or a whole number of pixels")
    return int(bound_th) if bound_th >= 1 else math.ceil(bound_th * float(np.linalg.norm((height, width))))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour (`seg2bmap`).

    Shapes:
      mask: [H, W], non-zero is foreground. Returns bool [H, W].
    """
    mask = np.asarray(mask).astype(bool, copy=False)
    return bit_masks.unpack(bit_masks.boundary(bit_masks.pack(mask), mask.shape[1]), mask.shape[1])


def region_similarity(truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """Jaccard index J of every frame; 1 where both masks are empty.

    Shapes:
      truth, prediction, void: [T, H, W], non-zero is foreground (of `void`: not counted). Returns float64 [T] in 0..1.

    Raises:
      ValueError: if the shapes differ.
    """
    return np.array([_frame_region(*pair) for pair in _packed(truth, prediction, void)])


def boundary_measure(
    truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None = None, *, bound_th: float = DEFAULT_BOUND
) -> np.ndarray:
    """Boundary measure F of every frame: the harmonic mean of boundary precision and recall within a tolerance.

    Both boundaries empty give 1, one empty gives 0.

    Shapes:
      truth, prediction, void: [T, H, W], non-zero is foreground (of `void`: removed from both masks first).
      Returns float64 [T] in 0..1.

    Raises:
      ValueError: if the shapes differ, or for a `bound_th` that `boundary_radius` refuses.
    """
    frames = _packed(truth, prediction, void)
    height, width = np.shape(truth)[1:]
    radius = boundary_radius(height, width, bound_th)
    return np.array([_frame_boundary(*pair, width, radius) for pair in frames])


def region_and_boundary(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every frame with the default tolerance; less work than one after the other.

    Shapes:
      truth, prediction: [T, H, W], non-zero is foreground. Returns float64 [T] and [T] in 0..1.

    Raises:
      ValueError: if the shapes differ.
    """
    frames = _packed(truth, prediction, None)
    height, width = np.shape(truth)[1:]
    radius = boundary_radius(height, width)
    scores = [(_frame_region(*pair), _frame_boundary(*pair, width, radius)) for pair in frames]
    region, boundary = np.array(scores, np.float64).reshape(-1, 2).T
    return region, boundary


def pairwise(
    truths: np.ndarray, predictions: np.ndarray, void: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every truth with every prediction of one frame, each boundary being dilated once only.

    Shapes:
      truths [N, H, W], predictions [M, H, W], void [H, W]: non-zero is foreground (of `void`: not counted).
      Returns float64 [N, M] and [N, M] in 0..1.

    Raises:
      ValueError: if the sizes differ.
    """
    truths, predictions = np.asarray(truths), np.asarray(predictions)
    size = truths.shape[1:]
    if truths.ndim != 3 or predictions.shape[1:] != size or (void is not None and np.shape(void) != size):
        raise ValueError(f"truths {truths.shape} and predictions {predictions.shape} must be [objects, height, width]")
    counted = None if void is None else ~bit_masks.pack(np.asarray(void).astype(bool, copy=False))
    radius = boundary_radius(*size)
    left, right = ([_outlined(mask, counted, radius) for mask in masks] for masks in (truths, predictions))
    j = [[_frame_region(truth.words, prediction.words) for prediction in right] for truth in left]
    f = [
        [_harmonic(truth.edge, prediction.edge, truth.near, prediction.near) for prediction in right] for truth in left
    ]
    shape = len(truths), len(predictions)
    return np.array(j, np.float64).reshape(shape), np.array(f, np.float64).reshape(shape)


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of the scores of one object over a sequence; NaN is left out of mean and decay.

    The four quarters share their border frames, as upstream. Upstream keeps the borders in 8 bits, so that its decay
    wraps around from 256 frames on and is NaN above; here they are whole integers of any size.

    Shapes:
      values: [T], T at least 1.

    Raises:
      ValueError: if there is no value.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"statistics need a list of at least one score, not an array of shape {values.shape}")
    borders = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first = values[borders[0] : borders[1] + 1]
    last = values[borders[3] : borders[4] + 1]
    return Statistics(
        mean=_nanmean(values), recall=float(np.mean(values > 0.5)), decay=_nanmean(first) - _nanmean(last)
    )


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _packed(
    truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Packed truth and prediction of every frame, void pixels set to background."""
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} must both be [frames, height, width]")
    if void is not None and np.shape(void) != truth.shape:
        raise ValueError(f"void {np.shape(void)} must have the shape of the masks, {truth.shape}")
    return (_packed_frame(truth, prediction, void, index) for index in range(len(truth)))


def _packed_frame(
    truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None, index: int
) -> tuple[np.ndarray, np.ndarray]:
    words = [bit_masks.pack(masks[index].astype(bool, copy=False)) for masks in (truth, prediction)]
    if void is not None:
        counted = ~bit_masks.pack(np.asarray(void[index]).astype(bool, copy=False))
        words = [mask & counted for mask in words]
    return words[0], words[1]


def _frame_region(truth: np.ndarray, prediction: np.ndarray) -> float:
    either = bit_masks.count(truth | prediction)
    return bit_masks.count(truth & prediction) / either if either else 1.0


def _frame_boundary(truth: np.ndarray, prediction: np.ndarray, width: int, radius: int) -> float:
    true_edge, edge = bit_masks.boundary(truth, width), bit_masks.boundary(prediction, width)
    box = bit_masks.box(true_edge | edge)
    true_edge, edge = true_edge[box], edge[box]
    if not true_edge.any() or not edge.any():
        return float(true_edge.any() == edge.any())
    return _harmonic(true_edge, edge, bit_masks.dilate(true_edge, radius), bit_masks.dilate(edge, radius))


@dataclass(frozen=True)
class _Outlined:
    """A packed mask, its boundary, and the pixels within the tolerance of it."""

    words: np.ndarray
    edge: np.ndarray
    near: np.ndarray


def _outlined(mask: np.ndarray, counted: np.ndarray | None, radius: int) -> _Outlined:
    words = bit_masks.pack(mask.astype(bool, copy=False))
    if counted is not None:
        words &= counted
    edge = bit_masks.boundary(words, mask.shape[1])
    return _Outlined(words, edge, bit_masks.dilate(edge, radius))


def _harmonic(true_edge: np.ndarray, edge: np.ndarray, near_truth: np.ndarray, near: np.ndarray) -> float:
    """F of two boundaries and what lies near them."""
    true_length, length = bit_masks.count(true_edge), bit_masks.count(edge)
    if not true_length or not length:
        return float(true_length == length)
    precision = bit_masks.count(edge & near_truth) / length
    recall = bit_masks.count(true_edge & near) / true_length
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
