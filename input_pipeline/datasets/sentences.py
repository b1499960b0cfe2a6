"""What the sources of videos with sentences share: one item a sentence, or one a sentence and anchor frame."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.mevis import FRAMES, Track
from rvseg_jax.input_pipeline.sampling import anchors
from rvseg_jax.input_pipeline.sources import FrameFolder, ReferringVideo


class SentencesOfVideos(ABC):
    """A split whose videos are folders of frames. The order is that of the list; items are read when asked for.

    Attributes:
      folder: of the split.
      frames: where the videos' folders of frames lie.
      clips: the videos with their sentences.
      has_masks: whether the truth is public.
    """

    has_masks: bool

    def __init__(
        self,
        folder: Path,
        clips: Mapping[str, Clip],
        *,
        frames: str | Path | None = None,
        clip_frames: int | None = None,
    ) -> None:
        """Takes the list of a split.

        Args:
          folder: of the split.
          clips: the videos with their sentences.
          frames: where the videos' folders of frames lie; None: `folder/JPEGImages`.
          clip_frames: for training, one item for every `clip_frames`-th frame of a video rather than one
            for the whole video, with that frame as its anchor.

        Raises: InputError, naming it, where the folder of a video is missing.
        """
        self.folder, self.clips = folder, clips
        self.frames = Path(frames) if frames is not None else folder / FRAMES
        for video in clips:
            if not (self.frames / video).is_dir():
                raise InputError(f"{self.frames / video} is missing; the list of sentences names this video")
        self._items = [
            (video, key, anchor)
            for video, clip in clips.items()
            for key in clip.expressions
            for anchor in (anchors(len(clip.frames), clip_frames) if clip_frames else [0])
        ]

    @abstractmethod
    def tracks_of(self, video: str, key: str) -> Sequence[Track] | None:
        """The mask tracks of what a sentence names; None where the truth is withheld."""

    def __len__(self) -> int:
        return len(self._items)

    def frame_count(self, index: int) -> int:
        """Frames of the video of item `index`, without looking at its files."""
        return len(self.clips[self._items[index][0]].frames)

    def __getitem__(self, index: int) -> ReferringVideo:
        """Item `index`, undecoded.

        Raises: InputError where a file of it is missing or does not fit the others.
        """
        video, key, anchor = self._items[index]
        clip = self.clips[video]
        tracks = self.tracks_of(video, key)
        frames = FrameFolder(self.frames / video, clip.frames)
        return ReferringVideo(video, key, clip.expressions[key].text, frames, tracks, anchor)
