"""`rvseg convert`: inspect, convert, verify and export checkpoints (also `python -m rvseg_jax.convert`).

Exit codes: 0 fine; 1 a check failed; 2 bad input, nothing written; 3 not available here.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import UserError

SOURCES = (
    "weight files, a folder, or PART=PATH; for a system PART=PATH and folders of a whole pipeline "
    "(transformer/, vae/, text_encoder/, tokenizer/)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `rvseg convert`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_inspect(commands.add_parser("inspect", help="list what a weight file or a converted folder holds"))
    _add_convert(commands.add_parser("convert", help="convert torch weights into a folder that rvseg loads"))
    _add_verify(commands.add_parser("verify", help="read a converted folder again and compare it with its sources"))
    _add_export(commands.add_parser("export", help="write a converted folder back as torch-layout safetensors"))


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="weight file, index of shards, folder, or converted folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a system (flowrvs) or a part (wan_dit, wan_vae, umt5)")
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=SOURCES)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--dtype",
        choices=("source", "float32", "bfloat16"),
        default="source",
        help="number format of the stored parameters; default: that of the source",
    )
    _add_choices(parser)
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="tokenizer.json, if it is not in the folders")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        metavar="[PART=]CHOICE",
        action="append",
        default=[],
        help="of a training checkpoint: ema, model, or auto (the EMA where there is one); default auto",
    )
    parser.add_argument(
        "--config",
        metavar="[PART=]FILE",
        action="append",
        default=[],
        help="JSON with the sizes of the model, for weights that are no published size and have no config.json",
    )


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="converted folder")
    parser.add_argument("sources", metavar="SOURCE", nargs="*", help=f"what it was made from: {SOURCES}")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="converted folder")
    parser.add_argument("part", metavar="PART", help="the part to write")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def run(args: argparse.Namespace) -> int:
    """Runs `rvseg convert` and returns its exit code; bad input raises `InputError`."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)  # Orbax logs tracebacks of errors that come out here as one line
    actions = {"inspect": _inspect, "convert": _convert, "verify": _verify, "export": _export}
    return actions[args.action](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command by itself; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m rvseg_jax.convert", description="Convert checkpoints.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _inspect(args: argparse.Namespace) -> int:
    from rvseg_jax.convert.inspection import describe_folder, describe_weights, is_converted, lines

    found = describe_folder(args.path) if is_converted(args.path) else describe_weights(args.path)
    print(json.dumps(found, indent=1) if args.json else "\n".join(lines(found)))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from rvseg_jax.convert.converter import convert
    from rvseg_jax.convert.request import request

    wanted = request(args.name, args.sources, weights=args.weights, configs=args.config, tokenizer=args.tokenizer)
    manifest = convert(
        wanted.sources,
        args.output,
        system=wanted.system,
        dtype=args.dtype,
        tokenizer=wanted.tokenizer,
        report=_report(args.quiet),
    )
    for name, part in manifest.parts.items():
        print(f"{name}: {len(part.leaves)} leaves in {part.dtype}, from {_files(part.sources)} ({part.weights})")
        print(f"{name}: licence of the weights: {part.licence}")
    print(f"wrote {args.output}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from rvseg_jax.convert.converter import Source
    from rvseg_jax.convert.manifest import read_manifest
    from rvseg_jax.convert.request import gather
    from rvseg_jax.convert.verify import verify

    manifest = read_manifest(args.folder)
    sources = {
        name: Source(paths, manifest.parts[name].weights)
        for name, paths in gather(tuple(manifest.parts), args.sources).items()
    }
    problems = verify(args.folder, sources, report=_report(args.json))
    if args.json:
        print(json.dumps({"parts": list(manifest.parts), "compared": list(sources), "problems": problems}, indent=1))
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    against = f" and the sources of {', '.join(sources)}" if sources else "; give the sources to compare with them"
    print(f"{args.folder}: {f'{len(problems)} problems' if problems else 'equal to its manifest' + against}")
    return 1 if problems else 0


def _export(args: argparse.Namespace) -> int:
    from rvseg_jax.convert.export import export

    record = export(args.folder, args.part, args.output, report=_report(args.quiet))
    narrowed = {dtype for dtype in record.keys.values() if dtype != record.dtype and record.dtype == "bfloat16"}
    for key, reason in record.dropped.items():
        print(f"not written: {key} ({reason})")
    if narrowed:
        print(f"the source was {', '.join(sorted(narrowed))}; this is {record.dtype}, as the folder stores it")
    print(f"wrote {args.output}; licence of the weights: {record.licence}")
    return 0


def _files(sources: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(source["name"] for source in sources)


def _report(quiet: bool) -> Any:
    """Progress on stderr: one line that is rewritten on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
