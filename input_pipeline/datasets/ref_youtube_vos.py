"""Ref-YouTube-VOS as a source of videos with sentences, from its folders on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rvseg_jax.formats import ref_youtube_vos
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.datasets.sentences import SentencesOfVideos


class LabelledVideos(SentencesOfVideos):
    """A split whose masks are label images, one a frame; they are read when a mask is asked for."""

    def __init__(self, name: str, folder: Path, clips: Mapping[str, Clip], clip_frames: int | None) -> None:
        super().__init__(folder, clips, clip_frames=clip_frames)
        self._name = name
        # A sentence that names no object has no public truth, even where images lie beside it.
        self.has_masks = (folder / ref_youtube_vos.ANNOTATIONS).is_dir() and all(
            item.objects is not None for clip in clips.values() for item in clip.expressions.values()
        )

    def __repr__(self) -> str:
        return f"{self._name} {self.folder}"

    def tracks_of(self, video: str, key: str) -> Sequence[Track] | None:
        """The track of the object that a sentence names; None where the truth is withheld."""
        if not self.has_masks:
            return None
        return [ref_youtube_vos.track_of(self.folder, video, self.clips[video], key)]


class RefYouTubeVos(LabelledVideos):
    """A split of Ref-YouTube-VOS: one item a sentence.

    `valid` is the benchmark's 202 videos: where the list of `test` is there, its videos are left out of the 507
    that are listed.
    """

    def __init__(self, root: str | Path, split: str, *, clip_frames: int | None = None) -> None:
        """Reads the sentences of a split.

        Args:
          root: the dataset's folder.
          split: "train", "valid" or "test"; the truth is public for the first alone.
          clip_frames: as `SentencesOfVideos`.

        Raises: InputError, naming what is missing or wrong.
        """
        clips = ref_youtube_vos.read_clips(Path(root), split)
        super().__init__("ref_youtube_vos", Path(root) / split, clips, clip_frames)
