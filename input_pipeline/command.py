"""`rvseg data`: write clips of moving_shapes in the layout of a benchmark, check a dataset, or write it as records."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.staging import Staging
from rvseg_jax.input_pipeline import video_rows
from rvseg_jax.input_pipeline.checks import NAMES, Report, check_dataset
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    geometric,
    list_hash,
    to_mevis,
    to_ref_davis,
    to_ref_youtube_vos,
    to_refcoco,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import LAYOUTS as MOTION_LAYOUTS
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import write_layout
from rvseg_jax.input_pipeline.datasets.moving_shapes.still_writers import LAYOUTS as STILL_LAYOUTS
from rvseg_jax.input_pipeline.datasets.moving_shapes.still_writers import write_layout as write_stills
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import (
    StillShapes,
    StillShapesConfig,
    stills_held_out,
    stills_list_hash,
)
from rvseg_jax.input_pipeline.datasets.registry import NAMES as REGISTERED
from rvseg_jax.input_pipeline.datasets.registry import open_dataset

# The split that `make` writes if not told, and the folder below the output: None for one of the split's name.
LAYOUTS = {
    "mevis": ("valid_u", None),
    "ref_davis": ("valid", "ref-davis"),
    "ref_youtube_vos": ("train", "ref-youtube-vos"),
    "refcoco": ("train", "coco"),
}
_SHOWN = 20  # problems printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser(
        "make",
        help="write clips of moving_shapes in the layout of a benchmark",
        description="Write clips of moving_shapes, with exact masks, as a dataset that loaders and `rvseg eval` read. "
        "Motion datasets get clips with geometry, in which the camera moves too; datasets of images get stills with "
        "several expressions each.",
    )
    make.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the dataset's folder")
    layouts = (*LAYOUTS, *STILL_LAYOUTS, *MOTION_LAYOUTS)
    make.add_argument("--layout", choices=layouts, default="mevis", help="layout to write (mevis)")
    make.add_argument("--split", help="split of the layout (valid_u, ref_davis: valid, stills: val, others: train)")
    make.add_argument("--clips", type=int, default=16, metavar="N", help="number of clips or stills (16)")
    make.add_argument(
        "--from", dest="stream", default="held_out", help="clips to take: held_out, valid, train (held_out)"
    )
    make.add_argument("--seed", type=int, default=0, help="base seed of the clips (0)")
    make.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="frame size (96 96; stills: 168 168)")
    make.add_argument("--frames", type=int, metavar="T", help="frames a clip (9)")
    make.add_argument("--no-masks", action="store_true", help="withhold the truth, as MeViS's valid split does")
    checks = actions.add_parser(
        "check",
        help="check that a dataset is complete and consistent",
        description="Check every file that a dataset's lists name, and compare its size with what was published. "
        "The exit code is 1 if there is a problem. `moving_shapes` prints the hashes of its held-out clips.",
    )
    names = (*NAMES, "moving_shapes")
    checks.add_argument("dataset", choices=names, metavar="DATASET", help=", ".join(names))
    checks.add_argument("root", type=Path, nargs="?", metavar="ROOT", help="the dataset's folder")
    checks.add_argument("--split", help="check this split alone (all that are there)")
    checks.add_argument("--frame-root", type=Path, metavar="DIR", help="where frames or images lie, if elsewhere")
    checks.add_argument("--decode", action="store_true", help="decode every frame rather than read its header")
    checks.add_argument("--json", action="store_true", help="print the reports as JSON")
    records = actions.add_parser(
        "records",
        help="write a dataset as one file for random access",
        description="Write a split as an ArrayRecord file, one row a video, with frames as they are on disk. It is "
        "read back as dataset `records`.",
    )
    records.add_argument("dataset", choices=REGISTERED, metavar="DATASET", help=", ".join(REGISTERED))
    records.add_argument("root", type=Path, metavar="ROOT", help="the dataset's folder")
    records.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="such as train.array_record")
    records.add_argument("--split", default="train", help="the split (train)")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg data` and return its exit code."""
    return {"make": _make, "check": _check, "records": _records}[args.action](args)


