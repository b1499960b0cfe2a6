"""Checks datasets of images with several expressions each."""

from pathlib import Path

from rvseg_jax.input_pipeline.checks.report import Progress, Report, no_progress
from rvseg_jax.input_pipeline.datasets.image_sets import open_images
from rvseg_jax.input_pipeline.image_referrals import ImageFile, ImageReferrals
from rvseg_jax.processing.image import stored_size
from rvseg_jax.processing.mllmseg_text import phrase


def check_referrals(
    name: str,
    root: Path,
    split: str,
    *,
    images: Path | None = None,
    decode: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Checks every image, and draws the mask of every expression.

    Args:
      name: one of `image_sets.NAMES`.
      root, split: as `open_images`.
      images: folder of the images, if they lie elsewhere.
      decode: decodes every image; otherwise only its header is read.
      progress: called with each image's name.

    Raises: InputError where a list cannot be read at all, or no folder of images is there.
    """
    source = open_images(name, root, split, images=images, all_texts=True)
    report = Report(split)
    counts = {"name nothing": 0, "name several objects": 0, "have an empty mask": 0, "have no letter": 0}
    void = 0
    for index in range(len(source)):
        with report.noting():
            item = source[index]
            progress(item.name)
            report.videos += 1
            report.frames += 1
            _check_picture(item, decode)
            for number, expression in enumerate(item.expressions):
                report.sentences += 1
                with report.noting():
                    report.masks += len(expression.regions)
                    counts["name nothing"] += not expression.regions
                    counts["name several objects"] += len(expression.regions) > 1
                    counts["have an empty mask"] += bool(expression.regions) and not item.mask(number).any()
                    counts["have no letter"] += not phrase(expression.text).strip()
                    ignored = item.ignored(number)
                    void += ignored is not None and bool(ignored.any())
    report.notes += [f"{count} expressions {what}" for what, count in counts.items() if count]
    if void:
        report.notes.append(f"{void} expressions have pixels that do not count")
    if source.dropped:
        first = next(iter(source.dropped))
        total = sum(source.dropped.values())
        report.notes.append(f"{total} polygons of {len(source.dropped)} objects cannot be drawn, the first of {first}")
    if source.left_out:
        report.notes.append(f"{len(source.left_out)} expressions left out with them: {', '.join(source.left_out)}")
    return report


def _check_picture(item: ImageReferrals, decode: bool) -> None:
    """Raises InputError where an image cannot be read or has another size than the list says."""
    if decode or not isinstance(item.picture, ImageFile):
        item.image()
    else:
        size = stored_size(item.picture.path, upright=item.picture.upright)
        if size != item.size:
            item.image()  # raises, naming both sizes
