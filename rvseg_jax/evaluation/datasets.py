"""Datasets that can be evaluated on, as sources of decoded samples."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, ref_davis, ref_youtube_vos
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.datasets.ref_davis import RefDavis
from rvseg_jax.input_pipeline.datasets.ref_youtube_vos import RefYouTubeVos
from rvseg_jax.input_pipeline.datasets.sentences import SentencesOfVideos
from rvseg_jax.input_pipeline.sources import ReferringSample, ReferringVideo

DAVIS = "davis"
MEVIS = "mevis"
MOVING_SHAPES = "moving_shapes"
REF_DAVIS = "ref_davis"
REF_YOUTUBE_VOS = "ref_youtube_vos"
NAMES = (DAVIS, MEVIS, MOVING_SHAPES, REF_DAVIS, REF_YOUTUBE_VOS)
_MEVIS_SPLIT = "valid_u"


class DecodedVideos:
    """Samples of a split on disk; consecutive sentences of one video share the decoded frames.

    Attributes:
      clips: the videos with their sentences, in the order of the samples.
      has_masks: whether the truth is public.
    """

    def __init__(self, videos: SentencesOfVideos, *, with_frames: bool = True) -> None:
        """Wrap a split.

        Args:
          videos: such as `Mevis(folder)`, an item a sentence.
          with_frames: False leaves the pixels black, which is all that scoring a folder of predictions needs.
        """
        self.clips = videos.clips
        self.has_masks = videos.has_masks
        self._videos = videos
        self._with_frames = with_frames
        self._last: tuple[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._videos)

    def videos(self) -> list[str]:
        """The video of every sample."""
        return [video for video, clip in self.clips.items() for _ in clip.expressions]

    def size(self, video: str) -> tuple[int, int]:
        """(H, W) of a video in pixels, from its first frame."""
        return self._videos[self.videos().index(video)].frames.size()

    def __getitem__(self, index: int) -> ReferringSample:
        """Sample `index`, decoded whole; with empty masks where the truth is not public.

        Raises:
          InputError: where a file of it is missing, cannot be decoded, or does not fit the others.
        """
        video = self._videos[index]
        if self._last is None or self._last[0] != video.video:
            self._last = (video.video, self._frames(video))
        frames = self._last[1]
        masks = np.broadcast_to(np.False_, frames.shape[:3]) if video.tracks is None else video.masks()
        return ReferringSample(frames, masks, video.text, video.video, video.expression, tuple(video.frames.names), "")

    def _frames(self, video: ReferringVideo) -> np.ndarray:
        if self._with_frames:
            return video.frames.read()
        return np.broadcast_to(np.uint8(0), (len(video.frames), *video.frames.size(), 3))


def mevis_split(root: Path, *, split: str | None, frames: Path | None, with_frames: bool = True) -> DecodedVideos:
    """A split of MeViS, version 1 or 2, or of any dataset on disk in that form.

    Args:
      root: the dataset's folder, or the folder of one split.
      split: the folder below `root`, `valid_u` if not given; ignored where `root` is a split's folder.
      frames: where the folders of frames lie, if not in the split's `JPEGImages`.
      with_frames: see `DecodedVideos`.

    Raises:
      InputError: if files are missing.
    """
    own = (root / meta_expressions.FILE_NAME).is_file()
    folder = root if own else root / (split or _MEVIS_SPLIT)
    return DecodedVideos(Mevis(folder, frames=frames), with_frames=with_frames)


def ref_youtube_vos_split(
    root: Path, *, split: str | None, subset: bool = False, with_frames: bool = True
) -> DecodedVideos:
    """A split of Ref-YouTube-VOS, `valid` if not given: of its list the videos that are not of `test`.

    Args:
      root: the dataset's folder.
      split: "train", "valid" or "test".
      subset: accept another number of videos of `valid` than the benchmark has.
      with_frames: see `DecodedVideos`.

    Raises:
      InputError: for another split, missing files, or a number of videos that is not the benchmark's.
    """
    name = split or "valid"
    videos = RefYouTubeVos(root, name)
    if name == "valid" and len(videos.clips) != ref_youtube_vos.VALID and not subset:
        raise InputError(
            f"{ref_youtube_vos.sentences_file(root, name)} lists {len(videos.clips)} videos that test does not have, "
            f"the benchmark has {ref_youtube_vos.VALID}: use both of its lists, or --subset for a part of it"
        )
    return DecodedVideos(videos, with_frames=with_frames)


def ref_davis_split(root: Path, *, split: str | None, with_frames: bool = True) -> DecodedVideos:
    """A split of Ref-DAVIS17, sentence by sentence, `valid` if not given.

    The truth is that of `mask_dict.pkl`, or of the label maps where there is none.

    Raises:
      InputError: if files are missing.
    """
    name = split or "valid"
    pickled = (root / name / _PickledRefDavis.file_name).is_file()
    return DecodedVideos((_PickledRefDavis if pickled else RefDavis)(root, name), with_frames=with_frames)


class _PickledRefDavis(RefDavis):
    """Ref-DAVIS17 with the truth of the file that VISA's evaluation reads."""

    file_name = "mask_dict.pkl"

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.has_masks = True

    @cached_property
    def _pickled(self) -> dict[tuple[str, str], Track | None]:
        """The track of every (video, sentence id).

        Raises: InputError where the file does not hold as many tracks as there are sentences.
        """
        path = self.folder / self.file_name
        tracks, order = ref_davis.read_mask_dict(path), ref_davis.annotation_order(self.clips)
        if len(tracks) != len(order):
            raise InputError(f"{path} holds {len(tracks)} tracks for {len(order)} sentences: it is of another list")
        return {item: tracks.get(str(number)) for number, item in enumerate(order)}

    def tracks_of(self, video: str, key: str) -> Sequence[Track] | None:
        """The track of what a sentence names.

        Raises: InputError where it is missing or does not fit the frames.
        """
        track = self._pickled[video, key]
        if track is None or len(track) != len(self.clips[video].frames):
            raise InputError(f"{self.folder / self.file_name} has no mask for every frame of {video}/{key}")
        return [track]
