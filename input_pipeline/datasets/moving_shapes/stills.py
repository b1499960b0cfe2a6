"""Still images with several expressions each, some of which name nothing: index to image, the same on every machine."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import render, scene
from rvseg_jax.input_pipeline.datasets.moving_shapes.compose import TARGET_SEEN, Composition, Frame, compose
from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import Meaning, Noun, evaluate, variations, wording
from rvseg_jax.input_pipeline.datasets.moving_shapes.plans import OPPOSITE
from rvseg_jax.input_pipeline.datasets.moving_shapes.referrals import by_attributes, by_relation
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import Vocabulary
from rvseg_jax.input_pipeline.image_referrals import Box, Expression, ImageArray, ImageReferrals, MaskArray

PRESENT = ("attribute", "relation", "several")
ABSENT = ("near_miss", "wrong_relation", "nothing_like")
KINDS = (*PRESENT, *ABSENT)
SPLITS = {"train": 11, "valid": 12, "held_out": 13}
HELD_OUT_LENGTH = 256
_TRIES = 64  # compositions for one image
_ENOUGH = 4  # meanings of one sort for one object to choose among
# Of expressions that name nothing: one wrong attribute, the wrong side of another object, or nothing like it. The
# shares make words alone tell little about absence.
_ABSENT_WEIGHTS = {"near_miss": 0.29, "wrong_relation": 0.6, "nothing_like": 0.11}

Found = tuple[Meaning, frozenset[int]]


@dataclass(frozen=True)
class StillShapesConfig:
    """What the images are like.

    Attributes:
      size: (H, W) in pixels; at least 48 on each side.
      objects: least and most objects of an image.
      expressions: least and most expressions of an image; the held-out list has `held_out_expressions` of each.
      absent: share of expressions that name nothing, for the splits "train" and "valid"; of the held-out list 3 of 10.
      relation: share of expressions by a relation among those that name one object.
      several: share of expressions that name several objects among those that name any.
      held_out_expressions: of every held-out image.
      seed: base seed; the splits are disjoint streams of it.
      split: "train", "valid" or "held_out" (256 images).
      length: images an epoch of "train" and "valid"; any index may be asked for.
    """

    size: tuple[int, int] = (168, 168)
    objects: tuple[int, int] = (3, 5)
    expressions: tuple[int, int] = (3, 6)
    absent: float = 0.3
    relation: float = 0.4
    several: float = 0.0
    held_out_expressions: int = 5
    seed: int = 0
    split: Literal["train", "valid", "held_out"] = "train"
    length: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.size) < 48:
            raise ValueError(f"size {self.size} is too small to tell shapes apart: give at least 48 pixels a side")
        low, high = self.objects
        if not 3 <= low <= high <= 6:
            raise ValueError(f"objects {self.objects}: give a range within 3 to 6, target, look-alike and others")
        low, high = self.expressions
        if not (1 <= low <= high <= 10 and 2 <= self.held_out_expressions <= 10):
            raise ValueError(f"expressions {self.expressions} and {self.held_out_expressions}: give 1 to 10 an image")
        if not (0 <= self.absent <= 1 and 0 <= self.relation <= 1 and 0 <= self.several <= 1):
            raise ValueError(f"absent {self.absent}, relation {self.relation}, several {self.several} are shares")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: choose from {', '.join(SPLITS)}")
        if self.seed < 0 or self.length < 1:
            raise ValueError(f"seed {self.seed} must not be negative and length {self.length} must be positive")


@dataclass(frozen=True, eq=False)
class StillReferrals(ImageReferrals):
    """An image with its expressions and all that is true of it; the fields of `ImageReferrals` and these.

    Expressions that name an object carry, as `other_text`, one that names another; those that name nothing carry one
    that names something.

    Attributes:
      index: its number in the split.
      object_masks: bool [N, H, W], the visible region of each object.
      targets: ids of the objects that each expression names, rising.
      composition: the scene.
    """

    index: int
    object_masks: np.ndarray
    targets: tuple[tuple[int, ...], ...]
    composition: Composition


class StillShapes:
    """A source of images: `StillShapes(config)[index]`.

    An index is all that an image depends on, besides the config. Words are those of `moving_shapes.vocabulary()`.
    """

    dropped: dict[str, int] = {}
    left_out: tuple[str, ...] = ()

    def __init__(self, config: StillShapesConfig | None = None) -> None:
        self.config = config or StillShapesConfig()
        self._words = Vocabulary(scene.SHAPES, tuple(scene.COLOURS), scene.TEXTURES, ("still",))
        self._frame = Frame(self.config.size, 1, self._words, 0)

    def __len__(self) -> int:
        return HELD_OUT_LENGTH if self.config.split == "held_out" else self.config.length

    def __repr__(self) -> str:
        return f"still_shapes/{self.config.split} (seed {self.config.seed})"

    def expression_counts(self) -> list[int]:
        """Expressions of every image of the held-out list.

        Raises: ValueError for another split, whose images say it themselves.
        """
        if self.config.split != "held_out":
            raise ValueError(f"{self!r} is no list: ask its images")
        return [self.config.held_out_expressions] * len(self)

    def __getitem__(self, index: int) -> StillReferrals:
        """Image `index`.

        Raises:
          IndexError: for a negative index, or one beyond the end of the held-out list.
        """
        index, held_out = int(index), self.config.split == "held_out"
        if index < 0 or (held_out and index >= len(self)):
            raise IndexError(f"{self!r} has no image {index}")
        stream, seed = SPLITS[self.config.split], self.config.seed
        for attempt in range(_TRIES):
            number = index * _TRIES + attempt
            first = Draws(seed, stream, number)
            present, absent = self._counts(index, held_out, first)
            kind = first.choice(("attribute", "relation"))
            found, draws = compose(kind, False, first.between(*self.config.objects), self._frame, seed, stream, number)
            chosen = _Chooser(found, self._words, self.config, draws).choose(present, absent)
            if chosen is not None:
                return self._image(index, found, chosen, draws)
        raise RuntimeError(f"no image with these expressions fits {self.config.size} at index {index}")

    def _counts(self, index: int, held_out: bool, draws: Draws) -> tuple[int, int]:
        """How many expressions name something, and how many nothing."""
        if held_out:
            count = self.config.held_out_expressions
            # In whole numbers: of all expressions up to an image's last, three tenths are absent, rounded down.
            absent = 3 * (index + 1) * count // 10 - 3 * index * count // 10
            return count - absent, absent
        count = draws.between(*self.config.expressions)
        absent = sum(draws.below(10_000) < round(self.config.absent * 10_000) for _ in range(count))
        return count - absent, absent

    def _image(self, index: int, found: Composition, chosen: Sequence["_Chosen"], draws: Draws) -> StillReferrals:
        pixels = render.paint(found.scene, found.stamps, draws)[0]
        masks = found.visible[:, 0]
        corners = render.boxes(masks).tolist()
        boxes: list[Box] = [(float(x0), float(y0), float(x1 - x0), float(y1 - y0)) for x0, y0, x1, y1 in corners]
        name = f"{self.config.split}_{index:06d}"
        expressions = tuple(
            Expression(
                item.text,
                str(key),
                tuple(MaskArray(masks[i]) for i in item.ids),
                tuple(boxes[i] for i in item.ids),
                kind=item.kind,
                other_text=item.other,
            )
            for key, item in enumerate(chosen)
        )
        targets = tuple(item.ids for item in chosen)
        return StillReferrals(
            name, self.config.size, ImageArray(pixels, name), expressions, index, masks, targets, found
        )


@dataclass(frozen=True)
class _Chosen:
    text: str
    kind: str
    ids: tuple[int, ...]
    other: str


class _Chooser:
    """Chooses the expressions of one scene; every one of them is clear of every object."""

    def __init__(self, found: Composition, words: Vocabulary, config: StillShapesConfig, draws: Draws) -> None:
        self._facts, self._words, self._config, self._draws = found.facts, words, config, draws
        seen = render.areas(found.visible[:, 0]) / render.areas(found.amodal[:, 0])
        self._singles: dict[tuple[str, int], list[Found]] = {}
        for i in np.flatnonzero(seen >= TARGET_SEEN).tolist():
            for kind, meanings in (("attribute", by_attributes), ("relation", by_relation)):
                fits = (one for one in meanings(self._facts, i, draws) if evaluate(one, self._facts) == {i})
                self._singles[kind, i] = [(one, frozenset([i])) for one in islice(fits, _ENOUGH)]

    def choose(self, present: int, absent: int) -> list[_Chosen] | None:
        """So many expressions, those of one object together, or None where the scene does not offer them."""
        found: list[tuple[str, str, frozenset[int]]] = []
        texts: set[str] = set()
        for sort, wanted in ((self._present, present), (self._absent, present + absent)):
            for _ in range(8 * wanted):
                one = sort() if len(found) < wanted else None
                if one is not None:
                    text = wording(one[1], self._draws.below(4))
                    if text not in texts:
                        texts.add(text)
                        found.append((text, one[0], one[2]))
            if len(found) < wanted:
                return None
        chosen = []
        for text, kind, ids in found:
            other = self._other(ids)
            if other is None:
                return None
            chosen.append(_Chosen(text, kind, tuple(sorted(ids)), other))
        groups: dict[object, list[_Chosen]] = {}
        for place, item in enumerate(self._draws.shuffled(chosen)):
            groups.setdefault(item.ids or place, []).append(item)
        return [item for group in groups.values() for item in group]

    def _present(self) -> tuple[str, Meaning, frozenset[int]] | None:
        if self._draws.below(10_000) < round(self._config.several * 10_000):
            return self._of_several()
        kind = "relation" if self._draws.below(10_000) < round(self._config.relation * 10_000) else "attribute"
        offered = [pairs for (sort, _), pairs in self._singles.items() if sort == kind and pairs]
        if not offered:
            return None
        return kind, *self._draws.choice(self._draws.choice(offered))

    def _of_several(self) -> tuple[str, Meaning, frozenset[int]] | None:
        look = self._draws.choice(self._facts.looks)
        name = self._draws.choice(("colour", "shape", "texture", "size"))
        if getattr(look, name) is None:
            return None
        meaning = Meaning(Noun(**{name: getattr(look, name)}), number=self._draws.choice((0, 2, 3)))
        ids = evaluate(meaning, self._facts)
        return ("several", meaning, ids) if ids else None

    def _absent(self) -> tuple[str, Meaning, frozenset[int]] | None:
        kind = self._draws.weighted(_ABSENT_WEIGHTS)
        if kind == "nothing_like":
            return self._nothing_like()
        sort = "relation" if kind == "wrong_relation" else "attribute"
        pairs = [pair for (one, _), each in self._singles.items() if one == sort for pair in each]
        if kind == "near_miss":  # one attribute alone would be nothing like anything
            pairs = [pair for pair in pairs if len(pair[0].noun.named()) > 1]
        if not pairs:
            return None
        meaning = self._draws.choice(pairs)[0]
        if kind == "wrong_relation":  # the opposite side, so that no relation is more often wrong than right
            changes = [replace(meaning, relation=OPPOSITE[meaning.relation or ""])]
        else:
            name = self._draws.choice(meaning.noun.named())
            changes = [
                change
                for change in variations(meaning, self._words)
                if getattr(change.noun, name) != getattr(meaning.noun, name)
            ]
        changes = [change for change in changes if evaluate(change, self._facts) == frozenset()]
        return (kind, self._draws.choice(changes), frozenset()) if changes else None

    def _nothing_like(self) -> tuple[str, Meaning, frozenset[int]] | None:
        """An object by its colour, its shape or both, of which none is in the image."""
        named = {}
        for name in self._draws.choice((("colour",), ("shape",), ("colour", "shape"))):
            used = {getattr(look, name) for look in self._facts.looks}
            free = [value for value in self._words.values(name) if value not in used]
            if not free:
                return None
            named[name] = self._draws.choice(free)
        return "nothing_like", Meaning(Noun(**named)), frozenset()

    def _other(self, ids: frozenset[int]) -> str | None:
        """An expression of one object that is none of `ids`."""
        offered = [pairs for (_, i), pairs in self._singles.items() if pairs and i not in ids]
        if not offered:
            return None
        return wording(self._draws.choice(self._draws.choice(offered))[0], self._draws.below(4))


def stills_held_out(config: StillShapesConfig | None = None) -> StillShapes:
    """The 256 held-out images of a config."""
    return StillShapes(replace(config or StillShapesConfig(), split="held_out"))


def stills_list_hash(source: StillShapes, count: int | None = None) -> str:
    """SHA-256 of all that the first `count` images hold, or all; equal hashes mean equal images and expressions."""
    digest = hashlib.sha256()
    for index in range(len(source) if count is None else count):
        item = source[index]
        digest.update(item.image().tobytes())
        digest.update(item.object_masks.tobytes())
        said = [[one.text, one.kind, one.other_text] for one in item.expressions]
        digest.update(json.dumps([said, item.targets]).encode())
    return digest.hexdigest()
