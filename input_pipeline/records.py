"""Samples as ArrayRecord files: rows of named numpy arrays, with a description beside them."""

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, np.ndarray]


def _encode(row: Row) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **row)
    return buffer.getvalue()


def _decode(record: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(record), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def write_records(path: str | Path, rows: Iterable[Row], *, description: Mapping[str, Any]) -> int:
    """Writes rows to an ArrayRecord file; the file appears under its name only when it is complete.

    Args:
      path: the file, conventionally `*.array_record`.
      rows: {name: array} each, of plain numbers or strings.
      description: JSON-able; what the rows were made from, so that `Records` can tell whether they still fit.

    Returns:
      The number of rows.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    count = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for row in rows:
            writer.write(_encode(row))
            count += 1
        writer.close()
        text = json.dumps({"count": count, "description": dict(description)}, indent=1, sort_keys=True)
        # The rows come first: a description without its rows would look whole.
        os.replace(partial, path)
        _description_path(partial).write_text(text)
        os.replace(_description_path(partial), _description_path(path))
    finally:
        for leftover in (partial, _description_path(partial)):
            leftover.unlink(missing_ok=True)
    return count


def description_of(path: str | Path) -> dict[str, Any] | None:
    """What the records at `path` were made from, or None if there is no complete file."""
    path = Path(path)
    if not path.is_file() or not _description_path(path).is_file():
        return None
    return json.loads(_description_path(path).read_text())["description"]


class Records:
    """Random access to the rows of a file of `write_records`; it is pickled by path."""

    def __init__(self, path: str | Path) -> None:
        """Opens a file.

        Raises:
          FileNotFoundError: if it is missing or incomplete.
        """
        self.path = Path(path)
        if description_of(self.path) is None:
            raise FileNotFoundError(f"no complete records at {self.path}: write them again")
        self._count = int(json.loads(_description_path(self.path).read_text())["count"])
        self._reader: Any = None

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"{self.path}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index` as {name: array}.

        Raises:
          IndexError: outside of 0..len-1.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        if not 0 <= index < self._count:
            raise IndexError(f"{self.path} has {self._count} rows, no row {index}")
        if self._reader is None:
            self._reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0")
        return _decode(self._reader.read([int(index)])[0])
