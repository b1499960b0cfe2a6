"""Training rows of referring segmentation of images, made in data workers: MLLMSeg's recipe.

Rows have one shape. Of an image, up to K expressions are drawn; masks lie in the upper left of a box and `sizes` says
how far they reach, so that a loss at the image's own resolution (as published) stays a compiled function of one shape:
it resizes probabilities to (h, w) = `sizes` within the box and leaves the padding out.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.image_referrals import ImageReferrals
from rvseg_jax.input_pipeline.mixture import Mixture
from rvseg_jax.input_pipeline.resampling import resize_masks
from rvseg_jax.input_pipeline.sources import Source
from rvseg_jax.processing import mllmseg_text
from rvseg_jax.processing.image import squashed

# A question and its answer as named arrays of fixed shapes; the caller's tokeniser.
Tokenise = Callable[[str, str], Mapping[str, np.ndarray]]
COCO_BOX = (640, 640)  # holds every image of COCO


def encoded_again(image: np.ndarray, quality: int) -> np.ndarray:
    """An image with the damage that JPEG of some quality does.

    Shapes: uint8 [H, W, 3] -> the same.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    with Image.open(file) as damaged:
        return np.asarray(damaged.convert("RGB"))


@dataclass(frozen=True, eq=False)
class ReferringImageRow:
    """Makes rows of images with expressions.

    The draws of a row come in this order: the expressions, the quality of the JPEG, the style of the answer, that of
    the question. Upstream has the same choices, each as likely, from two generators. Images of which all that was
    drawn names nothing are replaced by another of `others`, as upstream replaces them. Expressions without a letter
    are not drawn; upstream stops at one.

    Attributes:
      tokenise: of question and answer.
      size: side of the square image, S.
      expressions: most expressions of a row, K.
      box: (H, W) of the masks; images that do not fit are shrunk to it, their masks by nearest neighbours. None has
        masks of the square image, S x S, squashed like it.
      qualities: least and most quality of the JPEG that images are encoded as again; None leaves them.
      others: where images are drawn from in place of one without a target; None has `tries` draws of the same image.
      tries: draws before it is an error.

    Source: MLLMSeg mllmseg/dataset_sub_refer_seg.py, `ReferSegDataset.__getitem__`, and dataset.py, `build_transform`.
    """

    tokenise: Tokenise
    size: int = 448
    expressions: int = 5
    box: tuple[int, int] | None = COCO_BOX
    qualities: tuple[int, int] | None = (75, 100)
    others: Source[ImageReferrals] | None = None
    tries: int = 100

    def __post_init__(self) -> None:
        if min(self.size, self.expressions, self.tries, *(self.box or (1,))) < 1:
            raise ValueError(f"size {self.size}, expressions, tries and box {self.box} must be at least 1")
        if self.qualities is not None and not 1 <= self.qualities[0] <= self.qualities[1] <= 100:
            raise ValueError(f"qualities {self.qualities}: give a range within 1 to 100")

    def __call__(self, item: ImageReferrals, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row.

        Shapes: -> {"image": uint8 [S, S, 3], "masks": bool [K, H, W], "sizes": int32 [2], how far masks reach,
          "phrases": bool [K], which of the K there are, "drawn": bool [K], which of them name something}, and what
          `tokenise` gives.

        Raises:
          InputError: for an image or mask that cannot be read, or `tries` draws in a row without a target.
          ValueError: where `tokenise` uses one of these names.
        """
        item, chosen, masks = self._with_target(item, rng)
        image = item.image()
        if self.qualities is not None:
            image = encoded_again(image, int(rng.integers(self.qualities[0], self.qualities[1] + 1)))
        answer_style = int(rng.integers(len(mllmseg_text.ANSWERS)))
        question_style = int(rng.integers(len(mllmseg_text.QUESTIONS)))
        texts = [item.expressions[number].text for number in chosen]
        rejected = [not mask.any() for mask in masks]
        row = {"image": squashed(image, self.size), **self._boxed(masks)}
        row["phrases"] = np.arange(self.expressions) < len(chosen)
        row["drawn"] = np.zeros(self.expressions, bool)
        row["drawn"][: len(chosen)] = np.logical_not(rejected)
        question = mllmseg_text.question(texts, question_style)
        tokens = self.tokenise(question, mllmseg_text.answer(texts, rejected, answer_style))
        if row.keys() & tokens.keys():
            raise ValueError(f"tokenise returns {sorted(row.keys() & tokens.keys())}, names that are taken")
        return row | {name: np.asarray(array) for name, array in tokens.items()}

    def _with_target(
        self, item: ImageReferrals, rng: np.random.Generator
    ) -> tuple[ImageReferrals, list[int], list[np.ndarray]]:
        """An image, places of the expressions drawn of it, and their masks, of which one at least is not empty."""
        first = item.name
        for _ in range(self.tries):
            chosen = self.drawn(item, rng)
            masks = [item.mask(number) for number in chosen]
            if any(mask.any() for mask in masks):
                return item, chosen, masks
            if self.others is not None:
                item = self.others[int(rng.integers(len(self.others)))]
        what = "images" if self.others is not None else "draws"
        raise InputError(f"{first} and {self.tries - 1} more {what} name nothing at all: check the masks")

    def drawn(self, item: ImageReferrals, rng: np.random.Generator) -> list[int]:
        """Places of the expressions of a row: all in their order, or K of them in random order where there are more."""
        usable = [n for n, expression in enumerate(item.expressions) if mllmseg_text.phrase(expression.text).strip()]
        if len(usable) < self.expressions:
            return usable
        return [usable[int(n)] for n in rng.choice(len(usable), size=self.expressions, replace=False)]

    def _boxed(self, masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Masks in the upper left of the box, and their size.

        Shapes: bool [h, w] each -> bool [K, H, W], int32 [2].
        """
        stack = np.stack(masks)
        box = self.box or (self.size, self.size)
        size = tuple(stack.shape[1:]) if self.box else box
        scale = min(side / own for side, own in zip(box, size, strict=True))
        if scale < 1:
            size = tuple(max(1, min(side, round(own * scale))) for side, own in zip(box, size, strict=True))
        if size != stack.shape[1:]:
            stack = resize_masks(stack, (size[0], size[1]))
        out = np.zeros((self.expressions, *box), bool)
        out[: len(stack), : size[0], : size[1]] = stack
        return {"masks": out, "sizes": np.array(size, np.int32)}


def mixed(sources: Sequence[Source[ImageReferrals]], *, length: int | None = None) -> Source[Any]:
    """Datasets in equal shares, as MLLMSeg draws them; within one, every image comes before any comes again.

    Args:
      sources: of images with expressions.
      length: images an epoch, see `Mixture`.

    Raises: InputError where there is none, or one without images.
    """
    if not sources:
        raise InputError("no datasets are given; name one at least")
    for source in sources:
        if not len(source):
            raise InputError(f"{source!r} has no images; leave it out")
    return Mixture(sources, [1] * len(sources), length=length)
