"""Ref-DAVIS17 on disk, in the layout that its converter makes, and the two forms of predictions.

<root>/<split>/JPEGImages/<video>/<frame>.jpg        <root>/<split>/Annotations/<video>/<frame>.png (palette)
<root>/<split>/meta.json                             <root>/meta_expressions/<split>/meta_expressions.json
<root>/<split>/mask_dict.pkl                         per-expression protocol: {annotation id: [RLE or None]}
<root>/DAVIS/{JPEGImages,Annotations_unsupervised}/480p/<video>/   <root>/DAVIS/ImageSets/2017/<set>.txt
<predictions>/<video>/<expression>/<frame>.png       one mask a sentence, 0 and 255
<merged>/anno_<annotator>/<video>/<frame>.png        one palette image a frame for each of four annotators

Every object has four sentences, with ids 4 * object + annotator. Annotators: 0 and 2 saw the first frame, 1 and
3 the whole video.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import meta_expressions, plain_pickle, ref_youtube_vos, rle
from rvseg_jax.formats.davis import read_named_labels, write_label_maps
from rvseg_jax.formats.meta_expressions import Clip, Expression
from rvseg_jax.formats.mevis import Track, write_jpegs
from rvseg_jax.formats.ref_youtube_vos import read_label_maps as read_label_maps

ANNOTATORS = 4
# Of the merging that the official protocol prescribes.
SCORE_THRESHOLD = 0.5
BACKGROUND_SCORE = 0.1
_SETS = {"train": "train", "valid": "val"}
SPLITS = tuple(_SETS)


def read_clips(root: Path, split: str) -> dict[str, Clip]:
    """Videos and sentences of a split, sentences in the order of their numbers.

    Raises: InputError where the file is missing, an id is no number, or a sentence names no single object.
    """
    path = ref_youtube_vos.sentences_file(root, split)
    listed = meta_expressions.read(path)
    ref_youtube_vos.check_objects(listed, path)
    clips = {}
    for video, clip in listed.items():
        for key in clip.expressions:
            if not key.isdecimal():
                raise InputError(f"{path}: sentence {video}/{key} has no number")
        clips[video] = Clip(clip.frames, dict(sorted(clip.expressions.items(), key=lambda pair: int(pair[0]))))
    return clips


def annotation_order(clips: Mapping[str, Clip]) -> list[tuple[str, str]]:
    """(video, sentence id) of every annotation id of the per-expression protocol, 0, 1, 2, ...

    The count runs over sorted videos and, within one, over ids sorted as strings: "0", "1", "10", "11", "2".
    """
    return [(video, key) for video in sorted(clips) for key in sorted(clips[video].expressions)]


def read_mask_dict(path: Path) -> dict[str, Track]:
    """Tracks by annotation id from `mask_dict.pkl`; only plain values are unpickled.

    Raises: InputError where the file is missing or holds anything but dicts, lists, strings and numbers.
    """
    tracks = plain_pickle.read(path)
    if not isinstance(tracks, dict):
        raise InputError(f"{path} holds a {type(tracks).__name__}, expected one track an annotation id")
    return {str(key): track for key, track in tracks.items()}


class SplitWriter:
    """Writes a split with all that both protocols need; `close` writes the lists."""

    def __init__(self, root: Path, split: str = "valid") -> None:
        """Starts at `root`; the split is "train" or "valid"."""
        if split not in _SETS:
            raise InputError(f"Ref-DAVIS has no split {split!r}; choose from {', '.join(_SETS)}")
        self.root, self.split = root, split
        self._lists = ref_youtube_vos.SplitWriter(root, split)
        self._labels: dict[str, np.ndarray] = {}

    def add(
        self,
        video: str,
        names: Sequence[str],
        frames: np.ndarray,
        labels: np.ndarray,
        sentences: Sequence[Sequence[str]],
    ) -> None:
        """Writes one video.

        Args:
          video: its name.
          names: of the frames, without suffix.
          frames: uint8 [T, H, W, 3].
          labels: uint8 [T, H, W], object n has value n, from 1 on.
          sentences: for each object, the four annotators' sentences.

        Raises: InputError where an object has another number of sentences.
        """
        expressions = {}
        for number, texts in enumerate(sentences):
            if len(texts) != ANNOTATORS:
                raise InputError(f"{video}: object {number + 1} has {len(texts)} sentences, Ref-DAVIS has four")
            for annotator, text in enumerate(texts):
                expressions[str(ANNOTATORS * number + annotator)] = Expression(text, (number + 1,))
        self._lists.add(video, names, frames, labels, expressions)
        davis = self.root / "DAVIS"
        write_jpegs(davis / "JPEGImages" / "480p" / video, names, frames)
        write_label_maps(davis / "Annotations_unsupervised" / "480p" / video, names, labels)
        self._labels[video] = labels

    def close(self) -> None:
        """Writes the sentences, the objects, the mask file and the list of videos."""
        self._lists.close()
        with (self.root / self.split / "mask_dict.pkl").open("wb") as file:
            pickle.dump(self._tracks(), file)
        listing = self.root / "DAVIS" / "ImageSets" / "2017" / f"{_SETS[self.split]}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{video}\n" for video in sorted(self._labels)))

    def _tracks(self) -> dict[str, list[rle.RLE | None]]:
        tracks: dict[str, list[rle.RLE | None]] = {}
        for number, (video, key) in enumerate(annotation_order(self._lists.clips)):
            masks = self._labels[video] == int(key) // ANNOTATORS + 1
            tracks[str(number)] = [rle.encode(mask) if mask.any() else None for mask in masks]
        return tracks


def merge_objects(scores: np.ndarray) -> np.ndarray:
    """One label map from the score maps of all objects for one annotator, as the official protocol merges them.

    Scores below one half count as 0, background scores 0.1 everywhere, and the largest wins (the first of
    equals). Source: ReferFormer inference_davis.py.

    Shapes: scores [N, T, H, W] in 0..1; result [T, H, W] uint8, object n is n + 1.
    """
    kept = np.where(scores < SCORE_THRESHOLD, 0, scores)
    best = kept.argmax(axis=0)
    return np.where(kept.max(axis=0) > BACKGROUND_SCORE, best + 1, 0).astype(np.uint8)


def write_merged(folder: Path, annotator: int, video: str, names: Sequence[str], labels: np.ndarray) -> None:
    """Writes the label maps of one annotator; the toolkit wants no other file in that folder.

    Shapes: labels [T, H, W], uint8.
    Raises: InputError for an annotator that is not 0 to 3.
    """
    if annotator not in range(ANNOTATORS):
        raise InputError(f"Ref-DAVIS has annotators 0 to {ANNOTATORS - 1}, not {annotator}")
    write_label_maps(folder / f"anno_{annotator}" / video, names, labels)


def read_merged(folder: Path, annotator: int, video: str, names: Sequence[str]) -> np.ndarray:
    """Reads the label maps that `write_merged` wrote.

    Shapes: result [T, H, W], uint8.
    Raises: InputError for a missing file, naming it.
    """
    source = folder / f"anno_{annotator}" / video
    return np.stack([read_named_labels(source, name) for name in names])
