"""Bootstrap intervals of means over samples."""

from dataclasses import dataclass

import numpy as np

_BLOCK = 256


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that its level of confidence gives."""

    mean: float
    low: float
    high: float
    level: float

    def as_dict(self) -> dict[str, float]:
        """The four numbers by name, for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "level": self.level}


def interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of independent samples.

    For a difference of two systems on the same samples, give the differences.

    Shapes:
      values: [n], n at least 1.

    Args:
      level: share of the resampled means inside the interval, 0..1.
      resamples: number of samples of size n that are drawn with replacement.
      seed: of the draws; the same seed gives the same interval.

    Raises:
      ValueError: for no values, NaN, a level outside 0..1 or no resamples.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"an interval needs a list of numbers, not an array of shape {values.shape} or with NaN")
    return ratio_interval(values, np.ones(values.size), level=level, resamples=resamples, seed=seed)


def ratio_interval(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of sum / sum over independent clusters, such as images with several expressions each.

    A resample whose denominators add up to nothing is left out.

    Shapes:
      numerators, denominators: [n], sums within each cluster, n at least 1.

    Args:
      level, resamples, seed: as `interval`.

    Raises:
      ValueError: as `interval`, or where all denominators are 0.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 1 or above.shape != below.shape or not above.size or np.isnan(above + below).any():
        raise ValueError(f"a ratio needs two lists of numbers, not arrays of shapes {above.shape} and {below.shape}")
    if not below.sum():
        raise ValueError("a ratio needs a denominator above 0")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1 and resamples {resamples} be positive")
    draws = np.random.default_rng(seed)
    found = np.empty(resamples)
    for start in range(0, resamples, _BLOCK):
        block = found[start : start + _BLOCK]
        chosen = draws.integers(above.size, size=(block.size, above.size))
        with np.errstate(invalid="ignore", divide="ignore"):
            block[:] = above[chosen].sum(axis=1) / below[chosen].sum(axis=1)
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), level)
