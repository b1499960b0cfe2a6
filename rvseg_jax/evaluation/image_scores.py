"""What is kept of a scored expression, and what lists of them amount to, by the conventions that papers differ in.

All counts are whole numbers of pixels, so that the sums of several processes are those of one. I and U are pixels of
intersection and union, P and G those of prediction and truth; pixels that do not count are in none of them.

  cIoU    sum I / sum U
  gIoU    mean of I / U, over expressions or over the means of images
  N-acc   share of expressions that name nothing which are rejected
  T-acc   share of those that name something which are not
  Pr@X    share of those that name something with I / U of X or more
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import bootstrap
from rvseg_jax.formats import rle
from rvseg_jax.input_pipeline.image_referrals import ImageReferrals

NO_TARGET = "no_target"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN = ("cIoU", "gIoU", "N-acc", "T-acc", *(f"Pr@{x}" for x in THRESHOLDS), "REC", "REC_upstream")
# What an expression is scored by, as one entry of a line of JSON; see `record`.
Record = dict[str, Any]


@dataclass(frozen=True)
class ImagePrediction:
    """What a model says of one expression.

    Attributes:
      mask: bool [H, W], of the image's size, as it was decoded; also where the expression is rejected, if there is one.
      status: "ok", or "no_target" where the model says that the image does not hold what is named.
      score: how sure it is, kept with the result; None where it does not say.
    """

    mask: np.ndarray
    status: str = "ok"
    score: float | None = None


@dataclass(frozen=True)
class ImageProtocol:
    """How counts become scores.

    Attributes:
      name: how the command line calls it.
      text: what is measured, and by whose script.
      iou_epsilon: added to the union of an expression.
      empty_union: overlap of an expression whose union is empty.
      mean_epsilon: added to the number of expressions or images in gIoU.
      total_epsilon: added to the sum of unions in cIoU.
      by_image: whether gIoU is the mean over images of their means.
      apart: whether expressions that name nothing have an overlap of 1 where they are rejected and of 0 where not.
      rejected: how a rejected expression that names something counts: "mask" by its decoded mask all the same, "missed"
        with I = 0 and U = |P or G|, "empty" with I = 0 and U = G.
      annotated: whether the list says which expressions name nothing; otherwise an empty mask does.
      empty_rejects: whether an empty mask is a rejection.
    """

    name: str
    text: str
    iou_epsilon: float = 0.0
    empty_union: float = 1.0
    mean_epsilon: float = 0.0
    total_epsilon: float = 0.0
    by_image: bool = False
    apart: bool = True
    rejected: Literal["mask", "missed", "empty"] = "empty"
    annotated: bool = False
    empty_rejects: bool = True

    def settings(self) -> dict[str, Any]:
        """What results say of the protocol."""
        return {"protocol": self.text, "official_missing_policy": "zero (every expression gets an answer)"}


PLAIN = ImageProtocol(
    "plain",
    "mean over expressions without any constant added; what is rejected has no mask, and an empty mask is a rejection",
)
RES_UPSTREAM = ImageProtocol(
    "upstream",
    "MLLMSeg's test_mllmseg_res.py: gIoU is the mean over images of their means, with 1e-5 in every denominator",
    *(1e-5, 1.0, 1e-5, 1e-10),
    by_image=True,
    apart=False,
    rejected="mask",
    empty_rejects=False,
)
PER_EXPRESSION = ImageProtocol(
    "per_expression",
    "LISA's and GSVA's validate: as MLLMSeg's script, but gIoU is the mean over expressions",
    *(1e-5, 1.0, 1e-5, 1e-10),
    apart=False,
    rejected="mask",
    empty_rejects=False,
)
GRES_UPSTREAM = ImageProtocol(
    "upstream",
    "MLLMSeg's test_mllmseg_gres.py (as GSVA): a rejected target still counts with its decoded mask",
    *(1e-8, 0.0, 1e-5, 1e-10),
    rejected="mask",
    empty_rejects=False,
)
GRES_OFFICIAL = ImageProtocol(
    "official",
    "gRefCOCO's own evaluator (ReLA): a rejected target has no intersection, its mask stays in the union",
    empty_union=0.0,
    rejected="missed",
    annotated=True,
    empty_rejects=False,
)


def record(item: ImageReferrals, number: int, prediction: ImagePrediction) -> Record:
    """The counts of one expression of an image, for a line of JSON.

    Raises: InputError for a mask that is not bool or not of the image's size.
    """
    expression, mask = item.expressions[number], np.asarray(prediction.mask)
    if mask.shape != item.size or mask.dtype != bool:
        raise InputError(
            f"{item.where(number)}: the mask predicted is {mask.dtype} {mask.shape}; it should be bool {item.size}"
        )
    truth, ignored = item.mask(number), item.ignored(number)
    if ignored is not None:
        mask = mask & ~ignored
    boxes = expression.boxes
    single = len(expression.regions) == 1
    return {
        "key": expression.key,
        "kind": expression.kind,
        "objects": len(expression.regions),
        "status": prediction.status,
        "score": None if prediction.score is None else float(prediction.score),
        "intersection": int(np.count_nonzero(truth & mask)),
        "predicted": int(np.count_nonzero(mask)),
        "truth": int(np.count_nonzero(truth)),
        "box": list(_tight(mask)),
        # A list's box, or where it has none the truth's; with several objects there is no single one.
        "true_box": None if not single else list(boxes[0] if boxes and boxes[0] else _corner_and_size(_tight(truth))),
    }


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 with x1 and y1 behind the last pixel; all zero where the mask is empty."""
    return rle.to_box(rle.encode(mask))


