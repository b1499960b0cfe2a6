"""Benchmarks of motion segmentation, each frame's truth one mask of all that moves.

davis16, davis17, davis_all (and their versions with motion truth, which lie in a folder of their own)

<root>/JPEGImages/480p/<video>/<frame>.jpg
<root>/Annotations/480p/<video>/<frame>.png    masks of 0 and 255, or label images of which the union counts
<root>/ImageSets/{2016,2017}/val.txt           one video a line; where it is missing, the published list

fbms, "cleaned": FBMS-59 with frames and truth in folders of one form

<root>/JPEGImages/<video>/<frame>.jpg
<root>/Annotations/<video>/<frame>.png         of some frames

segtrack, SegTrack v2 with the objects of a video in one image

<root>/JPEGImages_jpg_standardized/<video>/*   or <root>/JPEGImages/<video>/*
<root>/GroundTruth/<video>/*

Source: GeoMotion eval.py.
"""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets.masked_videos import Entry, Layout, MaskedVideos, folders

# As in the lists `ImageSets/<year>/val.txt` of DAVIS.
_DAVIS16 = """
blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog drift-chicane drift-straight goat
horsejump-high kite-surf libby motocross-jump paragliding-launch parkour scooter-black soapbox
"""
_ONLY_DAVIS17 = "bike-packing dogs-jump gold-fish india judo lab-coat loading mbike-trick pigs shooting"
_RESOLUTION = "480p"


def davis(root: Path, year: str | None) -> MaskedVideos:
    """Videos in DAVIS's layout.

    Args:
      root: the dataset's folder, or the folder that holds it as `DAVIS`.
      year: "2016" or "2017", whose validation list is taken; None takes every video.

    Raises: InputError where a folder or a listed video is missing.
    """
    root = Path(root)
    if not (root / "JPEGImages").is_dir() and (root / "DAVIS").is_dir():
        root = root / "DAVIS"
    frames, truth = (root / kind / _RESOLUTION for kind in ("JPEGImages", "Annotations"))
    names = folders(frames) if year is None else _listed(root / "ImageSets" / year / "val.txt", year)
    missing = [name for name in names if not (frames / name).is_dir()]
    if missing:
        raise InputError(f"{frames / missing[0]} is missing, one of {len(missing)} listed videos without frames")
    label = f"davis {year or 'all'} {root}"
    return MaskedVideos(label, [Entry(name, frames / name, truth / name) for name in names], Layout(complete=True))


def _listed(path: Path, year: str) -> list[str]:
    if not path.is_file():
        return sorted((_DAVIS16 if year == "2016" else _DAVIS16 + _ONLY_DAVIS17).split())
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise InputError(f"{path} lists {name!r}, which is no name of a folder")
    return names


def fbms(root: Path) -> MaskedVideos:
    """FBMS-59, cleaned: every folder of frames; of a video some frames have truth.

    Raises: InputError where a folder is missing.
    """
    root = Path(root)
    names = folders(root / "JPEGImages")
    entries = [Entry(name, root / "JPEGImages" / name, root / "Annotations" / name) for name in names]
    return MaskedVideos(f"fbms {root}", entries, Layout())


def segtrack(root: Path) -> MaskedVideos:
    """SegTrack v2: every folder of frames.

    Raises: InputError where a folder is missing, or the objects of a video lie in folders of their own.
    """
    root = Path(root)
    standardised = root / "JPEGImages_jpg_standardized"
    frames = standardised if standardised.is_dir() else root / "JPEGImages"
    entries = [Entry(name, frames / name, root / "GroundTruth" / name) for name in folders(frames)]
    for entry in entries:
        inner = [path.name for path in entry.truth.glob("*/")] if entry.truth.is_dir() else []
        if inner:
            raise InputError(
                f"{entry.truth} holds the folder {inner[0]}: bring the objects of each frame into one image, "
                f"{entry.truth}/FRAME.png"
            )
    return MaskedVideos(f"segtrack {root}", entries, Layout(by="either", complete=True))
