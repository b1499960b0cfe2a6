"""The official protocol of Ref-DAVIS17: label maps of four annotators, scored as DAVIS 2017 unsupervised.

Source: wjn922/ReferFormer `inference_davis.py` and `eval_davis.py`. Every object has a sentence of each annotator. The
sentences of one annotator become one label map a frame, and each annotator's label maps are scored by themselves; the
result is the mean of the four.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import CheckFailed, InputError
from rvseg_jax.evaluation.davis_unsupervised import score_sequence
from rvseg_jax.evaluation.ref_davis_labels import GetLabelMaps
from rvseg_jax.evaluation.run_folder import Line, RunFolder
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress
from rvseg_jax.formats.davis import read_folder
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.ref_davis import ANNOTATORS

_MEASURES = ("j", "f", "j_recall", "j_decay", "f_recall", "f_decay")


def truth_folder(root: Path, split: str) -> Path:
    """Where the label maps lie that the official evaluation reads; those of the split where there is no `DAVIS`."""
    official = root / "DAVIS" / "Annotations_unsupervised" / "480p"
    return official if official.is_dir() else root / split / "Annotations"


def evaluate(
    clips: Mapping[str, Clip],
    truth: Path,
    label_maps: GetLabelMaps,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every annotator on every video, and write `samples.jsonl` (a line a video) and `summary.json`.

    Args:
      clips: videos with their sentences, four an object.
      truth: holds the label maps of each video.
      label_maps: predictions.
      folder: where the files are written; it must not hold another run's.
      settings: what the scores depend on, kept with the run and compared on resume.
      options: see `EvaluationOptions`; `limit` counts videos, and `missing` is "abort" or "zero".
      progress: called with the videos done and all videos of this part.

    Raises:
      InputError: for sentences that are not four an object, the policy "skip", or a folder of another run.
      CheckFailed: for a missing prediction, with the policy "abort".
    """
    if options.missing == "skip":
        raise InputError("the official protocol of Ref-DAVIS17 cannot skip: choose --missing abort or zero")
    videos = list(clips)[: options.limit]
    for video in videos:
        _check_sentences(video, list(clips[video].expressions))
    unscored: list[Line] = []
    mine = options.part.indices(videos)
    with RunFolder(
        folder, dict(settings) | {"missing": options.missing}, part=options.part, resume=options.resume
    ) as run:
        for done, index in enumerate(mine):
            if index not in run.lines:
                try:
                    run.add({"index": index} | _video_line(videos[index], clips, truth, label_maps, options))
                except InputError as error:
                    unscored.append({"index": index, "error": f"{videos[index]}: {error}"})
                run.flush()
            if progress is not None:
                progress(done + 1, len(mine))
        run.finish(unscored)
        if options.together:
            run.wait(len(videos))
        lines, left = run.merged()
        lines = [line for line in lines if line["index"] < len(videos)]
        failed = [entry for entry in left if entry["index"] < len(videos)]
        waiting = len(videos) - len(lines) - len(failed)
        if waiting:
            return Evaluation(len(videos), lines, failed, waiting=waiting)
        summary = _summary(settings, options, videos, lines, failed)
        run.publish(summary)
    return Evaluation(len(videos), lines, failed, summary)


def _check_sentences(video: str, keys: Sequence[str]) -> None:
    if not keys or list(keys) != [str(number) for number in range(len(keys))] or len(keys) % ANNOTATORS:
        raise InputError(f"{video} has the sentences {', '.join(keys)}: Ref-DAVIS17 has four an object, 0, 1, 2, ...")


def _video_line(
    video: str, clips: Mapping[str, Clip], truth: Path, label_maps: GetLabelMaps, options: EvaluationOptions
) -> Line:
    real = _truth(truth / video, clips[video])
    annotators, missing = [], []
    for annotator in range(ANNOTATORS):
        maps = label_maps(video, annotator)
        if maps.missing and options.missing == "abort":
            raise CheckFailed(f"{video} has no prediction of annotator {annotator} for frame {maps.missing[0]}")
        if maps.missing:
            missing.append({"video": video, "expression": f"anno_{annotator}", "frames": len(maps.missing)})
        annotators.append(
            [
                {
                    "object": score.object,
                    "proposal": score.proposal,
                    **{"j": score.j.mean, "j_recall": score.j.recall, "j_decay": score.j.decay},
                    **{"f": score.f.mean, "f_recall": score.f.recall, "f_decay": score.f.decay},
                }
                for score in score_sequence(real, maps.labels)
            ]
        )
    return {"video": video, "frames": len(real), "annotators": annotators, "missing": missing}


def _truth(folder: Path, clip: Clip) -> np.ndarray:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; it should hold the label maps of the truth")
    names, labels = read_folder(folder)
    if tuple(names) != clip.frames:
        raise InputError(f"{folder} holds {len(names)} frames that are not the {len(clip.frames)} of the list")
    return labels


def _summary(
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    videos: Sequence[str],
    lines: Sequence[Line],
    failed: Sequence[Line],
) -> dict[str, Any]:
    tables = [_table([entry for line in lines for entry in line["annotators"][a]]) for a in range(ANNOTATORS)]
    known = [table for table in tables if table["objects"]]
    overall = {name: float(np.mean([table[name] for table in known])) for name in known[0]} if known else {}
    return {
        **settings,
        "limit": options.limit,
        "missing_policy": options.missing,
        "expected": len(videos),
        "scored": len(lines),
        "missing": [gap for line in lines for gap in line["missing"]],
        "failed": list(failed),
        "annotators": {f"anno_{annotator}": table for annotator, table in enumerate(tables)},
        "overall": overall | {"objects": tables[0]["objects"]},
    }


def _table(objects: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over the objects of all videos."""
    if not objects:
        return {"objects": 0}
    means = {name: float(np.mean([entry[name] for entry in objects])) for name in _MEASURES}
    named = {name[0].upper() + name[1:]: value for name, value in means.items()}
    return {"J&F": (means["j"] + means["f"]) / 2, **named, "objects": len(objects)}
