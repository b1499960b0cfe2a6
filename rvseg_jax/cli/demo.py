"""`rvseg demo`: make a small clip of moving shapes, segment it by its own sentences, and score the masks."""

import argparse
import json
from pathlib import Path

# Slow enough to watch: the clips have nine frames.
RATE = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg demo`."""
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--index", type=int, default=0, help="which held-out clip, 0..255; default %(default)s")
    parser.add_argument("--system", default="flowrvs", help="which system; default %(default)s")
    parser.add_argument("--checkpoint", type=Path, help="default: bundled tiny weights")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg demo` and return its exit code."""
    from rvseg_jax.cli.predict import predict_and_write, print_summary, read_summary
    from rvseg_jax.core.errors import InputError
    from rvseg_jax.evaluation.davis import region_and_boundary
    from rvseg_jax.formats.mp4 import write_video
    from rvseg_jax.formats.staging import Staging
    from rvseg_jax.input_pipeline.datasets.moving_shapes import held_out
    from rvseg_jax.processing.video import open_video
    from rvseg_jax.systems.base import SegmentOptions

    try:
        sample = held_out()[args.index]
    except IndexError as error:
        raise InputError(f"--index {args.index}: {error}") from None
    with Staging(args.output) as staging:
        write_video(staging.path("moving_shapes.mp4"), sample.frames, RATE)
    prediction = predict_and_write(
        open_video(args.output / "moving_shapes.mp4"),
        (sample.text, sample.other_text),
        args.output,
        formats=["mevis", "overlay"],
        options=SegmentOptions(),
        system=args.system,
        checkpoint=args.checkpoint,
    )
    summary = read_summary(args.output, prediction)
    for sentence, masks, truth in zip(
        summary["sentences"], prediction.masks, (sample.masks, sample.other_masks), strict=True
    ):
        region, boundary = region_and_boundary(truth, masks)
        sentence["j_and_f"] = round(float(region.mean() + boundary.mean()) / 2, 4)
    if args.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    print_summary(summary, args.output)
    for sentence in summary["sentences"]:
        print(f"{sentence['text']!r}: J&F {sentence['j_and_f']:.2f} against the truth")
    print(f"watch {args.output / 'moving_shapes.overlay.mp4'}")
    return 0
