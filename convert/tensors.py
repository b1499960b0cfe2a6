"""Tensors of checkpoint files as memory-mapped arrays."""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from rvseg_jax.convert.plan import ConversionError


class Tensors(Mapping[str, np.ndarray]):
    """{torch key: read-only array}; the arrays are views of mapped files and cost nothing until read."""

    def __init__(self, arrays: Mapping[str, np.ndarray], maps: Iterable["FileMap"] = ()) -> None:
        self._arrays = dict(arrays)
        self.maps = tuple(maps)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def drop_pages(self) -> None:
        """Gives back the memory of pages read so far; a later access reads them from the file again."""
        for file_map in self.maps:
            file_map.drop_pages()


class FileMap:
    """A file mapped for reading.

    Raises:
      ConversionError: if it is not there, is empty, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ConversionError(f"{path}: no such file") from None
        except ValueError:
            raise ConversionError(f"{path}: the file is empty; fetch it again") from None
        except OSError as error:
            raise ConversionError(f"{path}: cannot be read ({error.strerror})") from None

    def __len__(self) -> int:
        return len(self._map)

    def bytes(self, start: int, stop: int) -> bytes:
        """A copy of a range of bytes, shorter where the file ends."""
        return self._map[start:stop]

    def array(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        """`count` numbers from a byte offset on, as a view [count]."""
        if offset < 0 or offset + count * dtype.itemsize > len(self._map):
            raise ConversionError(f"{self.path}: truncated, a tensor ends beyond it; fetch it again")
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self._map, np.uint8, count * dtype.itemsize, offset).view(dtype)

    def drop_pages(self) -> None:
        """Gives back the memory of pages read so far, where the system can."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
