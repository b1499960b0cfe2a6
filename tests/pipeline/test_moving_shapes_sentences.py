"""Sentences of moving_shapes, judged by an evaluator of its own: text and pixels in, objects out.

It reads the sentence by a regular expression, measures motion, size, position, overlap and colour on the
rendered clip, and shares no code with the grammar.
"""

import colorsys
import re

import numpy as np
import pytest

from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig, held_out
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import SHAPES

HUES = {"red": 0, "yellow": 52, "green": 130, "cyan": 184, "blue": 228, "purple": 282}
# Areas of the shapes inside a unit circle, by plane geometry.
AREAS = {
    "circle": np.pi * 0.95**2,
    "square": 4 * 0.78**2,
    "triangle": 0.75 * 3**0.5,
    "star": 1.09,
    "ring": np.pi * (0.97**2 - 0.47**2),
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "diamond": 2.0,
}
NUMBERS = {"the": 1, "both": 2, "all": None, "the two": 2, "the three": 3, "the four": 4, "the five": 5}
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
HEAD = "|".join([*SHAPES, "shape", *(f"{name}e?s" for name in (*SHAPES, "shape"))])
NOUN = rf"((?:\w+ )*?)({HEAD})"
SENTENCE = re.compile(
    rf"(all the|all|both|the (?:two|three|four|five)|the) {NOUN}"
    rf"(?: (?P<motion>(?:that )?(?:mov|stand|grow|shrink).*))?"
    rf"(?: (?P<relation>to the left of|left of|to the right of|right of|above|below|behind|in front of) the {NOUN})?"
)


