"""What is kept of one scored sample, and what a list of them amounts to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import bootstrap, davis
from rvseg_jax.evaluation.iou import IoUTotals


@dataclass(frozen=True)
class Score:
    """Scores of one sentence on one clip.

    Attributes:
      index: place of the sample in its source.
      video, expression, text, kind: as in the sample.
      frames: number of frames.
      j, f: means over all frames of J and F, and their recall and decay.
      intersection, union: pixels over all frames.
      has_target: whether the truth has a pixel in any frame.
      said_empty: whether the prediction has none.
      status: how the model ended, such as "ok" or "no_target"; "missing" where there was no prediction.
      missing_frames: frames without a prediction, scored as empty.
    """

    index: int
    video: str
    expression: str
    text: str
    kind: str
    frames: int
    j: float
    f: float
    j_recall: float
    f_recall: float
    j_decay: float
    f_decay: float
    intersection: int
    union: int
    has_target: bool
    said_empty: bool
    status: str
    missing_frames: tuple[str, ...] = ()

    @property
    def jf(self) -> float:
        """(J + F) / 2."""
        return (self.j + self.f) / 2

    def as_dict(self) -> dict[str, Any]:
        """All fields, for one line of JSON."""
        return asdict(self) | {"missing_frames": list(self.missing_frames)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Score":
        """The inverse of `as_dict`.

        Raises:
          ValueError: if a field is missing or unknown.
        """
        if set(values) != {entry.name for entry in fields(cls)}:
            raise ValueError(f"a line of scores has the fields {', '.join(sorted(values))}")
        return cls(**(values | {"missing_frames": tuple(values["missing_frames"])}))


def score_masks(truth: np.ndarray, prediction: np.ndarray, missing: Sequence[int] = ()) -> dict[str, Any]:
    """The numeric fields of a `Score`.

    Shapes:
      truth, prediction: bool [T, H, W].

    Args:
      missing: frames without a prediction. Where the truth has a pixel in any frame, their J and F are 0, also if
        there is nothing to find in themselves: nobody gains by leaving them away.

    Raises:
      InputError: if the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise InputError(f"a prediction is {prediction.shape} but the truth {truth.shape}: predict at the clip's size")
    region, boundary = davis.region_and_boundary(truth, prediction)
    if truth.any():
        region[list(missing)] = boundary[list(missing)] = 0
    j, f = davis.statistics(region), davis.statistics(boundary)
    return {
        "frames": len(truth),
        "j": j.mean,
        "f": f.mean,
        "j_recall": j.recall,
        "f_recall": f.recall,
        "j_decay": j.decay,
        "f_decay": f.decay,
        "intersection": int(np.count_nonzero(truth & prediction)),
        "union": int(np.count_nonzero(truth | prediction)),
        "has_target": bool(truth.any()),
        "said_empty": not prediction.any(),
    }


def summarise(scores: Sequence[Score], *, seed: int = 0) -> dict[str, Any]:
    """Means over samples: J, F, J&F with recall, decay and a bootstrap interval, IoU and accuracies.

    A measure that the samples do not determine (N-acc without an empty target) is None. An empty list gives only the
    count.
    """
    if not scores:
        return {"samples": 0}
    totals = IoUTotals()
    for score in scores:
        totals.add(score.intersection, score.union, has_target=score.has_target, said_empty=score.said_empty)
    means = {name: _mean(scores, name) for name in ("j", "f", "j_recall", "f_recall", "j_decay", "f_decay")}
    named = {
        "J&F": (means["j"] + means["f"]) / 2,
        "J": means["j"],
        "F": means["f"],
        "J_recall": means["j_recall"],
        "J_decay": means["j_decay"],
        "F_recall": means["f_recall"],
        "F_decay": means["f_decay"],
        "cIoU": totals.ciou,
        "gIoU": totals.giou,
        "N-acc": totals.no_target_accuracy,
        "T-acc": totals.target_accuracy,
    }
    jf = bootstrap.interval(np.array([score.jf for score in scores]), seed=seed)
    return {
        "samples": len(scores),
        **{name: None if math.isnan(value) else value for name, value in named.items()},
        "J&F_interval": jf.as_dict(),
    }


def grouped(
    scores: Sequence[Score],
    key: Callable[[Score], str],
    summary: Callable[[Sequence[Score]], dict[str, Any]] = summarise,
) -> dict[str, dict[str, Any]]:
    """A summary of each group of scores, by the group's name, in the order of first appearance."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score), []).append(score)
    return {name: summary(group) for name, group in groups.items()}


def sentence_keyed(scores: Sequence[Score]) -> dict[str, float]:
    """J, F and J&F averaged over distinct sentences, the last clip of a sentence counting for all.

    FlowRVS collects its metrics in a dict keyed by the sentence, so that equal sentences of different videos overwrite
    each other; for comparison with its numbers only.
    """
    if not scores:
        return {}
    last = {score.text: score for score in scores}.values()
    j, f = _mean(list(last), "j"), _mean(list(last), "f")
    return {"sentences": len(last), "J&F": (j + f) / 2, "J": j, "F": f}


def _mean(scores: Sequence[Score], name: str) -> float:
    return float(np.mean([getattr(score, name) for score in scores]))
