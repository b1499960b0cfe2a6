"""Sizes of InternVL."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.models.internvl.vision import InternViTConfig
from rvseg_jax.models.lm.config import LanguageModelConfig

Family = Literal["internlm2", "qwen2"]
_FAMILIES = {
    "InternLM2ForCausalLM": "internlm2",
    "LlamaForCausalLM": "internlm2",
    "internlm2": "internlm2",
    "llama": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "qwen2": "qwen2",
}
# Rows of the word tables of InternVL2 and 2.5: the tokens of images, boxes and references are added to the originals.
_ROWS = {"internlm2": 92_553, "qwen2": 151_674}


@dataclass(frozen=True)
class InternVLConfig:
    """Sizes of InternVL, of one square tile an image.

    Attributes:
      family: whose keys and tokens the language model has.
      downsample_ratio: side of the grid of image tokens over that of patches.
    """

    vision: InternViTConfig = field(default_factory=InternViTConfig)
    language: LanguageModelConfig = field(default_factory=LanguageModelConfig.internlm2_5_7b)
    family: Family = "internlm2"
    downsample_ratio: float = 0.5
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"family {self.family!r} is not known: choose one of {', '.join(get_args(Family))}")
        if round(1 / self.downsample_ratio) * self.downsample_ratio != 1 or self.vision.grid % self.merge:
            raise ValueError(
                f"downsample_ratio {self.downsample_ratio} must be one over a whole number that divides "
                f"{self.vision.grid} patches"
            )
        for name in ("vision", "language"):
            # One number format for the whole model, whatever the parts were built with.
            object.__setattr__(self, name, replace(getattr(self, name), precision=self.precision))

    @property
    def merge(self) -> int:
        """Patches that become one token, along a side."""
        return round(1 / self.downsample_ratio)

    @property
    def grid(self) -> int:
        """Tokens along a side of an image."""
        return self.vision.grid // self.merge

    @property
    def image_tokens(self) -> int:
        """Tokens of an image in a prompt."""
        return self.grid**2

    @classmethod
    def internvl2_5_1b(cls, precision: Precision = PARITY) -> "InternVLConfig":
        """With Qwen2.5-0.5B-Instruct; InternVL2-1B has the same sizes and 19 rows of words less."""
        return cls._of(LanguageModelConfig.qwen2_5_0_5b(), "qwen2", precision)

    @classmethod
    def internvl2_5_2b(cls, precision: Precision = PARITY) -> "InternVLConfig":
        """With InternLM2.5-1.8B-chat; also the sizes of InternVL2-2B."""
        return cls._of(LanguageModelConfig.internlm2_5_1_8b(), "internlm2", precision)

    @classmethod
    def internvl2_5_4b(cls, precision: Precision = PARITY) -> "InternVLConfig":
        """With Qwen2.5-3B-Instruct."""
        return cls._of(LanguageModelConfig.qwen2_5_3b(), "qwen2", precision)

    @classmethod
    def internvl2_5_8b(cls, precision: Precision = PARITY) -> "InternVLConfig":
        """With InternLM2.5-7B-chat; also the sizes of InternVL2-8B."""
        return cls._of(LanguageModelConfig.internlm2_5_7b(), "internlm2", precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "InternVLConfig":
        """A model for tests: 4 x 4 patches, 2 x 2 tokens, a language model of Qwen2's form."""
        return cls(InternViTConfig.tiny(), LanguageModelConfig.tiny(), "qwen2", precision=precision)

    @classmethod
    def _of(cls, language: LanguageModelConfig, family: Family, precision: Precision) -> "InternVLConfig":
        language = replace(language, vocab_size=_ROWS[family], tie_word_embeddings=False)
        return cls(InternViTConfig.internvit_300m(), language, family, precision=precision)

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "InternVLConfig":
        """The config of upstream's `config.json` (`internvl_chat`) or of transformers' (`internvl`).

        Raises:
          ValueError: for a network that is not built here.
        """
        fixed = {"select_layer": -1, "vision_feature_layer": -1, "ps_version": "v2"}
        for name, wanted in fixed.items():
            if values.get(name, wanted) != wanted:
                raise ValueError(f"{name} is {values[name]!r}: only {wanted!r} is here")
        text = values.get("llm_config") or values.get("text_config") or {}
        kinds = [*text.get("architectures", ()), text.get("model_type", "")]
        families = [_FAMILIES[kind] for kind in kinds if kind in _FAMILIES]
        if not families:
            raise ValueError(f"the language model {kinds} is not here: only InternLM2 and Qwen2 are")
        vision = InternViTConfig.from_upstream(values.get("vision_config", {}))
        # transformers has a switch for the whole model, whose default would tie what InternVL never ties.
        language = LanguageModelConfig.from_upstream({**text, "tie_word_embeddings": False})
        ratio = values.get("downsample_ratio", 0.5)
        return cls(vision, language, families[0], ratio, precision=precision)  # type: ignore[arg-type]
