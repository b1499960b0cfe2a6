"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO and Ref-ZOM, one item an image with all its expressions."""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import referred_images as layout
from rvseg_jax.input_pipeline.image_referrals import CocoRegion, Expression, ImageFile, ImageReferrals


class ReferredImages:
    """A split of one of `formats.referred_images.SETS`.

    Images are read as they are stored, without their EXIF orientation: the masks lie on those pixels.

    Attributes:
      entries: what the lists say.
    """

    def __init__(self, dataset: str, root: str | Path, split: str, *, images: str | Path | None = None) -> None:
        """Reads the lists of a split.

        Args:
          dataset: its name.
          root: holds the folder of the dataset and the images.
          split: as the dataset calls it.
          images: folder of the images; None looks for it below `root`.

        Raises: InputError, naming what is missing or wrong.
        """
        self.dataset, self.root, self.split = dataset, Path(root), split
        found = layout.read(self.root, dataset, split)
        self.entries, self.dropped, self.left_out = found.images, found.dropped, found.left_out
        self.folders = [Path(images)] if images is not None else layout.image_folders(self.root, dataset)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"{self.dataset} {self.root} {self.split}"

    def expression_counts(self) -> list[int]:
        """Expressions of every image."""
        return [len(entry.sentences) for entry in self.entries]

    def __getitem__(self, index: int) -> ImageReferrals:
        """Image `index`, nothing decoded.

        Raises: InputError where its file is missing.
        """
        entry = self.entries[index]
        expressions = [
            Expression(
                sentence.text,
                sentence.key,
                tuple(CocoRegion(item.segmentation) for item in sentence.objects),
                tuple(item.box for item in sentence.objects),
            )
            for sentence in entry.sentences
        ]
        name = entry.file.rpartition(".")[0] or entry.file
        return ImageReferrals(name, entry.size, ImageFile(self._file(entry.file)), tuple(expressions))

    def _file(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise InputError(f"{self.folders[0] / name} is missing; the list of {self.dataset} names this image")
