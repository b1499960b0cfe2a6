"""MeViS as a source of videos with sentences, from its folders on disk."""

from functools import cached_property
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, mevis
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.sampling import anchors
from rvseg_jax.input_pipeline.sources import FrameFolder, ReferringVideo


class Mevis:
    """A split of MeViS, version 1 or 2, or any folder of that form: one item a sentence.

    The order is that of the file. Frames and masks are read when an item is asked for; the mask file is opened
    at the first, in each process for itself.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: str | Path | None = None,
        clip_frames: int | None = None,
    ) -> None:
        """Reads the sentences of a split.

        Args:
          folder: a split's folder, with `meta_expressions.json` and, unless it is `valid`, `mask_dict.json`.
          frames: where the videos' folders of frames lie; None: `folder/JPEGImages`.
          clip_frames: for training, one item for every `clip_frames`-th frame of a video rather than one
            for the whole video, with that frame as its anchor.

        Raises: InputError, naming what is missing, for a missing file or folder of a video.
        """
        self.folder = Path(folder)
        self.frames = Path(frames) if frames is not None else self.folder / mevis.FRAMES
        self.clips: dict[str, Clip] = meta_expressions.read(self.folder / meta_expressions.FILE_NAME)
        for video in self.clips:
            if not (self.frames / video).is_dir():
                raise InputError(f"{self.frames / video} is missing; {meta_expressions.FILE_NAME} lists it")
        self.has_masks = (self.folder / mevis.MASKS).is_file()
        self._items = [
            (video, key, anchor)
            for video, clip in self.clips.items()
            for key in clip.expressions
            for anchor in (anchors(len(clip.frames), clip_frames) if clip_frames else [0])
        ]

    @cached_property
    def _tracks(self) -> dict[str, Track]:
        return mevis.read_masks(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the mask file themselves; it is too large to send.
        return {key: value for key, value in self.__dict__.items() if key != "_tracks"}

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"mevis {self.folder}"

    def __getitem__(self, index: int) -> ReferringVideo:
        """Item `index`, undecoded.

        Raises: InputError where a file of it is missing or does not fit the others.
        """
        video, key, anchor = self._items[index]
        clip = self.clips[video]
        expression = clip.expressions[key]
        tracks = None
        if self.has_masks:
            tracks = mevis.tracks_of(expression, self._tracks, len(clip.frames), f"{video}/{key}")
        frames = FrameFolder(self.frames / video, clip.frames)
        return ReferringVideo(video, key, expression.text, frames, tracks, anchor)


def open_split(root: str | Path, split: str, *, clip_frames: int | None = None) -> Mevis:
    """The split of that name below the dataset's folder, or `root` itself where it is a split's folder.

    Raises: InputError as `Mevis`.
    """
    folder = Path(root)
    if not (folder / meta_expressions.FILE_NAME).is_file():
        folder = folder / split
    return Mevis(folder, clip_frames=clip_frames)
