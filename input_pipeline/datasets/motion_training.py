"""Training sets of motion segmentation, each frame's truth one mask of all that moves.

got10k          <root>/<video>/images/<frame>.jpg          <root>/<video>/masks/<frame>.png
hoi4d           <root>/images/<video>/<frame>.png          <root>/dynamic_masks/<video>/<frame>.png
dynamic_stereo  <root>/<split>/<video>/images/*            <root>/<split>/<video>/dynamic_masks/*, in order
gotmoving       <video>/<frame>.jpg                        <video>/masks/<frame>.npz, an array an object
                of the videos that a text file lists, or of all folders below <root> that hold `masks`
dynamic_verse   <any>/rgb/<frame>.png                      <any>/mask/<frame>.png, at any depth below <root>

Frames without truth are kept, and are not drawn for training. Source: GeoMotion core/dataset.
"""

from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.datasets.masked_videos import Entry, Layout, MaskedVideos, folders


def got10k(root: Path) -> MaskedVideos:
    """GOT-10k with masks: every folder below `root`."""
    entries = [Entry(name, root / name / "images", root / name / "masks") for name in folders(root)]
    return MaskedVideos(f"got10k {root}", entries, Layout())


def hoi4d(root: Path) -> MaskedVideos:
    """HOI4D as frames, and the masks of what moves."""
    names = folders(root / "images")
    entries = [Entry(name, root / "images" / name, root / "dynamic_masks" / name) for name in names]
    return MaskedVideos(f"hoi4d {root}", entries, Layout())


def dynamic_stereo(root: Path, split: str = "train") -> MaskedVideos:
    """Dynamic Replica of DynamicStereo; masks follow the order of the frames, whatever they are called."""
    names = folders(root / split)
    entries = [Entry(name, root / split / name / "images", root / split / name / "dynamic_masks") for name in names]
    return MaskedVideos(f"dynamic_stereo {root} {split}", entries, Layout(by="order"))


def gotmoving(root: Path) -> MaskedVideos:
    """The moving ones of GOT-10k: a list of folders, or all below a folder.

    Args:
      root: a text file with a folder a line, relative ones as seen from it; or a folder.

    Raises: InputError for a listed folder that is missing.
    """
    if root.is_dir():
        videos = sorted(path.parent for path in root.rglob("masks") if path.is_dir())
        named = [(str(path.relative_to(root)), path) for path in videos]
    elif root.is_file():
        lines = [line.strip() for line in root.read_text(encoding="utf-8").splitlines() if line.strip()]
        named = [(Path(line).name, root.parent / line) for line in lines]
        for name, path in named:
            if not path.is_dir():
                raise InputError(f"{root} lists {name}, but {path} is missing")
    else:
        raise InputError(f"{root} is missing; it should be a list of folders or a folder of videos")
    entries = [Entry(name, path, path / "masks") for name, path in named]
    return MaskedVideos(f"gotmoving {root}", entries, Layout(archives=True))


def dynamic_verse(root: Path) -> MaskedVideos:
    """DynamicVerse: every folder below `root` that holds both `rgb` and `mask`."""
    if not root.is_dir():
        raise InputError(f"{root} is missing; it should hold folders with rgb and mask")
    videos = sorted(path.parent for path in root.rglob("mask") if path.is_dir() and (path.parent / "rgb").is_dir())
    entries = [Entry(str(path.relative_to(root)), path / "rgb", path / "mask") for path in videos]
    return MaskedVideos(f"dynamic_verse {root}", entries, Layout())
