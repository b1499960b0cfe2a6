"""`rvseg eval`: score a system, or a folder of predictions, on a dataset."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import datasets, moving_shapes
from rvseg_jax.evaluation.predictors import from_folder, from_system
from rvseg_jax.evaluation.runner import SUMMARY_FILE, Evaluation, EvaluationOptions, evaluate
from rvseg_jax.evaluation.scores import Score, sentence_keyed
from rvseg_jax.systems import base
from rvseg_jax.systems import settings as system_settings
from rvseg_jax.systems.base import SegmentOptions

_SHOWN = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg eval`."""
    parser.description = (
        "Score a system on a dataset and write samples.jsonl (one line a sentence) and summary.json. SYSTEM may also "
        "be a folder of predictions, <video>/<expression>/<frame>.png. The exit code is 1 if not every expected "
        "sample has been scored."
    )
    parser.add_argument("system", metavar="SYSTEM", help=f"one of {', '.join(base.names())}, or a folder of masks")
    parser.add_argument("dataset", choices=datasets.NAMES, metavar="DATASET", help=", ".join(datasets.NAMES))
    parser.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="the dataset's folder (mevis)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where results are written")
    parser.add_argument("--checkpoint", type=Path, help="converted checkpoint; the bundled tiny weights if not given")
    parser.add_argument("--dtype", help="precision of the system: parity, float32, bfloat16 or mixed")
    parser.add_argument("--split", help="folder of the split below ROOT (mevis; valid_u if not given)")
    parser.add_argument("--frames", type=Path, help="folder of the videos' frames, if not in the split (mevis)")
    parser.add_argument("--batch", type=int, default=4, help="sentences of one clip in one call (4)")
    parser.add_argument("--threshold", type=float, help="probability of foreground; the system's own if not given")
    system_settings.add_argument(parser)
    parser.add_argument("--whole-clip", action="store_true", help="never cut a clip into windows, as published")
    parser.add_argument("--limit", type=int, help="score the first samples (of moving_shapes: clips) only")
    parser.add_argument(
        "--missing", choices=("zero", "skip"), default="zero", help="how a missing prediction counts (zero)"
    )
    parser.add_argument(
        "--by-sentence",
        action="store_true",
        help="also report upstream FlowRVS's average, in which equal sentences overwrite each other",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the results that DIR holds")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg eval` and return its exit code."""
    evaluation = _moving_shapes(args) if args.dataset == datasets.MOVING_SHAPES else _mevis(args)
    if args.json:
        print((args.output / SUMMARY_FILE).read_text(encoding="utf-8"), end="")
    else:
        _print(evaluation, args.output)
    if not evaluation.complete:
        print(f"error: {len(evaluation.scores)} of {evaluation.expected} samples were scored", file=sys.stderr)
    return 0 if evaluation.complete else 1


def _mevis(args: argparse.Namespace) -> Evaluation:
    if args.root is None:
        raise InputError(f"dataset {args.dataset} needs ROOT: rvseg eval {args.system} {args.dataset} ROOT -o DIR")
    is_folder = _is_folder(args.system)
    predict = from_folder(Path(args.system)) if is_folder else from_system(_system(args), _segment_options(args))
    source = datasets.mevis(args.root, split=args.split, frames=args.frames, with_frames=not is_folder)
    settings = _settings(args, datasets.MEVIS_PROTOCOL) | {"root": str(args.root), "split": args.split}

    def details(scores: Sequence[Score]) -> Mapping[str, Any]:
        return {"by_sentence": sentence_keyed(scores)} if args.by_sentence else {}

    return evaluate(
        source,
        predict,
        args.output,
        settings=settings,
        options=_options(args, limit=args.limit),
        details=details,
        progress=_progress(),
    )


def _moving_shapes(args: argparse.Namespace) -> Evaluation:
    if _is_folder(args.system):
        raise InputError(f"the controls of {args.dataset} need a model: give a system, not a folder of masks")
    system = _system(args)
    reconstruct = getattr(system, "reconstruct", None)
    source = moving_shapes.HeldOutRuns(clips=args.limit, reconstruction=reconstruct is not None)
    settings = _settings(args, moving_shapes.PROTOCOL) | {"clips": args.limit, "list_hashes": source.hashes()}
    predict = moving_shapes.with_truth_controls(from_system(system, _segment_options(args)), reconstruct)
    return evaluate(
        source,
        predict,
        args.output,
        settings=settings,
        options=_options(args, limit=None),
        details=moving_shapes.summary,
        progress=_progress(),
    )


def _is_folder(system: str) -> bool:
    """Whether SYSTEM is a folder of predictions; a system's name wins over a folder of that name."""
    return system not in base.names() and Path(system).is_dir()


def _system(args: argparse.Namespace) -> base.System:
    settings = system_settings.parse(args.set)
    return base.module(args.system).load(args.checkpoint, dtype=args.dtype, mesh=None, **settings)


def _segment_options(args: argparse.Namespace) -> SegmentOptions:
    return SegmentOptions(whole_clip=args.whole_clip, threshold=args.threshold)


def _settings(args: argparse.Namespace, protocol: str) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "dataset": args.dataset,
        "system": args.system,
        "checkpoint": None if args.checkpoint is None else str(args.checkpoint),
        "dtype": args.dtype,
        "threshold": args.threshold,
        "whole_clip": args.whole_clip,
        "settings": list(args.set),
    }


def _options(args: argparse.Namespace, *, limit: int | None) -> EvaluationOptions:
    return EvaluationOptions(batch=args.batch, missing=args.missing, resume=args.resume, limit=limit)


def _progress() -> Callable[[int, int], None] | None:
    """A counter on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _print(evaluation: Evaluation, folder: Path) -> None:
    summary = evaluation.summary
    print(summary["protocol"])
    for name, digest in summary.get("list_hashes", {}).items():
        print(f"list {name}  sha256 {digest}")
    print(f"expected {evaluation.expected}, scored {len(evaluation.scores)}, missing {len(summary['missing'])}")
    for gap in summary["missing"]:
        print(f"  missing: {gap['video']}/{gap['expression']}, {gap['frames']} frames")
    for failure in evaluation.failed:
        print(f"  failed: sample {failure['index']}: {failure['error']}")
    for name, group in _groups(summary).items():
        _print_group(name, group)
    for name, margin in summary.get("margins", {}).items():
        _print_interval(f"margin over {name}", margin)
    for name, accuracy in summary.get("accuracies", {}).items():
        _print_interval(name, accuracy)
    print(f"details in {folder}")


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups that are worth a line, by name."""
    bound = {"reconstruction": summary["reconstruction"]} if "reconstruction" in summary else {}
    groups = bound | {"overall": summary["overall"], **summary.get("by_kind", {}), **summary.get("controls", {})}
    return groups | ({"by sentence": summary["by_sentence"]} if summary.get("by_sentence") else {})


def _print_group(name: str, group: Mapping[str, Any]) -> None:
    numbers = "  ".join(f"{key} {_number(group[key])}" for key in _SHOWN if key in group)
    interval = group.get("J&F_interval")
    band = f"  95% [{interval['low']:.4f}, {interval['high']:.4f}]" if interval else ""
    print(f"{name}: {numbers}{band}")


def _print_interval(name: str, interval: Mapping[str, float] | None) -> None:
    if interval is None:
        print(f"{name}: none")
    else:
        print(f"{name}: {interval['mean']:.4f}  95% [{interval['low']:.4f}, {interval['high']:.4f}]")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
