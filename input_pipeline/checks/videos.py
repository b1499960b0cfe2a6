"""Checks MeViS, Ref-YouTube-VOS and Ref-DAVIS17."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rvseg_jax.formats import davis, meta_expressions, mevis, ref_davis, ref_youtube_vos
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.input_pipeline.checks.report import Progress, Report, check_frames, check_track, no_progress
from rvseg_jax.input_pipeline.sources import FrameFolder


def check_mevis(
    folder: Path,
    split: str = "",
    *,
    frames: Path | None = None,
    decode: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Checks a split of MeViS, or of any dataset in that form.

    Args:
      folder: the split's folder.
      split: what to call it.
      frames: where the videos' folders of frames lie; None: `folder/JPEGImages`.
      decode: decodes every frame; otherwise only its header is read.
      progress: called with each video's name.

    Raises: InputError where one of the lists cannot be read at all.
    """
    clips = meta_expressions.read(folder / meta_expressions.FILE_NAME)
    tracks = mevis.read_masks(folder) if (folder / mevis.MASKS).is_file() else None
    report = Report(split)
    without = 0
    for video, clip in clips.items():
        progress(video)
        with report.noting():
            size = check_frames(report, FrameFolder((frames or folder / mevis.FRAMES) / video, clip.frames), decode)
            for key, expression in clip.expressions.items():
                report.sentences += 1
                if tracks is None:
                    continue
                with report.noting():
                    where = f"{video}/{key}"
                    for track in mevis.tracks_of(expression, tracks, len(clip.frames), where):
                        check_track(report, track, size, where)
                    without += not expression.annotations
    if tracks is None:
        report.notes.append("masks are withheld")
    if without:
        report.notes.append(f"{without} sentences name nothing")
    return report


def check_labelled(
    name: str, root: Path, split: str, *, decode: bool = False, progress: Progress = no_progress
) -> Report:
    """Checks a split of Ref-YouTube-VOS or Ref-DAVIS17.

    Args:
      name: "ref_youtube_vos" or "ref_davis".
      root: the dataset's folder.
      split: the split.
      decode, progress: as `check_mevis`.

    Raises: InputError where the list of sentences cannot be read at all.
    """
    clips = (ref_davis if name == "ref_davis" else ref_youtube_vos).read_clips(root, split)
    report = Report(split)
    folder = root / split
    withheld = all(item.objects is None for clip in clips.values() for item in clip.expressions.values())
    objects: dict[str, dict[int, tuple[str, ...]]] | None = None
    if withheld:
        report.notes.append("masks are withheld")
    else:
        with report.noting():
            objects = ref_youtube_vos.read_objects(folder)
    for video, clip in clips.items():
        progress(video)
        report.sentences += len(clip.expressions)
        with report.noting():
            size = check_frames(report, FrameFolder(folder / mevis.FRAMES / video, clip.frames), decode)
            if withheld:
                continue
            known = _check_labels(report, folder / ref_youtube_vos.ANNOTATIONS / video, clip.frames, size)
            report.problems += _without_object(video, clip, known, "the annotations lack")
            if objects is not None:
                report.problems += _without_object(video, clip, set(objects.get(video, ())), "meta.json lacks")
    return report


def _check_labels(report: Report, folder: Path, names: Sequence[str], size: tuple[int, int]) -> set[int]:
    """Checks the label images of a video, and returns the objects that they show."""
    known: set[int] = set()
    for name in names:
        with report.noting():
            labels = davis.read_named_labels(folder, name)
            report.masks += 1
            if labels.shape != size:
                path = folder / f"{name}.png"
                report.problems.append(f"{path}: annotations have size {labels.shape}, the frames {size}")
            known |= set(np.unique(labels).tolist())
    return known - {0, davis.VOID}


def _without_object(video: str, clip: Clip, known: set[int], lack: str) -> Sequence[str]:
    return [
        f"{video}/{key} names object {number}, which {lack}"
        for key, expression in clip.expressions.items()
        for number in expression.objects or ()
        if number not in known
    ]
