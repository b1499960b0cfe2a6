"""Finds places for a plan and proves the result: the sentence names the targets alone, and all can be seen."""

from dataclasses import dataclass

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine
from rvseg_jax.input_pipeline.datasets.moving_shapes.facts import CLEAR, SLANT, Facts
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import (
    Meaning,
    descriptions,
    evaluate,
    variations,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.motion import Course, draw_camera, draw_course
from rvseg_jax.input_pipeline.datasets.moving_shapes.plans import Plan, Slot, draw_plan
from rvseg_jax.input_pipeline.datasets.moving_shapes.render import Stamp, areas, regions, stamp, visible_regions
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import (
    COLOURS,
    RADIUS,
    RADIUS_GROWTH,
    SUBPIXEL,
    Scene,
    ShapeObject,
    Vocabulary,
)

_CANDIDATES = 96  # places tried for one object before the plan is given up
_ATTEMPTS = 400  # plans tried for one sample; about half succeed at the default settings, none took 20
_APART = 86  # distance of two centres in hundredths of the sum of their radii, at least: little is hidden
_TOUCHING = (58, 70)  # the same for an object that is to be behind or in front of another
_SIDE = {"left_of": (0, -1), "right_of": (0, 1), "above": (1, -1), "below": (1, 1)}
# Least share of an object that has to show in every frame.
TARGET_SEEN = 0.45
OBJECT_SEEN = 0.25


@dataclass(frozen=True, eq=False)
class Composition:
    """A finished scene with its sentences.

    Attributes:
      scene: objects, tracks and camera.
      facts: what is true of them.
      stamps: window of each object.
      amodal: bool [N, T, H, W], whole regions.
      visible: bool [N, T, H, W], visible regions.
      kind: "attribute", "relation", "motion" or "several": how the sentence tells its targets apart.
      meaning: of the sentence.
      targets: ids of the objects that it names; empty for an absent target.
      other: meaning of a second sentence, which names other objects of the scene.
      others: their ids.
    """

    scene: Scene
    facts: Facts
    stamps: list[Stamp]
    amodal: np.ndarray
    visible: np.ndarray
    kind: str
    meaning: Meaning
    targets: frozenset[int]
    other: Meaning
    others: frozenset[int]


@dataclass(frozen=True)
class Frame:
    """The numbers of a dataset that a composition depends on."""

    size: tuple[int, int]
    frames: int
    words: Vocabulary
    pan_percent: int


def compose(
    kind: str, absent: bool, count: int, frame: Frame, seed: int, stream: int, index: int
) -> tuple[Composition, Draws]:
    """The first valid composition of `count` objects or fewer, and the draws that it was made from.

    Raises:
      RuntimeError: where no plan of this kind fits the settings.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        draws = Draws(seed, stream, index, attempt)
        fewer = (attempt - 1) * 4 // _ATTEMPTS  # a small world may not hold so many different objects
        plan = draw_plan(kind, max(count - fewer, 3), frame.words, draws)
        scene = _place(plan, frame, draws)
        if scene is None:
            continue
        found = _prove(kind, plan, scene, absent, frame.words, draws)
        if found is not None:
            return found, draws
    raise RuntimeError(
        f"no {kind} scene with {count} objects fits {frame.size} at index {index}: "
        "allow fewer objects or more shapes, colours and motions"
    )


def _prove(kind: str, plan: Plan, scene: Scene, absent: bool, words: Vocabulary, draws: Draws) -> Composition | None:
    stamps = [stamp(item, scene.size) for item in scene.objects]
    amodal = regions(stamps, scene.frames, scene.size)
    visible = visible_regions(stamps, amodal, scene.front_to_back())
    least = (areas(visible) / areas(amodal)).min(axis=1)
    if least.min() < OBJECT_SEEN or least[plan.targets].min() < TARGET_SEEN:
        return None
    facts = Facts.of(scene, amodal)
    targets = frozenset(plan.targets)
    if evaluate(plan.meaning, facts) != targets:
        return None
    meaning, other = plan.meaning, plan.other
    if absent:
        empty = [change for change in variations(meaning, words) if evaluate(change, facts) == frozenset()]
        if not empty:
            return None
        meaning, other, targets, others = draws.choice(empty), meaning, frozenset(), targets
    else:
        others = (evaluate(other, facts) if other is not None else None) or frozenset()
        if other is None or not others:
            other, others = _describe_another(facts, targets, least, draws)
        if other is None:
            return None
    return Composition(scene, facts, stamps, amodal, visible, kind, meaning, targets, other, others)


def _describe_another(
    facts: Facts, targets: frozenset[int], least: np.ndarray, draws: Draws
) -> tuple[Meaning | None, frozenset[int]]:
    """A sentence for an object that is no target; the first, a look-alike, in preference to the others."""
    rest = [i for i in range(len(facts.looks)) if i not in targets]
    for i in draws.shuffled(rest):
        if least[i] >= TARGET_SEEN:
            for meaning in descriptions(facts, i):
                return meaning, frozenset([i])
    return None, frozenset()


def _place(plan: Plan, frame: Frame, draws: Draws) -> Scene | None:
    """Tracks for all slots, or None where one finds no room."""
    unit = min(frame.size) * SUBPIXEL
    camera = draw_camera(draws, frame.frames, min(frame.size), frame.pan_percent)
    depths = _depths(plan, draws)
    courses: list[Course] = []
    tracks: list[np.ndarray] = []
    radii: list[np.ndarray] = []
    objects = []
    for slot, depth in zip(plan.slots, depths, strict=True):
        if slot.like is not None:
            course = courses[slot.like]
        else:
            course = draw_course(draws, slot.motion, frame.frames, unit)
        radius = _radius(slot, course, unit, draws)
        moves = course.offsets - camera * SUBPIXEL
        track = _find_room(slot, moves, radius, tracks, radii, frame.size, draws)
        if track is None:
            return None
        courses.append(course)
        tracks.append(track)
        radii.append(radius)
        base = COLOURS[slot.look.colour]
        tint = tuple(min(max(part + draws.between(-14, 14), 0), 250) for part in base)
        tilt = draws.between(-24, 24)  # up to 8 degrees: a square stays one, a diamond too
        objects.append(ShapeObject(slot.look, slot.motion, track, radius, tilt, tint, depth))
    return Scene(frame.size, tuple(objects), camera)


def _depths(plan: Plan, draws: Draws) -> list[int]:
    """A random depth order in which what is to be behind or in front of another object is."""
    order = draws.shuffled(range(len(plan.slots)))
    level = {"in_front_of": 0, "behind": 2}
    ranks = {i: level[slot.relation] for i, slot in enumerate(plan.slots) if slot.relation in level}
    ranks |= {slot.to: 1 for i, slot in enumerate(plan.slots) if i in ranks and slot.to is not None}
    places = sorted(order[i] for i in ranks)
    for i, place in zip(sorted(ranks, key=ranks.__getitem__), places, strict=True):
        order[i] = place
    return order


def _radius(slot: Slot, course: Course, unit: int, draws: Draws) -> np.ndarray:
    if course.growth is None or slot.look.size is not None:
        radius = draws.between(*RADIUS[slot.look.size or "small"])
        return np.full(len(course.offsets), radius * unit // 1000, np.int64)
    low, high = (draws.between(*ends) for ends in RADIUS_GROWTH)
    return (low * 1000 + (high - low) * course.growth) * unit // 1_000_000


def _find_room(
    slot: Slot,
    moves: np.ndarray,
    radius: np.ndarray,
    tracks: list[np.ndarray],
    radii: list[np.ndarray],
    size: tuple[int, int],
    draws: Draws,
) -> np.ndarray | None:
    """int64 [T, 2] track of the first of some random starts that meets all conditions, or None."""
    reach = radius[:, None] + SUBPIXEL
    low = (reach - moves).max(axis=0)
    high = (np.array([size[1], size[0]]) * SUBPIXEL - reach - moves).min(axis=0)
    if (low > high).any():
        return None
    touching = slot.relation in ("behind", "in_front_of")
    if touching and slot.to is not None:
        starts = _around(tracks[slot.to][0], radii[slot.to][0] + radius[0], draws) - moves[0]
        starts = starts[((starts >= low) & (starts <= high)).all(axis=1)]
    else:
        share = draws.array(0, 1 << 16, (_CANDIDATES, 2))
        starts = low + ((high - low) * share >> 16)
    candidates = starts[:, None, :] + moves
    good = np.ones(len(candidates), bool)
    for i, (track, other) in enumerate(zip(tracks, radii, strict=True)):
        away = candidates - track
        if i == slot.to and touching:
            continue
        gap = (away * away).sum(axis=2) * 10_000 - ((radius + other) * _APART) ** 2
        good &= gap.min(axis=1) >= 0
        if i == slot.to and slot.relation is not None:
            axis, sign = _SIDE[slot.relation]
            along = sign * away[..., axis]
            good &= along.min(axis=1) * 1000 >= CLEAR * min(size) * SUBPIXEL + 1000
            good &= (100 * np.abs(away[..., 1 - axis]) <= SLANT * along).all(axis=1)
    chosen = np.flatnonzero(good)
    return candidates[chosen[0]] if len(chosen) else None


def _around(centre: np.ndarray, radii: int, draws: Draws) -> np.ndarray:
    """int64 [K, 2] random places that touch a disk: closer than the sum of the radii, not on top of it."""
    angle = draws.array(0, 1023, (_CANDIDATES,))
    reach = radii * draws.array(*_TOUCHING, (_CANDIDATES,)) // 100
    return centre + np.stack([cosine(angle) * reach >> 15, sine(angle) * reach >> 15], axis=-1)
