"""Splits whose truth lies on a server: predictions for all sentences, checked and packed into its archive."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation.datasets import MEVIS, REF_YOUTUBE_VOS, DecodedVideos
from rvseg_jax.evaluation.predictors import Predict
from rvseg_jax.evaluation.run_folder import Line, RunFolder
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress, by_video, predicted
from rvseg_jax.formats import submission

ARCHIVE = "submission.zip"
FOLDER = "Annotations"
# Folder inside the archive.
_TOPS = {MEVIS: "", REF_YOUTUBE_VOS: "Annotations"}


def evaluate(
    dataset: str,
    source: DecodedVideos,
    predict: Predict | Path,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict what is not complete on disk; check everything against the lists; write the archive and a summary.

    Masks go to `<folder>/Annotations/<video>/<expression>/<frame>.png`, the archive is `<folder>/submission.zip`. It is
    written only if nothing is wrong; `summary["problems"]` is what is. Of several parts the last one checks and packs.

    Args:
      dataset: "mevis" or "ref_youtube_vos", whose archives differ.
      source: the sentences.
      predict: see `evaluation.predictors`; or the folder of predictions to check and pack.
      folder: where the files are written; it must not hold another run's.
      settings: what the masks depend on, kept with the run and compared on resume.
      options: see `EvaluationOptions`.
      progress: called with the sentences done and all sentences of this part.

    Raises:
      InputError: for a limit or a missing policy, or if the folder holds another run or cannot be written to.
    """
    if options.limit is not None:
        raise InputError("a submission holds every sentence: leave --limit away")
    if options.missing != "abort":
        raise InputError("a submission holds every mask: leave --missing away, and predict what is missing")
    masks = _masks_folder(predict) if isinstance(predict, Path) else folder / FOLDER
    archive = folder / ARCHIVE
    with RunFolder(folder, settings, part=options.part, resume=options.resume) as run:
        archive.unlink(missing_ok=True)  # of a state that may have changed
        mine = options.part.indices(source.videos())
        if isinstance(predict, Path):
            unscored: list[Line] = []
            for index in sorted(set(mine) - set(run.lines)):
                run.add({"index": index, "status": "given"})
        else:
            masks.mkdir(parents=True, exist_ok=True)
            unscored = _predict(source, predict, masks, run, mine, options, progress)
        run.finish(unscored)
        if options.together:
            run.wait(len(source))
        lines, failed = run.merged()
        waiting = len(source) - len(lines) - len(failed)
        if waiting:
            return Evaluation(len(source), lines, failed, waiting=waiting)
        if options.part.index and options.together:  # the first process checks and packs
            run.wait_for_summary()
            return Evaluation(len(source), lines, failed)
        problems = list(submission.problems(masks, source.clips, source.size))
        packed = None if problems or failed else submission.pack(masks, archive, source.clips, top=_TOPS[dataset])
        run.publish(
            summary := {
                **settings,
                "videos": len(source.clips),
                "expected": len(source),
                "masks": sum(len(clip.frames) * len(clip.expressions) for clip in source.clips.values()),
                "packed": packed,
                "archive": None if packed is None else ARCHIVE,
                "failed": failed,
                "problems": problems,
            }
        )
    return Evaluation(len(source), lines, failed, summary, problems=problems)


def _masks_folder(folder: Path) -> Path:
    """Where the videos lie: in the folder, or one level below as in an archive of Ref-YouTube-VOS."""
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def _predict(
    source: DecodedVideos,
    predict: Predict,
    masks: Path,
    run: RunFolder,
    mine: list[int],
    options: EvaluationOptions,
    progress: Progress | None,
) -> list[Line]:
    """Write the masks of every sentence that is not complete; returns those that failed."""
    unscored: list[Line] = []
    items = [(video, key) for video, clip in source.clips.items() for key in clip.expressions]
    sizes = {video: source.size(video) for video in {items[index][0] for index in mine}}

    def complete(index: int) -> bool:
        video, key = items[index]
        return submission.is_complete(masks, video, key, source.clips[video].frames, sizes[video])

    todo = [index for index in mine if not complete(index)]
    for index in sorted(set(mine) - set(todo) - set(run.lines)):
        run.add({"index": index, "status": "kept"})
    done = len(mine) - len(todo)
    for group in by_video(source, todo, options.batch, unscored):
        for index, sample, found in predicted(group, predict, unscored):
            submission.write_sentence(masks, sample.video, sample.expression, sample.frame_names, found.masks)
            run.add({"index": index, "video": sample.video, "expression": sample.expression, "status": found.status})
            done += 1
        run.flush()
        if progress is not None:
            progress(done, len(mine))
    return unscored
