"""Motion segmentation: one mask a frame of all that moves by itself, scored by J and F.

Two ways to a number, which do not compare:

  upstream   GeoMotion's `eval.py`: every fourth frame is a clip of its own, masks are all above 0.1, and each frame of
             each video counts alike, the first and the last too
  standard   DAVIS: masks are all above 0.5, first and last frame do not count (where the protocol drops them), and
             each video counts alike

Both are taken of what a callable says of clips: frames uint8 [T, H, W, 3] to probabilities [T, h, w], 0..1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import bootstrap, davis
from rvseg_jax.evaluation.run_folder import Line
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress
from rvseg_jax.evaluation.videos import evaluate_videos
from rvseg_jax.formats.mask_png import write_mask
from rvseg_jax.input_pipeline.motion_videos import MotionSample, MotionVideo
from rvseg_jax.input_pipeline.sources import Source

# Frames of a clip to probabilities of motion.
Predict = Callable[[np.ndarray], np.ndarray]
# Frames and probabilities of a whole video to better probabilities.
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]
# A video with its truth to masks, bool [T, H, W], or to several sets of which the best counts, by name.
Control = Callable[[MotionSample], np.ndarray | Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class MotionProtocol:
    """How a video is cut into clips, how probabilities become masks, and how scores are averaged.

    Attributes:
      name: how the command line calls it.
      text: what is measured, and what it does not compare with.
      stride: frames of the video from one frame of a clip to the next; the clips between take the frames between.
      window: most frames of a clip.
      threshold: probability above which a pixel moves.
      annotated_only: whether frames without truth are left out of the clips.
      drop_ends: whether the first and the last frame do not count.
      by_frame: whether all frames count alike, whatever their video; otherwise all videos do.
      void_moves: whether void counts as moving; otherwise it is left out.
    """

    name: str
    text: str
    stride: int
    window: int
    threshold: float
    annotated_only: bool = False
    drop_ends: bool = False
    by_frame: bool = False
    void_moves: bool = False

    def settings(self) -> dict[str, Any]:
        """What results say of the protocol."""
        numbers = {"stride": self.stride, "window": self.window, "threshold": self.threshold}
        return {"protocol": self.text, "official_missing_policy": "zero (every frame gets a mask)"} | numbers


_UPSTREAM = "GeoMotion's eval.py: {clips} of at most 32 frames, masks above 0.1, mean over all frames of all videos. "
UPSTREAM = MotionProtocol(
    "upstream",
    _UPSTREAM.format(clips="4 interleaved sequences a video, in clips") + "Not comparable with standard.",
    *(4, 32, 0.1),
    by_frame=True,
    void_moves=True,
)
UPSTREAM_SPARSE = MotionProtocol(
    "upstream",
    _UPSTREAM.format(clips="the frames that have truth alone, in clips") + "Not comparable with standard.",
    *(1, 32, 0.1),
    annotated_only=True,
    by_frame=True,
    void_moves=True,
)
STANDARD = MotionProtocol(
    "standard",
    "DAVIS, one object: 4 interleaved sequences a video, masks above 0.5, first and last frame not counted, mean over "
    "videos of the mean over frames. Not comparable with upstream.",
    *(4, 32, 0.5),
    drop_ends=True,
)
STANDARD_SPARSE = MotionProtocol(
    "standard",
    "mean over videos of the mean over the frames that have truth: 4 interleaved sequences a video, masks above 0.5. "
    "Not comparable with upstream.",
    *(4, 32, 0.5),
)
SHAPES = MotionProtocol(
    "standard",
    "moving_shapes with geometry, held-out clips: whole clips, masks above 0.5, mean over clips of the mean over all "
    "frames, with controls",
    *(1, 32, 0.5),
)


def probabilities(predict: Predict, frames: np.ndarray, *, stride: int, window: int) -> np.ndarray:
    """Probabilities of a video that is cut into `stride` interleaved sequences, each into clips of at most `window`.

    Shapes: frames uint8 [T, H, W, 3] -> [T, h, w] of the size that `predict` gives, 0..1.

    Raises:
      InputError: where `predict` gives another number of frames, another size than before, or no probabilities.
    """
    found: np.ndarray | None = None
    for first in range(min(stride, len(frames))):
        places = np.arange(first, len(frames), stride)
        for start in range(0, len(places), window):
            chosen = places[start : start + window]
            answer = np.asarray(predict(frames[chosen]))
            if answer.ndim != 3 or len(answer) != len(chosen):
                raise InputError(f"probabilities have shape {answer.shape}, the clip {len(chosen)} frames")
            if not (np.isfinite(answer).all() and answer.min() >= 0 and answer.max() <= 1):
                raise InputError(f"probabilities reach from {answer.min()} to {answer.max()}, not within 0 to 1")
            if found is None:
                found = np.zeros((len(frames), *answer.shape[1:]), answer.dtype)
            if answer.shape[1:] != found.shape[1:]:
                raise InputError(f"probabilities have size {answer.shape[1:]}, those before {found.shape[1:]}")
            found[chosen] = answer
    if found is None:
        raise InputError("a video without frames has no probabilities")
    return found


def masks_of(probability: np.ndarray, size: tuple[int, ...], threshold: float) -> np.ndarray:
    """Masks of probabilities that are brought to `size` (H, W) in 256 steps by Pillow's bilinear filter, as upstream.

    Probabilities of that size are compared as they are.

    Shapes: [T, h, w], 0..1 -> bool [T, H, W].
    """
    if probability.shape[1:] == tuple(size):
        return probability > threshold
    steps = (probability * 255).astype(np.uint8)
    resized = [Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR) for image in steps]
    return np.stack([np.asarray(image) for image in resized]) / 255.0 > threshold


def score(sample: MotionSample, masks: np.ndarray, protocol: MotionProtocol) -> dict[str, list[float]]:
    """J and F of every frame that has truth and counts.

    Shapes: masks bool [T, H, W]; void does not count, or counts as moving, by the protocol.

    Raises:
      InputError: for masks of another shape, or a video of which no frame counts.
    """
    if masks.shape != sample.masks.shape:
        raise InputError(f"masks of {sample.video} have shape {masks.shape}, the truth {sample.masks.shape}")
    counted = list(sample.annotated)[slice(1, -1) if protocol.drop_ends else slice(None)]
    if not counted:
        raise InputError(f"{sample.video} has {len(sample)} frames, of which none counts: leave it out")
    truth, found = sample.masks[counted], masks[counted]
    void = None if sample.valid is None else ~sample.valid[counted]
    if void is None or protocol.void_moves:
        j, f = davis.region_and_boundary(truth if void is None else truth | void, found)
    else:
        j, f = davis.region_similarity(truth, found, void), davis.boundary_measure(truth, found, void)
    return {"j": j.tolist(), "f": f.tolist()}


def evaluate(
    source: Source[MotionVideo],
    predict: Predict,
    folder: Path,
    *,
    protocol: MotionProtocol,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    refine: Refine | None = None,
    controls: Mapping[str, Control] | None = None,
    masks_folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predicts and scores every video, and writes `samples.jsonl` (a line a video) and `summary.json`.

    Args:
      settings: what the scores depend on besides the protocol, kept with the run and compared on resume.
      options: see `EvaluationOptions`; `limit` counts videos.
      refine: applied once to all frames of a video, after the clips.
      controls: other masks that are scored in the same way, by name.
      masks_folder: where masks are written, `<video>/<frame>.png`; None writes none.

    Raises:
      InputError: for a folder of another run.
    """

    def line(index: int) -> Line:
        sample = whole(source[index], protocol)
        found = probabilities(predict, sample.frames, stride=protocol.stride, window=protocol.window)
        if refine is not None:
            found = refine(sample.frames, found)
        masks = masks_of(found, sample.masks.shape[1:], protocol.threshold)
        entry: Line = {"video": sample.video, "kind": sample.kind, **score(sample, masks, protocol)}
        entry["controls"] = {name: _controlled(sample, control, protocol) for name, control in (controls or {}).items()}
        if masks_folder is not None:
            (masks_folder / sample.video).mkdir(parents=True, exist_ok=True)
            for name, mask in zip(sample.frame_names, masks, strict=True):
                write_mask(masks_folder / sample.video / f"{name}.png", mask)
        return entry

    return evaluate_videos(
        len(source),
        line,
        lambda lines: summarise(lines, protocol),
        folder,
        settings=protocol.settings() | dict(settings),
        options=options,
        progress=progress,
    )


