"""Writes clips with geometry in the layouts of motion datasets, so that loaders and evaluators run on known truth."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rvseg_jax.formats.davis import label_map, write_label_maps
from rvseg_jax.formats.frames import write_frames
from rvseg_jax.formats.mask_png import write_mask
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.dataset import GeometricSample, GeometricShapes

_SPARSE = 5  # FBMS: truth of every fifth frame


def write_layout(layout: str, root: Path, source: GeometricShapes, indices: Iterable[int]) -> int:
    """Writes clips as a dataset called `layout`, one of `LAYOUTS`.

    Returns:
      The number of clips.
    """
    videos = []
    for index in indices:
        sample = source[index]
        _WRITERS[layout](root, sample)
        videos.append(sample.video)
    if layout in _LISTS:
        path = root / _LISTS[layout]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{video}\n" for video in videos), encoding="utf-8")
    return len(videos)


def _masks(folder: Path, sample: GeometricSample, every: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in list(zip(sample.frame_names, sample.masks, strict=True))[::every]:
        write_mask(folder / f"{name}.png", mask)


def _davis(root: Path, sample: GeometricSample) -> None:
    write_frames(root / "JPEGImages" / "480p" / sample.video, sample.frames)
    _masks(root / "Annotations" / "480p" / sample.video, sample)


def _davis_labels(root: Path, sample: GeometricSample) -> None:
    write_frames(root / "JPEGImages" / "480p" / sample.video, sample.frames)
    moving = sample.object_masks[sample.moving]
    labels = np.stack([label_map(masks) for masks in np.moveaxis(moving, 1, 0)])
    write_label_maps(root / "Annotations" / "480p" / sample.video, sample.frame_names, labels)


def _fbms(root: Path, sample: GeometricSample) -> None:
    write_frames(root / "JPEGImages" / sample.video, sample.frames)
    _masks(root / "Annotations" / sample.video, sample, _SPARSE)


def _segtrack(root: Path, sample: GeometricSample) -> None:
    write_frames(root / "JPEGImages_jpg_standardized" / sample.video, sample.frames)
    _masks(root / "GroundTruth" / sample.video, sample)


def _got10k(root: Path, sample: GeometricSample) -> None:
    write_frames(root / sample.video / "images", sample.frames)
    _masks(root / sample.video / "masks", sample)


def _hoi4d(root: Path, sample: GeometricSample) -> None:
    write_frames(root / "images" / sample.video, sample.frames, suffix=".png")
    _masks(root / "dynamic_masks" / sample.video, sample)


def _dynamic_stereo(root: Path, sample: GeometricSample) -> None:
    folder = root / "train" / sample.video
    write_frames(folder / "images", sample.frames, suffix=".png")
    (folder / "dynamic_masks").mkdir()
    for number, mask in enumerate(sample.masks):
        write_mask(folder / "dynamic_masks" / f"mask_{number:05d}.png", mask)


def _gotmoving(root: Path, sample: GeometricSample) -> None:
    folder = root / sample.video
    write_frames(folder, sample.frames)
    (folder / "masks").mkdir()
    moving = sample.object_masks[sample.moving]
    for t, name in enumerate(sample.frame_names):
        objects = {str(number): mask[None] for number, mask in enumerate(moving[:, t], 1)}
        np.savez_compressed(folder / "masks" / f"{name}.npz", allow_pickle=False, **objects)


def _dynamic_verse(root: Path, sample: GeometricSample) -> None:
    folder = root / "scenes" / sample.video
    write_frames(folder / "rgb", sample.frames, suffix=".png")
    _masks(folder / "mask", sample)


_WRITERS: dict[str, Callable[[Path, GeometricSample], None]] = {
    "davis16": _davis,
    "davis17": _davis_labels,
    "fbms": _fbms,
    "segtrack": _segtrack,
    "got10k": _got10k,
    "hoi4d": _hoi4d,
    "dynamic_stereo": _dynamic_stereo,
    "gotmoving": _gotmoving,
    "dynamic_verse": _dynamic_verse,
}
_LISTS = {"davis16": "ImageSets/2016/val.txt", "davis17": "ImageSets/2017/val.txt"}
LAYOUTS = tuple(_WRITERS)
