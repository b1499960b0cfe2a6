"""Reads the zip archives that `torch.save` writes, without torch and without running what they ask for.

Such an archive holds one pickle and one uncompressed record for each storage. The unpickler here knows a
short list of names: tensors, storages, plain containers, and a few classes of training checkpoints (such as
`argparse.Namespace`) whose contents are thrown away. Everything else is refused. Tensors are views of the
mapped file.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.tensors import FileMap

PICKLE_LIMIT = 512 * 2**20
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch's magic number of 2016 as a pickled integer

STORAGES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "DoubleStorage": np.float64,
        "FloatStorage": np.float32,
        "HalfStorage": np.float16,
        "BFloat16Storage": ml_dtypes.bfloat16,
        "LongStorage": np.int64,
        "IntStorage": np.int32,
        "ShortStorage": np.int16,
        "CharStorage": np.int8,
        "ByteStorage": np.uint8,
        "BoolStorage": np.bool_,
        "ComplexFloatStorage": np.complex64,
        "ComplexDoubleStorage": np.complex128,
    }.items()
}
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}


class Inert:
    """Stands for an object whose contents do not matter here; takes everything and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Part of how pickle fills a list."""

    def extend(self, items: Any) -> None:
        """Part of how pickle fills a list."""


INERT = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "device"),
    ("torch.nn.parameter", "Parameter"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


def read_torch_zip(path: Path) -> tuple[Any, FileMap]:
    """The object that was saved, with arrays in place of tensors, and the map that they look into.

    Raises:
      ConversionError: if the file is truncated, no archive of `torch.save`, or asks for a name that is not
        on the list.
    """
    file_map = FileMap(path)
    records = _records(file_map)
    prefix = _prefix(path, records)
    start, size = records[f"{prefix}data.pkl"]
    if size > PICKLE_LIMIT:
        raise ConversionError(f"{path}: its pickle has {size} bytes, more than the {PICKLE_LIMIT} allowed")
    if f"{prefix}byteorder" in records:
        begin, length = records[f"{prefix}byteorder"]
        if file_map.bytes(begin, begin + min(length, 16)).strip() != b"little":
            raise ConversionError(f"{path}: written on a big-endian machine; save it again on another one")
    unpickler = _Unpickler(file_map, records, prefix, start, size)
    try:
        return unpickler.load(), file_map
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can raise anything that its opcodes can
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConversionError(f"{path}: its pickle is damaged ({reason})") from None


def pickle_error(path: Path) -> ConversionError:
    """The error for a file that is a bare pickle: torch's legacy format, or no tensor archive at all."""
    with path.open("rb") as file:
        start = file.read(64)
    if LEGACY_MAGIC in start:
        return ConversionError(
            f"{path}: written in torch's legacy format; save it anew with "
            f"torch.save(torch.load({path.name!r}, weights_only=True), 'new.pth')"
        )
    return ConversionError(f"{path}: a pickle that is no tensor archive; only files of torch.save are read")


def _records(file_map: FileMap) -> dict[str, tuple[int, int]]:
    """{record name: (first byte, number of bytes)} of an archive whose records are all stored as they are."""
    path = file_map.path
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, NotImplementedError, OSError) as error:
        raise ConversionError(f"{path}: truncated or damaged archive ({error}); fetch it again") from None
    records = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ConversionError(
                f"{path}: {info.filename} is compressed or encrypted, as torch.save never does; save it again"
            )
        # The local header repeats the name and has padding of its own, so that tensors are aligned.
        local = file_map.bytes(info.header_offset, info.header_offset + 30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise ConversionError(f"{path}: the header of {info.filename} is damaged; fetch it again")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + 30 + name_length + extra_length
        if begin + info.file_size > len(file_map):
            raise ConversionError(f"{path}: {info.filename} ends beyond the file; it is truncated")
        if info.filename in records:
            raise ConversionError(f"{path}: {info.filename} is there twice; the archive is damaged")
        records[info.filename] = (begin, info.file_size)
    return records


def _prefix(path: Path, records: Mapping[str, tuple[int, int]]) -> str:
    pickles = [name for name in records if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ConversionError(f"{path}: no archive of torch.save (it holds {len(pickles)} records data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise ConversionError(
            f"{path}: a TorchScript archive; save its weights with torch.save(module.state_dict(), 'new.pth')"
        )
    return prefix


class _StorageType:
    """How the numbers of a storage are stored."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Storage:
    """The numbers of a storage; a class of its own, so that no pickle can pass off a strided view as one."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers


class _Unpickler(pickle.Unpickler):
    """Makes plain containers and array views; refuses every name that is not on the list."""

    def __init__(
        self, file_map: FileMap, records: Mapping[str, tuple[int, int]], prefix: str, start: int, size: int
    ) -> None:
        super().__init__(io.BytesIO(file_map.bytes(start, start + size)), encoding="utf-8")
        self._map, self._records, self._prefix = file_map, records, prefix
        self._known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "Counter"): collections.Counter,
            ("builtins", "set"): set,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
            ("torch._tensor", "_rebuild_from_type_v2"): _rebuilt,
            ("torch.storage", "UntypedStorage"): _StorageType(np.dtype(np.uint8)),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if (module, name) in INERT:
            return Inert
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise ConversionError(
            f"{self._map.path}: its pickle asks for {module}.{name}, which is no tensor; nothing was run. "
            "If you trust the file, load it with torch and save its state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or type(count) is not int or count < 0:
            raise ConversionError(f"{self._map.path}: its pickle refers to {kind!r}, which is no storage")
        record = self._records.get(f"{self._prefix}data/{key}")
        if record is None:
            raise ConversionError(f"{self._map.path}: the record data/{key} of a tensor is missing")
        start, size = record
        if count * storage.dtype.itemsize > size:
            raise ConversionError(f"{self._map.path}: the record data/{key} is too short for its tensor")
        return _Storage(self._map.array(storage.dtype, count, start))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> np.ndarray:
        if any(isinstance(item, dict) and any(item.values()) for item in rest[2:]):
            raise ConversionError(f"{self._map.path}: a lazily conjugated tensor; save it resolved")
        numbers = (offset, *shape, *strides)
        if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides):
            raise ConversionError(f"{self._map.path}: a tensor of shape {shape} and strides {strides}")
        if not isinstance(storage, _Storage):
            raise ConversionError(f"{self._map.path}: a tensor without a storage")
        array = storage.numbers
        if 0 in shape:
            return np.empty(shape, array.dtype)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if last >= len(array):
            raise ConversionError(f"{self._map.path}: a tensor of shape {shape} looks beyond its storage")
        steps = [step * array.itemsize for step in strides]
        return np.ndarray(shape, array.dtype, array.view(np.uint8), offset * array.itemsize, steps)

    def _tensor_of_dtype(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, *rest: Any
    ) -> np.ndarray:
        dtype, *metadata = rest
        typed = _Storage(storage.numbers.view(dtype)) if isinstance(storage, _Storage) else None
        return self._tensor(typed, offset, shape, strides, grad, hooks, *metadata)


def _first(data: Any, *rest: Any) -> Any:
    return data


def _rebuilt(function: Any, kind: Any, args: Any, state: Any) -> Any:
    return function(*args)
