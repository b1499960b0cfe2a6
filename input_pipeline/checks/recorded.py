"""Checks files of `rvseg data records` and TFDS datasets of such rows."""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.checks.report import Progress, Report, check_track, no_progress
from rvseg_jax.input_pipeline.datasets.recorded import RecordedFrames
from rvseg_jax.input_pipeline.datasets.registry import reader_of


def check_recorded(
    name: str, root: Path, split: str, *, decode: bool = False, progress: Progress = no_progress
) -> Report:
    """Checks every row.

    Args:
      name: "records" or "tfds".
      root, split: as the readers of `datasets.recorded`.
      decode: decodes every frame; otherwise only its header is read.
      progress: called with each video's name.

    Raises: InputError where the file or its index cannot be read at all.
    """
    source = reader_of(name)(root, split)
    report = Report(split)
    for number in range(source.rows):
        with report.noting():
            row = source.row(number)
            progress(row.video)
            report.videos += 1
            report.sentences += len(row.texts)
            frames = RecordedFrames(source, number, len(row.frames), row.video)
            report.frames += len(frames)
            size = frames.size()
            for place in range(len(frames)):
                with report.noting():
                    found = frames.read([place]).shape[1:3] if decode else frames.size(place)
                    if found != size:
                        raise InputError(f"{frames.where(place)} has size {found}, the first frame {size}")
            for place, track in enumerate(row.tracks):
                with report.noting():
                    check_track(report, track, size, f"{row.video}, track {place}")
    return report
