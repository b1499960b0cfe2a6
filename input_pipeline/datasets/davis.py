"""DAVIS 2016 and 2017, and anything in their layout, as videos whose objects are followed from the first frame.

<root>/JPEGImages/480p/<video>/<frame>.jpg
<root>/Annotations/480p/<video>/<frame>.png    label images; of DAVIS 2016 masks of 0 and 255
<root>/ImageSets/<year>/<split>.txt            one video a line
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.davis import VOID, read_named_labels
from rvseg_jax.input_pipeline.sources import FrameFolder, TrackingSample

YEARS = ("2017", "2016")


class Davis:
    """A split of DAVIS: `Davis(root, "val")[index]` is a whole video, decoded.

    Attributes:
      year: of the list of videos, "2016" or "2017".
      names: the videos.
    """

    def __init__(self, root: str | Path, split: str = "val", *, year: str = "", resolution: str = "480p") -> None:
        """Reads the list of videos.

        Args:
          root: the dataset's folder.
          split: "train" or "val", the name of the list.
          year: "2016" or "2017"; the later one that is there, if not given. Of 2016 all that is not background is
            one object.
          resolution: folder of the frames, such as "480p" or "Full-Resolution".

        Raises: InputError, naming what is missing or wrong.
        """
        self._root = Path(root)
        years = (year,) if year else YEARS
        lists = [path for one in years if (path := self._root / "ImageSets" / one / f"{split}.txt").is_file()]
        if not lists:
            raise InputError(f"{self._root / 'ImageSets' / years[0] / split}.txt is missing: it lists the videos")
        self.year = lists[0].parent.name
        self.names = tuple(line.strip() for line in lists[0].read_text().splitlines() if line.strip())
        self._frames, self._labels = (self._root / kind / resolution for kind in ("JPEGImages", "Annotations"))
        for name in self.names:
            if Path(name).name != name:
                raise InputError(f"{lists[0]} lists {name!r}, which is no name of a folder")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"davis {self.year} {self._root} ({len(self)} videos)"

    def __getitem__(self, index: int) -> TrackingSample:
        """Video `index`, decoded whole, with the objects of its first frame.

        Raises: InputError for a frame or label image that is missing, damaged or of another size, naming it; or where
          the first frame shows no object.
        """
        video = self.video(index)
        sample = video.sample(range(len(video)))
        shown = sample.masks[:, 0].any(axis=(1, 2))
        if not shown.any():
            raise InputError(f"{self._labels / sample.video / sample.frame_names[0]}.png shows no object to follow")
        ids = tuple(number for number, there in zip(sample.ids, shown, strict=True) if there)
        return replace(sample, masks=sample.masks[shown], ids=ids)

    def video(self, index: int) -> "DavisVideo":
        """Video `index`, nothing decoded.

        Raises: InputError where its frames are missing.
        """
        name = self.names[index]
        return DavisVideo(name, FrameFolder(self._frames / name), self._labels / name, self.year == "2016")


class DavisClips:
    """The videos of a split for training: `DavisClips(davis)[index]` decodes nothing before a clip is asked for."""

    def __init__(self, davis: Davis) -> None:
        self._davis = davis

    def __len__(self) -> int:
        return len(self._davis)

    def __repr__(self) -> str:
        return repr(self._davis)

    def __getitem__(self, index: int) -> "DavisVideo":
        return self._davis.video(index)


@dataclass(frozen=True)
class DavisVideo:
    """A video on disk.

    Attributes:
      name: of the video.
      frames: its frames.
      labels: folder of its label images.
      binary: whether all that is not background is one object.
    """

    name: str
    frames: FrameFolder
    labels: Path
    binary: bool

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, places: Sequence[int]) -> TrackingSample:
        """The clip of some frames, with every object that shows in any of them.

        Raises: InputError for a frame or label image that is missing, damaged or of another size, naming it.
        """
        names = tuple(self.frames.names[place] for place in places)
        frames = self.frames.read(places)
        labels = np.stack([self._label(name, frames.shape[1:3]) for name in names])
        ids = tuple(int(value) for value in np.unique(labels) if value not in (0, VOID))
        masks = np.zeros((len(ids), *labels.shape), bool)
        for mask, value in zip(masks, ids, strict=True):
            mask[:] = labels == value
        return TrackingSample(frames, masks, ids, self.name, names)

    def _label(self, frame: str, size: tuple[int, ...]) -> np.ndarray:
        labels = read_named_labels(self.labels, frame)
        if labels.shape != size:
            raise InputError(
                f"{self.labels / frame}.png is {labels.shape[1]}x{labels.shape[0]}, its frame {size[1]}x{size[0]}"
            )
        return (labels != 0).astype(np.uint8) if self.binary else labels
