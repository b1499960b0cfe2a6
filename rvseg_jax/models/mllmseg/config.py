"""Sizes of MLLMSeg."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.models.internvl.config import InternVLConfig

# `[SEG]` and `[REJ]`, which MLLMSeg adds to the words of InternVL.
NEW_TOKENS = 2


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes of the mask decoder; upstream has them in its code.

    Attributes:
      width: of all features, which is that of the vision transformer.
      text_width: of the language model.
      patch_size: pixels along the side that each position of the finer grid becomes.
      num_heads, feedforward: of both attention layers.
      groups: blocks of channels that are sampled at offsets of their own when the coarser grid is enlarged.
      scale: side of the finer grid over that of the coarser.
      dropout: in the attention layers, in training.
    """

    width: int = 1024
    text_width: int = 4096
    patch_size: int = 14
    num_heads: int = 8
    feedforward: int = 1024
    groups: int = 4
    scale: int = 2
    dropout: float = 0.1
    precision: Precision = PARITY


@dataclass(frozen=True)
class MLLMSegConfig:
    """InternVL, and what its mask decoder does not take from it.

    Attributes:
      num_heads, feedforward, groups, dropout: see `MaskDecoderConfig`; `feedforward` None is the width.
    """

    internvl: InternVLConfig = field(default_factory=InternVLConfig)
    num_heads: int = 8
    feedforward: int | None = None
    groups: int = 4
    dropout: float = 0.1
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        object.__setattr__(self, "internvl", replace(self.internvl, precision=self.precision))

    @property
    def decoder(self) -> MaskDecoderConfig:
        """The mask decoder that fits."""
        vision = self.internvl.vision
        return MaskDecoderConfig(
            width=vision.hidden_size,
            text_width=self.internvl.language.hidden_size,
            patch_size=vision.patch_size,
            num_heads=self.num_heads,
            feedforward=self.feedforward or vision.hidden_size,
            groups=self.groups,
            scale=self.internvl.merge,
            dropout=self.dropout,
            precision=self.precision,
        )

    @classmethod
    def internvl2_5_1b(cls, precision: Precision = PARITY) -> "MLLMSegConfig":
        """`MLLMSeg_InternVL2_5_1B_RES`; its mask decoder has 27,831,942 parameters."""
        return cls._of(InternVLConfig.internvl2_5_1b(), precision)

    @classmethod
    def internvl2_5_2b(cls, precision: Precision = PARITY) -> "MLLMSegConfig":
        """`MLLMSeg_InternVL2_5_2B_RES`; its mask decoder has 30,191,238 parameters."""
        return cls._of(InternVLConfig.internvl2_5_2b(), precision)

    @classmethod
    def internvl2_5_4b(cls, precision: Precision = PARITY) -> "MLLMSegConfig":
        """`MLLMSeg_InternVL2_5_4B_RES`; its mask decoder has 30,191,238 parameters."""
        return cls._of(InternVLConfig.internvl2_5_4b(), precision)

    @classmethod
    def internvl2_5_8b(cls, precision: Precision = PARITY) -> "MLLMSegConfig":
        """`MLLMSeg_InternVL2_5_8B_RES` and `_GRES`; the mask decoder has 34,385,542 parameters."""
        return cls._of(InternVLConfig.internvl2_5_8b(), precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "MLLMSegConfig":
        """A model for tests."""
        return cls(InternVLConfig.tiny(), num_heads=4, precision=precision)

    @classmethod
    def _of(cls, internvl: InternVLConfig, precision: Precision) -> "MLLMSegConfig":
        language = replace(internvl.language, vocab_size=internvl.language.vocab_size + NEW_TOKENS)
        return cls(replace(internvl, language=language), precision=precision)

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "MLLMSegConfig":
        """The config of upstream's `config.json`; the mask decoder has no fields there.

        Raises:
          ValueError: for a network that is not built here.
        """
        return cls(InternVLConfig.from_upstream(values), precision=precision)
