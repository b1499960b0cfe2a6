"""Questions and answers as arrays of one shape, made in data workers: no JAX."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing import mllmseg_text
from rvseg_jax.processing.chat import ChatTokenizer, dialogue


@dataclass(frozen=True)
class Tokenise:
    """Makes the text of a training row.

    Attributes:
      tokenizer: path of a `tokenizer.json`.
      beginning: whether a text begins with a token of its own.
      image_tokens: tokens of an image.
      length: of every row, T; longer texts are an error.
      expressions: most phrases of a row, K.
    """

    tokenizer: Path
    beginning: bool
    image_tokens: int
    length: int
    expressions: int

    def __call__(self, question: str, answer: str) -> dict[str, np.ndarray]:
        """Ids of a whole chat, and where its marks stand; 1 stands for phrases that are not there.

        Shapes: -> {"ids": int32 [T], "valid", "labelled": bool [T], "marks": int32 [K]}.

        Raises:
          InputError: for a text that is too long.
        """
        text = dialogue(self._tokenizer, question, answer, self.image_tokens)
        if len(text.ids) > self.length:
            raise InputError(
                f"a question and its answer have {len(text.ids)} tokens, text_length is {self.length}: make it larger, "
                f"or expressions smaller; it begins with {question[:60]!r}"
            )
        room = self.length - len(text.ids)
        marks = np.flatnonzero(np.isin(text.ids, self._marks))
        return {
            "ids": np.pad(text.ids, (0, room)),
            "valid": np.arange(self.length) < len(text.ids),
            "labelled": np.pad(text.labelled, (0, room)),
            "marks": np.pad(marks, (0, self.expressions - len(marks)), constant_values=1).astype(np.int32),
        }

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer.from_file(self.tokenizer, beginning=self.beginning)

    @cached_property
    def _marks(self) -> tuple[int, int]:
        return self._tokenizer.token(mllmseg_text.SEG), self._tokenizer.token(mllmseg_text.REJ)
