"""Datasets of motion segmentation on disk by their names."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets import motion_benchmarks, motion_training
from rvseg_jax.input_pipeline.datasets.masked_videos import MaskedVideos

# The versions with motion truth differ from DAVIS in their masks alone, and are named apart for that reason.
BENCHMARKS: dict[str, Callable[[Path], MaskedVideos]] = {
    "davis16": partial(motion_benchmarks.davis, year="2016"),
    "davis17": partial(motion_benchmarks.davis, year="2017"),
    "davis_all": partial(motion_benchmarks.davis, year=None),
    "davis16_m": partial(motion_benchmarks.davis, year="2016"),
    "davis17_m": partial(motion_benchmarks.davis, year="2017"),
    "fbms": motion_benchmarks.fbms,
    "segtrack": motion_benchmarks.segtrack,
}
TRAINING: dict[str, Callable[[Path], MaskedVideos]] = {
    "got10k": motion_training.got10k,
    "hoi4d": motion_training.hoi4d,
    "dynamic_stereo": motion_training.dynamic_stereo,
    "gotmoving": motion_training.gotmoving,
    "dynamic_verse": motion_training.dynamic_verse,
}
NAMES = (*BENCHMARKS, *TRAINING)


def open_motion(name: str, root: str | Path) -> MaskedVideos:
    """The videos of a dataset, nothing decoded.

    Args:
      name: one of `NAMES`.
      root: the dataset's folder; of "gotmoving" also a list of folders.

    Raises: InputError for an unknown name, nearest known names first, or a dataset that is missing.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=len(NAMES), cutoff=0.5)
        rest = [other for other in NAMES if other not in near]
        raise InputError(f"no motion dataset is called {name!r}; choose from {', '.join([*near, *rest])}")
    return (BENCHMARKS | TRAINING)[name](Path(root))
