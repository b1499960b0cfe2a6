"""`rvseg track`: objects that are pointed at in one frame, followed through a video."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvseg_jax.cli.predict import add_result_arguments, choose_formats, print_summary, read_summary
from rvseg_jax.core.errors import InputError
from rvseg_jax.systems import settings as system_settings

if TYPE_CHECKING:
    from rvseg_jax.trackers.prompts import Prompt

_EPILOG = """
One object, boxed in the first frame:
  rvseg track clip.mp4 --box 40,60,120,200 -o out/
Two objects, the second clicked in frame 30, with a point that is not on it:
  rvseg track clip.mp4 --points 310,220 --object 2 --at 30 --points 90,80 --points 140,95,0 -o out/
All objects of a label image (its values are their numbers):
  rvseg track frames/ --mask first.png --tracker xmem -o out/
"""


@dataclass
class _Given:
    """Prompts of one object in one frame, as the command line gives them."""

    at: int
    object_id: int
    points: list[tuple[float, float, int]]
    box: tuple[float, ...] | None = None
    mask: Path | None = None


class _Collect(argparse.Action):
    """Keeps the order of --object, --at and the prompts: each prompt belongs to the last object and frame before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        kept = list(getattr(namespace, "prompts", None) or [])
        kept.append((self.dest, values))
        namespace.prompts = kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg track`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("video", metavar="VIDEO", type=Path, help="a video file or a folder of frames")
    parser.set_defaults(prompts=[])
    prompt = parser.add_argument_group("what to follow; --object and --at hold for the prompts behind them")
    prompt.add_argument("--object", action=_Collect, type=int, metavar="ID", help="number of the object; default 1")
    prompt.add_argument("--at", action=_Collect, type=int, metavar="FRAME", help="frame of the prompts; default 0")
    prompt.add_argument(
        "--points",
        action=_Collect,
        metavar="X,Y[,0]",
        help="a point on the object in pixels, or with ,0 one that is not; several times, or separated by ;",
    )
    prompt.add_argument("--box", action=_Collect, metavar="X0,Y0,X1,Y1", help="a box around the object in pixels")
    prompt.add_argument(
        "--mask",
        action=_Collect,
        metavar="PNG",
        help="a mask of the object; or, without --object, a label image whose values are the objects' numbers",
    )
    parser.add_argument("--tracker", choices=("sam2", "xmem"), default="sam2", help="default %(default)s")
    parser.add_argument(
        "--size", metavar="PIXELS", type=int, help="of the shorter side at which xmem works; sam2 has a fixed size"
    )
    parser.add_argument("--backward", action="store_true", help="also follow towards the beginning of the video")
    add_result_arguments(parser, default_format="davis")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg track` and return its exit code."""
    from rvseg_jax import api
    from rvseg_jax.cli.progress import progress_bar
    from rvseg_jax.formats.output import check_formats
    from rvseg_jax.formats.staging import check_writable
    from rvseg_jax.processing.video import open_video

    # All that can be wrong with the request is found before weights are loaded.
    prompts = read_prompts(args.prompts)
    formats = choose_formats(args.format, overlay=not args.no_overlay, default="davis")
    check_formats(formats)
    settings = system_settings.parse(args.set)
    if args.size is not None:
        if args.tracker == "sam2":
            raise InputError("--size is for xmem: the size at which sam2 works comes with its weights")
        settings["size"] = args.size
    video = open_video(args.video, rate=args.fps)
    for frame, objects in prompts.items():
        for object_id, prompt in objects.items():
            prompt.check((video.height, video.width), f"object {object_id} in frame {frame}", appears=True)
    check_writable(args.output)
    tracker = api.load(args.tracker, args.checkpoint, dtype=args.dtype, **settings)
    if args.checkpoint is None:
        print(
            f"rvseg: no --checkpoint given: using the tiny {args.tracker} that comes with the library, which shows the "
            "path and follows little; docs/tracking.md says how little, and how to use the published weights",
            file=sys.stderr,
        )
    with progress_bar() as progress:
        prediction = tracker.track_to(
            args.output, video, prompts, formats=formats, backward=args.backward, progress=progress
        )
    summary = read_summary(args.output, prediction)
    if args.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_summary(summary, args.output)
    return 0


def read_prompts(given: Sequence[tuple[str, Any]]) -> "dict[int, dict[int, Prompt]]":
    """Prompts by frame and object.

    Args:
      given: pairs of an option ("object", "at", "points", "box", "mask") and its value, as they stand on the line.

    Raises:
      InputError: for values that are no prompts, or contradict each other.
    """
    from rvseg_jax.trackers.prompts import Prompt

    groups: dict[tuple[int, int], _Given] = {}
    labelled: list[tuple[int, Path]] = []
    at, object_id, named = 0, 1, False
    for option, value in given:
        if option == "object":
            object_id, named = value, True
        elif option == "at":
            at = value
        elif option == "mask" and not named:
            labelled.append((at, Path(value)))
        else:
            group = groups.setdefault((at, object_id), _Given(at, object_id, []))
            _take(group, option, value)
    found: dict[int, dict[int, Prompt]] = {}
    for frame, path in labelled:
        for number, mask in _objects_of(path).items():
            _put(found, frame, number, Prompt.of(mask=mask))
    for group in groups.values():
        if group.mask is not None and (group.points or group.box):
            raise InputError(f"object {group.object_id}: give either --mask, or --points and --box")
        if group.mask is not None:
            prompt = Prompt.of(mask=_mask_of(group.mask))
        else:
            places = [(x, y) for x, y, _ in group.points] or None
            prompt = Prompt.of(points=places, labels=[kind for *_, kind in group.points] or None, box=group.box)
        _put(found, group.at, group.object_id, prompt)
    if not found:
        raise InputError("nothing to follow: give --points, --box or --mask, such as --box 40,60,120,200")
    return found


def _take(group: _Given, option: str, value: str) -> None:
    if option == "points":
        for point in filter(None, value.split(";")):
            numbers = _numbers(point, (2, 3), "--points X,Y or X,Y,0")
            group.points.append((numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1))
    elif option == "box":
        if group.box is not None:
            raise InputError(f"object {group.object_id} has two boxes in frame {group.at}: give one")
        group.box = _numbers(value, (4,), "--box X0,Y0,X1,Y1")
    else:
        if group.mask is not None:
            raise InputError(f"object {group.object_id} has two masks in frame {group.at}: give one")
        group.mask = Path(value)


def _put(found: "dict[int, dict[int, Prompt]]", frame: int, object_id: int, prompt: "Prompt") -> None:
    if object_id in found.setdefault(frame, {}):
        raise InputError(f"object {object_id} has two prompts in frame {frame}: give --object numbers that differ")
    found[frame][object_id] = prompt


def _numbers(text: str, counts: tuple[int, ...], form: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        raise InputError(f"{text!r} is not of the form {form}, in pixels")
    return numbers


def _mask_of(path: Path) -> Any:
    from rvseg_jax.formats.mask_png import read_mask

    return read_mask(path)


def _objects_of(path: Path) -> dict[int, Any]:
    """Masks by number: the values of a label image; a mask of 0 and 255 is object 1."""
    import numpy as np

    from rvseg_jax.formats.davis import VOID, read_labels

    labels = read_labels(path)
    values = [int(value) for value in np.unique(labels) if value not in (0, VOID)]
    if not values:
        if not (labels == VOID).any():
            raise InputError(f"{path} is empty: it shows no object")
        return {1: labels == VOID}
    return {value: labels == value for value in values}
