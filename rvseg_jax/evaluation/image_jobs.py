"""What referring segmentation of images is scored on: datasets by name, their protocols, and the controls of stills.

always_reject   every expression is said to name nothing
never_reject    the same masks, none of them rejected
other_phrase    the model is asked for another object of the image, and scored on the first one's truth

A predictor is called with an image and expressions, all of them at once or one by one ("alone"): a model that reads
all expressions of an image in one prompt may tell from the others which of them names nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import CheckFailed, InputError
from rvseg_jax.evaluation import image_scores
from rvseg_jax.evaluation.image_scores import (
    GRES_OFFICIAL,
    GRES_UPSTREAM,
    PER_EXPRESSION,
    PLAIN,
    RES_UPSTREAM,
    ImagePrediction,
    ImageProtocol,
    Record,
)
from rvseg_jax.evaluation.run_folder import Line
from rvseg_jax.evaluation.runner import Evaluation, EvaluationOptions, Progress
from rvseg_jax.evaluation.videos import evaluate_videos
from rvseg_jax.formats.mask_png import read_mask, write_mask
from rvseg_jax.formats.referred_images import SETS
from rvseg_jax.input_pipeline.datasets.image_sets import JSON, REASON_SEG, open_images
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import (
    StillShapesConfig,
    stills_held_out,
    stills_list_hash,
)
from rvseg_jax.input_pipeline.image_referrals import ImageReferrals, ImageSource

# An image and some of its texts, or others, to one prediction a text.
Predict = Callable[[ImageReferrals, Sequence[str]], Sequence[ImagePrediction]]
MOVING_SHAPES = "moving_shapes"
OTHER_PHRASE = "other_phrase"
_RES, _GRES = (RES_UPSTREAM, PER_EXPRESSION, PLAIN), (GRES_UPSTREAM, GRES_OFFICIAL, PLAIN)
PROTOCOLS = tuple(dict.fromkeys(one.name for one in (*_RES, *_GRES)))
_FREE: Mapping[str, Callable[[Record], Record]] = {
    "always_reject": image_scores.always_rejecting,
    "never_reject": image_scores.never_rejecting,
}


@dataclass(frozen=True)
class ImageJob:
    """A dataset to score on.

    Attributes:
      open: its folder, None for moving_shapes, and a split to its images.
      protocols: how it can be scored, the one that is taken if none is named first.
      split: the one that is taken if none is named; None where there are none to choose from.
      controls: whether the controls are scored too.
      hashes: of the lists of generated images, by name.
    """

    open: Callable[[Path | None, str], ImageSource]
    protocols: tuple[ImageProtocol, ...]
    split: str | None = "val"
    controls: bool = False
    hashes: Callable[[], Mapping[str, str]] = field(default=dict)

    def protocol(self, name: str | None) -> ImageProtocol:
        """The protocol of this name, or the first.

        Raises:
          InputError: for a name that this dataset has no protocol of.
        """
        found = [one for one in self.protocols if name in (None, one.name)]
        if not found:
            raise InputError(f"no protocol {name!r} here; choose from {', '.join(one.name for one in self.protocols)}")
        return found[0]


def names() -> tuple[str, ...]:
    """Datasets that `image_jobs` has."""
    return (*SETS, REASON_SEG, JSON, MOVING_SHAPES)


def image_jobs(config: StillShapesConfig | None = None) -> dict[str, ImageJob]:
    """All datasets by name; `config` says what the stills of moving_shapes are like."""
    gres = {"grefcoco", "refzom"}
    jobs = {name: ImageJob(partial(_on_disk, name), _GRES if name in gres else _RES) for name in SETS}
    jobs["refzom"] = ImageJob(partial(_on_disk, "refzom"), _GRES, split="test")
    jobs[REASON_SEG] = ImageJob(partial(_on_disk, REASON_SEG), (PER_EXPRESSION, PLAIN))
    jobs[JSON] = ImageJob(partial(_on_disk, JSON), (PLAIN, GRES_OFFICIAL, GRES_UPSTREAM))
    stills = stills_held_out(config)
    jobs[MOVING_SHAPES] = ImageJob(
        lambda root, split: stills,
        (PLAIN, GRES_OFFICIAL, GRES_UPSTREAM),
        split=None,
        controls=True,
        hashes=lambda: {"held_out_stills": stills_list_hash(stills)},
    )
    return jobs


def _on_disk(name: str, root: Path | None, split: str) -> ImageSource:
    if root is None:
        raise InputError(f"dataset {name} needs its folder")
    return open_images(name, root, split)


def evaluate(
    name: str,
    root: Path | None,
    predict: Predict,
    folder: Path,
    *,
    split: str | None = None,
    protocol: str | None = None,
    alone: bool = False,
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    masks_folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a predictor on a dataset of `image_jobs`, see `evaluate_images`.

    Args:
      name: of the dataset.
      root: its folder; None for moving_shapes.
      split: of the dataset; None takes the one that is usually scored.
      protocol: whose scores stand first; None takes the first that the dataset has.
      settings: of the predictor, kept with the run.

    Raises:
      InputError: for an unknown dataset, split or protocol, a missing folder, or a run folder of another run.
    """
    jobs = image_jobs()
    if name not in jobs:
        raise InputError(f"referring segmentation of images is not scored on {name!r}; choose from {', '.join(jobs)}")
    job = jobs[name]
    if split is not None and job.split is None:
        raise InputError(f"{name} has one list of images; leave split {split!r} away")
    chosen = job.protocol(protocol)
    hashes = job.hashes()
    split = split or job.split
    return evaluate_images(
        job.open(root, split or ""),
        predict,
        folder,
        protocols=(chosen, *(one for one in job.protocols if one is not chosen)),
        controls=job.controls,
        alone=alone,
        settings={"dataset": name, "root": None if root is None else str(root), "split": split, **dict(settings)}
        | ({"list_hashes": hashes} if hashes else {}),
        options=options,
        masks_folder=masks_folder,
        progress=progress,
    )


