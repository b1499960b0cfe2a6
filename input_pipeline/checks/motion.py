"""Checks datasets of motion segmentation."""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.checks.report import Progress, Report, check_frames, no_progress
from rvseg_jax.input_pipeline.datasets.masked_videos import MaskedVideo
from rvseg_jax.input_pipeline.datasets.motion_sets import open_motion


def check_motion(name: str, root: Path, *, decode: bool = False, progress: Progress = no_progress) -> Report:
    """Checks every video: that frames and truth belong together, can be read, and have one size each.

    Args:
      name: one of `motion_sets.NAMES`.
      root: as `open_motion`.
      decode: decodes every frame; otherwise only its header is read.
      progress: called with each video's name.

    Raises: InputError where the folder or the list of videos is missing.
    """
    source = open_motion(name, root)
    report = Report()
    still, sparse, rescaled, void = [], 0, [], 0
    for number, entry in enumerate(source.entries):
        progress(entry.name)
        with report.noting():
            video = source[number]
            size = check_frames(report, video.frames, decode)
            moving, voids, own = _check_truth(report, video)
            void += voids
            sparse += len(video.annotated) < len(video)
            if not moving:
                still.append(entry.name)
            if own is not None and own != size:
                rescaled.append(entry.name)
    if sparse:
        report.notes.append(f"{sparse} videos have truth of some frames only")
    if void:
        report.notes.append(f"{void} frames have void")
    for videos, what in ((still, "nothing moves in"), (rescaled, "truth has another size than the frames of")):
        if videos:
            report.notes.append(f"{what} {len(videos)} videos, the first {videos[0]}")
    return report


def _check_truth(report: Report, video: MaskedVideo) -> tuple[bool, int, tuple[int, int] | None]:
    """Whether anything moves in a video, how many frames have void, and (H, W) of the truth."""
    moving, void, size = False, 0, None
    for place in video.annotated:
        path = video.truth[place]
        assert path is not None
        with report.noting():
            mask, valid = video.layout.read(path)
            report.masks += 1
            height, width = mask.shape
            size = size or (height, width)
            if mask.shape != size:
                raise InputError(f"{path} has size {mask.shape}, the first of the video {size}")
            moving |= bool(mask.any())
            void += valid is not None
    return moving, void, size
