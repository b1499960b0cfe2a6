"""What MLLMSeg is asked about an image and what it answers: questions, answers, and the prompts of its evaluation.

Published weights know exactly these strings, "<image>", line breaks and missing spaces included.
Source: MLLMSeg mllmseg/constants.py, mllmseg/dataset_sub_refer_seg.py (training) and mllmseg/dataset_vg.py
(evaluation). One thing differs: upstream writes REJ for SEG wherever it stands in an entry, here in the token alone.
"""

from collections.abc import Sequence

from rvseg_jax.core.errors import InputError

IMAGE, SEG, REJ = "<image>", "[SEG]", "[REJ]"
# Phrases come from users and files: none may say what only the chat itself may.
RESERVED = (IMAGE, SEG, REJ, "<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>")
QUESTIONS = (
    "Can you segment {} in this image?",
    "Please segment {} in this image.",
    "What are {} in this image? Please respond with segmentation masks.",
    "What are {} in this image? Please output segmentation masks.",
)
# How an answer starts, and what it says of one phrase; entries are joined by ", " and the answer ends on ".".
ANSWERS = (
    ("The segmentation results are", "{} {}"),
    ("Sure, they are", "{}:{}"),
    ("Sure,", "the mask of {} is {}"),
    ("Sure,", "the segmentation of {} is {}"),
    ("Sure,", "the referred {} is {}"),
)


def phrase(text: str) -> str:
    """A phrase as training shows it: without outer white space, then without outer dots; its case stays.

    Raises: InputError for one that holds a token of the chat.
    """
    return _plain(text).strip().strip(".")


def question(texts: Sequence[str], style: int) -> str:
    """The question for some phrases, in lower case.

    Args:
      texts: one phrase or more.
      style: place in `QUESTIONS`.
    """
    return f"{IMAGE}\n" + QUESTIONS[style].format(", ".join(phrase(text) for text in _some(texts)).lower())


def answer(texts: Sequence[str], rejected: Sequence[bool], style: int) -> str:
    """The answer to the same phrases, in their own case.

    Args:
      texts: one phrase or more.
      rejected: whether each names nothing in the image.
      style: place in `ANSWERS`.
    """
    start, entry = ANSWERS[style]
    entries = [entry.format(phrase(text), REJ if no else SEG) for text, no in zip(_some(texts), rejected, strict=True)]
    return f"{start} {', '.join(entries)}."


def evaluation_prompt(texts: Sequence[str]) -> str:
    """The question of the published evaluation: all phrases of an image in lower case, and no space after the last."""
    return f"{IMAGE}\n What are {', '.join(_evaluated(texts))}in this image? Please output segmentation masks."


def evaluation_answer(texts: Sequence[str], rejected: Sequence[bool]) -> str:
    """The answer that the published evaluation gives the model to read, the truth of `rejected` in it."""
    entries = [f"{text}:{REJ if no else SEG}" for text, no in zip(_evaluated(texts), rejected, strict=True)]
    return f"Sure,{', '.join(entries)}."


def reasoning_prompt(text: str, *, is_sentence: bool) -> str:
    """The question of the evaluation on ReasonSeg, whose answer is "[SEG]"."""
    asked = _plain(text).strip()
    if is_sentence:
        return f"{IMAGE}\n {asked} Please output segmentation mask."
    return f"{IMAGE}\n What is {asked} in this image? Please output segmentation mask."


def _evaluated(texts: Sequence[str]) -> list[str]:
    return [phrase(text).lower() for text in _some(texts)]


def _plain(text: str) -> str:
    for token in RESERVED:
        if token in text:
            raise InputError(f"the phrase {text!r} holds {token!r}, which the model reads as a token: reword it")
    return text


def _some(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"{texts!r} are no phrases; give a list with at least one")
    return texts
