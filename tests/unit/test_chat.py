"""The chat of InternVL as token ids, and tokenizers of checkpoints in their published forms."""

import json

import numpy as np
import pytest

from rvseg_jax.convert import tokenizer_files
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.core.errors import InputError
from rvseg_jax.processing import chat, mllmseg_text
from rvseg_jax.processing.chat import ChatTokenizer

TEXTS = [
    "the man on the left, isn't he?",
    "  two  blanks\n\nand lines ",
    "Ünïcödé — 犬 12345",
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat?<|im_end|>\n",
    "",
]
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "[REJ]"]
CORPUS = ["the man on the left of the red dog", "what are two dogs in this image", "Sure, it is [SEG]."] * 20


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    said = ["the red circle left", *mllmseg_text.QUESTIONS, "sure , the mask of is ."]
    chat.write_word_tokenizer([text.replace("{}", "") for text in said], file, marks=("[SEG]", "[REJ]"))
    return ChatTokenizer.from_file(file)


def byte_pairs(folder):
    """Qwen2's slow files, with the tokens of a chat added behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    backend.model.save(str(folder))
    first = backend.get_vocab_size()
    added = {token: first + place for place, token in enumerate(CHAT_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return added


def test_byte_pairs_equal_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    added = byte_pairs(tmp_path)
    (tmp_path / "made.json").write_bytes(tokenizer_files.read(tmp_path))
    ours = ChatTokenizer.from_file(tmp_path / "made.json")
    peer = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    peer.add_tokens([transformers.AddedToken(token, special=True, normalized=False) for token in added])
    for text in TEXTS:
        assert ours.encode(text) == peer(text, add_special_tokens=False).input_ids, text
        assert ours.decode(ours.encode(text)) == text
    assert ours.image_id == added["<IMG_CONTEXT>"] and ours.size == max(added.values()) + 1
    (tmp_path / "added_tokens.json").write_text(json.dumps(added | {"[REJ]": 5}))
    with pytest.raises(ConversionError, match=r"\[REJ\] has the id 5"):
        tokenizer_files.read(tmp_path)


@pytest.mark.parametrize("dummy", [False, True])
def test_pieces_equal_sentencepiece(tmp_path, dummy):
    """InternLM2's form: pairs with bytes behind them, with and without a blank in front of every text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=dummy,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    size = peer.GetPieceSize()
    (tmp_path / "added_tokens.json").write_text(json.dumps({t: size + n for n, t in enumerate(CHAT_TOKENS)}))
    (tmp_path / "made.json").write_bytes(tokenizer_files.read(tmp_path))
    ours = ChatTokenizer.from_file(tmp_path / "made.json", beginning=True)
    for text in TEXTS[:3]:
        assert ours.encode(text) == peer.EncodeAsIds(text), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.prompt("<image>\nthe man", 1)[0] == peer.bos_id()


def test_where_a_tokenizer_lies(tmp_path):
    with pytest.raises(ConversionError, match="nor vocab.json"):
        tokenizer_files.read(tmp_path)
    assert tokenizer_files.find(tmp_path) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    assert tokenizer_files.find(weights) == tmp_path / "tokenizer" / "tokenizer.json"
    assert tokenizer_files.read(tmp_path / "tokenizer") == b"{}"
    (tmp_path / "vocab.json").write_text("[")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ConversionError, match=r"vocab\.json"):
        tokenizer_files.read(tmp_path)


def test_template_byte_for_byte(tmp_path):
    """Upstream's template, spelled out, tokenised turn by turn."""
    byte_pairs(tmp_path)
    (tmp_path / "made.json").write_bytes(tokenizer_files.read(tmp_path))
    tokenizer = ChatTokenizer.from_file(tmp_path / "made.json")
    question = mllmseg_text.evaluation_prompt(["The Man.", "a dog"])
    answer = mllmseg_text.evaluation_answer(["The Man.", "a dog"], [False, True])
    text = chat.dialogue(tokenizer, question, answer, 3)
    assert tokenizer.decode(text.ids.tolist()) == (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态"
        "大语言模型。<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        " What are the man, a dogin this image? Please output segmentation masks.<|im_end|>\n"
        "<|im_start|>assistant\nSure,the man:[SEG], a dog:[REJ].<|im_end|>\n"
    )
    said = text.ids[text.labelled].tolist()
    assert tokenizer.decode(said) == "Sure,the man:[SEG], a dog:[REJ].<|im_end|>"
    assert not text.labelled[-1] and text.ids[-1] == tokenizer.encode("\n")[0]
    prompt = tokenizer.prompt(question, 3)
    assert text.ids[: len(prompt)].tolist() == prompt and not text.labelled[: len(prompt)].any()


def test_a_tokenizer_of_words(words):
    text = chat.dialogue(words, mllmseg_text.question(["the red circle"], 0), "Sure, the red circle is [SEG].", 2)
    assert words.decode(text.ids[text.labelled].tolist()) == "sure , the red circle is [SEG] . <|im_end|>"
    assert int((text.ids == words.image_id).sum()) == 2 and words.token("[REJ]") < words.size


def test_users_cannot_speak_as_the_chat(words):
    for text in ("a [SEG] dog", "<|im_end|>", "<IMG_<IMG_CONTEXT>CONTEXT>", "x<image>y", "[SEG][REJ]"):
        quiet = words.neutralised(text)
        ids = words.encode(quiet)
        assert not np.isin(ids, [words.token(token) for token in CHAT_TOKENS]).any(), quiet
        assert "<image>" not in quiet
        mllmseg_text.phrase(quiet)
    assert words.neutralised("the red circle [left]") == "the red circle [left]"


def test_what_users_get_wrong(words, tmp_path):
    with pytest.raises(InputError, match="once"):
        words.prompt("no image", 1)
    with pytest.raises(InputError, match="has no token"):
        words.token("[MASK]")
    with pytest.raises(InputError, match="no tokenizer at"):
        ChatTokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="is not a tokenizer"):
        ChatTokenizer.from_file(tmp_path)
    from rvseg_jax.processing.text import write_word_tokenizer

    write_word_tokenizer(["red"], tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="has no token <img>"):
        ChatTokenizer.from_file(tmp_path)
