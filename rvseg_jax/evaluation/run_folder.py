"""The folder of an evaluation, in which several processes may write at the same time.

<folder>/run.json              what the results depend on; the same for every part and every resumption
<folder>/samples.jsonl         a line a result, in the order of the source
<folder>/samples-2-of-3.jsonl  the lines of one part, as they came
<folder>/unscored-2-of-3.json  what that part could not or must not score, and why
<folder>/summary.json          written when every expected result is accounted for

A line holds at least "index", the place of its result in the source. Equal indices in several files are one result.
"""

import json
import math
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation.parts import WHOLE, Part

SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "summary.json"
PATIENCE = 600.0  # seconds that parts of one JAX run may start apart
_RUN_FILE = "run.json"
_PART = r"(?:-\d+-of-(\d+))?"
_SAMPLES = re.compile(rf"samples{_PART}\.jsonl")
_UNSCORED = re.compile(rf"unscored{_PART}\.json")

Line = dict[str, Any]


class RunFolder:
    """One part's view of the folder; use it in a `with` block."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, part: Part = WHOLE, resume: bool = False) -> None:
        """Open a folder, new or of the same run.

        Args:
          folder: made if it is not there.
          settings: what the results depend on.
          part: which part this process does. Parts of one division join a run without `resume`.
          resume: whether to go on with results of this part, or of another division, that the folder holds.

        Raises:
          InputError: if the folder holds another run, or this one and `resume` is false, or cannot be written to.
        """
        self.folder = folder
        self._part = part
        self._own = folder / f"samples{part.suffix}.jsonl"
        self._own_unscored = folder / f"unscored{part.suffix}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._join(json.dumps(settings, indent=1, sort_keys=True) + "\n", part, resume)
            self._forget(part)
            lines = _whole_lines(self._own) if self._own.exists() else []
            write_atomically(self._own, "".join(lines))  # without the rest of a line that was cut off
            self.lines = self._all_lines()
            self._file = self._own.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error}; choose another folder") from error

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, line: Line) -> None:
        """Keep one result; what is cut off by a crash is dropped when the run is resumed."""
        self.lines[line["index"]] = line
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Hand what was added to the operating system."""
        self._file.flush()

    def finish(self, unscored: Sequence[Line]) -> None:
        """End this part, with the samples that it leaves without a result."""
        self._file.close()
        if unscored:
            write_atomically(self._own_unscored, json.dumps(list(unscored), indent=1) + "\n")

    def wait(self, expected: int) -> None:
        """Return when every expected result is accounted for by parts that run beside this one.

        There is no barrier of devices here: those give up after seconds, and parts end minutes apart. A process that
        dies takes the others of its JAX run along.

        Raises:
          InputError: if a part has not opened this folder after ten minutes.
        """
        pause, waited = 0.1, 0.0
        while True:
            if sum(entry["index"] < expected for entries in self.merged() for entry in entries) == expected:
                return
            parts = range(self._part.count)
            absent = [k for k in parts if not (self.folder / f"samples{Part(k, len(parts)).suffix}.jsonl").exists()]
            if absent and waited > PATIENCE:
                raise InputError(f"{self.folder} is not shared with process {absent[0]}: give all processes one folder")
            time.sleep(pause)
            waited += pause
            pause = min(2 * pause, 10.0)

    def wait_for_summary(self) -> None:
        """Return when another part, which runs beside this one, has written the summary."""
        while not (self.folder / SUMMARY_FILE).exists():
            time.sleep(1.0)

    def merged(self) -> tuple[list[Line], list[Line]]:
        """Results of all parts so far, and what parts have left without one; both in the order of the source."""
        self.lines = self._all_lines()
        unscored: dict[int, Line] = {}
        for path in self._files(_UNSCORED):
            for entry in _parsed(path, [path.read_text(encoding="utf-8")])[0]:
                if entry["index"] not in self.lines:
                    unscored[entry["index"]] = entry
        return [self.lines[index] for index in sorted(self.lines)], [unscored[index] for index in sorted(unscored)]

    def publish(self, summary: Mapping[str, Any]) -> None:
        """Write the results of all parts as one file, and the summary; NaN becomes null, since JSON has none."""
        lines = "".join(json.dumps(self.lines[index]) + "\n" for index in sorted(self.lines))
        write_atomically(self.folder / SAMPLES_FILE, lines)
        text = json.dumps(_without_nan(summary), indent=1, allow_nan=False)
        write_atomically(self.folder / SUMMARY_FILE, text + "\n")

    def _join(self, settings: str, part: Part, resume: bool) -> None:
        run = self.folder / _RUN_FILE
        if not run.exists() and _create(run, settings):
            return
        counts = {int(match[1] or 1) for path in self._files(_SAMPLES) if (match := _SAMPLES.fullmatch(path.name))}
        # The merged file of a division lies beside its parts.
        others = counts - ({1, part.count} if part.count in counts else {part.count})
        if not resume and (self._own.exists() or others):
            raise InputError(
                f"{self.folder} holds an evaluation already: resume it (--resume) or choose another folder"
            )
        if run.read_text(encoding="utf-8") != settings:
            raise InputError(f"{self.folder} holds an evaluation with other settings ({run}): choose another folder")

    def _forget(self, part: Part) -> None:
        """Remove what this run will write anew: a summary, and failures that will be tried again."""
        if part.index == 0:
            (self.folder / SUMMARY_FILE).unlink(missing_ok=True)
        for path in self._files(_UNSCORED):
            match = _UNSCORED.fullmatch(path.name)
            if path == self._own_unscored or int((match and match[1]) or 1) != part.count:
                path.unlink(missing_ok=True)

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))

    def _all_lines(self) -> dict[int, Line]:
        found: dict[int, Line] = {}
        for path in self._files(_SAMPLES):
            for line in _parsed(path, _whole_lines(path)):
                found.setdefault(line["index"], line)
        return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that other processes see whole or not at all.

    Raises:
      OSError: if the folder cannot be written to.
    """
    with _draft(path, text) as draft:
        draft.replace(path)


def _create(path: Path, text: str) -> bool:
    """Write a file if it is not there; False if another process was faster."""
    with _draft(path, text) as draft:
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            draft.replace(path)
        return True


@contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    """A hidden file beside `path` with this text, gone at the end."""
    draft = path.with_name(f".rvseg-{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8")
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[str]:
    """The lines that have been written to their end; another process may be writing the next."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _parsed(path: Path, texts: Sequence[str]) -> list[Any]:
    try:
        values = [json.loads(text) for text in texts]
        for value in values:
            for entry in value if isinstance(value, list) else [value]:
                if not isinstance(entry["index"], int):
                    raise TypeError(f"index {entry['index']!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} holds something else than scores ({error!r}): choose another folder") from error
    return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
