"""`rvseg geometry`: a clip in, point cloud, depth, confidence and camera path out."""

import argparse
import json
import sys
from pathlib import Path

from rvseg_jax.cli.predict import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg geometry`."""
    parser.description = (
        "Reconstruct what a clip shows by Pi3: NAME.ply is a coloured point cloud, NAME.geometry.npz holds depth and "
        "confidence of every frame, NAME.cameras.json the cameras. Sizes are up to one unknown scale. A folder of "
        "photographs without an order is fine."
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="a video file, an image, or a folder of frames")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--frames", type=int, default=32, help="frames to look at, evenly spread over the clip (%(default)s)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.1, help="points below it are left out, 0..1 (%(default)s)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="converted checkpoint folder (`rvseg convert`); default: bundled tiny weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision; default: that of the weights")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg geometry` and return its exit code."""
    from rvseg_jax.core.errors import InputError
    from rvseg_jax.formats.staging import check_writable
    from rvseg_jax.processing.video import open_video
    from rvseg_jax.systems.geomotion import geometry

    if not 0 <= args.confidence < 1:
        raise InputError(f"--confidence {args.confidence} must be at least 0 and below 1")
    if args.frames < 1:
        raise InputError(f"--frames {args.frames}: ask for at least 1")
    video = open_video(args.input)
    check_writable(args.output)
    model = geometry.load(args.checkpoint, dtype=args.dtype)
    if args.checkpoint is None:
        print(
            "rvseg: no --checkpoint given: using the tiny Pi3 that comes with the library, which is made for "
            "moving shapes; docs/geomotion.md says how to use the published weights",
            file=sys.stderr,
        )
    found = model(video, frames=args.frames)
    kept = found.trusted(args.confidence)
    written = [path.name for path in found.save(args.output, least_confidence=args.confidence)]
    summary = {
        "video": found.video,
        "frames": list(found.frames),
        "size": list(found.depth.shape[1:]),
        "points": int(kept.sum()),
        "files": written,
    }
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        what = f"{summary['points']} points from {len(found.frames)} frames"
        print(f"{what}, written to {args.output}: {', '.join(written)}")
    return 0
