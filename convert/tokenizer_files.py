"""Tokenizers of published checkpoints as one `tokenizer.json`, whichever of their forms lies beside the weights.

tokenizer.json             taken as it is
vocab.json, merges.txt     byte-level pairs of Qwen2
tokenizer.model            SentencePiece pairs of InternLM2

To the last two come the tokens of `added_tokens.json`, which must get the ids that stand there. No code of a checkpoint
is run.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import read_json
from rvseg_jax.core.errors import NotAvailable

TOKENIZER, ADDED = "tokenizer.json", "added_tokens.json"
_PAIRS, _PIECES = ("vocab.json", "merges.txt"), "tokenizer.model"
# How Qwen2 cuts text before pairs are merged (tokenization_qwen2.py of transformers).
_QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's for a blank


def find(place: Path) -> Path | None:
    """The file or the folder with a tokenizer in one of the forms: in `place`, below it, or beside it."""
    folder = place if place.is_dir() else place.parent
    for candidate in (folder / "tokenizer", folder, folder.parent / "tokenizer"):
        if (candidate / TOKENIZER).is_file():
            return candidate / TOKENIZER
        if (candidate / _PIECES).is_file() or all((candidate / name).is_file() for name in _PAIRS):
            return candidate
    return None


def read(place: Path) -> bytes:
    """The `tokenizer.json` of a file or folder.

    Raises:
      ConversionError: if there is no tokenizer, or one that is damaged.
      NotAvailable: for a `tokenizer.model` without the package that reads it.
    """
    if place.is_file():
        return place.read_bytes()
    if (place / TOKENIZER).is_file():
        return (place / TOKENIZER).read_bytes()
    if (place / _PIECES).is_file():
        backend = _of_pieces(place / _PIECES)
    elif all((place / name).is_file() for name in _PAIRS):
        backend = _of_pairs(*(place / name for name in _PAIRS))
    else:
        raise ConversionError(f"{place}: no {TOKENIZER} there, nor {' with '.join(_PAIRS)}, nor {_PIECES}")
    if (place / ADDED).is_file():
        _add(backend, read_json(place / ADDED), place / ADDED)
    with tempfile.TemporaryDirectory() as folder:
        backend.save(f"{folder}/{TOKENIZER}")
        return Path(folder, TOKENIZER).read_bytes()


def _add(backend: Any, added: Mapping[str, int], where: Path) -> None:
    import tokenizers

    for token, number in sorted(added.items(), key=lambda pair: pair[1]):
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True)])
        if backend.token_to_id(token) != number:
            raise ConversionError(f"{where}: {token} has the id {number}, the tokenizer {backend.token_to_id(token)}")


def _of_pairs(vocabulary: Path, merges: Path) -> Any:
    """Byte-level pairs with Qwen2's cuts and normal form."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the package raises plain Exception for every defect of a file
        raise ConversionError(f"{vocabulary}: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    cuts = pre_tokenizers.Split(tokenizers.Regex(_QWEN2_CUTS), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _of_pieces(file: Path) -> Any:
    """Pairs of a SentencePiece model with bytes for what it does not know."""
    try:
        import sentencepiece
    except ImportError:
        raise NotAvailable(
            f"{file} is read by sentencepiece, which is not installed: pip install sentencepiece"
        ) from None
    import tokenizers
    from tokenizers import decoders, models, normalizers

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.Load(str(file))
    except (RuntimeError, OSError) as error:
        raise ConversionError(f"{file}: {error}") from None
    size = pieces.GetPieceSize()
    vocabulary = {pieces.IdToPiece(number): number for number in range(size)}
    if len(vocabulary) != size:
        raise ConversionError(f"{file}: {size - len(vocabulary)} pieces are there twice")
    controls = [pieces.IdToPiece(number) for number in range(size) if pieces.IsControl(number)]
    normal = [number for number in range(size) if not (pieces.IsControl(number) or pieces.IsByte(number))]
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges({pieces.IdToPiece(number): number for number in normal}),
        unk_token=pieces.IdToPiece(pieces.unk_id()),
        fuse_unk=True,
        byte_fallback=any(pieces.IsByte(number) for number in range(size)),
    )
    backend = tokenizers.Tokenizer(model)
    blanks: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undone: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if pieces.EncodeAsPieces("a")[0].startswith(_SPACE):  # a blank is put in front of every text
        blanks.insert(0, normalizers.Prepend(_SPACE))
        undone.append(decoders.Strip(content=" ", left=1))
    if "".join(pieces.EncodeAsPieces("a  b")).count(_SPACE) < 2:
        raise ConversionError(f"{file}: it joins blanks, which no known checkpoint of this kind does")
    backend.normalizer = normalizers.Sequence(blanks)
    backend.decoder = decoders.Sequence(undone)
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=True) for token in (*controls, model.unk_token)]
    )
    return backend


def _merges(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that make each piece, in the order in which they are tried: pieces that come first, first."""
    found = []
    for piece, rank in ranks.items():
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        parts = [(left, right) for left, right in parts if left in ranks and right in ranks]
        found += [(rank, ranks[left], ranks[right], left, right) for left, right in parts]
    return [(left, right) for *_, left, right in sorted(found)]
