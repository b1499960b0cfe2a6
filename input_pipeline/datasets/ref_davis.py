"""Ref-DAVIS17 as a source of videos with sentences, from its folders on disk."""

from pathlib import Path

from rvseg_jax.formats import ref_davis
from rvseg_jax.input_pipeline.datasets.ref_youtube_vos import LabelledVideos


class RefDavis(LabelledVideos):
    """A split of Ref-DAVIS17: one item a sentence, four sentences an object."""

    def __init__(self, root: str | Path, split: str, *, clip_frames: int | None = None) -> None:
        """Reads the sentences of a split.

        Args:
          root: the dataset's folder.
          split: "train" or "valid".
          clip_frames: as `SentencesOfVideos`.

        Raises: InputError, naming what is missing or wrong.
        """
        super().__init__("ref_davis", Path(root) / split, ref_davis.read_clips(Path(root), split), clip_frames)
