"""Label maps of Ref-DAVIS17's four annotators: merged from predictions, or read from a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import CheckFailed, InputError
from rvseg_jax.evaluation.datasets import DecodedVideos
from rvseg_jax.evaluation.predictors import Predict
from rvseg_jax.formats import ref_davis
from rvseg_jax.formats.davis import read_labels
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.ref_davis import ANNOTATORS

_MERGED_FRAMES = 8  # merged at a time, which bounds the copies of the scores


@dataclass(frozen=True)
class LabelMaps:
    """Label maps of one annotator for one video.

    Attributes:
      labels: uint8 [T, H, W].
      missing: frames without a prediction for at least one object; they are background there.
    """

    labels: np.ndarray
    missing: tuple[str, ...] = ()


# Label maps of a video, given its name and the annotator.
GetLabelMaps = Callable[[str, int], LabelMaps]


def from_predictions(source: DecodedVideos, predict: Predict, folder: Path, *, batch: int) -> GetLabelMaps:
    """Label maps merged from predictions, also written to `<folder>/anno_<annotator>/<video>/<frame>.png`.

    Scores decide where a prediction has them; masks count as scores of 0 and 1, so that the object with the lowest
    number wins where they overlap.

    Args:
      source: sentences of Ref-DAVIS17.
      predict: see `evaluation.predictors`.
      folder: where the label maps are written.
      batch: most sentences that are predicted in one call.
    """
    first = dict(reversed([(video, place) for place, video in enumerate(source.videos())]))

    def label_maps(video: str, annotator: int) -> LabelMaps:
        places = range(first[video] + annotator, first[video] + len(source.clips[video].expressions), ANNOTATORS)
        scores: list[np.ndarray] = []
        missing: set[str] = set()
        for start in range(0, len(places), batch):
            for found in predict([source[place] for place in places[start : start + batch]]):
                scores.append(found.masks.astype(np.float32) if found.scores is None else found.scores)
                missing.update(found.missing_frames)
        names = source.clips[video].frames
        pieces = [slice(start, start + _MERGED_FRAMES) for start in range(0, len(names), _MERGED_FRAMES)]
        merged = [ref_davis.merge_objects(np.stack([score[piece] for score in scores])) for piece in pieces]
        maps = LabelMaps(np.concatenate(merged), tuple(name for name in names if name in missing))
        ref_davis.write_merged(folder, annotator, video, names, maps.labels)
        return maps

    return label_maps


def from_label_maps(folder: Path, source: DecodedVideos) -> GetLabelMaps:
    """Label maps that lie in `<folder>/anno_<annotator>/<video>/<frame>.png`, with `anno_0` to `anno_3`."""

    def label_maps(video: str, annotator: int) -> LabelMaps:
        names = source.clips[video].frames
        paths = [folder / f"anno_{annotator}" / video / f"{name}.png" for name in names]
        missing = tuple(name for name, path in zip(names, paths, strict=True) if not path.is_file())
        shape = source.size(video)
        labels = np.zeros((len(names), *shape), np.uint8)
        for image, name, path in zip(labels, names, paths, strict=True):
            if name in missing:
                continue
            found = read_labels(path)
            if found.shape != shape:
                raise InputError(f"{path} is {found.shape}, but the frames {shape}: write label maps at their size")
            image[:] = found
        return LabelMaps(labels, missing)

    return label_maps


def is_label_folder(folder: Path) -> bool:
    """Whether a folder holds label maps of annotators, rather than masks of sentences."""
    return any((folder / f"anno_{annotator}").is_dir() for annotator in range(ANNOTATORS))


def require_complete(folder: Path, clips: Mapping[str, Clip]) -> None:
    """Check that a folder of masks or label maps has a file for everything, as DAVIS 2017's evaluation demands.

    Raises:
      CheckFailed: naming the first that is missing and how many are.
    """
    wanted = [
        path / f"{name}.png"
        for video, clip in clips.items()
        for path in (
            [Path(f"anno_{annotator}") / video for annotator in range(ANNOTATORS)]
            if is_label_folder(folder)
            else [Path(video) / key for key in clip.expressions]
        )
        for name in clip.frames
    ]
    missing = [path for path in wanted if not (folder / path).is_file()]
    if missing:
        raise CheckFailed(
            f"{folder} lacks {len(missing)} of {len(wanted)} files, such as {', '.join(map(str, missing[:3]))}; "
            "DAVIS17 aborts there: complete it, or count them as empty with --missing zero"
        )
