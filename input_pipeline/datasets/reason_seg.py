"""ReasonSeg as images with expressions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvseg_jax.formats import reason_seg as layout
from rvseg_jax.input_pipeline.image_referrals import Expression, ImageFile, ImageReferrals
from rvseg_jax.processing.image import stored_size


@dataclass(frozen=True)
class PaintedRegion:
    """The pixels of one value in the painting of a file."""

    shapes: tuple[layout.Shape, ...]
    value: int

    def draw(self, size: tuple[int, int], where: str) -> np.ndarray:
        """bool [H, W]. Raises: InputError for points that cannot be drawn."""
        return layout.paint(self.shapes, size, where) == self.value


class ReasonSeg:
    """A split of ReasonSeg, one item an image.

    Expressions are of kind "long" (whole sentences) or "short". Ignored pixels are no part of the target; they count
    for neither side.
    """

    def __init__(self, root: str | Path, split: str, *, all_texts: bool = False) -> None:
        """Reads the files of a split.

        Args:
          root: the dataset's folder.
          split: "train", "val" or "test".
          all_texts: whether all texts of an image are its expressions, for training; the first alone is scored.

        Raises: InputError, naming what is missing or wrong.
        """
        self.root, self.split = Path(root), split
        self.questions = layout.read(self.root, split)
        self.dropped: dict[str, int] = {}
        self.left_out: tuple[str, ...] = ()
        self._most = None if all_texts else 1

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"reason_seg {self.root} {self.split}"

    def expression_counts(self) -> list[int]:
        """Expressions of every image."""
        return [len(item.texts[: self._most]) for item in self.questions]

    def __getitem__(self, index: int) -> ImageReferrals:
        """Image `index`, of which only the header has been read.

        Raises: InputError where it cannot be.
        """
        item = self.questions[index]
        painted = {value: PaintedRegion(item.shapes, value) for value in (layout.TARGET, layout.IGNORE)}
        named = any("ignore" not in shape.label for shape in item.shapes)
        expressions = tuple(
            Expression(
                text,
                str(key),
                (painted[layout.TARGET],) if named else (),
                ignored=painted[layout.IGNORE],
                kind="long" if item.is_sentence else "short",
            )
            for key, text in enumerate(item.texts[: self._most])
        )
        return ImageReferrals(item.name, stored_size(item.image), ImageFile(item.image), expressions)
