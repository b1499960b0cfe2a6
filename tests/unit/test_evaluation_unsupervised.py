"""DAVIS 2017 unsupervised by hand, and against every possible assignment."""

import itertools

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import davis
from rvseg_jax.evaluation.davis_unsupervised import ObjectScore, score_sequence

FRAMES, SIZE = 3, (24, 32)


def labels(*squares: tuple[int, int, int, int]) -> np.ndarray:
    """uint8 [T, H, W]; each square is (label, top, left, side), later ones on top."""
    maps = np.zeros((FRAMES, *SIZE), np.uint8)
    for label, top, left, side in squares:
        maps[:, top : top + side, left : left + side] = label
    return maps


def means(scores: list[ObjectScore]) -> list[tuple[float, float]]:
    return [(score.j.mean, score.f.mean) for score in scores]


def test_labels_of_proposals_do_not_matter():
    truth = labels((1, 2, 2, 8), (2, 12, 16, 8))
    found = score_sequence(truth, labels((7, 2, 2, 8), (3, 12, 16, 8)))
    assert means(found) == [(1, 1), (1, 1)] and [score.proposal for score in found] == [7, 3]


def test_void_counts_for_neither_side():
    truth = labels((1, 2, 2, 8), (255, 2, 10, 8))
    assert means(score_sequence(truth, labels((1, 2, 2, 8), (2, 2, 10, 8)))) == [(1, 1)]
    # A square that reaches into void loses that part only.
    wide = labels((1, 2, 2, 8))
    wide[:, 2:10, 10:18] = 1
    assert means(score_sequence(truth, wide)) == [(1, 1)]
    assert score_sequence(np.where(truth == 255, 0, truth).astype(np.uint8), wide)[0].j.mean == 0.5


def test_left_over_proposals_are_free_and_missing_ones_are_empty():
    truth = labels((1, 2, 2, 8), (2, 12, 16, 8))
    proposals = [(number, number, 28, 2) for number in range(3, 21)]
    assert means(score_sequence(truth, labels((1, 2, 2, 8), (2, 12, 16, 8), *proposals))) == [(1, 1), (1, 1)]
    one = score_sequence(truth, labels((1, 12, 16, 8)))
    assert means(one) == [(0, 0), (1, 1)] and [score.proposal for score in one] == [0, 1]
    assert means(score_sequence(truth, labels())) == [(0, 0), (0, 0)]
    with pytest.raises(InputError, match="label 21"):
        score_sequence(truth, labels((21, 0, 0, 2)))


def test_objects_are_those_of_the_first_frame():
    truth = labels((1, 2, 2, 8), (2, 12, 16, 8))
    truth[0][truth[0] == 2] = 0
    assert [score.object for score in score_sequence(truth, truth)] == [1]
    # Label 1 has no pixel at all: it is empty, and a proposal without pixels matches it.
    assert means(score_sequence(labels((2, 2, 2, 8)), labels((2, 2, 2, 8)))) == [(1, 1), (1, 1)]
    with pytest.raises(InputError, match="no object"):
        score_sequence(labels(), truth)
    with pytest.raises(InputError, match="at its size"):
        score_sequence(truth, truth[:, 1:])


def random_labels(rng: np.random.Generator, count: int) -> np.ndarray:
    squares = [(n, int(rng.integers(0, 14)), int(rng.integers(0, 22)), 10) for n in rng.permutation(count) + 1]
    maps = labels(*squares)
    return np.stack([np.roll(image, int(rng.integers(0, 4)), axis=1) for image in maps])


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_brute_force(seed):
    """The best sum of J + F over all ways to give objects different proposals, each pair measured alone."""
    rng = np.random.default_rng(seed)
    truth, prediction = random_labels(rng, 3), random_labels(rng, 2 + seed % 4)
    truth[:, 20:22] = 255
    counted = truth != 255
    objects = int(np.where(counted, truth, 0)[0].max())
    proposals = max(objects, int(prediction.max()))

    def score(n: int, m: int) -> float:
        pair = (truth == n) & counted, (prediction == m) & counted
        return float(sum(values.mean() for values in davis.region_and_boundary(*pair)))

    table = [[score(n, m) for m in range(1, proposals + 1)] for n in range(1, objects + 1)]
    best = max(
        sum(row[m] for row, m in zip(table, given, strict=True))
        for given in itertools.permutations(range(proposals), objects)
    )
    found = score_sequence(truth, prediction)
    assert sum(j + f for j, f in means(found)) == pytest.approx(best, abs=1e-12)


def test_pairwise_equals_one_by_one():
    rng = np.random.default_rng(3)
    masks = rng.random((5, 40, 70)) < 0.1
    void = rng.random((40, 70)) < 0.2
    j, f = davis.pairwise(masks[:2], masks[2:], void)
    for n, m in itertools.product(range(2), range(3)):
        pair = masks[n][None], masks[2 + m][None], void[None]
        assert (j[n, m], f[n, m]) == (davis.region_similarity(*pair)[0], davis.boundary_measure(*pair)[0])
    with pytest.raises(ValueError, match="must be"):
        davis.pairwise(masks[:2], masks[2:, 1:])
