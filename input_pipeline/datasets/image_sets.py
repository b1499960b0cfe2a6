"""Datasets of images with several expressions each, by their names."""

import difflib
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import reason_seg as reason_seg_layout
from rvseg_jax.formats import referral_json as json_layout
from rvseg_jax.formats import referred_images as refer_layout
from rvseg_jax.input_pipeline.datasets.reason_seg import ReasonSeg
from rvseg_jax.input_pipeline.datasets.referral_json import ReferralJson
from rvseg_jax.input_pipeline.datasets.referred_images import ReferredImages
from rvseg_jax.input_pipeline.image_referrals import ImageSource

REASON_SEG, JSON = "reason_seg", "referral_json"
NAMES = (*refer_layout.SETS, REASON_SEG, JSON)


def open_images(
    name: str, root: str | Path, split: str, *, images: str | Path | None = None, all_texts: bool = False
) -> ImageSource:
    """A split of a dataset, one item an image with all its expressions, nothing decoded.

    Args:
      name: one of `NAMES`.
      root: the dataset's folder; of "referral_json" also a file.
      split: as the dataset calls it.
      images: folder of the images, if they lie elsewhere.
      all_texts: whether all texts of ReasonSeg's images are read, for training; the first alone is scored.

    Raises: InputError for an unknown name, nearest known names first, or a dataset that is missing or damaged.
    """
    _known(name)
    if name == REASON_SEG:
        if images is not None:
            raise InputError(f"{name} has its images beside its lists; leave out their own folder")
        return ReasonSeg(root, split, all_texts=all_texts)
    if name == JSON:
        return ReferralJson(root, split, images=images)
    return ReferredImages(name, root, split, images=images)


def splits_on_disk(name: str, root: Path) -> list[str]:
    """The splits of a dataset that are there.

    Raises: InputError for an unknown name or missing lists.
    """
    _known(name)
    if name == REASON_SEG:
        return reason_seg_layout.splits_on_disk(root)
    return json_layout.splits_on_disk(root) if name == JSON else refer_layout.splits_on_disk(root, name)


def _known(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=len(NAMES), cutoff=0.5)
        rest = [other for other in NAMES if other not in near]
        raise InputError(f"no dataset of images is called {name!r}; choose from {', '.join([*near, *rest])}")
