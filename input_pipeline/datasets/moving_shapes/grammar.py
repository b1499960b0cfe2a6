"""Sentences: their meaning, their wording, and which objects of a scene they name.

A part of a meaning is true, false or unclear of an object (a square that drifts up and to the left is not a
clear case of "moving to the left"). A sentence is fit for the dataset only where it is clear of every object.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from rvseg_jax.input_pipeline.datasets.moving_shapes.facts import RELATIONS, Facts
from rvseg_jax.input_pipeline.datasets.moving_shapes.motion import MOTIONS, confusable
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import (
    ATTRIBUTES,
    COLOURS,
    SHAPES,
    TEXTURES,
    Look,
    Vocabulary,
)

EVERYTHING = Vocabulary(SHAPES, tuple(COLOURS), TEXTURES, MOTIONS)
_PLACES = {
    "left": "to the left",
    "right": "to the right",
    "up": "up",
    "down": "down",
    "up_left": "up and to the left",
    "up_right": "up and to the right",
    "down_left": "down and to the left",
    "down_right": "down and to the right",
    "side_to_side": "from side to side",
    "up_and_down": "up and down",
    "circle": "in a circle",
}
# Participle, singular verb, plural verb.
_MOTION_WORDS = {
    "still": ("standing still", "stands still", "stand still"),
    "grow": ("growing", "grows", "grow"),
    "shrink": ("shrinking", "shrinks", "shrink"),
    **{name: (f"moving {place}", f"moves {place}", f"move {place}") for name, place in _PLACES.items()},
}
_RELATION_WORDS = {
    "left_of": ("left of", "to the left of"),
    "right_of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
    "behind": ("behind",),
    "in_front_of": ("in front of",),
}
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True)
class Noun:
    """The attributes that a sentence names; None leaves one open."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    @classmethod
    def of(cls, look: Look, attributes: tuple[str, ...]) -> "Noun":
        """The noun that names `attributes` of `look`."""
        return cls(**{name: getattr(look, name) for name in attributes})

    def named(self) -> tuple[str, ...]:
        """The attributes it names."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name) is not None)


@dataclass(frozen=True)
class Meaning:
    """What a sentence says.

    Attributes:
      noun: named attributes of the targets.
      motion: a name of `motion.MOTIONS`, or None.
      relation: a name of `facts.RELATIONS` that holds between the target and `reference`, or None.
      reference: the one object that the relation refers to.
      number: how many objects it speaks of: 1 ("the"), k ("the two"), or 0 ("all", two or more).
    """

    noun: Noun
    motion: str | None = None
    relation: str | None = None
    reference: Noun | None = None
    number: int = 1


def wording(meaning: Meaning, variant: int = 0) -> str:
    """The sentence for `meaning`; `variant` picks among the ways to say it."""
    plural = meaning.number != 1
    words = [_article(meaning.number, variant), _noun_words(meaning.noun, plural)]
    if meaning.motion is not None:
        participle, singular, several = _MOTION_WORDS[meaning.motion]
        words.append(participle if variant % 2 == 0 else f"that {several if plural else singular}")
    if meaning.relation is not None and meaning.reference is not None:
        options = _RELATION_WORDS[meaning.relation]
        words += [options[variant % len(options)], "the", _noun_words(meaning.reference, False)]
    return " ".join(words)


def _article(number: int, variant: int) -> str:
    if number == 1:
        return "the"
    if number == 0:
        return "all" if variant // 2 % 2 == 0 else "all the"
    if number == 2 and variant // 2 % 2:
        return "both"
    return f"the {_NUMBERS[number]}"


def _noun_words(noun: Noun, plural: bool) -> str:
    head = noun.shape or "shape"
    if plural:
        head += "es" if head.endswith("s") else "s"
    return " ".join([*(getattr(noun, name) for name in noun.named() if name != "shape"), head])


def vocabulary() -> tuple[str, ...]:
    """Every word that a sentence can hold, sorted: what a tokeniser for this dataset has to know."""
    words: set[str] = set()
    nouns = [Noun(**{name: value}) for name in ATTRIBUTES for value in EVERYTHING.values(name)] + [Noun()]
    for variant in range(4):
        for noun in nouns:
            for number in (0, 1, *_NUMBERS):
                words.update(wording(Meaning(noun, number=number), variant).split())
        for motion in MOTIONS:
            for number in (1, 2):
                words.update(wording(Meaning(Noun(), motion, number=number), variant).split())
        for relation in RELATIONS:
            sentence = wording(Meaning(Noun(), relation=relation, reference=Noun()), variant)
            words.update(sentence.split())
    return tuple(sorted(words))


def evaluate(meaning: Meaning, facts: Facts) -> frozenset[int] | None:
    """Ids of the objects that the sentence names, or None where that is unclear.

    A number that does not fit ("the two circles" where there are three) and a reference that is not exactly
    one object make the sentence unclear; no object at all is an answer, the empty set.
    """
    reference = None
    if meaning.reference is not None:
        found = _matching(meaning.reference, facts)
        if found is None or len(found) != 1:
            return None
        reference = found[0]
    named = []
    for i, look in enumerate(facts.looks):
        truth = matches(meaning.noun, look)
        if truth is not False and meaning.motion is not None:
            truth = _both(truth, _shows(facts.motions[i], meaning.motion))
        if truth is not False and meaning.relation is not None and reference is not None:
            held = False if i == reference else facts.holds(meaning.relation, i, reference)
            truth = _both(truth, held)
        if truth is None:
            return None
        if truth:
            named.append(i)
    if named and not _fits(len(named), meaning.number):
        return None
    return frozenset(named)


def _fits(count: int, number: int) -> bool:
    return count >= 2 if number == 0 else count == number


def matches(noun: Noun, look: Look) -> bool | None:
    """Whether an object with `look` has all attributes that `noun` names; None where a size is unclear."""
    clear = True
    for name in ("shape", "colour", "texture"):
        wanted = getattr(noun, name)
        if wanted is not None and wanted != getattr(look, name):
            return False
    if noun.size is not None:
        clear = look.size is not None
        if clear and noun.size != look.size:
            return False
    return True if clear else None


def _matching(noun: Noun, facts: Facts) -> list[int] | None:
    truths = [matches(noun, look) for look in facts.looks]
    return None if None in truths else [i for i, truth in enumerate(truths) if truth]


def _shows(motion: str, wanted: str) -> bool | None:
    if motion == wanted:
        return True
    return None if confusable(wanted, motion) else False


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def descriptions(facts: Facts, target: int) -> Iterator[Meaning]:
    """Meanings that name object `target` alone: by attributes, then with its motion, then by a relation."""
    look = facts.looks[target]
    subsets = [
        names
        for count in range(1, len(ATTRIBUTES) + 1)
        for names in combinations(ATTRIBUTES, count)
        if look.size is not None or "size" not in names
    ]
    wanted = frozenset([target])
    nouns = [Noun.of(look, names) for names in subsets]
    for motion in (None, facts.motions[target]):
        for noun in nouns:
            meaning = Meaning(noun, motion)
            if evaluate(meaning, facts) == wanted:
                yield meaning
    for other, other_look in enumerate(facts.looks):
        full = Noun.of(other_look, tuple(name for name in ATTRIBUTES if getattr(other_look, name)))
        if other == target or _matching(full, facts) != [other]:
            continue
        for relation in RELATIONS:
            if not facts.holds(relation, target, other):
                continue
            for noun in nouns:
                meaning = Meaning(noun, relation=relation, reference=full)
                if evaluate(meaning, facts) == wanted:
                    yield meaning


def variations(meaning: Meaning, words: Vocabulary) -> Iterator[Meaning]:
    """Meanings in `words` that differ from `meaning` in a named attribute, the motion or the relation."""
    for name in meaning.noun.named():
        for value in words.values(name):
            if value != getattr(meaning.noun, name):
                yield replace(meaning, noun=replace(meaning.noun, **{name: value}))
    if meaning.motion is not None:
        for motion in words.motions:
            if motion != meaning.motion:
                yield replace(meaning, motion=motion)
    if meaning.relation is not None:
        for relation in RELATIONS:
            if relation != meaning.relation:
                yield replace(meaning, relation=relation)
