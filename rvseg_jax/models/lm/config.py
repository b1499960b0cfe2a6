"""Sizes of a language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvseg_jax.core.precision import PARITY, Precision

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_FAMILIES = {"qwen2": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2", "internlm2": "internlm2"}
_THETA = {"qwen2": 1_000_000.0, "internlm2": 10_000.0}
_EPS = 1e-6


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes of a decoder with grouped heads, rotary positions and a gated feed-forward, under upstream's names.

    Attributes:
      num_key_value_heads: heads of keys and values; it divides num_attention_heads.
      head_dim: width of a head; None for hidden_size / num_attention_heads.
      max_position_embeddings: tokens that the positions were trained for.
      rope_theta: base of the rotary frequencies.
      rope_scaling: factor by which the base grows with the length of a row beyond max_position_embeddings ("dynamic
        NTK"); None for a base that stays.
      attention_bias: whether queries, keys and values have a bias; the output projection has none.
      tie_word_embeddings: whether the table of embeddings is the head too.
      mrope_section: frequencies that turn with time, height and width, which add up to head_dim / 2; None where a
        token has one position.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None
    max_position_embeddings: int = 32_768
    rope_theta: float = 1_000_000.0
    rope_scaling: float | None = None
    rms_norm_eps: float = 1e-6
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    mrope_section: tuple[int, int, int] | None = None
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}: "
                "give head_dim"
            )
        if self.head_width % 2:
            raise ValueError(f"heads of width {self.head_width} cannot be rotated: the width must be even")
        if self.rope_scaling is not None and self.rope_scaling < 1:
            raise ValueError(f"rope_scaling {self.rope_scaling} must be 1 or more")
        if self.mrope_section is not None and sum(self.mrope_section) * 2 != self.head_width:
            raise ValueError(f"mrope_section {self.mrope_section} must add up to {self.head_width // 2}, half a head")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """A model for tests."""
        return cls(
            vocab_size=120,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_theta=10_000.0,
            precision=precision,
        )

    @classmethod
    def qwen2_5_0_5b(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """Qwen2.5-0.5B: 494,032,768 parameters."""
        return cls(151_936, 896, 4864, 24, 14, 2, tie_word_embeddings=True, precision=precision)

    @classmethod
    def qwen2_5_3b(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """Qwen2.5-3B: 3,085,938,688 parameters."""
        return cls(151_936, 2048, 11_008, 36, 16, 2, tie_word_embeddings=True, precision=precision)

    @classmethod
    def qwen2_5_7b(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """Qwen2.5-7B: 7,615,616,512 parameters."""
        return cls(152_064, 3584, 18_944, 28, 28, 4, precision=precision)

    @classmethod
    def internlm2_5_1_8b(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """InternLM2.5-1.8B: 1,889,110,016 parameters."""
        return cls(
            *(92_544, 2048, 8192, 24, 16, 8),
            rope_scaling=2.0,
            rms_norm_eps=1e-5,
            attention_bias=False,
            precision=precision,
        )

    @classmethod
    def internlm2_5_7b(cls, precision: Precision = PARITY) -> "LanguageModelConfig":
        """InternLM2.5-7B: 7,737,708,544 parameters."""
        return cls(
            *(92_544, 4096, 14_336, 32, 32, 8),
            rope_scaling=2.0,
            rms_norm_eps=1e-5,
            attention_bias=False,
            precision=precision,
        )

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "LanguageModelConfig":
        """The config of upstream's `config.json` of a Qwen2, Qwen2.5-VL text or InternLM2 model.

        Fields of training, of special tokens and of the cache are unused.

        Raises:
          ValueError: for a missing size, another family, or a feature that the decoder does not have.
        """
        family = _FAMILIES.get(str(values.get("model_type")))
        if family is None:
            known = ", ".join(sorted(_FAMILIES))
            raise ValueError(f"model_type {values.get('model_type')!r} is not supported: use one of {known}")
        missing = [name for name in _SIZES if name not in values]
        if missing:
            raise ValueError(f"the config of a {family} model lacks {missing[0]}")
        if values.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act {values['hidden_act']!r} is not supported: use 'silu'")
        if values.get("use_sliding_window"):
            raise ValueError("use_sliding_window true is not supported: the decoder attends to all tokens before one")
        if family == "internlm2" and values.get("bias"):
            raise ValueError("bias true is not supported: InternLM2 has biases in no layer")
        theta, factor, sections = _rope(values, _THETA[family])
        return cls(
            **{name: int(values[name]) for name in _SIZES},
            head_dim=values.get("head_dim"),
            rope_theta=theta,
            rope_scaling=factor,
            rms_norm_eps=float(values.get("rms_norm_eps", _EPS)),
            attention_bias=family == "qwen2",
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            mrope_section=sections,
            precision=precision,
        )


def _rope(values: Mapping[str, Any], theta: float) -> tuple[float, float | None, tuple[int, int, int] | None]:
    """(base, factor of dynamic NTK, sections) from `rope_scaling`, or `rope_parameters` of transformers 5."""
    scaling: Mapping[str, Any] = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta", values.get("rope_theta", theta)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "mrope", "dynamic"):
        raise ValueError(f"rope_scaling of type {kind!r} is not supported: use 'default', 'mrope' or 'dynamic'")
    if kind == "dynamic" and "factor" not in scaling:
        raise ValueError("rope_scaling of type 'dynamic' lacks its factor")
    sections = scaling.get("mrope_section")
    if sections is not None and len(sections) != 3:
        raise ValueError(f"mrope_section {sections} must be three numbers: of time, height and width")
    if kind == "mrope" and sections is None:
        raise ValueError("rope_scaling of type 'mrope' lacks its mrope_section")
    factor = float(scaling["factor"]) if kind == "dynamic" else None
    return theta, factor, None if sections is None else tuple(int(size) for size in sections)  # type: ignore[return-value]
