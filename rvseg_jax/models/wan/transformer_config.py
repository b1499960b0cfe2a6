"""Sizes of the Wan transformers, and what a forward pass of one costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rvseg_jax.core.precision import PARITY, Precision

# Fields of an upstream config.json that change nothing in the text-to-video network.
_IGNORED_FIELDS = {"_class_name", "_diffusers_version", "_name_or_path", "mask_branch", "use_dvi"}
# Fields of the image-to-video variants; their networks have more parts.
_ABSENT_FIELDS = {"image_dim", "added_kv_proj_dim", "pos_embed_seq_len"}


@dataclass(frozen=True)
class WanTransformerConfig:
    """Sizes of a Wan transformer, under upstream's names; the defaults are T2V-1.3B.

    Attributes:
      patch_size: latent cells per token along (t, h, w).
      in_channels: channels of the input latents; twice the VAE's with direct video injection.
      text_dim: width of the text encoder's output.
      freq_dim: width of the sinusoidal embedding of the time step.
      rope_max_seq_len: most tokens along each of t, h and w.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 8960
    num_layers: int = 30
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    rope_max_seq_len: int = 1024
    precision: Precision = PARITY

    def __post_init__(self):
        if self.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm {self.qk_norm!r} is not supported: use 'rms_norm_across_heads'")
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim {self.attention_head_dim} must be even for rotary embeddings")

    @property
    def inner_dim(self) -> int:
        """Width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Head dimensions that rotate with the token's position along t, h and w (44, 42, 42 at head width 128)."""
        side = 2 * (self.attention_head_dim // 6)
        return self.attention_head_dim - 2 * side, side, side

    @classmethod
    def t2v_1_3b(cls, precision: Precision = PARITY) -> "WanTransformerConfig":
        """Wan2.1-T2V-1.3B: 1,418,996,800 parameters; the network of the released FlowRVS."""
        return cls(precision=precision)

    @classmethod
    def t2v_14b(cls, precision: Precision = PARITY) -> "WanTransformerConfig":
        """Wan2.1-T2V-14B."""
        return cls(num_attention_heads=40, ffn_dim=13824, num_layers=40, precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "WanTransformerConfig":
        """A network for tests; heads of 20 split 8/6/6 over the axes, uneven like the published 44/42/42."""
        return cls(
            num_attention_heads=2,
            attention_head_dim=20,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=48,
            num_layers=2,
            rope_max_seq_len=32,
            precision=precision,
        )

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any], *, precision: Precision = PARITY) -> "WanTransformerConfig":
        """The config of an upstream `transformer/config.json`.

        `use_dvi` is ignored: the input channels of the weights decide, and FlowRVS writes them separately.

        Raises:
          ValueError: for an unknown field, or one of the image-to-video variants.
        """
        given = {name: value for name, value in values.items() if name not in _IGNORED_FIELDS}
        known = {entry.name for entry in fields(cls)} - {"precision"}
        for name in sorted(set(given) - known):
            if name not in _ABSENT_FIELDS:
                raise ValueError(f"unknown field {name!r} in a Wan transformer config: remove it")
            if given.pop(name) is not None:
                raise ValueError(f"{name!r} is set, so this is an image-to-video model: only text-to-video is here")
        if "patch_size" in given:
            given["patch_size"] = tuple(given["patch_size"])
        return cls(**given, precision=precision)

    def with_direct_video_injection(self) -> "WanTransformerConfig":
        """This network with the video latent concatenated to the state: twice as many input channels."""
        return replace(self, in_channels=2 * self.out_channels)


def flops(cfg: WanTransformerConfig, tokens: int, text_tokens: int) -> int:
    """Floating-point operations of a forward pass of one sample, two for each multiply-add of a matrix product.

    Args:
      tokens: latent tokens, T * H * W over the patch size.
      text_tokens: rows of text that the cross-attention sees.
    """
    width = cfg.inner_dim
    block = (
        6 * tokens * width * width  # to_q, to_k, to_v and to_out of self-attention; to_q and to_out of cross-
        + 2 * text_tokens * width * width
        + 2 * tokens * (tokens + text_tokens) * width
        + 2 * tokens * width * cfg.ffn_dim
    )
    cells = math.prod(cfg.patch_size)
    outside = (
        tokens * width * cells * (cfg.in_channels + cfg.out_channels)
        + text_tokens * width * (cfg.text_dim + width)
        + width * (cfg.freq_dim + 7 * width)
    )
    return 2 * (cfg.num_layers * block + outside)
