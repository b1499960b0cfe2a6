"""MeViS as a source of videos with sentences, from its folders on disk."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rvseg_jax.formats import meta_expressions, mevis
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.datasets.sentences import SentencesOfVideos


class Mevis(SentencesOfVideos):
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
        folder = Path(folder)
        clips = meta_expressions.read(folder / meta_expressions.FILE_NAME)
        super().__init__(folder, clips, frames=frames, clip_frames=clip_frames)
        self.has_masks = (folder / mevis.MASKS).is_file()

    @cached_property
    def _tracks(self) -> dict[str, Track]:
        return mevis.read_masks(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the mask file themselves; it is too large to send.
        return {key: value for key, value in self.__dict__.items() if key != "_tracks"}

    def __repr__(self) -> str:
        return f"mevis {self.folder}"

    def tracks_of(self, video: str, key: str) -> Sequence[Track] | None:
        """The tracks of what a sentence names; None where the truth is withheld.

        Raises: InputError where a track is missing or does not fit the frames.
        """
        if not self.has_masks:
            return None
        clip = self.clips[video]
        return mevis.tracks_of(clip.expressions[key], self._tracks, len(clip.frames), f"{video}/{key}")


def open_split(root: str | Path, split: str, *, clip_frames: int | None = None) -> Mevis:
    """The split of that name below the dataset's folder, or `root` itself where it is a split's folder.

    Raises: InputError as `Mevis`.
    """
    folder = Path(root)
    if not (folder / meta_expressions.FILE_NAME).is_file():
        folder = folder / split
    return Mevis(folder, clip_frames=clip_frames)
