"""Cumulative and generalised IoU, and the accuracies of saying that there is no target."""

from dataclasses import dataclass
from typing import Literal

# How a sample counts whose sentence or whose prediction is empty; see `IoUTotals.add`.
Style = Literal["gsva", "rela"]


@dataclass
class IoUTotals:
    """Running sums over samples, in integers, so that the sums of several processes add up exactly.

    Source: the evaluators of GSVA (`validate` for gRefCOCO) and of ReLA, the official one of gRefCOCO. Where no
    sentence is without target both give cIoU = sum I / sum U and gIoU = mean I / U.

    Attributes:
      style: "gsva" or "rela".
      intersection, union: pixels over all samples.
      overlaps: sum over samples of I / U.
      samples, empty_targets: all samples, and those whose sentence names nothing.
      true_empty, true_present: empty targets predicted empty, and targets not predicted empty.
    """

    style: Style = "gsva"
    intersection: int = 0
    union: int = 0
    overlaps: float = 0.0
    samples: int = 0
    empty_targets: int = 0
    true_empty: int = 0
    true_present: int = 0

    def __post_init__(self) -> None:
        if self.style not in ("gsva", "rela"):
            raise ValueError(f"style is {self.style!r}: choose 'gsva' or 'rela'")

    def add(self, intersection: int, union: int, *, has_target: bool, said_empty: bool) -> None:
        """Count one sample, an image or a whole clip.

        An empty target that is said to be empty has an overlap of 1 and adds no pixels; otherwise it has 0 and adds the
        prediction to the union. A target that is said to be empty still counts with its decoded mask in the style of
        GSVA; in the style of ReLA it has no intersection.

        Args:
          intersection, union: pixels of the truth and the decoded mask.
          has_target: whether the sentence names something in the sample.
          said_empty: whether the model says that it does not; without such an output, whether its mask is empty.
        """
        self.samples += 1
        if not has_target:
            self.empty_targets += 1
            self.true_empty += said_empty
            self.overlaps += said_empty
            self.union += 0 if said_empty else union
            return
        if said_empty and self.style == "rela":
            intersection = 0
        self.true_present += not said_empty
        self.intersection += intersection
        self.union += union
        self.overlaps += intersection / union if union else 1.0

    @property
    def ciou(self) -> float:
        """Cumulative IoU, sum I / sum U; NaN without a pixel in any union."""
        return self.intersection / self.union if self.union else float("nan")

    @property
    def giou(self) -> float:
        """Mean over samples of I / U (not the generalised IoU of boxes); NaN without samples."""
        return self.overlaps / self.samples if self.samples else float("nan")

    @property
    def no_target_accuracy(self) -> float:
        """N-acc: share of empty targets that are predicted empty; NaN without any."""
        return self.true_empty / self.empty_targets if self.empty_targets else float("nan")

    @property
    def target_accuracy(self) -> float:
        """T-acc: share of targets that are not predicted empty; NaN without any."""
        targets = self.samples - self.empty_targets
        return self.true_present / targets if targets else float("nan")
