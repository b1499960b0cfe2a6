"""Text cleaning and tokenisation against transformers' tokenizers."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from rvseg_jax.processing.text import Tokenizer, clean_text, write_word_tokenizer

SENTENCES = [
    "the red dog runs left",
    "",
    "a very very long sentence about the small white cat that jumps over the red dog and then runs away",
    "Ünïcödé — the 犬 runs",
    "dog </s> cat <pad>",
]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  the\t red \n\n dog ", "the red dog"),
        ('the "red" dog\\cat', "the red dogcat"),
        ("cats &amp; dogs", "cats & dogs"),
        ("&amp;lt;", "&lt;"),  # resolved once, not twice
        ("a&nbsp; b", "a\u00a0 b"),  # white space is collapsed before entities are resolved
        ("&quot;x&quot;", "x"),
        ("Big DOG", "Big DOG"),
        ("a\u3000b", "a b"),
        ("a\x1cb \x1c", "a\x1cb"),
        ("", ""),
    ],
)
def test_clean_text(raw: str, cleaned: str) -> None:
    assert clean_text(raw) == cleaned


def test_clean_text_equals_the_regex_package() -> None:
    regex = pytest.importorskip("regex")  # what upstream uses; its \s is not that of `re`
    import html

    text = "".join(f"a{chr(code)}{chr(code)}" for code in range(0x3001) if chr(code).isspace()) + ' "b" \\ &#39;'
    upstream = regex.sub(r'["\\]+', "", html.unescape(regex.sub(r"\s+", " ", text).strip()))
    assert clean_text(text) == upstream


@pytest.fixture(scope="module")
def unigram_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny unigram tokenizer with T5's special tokens, trained here."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    backend.train_from_iterator(SENTENCES[:3], trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path_factory.mktemp("unigram") / "tokenizer.json"
    backend.save(str(path))
    return str(path)


@pytest.mark.parametrize("max_length", [1, 4, 16, 64])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "T5TokenizerFast"])
def test_ids_equal_transformers(unigram_file: str, kind: str, max_length: int) -> None:
    transformers = pytest.importorskip("transformers")
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "T5TokenizerFast":
        theirs = transformers.T5TokenizerFast.from_pretrained(unigram_file.rsplit("/", 1)[0], extra_ids=0, **special)
    else:
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=unigram_file, **special)
    expected = theirs(SENTENCES, padding="max_length", truncation=True, max_length=max_length, return_tensors="np")
    ours = Tokenizer.from_file(unigram_file).encode(SENTENCES, max_length)
    np.testing.assert_array_equal(ours.ids, expected["input_ids"])
    np.testing.assert_array_equal(ours.mask, expected["attention_mask"].astype(bool))
    np.testing.assert_array_equal(ours.lengths, expected["attention_mask"].sum(1))
    full = [len(ids) for ids in theirs(SENTENCES)["input_ids"]]
    np.testing.assert_array_equal(ours.truncated, np.array(full) > max_length)
    assert ours.ids.dtype == np.int32


def test_truncation_and_padding_stored_in_the_file_do_not_interfere(unigram_file: str, tmp_path) -> None:
    backend = tokenizers.Tokenizer.from_file(unigram_file)
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    plain = Tokenizer.from_file(unigram_file).encode(SENTENCES, 12)
    from_folder = Tokenizer.from_file(tmp_path).encode(SENTENCES, 12)
    np.testing.assert_array_equal(plain.ids, from_folder.ids)


def test_word_tokenizer(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    write_word_tokenizer(["the", "red", "circle", ",", "left"], path)
    tokenizer = Tokenizer.from_file(path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 8)
    batch = tokenizer.encode(["The RED circle, left", "the blue circle", "the red circle left left"], 6)
    assert batch.ids.tolist() == [[3, 4, 5, 6, 7, 1], [3, 2, 5, 1, 0, 0], [3, 4, 5, 7, 7, 1]]
    assert batch.lengths.tolist() == [6, 4, 6]
    assert batch.truncated.tolist() == [False, False, False]
    short = tokenizer.encode(["the red circle"], 3)
    assert short.ids.tolist() == [[3, 4, 1]] and short.truncated.tolist() == [True]
    assert tokenizer.encode([], 4).ids.shape == (0, 4)


@pytest.mark.parametrize("word", ["Red", "two words", "left-most", "", "<pad>"])
def test_word_tokenizer_refuses_words_no_sentence_yields(word: str, tmp_path) -> None:
    with pytest.raises(ValueError, match="word"):
        write_word_tokenizer(["the", word], tmp_path / "tokenizer.json")


def test_bad_files_and_arguments(tmp_path, unigram_file: str) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    without_eos = tokenizers.Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    with pytest.raises(ValueError, match="</s>"):
        Tokenizer(without_eos)
    tokenizer = Tokenizer.from_file(unigram_file)
    with pytest.raises(ValueError, match="max_length is 0"):
        tokenizer.encode(["a"], 0)
    with pytest.raises(ValueError, match="list of strings"):
        tokenizer.encode("a dog", 4)
