"""`rvseg eval`: score a system, or a folder of predictions, on a dataset."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import (
    datasets,
    image_jobs,
    image_predictors,
    motion_jobs,
    moving_shapes,
    processes,
    protocols,
    ref_davis,
    ref_davis_labels,
    report,
    submissions,
    tracking,
)
from rvseg_jax.evaluation.datasets import DecodedVideos
from rvseg_jax.evaluation.parts import Part
from rvseg_jax.evaluation.predictors import from_folder, from_grey_folder, from_system
from rvseg_jax.evaluation.protocols import Protocol
from rvseg_jax.evaluation.run_folder import SUMMARY_FILE
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, MissingPolicy, evaluate
from rvseg_jax.evaluation.scores import Score, sentence_keyed
from rvseg_jax.input_pipeline.datasets.davis import Davis
from rvseg_jax.input_pipeline.datasets.moving_shapes.tracking import tracking_held_out, tracking_list_hash
from rvseg_jax.systems import base
from rvseg_jax.systems import settings as system_settings
from rvseg_jax.systems.base import SegmentOptions
from rvseg_jax.trackers import base as trackers

_EVERY = "every_motion"  # all datasets of motion segmentation that lie in ROOT
_MEVIS_SCORED = ("train", "valid_u")  # splits whose masks are public


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg eval`."""
    parser.description = (
        "Score a system on a dataset and write samples.jsonl (one line a sentence) and summary.json. SYSTEM may also "
        "be a folder of predictions, <video>/<expression>/<frame>.png. A split without public truth, such as mevis "
        "--split valid, gives the archive for the benchmark's server instead of scores. The exit code is 1 if not "
        "every expected sample has been scored. docs/evaluation.md explains the protocols."
    )
    parser.add_argument(
        "system",
        metavar="SYSTEM",
        help=f"one of {', '.join([*base.names(), *trackers.names()])}, or a folder of masks",
    )
    names = [*sorted({*datasets.NAMES, *motion_jobs.names(), *image_jobs.names()}), _EVERY]
    parser.add_argument("dataset", choices=names, metavar="DATASET", type=_dataset, help=", ".join(names))
    parser.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="the dataset's folder (moving_shapes: none)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where results are written")
    parser.add_argument("--checkpoint", type=Path, help="converted checkpoint; the bundled tiny weights if not given")
    parser.add_argument("--dtype", help="precision of the system: parity, float32, bfloat16 or mixed")
    parser.add_argument(
        "--split", help="split of the dataset (mevis: valid_u if not given; images: val; others: valid)"
    )
    parser.add_argument("--year", choices=("2016", "2017"), help="list of videos (davis; the later one that is there)")
    parser.add_argument("--write-masks", action="store_true", help="write masks into DIR/masks (davis, motion, images)")
    parser.add_argument("--frames", type=Path, help="folder of the videos' frames, if not in the split (mevis)")
    parser.add_argument(
        "--protocol",
        choices=tuple(dict.fromkeys((*protocols.REF_DAVIS, *motion_jobs.PROTOCOLS, *image_jobs.PROTOCOLS))),
        help="which protocol (ref_davis: official if not given; motion and images: upstream, where it has one)",
    )
    parser.add_argument(
        "--read-truth",
        action="store_true",
        help="mllmseg as published: all phrases of an image at once, and the model reads the true answer instead of "
        "writing its own, so that it sees which phrases before one name nothing. N-acc and T-acc come out too high",
    )
    parser.add_argument("--batch", type=int, default=4, help="sentences of one clip in one call (4)")
    parser.add_argument("--threshold", type=float, help="probability of foreground; the system's own if not given")
    system_settings.add_argument(parser)
    parser.add_argument("--whole-clip", action="store_true", help="never cut a clip into windows, as published")
    parser.add_argument(
        "--limit", type=int, help="score the first samples (moving_shapes and official protocols: clips) only"
    )
    parser.add_argument(
        "--missing",
        choices=get_args(MissingPolicy),
        help="how a missing prediction counts; as in the official evaluation if not given",
    )
    parser.add_argument(
        "--by-sentence",
        action="store_true",
        help="also report upstream FlowRVS's average, in which equal sentences overwrite each other",
    )
    parser.add_argument(
        "--subset", action="store_true", help="ROOT holds a part of the benchmark's videos (ref_youtube_vos valid)"
    )
    parser.add_argument(
        "--shard", metavar="K/N", help="do the K-th of N shares of the videos; the last share to end sums up"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the results that DIR holds")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg eval` and return its exit code."""
    if args.dataset == _EVERY:
        return _run_every(args)
    part, together = processes.share(args.shard)
    options = EvaluationOptions(batch=args.batch, resume=args.resume, limit=args.limit, part=part, together=together)
    jobs = _jobs(args.system)
    if args.dataset not in jobs:
        raise InputError(f"{args.system} cannot be scored on {args.dataset}, only on {', '.join(jobs)}")
    job = jobs[args.dataset]
    _refuse_options(args, _MEANINGLESS.get(job, ("read_truth",)))
    evaluation = job(args, options)
    if evaluation.waiting:
        return _report_part(evaluation, part, as_json=args.json)
    if not options.together or part.index == 0:
        if args.json:
            print((args.output / SUMMARY_FILE).read_text(encoding="utf-8"), end="")
        else:
            report.show(evaluation, args.output)
        report.show_errors(evaluation)
    return 0 if evaluation.complete else 1


def _run_every(args: argparse.Namespace) -> int:
    """Scores on one dataset after the other, into a folder each; the worst exit code."""
    if args.json:
        raise InputError(f"{_EVERY} prints no single JSON: read DIR/<dataset>/{SUMMARY_FILE}")
    found, codes = motion_jobs.places(_root(args)), []
    for name, folder in found.items():
        print(f"== {name}")
        changed = {"dataset": name, "root": folder, "output": args.output / name}
        codes.append(run(argparse.Namespace(**vars(args) | changed)))
    absent = [f"{name} ({place})" for name, place in motion_jobs.PLACES.items() if name not in found]
    if absent:
        print(f"not in {args.root}: {', '.join(absent)}", file=sys.stderr)
    return max(codes)


def _report_part(evaluation: Evaluation, part: Part, *, as_json: bool) -> int:
    """Say that other parts are not done."""
    stream = sys.stderr if as_json else sys.stdout  # there is no summary to print yet
    print(f"part {part.index + 1}/{part.count} is done; other parts have {evaluation.waiting} to do", file=stream)
    print("the last part to end sums up; if one has died, run again with --resume, as a part or whole", file=stream)
    for failure in evaluation.failed:
        print(f"  failed: sample {failure['index']}: {failure['error']}", file=stream)
    return 1 if evaluation.failed else 0


def _mevis(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    source = datasets.mevis_split(
        _root(args), split=args.split, frames=args.frames, with_frames=not _is_folder(args.system)
    )
    # A mask file that was forgotten must not make a submission of a split that can be scored.
    if not source.has_masks and args.split not in (None, *_MEVIS_SCORED):
        return _submit(args, options, source)
    return _per_expression(args, options, source, protocols.MEVIS)


def _ref_youtube_vos(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    source = datasets.ref_youtube_vos_split(
        _root(args), split=args.split, subset=args.subset, with_frames=not _is_folder(args.system)
    )
    if not source.has_masks and args.split != "train":
        return _submit(args, options, source)
    return _per_expression(args, options, source, protocols.REF_YOUTUBE_VOS)


def _submit(args: argparse.Namespace, options: EvaluationOptions, source: DecodedVideos) -> Evaluation:
    """Masks for the server of a dataset whose truth is not public."""
    protocol = protocols.SUBMISSION
    return submissions.evaluate(
        args.dataset,
        source,
        Path(args.system) if _is_folder(args.system) else from_system(_system(args), _segment_options(args)),
        args.output,
        settings=_settings(args, protocol),
        options=replace(options, missing=args.missing or protocol.missing),
        progress=_progress(),
    )


def _ref_davis(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    protocol = protocols.ref_davis(args.protocol)
    root, is_folder = _root(args), _is_folder(args.system)
    source = datasets.ref_davis_split(root, split=args.split, with_frames=not is_folder)
    if protocol.name == protocols.PER_EXPRESSION:
        return _per_expression(args, options, source, protocol)
    options = replace(options, missing=args.missing or protocol.missing)
    truth = ref_davis.truth_folder(root, args.split or "valid")
    return ref_davis.evaluate(
        source.clips,
        truth,
        _label_maps(args, source, protocol, options),
        args.output,
        settings=_settings(args, protocol) | {"truth": str(truth.relative_to(root))},
        options=options,
        progress=_progress(),
    )


def _label_maps(
    args: argparse.Namespace, source: DecodedVideos, protocol: Protocol, options: EvaluationOptions
) -> ref_davis_labels.GetLabelMaps:
    """Label maps by the protocol, from a system, a folder of masks, or a folder of label maps."""
    on_scores = protocol.name == protocols.OFFICIAL
    if not _is_folder(args.system):
        if on_scores and args.threshold is not None:
            raise InputError(f"--threshold has no effect on scores: use --protocol {protocols.OFFICIAL_MASKS}")
        predict = from_system(_system(args), replace(_segment_options(args), scores=on_scores))
        return ref_davis_labels.from_predictions(source, predict, args.output, batch=args.batch)
    folder = Path(args.system)
    if on_scores != ref_davis_labels.is_label_folder(folder):
        raise InputError(
            f"{folder} holds masks of sentences, without scores: use --protocol {protocols.OFFICIAL_MASKS}"
            if on_scores
            else f"{folder} holds label maps that are merged already: use --protocol {protocols.OFFICIAL}"
        )
    if options.missing == "abort":
        ref_davis_labels.require_complete(folder, dict(list(source.clips.items())[: args.limit]))
    if on_scores:
        return ref_davis_labels.from_label_maps(folder, source)
    return ref_davis_labels.from_predictions(source, from_grey_folder(folder), args.output, batch=args.batch)


def _per_expression(
    args: argparse.Namespace, options: EvaluationOptions, source: DecodedVideos, protocol: Protocol
) -> Evaluation:
    if args.protocol not in (None, protocol.name):
        raise InputError(f"dataset {args.dataset} has no protocol {args.protocol}; leave --protocol away")
    if not source.has_masks:
        raise InputError(
            f"{args.root} has no masks of split {args.split or 'given by default'}; choose one that has. Where the "
            "truth is not public, name it: --split valid makes a submission (mevis, ref_youtube_vos)"
        )
    is_folder = _is_folder(args.system)
    predict = from_folder(Path(args.system)) if is_folder else from_system(_system(args), _segment_options(args))

    def details(scores: Sequence[Score]) -> Mapping[str, Any]:
        return {"by_sentence": sentence_keyed(scores)} if args.by_sentence else {}

    return evaluate(
        source,
        predict,
        args.output,
        settings=_settings(args, protocol),
        options=replace(options, missing=args.missing or protocol.missing),
        details=details,
        progress=_progress(),
    )


def _moving_shapes(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    if _is_folder(args.system):
        raise InputError(f"the controls of {args.dataset} need a model: give a system, not a folder of masks")
    system = _system(args)
    reconstruct = getattr(system, "reconstruct", None)
    source = moving_shapes.HeldOutRuns(clips=args.limit, reconstruction=reconstruct is not None)
    settings = _settings(args, protocols.MOVING_SHAPES) | {"clips": args.limit, "list_hashes": source.hashes()}
    predict = moving_shapes.with_truth_controls(from_system(system, _segment_options(args)), reconstruct)
    return evaluate(
        source,
        predict,
        args.output,
        settings=settings,
        options=replace(options, missing=args.missing or protocols.MOVING_SHAPES.missing, limit=None),
        details=moving_shapes.summary,
        progress=_progress(),
    )


def _tracking_shapes(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    tracker, source = _tracker(args), tracking_held_out()
    hashes = {"list_hashes": {"held_out": tracking_list_hash(source)}}
    return tracking.evaluate(
        source,
        tracker,
        args.output,
        score=tracking.visible_frames,
        settings=_settings(args, protocols.TRACKING_SHAPES) | hashes,
        options=options,
        controls={
            "first_mask": tracking.first_mask,
            "first_only": lambda sample: tracking.first_only(tracker, sample),
        },
        progress=_progress(),
    )


def _davis(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    source = Davis(_root(args), args.split or "val", year=args.year or "")
    protocol = replace(protocols.DAVIS, text=protocols.DAVIS.text.format(year=source.year))
    return tracking.evaluate(
        source,
        _tracker(args),
        args.output,
        score=tracking.semi_supervised,
        settings=_settings(args, protocol),
        options=options,
        controls={"first_mask": tracking.first_mask},
        masks_folder=args.output / "masks" if args.write_masks else None,
        progress=_progress(),
    )


def _motion(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    job = motion_jobs.motion_jobs()[args.dataset]
    protocol = job.protocol(args.protocol)
    # Upstream's way to sharpen masks is part of its protocol; `--set` still has the last word.
    settings = {"published": True} if protocol.name == "upstream" else {}
    given = system_settings.parse(args.set)
    if cut := sorted(given.keys() & {"stride", "group", "overlap", "threshold"}):
        raise InputError(f"--set {cut[0]} has no effect: the protocol says how clips are cut and masks made")
    settings |= given
    system: Any = base.module(args.system).load(args.checkpoint, dtype=args.dtype, mesh=None, **settings)
    return motion_jobs.evaluate(
        args.dataset,
        None if args.dataset == datasets.MOVING_SHAPES else _root(args),
        system.of_group,
        args.output,
        protocol=protocol.name,
        settings={
            "system": args.system,
            "checkpoint": None if args.checkpoint is None else str(args.checkpoint),
            "dtype": args.dtype,
            "settings": list(args.set),
            "refined": system.refines,
        },
        options=options,
        refine=system.refined if system.refines else None,
        masks_folder=args.output / "masks" if args.write_masks else None,
        progress=_progress(),
    )


def _images(args: argparse.Namespace, options: EvaluationOptions) -> Evaluation:
    settings: dict[str, Any] = {"system": args.system, "read_truth": args.read_truth}
    if _is_folder(args.system):
        if args.read_truth:
            raise InputError("--read-truth is for a system that answers, not for a folder of masks")
        predict = image_jobs.from_folder(Path(args.system))
    else:
        system: Any = _system(args)
        if args.read_truth and args.threshold is not None:
            raise InputError("--threshold means nothing with --read-truth, which scores at 0.5 as published")
        predict = (
            image_predictors.reading_truth(system)
            if args.read_truth
            else image_predictors.answering(system, args.threshold)
        )
        settings |= {
            "checkpoint": None if args.checkpoint is None else str(args.checkpoint),
            "dtype": args.dtype,
            "settings": list(args.set),
            "threshold": args.threshold,
        }
    return image_jobs.evaluate(
        args.dataset,
        None if args.dataset == datasets.MOVING_SHAPES else _root(args),
        predict,
        args.output,
        split=args.split,
        protocol=args.protocol,
        settings=settings,
        options=options,
        masks_folder=args.output / "masks" if args.write_masks else None,
        progress=_progress(),
    )


def _refuse_options(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Nothing that was asked for may be passed over.

    Raises:
      InputError: for an option that has no meaning here.
    """
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} means nothing for {args.system} on {args.dataset}")


# Options that mean nothing for some jobs.
_OF_VIDEOS = ("whole_clip", "frames", "missing", "by_sentence", "subset")
_OF_SENTENCES = (*_OF_VIDEOS, "protocol", "threshold", "read_truth")
_MEANINGLESS: Mapping[Any, Sequence[str]] = {
    _davis: _OF_SENTENCES,
    _tracking_shapes: _OF_SENTENCES,
    _motion: (*_OF_VIDEOS, "threshold", "read_truth", "split", "year"),
    _images: (*_OF_VIDEOS, "year"),
}

# Datasets of trackers, of systems that find what moves, of those that read sentences, and of those that do so about
# images; moving_shapes has something for all of them.
_TRACKING_JOBS = {datasets.DAVIS: _davis, datasets.MOVING_SHAPES: _tracking_shapes}
_JOBS = {
    datasets.MEVIS: _mevis,
    datasets.MOVING_SHAPES: _moving_shapes,
    datasets.REF_DAVIS: _ref_davis,
    datasets.REF_YOUTUBE_VOS: _ref_youtube_vos,
}


_MOTION_JOBS = dict.fromkeys(motion_jobs.names(), _motion)
_IMAGE_JOBS = _JOBS | dict.fromkeys(image_jobs.names(), _images)


def _jobs(system: str) -> Mapping[str, Callable[[argparse.Namespace, EvaluationOptions], Evaluation]]:
    """What a system, tracker or folder can be scored on."""
    if system in trackers.names():
        return _TRACKING_JOBS
    if system in base.names() and not base.module(system).READS_TEXT:
        return _MOTION_JOBS
    if system in base.names():
        return _IMAGE_JOBS if base.module(system).FOR_IMAGES else _JOBS
    # A folder of masks may be of images or of videos; that of moving_shapes is of videos.
    return _IMAGE_JOBS | _JOBS


def _dataset(name: str) -> str:
    """Names of datasets are written with dashes elsewhere."""
    return name.replace("-", "_")


def _root(args: argparse.Namespace) -> Path:
    if args.root is None:
        raise InputError(f"dataset {args.dataset} needs ROOT: rvseg eval {args.system} {args.dataset} ROOT -o DIR")
    root: Path = args.root
    return root


def _is_folder(system: str) -> bool:
    """Whether SYSTEM is a folder of predictions; a system's name wins over a folder of that name."""
    return system not in (*base.names(), *trackers.names()) and Path(system).is_dir()


def _system(args: argparse.Namespace) -> base.System:
    settings = system_settings.parse(args.set)
    return base.module(args.system).load(args.checkpoint, dtype=args.dtype, mesh=None, **settings)


def _tracker(args: argparse.Namespace) -> trackers.Tracker:
    settings = system_settings.parse(args.set)
    return trackers.module(args.system).load(args.checkpoint, dtype=args.dtype, mesh=None, **settings)


def _segment_options(args: argparse.Namespace) -> SegmentOptions:
    return SegmentOptions(whole_clip=args.whole_clip, threshold=args.threshold)


def _settings(args: argparse.Namespace, protocol: Protocol) -> dict[str, Any]:
    return protocol.settings() | {
        "dataset": args.dataset,
        "root": None if args.root is None else str(args.root),
        "split": args.split,
        "system": args.system,
        "checkpoint": None if args.checkpoint is None else str(args.checkpoint),
        "dtype": args.dtype,
        "threshold": args.threshold,
        "whole_clip": args.whole_clip,
        "settings": list(args.set),
    }


def _progress() -> Callable[[int, int], None] | None:
    """A counter on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