def _corner_and_size(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def always_rejecting(one: Record) -> Record:
    """The record of a model that rejects everything."""
    return one | {"status": NO_TARGET, "intersection": 0, "predicted": 0, "box": [0, 0, 0, 0]}


def never_rejecting(one: Record) -> Record:
    """The record of the same masks, none of them rejected."""
    return one | {"status": "ok"}


@dataclass(frozen=True)
class Counted:
    """An expression by a protocol: pixels of intersection and union, overlap, and both sides' verdicts."""

    intersection: int
    union: int
    overlap: float
    empty: bool
    rejected: bool


def counted(one: Record, protocol: ImageProtocol) -> Counted:
    """What an expression counts."""
    shared, predicted, truth = one["intersection"], one["predicted"], one["truth"]
    rejected = one["status"] == NO_TARGET or (protocol.empty_rejects and not predicted)
    empty = not one["objects"] if protocol.annotated else not truth
    union = predicted + truth - shared
    if protocol.apart and empty:
        return Counted(0, 0 if rejected else union, float(rejected), empty, rejected)
    if rejected and protocol.rejected != "mask":
        union = truth if protocol.rejected == "empty" else union
        return Counted(0, union, 0.0 if truth else protocol.empty_union, empty, rejected)
    overlap = shared / (union + protocol.iou_epsilon) if union else protocol.empty_union
    return Counted(shared, union, overlap, empty, rejected)


def table(images: Sequence[Sequence[Record]], protocol: ImageProtocol) -> dict[str, Any]:
    """All scores of a list of images by a protocol, with bootstrap intervals whose clusters are the images.

    A measure that the expressions do not determine (N-acc where all name something) is None.
    """
    each = [[counted(one, protocol) for one in image] for image in images if image]
    flat = [one for image in each for one in image]
    if not flat:
        return {"images": 0, "expressions": 0}
    shared, union = (_sums(each, lambda one: one.intersection), _sums(each, lambda one: one.union))
    overlaps, lengths = _sums(each, lambda one: one.overlap), np.array([len(image) for image in each])
    if protocol.by_image:
        overlaps, lengths = overlaps / lengths, np.ones(len(each))
    total = int(union.sum())
    found: dict[str, Any] = {
        "cIoU": float(shared.sum() / (total + protocol.total_epsilon)) if total else None,
        "gIoU": float(overlaps.sum() / (lengths.sum() + protocol.mean_epsilon)),
        "N-acc": _share([one.rejected for one in flat if one.empty]),
        "T-acc": _share([not one.rejected for one in flat if not one.empty]),
    }
    # Thresholds are compared with overlaps without constants.
    named = [one.intersection / one.union if one.union else one.overlap for one in flat if not one.empty]
    found |= {f"Pr@{threshold}": _share([overlap >= threshold for overlap in named]) for threshold in THRESHOLDS}
    boxed = [one for image in images for one in image if one["true_box"] is not None]
    found["REC"] = _share([_boxes_agree(one) for one in boxed])
    found["REC_upstream"] = _share([_boxes_agree_upstream(one) for one in boxed])
    found["gIoU_interval"] = bootstrap.ratio_interval(overlaps, lengths).as_dict()
    found["cIoU_interval"] = bootstrap.ratio_interval(shared, union).as_dict() if total else None
    return found | {
        "images": len(each),
        "expressions": len(flat),
        "no_target": sum(one.empty for one in flat),
        "intersection": int(shared.sum()),
        "union": total,
    }


def _sums(images: Sequence[Sequence[Counted]], value: Callable[[Counted], float]) -> np.ndarray:
    """Sums within images. Shapes: -> [n]."""
    return np.array([sum(value(one) for one in image) for image in images])


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _boxes_agree(one: Record) -> bool:
    """Whether the tight boxes of prediction and truth have an IoU of 0.5 or more; what is rejected has no box."""
    if one["status"] == NO_TARGET or not one["predicted"]:
        return False
    x, y, width, height = one["true_box"]
    return _box_iou(np.array(one["box"], np.float64), np.array([x, y, x + width, y + height])) >= 0.5


def _boxes_agree_upstream(one: Record) -> bool:
    """MLLMSeg's: the true box passes through half precision, the other ends on its last pixel, and 0.5 is not enough.

    Source: MLLMSeg mllmseg/test_mllmseg_res.py, `evaluate_rec_bbox_iou`, and utils/common.py, `mask_to_bbox`.
    """
    x, y, width, height = np.array(one["true_box"], np.float16).astype(np.float32)
    x0, y0, x1, y1 = one["box"]
    found = np.array([x0, y0, x1 - 1, y1 - 1] if one["predicted"] else [0, 0, 0, 0], np.float32)
    return _box_iou(found, np.array([x, y, x + width, y + height], np.float32)) > 0.5


def _box_iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    if (high <= low).any():
        return 0.0
    shared = np.prod(high - low)
    union = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared
    return float(shared / union) if union > 0 else 0.0


def margin(
    images: Sequence[Sequence[Record]], control: Sequence[Sequence[Record]], protocol: ImageProtocol
) -> Mapping[str, float] | None:
    """Mean difference in overlap of the expressions that both have, in the same order, with its interval."""
    differences, lengths = [], []
    for own, other in zip(images, control, strict=True):
        keyed = {one["key"]: counted(one, protocol).overlap for one in own}
        pairs = [keyed[one["key"]] - counted(one, protocol).overlap for one in other]
        differences.append(sum(pairs))
        lengths.append(len(pairs))
    if not sum(lengths):
        return None
    return bootstrap.ratio_interval(np.array(differences), np.array(lengths)).as_dict()
