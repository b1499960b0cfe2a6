"""The formats that a prediction can be written in, and where each lies below the output folder."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import npz, rle, rle_json
from rvseg_jax.formats.davis import DavisWriter
from rvseg_jax.formats.mask_png import MaskPngWriter
from rvseg_jax.formats.overlay import OverlayWriter
from rvseg_jax.formats.staging import Staging
from rvseg_jax.processing.video import Video

FORMATS = {
    "mevis": "mevis/{video}",
    "davis": "davis/{video}",
    "rle": "{video}.rle.json",
    "npz": "{video}.npz",
    "overlay": "{video}.overlay.mp4",
}


class MaskWriter(Protocol):
    """A format that is written while masks are computed."""

    def add(self, names: Sequence[str], masks: np.ndarray) -> None:
        """Write the next frames, [N, t, H, W] bool."""

    def close(self) -> None:
        """Finish what was written."""

    def abort(self) -> None:
        """Let go of files that will be thrown away."""


def check_formats(formats: str | Sequence[str]) -> list[str]:
    """The formats as a list without repetition.

    Raises: InputError for an unknown one.
    """
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    for name in names:
        if name not in FORMATS:
            raise InputError(f"no format is called {name!r}; choose from {', '.join(FORMATS)}")
    return names


@contextmanager
def writers(
    staging: Staging, formats: Sequence[str], name: str, labels: Sequence[int], video: Video | None, *, first: int = 0
) -> Iterator[list[MaskWriter]]:
    """The writers of those formats that are written as masks come, for a clip called `name`; closed at the end.

    Args:
      labels: number of each sentence or object, 1 and up.
      first: what number 1 is called where folders have numbers: sentences count from 0, objects from 1.

    Raises: InputError for an overlay where `video` is None, and for more sentences than a format holds.
    """
    with ExitStack() as opened:
        made: list[MaskWriter] = []
        for format_name in formats:
            path = FORMATS[format_name].format(video=name)
            if format_name == "mevis":
                made.append(MaskPngWriter(staging.path(path), [str(label - 1 + first) for label in labels]))
            elif format_name == "davis":
                made.append(DavisWriter(staging.path(path), labels))
            elif format_name == "overlay":
                if video is None:
                    raise InputError("an overlay needs the clip once more; give a file, a folder or an array")
                made.append(OverlayWriter(staging.path(path), video))
            else:
                continue
            opened.push(_finish(made[-1]))
        yield made


def write_whole(staging: Staging, formats: Sequence[str], record: dict[str, Any]) -> None:
    """Write those formats that need all masks, from a record in the form of `formats.rle_json`."""
    if "rle" in formats:
        rle_json.write(staging.path(FORMATS["rle"].format(video=record["video"])), record)
    if "npz" in formats:
        sentences = record["sentences"]
        npz.write(
            staging.path(FORMATS["npz"].format(video=record["video"])),
            (rle.decode(mask) for sentence in sentences for mask in sentence["masks"]),
            (len(sentences), len(record["frames"]), record["height"], record["width"]),
            text=np.array([sentence["text"] for sentence in sentences]),
            status=np.array([sentence["status"] for sentence in sentences]),
            scores=np.array([sentence["score"] for sentence in sentences], dtype=np.float32),
            frames=np.array(record["frames"]),
            rate=np.array(record["rate"]),
        )


def write_summary(path: Path, record: dict[str, Any], results: Sequence[str]) -> None:
    """Write what a program wants to know of a prediction without its masks, and the files that hold them."""
    sentences = [
        {key: value for key, value in sentence.items() if key != "masks"}
        | {"frames_with_mask": sum(rle.area(mask) > 0 for mask in sentence["masks"])}
        | {"boxes": [list(rle.to_box(mask)) if rle.area(mask) else None for mask in sentence["masks"]]}
        for sentence in record["sentences"]
    ]
    summary = {**record, "frames": len(record["frames"]), "sentences": sentences, "files": list(results)}
    rle_json.write(path, summary, indent=2)


def _finish(writer: MaskWriter) -> Any:
    return lambda kind, error, trace: writer.close() if kind is None else writer.abort()
