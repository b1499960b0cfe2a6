"""Scores a predictor over a dataset: one line of JSON a sample, a summary, and no sample lost without a word."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation.predictors import MISSING, Predict
from rvseg_jax.evaluation.scores import Score, score_masks, summarise
from rvseg_jax.input_pipeline.sources import ReferringSample, Source

SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "summary.json"
_RUN_FILE = "run.json"

MissingPolicy = Literal["zero", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """Choices of one evaluation.

    Attributes:
      batch: most sentences of one clip that are predicted in one call; bounds the memory that masks take.
      missing: "zero" scores a sample without a prediction as empty masks, "skip" leaves it out of the means (as some
        toolkits do; then fewer samples are scored than expected, and the evaluation is not complete).
      resume: keep the samples that an earlier run with the same settings has scored.
      limit: score the first samples only.
    """

    batch: int = 4
    missing: MissingPolicy = "zero"
    resume: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise InputError(f"batch {self.batch} and limit {self.limit} must be at least 1")
        if self.missing not in ("zero", "skip"):
            raise InputError(f"missing is {self.missing!r}: choose 'zero' or 'skip'")


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a run.

    Attributes:
      expected: number of samples that should have been scored.
      scores: of every sample that was, in the order of the source.
      failed: samples that could not be read or predicted, as {"index", "error"}.
      summary: what stands in the summary file.
    """

    expected: int
    scores: Sequence[Score]
    failed: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every expected sample has been scored."""
        return len(self.scores) == self.expected


def evaluate(
    source: Source[ReferringSample],
    predict: Predict,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    options: EvaluationOptions | None = None,
    details: Callable[[Sequence[Score]], Mapping[str, Any]] = lambda scores: {},
    progress: Progress | None = None,
) -> Evaluation:
    """Predict and score every sample of `source`, and write `samples.jsonl` and `summary.json`.

    A sample that cannot be read or predicted is listed as failed and the run goes on; `complete` is then false.

    Args:
      source: samples; consecutive ones of one video are predicted together.
      predict: see `evaluation.predictors`.
      folder: where the files are written; it must not hold another run's.
      settings: what the scores depend on (protocol, system, dataset), kept with the run and compared on resume.
      options: see `EvaluationOptions`.
      details: further summaries of the scores, by name.
      progress: called with the samples done and all samples.

    Raises:
      InputError: if the folder holds another run, or cannot be written to.
    """
    options = options or EvaluationOptions()
    expected = len(source) if options.limit is None else min(options.limit, len(source))
    scores = _opened_run(folder, dict(settings), options)
    done = {score.index for score in scores}
    failed: list[dict[str, Any]] = []
    with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        for group in _groups(source, [i for i in range(expected) if i not in done], options.batch, failed):
            for score in _scored(group, predict, options.missing, failed):
                scores.append(score)
                file.write(json.dumps(score.as_dict()) + "\n")
            file.flush()
            if progress is not None:
                progress(len(scores) + len(failed), expected)
    scores.sort(key=lambda score: score.index)
    summary = _summary(settings, options, expected, scores, failed) | dict(details(scores))
    # NaN is no JSON: a measure without a value is null in every file.
    text = json.dumps(_without_nan(summary), indent=1, allow_nan=False)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return Evaluation(expected, scores, failed, summary)


def _opened_run(folder: Path, settings: dict[str, Any], options: EvaluationOptions) -> list[Score]:
    """The scores to start with, after checking that the folder belongs to this run."""
    run = folder / _RUN_FILE
    text = json.dumps(settings | {"missing": options.missing}, indent=1, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not run.exists():
            run.write_text(text + "\n", encoding="utf-8")
            (folder / SAMPLES_FILE).write_text("", encoding="utf-8")
            return []
        if not options.resume:
            raise InputError(f"{folder} holds an evaluation already: resume it (--resume) or choose another folder")
        if run.read_text(encoding="utf-8").strip() != text:
            raise InputError(f"{folder} holds an evaluation with other settings ({run}): choose another folder")
        return _read_scores(folder / SAMPLES_FILE, options.limit)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}; choose another folder") from error


def _read_scores(path: Path, limit: int | None) -> list[Score]:
    """Whole lines of an earlier run; the rest of a line that was cut off is removed from the file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if whole != lines:
        path.write_text("".join(whole), encoding="utf-8")
    try:
        scores = [Score.from_dict(json.loads(line)) for line in whole]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds something else than scores ({error}): choose another folder") from error
    return [score for score in scores if limit is None or score.index < limit]


def _groups(
    source: Source[ReferringSample], indices: Sequence[int], batch: int, failed: list[dict[str, Any]]
) -> Iterator[list[tuple[int, ReferringSample]]]:
    """Up to `batch` consecutive samples of one video at a time."""
    group: list[tuple[int, ReferringSample]] = []
    for index in indices:
        try:
            sample = source[index]
        except (ValueError, OSError) as error:
            failed.append({"index": index, "error": str(error)})
            continue
        if group and (len(group) == batch or group[0][1].video != sample.video):
            yield group
            group = []
        group.append((index, sample))
    if group:
        yield group


def _scored(
    group: Sequence[tuple[int, ReferringSample]], predict: Predict, missing: str, failed: list[dict[str, Any]]
) -> Iterator[Score]:
    try:
        predictions = predict([sample for _, sample in group])
        scored = [
            (index, sample, prediction, score_masks(sample.masks, prediction.masks))
            for (index, sample), prediction in zip(group, predictions, strict=True)
        ]
    except InputError as error:
        if len(group) > 1:  # one bad sentence must not take the others of its clip along
            for alone in group:
                yield from _scored([alone], predict, missing, failed)
        else:
            failed.append({"index": group[0][0], "error": str(error)})
        return
    for index, sample, prediction, numbers in scored:
        if missing == "skip" and prediction.status == MISSING:
            continue
        yield Score(
            index=index,
            video=sample.video,
            expression=sample.expression,
            text=sample.text,
            kind=sample.kind,
            status=prediction.status,
            missing_frames=prediction.missing_frames,
            **numbers,
        )


def _summary(
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    expected: int,
    scores: Sequence[Score],
    failed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    gaps = [
        {"video": score.video, "expression": score.expression, "frames": len(score.missing_frames)}
        for score in scores
        if score.missing_frames
    ]
    return {
        **settings,
        "limit": options.limit,
        "missing_policy": options.missing,
        "expected": expected,
        "scored": len(scores),
        "missing": gaps,
        "failed": list(failed),
        "overall": summarise(scores),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
