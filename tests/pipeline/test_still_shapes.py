"""Stills with several expressions each: what is named is there and alone, what is not named is not there."""

import itertools
import pickle

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.moving_shapes import vocabulary
from rvseg_jax.input_pipeline.datasets.moving_shapes.facts import RELATIONS
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import COLOURS, SHAPES, SIZES, TEXTURES
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import (
    ABSENT,
    StillShapes,
    StillShapesConfig,
    stills_held_out,
    stills_list_hash,
)

FIRST_TWELVE = "b28003a41cdbba4e2e5f7c6a99d26a4c0f980d3e0ca956bbd36aa8e158eed7ba"
ITEMS = [stills_held_out()[index] for index in range(24)]


def words_of(look):
    return {look.size, look.texture, look.colour, look.shape}


def understood(text):
    """Attributes of the target, relation and attributes of the reference, read off the words by simple rules."""
    sides = {"left of": "left_of", "right of": "right_of", "in front of": "in_front_of"} | {
        f"to the {side} of": f"{side}_of" for side in ("left", "right")
    }
    sides |= {name: name for name in ("above", "below", "behind")}
    attributes = {*SHAPES, *COLOURS, *TEXTURES, *SIZES}
    for words, relation in sorted(sides.items(), key=lambda pair: -len(pair[0])):
        if f" {words} the " in text:
            target, reference = text.split(f" {words} the ")
            return attributes & set(target.split()), relation, attributes & set(reference.split())
    return attributes & set(text.split()), None, set()


def named_by(text, item):
    """Ids that a sentence names, from looks and centres alone; relations of depth are left to the truth."""
    target, relation, reference = understood(text)
    looks = [words_of(one) for one in item.composition.facts.looks]
    found = [i for i, look in enumerate(looks) if target <= look]
    if relation is None:
        return found
    (anchor,) = [i for i, look in enumerate(looks) if reference <= look]
    assert relation in RELATIONS
    axis, sign = {"left_of": (0, -1), "right_of": (0, 1), "above": (1, -1), "below": (1, 1)}.get(relation, (None, None))
    if axis is None:
        return None
    centres = item.composition.facts.centres[:, 0]
    return [i for i in found if i != anchor and sign * (centres[i] - centres[anchor])[axis] > 100]


def test_layout():
    for item in ITEMS:
        assert item.image().shape == (168, 168, 3) and item.image().dtype == np.uint8
        assert 3 <= len(item.object_masks) <= 5 and item.object_masks.sum(axis=0).max() == 1
        assert len(item.expressions) == len(item.targets) == 5
        assert len({one.text for one in item.expressions}) == 5
        for number, (expression, ids) in enumerate(zip(item.expressions, item.targets, strict=True)):
            np.testing.assert_array_equal(item.mask(number), item.object_masks[list(ids)].any(axis=0))
            assert bool(ids) == item.mask(number).any() and (expression.kind in ABSENT) == (not ids)
            for mask, corner in zip(item.object_masks[list(ids)], expression.boxes, strict=True):
                rows, columns = np.nonzero(mask)
                width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
                assert corner == (columns.min(), rows.min(), width, height)


def test_expressions_mean_what_they_say():
    """Against a reading of the words that shares no code with the grammar."""
    checked = 0
    for item in ITEMS:
        for expression, ids in zip(item.expressions, item.targets, strict=True):
            named = named_by(expression.text, item)
            if named is not None:
                assert tuple(named) == ids, (item.name, expression.text)
                checked += 1
            other = named_by(expression.other_text, item)
            if other is not None:
                assert len(other) == 1 and not set(other) & set(ids), (item.name, expression.other_text)
    assert checked > 100


def test_kinds_of_absence():
    kinds = {one.kind for item in ITEMS for one in item.expressions}
    assert {"attribute", "relation", "near_miss", "wrong_relation", "nothing_like"} == kinds
    for item in ITEMS:
        looks = [words_of(one) for one in item.composition.facts.looks]
        for expression in item.expressions:
            target, relation, _ = understood(expression.text)
            if expression.kind == "near_miss":  # all but one of its words are true of some object
                assert max(len(target & look) for look in looks) == len(target) - 1
            if expression.kind == "nothing_like":
                assert not any(target & look for look in looks) and relation is None
            if expression.kind == "wrong_relation":  # without the relation it would name something
                assert any(target <= look for look in looks) and relation is not None


def test_seven_in_ten_name_something_and_groups_stay_together():
    source = stills_held_out()
    assert len(source) == 256 and sum(source.expression_counts()) == 1280
    empty = [sum(not ids for ids in item.targets) for item in ITEMS]
    assert set(empty) == {1, 2} and sum(empty[:20]) == 30
    for item in ITEMS:
        groups = [ids for ids, _ in itertools.groupby(item.targets) if ids]
        assert len(groups) == len(set(groups))


def test_all_words_are_known():
    words = {word for item in ITEMS for one in item.expressions for word in f"{one.text} {one.other_text}".split()}
    assert words <= set(vocabulary()) and len(words) > 20


def test_an_index_is_all_that_an_image_depends_on():
    source = StillShapes(StillShapesConfig(size=(64, 80), several=0.5, absent=0.5))
    sent = pickle.loads(pickle.dumps(source))
    for index in (0, 7, 900_000):
        one, again = source[index], sent[index]
        np.testing.assert_array_equal(one.image(), again.image())
        assert [e.text for e in one.expressions] == [e.text for e in again.expressions] and one.targets == again.targets
        assert 3 <= len(one.expressions) <= 6
    several = [len(ids) for index in range(12) for ids in source[index].targets]
    assert max(several) > 1 and 0 in several
    valid = StillShapes(StillShapesConfig(size=(64, 80), split="valid"))
    assert not np.array_equal(source[0].image(), valid[0].image())


def test_the_held_out_list_is_fixed():
    assert stills_list_hash(stills_held_out(), 12) == FIRST_TWELVE


@pytest.mark.slow
def test_the_whole_held_out_list_is_fixed():
    assert stills_list_hash(stills_held_out()) == "7454800e8f0900562bb0cca1527d1cf0b14d45bc4a67adb25887b1d1901455cd"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": (40, 64)}, "at least 48"),
        ({"objects": (2, 3)}, "within 3 to 6"),
        ({"expressions": (0, 3)}, "1 to 10 an image"),
        ({"absent": 1.5}, "are shares"),
        ({"split": "test"}, "choose from train"),
        ({"length": 0}, "must be positive"),
    ],
)
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        StillShapesConfig(**change)


def test_ends_of_the_list():
    with pytest.raises(IndexError, match="no image 256"):
        stills_held_out()[256]
    with pytest.raises(ValueError, match="is no list"):
        StillShapes().expression_counts()
