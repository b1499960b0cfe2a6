"""Trackers scored by objects: each is given in the first frame of a video and followed to its end.

DAVIS, semi-supervised (davisvideochallenge/davis2017-evaluation, task "semi-supervised"): the first and the last frame
do not count, the mean over frames is taken for each object, and the mean over the objects of all videos.

moving_shapes: all frames after the first count, those in which an object is hidden for themselves; with controls:

  first_mask   the first mask in every frame
  first_only   the tracker with its memory ablated: of every frame it sees the first one and that one alone
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import bootstrap, davis
from rvseg_jax.evaluation.run_folder import Line
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress
from rvseg_jax.evaluation.videos import evaluate_videos
from rvseg_jax.formats.davis import label_map, write_labels
from rvseg_jax.input_pipeline.sources import Source, TrackingSample
from rvseg_jax.trackers.base import Tracker

# A sample and masks bool [N, T, H, W] of its objects, to one line an object.
ScoreObjects = Callable[[TrackingSample, np.ndarray], list[dict[str, Any]]]
Controls = Mapping[str, Callable[[TrackingSample], np.ndarray]]


def followed(tracker: Tracker, sample: TrackingSample) -> np.ndarray:
    """Masks of the objects of a clip, from those of its first frame.

    Shapes: -> bool [N, T, H, W].
    """
    session = tracker.session(objects=len(sample.ids))
    for object_id, mask in zip(sample.ids, sample.masks[:, 0], strict=True):
        session.add(object_id, mask=mask)
    last = len(sample.frames) - 1
    masks = [session.step(frame, end=index == last).masks for index, frame in enumerate(sample.frames)]
    return np.stack(masks, axis=1)


def first_mask(sample: TrackingSample) -> np.ndarray:
    """The first mask in every frame. Shapes: -> bool [N, T, H, W]."""
    return np.broadcast_to(sample.masks[:, :1], sample.masks.shape)


def first_only(tracker: Tracker, sample: TrackingSample) -> np.ndarray:
    """Masks of a tracker that remembers the first frame alone. Shapes: -> bool [N, T, H, W]."""
    found = [sample.masks[:, 0]]
    for frame in sample.frames[1:]:
        session = tracker.session(objects=len(sample.ids))
        for object_id, mask in zip(sample.ids, sample.masks[:, 0], strict=True):
            session.add(object_id, mask=mask)
        session.step(sample.frames[0])
        found.append(session.step(frame, end=True).masks)
    return np.stack(found, axis=1)


def semi_supervised(sample: TrackingSample, masks: np.ndarray) -> list[dict[str, Any]]:
    """Statistics of every object over all frames but the first and the last."""
    if len(sample.frames) < 3:
        raise InputError(f"{sample.video} has {len(sample.frames)} frames: the protocol drops the first and the last")
    lines = []
    for object_id, truth, found in zip(sample.ids, sample.masks[:, 1:-1], masks[:, 1:-1], strict=True):
        j, f = (davis.statistics(values) for values in davis.region_and_boundary(truth, found))
        lines.append(
            {
                "object": object_id,
                **{"j": j.mean, "j_recall": j.recall, "j_decay": j.decay},
                **{"f": f.mean, "f_recall": f.recall, "f_decay": f.decay},
            }
        )
    return lines


def visible_frames(sample: TrackingSample, masks: np.ndarray) -> list[dict[str, Any]]:
    """Means of every object over the frames after the first in which it shows, and apart those in which it does not."""
    lines = []
    for object_id, truth, found in zip(sample.ids, sample.masks[:, 1:], masks[:, 1:], strict=True):
        j, f = davis.region_and_boundary(truth, found)
        shown = truth.any(axis=(1, 2))
        lines.append(
            {
                "object": object_id,
                "j": float(j[shown].mean()),
                "f": float(f[shown].mean()),
                "hidden": int((~shown).sum()),
                "hidden_empty": int((~shown & ~found.any(axis=(1, 2))).sum()),
            }
        )
    return lines


def evaluate(
    source: Source[TrackingSample],
    tracker: Tracker,
    folder: Path,
    *,
    score: ScoreObjects,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    controls: Controls | None = None,
    masks_folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Follows and scores the objects of every video, and writes `samples.jsonl` (a line a video) and `summary.json`.

    Args:
      score: `semi_supervised` or `visible_frames`.
      settings: what the scores depend on, kept with the run and compared on resume.
      options: see `EvaluationOptions`; `limit` counts videos.
      controls: other masks that are scored in the same way, by name.
      masks_folder: where label images of the masks are written, `<video>/<frame>.png`; None writes none.
      progress: called with the videos done and all videos of this part.

    Raises:
      InputError: for a folder of another run.
    """

    def line(index: int) -> Line:
        sample = source[index]
        masks = followed(tracker, sample)
        found: Line = {"video": sample.video, "kind": sample.kind, "frames": len(sample.frames)}
        found["objects"] = score(sample, masks)
        found["controls"] = {name: score(sample, control(sample)) for name, control in (controls or {}).items()}
        if masks_folder is not None:
            _write_masks(masks_folder / sample.video, sample, masks)
        return found

    return evaluate_videos(len(source), line, summarise, folder, settings=settings, options=options, progress=progress)


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """Means over the objects of all videos, by kind, of every control, and the margins over those."""
    if not lines:
        return {"overall": {}}
    kinds = sorted({line["kind"] for line in lines} - {""})
    controls = sorted({name for line in lines for name in line["controls"]})
    summary: dict[str, Any] = {"overall": _table([line["objects"] for line in lines])}
    if kinds:
        summary["by_kind"] = {
            kind: _table([line["objects"] for line in lines if line["kind"] == kind]) for kind in kinds
        }
    summary["controls"] = {name: _table([line["controls"][name] for line in lines]) for name in controls}
    own = _by_video([line["objects"] for line in lines])
    summary["margins"] = {
        name: bootstrap.interval(own - _by_video([line["controls"][name] for line in lines])).as_dict()
        for name in controls
    }
    return summary


def _by_video(objects: Sequence[Sequence[Mapping[str, Any]]]) -> np.ndarray:
    """J&F of each video, the mean over its objects. Shapes: -> [V]."""
    return np.array([np.mean([(one["j"] + one["f"]) / 2 for one in video]) for video in objects])


def _table(videos: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    objects = [one for video in videos for one in video]
    names = [name for name in ("j", "f", "j_recall", "j_decay", "f_recall", "f_decay") if name in objects[0]]
    means = {name: float(np.mean([one[name] for one in objects])) for name in names}
    table: dict[str, Any] = {"J&F": (means["j"] + means["f"]) / 2}
    table |= {name[0].upper() + name[1:]: value for name, value in means.items()}
    table |= {"J&F_interval": bootstrap.interval(_by_video(videos)).as_dict(), "objects": len(objects)}
    if "hidden" in objects[0]:
        hidden = sum(one["hidden"] for one in objects)
        table["hidden_frames"] = hidden
        table["hidden_empty"] = sum(one["hidden_empty"] for one in objects) / hidden if hidden else None
    return table


def _write_masks(folder: Path, sample: TrackingSample, masks: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(sample.frame_names):
        write_labels(folder / f"{name}.png", label_map(masks[:, index], sample.ids))
