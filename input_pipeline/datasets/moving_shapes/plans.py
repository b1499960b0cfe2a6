"""What a scene of each kind has to hold, before anything has a place: targets, look-alikes, others, sentence.

Every plan with a target has a distractor that differs from a target only in what the sentence names: in one
named attribute, in the motion, or in the side of the reference on which it lies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import Meaning, Noun, matches
from rvseg_jax.input_pipeline.datasets.moving_shapes.motion import GROWTH, confusable
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import ATTRIBUTES, Look, Vocabulary

OPPOSITE = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
    "behind": "in_front_of",
    "in_front_of": "behind",
}
# Shapes whose overlap shows wherever they meet; a ring or a star may cover nothing.
SOLID = ("circle", "square", "diamond")


@dataclass(frozen=True)
class Slot:
    """An object to be.

    Attributes:
      look: its attributes.
      motion: its motion.
      like: index of an earlier slot whose course, direction and speed it shares; None draws one.
      relation: relation in which it has to stand to slot `to`.
      to: index of the earlier slot that `relation` refers to.
    """

    look: Look
    motion: str
    like: int | None = None
    relation: str | None = None
    to: int | None = None


@dataclass
class Plan:
    """A scene to be: slots, the sentence, how many of the first slots are targets, and a second sentence.

    `other` names an object that is no target, in the same manner as the sentence; None leaves the choice to
    the composer.
    """

    meaning: Meaning
    other: Meaning | None = None
    targets: list[int] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)


def draw_plan(kind: str, count: int, words: Vocabulary, draws: Draws) -> Plan:
    """A plan of `kind` ("attribute", "relation", "motion", "several") with `count` objects."""
    return _PLANS[kind](count, words, draws)


def _look(words: Vocabulary, draws: Draws, motion: str = "still", shapes: Sequence[str] = ()) -> Look:
    # Half of all objects are plain, so that texture is worth a word.
    textured = draws.chance(50) or "plain" not in words.textures
    return Look(
        draws.choice(shapes or words.shapes),
        draws.choice(words.colours),
        draws.choice(words.textures) if textured else "plain",
        None if motion in GROWTH else draws.choice(words.values("size")),
    )


def _motion(words: Vocabulary, draws: Draws, without: Sequence[str] = GROWTH) -> str:
    if draws.chance(35):
        return "still"
    return draws.choice([name for name in words.motions if name not in without] or ["still"])


def _changed(look: Look, attribute: str, words: Vocabulary, draws: Draws) -> Look:
    """`look` with another value of one attribute."""
    values = [value for value in words.values(attribute) if value != getattr(look, attribute)]
    return replace(look, **{attribute: draws.choice(values)})


def _changeable(words: Vocabulary) -> list[str]:
    return [name for name in ATTRIBUTES if len(words.values(name)) > 1]


def _named(words: Vocabulary, draws: Draws, counts: Sequence[int]) -> tuple[str, ...]:
    """Attributes to name, in the order of the grammar; a sentence names its shape more often than not."""
    pool = draws.shuffled(_changeable(words))
    if draws.chance(60) and "shape" in pool:
        pool.sort(key=lambda name: name != "shape")
    chosen = pool[: min(draws.choice(counts), len(pool))]
    return tuple(name for name in ATTRIBUTES if name in chosen)


def _fill(plan: Plan, count: int, words: Vocabulary, draws: Draws, fits: Callable[[Look, str], bool]) -> Plan:
    """Adds objects of any sort until there are `count`; `fits` says which looks and motions are allowed."""
    while len(plan.slots) < count:
        for _ in range(20):
            motion = _motion(words, draws, without=())
            look = _look(words, draws, motion)
            if fits(look, motion):
                break
        plan.slots.append(Slot(look, motion))
    return plan


def _attribute(count: int, words: Vocabulary, draws: Draws) -> Plan:
    motion = _motion(words, draws)
    look = _look(words, draws)
    names = _named(words, draws, (1, 2, 2, 3, 3))
    noun = Noun.of(look, names)
    plan = Plan(Meaning(noun), targets=[0], slots=[Slot(look, motion)])
    changes = draws.shuffled(names)
    for name in changes[: max(1, min(len(changes), count - 2))]:
        twin = _changed(look, name, words, draws)
        plan.slots.append(Slot(twin, motion, like=0 if draws.chance(50) else None))
    plan.other = Meaning(Noun.of(plan.slots[1].look, names))
    return _fill(plan, count, words, draws, lambda other, _: matches(noun, other) is False)


def _motion_plan(count: int, words: Vocabulary, draws: Draws) -> Plan:
    wanted = draws.choice(words.motions)
    shown = draws.choice([name for name in words.motions if name != wanted and not confusable(wanted, name)])
    look = _look(words, draws)
    names = _named(words, draws, (0, 1, 1, 2))
    if wanted in GROWTH or shown in GROWTH:
        names = tuple(name for name in names if name != "size")
    noun = Noun.of(look, names)

    def sized(motion: str) -> Look:
        return replace(look, size=None) if motion in GROWTH else look

    plan = Plan(Meaning(noun, wanted), Meaning(noun, shown), [0])
    plan.slots = [Slot(sized(wanted), wanted), Slot(sized(shown), shown)]

    def fits(other: Look, motion: str) -> bool:
        alike = any(motion == name or confusable(name, motion) for name in (wanted, shown))
        return not alike or matches(noun, other) is False

    return _fill(plan, count, words, draws, fits)


def _relation(count: int, words: Vocabulary, draws: Draws) -> Plan:
    relation = draws.choice(tuple(OPPOSITE))
    deep = relation in ("behind", "in_front_of")
    solid = [name for name in words.shapes if name in SOLID] if deep else ()
    # What has to keep its side moves along it, together, or stands still.
    sideways = relation not in ("left_of", "right_of")
    along = ("left", "right", "side_to_side") if sideways else ("up", "down", "up_and_down")
    allowed = [name for name in words.motions if name in along]
    motion = draws.choice(allowed) if allowed and draws.chance(45) else "still"
    look, anchor = _look(words, draws, shapes=solid), _look(words, draws, shapes=solid)
    names = _named(words, draws, (1, 1, 2))
    noun = Noun.of(look, names)
    if matches(noun, anchor):
        anchor = _changed(anchor, draws.choice(names), words, draws)
    reference = Noun.of(anchor, _named(words, draws, (1, 2, 2)))
    plan = Plan(
        Meaning(noun, relation=relation, reference=reference),
        Meaning(noun, relation=OPPOSITE[relation], reference=reference),
        [1],
    )
    twin_relation = OPPOSITE[relation] if not deep or draws.chance(50) else None
    if twin_relation is None:
        plan.other = None
    plan.slots = [
        Slot(anchor, motion),
        Slot(look, motion, like=0, relation=relation, to=0),
        Slot(look, motion, like=0, relation=twin_relation, to=0),
    ]
    return _fill(
        plan,
        count,
        words,
        draws,
        lambda other, _: matches(noun, other) is False and matches(reference, other) is False,
    )


def _several(count: int, words: Vocabulary, draws: Draws) -> Plan:
    targets = min(draws.choice((2, 2, 3)), count - 1)
    number = draws.choice((targets, targets, 0))
    names = _named(words, draws, (1, 1, 2))
    look = _look(words, draws)
    noun = Noun.of(look, names)
    plan = Plan(Meaning(noun, number=number), targets=list(range(targets)))
    moving = draws.chance(25)
    wanted = draws.choice([name for name in words.motions if name not in ("still", *GROWTH)] or ["still"])
    for _ in range(targets):
        free = replace(_look(words, draws), **{name: getattr(look, name) for name in names})
        plan.slots.append(Slot(free, wanted if moving else _motion(words, draws)))
    first = plan.slots[0]
    if moving and wanted != "still":
        plan.meaning = replace(plan.meaning, motion=wanted)
        plan.slots.append(Slot(first.look, "still"))
        return _fill(plan, count, words, draws, lambda other, _: matches(noun, other) is False)
    plan.slots.append(Slot(_changed(first.look, draws.choice(names), words, draws), first.motion))
    return _fill(plan, count, words, draws, lambda other, _: matches(noun, other) is False)


_PLANS: dict[str, Callable[[int, Vocabulary, Draws], Plan]] = {
    "attribute": _attribute,
    "relation": _relation,
    "motion": _motion_plan,
    "several": _several,
}