def _make(args: argparse.Namespace) -> int:
    if args.layout in MOTION_LAYOUTS:
        return _make_motion(args)
    if args.layout in STILL_LAYOUTS:
        return _make_stills(args)
    try:
        config = MovingShapesConfig(size=_size(args), frames=_frames(args), seed=args.seed, split=args.stream)
    except ValueError as error:
        raise InputError(str(error)) from None
    source = MovingShapes(config)
    if not 1 <= args.clips <= len(source):
        raise InputError(f"--clips {args.clips}: {args.stream} has 1 to {len(source)} clips")
    if args.layout in ("ref_davis", "refcoco") and args.no_masks:
        raise InputError(f"--no-masks: {args.layout} has no split without masks; use mevis or ref_youtube_vos")
    split, folder = LAYOUTS[args.layout]
    split, clips = args.split or split, range(args.clips)
    folder = folder or split
    with Staging(args.output) as staging:
        root = staging.path(folder)
        if args.layout == "mevis":
            sentences = to_mevis(root, source, clips, with_masks=not args.no_masks)
        elif args.layout == "ref_davis":
            sentences = to_ref_davis(root, source, clips, split=split)
        elif args.layout == "ref_youtube_vos":
            sentences = to_ref_youtube_vos(root, source, clips, split=split, with_masks=not args.no_masks)
        else:
            sentences = to_refcoco(root, source, clips, split=split)
    print(f"{args.clips} clips with {sentences} sentences written to {args.output / folder}")
    return 0


def _make_motion(args: argparse.Namespace) -> int:
    if args.split is not None or args.no_masks:
        raise InputError(f"--split and --no-masks: {args.layout} has no splits and no part without masks")
    try:
        config = geometric.GeometricShapesConfig(
            size=_size(args), frames=_frames(args), seed=args.seed, split=args.stream, with_flow=False, empty=0.0
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    source = geometric.GeometricShapes(config)
    if not 1 <= args.clips <= len(source):
        raise InputError(f"--clips {args.clips}: {args.stream} has 1 to {len(source)} clips")
    with Staging(args.output) as staging:
        clips = write_layout(args.layout, staging.path(args.layout), source, range(args.clips))
    print(f"{clips} clips written to {args.output / args.layout}")
    return 0


def _make_stills(args: argparse.Namespace) -> int:
    if args.frames is not None or args.no_masks:
        raise InputError(f"--frames and --no-masks: {args.layout} has single images, all of them with masks")
    size = tuple(args.size or StillShapesConfig.size)
    try:
        source = StillShapes(StillShapesConfig(size=size, seed=args.seed, split=args.stream))
    except ValueError as error:
        raise InputError(str(error)) from None
    if not 1 <= args.clips <= len(source):
        raise InputError(f"--clips {args.clips}: {args.stream} has 1 to {len(source)} images")
    folder, split = STILL_LAYOUTS[args.layout]
    with Staging(args.output) as staging:
        said = write_stills(args.layout, staging.path(folder), source, range(args.clips), args.split or split)
    print(f"{args.clips} images with {said} expressions written to {args.output / folder}")
    return 0


def _size(args: argparse.Namespace) -> tuple[int, int]:
    height, width = args.size or (96, 96)
    return height, width


def _frames(args: argparse.Namespace) -> int:
    return 9 if args.frames is None else int(args.frames)


def _check(args: argparse.Namespace) -> int:
    if args.dataset == "moving_shapes":
        return _print_hashes(args.json)
    if args.root is None:
        raise InputError(f"which {args.dataset}? give its ROOT folder")
    reports = check_dataset(args.dataset, args.root, args.split, frames=args.frame_root, decode=args.decode)
    if args.json:
        print(json.dumps({"dataset": args.dataset, "splits": [asdict(report) for report in reports]}, indent=1))
    else:
        for report in reports:
            _print_report(args.dataset, report)
    return 1 if any(report.problems for report in reports) else 0


def _records(args: argparse.Namespace) -> int:
    source = open_dataset(args.dataset, args.root, args.split)
    try:
        videos, sentences = video_rows.write(args.output, source)
    except OSError as error:
        raise InputError(f"cannot write {args.output} ({error.strerror or error}); nothing was kept") from error
    print(f"{videos} videos with {sentences} sentences written to {args.output}")
    return 0


def _print_report(dataset: str, report: Report) -> None:
    print(
        f"{dataset} {report.split}".rstrip()
        + f": {report.videos} videos, {report.frames} frames, {report.sentences} sentences, "
        f"{report.masks} masks: {len(report.problems) or 'no'} problem{'' if len(report.problems) == 1 else 's'}"
    )
    for note in report.notes:
        print(f"  {note}")
    for problem in report.problems[:_SHOWN]:
        print(f"  {problem}", file=sys.stderr)
    if len(report.problems) > _SHOWN:
        print(f"  and {len(report.problems) - _SHOWN} more (all with --json)", file=sys.stderr)


def _print_hashes(as_json: bool) -> int:
    """The hashes of the held-out lists on this machine, to be compared with those of others."""
    splits = ("held_out", "held_out_absent")
    hashes = {split: list_hash(MovingShapes(MovingShapesConfig(split=split))) for split in splits}
    hashes["held_out_stills"] = stills_list_hash(stills_held_out())
    if as_json:
        print(json.dumps(hashes, indent=1))
    else:
        for split, digest in hashes.items():
            print(f"{split:16} {digest}")
    return 0
