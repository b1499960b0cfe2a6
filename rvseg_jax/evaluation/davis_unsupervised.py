"""DAVIS 2017 unsupervised: proposals are matched with objects before they are scored.

Source: davisvideochallenge/davis2017-evaluation, `davis2017/evaluation.py` and `davis2017/davis.py` with the task
"unsupervised".
"""

from dataclasses import dataclass

import numpy as np

# scipy comes with every installation of jax, which depends on it.
from scipy.optimize import linear_sum_assignment

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import davis
from rvseg_jax.formats.davis import VOID

MAX_PROPOSALS = 20


@dataclass(frozen=True)
class ObjectScore:
    """Scores of one object with the proposal that it was given.

    Attributes:
      object: label of the object in the truth.
      proposal: label of the proposal; 0 where the sequence has fewer proposals than objects.
      j, f: their statistics over all frames.
    """

    object: int
    proposal: int
    j: davis.Statistics
    f: davis.Statistics


def score_sequence(truth: np.ndarray, prediction: np.ndarray) -> list[ObjectScore]:
    """Scores of every object of a sequence, in the order of their labels.

    The objects are the labels 1 to the largest of the *first* frame, proposals the labels up to the largest of any
    frame, as upstream counts them. The assignment maximises the sum of the mean over frames of (J + F) / 2; proposals
    that are left over cost nothing, an object without a proposal is scored against empty masks. Void pixels of the
    truth count for neither side.

    Shapes:
      truth, prediction: uint8 [T, H, W], labels; 255 in the truth is void.

    Raises:
      InputError: if the sizes differ, the first frame of the truth has no object, or there are more than 20 proposals.
    """
    if truth.shape != prediction.shape:
        raise InputError(f"label maps are {prediction.shape} but the truth {truth.shape}: write them at its size")
    objects = int(np.where(truth[0] == VOID, 0, truth[0]).max())
    proposals = int(prediction.max())
    if not objects:
        raise InputError("the first frame of the truth has no object; this metric counts objects there")
    if proposals > MAX_PROPOSALS:
        raise InputError(f"a label map holds label {proposals}; the metric allows {MAX_PROPOSALS} proposals")
    # As many columns as objects at least: missing proposals are empty.
    labels = np.arange(1, max(objects, proposals) + 1)[:, None, None]
    frames = [
        davis.pairwise(real == labels[:objects], proposed == labels, real == VOID)
        for real, proposed in zip(truth, prediction, strict=True)
    ]
    j, f = (np.stack(values) for values in zip(*frames, strict=True))  # [T, objects, proposals]
    # Proposals in rows and a cost, as upstream, so that ties fall alike.
    given = linear_sum_assignment(-((j.mean(axis=0) + f.mean(axis=0)) / 2).T)
    return [
        ObjectScore(
            object=int(row) + 1,
            proposal=int(column) + 1 if column < proposals else 0,
            j=davis.statistics(j[:, row, column]),
            f=davis.statistics(f[:, row, column]),
        )
        for row, column in sorted(zip(given[1], given[0], strict=True))
    ]
