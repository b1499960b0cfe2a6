"""Where predictions come from: a system, a function, or a folder that somebody has written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.davis import read_labels
from rvseg_jax.formats.mask_png import read_mask
from rvseg_jax.input_pipeline.sources import ReferringSample
from rvseg_jax.processing.video import ArrayVideo
from rvseg_jax.systems.base import SegmentOptions, System

MISSING = "missing"
# Of files that are read as scores.
_FULL = 100
_FOREGROUND = 50


@dataclass(frozen=True)
class Prediction:
    """Masks for one sample.

    Attributes:
      masks: bool [T, H, W].
      status: how the model ended; "missing" where there is no prediction at all.
      missing_frames: names of the frames without a prediction; their masks are empty.
      scores: float32 [T, H, W], how sure the model is of foreground, where they were asked for.
    """

    masks: np.ndarray
    status: str = "ok"
    missing_frames: tuple[str, ...] = ()
    scores: np.ndarray | None = None


# Called with samples of one clip, in the order of the source.
Predict = Callable[[Sequence[ReferringSample]], Sequence[Prediction]]


def from_system(system: System, options: SegmentOptions | None = None) -> Predict:
    """Predictions of a loaded system; the sentences of one call run together on the clip.

    Raises:
      InputError: when called, if `options` ask for scores and the system has none.
      RuntimeError: when called, if the system gives masks for fewer frames than the clip has.
    """
    chosen = options or SegmentOptions()

    def predict(samples: Sequence[ReferringSample]) -> list[Prediction]:
        frames = samples[0].frames
        masks = np.zeros((len(samples), *frames.shape[:3]), bool)
        scores = np.zeros(masks.shape, np.float32) if chosen.scores else None
        given = 0
        chunks = system.segment(ArrayVideo(frames), [sample.text for sample in samples], options=chosen)
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                verdicts = end.value
                break
            place = slice(chunk.start, chunk.start + chunk.masks.shape[1])
            masks[:, place] = chunk.masks
            if scores is not None:
                if chunk.scores is None:
                    raise InputError(f"system {system.name!r} gives masks without scores: use a protocol on masks")
                scores[:, place] = chunk.scores
            given += chunk.masks.shape[1]
        if given != len(frames):
            raise RuntimeError(f"system {system.name!r} gave masks for {given} of {len(frames)} frames")
        return [
            Prediction(own, verdict.status, scores=None if scores is None else scores[index])
            for index, (own, verdict) in enumerate(zip(masks, verdicts, strict=True))
        ]

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
    return _from_files(folder, read_mask)


def from_grey_folder(folder: Path) -> Predict:
    """As `from_folder`, with a hundredth of the pixel's value as its score, and foreground from one half on.

    Source: the reading of RGA3's Ref-DAVIS17 post-processing, which writes 100 for foreground.

    Raises:
      InputError: as `from_folder`; when called, also for a file whose values would all be background but are not 0.
    """
    return _from_files(folder, _read_scores)


def _read_scores(path: Path) -> np.ndarray:
    values = read_labels(path)
    if 0 < values.max() < _FOREGROUND:
        raise InputError(f"{path} has no value above {values.max()}; this protocol reads {_FOREGROUND} as foreground")
    return values.astype(np.float32) / _FULL


def _from_files(folder: Path, read: Callable[[Path], np.ndarray]) -> Predict:
    if not folder.is_dir():
        raise InputError(f"there is no folder of predictions at {folder}")

    def predict(samples: Sequence[ReferringSample]) -> list[Prediction]:
        return [_read_prediction(folder, sample, read) for sample in samples]

    return predict


def _read_prediction(folder: Path, sample: ReferringSample, read: Callable[[Path], np.ndarray]) -> Prediction:
    size = sample.frames.shape[1:3]
    missing = []
    found: list[np.ndarray] = []
    for name in sample.frame_names:
        path = folder / sample.video / sample.expression / f"{name}.png"
        if path.is_file():
            found.append(read(path))
        else:
            missing.append(name)
            found.append(np.zeros(size, bool))
        if found[-1].shape != size:
            raise InputError(f"{path} is {found[-1].shape}, but the clip is {size}: write predictions at its size")
    status = MISSING if len(missing) == len(found) else "ok"
    values = np.stack(found)
    if values.dtype == bool:
        return Prediction(values, status, tuple(missing))
    return Prediction(values >= _FOREGROUND / _FULL, status, tuple(missing), values)
