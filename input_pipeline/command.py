"""`rvseg data`: write clips of moving_shapes in the layout of a benchmark, or check a dataset on disk."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.staging import Staging
from rvseg_jax.input_pipeline import check
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    list_hash,
    to_mevis,
    to_ref_davis,
)

LAYOUTS = ("mevis", "ref_davis")
_SHOWN = 20  # problems printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser(
        "make",
        help="write clips of moving_shapes in the layout of a benchmark",
        description="Write clips of moving_shapes, with exact masks, as a dataset that loaders and `rvseg eval` read.",
    )
    make.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the dataset's folder")
    make.add_argument("--layout", choices=LAYOUTS, default="mevis", help="layout to write (mevis)")
    make.add_argument("--split", help="split of the layout: valid_u (mevis) or valid (ref_davis) if not given")
    make.add_argument("--clips", type=int, default=16, metavar="N", help="number of clips (16)")
    make.add_argument(
        "--from", dest="stream", default="held_out", help="clips to take: held_out, valid, train (held_out)"
    )
    make.add_argument("--seed", type=int, default=0, help="base seed of the clips (0)")
    make.add_argument("--size", type=int, nargs=2, default=(96, 96), metavar=("H", "W"), help="frame size (96 96)")
    make.add_argument("--frames", type=int, default=9, metavar="T", help="frames a clip (9)")
    make.add_argument("--no-masks", action="store_true", help="withhold the truth, as MeViS's valid split does")
    checks = actions.add_parser(
        "check",
        help="check that a dataset is complete and consistent",
        description="Check every file that a dataset's lists name. The exit code is 1 if there is a problem.",
    )
    checks.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="a split (mevis) or root (ref_davis)")
    checks.add_argument("--layout", choices=(*LAYOUTS, "moving_shapes"), default="mevis", help="layout (mevis)")
    checks.add_argument("--split", default="valid", help="split below FOLDER (ref_davis; valid)")
    checks.add_argument("--frame-root", type=Path, metavar="DIR", help="where the videos' frames lie (mevis)")
    checks.add_argument("--decode", action="store_true", help="decode every frame rather than read its header")
    checks.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg data` and return its exit code."""
    return _make(args) if args.action == "make" else _check(args)


def _make(args: argparse.Namespace) -> int:
    try:
        config = MovingShapesConfig(size=tuple(args.size), frames=args.frames, seed=args.seed, split=args.stream)
    except ValueError as error:
        raise InputError(str(error)) from None
    source = MovingShapes(config)
    if not 1 <= args.clips <= len(source):
        raise InputError(f"--clips {args.clips}: {args.stream} has 1 to {len(source)} clips")
    if args.layout == "ref_davis" and args.no_masks:
        raise InputError("--no-masks: Ref-DAVIS has no split without masks; use --layout mevis")
    with Staging(args.output) as staging:
        if args.layout == "mevis":
            split = args.split or "valid_u"
            sentences = to_mevis(staging.path(split), source, range(args.clips), with_masks=not args.no_masks)
            where = args.output / split
        else:
            split, where = args.split or "valid", args.output
            root = staging.path("ref-davis")
            sentences = to_ref_davis(root, source, range(args.clips), split=split)
            where = args.output / "ref-davis"
    print(f"{args.clips} clips with {sentences} sentences written to {where}")
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.layout == "moving_shapes":
        return _print_hashes(args.json)
    if args.folder is None:
        raise InputError("which dataset? give its FOLDER")
    if args.layout == "mevis":
        report = check.check_mevis(args.folder, frames=args.frame_root, decode=args.decode)
    else:
        report = check.check_ref_davis(args.folder, split=args.split, decode=args.decode)
    if args.json:
        print(json.dumps(asdict(report), indent=1))
    else:
        print(
            f"{report.videos} videos, {report.frames} frames, {report.sentences} sentences, {report.masks} masks: "
            f"{len(report.problems) or 'no'} problem{'' if len(report.problems) == 1 else 's'}"
        )
        for problem in report.problems[:_SHOWN]:
            print(f"  {problem}", file=sys.stderr)
        if len(report.problems) > _SHOWN:
            print(f"  and {len(report.problems) - _SHOWN} more (all with --json)", file=sys.stderr)
    return 1 if report.problems else 0


def _print_hashes(as_json: bool) -> int:
    """The hashes of the held-out lists on this machine, to be compared with those of others."""
    splits = ("held_out", "held_out_absent")
    hashes = {split: list_hash(MovingShapes(MovingShapesConfig(split=split))) for split in splits}
    if as_json:
        print(json.dumps(hashes, indent=1))
    else:
        for split, digest in hashes.items():
            print(f"{split:16} {digest}")
    return 0
