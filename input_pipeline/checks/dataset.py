"""Checks all splits of a dataset that are on disk, and compares them with what was published."""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, ref_davis, ref_youtube_vos, refcoco
from rvseg_jax.input_pipeline.checks.images import check_refcoco
from rvseg_jax.input_pipeline.checks.motion import check_motion
from rvseg_jax.input_pipeline.checks.recorded import check_recorded
from rvseg_jax.input_pipeline.checks.referrals import check_referrals
from rvseg_jax.input_pipeline.checks.report import Progress, Releases, Report, compare, no_progress
from rvseg_jax.input_pipeline.checks.videos import check_labelled, check_mevis
from rvseg_jax.input_pipeline.datasets import image_sets, motion_sets
from rvseg_jax.input_pipeline.datasets.recorded import SUFFIX

_RECORDED = ("records", "tfds")
# RefCOCO and its kin are checked sentence by sentence.
_REFERRALS = tuple(name for name in image_sets.NAMES if name not in refcoco.VARIANTS)
NAMES = ("mevis", "ref_youtube_vos", "ref_davis", *refcoco.VARIANTS, *_REFERRALS, *_RECORDED, *motion_sets.NAMES)
_MEVIS_SPLITS = ("train", "valid_u", "valid")

# MeViS: its README and https://henghuiding.com/MeViS. Ref-YouTube-VOS: the paper (train) and its server (valid).
# RefCOCO's kin: images by TFDS's page of ref_coco. ReasonSeg: LISA's paper. Motion datasets have no splits;
# DAVIS's validation lists count.
PUBLISHED: dict[str, Releases] = {
    "mevis": {
        "MeViS v1": {"train": (1662, 23051), "valid_u": (50, 793), "valid": (140, 2236)},
        "MeViS v2": {"train": (1662, 27502), "valid_u": (50, 907), "valid": (140, 2523)},
    },
    "ref_youtube_vos": {"Ref-YouTube-VOS": {"train": (3471, 12913), "valid": (202, None), "test": (305, None)}},
    "ref_davis": {"Ref-DAVIS17": {"train": (60, None), "valid": (30, None)}},
    "refcoco": {
        "RefCOCO": {"train": (16994, 120624), "val": (1500, 10834), "testA": (750, 5657), "testB": (750, 5095)}
    },
    "refcoco+": {"RefCOCO+": {"train": (16992, None), "val": (1500, None), "testA": (750, None), "testB": (750, None)}},
    "refcocog": {"RefCOCOg (umd)": {"train": (21899, None), "val": (1300, None), "test": (2600, None)}},
    "refcocog_google": {"RefCOCOg (google)": {"train": (24698, None), "val": (4650, None)}},
    "reason_seg": {"ReasonSeg": {"train": (239, None), "val": (200, None), "test": (779, None)}},
    "davis16": {"DAVIS 2016 val": {"": (20, None)}},
    "davis16_m": {"DAVIS 2016 val": {"": (20, None)}},
    "davis17": {"DAVIS 2017 val": {"": (30, None)}},
    "davis17_m": {"DAVIS 2017 val": {"": (30, None)}},
    "fbms": {"FBMS-59": {"": (59, None)}, "the test set of FBMS-59": {"": (30, None)}},
    "segtrack": {"SegTrack v2": {"": (14, None)}},
}


def check_dataset(
    name: str,
    root: Path,
    split: str | None = None,
    *,
    frames: Path | None = None,
    decode: bool = False,
    progress: Progress = no_progress,
) -> list[Report]:
    """Checks a split, or all that are there.

    Args:
      name: one of `NAMES`.
      root: the dataset's folder; of MeViS, a split's folder too.
      split: as the dataset calls it; None checks every split whose list is there.
      frames: where the frames lie, if not where the dataset has them (MeViS and datasets of images).
      decode: decodes every frame; otherwise only its header is read.
      progress: called with the name of each video or image.

    Raises: InputError for an unknown name or a folder without any list; what is wrong inside is in the reports.
    """
    if name not in NAMES:
        raise InputError(f"no check for a dataset called {name!r}; choose from {', '.join(NAMES)}")
    if split is not None and name in motion_sets.NAMES:
        raise InputError(f"{name} has no splits; leave {split!r} away")
    if frames is not None and name not in ("mevis", *refcoco.VARIANTS, *_REFERRALS):
        raise InputError(f"{name} has its frames below its folder; leave out the frames' own")
    splits = [split] if split is not None else splits_of(name, root)
    reports = []
    for each in splits:
        try:
            report = _check(name, root, each, frames, decode, progress)
        except InputError as error:
            if split is not None or name in motion_sets.NAMES:
                raise
            report = Report(each, problems=[str(error)])
        else:
            compare(report, name, PUBLISHED.get(name, {}))
        reports.append(report)
    return reports


def splits_of(name: str, root: Path) -> list[str]:
    """The splits whose lists are on disk; "" is a split's folder itself.

    Raises: InputError where there are none.
    """
    if name in motion_sets.NAMES:
        return [""]
    if name == "records":
        found = [""] if root.is_file() else sorted(path.stem for path in root.glob(f"*{SUFFIX}"))
        wanted = f"a file SPLIT{SUFFIX}"
    elif name == "tfds":
        raise InputError("a dataset of TFDS does not list its splits here; give one with --split")
    elif name == "mevis":
        if (root / meta_expressions.FILE_NAME).is_file():
            return [""]
        found = sorted(path.parent.name for path in root.glob(f"*/{meta_expressions.FILE_NAME}"))
        found.sort(key=lambda split: _MEVIS_SPLITS.index(split) if split in _MEVIS_SPLITS else len(_MEVIS_SPLITS))
        wanted = f"SPLIT/{meta_expressions.FILE_NAME}"
    elif name in _REFERRALS:
        found, wanted = image_sets.splits_on_disk(name, root), "any split"
    elif name in refcoco.VARIANTS:
        dataset, made_by = refcoco.VARIANTS[name]
        found = refcoco.splits_on_disk(root, dataset, made_by)
        wanted = f"{dataset}/refs({made_by}).p or {dataset}/instances_{dataset}_SPLIT.json"
    else:
        known = ref_davis.SPLITS if name == "ref_davis" else ref_youtube_vos.SPLITS
        found = [split for split in known if ref_youtube_vos.sentences_file(root, split).is_file()]
        wanted = f"meta_expressions/SPLIT/{meta_expressions.FILE_NAME}"
    if not found:
        raise InputError(f"{root} holds no {name}: {wanted} is missing")
    return found


def _check(name: str, root: Path, split: str, frames: Path | None, decode: bool, progress: Progress) -> Report:
    if name in motion_sets.NAMES:
        return check_motion(name, root, decode=decode, progress=progress)
    if name == "mevis":
        own = (root / meta_expressions.FILE_NAME).is_file()
        folder = root if own else root / split
        return check_mevis(folder, split or folder.name, frames=frames, decode=decode, progress=progress)
    if name in _RECORDED:
        return check_recorded(name, root, split, decode=decode, progress=progress)
    if name in _REFERRALS:
        return check_referrals(name, root, split, images=frames, decode=decode, progress=progress)
    if name in refcoco.VARIANTS:
        dataset, made_by = refcoco.VARIANTS[name]
        return check_refcoco(dataset, root, split, made_by=made_by, images=frames, decode=decode, progress=progress)
    return check_labelled(name, root, split, decode=decode, progress=progress)
