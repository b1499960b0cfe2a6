"""Users' own images with expressions, from a JSON file; `formats.referral_json` describes it."""

from pathlib import Path

from rvseg_jax.formats import referral_json as layout
from rvseg_jax.formats.refcoco import compact
from rvseg_jax.input_pipeline.image_referrals import (
    CocoRegion,
    Expression,
    ImageFile,
    ImageReferrals,
    MaskFile,
    Region,
)
from rvseg_jax.processing.image import stored_size


class ReferralJson:
    """The images of a file, one item an image.

    Images are turned upright by their EXIF orientation, as whoever draws a mask sees them; with `upright` False masks
    lie on the pixels as they are stored.
    """

    def __init__(
        self, root: str | Path, split: str = "", *, upright: bool = True, images: str | Path | None = None
    ) -> None:
        """Reads a file.

        Args:
          root: the file, or a folder with `<split>.jsonl` or `<split>.json`.
          split: as the file is called.
          upright: see the class.
          images: folder that the paths start from; None takes the file's own.

        Raises: InputError, naming what is missing or wrong.
        """
        self.path, self.upright = layout.find(Path(root), split), upright
        self.entries, self.dropped, self.left_out = layout.read(self.path)
        self.folder = Path(images) if images is not None else self.path.parent

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"referral_json {self.path}"

    def expression_counts(self) -> list[int]:
        """Expressions of every image."""
        return [len(entry.expressions) for entry in self.entries]

    def __getitem__(self, index: int) -> ImageReferrals:
        """Image `index`, of which only the header has been read.

        Raises: InputError where it cannot be.
        """
        entry = self.entries[index]
        path = self.folder / entry.image
        expressions = tuple(
            Expression(said.text, said.key, self._regions(said), kind=said.kind) for said in entry.expressions
        )
        size = stored_size(path, upright=self.upright)
        return ImageReferrals(entry.name, size, ImageFile(path, self.upright), expressions)

    def _regions(self, said: layout.Said) -> tuple[Region, ...]:
        files: list[Region] = [MaskFile(self.folder / name) for name in said.files]
        return (*([CocoRegion(compact(said.coco))] if said.coco else []), *files)
