"""MLLMSeg as the library offers it: images or frames and phrases in, masks out."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import rle
from rvseg_jax.models.mllmseg.model import MLLMSeg
from rvseg_jax.ops.resize import resize
from rvseg_jax.processing.chat import ChatTokenizer
from rvseg_jax.processing.image import squashed
from rvseg_jax.processing.video import Video
from rvseg_jax.systems.base import MaskChunk, Progress, SegmentOptions, Status, Verdict
from rvseg_jax.systems.mllmseg.answering import Answering, PhraseAnswer, TruthRead
from rvseg_jax.systems.mllmseg.carrying import carried, tracker_of
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig


@dataclass(frozen=True)
class ImageAnswers:
    """What the model says of an image and draws into it, of N phrases.

    Shapes: probabilities float32 [N, H, W] at the image's size, zeros but for "ok"; masks bool [N, H, W]; boxes int32
      [N, 4], left, top, right and bottom in pixels around each mask, right and bottom outside of it, zeros where it is
      empty.
    """

    probabilities: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    verdicts: tuple[Verdict, ...]
    said: tuple[str, ...]


class MLLMSegSystem:
    """InternVL that answers with `[SEG]` or `[REJ]`, and a light mask decoder (arXiv 2508.04107).

    The model writes its answers itself; `read_truth` is the published protocol, in which it reads them.
    """

    name = "mllmseg"
    reads_text = True

    def __init__(self, config: MLLMSegSystemConfig, model: MLLMSeg, tokenizer: ChatTokenizer):
        self.config = config
        self._tokenizer = tokenizer
        self._answering = Answering(config, model, tokenizer)
        self._enlarged = jax.jit(_enlarged, static_argnums=1)
        self._tracker = tracker_of(config.tracker, config.tracker_checkpoint) if config.tracker else None
        rest = len(tokenizer.prompt("<image>", config.image_tokens)) + config.answer_tokens
        # A phrase stands in the question and in the answer.
        self.max_tokens = max(0, (model.cfg.internvl.language.max_position_embeddings - rest) // 2)

    def token_count(self, text: str) -> int:
        """Number of tokens of a phrase."""
        return len(self._tokenizer.encode(self._tokenizer.neutralised(text)))

    def segment(
        self,
        video: Video,
        texts: Sequence[str],
        *,
        options: SegmentOptions = SegmentOptions(),
        progress: Progress | None = None,
    ) -> Generator[MaskChunk, None, list[Verdict]]:
        """Yields the masks of all phrases frame by frame; every frame is an image by itself unless there is a tracker.

        Memory does not grow with the length of the clip, so `options.max_memory` and `whole_clip` change nothing.

        Returns:
          For each phrase "ok" and the mean score of the frames in which it names something, else how it ended most.
        """
        tally = [_Tally() for _ in texts]
        for index, (masks, verdicts, scores) in enumerate(self._frames(video, texts, options)):
            for own, verdict in zip(tally, verdicts, strict=True):
                own.add(verdict)
            yield MaskChunk(index, masks[:, None], None if scores is None else scores[:, None])
            if progress is not None:
                progress("masks", index + 1, video.count or video.expected_count)
        return [own.verdict() for own in tally]

    def _frames(
        self, video: Video, texts: Sequence[str], options: SegmentOptions
    ) -> Iterator[tuple[np.ndarray, Sequence[Verdict], np.ndarray | None]]:
        """Masks [N, H, W], verdicts, and probabilities [N, H, W] where they are asked for, of every frame."""
        if self._tracker is not None:
            if options.scores:
                raise InputError("a tracker gives no probabilities: leave out the scores, or the tracker")
            for masks, verdicts in carried(self, self._tracker, video, texts, threshold=options.threshold):
                yield masks, verdicts, None
            return
        for frame in video:
            (answers,) = self.answer([frame], [texts], threshold=options.threshold)
            yield answers.masks, answers.verdicts, answers.probabilities if options.scores else None

    def answer(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]], *, threshold: float | None = None
    ) -> list[ImageAnswers]:
        """Masks of several images, each with phrases of its own.

        Shapes: images uint8 [H, W, 3] each.

        Raises:
          InputError: for an image without phrases, or an empty phrase.
        """
        for number, own in enumerate(phrases):
            if not own or any(not text.strip(" .") for text in own):
                raise InputError(f"image {number} has the phrases {list(own)}: give one or more, each with words")
        small = [squashed(image, self.config.size) for image in images]
        found = self._answering.answers(small, phrases)
        return [
            self._at_size(answers, (image.shape[0], image.shape[1]), threshold)
            for image, answers in zip(images, found, strict=True)
        ]

    def read_truth(
        self, image: np.ndarray, phrases: Sequence[str], rejected: Sequence[bool]
    ) -> tuple[np.ndarray, list[bool]]:
        """The published evaluation, with the truth in the answer that the model reads.

        Shapes: image uint8 [H, W, 3] -> bool [N, H, W], and whether the model would have rejected each phrase.

        Args:
          phrases: of the image.
          rejected: whether each names nothing.
        """
        read: list[TruthRead] = self._answering.read_truth(squashed(image, self.config.size), phrases, rejected)
        drawn = jnp.asarray(np.stack([one.probability for one in read]))
        enlarged = np.asarray(self._enlarged(drawn, (image.shape[0], image.shape[1])))
        return enlarged >= self.config.threshold, [one.rejected for one in read]

    def _at_size(self, answers: Sequence[PhraseAnswer], size: tuple[int, int], threshold: float | None) -> ImageAnswers:
        side = self.config.size
        drawn = [np.zeros((side, side), np.float32) if one.probability is None else one.probability for one in answers]
        probabilities = np.array(self._enlarged(jnp.asarray(np.stack(drawn)), size))
        # Exactly the threshold is inside, as upstream has it.
        masks = probabilities >= (self.config.threshold if threshold is None else threshold)
        verdicts = []
        for one, mask, probability in zip(answers, masks, probabilities, strict=True):
            inside = float(probability[mask].mean()) if mask.any() else 0.0
            score = one.presence * inside if one.status == "ok" else 1 - one.presence
            verdicts.append(Verdict(one.status, 0.0 if one.status == "no_seg_token" else score))
        boxes, said = (
            np.array([rle.to_box(rle.encode(mask)) for mask in masks], np.int32),
            tuple(one.said for one in answers),
        )
        return ImageAnswers(probabilities, masks, boxes, tuple(verdicts), said)


class _Tally:
    """How a phrase fares over the frames of a clip."""

    def __init__(self) -> None:
        self.scores: dict[Status, list[float]] = {}

    def add(self, verdict: Verdict) -> None:
        self.scores.setdefault(verdict.status, []).append(verdict.score)

    def verdict(self) -> Verdict:
        statuses: tuple[Status, ...] = ("ok", "no_target")
        for status in statuses:
            if found := self.scores.get(status):
                return Verdict(status, float(np.mean(found)))
        return Verdict("no_seg_token", 0.0)


def _enlarged(probabilities: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Probabilities at the image's size. Shapes: [N, S, S] -> float32 [N, H, W]."""
    return resize(probabilities[..., None], size, mode="bilinear")[..., 0]
