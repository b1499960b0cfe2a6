"""Scores a predictor over a dataset: one line of JSON a sample, a summary, and no sample lost without a word."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rvseg_jax.core.errors import CheckFailed, InputError
from rvseg_jax.evaluation.parts import WHOLE, Part
from rvseg_jax.evaluation.predictors import MISSING, Predict, Prediction
from rvseg_jax.evaluation.run_folder import Line, RunFolder
from rvseg_jax.evaluation.scores import Score, score_masks, summarise
from rvseg_jax.input_pipeline.sources import ReferringSample, Source

MissingPolicy = Literal["zero", "skip", "abort"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """Choices of one evaluation.

    Attributes:
      batch: most sentences of one clip that are predicted in one call; bounds the memory that masks take.
      missing: "zero" gives J = F = 0 to a frame or a sample without a prediction (see `score_masks`); "skip" leaves a
        sample without any out of the means (as some toolkits do; then fewer samples are scored than expected, and the
        evaluation is not complete); "abort" ends with an error at the first.
      resume: keep what an earlier run with the same settings has scored, whatever parts it was divided into.
      limit: score the first samples only.
      part: the share of the videos that this process scores.
      together: whether all parts run beside each other, and each waits for the others' results.
    """

    batch: int = 4
    missing: MissingPolicy = "zero"
    resume: bool = False
    limit: int | None = None
    part: Part = WHOLE
    together: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise InputError(f"batch {self.batch} and limit {self.limit} must be at least 1")
        if self.missing not in get_args(MissingPolicy):
            raise InputError(f"missing is {self.missing!r}: choose one of {', '.join(get_args(MissingPolicy))}")


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a run.

    Attributes:
      expected: number of samples that should have been scored.
      scores: of every sample that was, by this and all other parts, in the order of the source: a `Score` each, or
        what a protocol of another kind keeps of a sample.
      failed: samples that could not be read or predicted, as {"index", "error"}.
      summary: what stands in the summary file; empty while other parts are not done.
      waiting: samples that other parts have still to score.
      problems: what is wrong with the masks of a submission, each as a line.
    """

    expected: int
    scores: Sequence[Any]
    failed: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    waiting: int = 0
    problems: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected sample has been scored, and nothing is wrong."""
        return len(self.scores) == self.expected and not self.problems


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

    A sample that cannot be read or predicted is listed as failed and the run goes on; `complete` is then false. Of
    several parts, which may run at the same time on one folder, the last one writes the summary, and it is the same
    as that of an undivided run.

    Args:
      source: samples; consecutive ones of one video are predicted together. A method `videos()`, if it has one,
        gives the names of their videos without decoding anything.
      predict: see `evaluation.predictors`.
      folder: where the files are written; it must not hold another run's.
      settings: what the scores depend on (protocol, system, dataset), kept with the run and compared on resume.
      options: see `EvaluationOptions`.
      details: further summaries of the scores, by name.
      progress: called with the samples done and all samples of this part.

    Raises:
      InputError: if the folder holds another run, or cannot be written to.
      CheckFailed: for a missing prediction, with the policy "abort".
    """
    options = options or EvaluationOptions()
    expected = len(source) if options.limit is None else min(options.limit, len(source))
    mine = options.part.indices(video_names(source, expected)) if options.part.count > 1 else list(range(expected))
    unscored: list[Line] = []
    kept = dict(settings) | {"missing": options.missing}
    with RunFolder(folder, kept, part=options.part, resume=options.resume) as run:
        _scores(run)  # refuses a file of something else before anything is predicted
        todo = [index for index in mine if index not in run.lines]
        done = len(mine) - len(todo)
        for group in by_video(source, todo, options.batch, unscored):
            for score in _scored(group, predict, options.missing, unscored):
                run.add(score.as_dict())
                done += 1
            run.flush()
            if progress is not None:
                progress(done + len(unscored), len(mine))
        run.finish(unscored)
        if options.together:
            run.wait(expected)
        left = [entry for entry in run.merged()[1] if entry["index"] < expected]
        scores = [score for score in _scores(run) if score.index < expected]
        failed = [entry for entry in left if "error" in entry]
        waiting = expected - len(scores) - len(left)
        if waiting:
            return Evaluation(expected, scores, failed, waiting=waiting)
        summary = _summary(settings, options, expected, scores, left) | dict(details(scores))
        run.publish(summary)
    return Evaluation(expected, scores, failed, summary)


