"""Where samples come from: the protocol of a source, the sample type, and folders of frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

T_co = TypeVar("T_co", covariant=True)

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Source(Protocol[T_co]):
    """Random access to samples; `tfds.data_source`, lists and ArrayRecord readers satisfy it too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> T_co: ...


@dataclass(frozen=True, eq=False)
class ReferringSample:
    """A clip with a sentence and the masks of what it names.

    Attributes:
      frames: uint8 [T, H, W, 3], RGB.
      masks: bool [T, H, W], union of all objects that the sentence names.
      text: the sentence.
      video: name of the video.
      expression: id of the sentence within the video.
      frame_names: names of the frames, as the dataset has them, without suffix.
      kind: what the sentence tells its target by, where the dataset says so, else "".
    """

    frames: np.ndarray
    masks: np.ndarray
    text: str
    video: str
    expression: str
    frame_names: tuple[str, ...]
    kind: str


class FrameFolder:
    """The frames of one video as image files; a file is decoded when its frame is read.

    Names, not counts, say which frames there are: some datasets keep every second or fifth frame under its
    original number.
    """

    def __init__(self, folder: str | Path, names: Sequence[str] | None = None) -> None:
        """Opens a folder.

        Args:
          folder: holds one image file a frame.
          names: file names without suffix, in order; None takes every image file, sorted by name.

        Raises:
          FileNotFoundError: where the folder or the file of a name is missing, naming it.
          ValueError: where there is no frame at all.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder of frames at {self.folder}")
        files: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() in FRAME_SUFFIXES:
                files.setdefault(path.stem, path)
        self.names = tuple(files) if names is None else tuple(names)
        missing = [name for name in self.names if name not in files]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks frame {missing[0]}.jpg (or .png)"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        if not self.names:
            raise ValueError(f"{self.folder} holds no image with suffix {', '.join(FRAME_SUFFIXES)}")
        self._paths = [files[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame in pixels, read from its header."""
        with Image.open(self._paths[0]) as image:
            return image.height, image.width

    def read(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Decodes frames.

        Args:
          indices: places in `names`, repeats allowed; None reads all.

        Returns:
          uint8 [T, H, W, 3], RGB.

        Raises:
          ValueError: for a file that cannot be decoded, or frames of different sizes, naming the file.
        """
        frames: list[np.ndarray] = []
        for index in range(len(self)) if indices is None else indices:
            path = self._paths[index]
            try:
                with Image.open(path) as image:
                    frame = np.asarray(image.convert("RGB"))
            except OSError as error:
                raise ValueError(f"cannot decode {path}: {error}") from error
            if frames and frame.shape != frames[0].shape:
                raise ValueError(f"{path} is {frame.shape[:2]} pixels, the frames before it {frames[0].shape[:2]}")
            frames.append(frame)
        return np.stack(frames)
