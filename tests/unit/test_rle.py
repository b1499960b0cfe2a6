"""COCO run-length masks against pycocotools, on made-up and on real masks."""

import json

import numpy as np
import pytest
from pycocotools import mask as reference

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle


def _masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [rng.random((h, w)) < p for h, w in [(1, 1), (1, 9), (9, 1), (7, 13), (64, 48)] for p in (0.1, 0.5, 0.95)]
    masks += [np.zeros((5, 6), bool), np.ones((5, 6), bool)]
    blob = np.zeros((480, 854), bool)
    blob[100:300, 200:700] = True  # long runs: several groups of five bits, and negative differences
    blob[310:312, 5:8] = True
    return [*masks, blob, ~blob]


@pytest.mark.parametrize("mask", _masks(), ids=lambda m: f"{m.shape[0]}x{m.shape[1]}-{int(m.sum())}")
def test_equals_pycocotools(mask):
    ours = rle.encode(mask)
    theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    decoded = rle.decode(ours)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)
    assert rle.area(ours) == int(reference.area(theirs))
    x, y, w, h = reference.toBbox(theirs)
    assert rle.to_box(ours) == (x, y, x + w, y + h)


def test_plain_counts_and_bytes():
    mask = np.random.default_rng(1).random((6, 5)) < 0.4
    encoded = rle.encode(mask)
    plain = {"size": [6, 5], "counts": rle.runs(mask).tolist()}
    np.testing.assert_array_equal(rle.decode(plain), mask)
    np.testing.assert_array_equal(rle.decode({**encoded, "counts": encoded["counts"].encode()}), mask)


def test_integer_masks_count_non_zero_as_foreground():
    mask = np.array([[0, 255], [7, 0]], np.uint8)
    assert rle.encode(mask) == rle.encode(mask > 0)


def test_empty():
    assert rle.empty(4, 7) == rle.encode(np.zeros((4, 7), bool))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [2, 2], "counts": ""}, "empty string"),
        ({"size": [2, 2], "counts": "5"}, "add up to 5"),
        ({"size": [2, 2], "counts": "P"}, "truncated"),
        ({"size": [2, 2], "counts": "1 1"}, "byte 32 at 1"),
        ({"size": [2, 2], "counts": "1é"}, "not ASCII"),
        ({"size": [2, 2], "counts": [5, -1]}, "smallest run -1"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "whole numbers"),
        ({"size": [2, 2], "counts": None}, "NoneType"),
        ({"size": [2, 2], "counts": "P" * 20 + "0"}, "35 bits"),
        ({"size": [2], "counts": "4"}, "height, width"),
        ({"size": [1 << 20, 1 << 20], "counts": "0"}, "refused"),
        ({"size": [0, 4], "counts": "0"}, "positive"),
        ({"counts": "4"}, "None"),
    ],
)
def test_malformed_is_refused(bad, message):
    with pytest.raises(InputError, match=message):
        rle.decode(bad)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2), bool), np.zeros((0, 4), bool), np.zeros((2, 2))])
def test_what_cannot_be_encoded_is_refused(bad):
    with pytest.raises(InputError, match="mask to encode"):
        rle.encode(bad)


def test_real_coco_instances(shared_data):
    results = json.loads((shared_data / "coco_rle" / "instances_val2014_fakesegm100_results.json").read_text())
    assert len(results) > 700
    for result in results[::7]:
        segmentation = result["segmentation"]
        mask = rle.decode(segmentation)
        np.testing.assert_array_equal(mask, reference.decode(segmentation).astype(bool))
        assert rle.encode(mask)["counts"] == segmentation["counts"]


def test_real_masklets(shared_data):
    for name in ("manual", "auto"):
        record = json.loads((shared_data / "sav_masklets" / f"sav_000001_{name}.json").read_text())
        for frame in record["masklet"][::30]:
            for segmentation in frame:
                mask = rle.decode(segmentation)
                np.testing.assert_array_equal(mask, reference.decode(segmentation).astype(bool))
                assert rle.encode(mask)["counts"] == segmentation["counts"]
                assert rle.area(segmentation) == int(reference.area(segmentation))
