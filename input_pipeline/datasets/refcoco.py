"""RefCOCO, RefCOCO+ and RefCOCOg as sources of clips of one frame, from their files on disk."""

from pathlib import Path

from rvseg_jax.formats import refcoco as layout
from rvseg_jax.input_pipeline.sources import FrameFolder, ReferringVideo


class RefCoco:
    """A split of RefCOCO or one of its kin: one item a sentence, whose video is one image.

    Both layouts are read, see `formats.refcoco`; REFER's where both are there. Videos are named as the images.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        clip_frames: int | None = None,
        dataset: str = "refcoco",
        made_by: str | None = None,
        images: str | Path | None = None,
    ) -> None:
        """Reads the sentences of a split.

        Args:
          root: holds the folder of the dataset and the images.
          split: "train", "val", "testA", "testB" or, of RefCOCOg, "test".
          clip_frames: changes nothing, as an image has one frame to anchor a clip at.
          dataset: "refcoco", "refcoco+" or "refcocog".
          made_by: who made the splits, see `formats.refcoco.read`.
          images: folder of the images; None looks for it below `root`.

        Raises: InputError, naming what is missing or wrong.
        """
        self.root, self.split, self.dataset = Path(root), split, dataset
        self.referrals = layout.read(self.root, dataset, split, made_by)
        self.images = Path(images) if images is not None else layout.image_folder(self.root)
        self._made_by = f" by {made_by}" if made_by else ""

    def __len__(self) -> int:
        return len(self.referrals)

    def __repr__(self) -> str:
        return f"{self.dataset} {self.root} {self.split}{self._made_by}"

    def frame_count(self, index: int) -> int:
        """Frames of item `index`: an image is one."""
        return 1

    def __getitem__(self, index: int) -> ReferringVideo:
        """Item `index`, undecoded.

        Raises: InputError where its image is missing.
        """
        referral = self.referrals[index]
        name = Path(referral.image).stem
        tracks = [layout.ImageTrack(referral, number) for number in range(len(referral.segmentations))]
        return ReferringVideo(name, referral.key, referral.text, FrameFolder(self.images, [name]), tracks)


def open_variant(name: str, root: str | Path, split: str, *, clip_frames: int | None = None) -> RefCoco:
    """A split of one of `formats.refcoco.VARIANTS` by its name.

    Raises: InputError as `RefCoco`.
    """
    dataset, made_by = layout.VARIANTS[name]
    return RefCoco(root, split, clip_frames=clip_frames, dataset=dataset, made_by=made_by)
