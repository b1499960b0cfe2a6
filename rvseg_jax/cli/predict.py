"""`rvseg predict`: a clip and sentences in, mask files and an overlay video out."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.systems import settings as system_settings

if TYPE_CHECKING:
    from rvseg_jax.api import Prediction
    from rvseg_jax.processing.video import Video
    from rvseg_jax.systems.base import SegmentOptions

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
DTYPES = ("float32", "bfloat16", "mixed", "parity")
# Of `formats.output.FORMATS`, whose module would be imported for `--help`.
FORMAT_NAMES = ("mevis", "davis", "rle", "npz", "overlay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg predict`."""
    parser.add_argument("input", metavar="INPUT", type=Path, help="a video file, an image, or a folder of frames")
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="*",
        help="what to segment; several sentences give several masks; none for geomotion, which finds what moves",
    )
    parser.add_argument("--system", default="flowrvs", help="which system (see `rvseg describe`); default %(default)s")
    parser.add_argument("--threshold", type=float, help="mask probability above which a pixel counts, 0..1")
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="for activations, such as 4GB; longer clips run in windows; default: half of what is free",
    )
    parser.add_argument("--whole-clip", action="store_true", help="never cut a clip into windows, as upstream does")
    add_result_arguments(parser, default_format="mevis")


def add_result_arguments(parser: argparse.ArgumentParser, *, default_format: str) -> None:
    """Declare what every command has that writes masks of a clip."""
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--checkpoint", type=Path, help="converted checkpoint folder (`rvseg convert`); default: bundled tiny weights"
    )
    parser.add_argument(
        "--format",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(FORMAT_NAMES)}; may be given several times; default {default_format}",
    )
    parser.add_argument("--no-overlay", action="store_true", help="write no overlay video")
    parser.add_argument("--dtype", choices=DTYPES, help="precision; default: that of the weights")
    system_settings.add_argument(parser)
    parser.add_argument("--fps", type=float, help="frame rate of a frame folder; default 24")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg predict` and return its exit code."""
    from rvseg_jax.api import check_texts
    from rvseg_jax.formats.output import check_formats
    from rvseg_jax.formats.staging import check_writable
    from rvseg_jax.processing.video import open_video
    from rvseg_jax.systems.base import SegmentOptions, module

    # All that can be wrong with the request is found before weights are loaded.
    check_texts(args.text, reads_text=module(args.system).READS_TEXT)
    formats = choose_formats(args.format, overlay=not args.no_overlay, default="mevis")
    check_formats(formats)
    if args.threshold is not None and not 0 < args.threshold < 1:
        raise InputError(f"--threshold {args.threshold} is not between 0 and 1")
    if args.whole_clip and args.max_memory:
        raise InputError("--whole-clip and --max-memory exclude each other; give one")
    options = SegmentOptions(
        max_memory=parse_bytes(args.max_memory) if args.max_memory else None,
        whole_clip=args.whole_clip,
        threshold=args.threshold,
    )
    settings = system_settings.parse(args.set)
    video = open_video(args.input, rate=args.fps)
    check_writable(args.output)
    prediction = predict_and_write(
        video,
        args.text,
        args.output,
        formats=formats,
        options=options,
        system=args.system,
        checkpoint=args.checkpoint,
        dtype=args.dtype,
        settings=settings,
    )
    summary = read_summary(args.output, prediction)
    if args.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_summary(summary, args.output)
    return 0


def predict_and_write(
    video: "Video",
    texts: Sequence[str],
    output: Path,
    *,
    formats: list[str],
    options: "SegmentOptions",
    system: str,
    checkpoint: Path | None,
    dtype: str | None = None,
    settings: dict[str, Any] | None = None,
) -> "Prediction":
    """Load the system, write its results for a clip into a folder, and return them."""
    from rvseg_jax import api
    from rvseg_jax.cli.progress import progress_bar

    predictor = api.load(system, checkpoint, dtype=dtype, **(settings or {}))
    if checkpoint is None:
        print(
            f"rvseg: no --checkpoint given: using the tiny {system} model that comes with the library, "
            "which is made for moving shapes; docs/status.md says how good it is, docs/quickstart.md how to use the "
            "published weights",
            file=sys.stderr,
        )
    with progress_bar() as progress:
        return predictor.predict_to(output, video, texts, formats=formats, options=options, progress=progress)


def read_summary(output: Path, prediction: "Prediction") -> dict[str, Any]:
    """What `Predictor.predict_to` wrote about a prediction beside its masks."""
    return json.loads((output / f"{prediction.video}.summary.json").read_text(encoding="utf-8"))


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """One line a sentence, then the files."""
    for sentence in summary["sentences"]:
        print(
            f"{sentence['text']!r}: {sentence['status']}, score {sentence['score']:.2f}, "
            f"a mask in {sentence['frames_with_mask']} of {summary['frames']} frames"
        )
    print(f"written to {output}: {', '.join([*summary['files'], summary['video'] + '.summary.json'])}")


def parse_bytes(text: str) -> int:
    """A size such as "4GB", "500 MB" or "3.5GiB" in bytes.

    Raises: InputError for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if not match or not float(match[1]):
        raise InputError(f"{text!r} is not a size; write it like 4GB, 500MB or 3.5GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def choose_formats(chosen: list[str] | None, *, overlay: bool, default: str) -> list[str]:
    """What `--format` and `--no-overlay` ask for.

    Raises: InputError where they contradict each other.
    """
    formats = list(chosen or [default])
    if overlay and "overlay" not in formats:
        formats.append("overlay")
    if not overlay and "overlay" in formats:
        raise InputError("--no-overlay and --format overlay exclude each other; give one")
    return formats
