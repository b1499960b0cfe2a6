"""Reads safetensors files by memory map: a JSON header that is checked, then raw tensors.

Format: https://huggingface.co/docs/safetensors/index#format.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.tensors import FileMap, Tensors

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
HEADER_LIMIT = 100_000_000  # the limit of the format's own reader


def read_safetensors(path: Path) -> Tensors:
    """Tensors of one file.

    Raises:
      ConversionError: if the file is truncated, or is no safetensors file.
    """
    file_map = FileMap(path)
    header, start = _header(file_map)
    arrays, spans = {}, []
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(path, key, entry)
        arrays[key] = (dtype, shape, begin)
        spans.append((begin, end))
    size = start + max((end for _, end in spans), default=0)
    if size > len(file_map):
        raise ConversionError(f"{path}: truncated, {len(file_map)} bytes of {size} are there; fetch it again")
    spans.sort()
    if any(left[1] > right[0] for left, right in zip(spans, spans[1:], strict=False)):
        raise ConversionError(f"{path}: tensors overlap in the file; it is damaged")
    views = {
        key: file_map.array(dtype, math.prod(shape), start + begin).reshape(shape)
        for key, (dtype, shape, begin) in arrays.items()
    }
    return Tensors(views, [file_map])


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: a plausible header length, then a brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and int.from_bytes(start[:8], "little") <= HEADER_LIMIT and start[8:] == b"{"


def _header(file_map: FileMap) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file_map.bytes(0, 8), "little")
    if len(file_map) < 8 or length > HEADER_LIMIT:
        raise ConversionError(f"{file_map.path}: no safetensors file (a header of {length} bytes)")
    text = file_map.bytes(8, 8 + length)
    if len(text) < length:
        raise ConversionError(f"{file_map.path}: truncated within its header; fetch it again")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file_map.path}: no safetensors file (its header: {error})") from None
    if not isinstance(header, dict):
        raise ConversionError(f"{file_map.path}: no safetensors file (its header is no object)")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _entry(path: Path, key: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    try:
        name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ConversionError(f"{path}: the entry of {key!r} in its header is damaged")
    if name not in DTYPES:
        raise ConversionError(f"{path}: {key} has number format {name!r}; known are {', '.join(DTYPES)}")
    if end - begin != math.prod(shape) * DTYPES[name].itemsize:
        raise ConversionError(f"{path}: {key} of shape {shape} cannot be {end - begin} bytes; it is damaged")
    return DTYPES[name], shape, begin, end
