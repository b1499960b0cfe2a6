"""Scores videos one by one, each a line of the run's folder, with a summary when all parts are done."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation.run_folder import Line, RunFolder
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress


def evaluate_videos(
    videos: int,
    score: Callable[[int], Line],
    summarise: Callable[[Sequence[Line]], Mapping[str, Any]],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores every video, and writes `samples.jsonl` (a line a video) and `summary.json`.

    A video that cannot be read or predicted is listed as failed and the run goes on; `complete` is then false.

    Args:
      videos: how many there are.
      score: the number of a video to what is kept of it.
      summarise: the kept lines to what the summary says of them.
      settings: what the scores depend on, kept with the run and compared on resume.
      options: see `EvaluationOptions`; `limit` counts videos.
      progress: called with the videos done and all videos of this part.

    Raises:
      InputError: for a folder of another run.
    """
    count = videos if options.limit is None else min(options.limit, videos)
    # Every video is a part by itself.
    mine = options.part.indices([str(index) for index in range(count)])
    unscored: list[Line] = []
    with RunFolder(folder, dict(settings), part=options.part, resume=options.resume) as run:
        for done, index in enumerate(mine):
            if index not in run.lines:
                try:
                    run.add({"index": index, **score(index)})
                except InputError as error:
                    unscored.append({"index": index, "error": str(error)})
                run.flush()
            if progress is not None:
                progress(done + 1, len(mine))
        run.finish(unscored)
        if options.together:
            run.wait(count)
        lines, left = run.merged()
        lines = [line for line in lines if line["index"] < count]
        failed = [entry for entry in left if entry["index"] < count]
        waiting = count - len(lines) - len(failed)
        if waiting:
            return Evaluation(count, lines, failed, waiting=waiting)
        summary = {
            **settings,
            "limit": options.limit,
            "missing_policy": "zero",
            "expected": count,
            "scored": len(lines),
            "missing": [],
            "failed": list(failed),
            **summarise(lines),
        }
        run.publish(summary)
    return Evaluation(count, lines, failed, summary)
