"""Datasets on disk by their names; each reader is imported when it is asked for."""

import difflib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.sources import ReferringVideo, Source

Opener = Callable[..., Source[ReferringVideo]]
# Name: module of this folder, and its function or class that is called with (root, split, clip_frames=...).
_READERS = {
    "mevis": ("mevis", "open_split"),
    "ref_youtube_vos": ("ref_youtube_vos", "RefYouTubeVos"),
    "ref_davis": ("ref_davis", "RefDavis"),
    "records": ("recorded", "open_records"),
    "tfds": ("recorded", "open_tfds"),
}
# These are called with their names first.
_VARIANTS = {name: ("refcoco", "open_variant") for name in ("refcoco", "refcoco+", "refcocog", "refcocog_google")}
NAMES = (*_READERS, *_VARIANTS)


def open_dataset(name: str, root: str | Path, split: str, *, clip_frames: int | None = None) -> Source[ReferringVideo]:
    """A split of a dataset, one item a sentence, nothing decoded.

    Args:
      name: one of `NAMES`.
      root: the dataset's folder; of "records", a file of `rvseg data records` or a folder with one a split; of "tfds",
        the folder of a prepared dataset.
      split: as the dataset calls it, such as "train".
      clip_frames: for training, one item for every `clip_frames`-th frame of a video rather than one for the
        whole video, with that frame as its anchor.

    Raises: InputError for an unknown name, nearest known names first, or a dataset that is missing or damaged.
    """
    return reader_of(name)(root, split, clip_frames=clip_frames)


def reader_of(name: str) -> Opener:
    """The function or class that opens a dataset.

    Raises: InputError for an unknown name.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=len(NAMES), cutoff=0.5)
        rest = [other for other in NAMES if other not in near]
        raise InputError(f"no dataset is called {name!r}; choose from {', '.join([*near, *rest])}")
    module, attribute = (_READERS | _VARIANTS)[name]
    opener: Opener = getattr(import_module(f"rvseg_jax.input_pipeline.datasets.{module}"), attribute)
    return partial(opener, name) if name in _VARIANTS else opener