def evaluate_images(
    source: ImageSource,
    predict: Predict,
    folder: Path,
    *,
    protocols: Sequence[ImageProtocol],
    settings: Mapping[str, Any],
    options: EvaluationOptions,
    controls: bool = False,
    alone: bool = False,
    masks_folder: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predicts and scores every expression, and writes `samples.jsonl` (a line an image) and `summary.json`.

    An image of which an expression cannot be read or predicted is listed as failed, whole; `complete` is then false.

    Args:
      source: the images.
      predict: see `Predict`.
      protocols: all of them are reported; the first is "overall".
      settings: what the scores depend on besides, kept with the run and compared on resume.
      options: see `EvaluationOptions`; `limit` counts images.
      controls: whether the controls are scored too; `other_phrase` asks the predictor a second time.
      alone: whether the predictor is asked for one expression at a time.
      masks_folder: where masks are written, `<image>/<key>.png`; None writes none.

    Raises:
      InputError: for a folder of another run.
      CheckFailed: where the lines of a run hold another number of expressions than the source.
    """
    counts = source.expression_counts()

    def line(index: int) -> Line:
        item = source[index]
        texts = [one.text for one in item.expressions]
        predictions = _asked(predict, item, texts, alone)
        found: Line = {"image": item.name, "expressions": _records(item, predictions)}
        if controls:
            named = [number for number, one in enumerate(item.expressions) if one.regions and one.other_text]
            others = [one.other_text if number in named else one.text for number, one in enumerate(item.expressions)]
            answers = _records(item, _asked(predict, item, others, alone)) if named else []
            found["controls"] = {OTHER_PHRASE: [answers[number] for number in named]}
        if masks_folder is not None:
            _write_masks(masks_folder, item, predictions)
        return found

    def summary(lines: Sequence[Line]) -> dict[str, Any]:
        for one in lines:
            if len(one["expressions"]) != counts[one["index"]]:
                raise CheckFailed(
                    f"image {one['image']} has {len(one['expressions'])} scored expressions, the list has "
                    f"{counts[one['index']]}: score it anew in another folder"
                )
        limit = len(counts) if options.limit is None else options.limit
        return summarise(lines, protocols, expected=sum(counts[:limit])) | {"left_out": list(source.left_out)}

    return evaluate_videos(
        len(source),
        line,
        summary,
        folder,
        settings={**protocols[0].settings(), "alone": alone, "controls_scored": controls, **dict(settings)},
        options=options,
        progress=progress,
    )


def summarise(lines: Sequence[Line], protocols: Sequence[ImageProtocol], *, expected: int) -> dict[str, Any]:
    """Tables by every protocol, by kind of expression, of the controls, and the margins over those.

    Args:
      expected: number of expressions that should have been scored.
    """
    images = [line["expressions"] for line in lines]
    first, scored = protocols[0], sum(map(len, images))
    found: dict[str, Any] = {
        "shown": list(image_scores.SHOWN),
        "expressions": {"expected": expected, "scored": scored},
        "overall": image_scores.table(images, first),
        "protocols": {one.name: {"text": one.text} | image_scores.table(images, one) for one in protocols},
    }
    kinds = sorted({one["kind"] for image in images for one in image} - {""})
    if kinds:
        found["by_kind"] = {
            kind: image_scores.table([[one for one in image if one["kind"] == kind] for image in images], first)
            for kind in kinds
        }
    if lines and "controls" in lines[0]:
        changed = {name: [[change(one) for one in image] for image in images] for name, change in _FREE.items()}
        changed[OTHER_PHRASE] = [line["controls"][OTHER_PHRASE] for line in lines]
        found["controls"] = {name: image_scores.table(records, first) for name, records in changed.items()}
        found["margins"] = {name: image_scores.margin(images, records, first) for name, records in changed.items()}
    return found


def from_folder(folder: Path) -> Predict:
    """A predictor that reads masks `<image>/<key>.png` of any model; one without a file is rejected.

    It knows an image's own expressions only, in their order.
    """

    def predict(item: ImageReferrals, texts: Sequence[str]) -> list[ImagePrediction]:
        if list(texts) != [one.text for one in item.expressions]:
            raise InputError(f"{folder} holds masks of the expressions of {item.name} alone, all of them together")
        found = []
        for expression in item.expressions:
            path = folder / item.name / f"{expression.key}.png"
            present = path.is_file()
            mask = read_mask(path) if present else np.zeros(item.size, bool)
            found.append(ImagePrediction(mask, "ok" if present else image_scores.NO_TARGET))
        return found

    return predict


def _asked(predict: Predict, item: ImageReferrals, texts: Sequence[str], alone: bool) -> list[ImagePrediction]:
    calls = [[text] for text in texts] if alone else [list(texts)]
    found = [list(predict(item, call)) for call in calls]
    for call, answers in zip(calls, found, strict=True):
        if len(answers) != len(call):
            raise InputError(f"{item.name}: {len(answers)} predictions for {len(call)} expressions; give one for each")
    return [answer for answers in found for answer in answers]


def _records(item: ImageReferrals, predictions: Sequence[ImagePrediction]) -> list[Record]:
    return [image_scores.record(item, number, one) for number, one in enumerate(predictions)]


def _write_masks(folder: Path, item: ImageReferrals, predictions: Sequence[ImagePrediction]) -> None:
    """Writes masks, none of what is rejected, so that `from_folder` reads what was said."""
    (folder / item.name).mkdir(parents=True, exist_ok=True)
    for expression, prediction in zip(item.expressions, predictions, strict=True):
        if prediction.status != image_scores.NO_TARGET:
            write_mask(folder / item.name / f"{expression.key}.png", prediction.mask)
