"""Golden cases of the DAVIS and ReVOS measures: `pairs` of masks, and `statistics` of lists of scores."""

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from rvseg_jax.evaluation import davis, revos
from rvseg_jax.parity.compare import Excuse, Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind

# From this length on upstream's bin borders, kept in 8 bits, wrap around.
_UPSTREAM_OVERFLOW = 256
_NO_VALUE = -1000.0


def _pairs(case: Case) -> Produced:
    truth, prediction, void = case.input("gt"), case.input("pred"), case.input("void")
    similarity, boundary = davis.region_similarity(truth, prediction), davis.boundary_measure(truth, prediction)
    outputs = {
        "j": similarity,
        "f": boundary,
        "j_void": davis.region_similarity(truth, prediction, void),
        "f_void": davis.boundary_measure(truth, prediction, void),
        "j_mean_recall_decay": _summary(similarity),
        "f_mean_recall_decay": _summary(boundary),
        "gt_boundary": np.stack([davis.boundary_map(mask) for mask in truth]),
        "pred_boundary": np.stack([davis.boundary_map(mask) for mask in prediction]),
        "accuracy": revos.pixel_accuracy(truth, prediction, values="png"),
        "robustness": revos.robustness(truth, prediction, np.maximum(truth, void), values="png"),
    }
    for name in case.outputs:
        pixels = re.fullmatch(r"f_bound([1-9]\d{0,3})", name)
        if pixels:
            outputs[name] = davis.boundary_measure(truth, prediction, bound_th=int(pixels[1]))
    summaries = ("j_mean_recall_decay", "f_mean_recall_decay")
    return Produced(outputs, sentinel=_NO_VALUE, excuses=dict.fromkeys(summaries, _excuse(len(truth))))


def _statistics(case: Case) -> Produced:
    lists = {name.removeprefix("values/"): values for name, values in case.inputs.items()}
    outputs = {name: _summary(values) for name, values in lists.items()}
    excuses = {name: _excuse(len(values)) for name, values in lists.items()}
    return Produced(outputs, sentinel=_NO_VALUE, excuses=excuses)


def _excuse(length: int) -> Excuse:
    """What need not agree in mean, recall and decay of a list."""
    wraps = length >= _UPSTREAM_OVERFLOW
    reason = "decay is not compared: upstream's 8-bit bin borders wrap around" if wraps else ""
    return Excuse(np.array([False, False, wraps]), reason)


def _summary(values: np.ndarray) -> np.ndarray:
    """Mean, recall and decay as the files hold them: -1000 where there is no value."""
    found = davis.statistics(values)
    return np.nan_to_num(np.array([found.mean, found.recall, found.decay]), nan=_NO_VALUE)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "pairs": Kind(_pairs, Fields(ignored=frozenset({"height", "width", "frame_names"}))),
        "statistics": Kind(_statistics, Fields(ignored=frozenset({"lengths"}))),
    }
)