def whole(video: MotionVideo, protocol: MotionProtocol) -> MotionSample:
    """A video decoded, or of it the frames that have truth, as the protocol wants it."""
    if isinstance(video, MotionSample) and not protocol.annotated_only:
        return video  # with the fields of its own class, which controls may need
    return video.sample(video.annotated if protocol.annotated_only else range(len(video)))


def _controlled(sample: MotionSample, control: Control, protocol: MotionProtocol) -> dict[str, dict[str, list[float]]]:
    masks = control(sample)
    variants = masks if isinstance(masks, Mapping) else {"": masks}
    return {name: score(sample, each, protocol) for name, each in variants.items()}


def summarise(lines: Sequence[Line], protocol: MotionProtocol) -> dict[str, Any]:
    """Means by the protocol, overall, by kind, and of every control; the other way to average; and the margins."""
    if not lines:
        return {"overall": {}}
    summary: dict[str, Any] = {
        "overall": _table(lines, by_frame=protocol.by_frame),
        "averaged": {"over all frames": _table(lines, by_frame=True), "over videos": _table(lines, by_frame=False)},
    }
    kinds = sorted({line["kind"] for line in lines} - {""})
    if kinds:
        summary["by_kind"] = {
            kind: _table([line for line in lines if line["kind"] == kind], by_frame=protocol.by_frame) for kind in kinds
        }
    summary["controls"], summary["margins"] = {}, {}
    for name in sorted({name for line in lines for name in line["controls"]}):
        variants = {
            variant: [line["controls"][name][variant] for line in lines] for variant in lines[0]["controls"][name]
        }
        tables = {variant: _table(scores, by_frame=protocol.by_frame) for variant, scores in variants.items()}
        best = max(tables, key=lambda variant: tables[variant]["J&F"])
        summary["controls"][name] = tables[best] | ({"variant": best} if best else {})
        margin = _by_video(lines) - _by_video(variants[best])
        summary["margins"][name] = bootstrap.interval(margin).as_dict()
    return summary


def _by_video(scores: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """J&F of each video, the mean over its frames. Shapes: -> [V]."""
    return np.array([(np.mean(one["j"]) + np.mean(one["f"])) / 2 for one in scores])


def _table(scores: Sequence[Mapping[str, Any]], *, by_frame: bool) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in ("j", "f"):
        values = [np.array(one[name]) for one in scores]
        if by_frame:
            together = np.concatenate(values)
            means = {name.upper(): together.mean(), f"{name.upper()}_recall": (together > 0.5).mean()}
        else:
            each = [davis.statistics(one) for one in values]
            means = {
                name.upper(): np.mean([one.mean for one in each]),
                f"{name.upper()}_recall": np.mean([one.recall for one in each]),
                f"{name.upper()}_decay": np.mean([one.decay for one in each]),
            }
        table |= {key: float(value) for key, value in means.items()}
    table = {"J&F": (table["J"] + table["F"]) / 2, **table}
    if not by_frame:  # frames of one video are not independent
        table["J&F_interval"] = bootstrap.interval(_by_video(scores)).as_dict()
    return table | {"videos": len(scores), "frames": sum(len(one["j"]) for one in scores)}
