"""The library's front door: load a system or tracker, give it a clip, get masks, write them to files."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.memory import free_bytes
from rvseg_jax.formats import rle
from rvseg_jax.formats.output import MaskWriter, check_formats, write_summary, write_whole, writers
from rvseg_jax.formats.staging import Staging
from rvseg_jax.processing.video import IteratorVideo, Video, open_video
from rvseg_jax.systems import base
from rvseg_jax.systems.base import MaskChunk, Progress, SegmentOptions, Status, Verdict
from rvseg_jax.trackers import base as trackers
from rvseg_jax.trackers.prompts import Prompt
from rvseg_jax.trackers.video import check_prompts, follow


@dataclass(frozen=True)
class Prediction:
    """Masks of a clip for one or several sentences, or tracked objects; N of them, T frames.

    Masks are held run-length coded, in `rles[n][t]`; `masks` decodes them all. `objects` are the numbers of tracked
    objects, whose `text` is "object 1" and so on; it is empty for sentences.
    """

    system: str
    video: str
    text: tuple[str, ...]
    names: tuple[str, ...]
    rate: Fraction
    height: int
    width: int
    rles: tuple[tuple[rle.RLE, ...], ...]
    verdicts: tuple[Verdict, ...]
    objects: tuple[int, ...] = ()
    source: Video | None = field(default=None, repr=False, compare=False)

    @property
    def masks(self) -> np.ndarray:
        """All masks at source size.

        Shapes: result [N, T, H, W], bool.
        """
        return np.stack([np.stack([rle.decode(mask) for mask in masks]) for masks in self.rles])

    @property
    def boxes(self) -> np.ndarray:
        """Boxes around all masks: left, top, right and bottom in pixels, the last two just outside; zeros without one.

        Shapes: result [N, T, 4], int32.
        """
        return np.array([[rle.to_box(mask) for mask in masks] for masks in self.rles], np.int32)

    @property
    def scores(self) -> np.ndarray:
        """Confidence of each sentence, [N] float32 in 0..1."""
        return np.array([verdict.score for verdict in self.verdicts], dtype=np.float32)

    @property
    def status(self) -> tuple[Status, ...]:
        """How each sentence ended: "ok", "no_target", "no_seg_token" or "parse_error"."""
        return tuple(verdict.status for verdict in self.verdicts)

    def frame_masks(self, index: int) -> np.ndarray:
        """Masks of one frame, [N, H, W] bool."""
        return np.stack([rle.decode(masks[index]) for masks in self.rles])

    def record(self) -> dict[str, Any]:
        """Everything as JSON-able values, in the form of `formats.rle_json`."""
        return {
            "system": self.system,
            "video": self.video,
            "height": self.height,
            "width": self.width,
            "rate": str(self.rate),
            "frames": list(self.names),
            "sentences": [
                {"text": text, "status": verdict.status, "score": verdict.score, "masks": list(masks)}
                for text, verdict, masks in zip(self.text, self.verdicts, self.rles, strict=True)
            ],
        }

    def save(self, folder: str | Path, format: str | Sequence[str] = "mevis") -> list[Path]:
        """Write the masks into a folder, in one or several of `formats.output.FORMATS`; return what was written.

        Results of the same name are replaced; after an error the folder is as it was.
        Raises: InputError for an unknown format, a folder that cannot be written to, or an overlay of a clip
          that can be read only once.
        """
        formats = check_formats(format)
        record = self.record()
        with Staging(folder) as staging:
            with _writers(staging, formats, self.video, self.text, self.objects, self.source) as opened:
                for index, name in enumerate(self.names):
                    masks = self.frame_masks(index)[:, None]
                    for writer in opened:
                        writer.add([name], masks)
            write_whole(staging, formats, record)
        return [Path(folder) / name for name in staging.results]


class Predictor:
    """A loaded system, ready for clips."""

    def __init__(self, system: base.System) -> None:
        self.system = system

    def predict(
        self,
        video: Any,
        text: str | Sequence[str] = (),
        *,
        rate: Fraction | float | None = None,
        options: SegmentOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment a clip by one or several sentences, or without any by a system that reads none.

        `video` is what `open_video` takes: a path to a video file, image or frame folder, an array
        [T, H, W, 3] uint8 RGB, or an iterator of frames; `rate` is for those without a frame rate.
        Unless `options` say otherwise, a clip too long for half of the free memory runs in windows.
        Raises: InputError for a clip that cannot be read, or an empty or too long sentence.
        """
        clip, texts = open_video(video, rate=rate), self._check_texts(text)
        return self._run(clip, texts, options or SegmentOptions(), progress, [])

    def predict_to(
        self,
        folder: str | Path,
        video: Any,
        text: str | Sequence[str] = (),
        *,
        formats: str | Sequence[str] = ("mevis", "overlay"),
        rate: Fraction | float | None = None,
        options: SegmentOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """`predict`, writing files while the masks are computed, and a summary `<video>.summary.json` at the end.

        Raises: as `predict` and `Prediction.save`, before anything is computed where that can be known.
        """
        names = check_formats(formats)
        clip, texts = open_video(video, rate=rate), self._check_texts(text)

        def run(opened: Sequence[MaskWriter]) -> Prediction:
            return self._run(clip, texts, options or SegmentOptions(), progress, opened)

        return _written(folder, clip, names, texts, (), run)

    def _run(
        self,
        video: Video,
        texts: tuple[str, ...],
        options: SegmentOptions,
        progress: Progress | None,
        outputs: Sequence[MaskWriter],
    ) -> Prediction:
        if options.max_memory is None and not options.whole_clip:
            # Weights that are still to be loaded and the decoder's buffers live in the other half.
            options = replace(options, max_memory=free_bytes() // 2)
        chunks = self.system.segment(video, texts, options=options, progress=progress)
        return _collect(self.system.name, video, texts, (), chunks, outputs)

    def _check_texts(self, text: str | Sequence[str]) -> tuple[str, ...]:
        texts = check_texts(text, reads_text=self.system.reads_text)
        for sentence in texts if self.system.reads_text else ():
            count = self.system.token_count(sentence)
            if count > self.system.max_tokens:
                raise InputError(
                    f"the sentence {sentence[:40]!r}... has {count} tokens but {self.system.name} reads "
                    f"{self.system.max_tokens}; shorten it"
                )
        return texts


class VideoTracker:
    """A loaded tracker, ready for videos."""

    def __init__(self, tracker: trackers.Tracker) -> None:
        self.tracker = tracker

    def session(self, *, objects: int = 1) -> trackers.Session:
        """A video to be given frame by frame; see `trackers.base.Session`.

        Args:
          objects: how many there will be, if that is known: more can be added, but compile anew.
        """
        return self.tracker.session(objects=objects)

    def track(
        self,
        video: Any,
        prompts: Mapping[int, Mapping[int, Prompt]],
        *,
        backward: bool = False,
        rate: Fraction | float | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Follow objects through a clip.

        Args:
          video: what `open_video` takes.
          prompts: {frame: {object: Prompt}}, frames from 0, objects from 1.
          backward: also follow objects from their first prompt towards the beginning.

        Raises: InputError for a clip that cannot be read, or a prompt that does not fit it.
        """
        return self._run(open_video(video, rate=rate), prompts, backward, progress, [])

    def track_to(
        self,
        folder: str | Path,
        video: Any,
        prompts: Mapping[int, Mapping[int, Prompt]],
        *,
        formats: str | Sequence[str] = ("davis", "overlay"),
        backward: bool = False,
        rate: Fraction | float | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """`track`, writing files while the masks are computed, and a summary `<video>.summary.json` at the end.

        Raises: as `track` and `Prediction.save`, before anything is computed where that can be known.
        """
        names = check_formats(formats)
        clip, ids = open_video(video, rate=rate), check_prompts(self.tracker, prompts)

        def run(opened: Sequence[MaskWriter]) -> Prediction:
            return self._run(clip, prompts, backward, progress, opened)

        return _written(folder, clip, names, _object_names(ids), ids, run)

    def _run(
        self,
        video: Video,
        prompts: Mapping[int, Mapping[int, Prompt]],
        backward: bool,
        progress: Progress | None,
        outputs: Sequence[MaskWriter],
    ) -> Prediction:
        ids = check_prompts(self.tracker, prompts)

        def chunks() -> Generator[MaskChunk, None, list[Verdict]]:
            best = np.zeros(len(ids), np.float32)
            for found in follow(self.tracker, video, prompts, backward=backward):
                best = np.maximum(best, np.where(found.masks.any(axis=(1, 2)), found.scores, 0))
                if progress is not None:
                    progress("tracking", found.index + 1, video.count or video.expected_count)
                yield MaskChunk(found.index, found.masks[:, None])
            return [Verdict("ok" if score > 0 else "no_target", float(score)) for score in best]

        return _collect(self.tracker.name, video, _object_names(ids), ids, chunks(), outputs)


def _object_names(ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"object {object_id}" for object_id in ids)


def _writers(
    staging: Staging,
    formats: Sequence[str],
    name: str,
    texts: Sequence[str],
    objects: Sequence[int],
    video: Video | None,
) -> AbstractContextManager[list[MaskWriter]]:
    """Writers of sentences, which count from 0, or of objects, which keep their numbers."""
    labels = objects or range(1, len(texts) + 1)
    return writers(staging, formats, name, labels, video, first=1 if objects else 0)


def _written(
    folder: str | Path,
    clip: Video,
    formats: Sequence[str],
    texts: Sequence[str],
    objects: Sequence[int],
    run: Callable[[Sequence[MaskWriter]], Prediction],
) -> Prediction:
    """What `run` predicts, written while it does, and a summary; after an error the folder is as it was."""
    again = None if isinstance(clip, IteratorVideo) else clip
    with Staging(folder) as staging:
        with _writers(staging, formats, clip.name, texts, objects, again) as opened:
            prediction = run(opened)
        record = prediction.record()
        write_whole(staging, formats, record)
        results = list(staging.results)
        write_summary(staging.path(f"{clip.name}.summary.json"), record, results)
    return prediction


def _collect(
    name: str,
    video: Video,
    texts: tuple[str, ...],
    objects: tuple[int, ...],
    chunks: Generator[MaskChunk, None, list[Verdict]],
    outputs: Sequence[MaskWriter],
) -> Prediction:
    """A prediction from its chunks, each of which goes to the writers as it comes."""
    coded: list[list[rle.RLE]] = [[] for _ in texts]
    done = 0
    verdicts: list[Verdict] = []

    def keep_verdicts() -> Iterator[MaskChunk]:
        verdicts.extend((yield from chunks))

    for chunk in keep_verdicts():
        count = chunk.masks.shape[1]
        expected = (len(texts), count, video.height, video.width)
        if chunk.start != done or chunk.masks.shape != expected or chunk.masks.dtype != np.bool_:
            raise RuntimeError(
                f"{name} gave masks {chunk.masks.shape} {chunk.masks.dtype} from frame "
                f"{chunk.start} on; expected {expected} bool from frame {done} on"
            )
        for masks, into in zip(chunk.masks, coded, strict=True):
            into.extend(rle.encode(mask) for mask in masks)
        for writer in outputs:
            writer.add(video.names[done : done + count], chunk.masks)
        done += count
    if done != len(video.names) or len(verdicts) != len(texts):
        raise RuntimeError(
            f"{name} gave masks of {done} frames and {len(verdicts)} verdicts for "
            f"{len(video.names)} frames and {len(texts)} of what it looked for"
        )
    return Prediction(
        system=name,
        video=video.name,
        text=texts,
        names=tuple(video.names),
        rate=video.rate,
        height=video.height,
        width=video.width,
        rles=tuple(tuple(masks) for masks in coded),
        verdicts=tuple(verdicts),
        objects=objects,
        source=None if isinstance(video, IteratorVideo) else video,
    )


@overload
def load(
    system: Literal["sam2", "xmem"],
    checkpoint: str | Path | None = None,
    *,
    dtype: str | None = None,
    mesh: Any = None,
    **options: Any,
) -> VideoTracker: ...


@overload
def load(
    system: str,
    checkpoint: str | Path | None = None,
    *,
    dtype: str | None = None,
    mesh: Any = None,
    **options: Any,
) -> Predictor: ...


def load(
    system: str,
    checkpoint: str | Path | None = None,
    *,
    dtype: str | None = None,
    mesh: Any = None,
    **options: Any,
) -> Predictor | VideoTracker:
    """Load a system or tracker from a converted checkpoint folder, or with its bundled tiny weights.

    `dtype` names a precision ("float32", "bfloat16", "mixed", "parity"); `mesh` shards the weights over
    devices; other options are the system's own.

    Returns:
      A `Predictor` for a system, a `VideoTracker` for "sam2" and "xmem".

    Raises: InputError for an unknown system or a checkpoint that is missing or of another system.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    if system in trackers.names():
        return VideoTracker(trackers.module(system).load(folder, dtype=dtype, mesh=mesh, **options))
    return Predictor(base.module(system).load(folder, dtype=dtype, mesh=mesh, **options))


def list_systems() -> list[str]:
    """Names of the systems that `load` takes."""
    return base.names()


def list_trackers() -> list[str]:
    """Names of the trackers that `load` takes."""
    return trackers.names()


def describe(name: str) -> dict[str, Any]:
    """Parts, parameter counts, licences of the weights and published presets of a system or tracker, JSON-able."""
    return (trackers.module(name) if name in trackers.names() else base.module(name)).describe()


def plan(system: str, topology: str, **options: Any) -> dict[str, Any]:
    """What a training step of a system takes on a TPU slice, as JSON values; see `rvseg_jax.planning.plan`.

    Raises:
      InputError: for a value that does not fit.
      NotAvailable: without libtpu, unless `fast=True`.
    """
    from rvseg_jax import planning

    return planning.plan(system, topology, **options).to_json()


# What the mask of a system is called that is not told what to segment.
UNTOLD = "what moves"


def check_texts(text: str | Sequence[str], *, reads_text: bool = True) -> tuple[str, ...]:
    """The sentences as a tuple; the name of the one mask where none are read.

    Raises: InputError where there is none, one is no text, empty, or not valid Unicode, or there is one for a system
      that reads none.
    """
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not reads_text:
        if texts:
            raise InputError(f"this system segments whatever moves and reads no sentence: leave {texts[0]!r} out")
        return (UNTOLD,)
    if not texts:
        raise InputError('no sentence to segment by; give at least one, such as "the red car"')
    for index, sentence in enumerate(texts, start=1):
        if not isinstance(sentence, str):
            raise InputError(f"sentence {index} is {type(sentence).__name__}; give text")
        if not sentence.strip():
            raise InputError(f'sentence {index} is empty; say what to segment, such as "the red car"')
        try:
            sentence.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"sentence {index} ({sentence!r}) is not valid UTF-8; check the locale") from None
    return texts
