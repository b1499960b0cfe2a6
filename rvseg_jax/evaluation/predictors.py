"""Where predictions come from: a system, a function, or a folder that somebody has written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.mask_png import read_mask
from rvseg_jax.input_pipeline.sources import ReferringSample
from rvseg_jax.processing.video import ArrayVideo
from rvseg_jax.systems.base import SegmentOptions, System

MISSING = "missing"


@dataclass(frozen=True)
class Prediction:
    """Masks for one sample.

    Attributes:
      masks: bool [T, H, W].
      status: how the model ended; "missing" where there is no prediction at all.
      missing_frames: names of the frames without a prediction; their masks are empty.
    """

    masks: np.ndarray
    status: str = "ok"
    missing_frames: tuple[str, ...] = ()


# Called with samples of one clip, in the order of the source.
Predict = Callable[[Sequence[ReferringSample]], Sequence[Prediction]]


def from_system(system: System, options: SegmentOptions | None = None) -> Predict:
    """Predictions of a loaded system; the sentences of one call run together on the clip.

    Raises:
      RuntimeError: when called, if the system gives masks for fewer frames than the clip has.
    """
    chosen = options or SegmentOptions()

    def predict(samples: Sequence[ReferringSample]) -> list[Prediction]:
        frames = samples[0].frames
        masks = np.zeros((len(samples), *frames.shape[:3]), bool)
        given = 0
        chunks = system.segment(ArrayVideo(frames), [sample.text for sample in samples], options=chosen)
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                verdicts = end.value
                break
            masks[:, chunk.start : chunk.start + chunk.masks.shape[1]] = chunk.masks
            given += chunk.masks.shape[1]
        if given != len(frames):
            raise RuntimeError(f"system {system.name!r} gave masks for {given} of {len(frames)} frames")
        return [Prediction(own, verdict.status) for own, verdict in zip(masks, verdicts, strict=True)]

    return predict


def from_function(function: Callable[[np.ndarray, Sequence[str]], np.ndarray]) -> Predict:
    """Predictions of a function of frames and sentences.

    Shapes:
      function: (uint8 [T, H, W, 3], N sentences) -> [N, T, H, W], non-zero is foreground.
    """

    def predict(samples: Sequence[ReferringSample]) -> list[Prediction]:
        masks = np.asarray(function(samples[0].frames, [sample.text for sample in samples]))
        expected = (len(samples), *samples[0].frames.shape[:3])
        if masks.shape != expected:
            raise ValueError(f"the function gave masks of shape {masks.shape} instead of {expected}")
        return [Prediction(own != 0) for own in masks]

    return predict


def from_folder(folder: Path) -> Predict:
    """Predictions in files `<video>/<expression>/<frame>.png`, non-zero is foreground (the layout of MeViS).

    A frame without a file counts as empty and is listed; a sentence without any file is "missing".

    Raises:
      InputError: if there is no such folder; when called, for a file of another size or that is no image.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder of predictions at {folder}")

    def predict(samples: Sequence[ReferringSample]) -> list[Prediction]:
        return [_read_prediction(folder, sample) for sample in samples]

    return predict


def _read_prediction(folder: Path, sample: ReferringSample) -> Prediction:
    masks = np.zeros(sample.masks.shape, bool)
    missing = []
    for mask, name in zip(masks, sample.frame_names, strict=True):
        path = folder / sample.video / sample.expression / f"{name}.png"
        if not path.is_file():
            missing.append(name)
            continue
        found = read_mask(path)
        if found.shape != mask.shape:
            raise InputError(f"{path} is {found.shape}, but the clip is {mask.shape}: write predictions at its size")
        mask[:] = found
    status = MISSING if len(missing) == len(masks) else "ok"
    return Prediction(masks, status, tuple(missing))
