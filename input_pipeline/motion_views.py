"""GeoMotion's augmentation of training clips: three views, of which one shows a still world.

Source: GeoMotion core/dataset/gotmoving_aug.py and core/dataset/dynamic_stereo.py.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rvseg_jax.input_pipeline.motion_videos import MotionSample

STANDARD, SEMANTIC, STOP = "standard", "semantic", "stop"
SHARES = {STANDARD: 0.5, SEMANTIC: 0.35, STOP: 0.15}

_EDGE = 5  # pixels of the border whose mean fills what moves into the frame
_ZOOM, _DRIFT = 0.08, 0.08
_REACH = 0.1  # of the crop's width, by which the still view moves
_SOLARISED = 128


def centre_square(sample: MotionSample) -> MotionSample:
    """The square in the middle of the frames, as wide as their short side."""
    height, width = sample.frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    window = np.s_[:, top : top + side, left : left + side]
    return _changed(sample, sample.frames[window], window)


def mirrored(sample: MotionSample) -> MotionSample:
    """The clip, left and right exchanged."""
    window = np.s_[:, :, ::-1]
    return _changed(sample, sample.frames[window], window)


def _changed(sample: MotionSample, frames: np.ndarray, window: tuple[slice, ...]) -> MotionSample:
    valid = None if sample.valid is None else sample.valid[window]
    return replace(sample, frames=frames, masks=sample.masks[window], valid=valid)


def tri_view(sample: MotionSample, rng: np.random.Generator) -> MotionSample:
    """One of the three views, mirrored as often as not, as a square."""
    mirror = rng.random() < 0.5
    view = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if view == STANDARD:
        sample = _standard(sample, rng)
    elif view == SEMANTIC:
        sample = _semantic(sample, rng)
    else:
        sample = stopped(sample, rng)
    return centre_square(mirrored(sample) if mirror else sample)


def jittered(sample: MotionSample, rng: np.random.Generator) -> MotionSample:
    """The square in the middle, with brightness, contrast and saturation of three clips in ten changed a little."""
    sample = centre_square(sample)
    if rng.random() >= 0.3:
        return sample
    brightness, contrast, saturation = rng.uniform(0.8, 1.2, 3)
    return _painted(sample, brightness, contrast, saturation)


def stopped(sample: MotionSample, rng: np.random.Generator) -> MotionSample:
    """The middle frame under a camera that shifts, zooms and changes exposure: nothing moves by itself."""
    count, middle = len(sample), Image.fromarray(sample.frames[len(sample) // 2])
    reach = int(min(middle.size) * _REACH)
    columns = smooth_shift(reach, count) * int(rng.choice((-1, 1)))
    rows = smooth_shift(round(reach / 2), count) * int(rng.choice((-1, 1)))
    fill = _edge_mean(sample.frames[count // 2])
    frames = []
    for t in range(count):
        scale = 1 + _ZOOM * math.sin(2 * math.pi * t / max(count - 1, 1))
        moved = _shifted(middle, int(columns[t]), int(rows[t]), scale, fill)
        light = 1 + _DRIFT * math.sin(2 * math.pi * t / (0.8 * count))
        frames.append(np.asarray(ImageEnhance.Brightness(moved).enhance(light)))
    still = np.zeros_like(sample.masks)
    return replace(sample, frames=np.stack(frames), masks=still, valid=None, known=None)


def smooth_shift(total: int, count: int) -> np.ndarray:
    """int64 [count] from 0 to `total`: slow at both ends, a pixel a step at least where the way is long enough."""
    if count < 2:
        return np.zeros(count, np.int64)
    least = min(1, total // (count - 1))
    weight = np.cumsum(np.hanning(count - 1) + 1e-3)
    rest = np.rint((total - least * (count - 1)) * weight / weight[-1]).astype(np.int64)
    return np.concatenate([[0], rest + least * np.arange(1, count)])


def _shifted(image: Image.Image, columns: int, rows: int, scale: float, fill: tuple[int, int, int]) -> Image.Image:
    """An image that is scaled about its middle and moved by whole pixels."""
    x, y = image.width / 2, image.height / 2
    inverse = (1 / scale, 0, x - (x + columns) / scale, 0, 1 / scale, y - (y + rows) / scale)
    return image.transform(
        image.size, Image.Transform.AFFINE, inverse, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )


def _edge_mean(frame: np.ndarray) -> tuple[int, int, int]:
    bands: Sequence[np.ndarray] = (frame[:_EDGE], frame[-_EDGE:], frame[:, :_EDGE], frame[:, -_EDGE:])
    red, green, blue = np.mean([band.mean(axis=(0, 1)) for band in bands], axis=0).astype(int).tolist()
    return red, green, blue


def _standard(sample: MotionSample, rng: np.random.Generator) -> MotionSample:
    if rng.random() >= 0.2:
        return sample
    brightness, contrast = rng.uniform(0.9, 1.1, 2)
    return _painted(sample, brightness, contrast)


def _semantic(sample: MotionSample, rng: np.random.Generator) -> MotionSample:
    brightness, contrast = rng.uniform(0.5, 1.5, 2)
    saturation, hue = rng.uniform(0, 2), rng.uniform(-0.1, 0.1)
    blur = rng.uniform(1, 3) if rng.random() < 0.4 else 0.0
    return _painted(sample, brightness, contrast, saturation, hue, blur, solarise=rng.random() < 0.2)


def _painted(
    sample: MotionSample,
    brightness: float,
    contrast: float,
    saturation: float = 1.0,
    hue: float = 0.0,
    blur: float = 0.0,
    *,
    solarise: bool = False,
) -> MotionSample:
    """The clip with the same change of colour in all its frames."""
    frames = []
    for frame in sample.frames:
        image = ImageEnhance.Brightness(Image.fromarray(frame)).enhance(brightness)
        image = ImageEnhance.Contrast(image).enhance(contrast)
        if saturation != 1:
            image = ImageEnhance.Color(image).enhance(saturation)
        if hue:
            image = _turned(image, hue)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur))
        if solarise:
            image = ImageOps.solarize(image, threshold=_SOLARISED)
        frames.append(np.asarray(image))
    return replace(sample, frames=np.stack(frames))


def _turned(image: Image.Image, hue: float) -> Image.Image:
    """An image with its hue turned by a share of the full circle, in 256 steps."""
    angle, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(angle).astype(np.int64) + int(hue * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
