"""Questions about images to what the model says and draws, several images and phrases at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.models.lm.generate import GenerationOptions, bucket, generate
from rvseg_jax.models.mllmseg.model import MLLMSeg, image_states, states_before
from rvseg_jax.processing import imagenet, mllmseg_text
from rvseg_jax.processing.chat import ChatTokenizer
from rvseg_jax.systems.base import Status
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig


@dataclass(frozen=True)
class PhraseAnswer:
    """What became of a phrase.

    Attributes:
      status: "ok", "no_target" where the model says so, "no_seg_token" where it says neither.
      presence: share of `[SEG]` in the probability of `[SEG]` and `[REJ]`, in 0..1; 0 where it says neither.
      probability: float32 [S, S] of the squashed image; None but for "ok".
      said: the answer, word for word.
    """

    status: Status
    presence: float
    probability: np.ndarray | None
    said: str


@dataclass(frozen=True)
class TruthRead:
    """What the model says of a phrase whose answer it was given to read.

    Attributes:
      probability: float32 [S, S] of the squashed image.
      rejected: whether `[REJ]` is the likeliest next token where the answer has its mark.
    """

    probability: np.ndarray
    rejected: bool


@dataclass(frozen=True)
class _Question:
    """One prompt, about some phrases of an image, and how many tokens the answer may have."""

    image: int
    phrases: tuple[int, ...]
    ids: tuple[int, ...]
    room: int


@dataclass(frozen=True)
class _Mark:
    """Where an answer points: the state before `[SEG]` or `[REJ]`."""

    rejected: bool
    presence: float
    state: np.ndarray


class Answering:
    """The model with its compiled programs."""

    def __init__(self, config: MLLMSegSystemConfig, model: MLLMSeg, tokenizer: ChatTokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.use(model)
        self._seg, self._rej = tokenizer.token(mllmseg_text.SEG), tokenizer.token(mllmseg_text.REJ)
        graph = nnx.graphdef(model)
        count = config.image_tokens

        def see(weights: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _model(graph, weights).internvl.see(normalised(images))

        def embed(weights: nnx.State, tokens: jax.Array, ids: jax.Array) -> jax.Array:
            return _model(graph, weights).internvl.embed(ids, tokens, ids == tokenizer.image_id)

        def read(
            weights: nnx.State, tokens: jax.Array, ids: jax.Array, valid: jax.Array, marks: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            language = _model(graph, weights).internvl.language
            hidden, _ = language(embed(weights, tokens, ids), valid=valid)
            words = states_before(hidden, marks)
            return image_states(hidden, ids == tokenizer.image_id, count), words, language.logits(words)

        def draw(weights: nnx.State, patches: jax.Array, read: jax.Array, words: jax.Array) -> jax.Array:
            return jax.nn.sigmoid(_model(graph, weights).mask_decoder(patches, read, words))

        self._see, self._embed, self._read, self._draw = jax.jit(see), jax.jit(embed), jax.jit(read), jax.jit(draw)
        self._image_states = jax.jit(lambda hidden, ids: image_states(hidden, ids == tokenizer.image_id, count))

    def use(self, model: MLLMSeg) -> None:
        """Takes the weights of a model of the same sizes from now on."""
        self._language, self._weights = model.internvl.language, nnx.state(model)

    def answers(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[list[PhraseAnswer]]:
        """Free-running answers: the model writes them.

        Shapes: images uint8 [S, S, 3] each, squashed.

        Args:
          phrases: of each image, one at least. Tokens of the chat in them are not obeyed.
        """
        texts = [[self.tokenizer.neutralised(text) for text in own] for own in phrases]
        patches, tokens = self._see(self._weights, np.stack(images))
        wanted = []
        for image, own in enumerate(texts):
            groups = [tuple(range(len(own)))] if self.config.together else [(n,) for n in range(len(own))]
            wanted += [self._question(image, group, own) for group in groups]
        read: dict[int, jax.Array] = {}
        said, found = self._ask(wanted, tokens, read)
        # A phrase that a joint answer passes over is asked for by itself: none may be lost.
        again = [
            self._question(image, (number,), texts[image])
            for image, number in said
            if self.config.together and (image, number) not in found and len(texts[image]) > 1
        ]
        more_said, more_found = self._ask(again, tokens, read)
        said, found = said | more_said, found | more_found
        return [
            self._outcomes(patches[image], read[image], len(own), image, said, found) for image, own in enumerate(texts)
        ]

    def read_truth(self, image: np.ndarray, phrases: Sequence[str], rejected: Sequence[bool]) -> list[TruthRead]:
        """The published evaluation: the model reads the true answer, in which it may see what is said before a phrase.

        The second pass of upstream, in which every mark is `[SEG]`, gives the masks.

        Shapes: image uint8 [S, S, 3], squashed.

        Args:
          phrases: of the image; all are in one question.
          rejected: whether each names nothing.
        """
        question = mllmseg_text.evaluation_prompt(phrases)
        patches, tokens = self._see(self._weights, image[None])
        decided: list[bool] = []
        for truth in (rejected, [False] * len(phrases)):
            ids = [
                *self.tokenizer.prompt(question, self.config.image_tokens),
                *self.tokenizer.encode(mllmseg_text.evaluation_answer(phrases, truth)),
            ]
            marks = np.flatnonzero(np.isin(ids, (self._seg, self._rej)))
            rows, valid = padded([ids])
            places = np.resize(marks, _power(len(marks)))[None]
            seen, words, logits = self._read(self._weights, tokens, rows, valid, places)
            if not decided:
                decided = [bool(choice == self._rej) for choice in np.asarray(logits[0]).argmax(-1)[: len(marks)]]
        drawn = np.asarray(self._draw(self._weights, patches, seen, words))[0, : len(phrases)]
        return [TruthRead(mask, said) for mask, said in zip(drawn, decided, strict=True)]

    def _question(self, image: int, group: tuple[int, ...], texts: Sequence[str]) -> _Question:
        asked = [texts[number] for number in group]
        ids = self.tokenizer.prompt(mllmseg_text.question(asked, self.config.question), self.config.image_tokens)
        room = self.config.answer_tokens + sum(len(self.tokenizer.encode(text)) for text in asked)
        return _Question(image, group, tuple(ids), room)

    def _ask(
        self, questions: Sequence[_Question], tokens: jax.Array, read: dict[int, jax.Array]
    ) -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], _Mark]]:
        """What is said of each (image, phrase), and where it points; fills in the states of the images."""
        said: dict[tuple[int, int], str] = {}
        found: dict[tuple[int, int], _Mark] = {}
        for start in range(0, len(questions), self.config.rows):
            chunk = list(questions[start : start + self.config.rows])
            rows = chunk + chunk[-1:] * (_power(len(chunk)) - len(chunk))
            ids, valid = padded([question.ids for question in rows])
            owners = np.array([question.image for question in rows])
            room = max(question.room for question in chunk)
            options = GenerationOptions(max_new_tokens=room, stop_tokens=(self.tokenizer.end_id,))
            made = generate(self._language, self._embed(self._weights, tokens[owners], ids), valid, options=options)
            seen = self._image_states(made.prompt_hidden, ids)
            marks: list[tuple[tuple[int, int], bool, np.ndarray]] = []
            for row, question in enumerate(chunk):
                read.setdefault(question.image, seen[row])
                keys = [(question.image, number) for number in question.phrases]
                spoken = np.asarray(made.tokens[row, : int(made.lengths[row])])
                said |= dict.fromkeys(keys, self.tokenizer.decode(spoken.tolist()))
                places = np.flatnonzero(np.isin(spoken, (self._seg, self._rej)))
                for key, place in zip(keys, places, strict=False):
                    marks.append((key, bool(spoken[place] == self._rej), np.asarray(made.hidden[row, place])))
            if marks:
                present = self._presence(np.stack([state for *_, state in marks]))
                for (key, rejected, state), share in zip(marks, present, strict=True):
                    found[key] = _Mark(rejected, float(share), state)
        return said, found

    def _presence(self, states: np.ndarray) -> np.ndarray:
        """Share of `[SEG]` in the probability of the two marks. Shapes: states [M, D] -> [M]."""
        logits = self._language.logits(jnp.asarray(states)[None])[0]
        return np.asarray(jax.nn.sigmoid(logits[:, self._seg] - logits[:, self._rej]))

    def _outcomes(
        self,
        patches: jax.Array,
        read: jax.Array,
        phrases: int,
        image: int,
        said: dict[tuple[int, int], str],
        found: dict[tuple[int, int], _Mark],
    ) -> list[PhraseAnswer]:
        drawn: dict[int, np.ndarray] = {}
        wanted = [n for n in range(phrases) if (image, n) in found and not found[image, n].rejected]
        for start in range(0, len(wanted), self.config.rows):
            chunk = wanted[start : start + self.config.rows]
            states = [found[image, n].state for n in chunk]
            words = np.stack(states + states[-1:] * (_power(len(chunk)) - len(chunk)))
            masks = np.asarray(self._draw(self._weights, patches[None], read[None], words[None]))[0]
            drawn |= dict(zip(chunk, masks, strict=False))
        made = []
        for number in range(phrases):
            mark, text = found.get((image, number)), said[image, number]
            if mark is None:
                made.append(PhraseAnswer("no_seg_token", 0.0, None, text))
            else:
                status: Status = "no_target" if mark.rejected else "ok"
                made.append(PhraseAnswer(status, mark.presence, drawn.get(number), text))
        return made


def normalised(images: jax.Array) -> jax.Array:
    """Pixels by ImageNet's statistics. Shapes: uint8 [B, S, S, 3] -> float32."""
    return (images.astype(jnp.float32) / 255 - imagenet.MEAN) / imagenet.DEVIATION


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids in one array whose length is a bucket's, and where they are. Shapes: -> int32 and bool [R, T]."""
    length = bucket(max(len(row) for row in rows))
    ids = np.zeros((len(rows), length), np.int32)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = own
    return ids, np.arange(length) < np.array([len(row) for row in rows])[:, None]


def _power(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << (count - 1).bit_length()


def _model(graph: Any, weights: nnx.State) -> MLLMSeg:
    return nnx.merge(graph, weights)
