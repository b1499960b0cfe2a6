"""MLLMSeg's questions and answers, byte for byte."""

import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing import mllmseg_text as text


def test_the_published_evaluation_prompt_with_its_missing_space():
    phrases = [" The Left man. ", "..a RED car", "nobody at all"]
    assert text.evaluation_prompt(phrases) == (
        "<image>\n What are the left man, a red car, nobody at allin this image? Please output segmentation masks."
    )
    assert text.evaluation_answer(phrases, [False, False, True]) == (
        "Sure,the left man:[SEG], a red car:[SEG], nobody at all:[REJ]."
    )


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (0, "The segmentation results are A man [SEG], the SEGWAY [REJ]."),
        (1, "Sure, they are A man:[SEG], the SEGWAY:[REJ]."),
        (2, "Sure, the mask of A man is [SEG], the mask of the SEGWAY is [REJ]."),
        (3, "Sure, the segmentation of A man is [SEG], the segmentation of the SEGWAY is [REJ]."),
        (4, "Sure, the referred A man is [SEG], the referred the SEGWAY is [REJ]."),
    ],
)
def test_answers_keep_their_case(style, expected):
    assert text.answer(["A man.", " the SEGWAY"], [False, True], style) == expected


def test_questions_are_in_lower_case():
    phrases = ["A man", "the {Left} dog."]
    assert [text.question(phrases, style) for style in range(4)] == [
        "<image>\nCan you segment a man, the {left} dog in this image?",
        "<image>\nPlease segment a man, the {left} dog in this image.",
        "<image>\nWhat are a man, the {left} dog in this image? Please respond with segmentation masks.",
        "<image>\nWhat are a man, the {left} dog in this image? Please output segmentation masks.",
    ]
    assert len(text.QUESTIONS) == 4 and len(text.ANSWERS) == 5


def test_reasoning_prompts():
    assert text.reasoning_prompt(" the exit ", is_sentence=False) == (
        "<image>\n What is the exit in this image? Please output segmentation mask."
    )
    assert text.reasoning_prompt("Where can I leave?", is_sentence=True) == (
        "<image>\n Where can I leave? Please output segmentation mask."
    )


@pytest.mark.parametrize("token", text.RESERVED)
def test_phrases_cannot_speak_for_the_chat(token):
    for make in (text.phrase, lambda phrase: text.reasoning_prompt(phrase, is_sentence=True)):
        with pytest.raises(InputError, match="reads as a token"):
            make(f"a cup {token} of tea")


def test_no_phrases():
    for wrong in ([], "one string"):
        with pytest.raises(InputError, match="no phrases"):
            text.question(wrong, 0)
    with pytest.raises(ValueError, match="zip"):
        text.answer(["a", "b"], [True], 0)
