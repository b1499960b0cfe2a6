"""One compressed `.npz` with all masks of a clip, for `numpy.load`."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


def write(path: Path, masks: Iterable[np.ndarray], shape: tuple[int, int, int, int], **arrays: np.ndarray) -> None:
    """Write `masks` one image at a time, and the other arrays under their names.

    Shapes: masks N * T images [H, W] bool, all frames of one sentence after the other; shape is [N, T, H, W].
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("masks.npy", "w", force_zip64=True) as file:
            header = {"descr": "|b1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for mask in masks:
                file.write(np.ascontiguousarray(mask, dtype=bool).tobytes())
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def read(path: Path) -> Mapping[str, np.ndarray]:
    """Read all arrays: `masks` [N, T, H, W] bool, `text`, `status`, `scores` [N], `frames` [T], `rate`."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