class Measured:
    """Tracks, areas and colours of the objects of a clip, from its pixels."""

    def __init__(self, sample):
        self.sample = sample
        self.side = min(sample.frames.shape[1:3])
        count, frames, height, width = sample.amodal_masks.shape
        rows, columns = np.mgrid[:height, :width]
        self.areas = sample.amodal_masks.sum(axis=(2, 3))
        self.image = np.stack(
            [(sample.amodal_masks * grid).sum(axis=(2, 3)) / self.areas for grid in (columns, rows)], -1
        )
        self.world = self.image + sample.camera
        self.colours = [self._colour(i) for i in range(count)]
        self.looks = [item.look for item in sample.composition.scene.objects]

    def _colour(self, i):
        pixels = self.sample.frames[self.sample.object_masks[i]] / 255
        hues, chroma = [], []
        for pixel in pixels[:: max(len(pixels) // 200, 1)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            hues.append(hue * 360)
            chroma.append(saturation * value)
        strongest = np.argsort(chroma)[len(chroma) // 2 :]
        turns = np.exp(1j * np.radians(np.array(hues)[strongest]))
        hue = np.degrees(np.angle(turns.mean())) % 360
        return min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))

    def motion(self, i):
        growth = self.areas[i, -1] / self.areas[i, 0]
        if growth > 1.6:
            return "grow"
        if growth < 0.62:
            return "shrink"
        track = self.world[i] / self.side
        reach, net = np.ptp(track, axis=0), track[-1] - track[0]
        moving = reach > 0.08
        if not moving.any():
            return "still"
        steps = np.diff(track, axis=0)
        turns = [bool((steps[:, axis].min() < -0.02) and (steps[:, axis].max() > 0.02)) for axis in (0, 1)]
        if moving.all() and all(turns):
            return "circle"
        if any(turns):
            return "side to side" if turns[0] else "up and down"
        return tuple(int(np.sign(net[axis])) if moving[axis] else 0 for axis in (0, 1))

    def is_large(self, i):
        radius = np.sqrt(self.areas[i] / AREAS[self.looks[i].shape]).mean() / self.side
        return radius > 0.14

    def matches(self, i, words, head):
        look = self.looks[i]
        shape = next((name for name in SHAPES if head in (name, name + "s", name + "es")), None)
        if shape is not None and look.shape != shape:
            return False
        for word in words:
            if word in HUES and self.colours[i] != word:
                return False
            if word in ("plain", "striped", "dotted") and look.texture != word:
                return False
            if word in ("small", "large") and self.is_large(i) != (word == "large"):
                return False
        return True

    def stands(self, i, relation, j):
        """Share of frames in which the relation holds."""
        if relation in ("behind", "in front of"):
            front, back = (j, i) if relation == "behind" else (i, j)
            one, other = self.sample.amodal_masks[front], self.sample.amodal_masks[back]
            # Up to a hundredth of the smaller object is no overlap that one would speak of.
            smaller = np.minimum(one.sum(axis=(1, 2)), other.sum(axis=(1, 2)))
            hides = (one & other).sum(axis=(1, 2)) > 0.01 * smaller
            return float(hides.mean()) if self.sample.depth[front] < self.sample.depth[back] else 0.0
        away = (self.image[i] - self.image[j]) / self.side
        along = {
            "left of": -away[:, 0],
            "right of": away[:, 0],
            "above": -away[:, 1],
            "below": away[:, 1],
        }[relation.replace("to the ", "")]
        return float((along > 0.1).mean())


def motion_of(clause):
    clause = clause.replace("to the ", "")
    words = clause.split()
    if "stand" in clause:
        return "still"
    if "grow" in clause or "shrink" in clause:
        return "grow" if "grow" in clause else "shrink"
    if "circle" in words:
        return "circle"
    if "side" in words:
        return "side to side"
    if "up and down" in clause:
        return "up and down"
    return tuple(sum(DIRECTIONS[word][axis] for word in words if word in DIRECTIONS) for axis in (0, 1))


def understood(text, measured):
    """Ids that a sentence names, and how many it says there are (None: any number of two or more)."""
    match = SENTENCE.fullmatch(text)
    assert match, text
    number = NUMBERS[match[1].replace("all the", "all")]
    objects = range(len(measured.looks))
    found = [i for i in objects if measured.matches(i, match[2].split(), match[3])]
    if match["motion"]:
        found = [i for i in found if measured.motion(i) == motion_of(match["motion"])]
    if match["relation"]:
        references = [j for j in objects if measured.matches(j, match[6].split(), match[7])]
        assert len(references) == 1, text
        shares = {i: measured.stands(i, match["relation"], references[0]) for i in found if i != references[0]}
        # An object either stands there all the time or never: half-true would be a trick question.
        assert set(shares.values()) <= {0.0, 1.0}, (text, shares)
        found = [i for i, share in shares.items() if share == 1.0]
    return found, number


@pytest.mark.parametrize("config", [MovingShapesConfig(), MovingShapesConfig(size=(72, 96), frames=17, seed=5)])
def test_a_sentence_names_its_targets_and_nothing_else(config):
    source = MovingShapes(config)
    kinds = set()
    for index in range(120):
        sample = source[index]
        measured = Measured(sample)
        referrals = sample.referrals() if index % 3 == 0 else []
        own = [(sample.text, sample.target_ids), (sample.other_text, sample.other_ids)]
        for text, ids in own + [(referral.text, referral.ids) for referral in referrals[2:]]:
            found, number = understood(text, measured)
            assert tuple(found) == tuple(ids), (index, text)
            if ids:
                assert len(ids) == number or (number is None and len(ids) > 1), (index, text)
        kinds.add(sample.kind)
    assert kinds == {"attribute", "relation", "motion", "several", "absent"}


def test_referrals_speak_of_every_object_and_of_nothing():
    source = MovingShapes(MovingShapesConfig())
    for index in range(20):
        sample = source[index]
        referrals = sample.referrals()
        assert referrals == source[index].referrals()
        assert [r.text for r in referrals[:2]] == [sample.text, sample.other_text]
        assert np.isclose(sum(r.weight for r in referrals), 1)
        assert {r.ids for r in referrals} >= {(i,) for i in range(len(sample.object_masks))} | {()}


def test_motions_are_what_they_are_called():
    names = {(0, -1): "up", (0, 1): "down", (-1, 0): "left", (1, 0): "right"}
    names |= {(-1, -1): "up_left", (1, -1): "up_right", (-1, 1): "down_left", (1, 1): "down_right"}
    names |= {"side to side": "side_to_side", "up and down": "up_and_down"}
    source, seen = MovingShapes(MovingShapesConfig(pan=1.0)), set()
    for index in range(80):
        sample = source[index]
        measured = Measured(sample)
        for i, item in enumerate(sample.composition.scene.objects):
            motion = measured.motion(i)
            assert names.get(motion, motion) == item.motion
            seen.add(item.motion)
    assert len(seen) == 14


def test_a_panning_camera_turns_no_motion_around():
    """What moves left against the background also moves left in the image, and what stands hardly moves."""
    for index in range(60):
        sample = MovingShapes(MovingShapesConfig(pan=1.0))[index]
        measured = Measured(sample)
        for i in range(len(measured.looks)):
            motion = measured.motion(i)
            net = (measured.image[i, -1] - measured.image[i, 0]) / measured.side
            if isinstance(motion, tuple):
                along = np.array(motion) / np.hypot(*motion)
                across = along[::-1] * (1, -1)
                assert net @ along > 0.15 and net @ along > 1.5 * abs(net @ across)
            elif motion == "still":
                assert np.abs(net).max() < 0.1


def differences(one, other):
    looks = [item.look for item in (one, other)]
    named = ("shape", "colour", "texture", "size")
    return {name for name in named if getattr(looks[0], name) != getattr(looks[1], name)}


def test_there_is_always_a_look_alike():
    """Some other object differs from a target in nothing but one thing that the sentence names."""
    for index in range(0, 256, 2):
        sample = held_out()[index]
        objects = sample.composition.scene.objects
        meaning = sample.composition.meaning
        assert len(objects) >= 3
        named = set(meaning.noun.named())
        found = []
        for target in sample.target_ids:
            for i in set(range(len(objects))) - set(sample.target_ids):
                apart = differences(objects[target], objects[i])
                same_motion = objects[target].motion == objects[i].motion
                if sample.kind == "motion" or meaning.motion:
                    # What grows has no size of its own; otherwise only the motion differs.
                    sizeless = None in (objects[target].look.size, objects[i].look.size)
                    found.append(not same_motion and apart <= ({"size"} if sizeless else set()))
                elif sample.kind == "relation":
                    found.append(same_motion and not apart)
                else:
                    found.append(same_motion and len(apart) == 1 and apart <= named)
        assert any(found), (index, sample.text)
