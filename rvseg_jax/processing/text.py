"""Sentences to token ids, as FlowRVS and the T5 family of encoders expect them."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"

# Upstream cleans with the `regex` package, whose \s leaves the separators U+001C..U+001F alone; that of `re`
# takes them.
_WHITESPACE = re.compile(r"[^\S\x1c-\x1f]+")
_DELETED = re.compile(r'["\\]')


def clean_text(text: str) -> str:
    """`text` as FlowRVS feeds it to the tokenizer.

    Runs of white space become one space, HTML entities are resolved once, double quotes and backslashes go,
    in this order: white space that an entity stands for (`&nbsp;`) stays as it is. Letters keep their case.

    Source: FlowRVS models/text.py, prompt_clean.
    """
    return _DELETED.sub("", html.unescape(_WHITESPACE.sub(" ", text).strip()))


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of several sentences, padded to one length.

    Shapes:
      ids: [N, L] int32, each row closed by the end token, then filled with the padding id.
      mask: [N, L] bool, True at tokens (the end token included).
      lengths: [N] int32, number of tokens in each row.
      truncated: [N] bool, whether the sentence had more tokens than fit.
    """

    ids: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray


class Tokenizer:
    """A `tokenizer.json` read by the `tokenizers` package, with T5's end token and padding.

    Ids and masks equal those of transformers' T5 tokenizer with `padding="max_length", truncation=True`.
    The end token is appended here, so files whose post-processor adds it and files without one behave alike.
    """

    def __init__(self, backend: Any, *, name: str = "tokenizer") -> None:
        """Wraps a `tokenizers.Tokenizer`; `name` stands in error messages.

        Raises:
          ValueError: if the vocabulary lacks the end or the padding token.
        """
        ids = {token: backend.token_to_id(token) for token in (PAD, EOS)}
        missing = [token for token, id in ids.items() if id is None]
        if missing:
            raise ValueError(f"{name} has no token {', '.join(missing)}: use the tokenizer.json of a T5-family encoder")
        self.pad_id: int = ids[PAD]
        self.eos_id: int = ids[EOS]
        # A file may carry truncation and padding of its own, which would be applied before ours.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, or the one in a folder.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if the file is no tokenizer, or lacks the end or the padding token.
        """
        import tokenizers

        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}: copy the model's tokenizer.json there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception for every defect of a file
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        return cls(backend, name=str(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size()

    def encode(self, texts: Sequence[str], max_length: int) -> TokenBatch:
        """Token ids of `texts`, each cut to `max_length` with the end token kept.

        Raises:
          ValueError: if `max_length` is below 1, or `texts` is one string.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is the string {texts!r}: pass a list of strings")
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}: it must be at least 1, for the end token")
        ids = np.full((len(texts), max_length), self.pad_id, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        truncated = np.zeros(len(texts), bool)
        for row, encoding in enumerate(self._backend.encode_batch(list(texts), add_special_tokens=False)):
            tokens = encoding.ids[: max_length - 1] + [self.eos_id]
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
            truncated[row] = len(encoding.ids) >= max_length
        return TokenBatch(ids, np.arange(max_length) < lengths[:, None], lengths, truncated)


def write_word_tokenizer(words: Sequence[str], path: str | Path) -> None:
    """Writes a word-level `tokenizer.json`: ids 0 padding, 1 end, 2 unknown, then `words` in their order.

    Raises:
      ValueError: as `word_level`.
    """
    from tokenizers import processors

    backend = word_level(words, (PAD, EOS, UNKNOWN))
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    backend.save(str(path))


def word_level(words: Sequence[str], special: Sequence[str]) -> Any:
    """A `tokenizers.Tokenizer` of whole words: ids of `special`, `UNKNOWN` among them, then of `words` in their order.

    Texts are lower-cased and split at white space and punctuation; a punctuation mark is a word.

    Raises:
      ValueError: for a word that is there twice, or that no text can yield (empty, with capitals, or one that the
        splitting takes apart).
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    vocabulary = {token: number for number, token in enumerate(special)}
    for word in words:
        if word in vocabulary:
            raise ValueError(f"the word {word!r} is there twice: give each word once")
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word))]
        if pieces != [word]:
            raise ValueError(f"the word {word!r} can never be met: sentences yield {pieces} for it")
        vocabulary[word] = len(vocabulary)
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.add_special_tokens(list(special))
    return backend
