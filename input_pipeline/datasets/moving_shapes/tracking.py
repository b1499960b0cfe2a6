"""Clips for trackers: objects that travel far, pass behind each other, vanish, and cross their look-alikes."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import motion, render
from rvseg_jax.input_pipeline.datasets.moving_shapes.draws import Draws, cosine, sine
from rvseg_jax.input_pipeline.datasets.moving_shapes.plans import SOLID
from rvseg_jax.input_pipeline.datasets.moving_shapes.scene import (
    COLOURS,
    SHAPES,
    SUBPIXEL,
    TEXTURES,
    Look,
    Scene,
    ShapeObject,
)
from rvseg_jax.input_pipeline.sources import TrackingSample

EVENTS = ("partial", "full", "crossing")
SPLITS = {"train": 5, "valid": 6, "held_out": 7}
HELD_OUT_LENGTH = 128
_ATTEMPTS = 2_000  # scenes tried for one clip; in 600 clips none took more than 130

# Thousandths of the image's short side.
RADIUS = (126, 165)
WIDE_RADIUS = (205, 225)  # of what hides another object entirely
TRAVEL = (500, 1_100)  # way of an object over the clip, reflected at the border
# Distance of two centres where they meet, in hundredths of the sum of their radii.
_MEETING = {"partial": (30, 65), "full": (0, 8), "crossing": (25, 60)}
# Share of an object that shows: of every object in the first frame, and the least of the one that is covered.
_SEEN_AT_START = 0.7
_COVERED = {"partial": (0.15, 0.75), "full": (0.0, 0.0), "crossing": (0.1, 0.8)}
_MOST_HIDDEN = 8  # frames


@dataclass(frozen=True)
class TrackingShapesConfig:
    """What the clips are like.

    Attributes:
      size: (H, W) in pixels, at least 96 a side.
      frames: frames a clip, at least 2; events need about 8.
      objects: least and most objects of a clip, the two that meet among them.
      pan: share of clips whose background moves, 0..1.
      seed: base seed; the splits are disjoint streams of it.
      split: "train", "valid" or "held_out" (128 clips, the events in turn).
      length: clips an epoch of "train" and "valid"; any index may be asked for.
    """

    size: tuple[int, int] = (128, 128)
    frames: int = 24
    objects: tuple[int, int] = (2, 4)
    pan: float = 0.5
    seed: int = 0
    split: Literal["train", "valid", "held_out"] = "train"
    length: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.size) < 96:
            raise ValueError(f"size {self.size} leaves no room to move: give at least 96 pixels a side")
        if self.frames < 8:
            raise ValueError(f"{self.frames} frames are too few for two objects to meet and part: give at least 8")
        low, high = self.objects
        if not 2 <= low <= high <= 5:
            raise ValueError(f"objects {self.objects}: give a range within 2 to 5")
        if not 0 <= self.pan <= 1:
            raise ValueError(f"pan {self.pan} is a share from 0 to 1")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}: choose from {', '.join(SPLITS)}")
        if self.seed < 0 or self.length < 1:
            raise ValueError(f"seed {self.seed} must not be negative and length {self.length} must be positive")


class TrackingShapes:
    """A source of clips: `TrackingShapes(config)[index]`, the same bytes for an index on every machine.

    Object 1 of a clip is the one to which the event happens: it is covered in part ("partial"), vanishes behind
    object 2 and comes back ("full"), or crosses object 2, which looks the same ("crossing").
    """

    def __init__(self, config: TrackingShapesConfig | None = None) -> None:
        self.config = config or TrackingShapesConfig()

    def __len__(self) -> int:
        return HELD_OUT_LENGTH if self.config.split == "held_out" else self.config.length

    def __repr__(self) -> str:
        return f"tracking_shapes/{self.config.split} (seed {self.config.seed})"

    def __getitem__(self, index: int) -> TrackingSample:
        """Clip `index`.

        Raises:
          IndexError: for a negative index, or one beyond the end of the held-out split.
        """
        index, held_out = int(index), self.config.split == "held_out"
        if index < 0 or (held_out and index >= len(self)):
            raise IndexError(f"{self!r} has no sample {index}")
        stream = SPLITS[self.config.split]
        for attempt in range(_ATTEMPTS):
            draws = Draws(self.config.seed, stream, index, attempt)
            event = EVENTS[index % len(EVENTS)] if held_out else draws.choice(EVENTS)
            scene = _scene(event, self.config, draws)
            stamps = [render.stamp(item, scene.size) for item in scene.objects]
            amodal = render.regions(stamps, scene.frames, scene.size)
            visible = render.visible_regions(stamps, amodal, scene.front_to_back())
            if _happens(event, render.areas(visible) / render.areas(amodal)):
                return TrackingSample(
                    frames=render.paint(scene, stamps, draws),
                    masks=visible,
                    ids=tuple(range(1, len(visible) + 1)),
                    video=f"{self.config.split}_{index:06d}",
                    frame_names=tuple(f"{t:05d}" for t in range(scene.frames)),
                    kind=event,
                )
        raise RuntimeError(f"no scene with {event!r} fits {self.config.size} at index {index}: allow fewer objects")


def tracking_held_out(config: TrackingShapesConfig | None = None) -> TrackingShapes:
    """The 128 held-out clips of a config."""
    return TrackingShapes(replace(config or TrackingShapesConfig(), split="held_out"))


def tracking_list_hash(source: TrackingShapes, count: int | None = None) -> str:
    """SHA-256 of the frames and masks of the first `count` clips, or of all; equal hashes mean equal clips."""
    digest = hashlib.sha256()
    for index in range(len(source) if count is None else count):
        clip = source[index]
        digest.update(clip.frames.tobytes())
        digest.update(clip.masks.tobytes())
    return digest.hexdigest()


def _happens(event: str, shown: np.ndarray) -> bool:
    """Whether the event is to be seen in shares [N, T] of the objects that show."""
    if shown[:, 0].min() < _SEEN_AT_START:
        return False
    covered = shown[:2] if event == "crossing" else shown[:1]
    low, high = _COVERED[event]
    return bool(low <= covered.min() <= high and (shown == 0).sum(axis=1).max() <= _MOST_HIDDEN)


def _scene(event: str, config: TrackingShapesConfig, draws: Draws) -> Scene:
    """Two objects that meet in the middle third of the clip, and others that go their own ways."""
    unit = min(config.size) * SUBPIXEL
    count = draws.between(*config.objects)
    meeting = draws.between(config.frames // 3, 2 * config.frames // 3)
    looks = [_look(draws) for _ in range(count)]
    radii = [draws.between(*RADIUS) * unit // 1000 for _ in range(count)]
    depths = draws.shuffled(range(count))
    if event == "crossing":
        looks[1] = looks[0]
    else:
        depths[0], depths[1] = max(depths[:2]), min(depths[:2])
    if event == "full":
        looks[1] = replace(looks[1], shape=draws.choice(SOLID[:2]))
        radii[0], radii[1] = RADIUS[0] * unit // 1000 + 1, draws.between(*WIDE_RADIUS) * unit // 1000
    places = [_place(radius, config.size, draws) for radius in radii]
    angle, distance = draws.below(1024), draws.between(*_MEETING[event]) * (radii[0] + radii[1]) // 100
    places[1] = places[0] + np.array([int(cosine(angle)), int(sine(angle))]) * distance // (1 << 15)
    tints = [tuple(min(max(part + draws.between(-14, 14), 0), 250) for part in COLOURS[look.colour]) for look in looks]
    tilts = [draws.between(0, 1023) for _ in looks]
    if event == "crossing":
        tints[1], tilts[1] = tints[0], tilts[0]
    tracks = [_track(place, radius, meeting, config, draws) for place, radius in zip(places, radii, strict=True)]
    objects = tuple(
        ShapeObject(look, "still", track, np.full(config.frames, radius, np.int64), tilt, tint, depth)
        for look, track, radius, tilt, tint, depth in zip(looks, tracks, radii, tilts, tints, depths, strict=True)
    )
    camera = motion.draw_camera(draws, config.frames, min(config.size), round(100 * config.pan))
    return Scene(config.size, objects, camera)


def _look(draws: Draws) -> Look:
    return Look(draws.choice(SHAPES), draws.choice(tuple(COLOURS)), draws.choice(TEXTURES), "large")


def _bounds(radius: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest x, y of a centre whose object lies inside the image."""
    reach = radius + SUBPIXEL
    return np.array([reach, reach]), np.array([size[1], size[0]]) * SUBPIXEL - reach


def _place(radius: int, size: tuple[int, int], draws: Draws) -> np.ndarray:
    low, high = _bounds(radius, size)
    return np.array([draws.between(int(a), int(b)) for a, b in zip(low, high, strict=True)])


def _track(place: np.ndarray, radius: int, meeting: int, config: TrackingShapesConfig, draws: Draws) -> np.ndarray:
    """int64 [T, 2]: a straight way through `place` at frame `meeting`, thrown back by the image's border."""
    angle, travel = draws.below(1024), draws.between(*TRAVEL) * min(config.size) * SUBPIXEL // 1000
    way = np.array([int(cosine(angle)), int(sine(angle))]) * travel >> 15
    steps = np.arange(config.frames, dtype=np.int64)[:, None] - meeting
    low, high = _bounds(radius, config.size)
    along = (place + steps * way // (config.frames - 1) - low) % (2 * (high - low))
    return low + np.minimum(along, 2 * (high - low) - along)
