"""Masks for the evaluation servers of MeViS and Ref-YouTube-VOS: one folder a sentence, its check, and the archive.

<folder>/<video>/<expression>/<frame>.png     grey, 0 and 255, at the size of the frames; all 0 where nothing is found

The names are those of the lists (`meta_expressions.json`), and every frame of every sentence is there.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rvseg_jax.formats.mask_png import write_mask
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.staging import Staging

# (H, W) of a video in pixels, by its name.
SizeOf = Callable[[str], tuple[int, int]]
_HIDDEN = "."  # what unfinished work is called


def write_sentence(folder: Path, video: str, expression: str, names: Sequence[str], masks: np.ndarray) -> None:
    """Write the masks of one sentence, all of them or none; what lies there is replaced.

    Shapes: masks [T, H, W], bool, of the T frames called `names`.
    Raises: InputError where the folder cannot be written to.
    """
    with Staging(folder) as staging:
        target = staging.path(f"{video}/{expression}")
        target.mkdir()
        for name, mask in zip(names, masks, strict=True):
            write_mask(target / f"{name}.png", mask)


def is_complete(folder: Path, video: str, expression: str, names: Sequence[str], size: tuple[int, int]) -> bool:
    """Whether all masks of a sentence are there, by their names, sizes and modes; pixels are not read."""
    place = folder / video / expression
    return all(_wrong_header(place / f"{name}.png", size) is None for name in names)


def problems(folder: Path, clips: Mapping[str, Clip], size_of: SizeOf) -> Iterator[str]:
    """What a server would refuse or misread, each as a line with its cure: the check before `pack`.

    Names and counts are compared with the lists both ways; mode, size and pixel values of every mask are read.

    Args:
      folder: holds the masks.
      clips: the lists.
      size_of: size of the frames of a video.
    """
    yield from _unknown(folder, set(clips), "video")
    for video, clip in clips.items():
        if not (folder / video).is_dir():
            yield f"{folder / video} is missing with all its {len(clip.expressions)} sentences: predict it"
            continue
        size = size_of(video)
        yield from _unknown(folder / video, set(clip.expressions), "sentence")
        files = {f"{name}.png" for name in clip.frames}
        for key in clip.expressions:
            place = folder / video / key
            missing = [name for name in clip.frames if not (place / f"{name}.png").is_file()]
            if missing:
                yield f"{place} lacks {len(missing)} of {len(files)} masks, first {missing[0]}.png: predict it again"
            yield from _unknown(place, files, "frame")
            for name in clip.frames:
                wrong = None if name in missing else _wrong(place / f"{name}.png", size)
                if wrong is not None:
                    yield wrong


def pack(folder: Path, archive: Path, clips: Mapping[str, Clip], *, top: str = "") -> int:
    """Write the archive, whole or not at all; equal masks make equal archives.

    Args:
      folder: holds the masks, without `problems`.
      archive: the zip file; it is replaced.
      clips: the lists, which say what is packed and in which order.
      top: folder inside the archive; MeViS wants none, Ref-YouTube-VOS "Annotations".

    Returns:
      The number of masks in it.

    Raises: InputError where the archive cannot be written.
    """
    count = 0
    # PNG does not shrink again.
    with (
        Staging(archive.parent) as staging,
        zipfile.ZipFile(staging.path(archive.name), "w", zipfile.ZIP_STORED) as file,
    ):
        for video, clip in clips.items():
            for key in clip.expressions:
                for name in clip.frames:
                    inside = Path(top) / video / key / f"{name}.png"
                    entry = zipfile.ZipInfo(inside.as_posix())  # dated 1980 whenever it is written
                    entry.external_attr = 0o644 << 16
                    file.writestr(entry, (folder / video / key / f"{name}.png").read_bytes())
                    count += 1
    return count


def _unknown(folder: Path, known: set[str], kind: str) -> Iterator[str]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name not in known and not path.name.startswith(_HIDDEN):
                yield f"{path} is no {kind} of the lists: remove it"


def _wrong(path: Path, size: tuple[int, int]) -> str | None:
    wrong = _wrong_header(path, size)
    if wrong is not None:
        return wrong
    try:
        with Image.open(path) as image:
            values = {value for _, value in image.getcolors(256) or ()}
    except (OSError, SyntaxError, ValueError):
        return f"{path} is damaged: remove it and predict it again"
    if not values <= {0, 255}:
        return f"{path} has the value {min(values - {0, 255})}: write 0 and 255"
    return None


def _wrong_header(path: Path, size: tuple[int, int]) -> str | None:
    try:
        with Image.open(path) as image:
            found, mode, kind = (image.height, image.width), image.mode, image.format
    except (UnidentifiedImageError, OSError, SyntaxError):
        return f"{path} is missing or no image: predict it again"
    if kind != "PNG" or mode != "L":
        return f"{path} is a {kind} of mode {mode}: write a grey PNG of mode L"
    if found != size:
        return f"{path} is {found[1]}x{found[0]}, the frames {size[1]}x{size[0]}: write masks at the size of the frames"
    return None
