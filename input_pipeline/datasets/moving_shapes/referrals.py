"""What else can be said of a scene: many sentences for one clip, so that a training clip has many answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws
from rvseg_jax.input_pipeline.datasets.moving_shapes.facts import RELATIONS, Facts
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import Meaning, Noun, evaluate, variations, wording
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import ATTRIBUTES, Vocabulary

PER_KIND = 3  # sentences of one kind for one object, at most
# How often each group comes in training. The clip was composed with look-alikes for its own two sentences.
# "All shapes" tells what an object is without any word to understand.
OWN, SINGLE, SEVERAL, ALL, ABSENT = 0.40, 0.30, 0.06, 0.16, 0.08

Found = tuple[Meaning, frozenset[int]]


@dataclass(frozen=True)
class Referral:
    """A sentence, the ids of the objects that it names, and how often to draw it; the weights of a clip add to 1."""

    text: str
    ids: tuple[int, ...]
    weight: float


def referrals(
    facts: Facts, own: Sequence[tuple[str, tuple[int, ...]]], words: Vocabulary, draws: Draws
) -> list[Referral]:
    """The clip's own sentences first, then others: of each object, of several, of all, and some that name nothing.

    Every sentence is clear of every object.
    """
    singles = [
        found
        for target in range(len(facts.looks))
        for kind in (by_attributes, _by_motion, by_relation)
        for found in _some(kind(facts, target, draws), facts, [target])
    ]
    several = _some(_of_several(facts, draws), facts)[:1]
    every = [(Meaning(Noun(), number=0), frozenset(range(len(facts.looks))))]
    absent: list[Found] = []
    for meaning, _ in draws.shuffled(singles):
        changes = [change for change in variations(meaning, words) if evaluate(change, facts) == frozenset()]
        if changes and len(absent) < PER_KIND:
            absent.append((draws.choice(changes), frozenset()))
    groups = [(list(own), OWN)]
    for group, weight in ((singles, SINGLE), (several, SEVERAL), (every, ALL), (absent, ABSENT)):
        groups.append(([(wording(meaning, draws.below(4)), tuple(sorted(ids))) for meaning, ids in group], weight))
    total = sum(weight for group, weight in groups if group)
    return [Referral(text, ids, weight / total / len(group)) for group, weight in groups for text, ids in group]


def _some(meanings: Iterator[Meaning], facts: Facts, target: Sequence[int] | None = None) -> list[Found]:
    """The first meanings that name `target`, or any two objects and more."""
    fits: Callable[[frozenset[int] | None], bool] = (
        (lambda ids: ids is not None and len(ids) > 1) if target is None else (lambda ids: ids == frozenset(target))
    )
    found = ((meaning, evaluate(meaning, facts)) for meaning in meanings)
    return [(meaning, ids) for meaning, ids in islice((pair for pair in found if fits(pair[1])), PER_KIND) if ids]


def _nouns(facts: Facts, i: int, least: int, most: int) -> list[Noun]:
    """Nouns that name from `least` to `most` attributes of object `i`."""
    look = facts.looks[i]
    named = [name for name in ATTRIBUTES if getattr(look, name) is not None]
    return [Noun.of(look, names) for count in range(least, most + 1) for names in combinations(named, count)]


def by_attributes(facts: Facts, target: int, draws: Draws) -> Iterator[Meaning]:
    """Meanings of one to three attributes of an object, in random order; others may have them too."""
    for noun in draws.shuffled(_nouns(facts, target, 1, 3)):
        yield Meaning(noun)


def _by_motion(facts: Facts, target: int, draws: Draws) -> Iterator[Meaning]:
    """By a motion where the noun alone does not do."""
    for noun in draws.shuffled(_nouns(facts, target, 0, 2)):
        if evaluate(Meaning(noun), facts) != frozenset([target]):
            yield Meaning(noun, facts.motions[target])


def by_relation(facts: Facts, target: int, draws: Draws) -> Iterator[Meaning]:
    """Meanings of an object by its relation to another one, where the noun alone does not do, in random order."""
    nouns = [noun for noun in _nouns(facts, target, 0, 2) if evaluate(Meaning(noun), facts) != frozenset([target])]
    sides = [
        (relation, other)
        for other in range(len(facts.looks))
        for relation in RELATIONS
        if other != target and facts.holds(relation, target, other)
    ]
    for relation, other in draws.shuffled(sides):
        references = [
            noun for noun in _nouns(facts, other, 1, 4) if evaluate(Meaning(noun), facts) == frozenset([other])
        ]
        if nouns and references:
            # The shortest names of the other object, or nearly.
            reference = references[draws.below(min(len(references), 3))]
            for noun in draws.shuffled(nouns):
                yield Meaning(noun, relation=relation, reference=reference)


def _of_several(facts: Facts, draws: Draws) -> Iterator[Meaning]:
    nouns = [noun for i in range(len(facts.looks)) for noun in _nouns(facts, i, 1, 2)]
    for noun in draws.shuffled(nouns):
        for number in (0, 2, 3) if draws.chance(50) else (2, 3):
            yield Meaning(noun, number=number)
