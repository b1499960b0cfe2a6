"""The chat of InternVL 2.5 as token ids: who says what, where the image stands, and what the answer is.

Source: InternVL internvl/conversation.py (template "internvl2_5"), MLLMSeg mllmseg/dataset.py
(`preprocess_internvl2_5`). Every turn is tokenised by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.text import UNKNOWN, word_level

IMAGE = "<image>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# Published weights have been trained with this sentence, to the byte.
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_BEGINNING = "<s>"


class ChatTokenizer:
    """A `tokenizer.json` with the tokens of a chat about images.

    Attributes:
      size: number of ids.
      image_id: of an image token.
      end_id: of the end of a turn, where an answer stops.
    """

    def __init__(self, backend: Any, *, name: str = "tokenizer", beginning: bool = False) -> None:
        """Wraps a `tokenizers.Tokenizer`.

        Args:
          name: stands in error messages.
          beginning: whether a text begins with a token of its own, as InternLM2's does.

        Raises:
          InputError: if a token of the chat is missing.
        """
        wanted = (IMAGE_START, IMAGE_TOKEN, IMAGE_END, TURN_START, TURN_END, *([_BEGINNING] if beginning else []))
        missing = [token for token in wanted if backend.token_to_id(token) is None]
        if missing:
            raise InputError(f"{name} has no token {missing[0]}: use the tokenizer of an InternVL")
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._name = backend, name
        self._first = [backend.token_to_id(_BEGINNING)] if beginning else []
        self.size: int = backend.get_vocab_size()
        self.image_id: int = backend.token_to_id(IMAGE_TOKEN)
        self.end_id: int = backend.token_to_id(TURN_END)

    @classmethod
    def from_file(cls, path: str | Path, *, beginning: bool = False) -> "ChatTokenizer":
        """Reads a `tokenizer.json`, or the one in a folder.

        Raises:
          InputError: if there is none, or it is no tokenizer of such a chat.
        """
        import tokenizers

        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"no tokenizer at {path}: convert the checkpoint with its tokenizer beside it")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception for every defect of a file
            raise InputError(f"{path} is not a tokenizer.json: {error}") from None
        return cls(backend, name=str(path), beginning=beginning)

    def token(self, text: str) -> int:
        """The id of a token.

        Raises:
          InputError: if there is no such token.
        """
        number = self._backend.token_to_id(text)
        if number is None:
            raise InputError(f"{self._name} has no token {text}: use the tokenizer of the checkpoint")
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which tokens of the chat count as such."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, tokens of the chat included."""
        return self._backend.decode([int(number) for number in ids], skip_special_tokens=False)

    def prompt(self, question: str, image_tokens: int) -> list[int]:
        """Ids of a chat up to where the answer begins.

        Args:
          question: with `IMAGE` where the image stands.
          image_tokens: tokens of an image.

        Raises:
          InputError: if the question holds another number of images than one.
        """
        if question.count(IMAGE) != 1:
            raise InputError(f"the question {question!r} must hold {IMAGE} once")
        image = IMAGE_START + IMAGE_TOKEN * image_tokens + IMAGE_END
        turns = (
            f"{TURN_START}system\n{SYSTEM}{TURN_END}\n",
            f"{TURN_START}user\n{question.replace(IMAGE, image)}{TURN_END}\n",
            f"{TURN_START}assistant\n",
        )
        return [*self._first, *(number for turn in turns for number in self.encode(turn))]

    def neutralised(self, text: str) -> str:
        """A user's text in which nothing is a token of the chat: a blank goes behind the first letter of each."""
        found = [token.content for token in self._backend.get_added_tokens_decoder().values()]
        for token in sorted((*found, IMAGE), key=len, reverse=True):
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


@dataclass(frozen=True)
class Dialogue:
    """A question and its answer, for training or to be read at once.

    Shapes: ids int32 [T]; labelled bool [T], tokens that the model is to say.
    """

    ids: np.ndarray
    labelled: np.ndarray


def dialogue(tokenizer: ChatTokenizer, question: str, answer: str, image_tokens: int) -> Dialogue:
    """A whole chat; of the answer's turn all is labelled but who speaks and the line's end."""
    before = tokenizer.prompt(question, image_tokens)
    # Tokenised as one turn, from which the beginning is cut: pairs might join across it.
    turn = tokenizer.encode(f"{TURN_START}assistant\n{answer}{TURN_END}\n")
    start = len(tokenizer.encode(f"{TURN_START}assistant\n"))
    ids = np.array([*before[: len(before) - start], *turn], np.int32)
    labelled = np.zeros(len(ids), bool)
    # Upstream leaves out the last token, which is the line's end; tokenizers of words have none for it.
    labelled[len(before) : np.flatnonzero(ids == tokenizer.end_id)[-1] + 1] = True
    return Dialogue(ids, labelled)


def write_word_tokenizer(words: Sequence[str], path: str | Path, *, marks: Sequence[str]) -> None:
    """Writes a word-level `tokenizer.json` for a chat about few things.

    Line breaks are no tokens of it, and what is said in the name of the system is made of words.

    Args:
      words: besides those of the turns; repeats are dropped.
      marks: further tokens, such as "[SEG]".
    """
    from tokenizers import normalizers, pre_tokenizers

    lowered = normalizers.Lowercase().normalize_str(" ".join((SYSTEM, "system user assistant", *words)))
    pieces = [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(lowered)]
    special = (UNKNOWN, TURN_START, TURN_END, IMAGE_START, IMAGE_TOKEN, IMAGE_END, *marks)
    word_level(list(dict.fromkeys(pieces)), special).save(str(path))
