"""Pickles from outside, read as the plain values that they should hold; nothing that they name is run."""

import pickle
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError

SIZE_LIMIT = 1 << 30


def read(path: Path) -> Any:
    """The dicts, lists, tuples, sets, strings, bytes and numbers of a pickle, of Python 2 or 3.

    Raises: InputError where the file is missing, larger than `SIZE_LIMIT` bytes, damaged, or names anything else.
    """
    try:
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise InputError(f"{path} has {size} bytes; pickles above {SIZE_LIMIT} bytes are refused")
        with path.open("rb") as file:
            return _Unpickler(file, encoding="utf-8").load()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; is {path.parent} the right folder?") from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything that its opcodes can
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no pickle of plain values ({reason})") from None


def _bytes_of(text: str, encoding: str) -> bytes:
    """How protocol 2 and older write bytes: as text whose characters are their values."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes {type(text).__name__} as {encoding!r}")
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")
