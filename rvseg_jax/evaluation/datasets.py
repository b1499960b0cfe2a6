"""Datasets that can be evaluated on, as sources of decoded samples."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, mevis, ref_davis, rle
from rvseg_jax.formats.meta_expressions import Clip
from rvseg_jax.formats.mevis import Track
from rvseg_jax.input_pipeline.datasets.mevis import Mevis
from rvseg_jax.input_pipeline.sources import FrameFolder, ReferringSample, ReferringVideo, Source

MEVIS = "mevis"
MOVING_SHAPES = "moving_shapes"
REF_DAVIS = "ref_davis"
REF_YOUTUBE_VOS = "ref_youtube_vos"
NAMES = (MEVIS, MOVING_SHAPES, REF_DAVIS, REF_YOUTUBE_VOS)
_MEVIS_SPLIT = "valid_u"
_REF_YOUTUBE_VOS_VIDEOS = {"valid": 202}

# The mask tracks of a sentence, given the video and the sentence's id.
Tracks = Callable[[str, str], list[Track]]


class DecodedVideos:
    """Samples of a source of undecoded videos; consecutive sentences of one video share the decoded frames.

    `clips` are the lists of the split, in the order of the samples.
    """

    def __init__(self, videos: Source[ReferringVideo], clips: Mapping[str, Clip], *, with_frames: bool = True) -> None:
        """Wrap a source.

        Args:
          videos: such as `Mevis(folder)`, an item a sentence.
          clips: the videos and sentences of these items.
          with_frames: False leaves the pixels black, which is all that scoring a folder of predictions needs.
        """
        self.clips = clips
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
        """Sample `index`, decoded whole; without masks where the truth is not public.

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


class _Listed:
    """All sentences of a list of videos, undecoded."""

    def __init__(self, clips: Mapping[str, Clip], frames: Path, tracks: Tracks | None) -> None:
        for video in clips:
            if not (frames / video).is_dir():
                raise InputError(f"{frames / video} is missing; {meta_expressions.FILE_NAME} lists it")
        self._clips, self._frames, self._tracks = clips, frames, tracks
        self._items = [(video, key) for video, clip in clips.items() for key in clip.expressions]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ReferringVideo:
        video, key = self._items[index]
        clip = self._clips[video]
        tracks = None if self._tracks is None else self._tracks(video, key)
        return ReferringVideo(
            video, key, clip.expressions[key].text, FrameFolder(self._frames / video, clip.frames), tracks
        )


def mevis_split(
    root: Path, *, split: str | None, frames: Path | None, with_frames: bool = True
) -> tuple[DecodedVideos, bool]:
    """A split of MeViS, version 1 or 2, or of any dataset on disk in that form.

    Args:
      root: the dataset's folder, or the folder of one split.
      split: the folder below `root`, `valid_u` if not given; ignored where `root` is a split's folder.
      frames: where the folders of frames lie, if not in the split's `JPEGImages`.
      with_frames: see `DecodedVideos`.

    Returns:
      Its samples, and whether their masks are public.

    Raises:
      InputError: if files are missing.
    """
    own = (root / meta_expressions.FILE_NAME).is_file()
    folder = root if own else root / (split or _MEVIS_SPLIT)
    videos = Mevis(folder, frames=frames)
    return DecodedVideos(videos, videos.clips, with_frames=with_frames), videos.has_masks


def ref_youtube_vos_split(
    root: Path, *, split: str | None, subset: bool = False, with_frames: bool = True
) -> DecodedVideos:
    """A split of Ref-YouTube-VOS whose truth is on the server: `valid` (the default) or `test`.

    The list of `valid` holds the videos of `test` too; those are left out.

    Args:
      root: the dataset's folder.
      split: "valid" or "test".
      subset: accept another number of videos than the benchmark has.
      with_frames: see `DecodedVideos`.

    Raises:
      InputError: for another split, missing files, or a number of videos that is not the benchmark's.
    """
    name = split or "valid"
    if name not in ("valid", "test"):
        raise InputError(f"Ref-YouTube-VOS is evaluated on valid or test, whose truth is on the server, not on {name}")
    folder = root / "meta_expressions"
    clips = meta_expressions.read(folder / name / meta_expressions.FILE_NAME)
    if name == "valid":
        test = meta_expressions.read(folder / "test" / meta_expressions.FILE_NAME)
        clips = {video: clip for video, clip in clips.items() if video not in test}
    wanted = _REF_YOUTUBE_VOS_VIDEOS.get(name)
    if wanted is not None and len(clips) != wanted and not subset:
        raise InputError(
            f"{folder / name} lists {len(clips)} videos that test does not have, the benchmark has {wanted}: "
            "use its lists, or --subset for a part of it"
        )
    return DecodedVideos(_Listed(clips, root / name / mevis.FRAMES, None), clips, with_frames=with_frames)


def ref_davis_split(root: Path, *, split: str | None, with_frames: bool = True) -> DecodedVideos:
    """A split of Ref-DAVIS17, sentence by sentence, `valid` if not given.

    The truth is that of `mask_dict.pkl`, or of the label maps where there is none.

    Raises:
      InputError: if files are missing or `mask_dict.pkl` does not hold the sentences of the list.
    """
    name = split or "valid"
    clips = ref_davis.read_clips(root, name)
    path = root / name / "mask_dict.pkl"
    tracks = _pickled_tracks(path, clips) if path.is_file() else _labelled_tracks(root, name, clips)
    return DecodedVideos(_Listed(clips, root / name / mevis.FRAMES, tracks), clips, with_frames=with_frames)


def _pickled_tracks(path: Path, clips: Mapping[str, Clip]) -> Tracks:
    known: dict[str, Track] = {}
    numbers = {item: str(number) for number, item in enumerate(ref_davis.annotation_order(clips))}

    def tracks(video: str, key: str) -> list[Track]:
        if not known:
            known.update(ref_davis.read_mask_dict(path))
        if len(known) != len(numbers):
            raise InputError(f"{path} holds {len(known)} tracks for {len(numbers)} sentences: it is of another list")
        track = known.get(numbers[video, key])
        if track is None or len(track) != len(clips[video].frames):
            raise InputError(f"{path} has no track {numbers[video, key]} with a mask for every frame of {video}")
        return [track]

    return tracks


def _labelled_tracks(root: Path, split: str, clips: Mapping[str, Clip]) -> Tracks:
    last: dict[str, np.ndarray] = {}

    def tracks(video: str, key: str) -> list[Track]:
        clip = clips[video]
        if video not in last:
            last.clear()
            last[video] = ref_davis.read_label_maps(root, split, video, clip.frames)
        (number,) = clip.expressions[key].objects or (0,)
        return [[rle.encode(labels == number) for labels in last[video]]]

    return tracks
