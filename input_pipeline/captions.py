"""Sentences as training reads them."""

import re

_MIRRORED = {
    "left": "right",
    "leftmost": "rightmost",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "clockwise": "counterclockwise",
    "anticlockwise": "clockwise",
}
_MIRRORED |= {value: key for key, value in _MIRRORED.items() if value not in _MIRRORED}
_MIRRORED_WORD = re.compile(r"\b(" + "|".join(_MIRRORED) + r")\b", re.IGNORECASE)
_LETTERS = re.compile("left|right")


def swap_left_right(text: str) -> str:
    """The sentence as it reads for the mirrored image.

    Whole words only, in their own case: "the bright car on the Left" becomes "the bright car on the Right".
    Directions of rotation change too.
    """

    def mirrored(match: re.Match[str]) -> str:
        word = match.group()
        other = _MIRRORED[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _MIRRORED_WORD.sub(mirrored, text)


def normalised_caption(text: str) -> str:
    """Lower case, and white space as single spaces: what training sets are read with."""
    return " ".join(text.lower().split())


def swap_letters(text: str) -> str:
    """The sentence with the letters of left and right exchanged wherever they stand: "bright" becomes "bleft".

    Kept to train as published. Source: FlowRVS datasets/transforms_image.py and transforms_video.py, `hflip`.
    """
    return _LETTERS.sub(lambda match: "right" if match.group() == "left" else "left", text)
