"""J and F against the definition with OpenCV, against published values of real predictions, and by hand."""

import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.morphology import disk

from rvseg_jax.evaluation import bit_masks, davis, revos

# J and F are ratios of counts, computed in float64 on both sides.
EXACT = {"rtol": 0, "atol": 1e-12}


def square(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """One frame with a filled rectangle, ends exclusive."""
    mask = np.zeros((1, *size), bool)
    mask[0, top:bottom, left:right] = True
    return mask


def boundary_by_rules(mask: np.ndarray) -> np.ndarray:
    """`seg2bmap` from upstream's wording: shifted copies padded with 0, then special last row, column and corner."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right = mask[y, x + 1] if x + 1 < width else False
            below = mask[y + 1, x] if y + 1 < height else False
            diagonal = mask[y + 1, x + 1] if y + 1 < height and x + 1 < width else False
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                result[y, x] = mask[y, x] != right
            elif x == width - 1:
                result[y, x] = mask[y, x] != below
            else:
                result[y, x] = len({mask[y, x], right, below, diagonal}) > 1
    return result


def boundary_measure_by_opencv(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    true_edge, edge = boundary_by_rules(truth), boundary_by_rules(prediction)
    near_truth, near = (cv2.dilate(e.astype(np.uint8), disk(radius).astype(np.uint8)) for e in (true_edge, edge))
    if not edge.any() or not true_edge.any():
        return float(edge.any() == true_edge.any())
    precision, recall = (edge & (near_truth > 0)).sum() / edge.sum(), (true_edge & (near > 0)).sum() / true_edge.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(
    ("size", "truth", "prediction", "j", "f"),
    [
        ((20, 20), (5, 5, 15, 15), (7, 7, 17, 17), 0.470588, 0.15),
        ((20, 20), (5, 5, 15, 15), (6, 6, 16, 16), 0.680672, 0.975),
        ((480, 854), (100, 200, 300, 400), (104, 204, 304, 404), 0.923817, 1.0),
        ((480, 854), (100, 200, 300, 400), (108, 208, 308, 408), 0.854599, 0.98125),
        ((480, 854), (100, 200, 300, 400), (109, 209, 309, 409), 0.838278, 0.0425),
    ],
)
def test_squares(size, truth, prediction, j, f):
    found = davis.region_and_boundary(square(size, *truth), square(size, *prediction))
    np.testing.assert_allclose(np.ravel(found), [j, f], rtol=0, atol=5e-7)  # the table has six digits


def test_empty_masks():
    full, empty = square((30, 40), 3, 4, 20, 30), np.zeros((1, 30, 40), bool)
    assert np.ravel(davis.region_and_boundary(empty, empty)).tolist() == [1, 1]
    assert np.ravel(davis.region_and_boundary(full, empty)).tolist() == [0, 0]
    assert np.ravel(davis.region_and_boundary(empty, full)).tolist() == [0, 0]
    everywhere = np.ones((1, 30, 40), bool)  # a mask without a boundary
    assert davis.boundary_measure(everywhere, everywhere).tolist() == [1]
    assert davis.boundary_measure(everywhere, full).tolist() == [0]


def test_boundary_map_by_hand():
    edge = davis.boundary_map(square((20, 20), 5, 5, 15, 15)[0])
    rows, columns = np.nonzero(edge)
    assert edge.sum() == 40 and (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 14, 4, 14)
    assert davis.boundary_map(square((20, 20), 10, 10, 20, 20)[0]).sum() == 21


SIZES = st.tuples(st.integers(1, 70), st.integers(1, 140))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**32 - 1), radius=st.integers(1, 90), density=st.sampled_from([0.01, 0.5]))
def test_random_masks_equal_the_definition(size, seed, radius, density):
    """Sizes around the 64-pixel words, radii beyond a word and beyond the frame."""
    truth, prediction = np.random.default_rng(seed).random((2, 1, *size)) < density
    np.testing.assert_array_equal(davis.boundary_map(truth[0]), boundary_by_rules(truth[0]))
    expected = boundary_measure_by_opencv(truth[0], prediction[0], radius)
    np.testing.assert_allclose(davis.boundary_measure(truth, prediction, bound_th=radius), [expected], **EXACT)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**32 - 1), radius=st.integers(0, 100))
def test_dilation_equals_opencv(size, seed, radius):
    mask = np.random.default_rng(seed).random(size) < 0.02
    words = bit_masks.pack(mask)
    np.testing.assert_array_equal(bit_masks.unpack(words, size[1]), mask)
    assert bit_masks.count(words) == mask.sum()
    grown = bit_masks.unpack(bit_masks.dilate(words, radius), size[1])
    np.testing.assert_array_equal(grown, cv2.dilate(mask.astype(np.uint8), disk(radius).astype(np.uint8)) > 0)


def test_void_pixels_count_for_neither():
    truth, prediction = square((20, 20), 5, 5, 15, 15), square((20, 20), 5, 5, 15, 18)
    void = square((20, 20), 0, 15, 20, 20)
    assert davis.region_similarity(truth, prediction)[0] < 1
    assert davis.region_similarity(truth, prediction, void).tolist() == [1]
    assert davis.boundary_measure(truth, prediction, void).tolist() == [1]


@pytest.mark.parametrize(("size", "radius"), [((480, 854), 8), ((720, 1280), 12), ((20, 20), 1)])
def test_default_tolerance(size, radius):
    assert davis.boundary_radius(*size) == radius
    assert davis.boundary_radius(*size, 3) == 3


def test_wrong_arguments():
    mask = np.zeros((2, 4, 5), bool)
    with pytest.raises(ValueError, match="must both be"):
        davis.region_similarity(mask, mask[:1])
    with pytest.raises(ValueError, match="must both be"):
        davis.boundary_measure(mask[0], mask[0])
    with pytest.raises(ValueError, match="void"):
        davis.region_similarity(mask, mask, mask[:1])
    with pytest.raises(ValueError, match="bound_th is 1.5"):
        davis.boundary_measure(mask, mask, bound_th=1.5)
    with pytest.raises(ValueError, match="at least one"):
        davis.statistics(np.array([]))


def test_statistics():
    found = davis.statistics(np.linspace(1, 0.05, 20))
    np.testing.assert_allclose([found.mean, found.recall, found.decay], [0.525, 0.5, 0.70], atol=1e-12)
    assert davis.statistics(np.array([0.5])) == davis.Statistics(0.5, 0.0, 0.0)
    gap = davis.statistics(np.array([np.nan, 1.0, 1.0, 0.0]))
    assert gap.mean == pytest.approx(2 / 3) and gap.recall == 0.5 and gap.decay == pytest.approx(0.5)
    assert math.isnan(davis.statistics(np.array([np.nan])).mean)


def test_decay_of_long_lists_does_not_wrap():
    """Upstream's 8-bit borders give NaN here; 1 falling to 0 loses three quarters of the range."""
    assert davis.statistics(np.linspace(1, 0, 1001)).decay == pytest.approx(0.75)


def test_real_predictions(shared_data):
    """J and F of OSVOS and RVOS, per frame, from the official functions; the file has six digits."""
    reference = json.loads((shared_data / "davis_predictions" / "reference_metrics.json").read_text())
    compared = 0
    for method in ("osvos", "rvos"):
        for sequence, scores in reference[method].items():
            if "J_per_frame" not in scores:
                continue
            files = sorted((shared_data / "davis_predictions" / method / sequence).glob("*.png"))
            truths = shared_data / "davis16_mini" / "Annotations" / "480p" / sequence
            prediction, truth = (
                np.stack([np.asarray(Image.open(folder / file.name)) > 0 for file in files])
                for folder in (files[0].parent, truths)
            )
            j, f = davis.region_and_boundary(truth, prediction)
            np.testing.assert_allclose(j, scores["J_per_frame"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(f, scores["F_per_frame"], rtol=0, atol=1e-6)
            np.testing.assert_allclose([j.mean(), f.mean()], [scores["J_mean"], scores["F_mean"]], rtol=0, atol=1e-6)
            compared += len(files)
    assert compared == sum(
        scores["frames"]
        for method in ("osvos", "rvos")
        for scores in reference[method].values()
        if isinstance(scores, dict) and "frames" in scores
    )


@pytest.mark.parametrize("value", [1, 100, 255])
def test_revos_measures(value):
    """Upstream's numbers depend on the pixel value of the prediction; ours do not unless asked."""
    truth, prediction = square((20, 20), 5, 5, 15, 15), square((20, 20), 7, 7, 17, 17).astype(np.uint8) * value
    foreground = square((20, 20), 2, 2, 18, 18)
    assert revos.pixel_accuracy(truth, prediction)[0] == pytest.approx(0.82)
    assert revos.robustness(truth, prediction, foreground)[0] == pytest.approx(0.859375, abs=1e-6)
    accuracy = revos.pixel_accuracy(truth, prediction, values="png")[0]
    robustness = revos.robustness(truth, prediction, foreground, values="png")[0]
    assert accuracy == pytest.approx(0.82 if value == 1 else 0.66)
    assert robustness == pytest.approx(0.859375 if value == 1 else 0, abs=1e-6)


def test_revos_wraps_overlapping_instances():
    """A truth of 2 becomes 1 - 2 = 255 in 8 bits."""
    truth, prediction = np.full((1, 1, 1), 2, np.uint8), np.ones((1, 1, 1), np.uint8)
    assert revos.robustness(truth, prediction, truth, values="png").tolist() == [0]
    assert revos.robustness(truth, prediction, truth).tolist() == [1]
    with pytest.raises(ValueError, match="png"):
        revos.pixel_accuracy(truth, prediction, values="jpg")
    with pytest.raises(ValueError, match="must both be"):
        revos.robustness(truth, prediction[0], truth)
