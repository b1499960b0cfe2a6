"""Pixel accuracy and robustness of ReVOS.

Source: cilinyan/VISA `tools/eval_revos.py` and its copy in RGA3, `evaluation/revos/eval_revos.py`.
"""

from typing import Literal

import numpy as np

Values = Literal["binary", "png"]
_FOREGROUND_EPSILON = 1e-6


def pixel_accuracy(truth: np.ndarray, prediction: np.ndarray, *, values: Values = "binary") -> np.ndarray:
    """Share of pixels on which truth and prediction agree, per frame.

    Args:
      truth, prediction: masks; non-zero is foreground with `values="binary"`.
      values: "png" compares the numbers themselves as upstream's scripts do on the PNGs they read, so that a
        prediction written as 0/255 agrees on the background only.

    Shapes:
      truth, prediction: [T, H, W]. Returns float64 [T] in 0..1.

    Raises:
      ValueError: if the shapes differ, or for another `values`.
    """
    truth, prediction = _numbers(truth, values), _numbers(prediction, values)
    _require_same_shape(truth, prediction)
    return np.mean(truth == prediction, axis=(-2, -1))


def robustness(
    truth: np.ndarray, prediction: np.ndarray, foreground: np.ndarray, *, values: Values = "binary"
) -> np.ndarray:
    """One minus false positives over the area of all annotated objects, at least 0, per frame.

    Args:
      truth, prediction: masks; non-zero is foreground with `values="binary"`.
      foreground: union of all annotated objects of the video.
      values: "png" multiplies in 8 bits as upstream does: a false positive weighs its pixel value (255 in a 0/255
        file), and a truth of 2 (two instances added up) wraps around.

    Shapes:
      truth, prediction, foreground: [T, H, W]. Returns float64 [T] in 0..1.

    Raises:
      ValueError: if the shapes differ, or for another `values`.
    """
    truth, prediction, foreground = (_numbers(mask, values) for mask in (truth, prediction, foreground))
    _require_same_shape(truth, prediction)
    _require_same_shape(truth, foreground)
    false_positives = np.sum((np.uint8(1) - truth) * prediction, axis=(-2, -1), dtype=np.int64)
    area = np.sum(foreground, axis=(-2, -1), dtype=np.int64)
    return np.maximum(1 - false_positives / (area + _FOREGROUND_EPSILON), 0)


def _numbers(mask: np.ndarray, values: Values) -> np.ndarray:
    if values == "binary":
        return np.asarray(mask).astype(bool).astype(np.uint8)
    if values == "png":
        return np.asarray(mask).astype(np.uint8)
    raise ValueError(f"values is {values!r}: choose 'binary' or 'png'")


def _require_same_shape(truth: np.ndarray, other: np.ndarray) -> None:
    if truth.shape != other.shape or truth.ndim != 3:
        raise ValueError(f"masks {truth.shape} and {other.shape} must both be [frames, height, width]")