def video_names(source: Source[ReferringSample], count: int) -> list[str]:
    """Names of the videos of the first `count` samples."""
    videos = getattr(source, "videos", None)
    return list(videos())[:count] if videos is not None else [source[index].video for index in range(count)]


def _scores(run: RunFolder) -> list[Score]:
    try:
        return [Score.from_dict(run.lines[index]) for index in sorted(run.lines)]
    except (ValueError, TypeError) as error:
        raise InputError(f"{run.folder} holds something else than scores ({error}): choose another folder") from error


def by_video(
    source: Source[ReferringSample], indices: Sequence[int], batch: int, unscored: list[Line]
) -> Iterator[list[tuple[int, ReferringSample]]]:
    """Up to `batch` consecutive samples of one video at a time; what cannot be read is added to `unscored`."""
    group: list[tuple[int, ReferringSample]] = []
    for index in indices:
        try:
            sample = source[index]
        except (ValueError, OSError) as error:
            unscored.append({"index": index, "error": str(error)})
            continue
        if group and (len(group) == batch or group[0][1].video != sample.video):
            yield group
            group = []
        group.append((index, sample))
    if group:
        yield group


def predicted(
    group: Sequence[tuple[int, ReferringSample]], predict: Predict, unscored: list[Line]
) -> Iterator[tuple[int, ReferringSample, Prediction]]:
    """Predictions of a group; where it is refused those of each sample alone, and what fails is added to `unscored`."""
    try:
        predictions = predict([sample for _, sample in group])
    except InputError as error:
        if len(group) > 1:  # one bad sentence must not take the others of its clip along
            for alone in group:
                yield from predicted([alone], predict, unscored)
        else:
            unscored.append({"index": group[0][0], "error": str(error)})
        return
    for (index, sample), prediction in zip(group, predictions, strict=True):
        yield index, sample, prediction


def _scored(
    group: Sequence[tuple[int, ReferringSample]], predict: Predict, missing: str, unscored: list[Line]
) -> Iterator[Score]:
    for index, sample, prediction in predicted(group, predict, unscored):
        if missing == "abort" and prediction.missing_frames:
            raise CheckFailed(
                f"{sample.video}/{sample.expression} has no prediction for {len(prediction.missing_frames)} frames, "
                f"the first {prediction.missing_frames[0]}; complete it, or count it as empty with --missing zero"
            )
        if missing == "skip" and prediction.status == MISSING:
            unscored.append({"index": index} | _gap(sample.video, sample.expression, prediction))
            continue
        try:
            absent = [sample.frame_names.index(name) for name in prediction.missing_frames]
            numbers = score_masks(sample.masks, prediction.masks, absent)
        except InputError as error:
            unscored.append({"index": index, "error": str(error)})
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


def _gap(video: str, expression: str, found: Score | Prediction) -> dict[str, Any]:
    """What is missing of a sentence, as summaries list it."""
    return {"video": video, "expression": expression, "frames": len(found.missing_frames)}


def _summary(
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    expected: int,
    scores: Sequence[Score],
    left: Sequence[Line],
) -> dict[str, Any]:
    gaps = {score.index: _gap(score.video, score.expression, score) for score in scores if score.missing_frames}
    gaps |= {
        entry["index"]: {key: entry[key] for key in entry if key != "index"} for entry in left if "frames" in entry
    }
    return {
        **settings,
        "limit": options.limit,
        "missing_policy": options.missing,
        "expected": expected,
        "scored": len(scores),
        "missing": [gaps[index] for index in sorted(gaps)],
        "failed": [entry for entry in left if "error" in entry],
        "overall": summarise(scores),
    }
