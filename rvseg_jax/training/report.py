"""What a run says while it trains: `metrics.jsonl`, TensorBoard, and a bar or lines for the person watching."""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from rvseg_jax.core.errors import UserError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.core.memory import peak_resident_bytes

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
_logger = get_logger(__name__)


class WriteError(UserError, OSError):
    """A checkpoint or a metrics file could not be written, as on a full disk."""


class Report:
    """Rows of metrics of one run. Processes other than the first make one that writes nothing.

    Object stores cannot append to a file: where the run's folder is remote, the files grow in a local one and are
    copied at every `sync`.
    """

    def __init__(self, workdir: str | Path, *, start: int, steps: int, tensorboard: bool, writes: bool = True) -> None:
        """Opens the files of `workdir`, forgetting rows past `start` that an interrupted run left.

        Args:
          workdir: the run's folder.
          start: steps done so far.
          steps: steps of the whole run.
          tensorboard: whether to write TensorBoard events beside `metrics.jsonl`.
          writes: whether this process writes at all.
        """
        self._steps = steps
        self._bar: Any = None
        self._events: Any = None
        self._file: Any = None
        self._spool: Any = None
        if not writes:
            return
        self._workdir = folder = epath.Path(workdir)
        self._path = path = folder / METRICS
        trim(path, start)
        if is_remote(folder):
            self._spool = tempfile.TemporaryDirectory(prefix="rvseg-metrics-")
            folder = epath.Path(self._spool.name)
            if path.exists():
                path.copy(folder / METRICS)
        self._file = (folder / METRICS).open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(os.fspath(folder / EVENTS), purge_step=start + 1)
        if sys.stderr.isatty():
            self._bar = _progress_bar()
            self._bar.start()
            self._task = self._bar.add_task("train", total=steps, completed=start, loss="")

    def sync(self) -> None:
        """Copies the files of a remote run to where they belong; a local run has them there already.

        Raises:
          WriteError: if they cannot be written.
        """
        if self._spool is None:
            return
        if self._events is not None:
            self._events.flush()
        local = Path(self._spool.name)
        try:
            for file in (file for file in local.rglob("*") if file.is_file()):
                target = self._workdir / file.relative_to(local)
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(file).copy(target, overwrite=True)
        except OSError as error:
            raise WriteError(f"metrics could not be copied to {self._workdir} ({error}): run again") from error

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row; a row is one line, so that a reader sees it whole or not at all.

        Raises:
          WriteError: if it cannot be written.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self._path} could not be written ({error}): free space, run again") from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
        if self._bar is None:
            text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            _logger.info("step %d/%d %s", step, self._steps, text)

    def progress(self, step: int, loss: float) -> None:
        """Moves the bar, where there is one."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"loss {loss:.4g}")

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written has been reported
                self._file.close()
        if self._spool is not None:
            self.sync()
            self._spool.cleanup()


def is_remote(path: epath.Path) -> bool:
    """Whether a path lies in an object store ("gs://", "s3://")."""
    return "://" in os.fspath(path)


class Meter:
    """Speed since the last reading: samples a second, and the share of time spent waiting for data."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted; the clock starts now."""
        self._since = time.perf_counter()
        self._steps = 0
        self._waited = 0.0

    def wait(self, seconds: float) -> None:
        """Counts time spent waiting for a batch."""
        self._waited += seconds

    def step(self) -> None:
        """Counts a finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """{"samples_per_second", "data_wait" in 0..1}, and restarts."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._steps * self._batch_size / seconds
        values = {"samples_per_second": rate, "data_wait": min(1.0, self._waited / seconds)}
        self.restart()
        return values


def memory_gib() -> float:
    """Peak memory in GiB: of the fullest local device, or of this process where devices do not tell (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    return (peak or peak_resident_bytes()) / 2**30


def trim(path: epath.Path, step: int) -> None:
    """Drops the rows of a metrics file that are past `step` or cut off; the file is replaced at once or not at all."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if (row := _row(line)) and row["step"] <= step]
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("".join(f"{line}\n" for line in kept))
    fresh.replace(path)


def read_rows(workdir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, a cut-off last line left out."""
    lines = (epath.Path(workdir) / METRICS).read_text().splitlines()
    return [row for line in lines if (row := _row(line))]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
