"""One JSON file a clip with all masks run-length coded, as COCO's tools read them.

{"video", "height", "width", "rate": "30000/1001", "frames": [name, ...],
 "sentences": [{"text", "status", "score", "masks": [{"size": [H, W], "counts": str}, one a frame]}, ...]}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle


def write(path: Path, record: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a record; text stays readable in any script."""
    path.write_text(json.dumps(record, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read a record and check that every sentence has one valid mask of the clip's size for every frame.

    Raises: InputError where it does not.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        size, frames = [record["height"], record["width"]], record["frames"]
        for sentence in record["sentences"]:
            if len(sentence["masks"]) != len(frames):
                raise InputError(
                    f"{path}: {sentence['text']!r} has {len(sentence['masks'])} masks for {len(frames)} frames"
                )
            for name, mask in zip(frames, sentence["masks"], strict=True):
                if mask["size"] != size:
                    raise InputError(f"{path}: frame {name} has size {mask['size']}, the clip has {size}")
                rle.counts_of(mask)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a mask file of `rvseg predict` ({error!r})") from None
    return record
