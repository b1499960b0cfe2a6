"""Checks RefCOCO, RefCOCO+ and RefCOCOg."""

from pathlib import Path

from rvseg_jax.formats import refcoco, rle
from rvseg_jax.input_pipeline.checks.report import Progress, Report, check_frames, no_progress
from rvseg_jax.input_pipeline.sources import FrameFolder


def check_refcoco(
    dataset: str,
    root: Path,
    split: str,
    *,
    made_by: str | None = None,
    images: Path | None = None,
    decode: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Checks a split.

    Args:
      dataset: "refcoco", "refcoco+" or "refcocog".
      root: holds the folder of the dataset and the images.
      split: as the maker of the splits calls it.
      made_by: who made the splits, see `formats.refcoco.read`.
      images: folder of the images; None looks for it below `root`.
      decode: decodes every image; otherwise only its header is read.
      progress: called with each image's name.

    Raises: InputError where a list cannot be read at all, or no folder of images is there.
    """
    report = Report(split)
    seen: set[str] = set()
    drawn: set[int] = set()
    empty = 0
    referrals = refcoco.read(root, dataset, split, made_by)
    folder = images or refcoco.image_folder(root)
    for referral in referrals:
        report.sentences += 1
        if referral.image not in seen:
            seen.add(referral.image)
            progress(referral.image)
            with report.noting():
                size = check_frames(report, FrameFolder(folder, [Path(referral.image).stem]), decode)
                if size != referral.size:
                    problem = f"{folder / referral.image} has size {size}, the list says {referral.size}"
                    report.problems.append(problem)
        for segmentation in referral.segmentations:
            if id(segmentation) in drawn:  # sentences about one object share it
                continue
            drawn.add(id(segmentation))
            report.masks += 1
            with report.noting():
                empty += not rle.area(refcoco.mask_of(segmentation, referral.size, referral.name))
    if empty:
        report.notes.append(f"{empty} masks are empty")
    return report
