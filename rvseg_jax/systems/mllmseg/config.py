"""Sizes and settings of the system."""

from dataclasses import dataclass, field

from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.processing.mllmseg_text import QUESTIONS


@dataclass(frozen=True)
class MLLMSegSystemConfig:
    """Sizes of the network, and how it is asked.

    Attributes:
      model: sizes of the network.
      size: side in pixels of the squares that images are squashed to; the grids follow it.
      together: ask for all phrases of an image in one question, as the published evaluation does. Otherwise each is
        asked for by itself, so that what is said of one does not bear on another.
      question: place in `processing.mllmseg_text.QUESTIONS`.
      answer_tokens: most tokens of an answer beside the phrases that it repeats.
      rows: most questions that are read at once.
      threshold: probability from which on a pixel belongs to the mask.
      tracker: "sam2" or "xmem" carries masks through a video from the first frame in which a phrase names something;
        "" asks about every frame by itself.
      tracker_checkpoint: folder of the tracker's weights; "" takes the bundled tiny ones.
      ask_every: frames until a phrase that named nothing is asked for again, with a tracker.
    """

    model: MLLMSegConfig = field(default_factory=MLLMSegConfig)
    size: int = 448
    together: bool = False
    question: int = 3
    answer_tokens: int = 32
    rows: int = 8
    threshold: float = 0.5
    tracker: str = ""
    tracker_checkpoint: str = ""
    ask_every: int = 8

    def __post_init__(self) -> None:
        vision = self.model.internvl.vision
        step = vision.patch_size * self.model.internvl.merge
        if self.size < step or self.size % step:
            raise ValueError(f"size {self.size} must be a multiple of {step}, the pixels of an image token")
        if not 0 <= self.question < len(QUESTIONS):
            raise ValueError(f"question {self.question}: choose 0 to {len(QUESTIONS) - 1}")
        if min(self.answer_tokens, self.rows, self.ask_every) < 1:
            raise ValueError(
                f"answer_tokens {self.answer_tokens}, rows {self.rows} and ask_every {self.ask_every} must be positive"
            )
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} must be between 0 and 1")
        if self.tracker not in ("", "sam2", "xmem"):
            raise ValueError(f"tracker {self.tracker!r} is not known: choose sam2, xmem or none")

    @property
    def image_tokens(self) -> int:
        """Tokens of an image in a question."""
        internvl = self.model.internvl
        return (self.size // (internvl.vision.patch_size * internvl.merge)) ** 2
