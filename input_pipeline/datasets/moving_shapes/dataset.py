"""The dataset: index to sample, the same bytes for the same index on every machine."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import motion, render, scene
from rvseg_jax.input_pipeline.datasets.moving_shapes.compose import Composition, Frame, compose
from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import wording
from rvseg_jax.input_pipeline.datasets.moving_shapes.referrals import Referral, referrals
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import Vocabulary
from rvseg_jax.input_pipeline.sources import ReferringSample

KINDS = ("attribute", "relation", "motion", "several")
SPLITS = {"train": 1, "valid": 2, "held_out": 3, "held_out_absent": 4}
HELD_OUT_LENGTH = 256
HELD_OUT_ABSENT_LENGTH = 128
_REFERRALS = 1 << 20  # keeps their draws apart from the attempts at composing the clip


@dataclass(frozen=True)
class KindWeights:
    """How often each kind of sentence comes, up to a common factor; 0 leaves it out.

    Attributes:
      attribute: "the small red circle".
      relation: "the square to the left of the blue star".
      motion: "the green square moving up", beside one that moves otherwise.
      several: "the two red shapes".
    """

    attribute: float = 0.3
    relation: float = 0.25
    motion: float = 0.3
    several: float = 0.15

    def positive(self) -> dict[str, float]:
        """The kinds that are in use, with their weights."""
        return {kind: getattr(self, kind) for kind in KINDS if getattr(self, kind) > 0}


@dataclass(frozen=True)
class MovingShapesConfig:
    """What the clips are like.

    Attributes:
      size: (H, W) in pixels; at least 48 on each side.
      frames: frames a clip; at least 5 where motion is named, 1 gives still images.
      objects: least and most objects of a clip.
      kinds: weight of each kind of sentence; the held-out splits take those in use in turn.
      absent: share of sentences that name nothing in the clip, for the splits "train" and "valid".
      pan: share of clips whose camera pans, 0..1.
      shapes, colours, textures, motions: the values in use.
      with_flow: whether samples hold optical flow, which costs about as much as all the rest.
      seed: base seed; the splits are disjoint streams of it.
      split: "train", "valid" (to choose checkpoints by), "held_out" (256 clips, the kinds in turn, at least 3
        objects, each sentence with a target) or "held_out_absent" (128 clips whose sentence names nothing).
      length: samples an epoch of "train" and "valid"; any index may be asked for.
    """

    size: tuple[int, int] = (96, 96)
    frames: int = 9
    objects: tuple[int, int] = (3, 5)
    kinds: KindWeights = KindWeights()
    absent: float = 0.12
    pan: float = 0.5
    shapes: tuple[str, ...] = scene.SHAPES
    colours: tuple[str, ...] = tuple(scene.COLOURS)
    textures: tuple[str, ...] = scene.TEXTURES
    motions: tuple[str, ...] = motion.MOTIONS
    with_flow: bool = False
    seed: int = 0
    split: Literal["train", "valid", "held_out", "held_out_absent"] = "train"
    length: int = 1_000_000

    def __post_init__(self) -> None:
        known = {
            "kinds": (tuple(self.kinds.positive()), KINDS),
            "shapes": (self.shapes, scene.SHAPES),
            "colours": (self.colours, tuple(scene.COLOURS)),
            "textures": (self.textures, scene.TEXTURES),
            "motions": (self.motions, motion.MOTIONS),
            "split": ((self.split,), tuple(SPLITS)),
        }
        for name, (values, choices) in known.items():
            unknown = [value for value in values if value not in choices]
            if unknown or not values:
                raise ValueError(f"{name}: {unknown or 'nothing'} given, choose from {', '.join(choices)}")
        if min(self.size) < 48:
            raise ValueError(f"size {self.size} is too small to tell shapes apart: give at least 48 pixels a side")
        low, high = self.objects
        if not 3 <= low <= high <= 6:
            raise ValueError(f"objects {self.objects}: give a range within 3 to 6, target, look-alike and others")
        if self.frames < motion.MIN_FRAMES and (self.kinds.motion > 0 or self.frames < 1):
            raise ValueError(
                f"{self.frames} frames do not show a motion: give at least {motion.MIN_FRAMES}, "
                "or set the weight of kind 'motion' to 0"
            )
        if self.kinds.motion > 0 and all(
            one == other or motion.confusable(one, other) for one in self.motions for other in self.motions
        ):
            raise ValueError(f"motions {self.motions} hold no two that can be told apart: add one, or weigh motion 0")
        if not (0 <= self.absent <= 1 and 0 <= self.pan <= 1):
            raise ValueError(f"absent {self.absent} and pan {self.pan} are shares from 0 to 1")
        if self.seed < 0 or self.length < 1:
            raise ValueError(f"seed {self.seed} must not be negative and length {self.length} must be positive")


@dataclass(frozen=True, eq=False)
class MovingShapesSample(ReferringSample):
    """A clip, a sentence and all that is true of them; the fields of `ReferringSample` and these.

    Attributes:
      index: its number in the split.
      split: the split.
      kind: "attribute", "relation", "motion", "several", or "absent" for a sentence that names nothing.
      base_kind: the kind of sentence; differs from `kind` for an absent target only.
      target_ids: ids of the objects that the sentence names, rising.
      other_text: a second sentence, true of other objects of this clip; with an absent target, one that is
        true.
      other_ids: ids of the objects that `other_text` names.
      object_masks: bool [N, T, H, W], the visible region of each object.
      amodal_masks: bool [N, T, H, W], the whole region, hidden parts included.
      boxes: int32 [N, T, 4], box of the visible region as x0, y0, x1, y1 in pixels, x1 and y1 behind
        the last pixel.
      depth: int32 [N], place in the depth order, 0 nearest.
      camera: int32 [T, 2], camera position x, y in pixels against frame 0.
      flow: float32 [T-1, H, W, 2], displacement x, y in pixels from a frame to the next; None unless asked
        for.
      composition: the scene with its meanings and tracks.
      seed: of the dataset.
      words: of the dataset's sentences.
    """

    index: int
    split: str
    base_kind: str
    target_ids: tuple[int, ...]
    other_text: str
    other_ids: tuple[int, ...]
    object_masks: np.ndarray
    amodal_masks: np.ndarray
    boxes: np.ndarray
    depth: np.ndarray
    camera: np.ndarray
    flow: np.ndarray | None
    composition: Composition
    seed: int
    words: Vocabulary

    @property
    def other_masks(self) -> np.ndarray:
        """bool [T, H, W], union of the objects that `other_text` names."""
        return self.masks_of(self.other_ids)

    def masks_of(self, ids: Sequence[int]) -> np.ndarray:
        """bool [T, H, W], union of the visible regions of some objects."""
        return _union(self.object_masks, ids)

    def referrals(self) -> list[Referral]:
        """`text`, `other_text` and more sentences of this clip, with what each names and how often to draw it."""
        own = [(self.text, self.target_ids), (self.other_text, self.other_ids)]
        draws = Draws(self.seed, SPLITS[self.split], self.index, _REFERRALS)
        return referrals(self.composition.facts, own, self.words, draws)


def _union(object_masks: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    return np.logical_or.reduce(object_masks[list(ids)], axis=0)


class MovingShapes:
    """A source of clips: `MovingShapes(config)[index]`.

    An index is all that a sample depends on, besides the config. The training splits are endless; their
    `len` is that of an epoch.
    """

    def __init__(self, config: MovingShapesConfig | None = None) -> None:
        self.config = config or MovingShapesConfig()
        words = Vocabulary(self.config.shapes, self.config.colours, self.config.textures, self._motions())
        self._frame = Frame(self.config.size, self.config.frames, words, round(100 * self.config.pan))

    def _motions(self) -> Sequence[str]:
        # Too few frames do not tell motions apart; such clips are still.
        return self.config.motions if self.config.frames >= motion.MIN_FRAMES else ("still",)

    def __len__(self) -> int:
        fixed = {"held_out": HELD_OUT_LENGTH, "held_out_absent": HELD_OUT_ABSENT_LENGTH}
        return fixed.get(self.config.split, self.config.length)

    def __repr__(self) -> str:
        return f"moving_shapes/{self.config.split} (seed {self.config.seed})"

    def __getitem__(self, index: int) -> MovingShapesSample:
        """Sample `index`.

        Raises:
          IndexError: for a negative index, or one beyond the end of a held-out split.
        """
        index = int(index)
        held_out = self.config.split.startswith("held_out")
        if index < 0 or (held_out and index >= len(self)):
            raise IndexError(f"{self!r} has no sample {index}")
        draws = Draws(self.config.seed, SPLITS[self.config.split], index)
        kind, absent = self._kind(index, draws)
        count = draws.between(*self.config.objects)
        found, draws = compose(kind, absent, count, self._frame, self.config.seed, SPLITS[self.config.split], index)
        return self._sample(index, absent, found, draws)

    def _kind(self, index: int, draws: Draws) -> tuple[str, bool]:
        kinds = tuple(self.config.kinds.positive())
        if self.config.split.startswith("held_out"):
            return kinds[index % len(kinds)], self.config.split == "held_out_absent"
        absent = draws.below(10_000) < round(self.config.absent * 10_000)
        return draws.weighted(self.config.kinds.positive()), absent

    def _sample(self, index: int, absent: bool, found: Composition, draws: Draws) -> MovingShapesSample:
        variant = draws.below(4)
        frames = render.paint(found.scene, found.stamps, draws)
        targets = tuple(sorted(found.targets))
        return MovingShapesSample(
            frames=frames,
            masks=_union(found.visible, targets),
            text=wording(found.meaning, variant),
            video=f"{self.config.split}_{index:06d}",
            expression="0",
            frame_names=tuple(f"{t:05d}" for t in range(self.config.frames)),
            kind="absent" if absent else found.kind,
            index=index,
            split=self.config.split,
            base_kind=found.kind,
            target_ids=targets,
            other_text=wording(found.other, variant),
            other_ids=tuple(sorted(found.others)),
            object_masks=found.visible,
            amodal_masks=found.amodal,
            boxes=render.boxes(found.visible),
            depth=np.array([item.depth for item in found.scene.objects], np.int32),
            camera=found.scene.camera.astype(np.int32),
            flow=render.flow(found.scene, found.visible) if self.config.with_flow else None,
            composition=found,
            seed=self.config.seed,
            words=self._frame.words,
        )


def held_out(config: MovingShapesConfig | None = None, *, absent: bool = False) -> MovingShapes:
    """The held-out clips of a config: 256 whose sentence has a target, or the absent ones, apart."""
    return MovingShapes(replace(config or MovingShapesConfig(), split="held_out_absent" if absent else "held_out"))


def sample_hash(sample: MovingShapesSample) -> str:
    """SHA-256 in hexadecimal digits of a sample's frames, masks and sentences."""
    digest = hashlib.sha256()
    words = [sample.text, sample.kind, sample.other_text, list(sample.target_ids), list(sample.other_ids)]
    digest.update(json.dumps(words).encode())
    for array in (sample.frames, sample.masks, sample.object_masks, sample.boxes):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def list_hash(source: MovingShapes) -> str:
    """SHA-256 of all samples of a split in order; two machines with the same hash score the same clips."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(sample_hash(source[index]).encode())
    return digest.hexdigest()
