"""The Wan 2.1 text-to-video diffusion transformer, which FlowRVS runs from video latents to mask latents.

Written after `diffusers/models/transformers/transformer_wan.py` and FlowRVS `models/transformer.py`, which
compute the same; parameter paths follow their names.
"""

import math
from typing import Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.layers.linear import Linear
from rvseg_jax.models.wan.transformer_block import (
    AdaNorm,
    ConditionEmbedder,
    PatchEmbedding,
    WanBlock,
    adaln_table,
    apply_block,
    rotary_tables,
    unpatchify,
)
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig, flops
from rvseg_jax.parallel import constrain

__all__ = ["SHARDING", "Modulation", "WanTransformer", "WanTransformerConfig", "flops", "padding_bias"]


class Modulation(NamedTuple):
    """What the time step does to the network: its adaLN vectors, float32.

    Attributes:
      blocks: [L, B, 6, D]: shift, scale and gate of the self-attention, then of the feed-forward.
      out: [B, 2, D]: shift and scale before the output projection.
    """

    blocks: jax.Array
    out: jax.Array


class WanTransformer(nnx.Module):
    """Velocity of latents at a time step, given a text (Wan 2.1, arXiv 2503.20314)."""

    def __init__(self, cfg: WanTransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.patch_embedding = PatchEmbedding(cfg, rngs=rngs)
        self.condition_embedder = ConditionEmbedder(cfg, rngs=rngs)
        blocks = stack.stacked(lambda keys: WanBlock(cfg, rngs=keys), cfg.num_layers, rngs=rngs)
        self.blocks = cast(WanBlock, blocks)  # with a leading [L] on every parameter
        self.norm_out = AdaNorm(cfg, rngs=rngs)
        outputs = math.prod(cfg.patch_size) * cfg.out_channels
        self.proj_out = Linear(cfg.inner_dim, outputs, precision=cfg.precision, rngs=rngs)
        self.scale_shift_table = adaln_table(cfg, 2, rngs=rngs)

    def fold(self, timestep: jax.Array) -> Modulation:
        """All adaLN vectors of a time step, which `__call__` takes in its place.

        One-step FlowRVS always runs at 1000, so that there they are constants of the checkpoint.

        Shapes: timestep [B], or [1] for all samples alike, in 0..1000.
        """
        return self._modulation(*self.condition_embedder.time(timestep))

    def _modulation(self, embedding: jax.Array, projection: jax.Array) -> Modulation:
        projection = rearrange(projection, "b (six d) -> b six d", six=6)
        return Modulation(
            blocks=self.blocks.scale_shift_table[...].astype(jnp.float32) + projection,
            out=self.scale_shift_table[...].astype(jnp.float32) + embedding[:, None],
        )

    @overload
    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array | None,
        text: jax.Array,
        *,
        modulation: Modulation | None = None,
        text_bias: jax.Array | None = None,
        taps: Literal[False] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> jax.Array: ...

    @overload
    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array | None,
        text: jax.Array,
        *,
        modulation: Modulation | None = None,
        text_bias: jax.Array | None = None,
        taps: Literal[True] | tuple[str, ...],
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array | None,
        text: jax.Array,
        *,
        modulation: Modulation | None = None,
        text_bias: jax.Array | None = None,
        taps: bool | tuple[str, ...] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Velocity of `latents` at `timestep`.

        With direct video injection the caller concatenates state and video latent along C, state first.

        Shapes: latents [B, T, H, W, C], timestep [B] in 0..1000, text [B, S, text_dim], text_bias [B, S] or
          [S] -> [B, T, H, W, out_channels].

        Args:
          modulation: `fold(timestep)`, with a timestep of None.
          text_bias: added to the logits of the cross-attention, for example by `padding_bias`; None attends
            to all rows alike, zero rows too, as upstream does.
          taps: names of intermediate results that are returned too, or True for all: "temb" [B, D] and
            "time_proj" [B, 6D] (not when folded), "text" [B, S, D], "patch_embedding" and "block0",
            "block1", ... [B, tokens, D].
          mode, remat: how the blocks run, see `layers.stack.run`.

        Returns:
          The velocity; with taps the velocity and {name: array}.

        Raises:
          ValueError: for sizes that do not fit the patches, the channels or the rotary tables, for both or
            neither of `timestep` and `modulation`, or for an unknown tap.
        """
        cfg, grid = self.cfg, self._grid(latents.shape)
        names = self._tap_names(taps, folded=timestep is None)
        seen: dict[str, jax.Array] = {}
        if timestep is not None and modulation is None:
            seen["temb"], seen["time_proj"] = self.condition_embedder.time(timestep)
            modulation = self._modulation(seen["temb"], seen["time_proj"])
        elif timestep is not None or modulation is None:
            raise ValueError("give either a timestep or its folded modulation")
        seen["text"] = constrain(self.condition_embedder.text(text), "batch", None, "embed")
        if text_bias is not None:
            text_bias = jnp.broadcast_to(text_bias, text.shape[:2])[:, None, None, :]
        seen["patch_embedding"] = constrain(self.patch_embedding(latents), "batch", "seq", "embed")
        kept = tuple(layer for layer in range(cfg.num_layers) if f"block{layer}" in names)
        x, carries = stack.run(
            self.blocks,
            seen["patch_embedding"],
            apply_block,
            seen["text"],
            text_bias,
            rotary_tables(cfg, grid),
            per_layer=modulation.blocks,
            mode=mode,
            remat=remat,
            taps=kept,
        )
        seen.update({f"block{layer}": carries[slot] for slot, layer in enumerate(kept)})
        tokens = self.proj_out(self.norm_out(x, *jnp.split(modulation.out, 2, axis=1)))
        velocity = unpatchify(tokens, grid, cfg.patch_size)
        return (velocity, {name: seen[name] for name in names}) if taps else velocity

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        cfg = self.cfg
        if len(shape) != 5 or shape[-1] != cfg.in_channels:
            raise ValueError(f"latents must be [B, T, H, W, {cfg.in_channels}], got {tuple(shape)}")
        sizes = tuple(zip(shape[1:4], cfg.patch_size, strict=True))
        if any(size % patch for size, patch in sizes):
            raise ValueError(f"latents of T, H, W {shape[1:4]} do not divide into patches of {cfg.patch_size}")
        frames, height, width = (size // patch for size, patch in sizes)
        if max(frames, height, width) > cfg.rope_max_seq_len:
            raise ValueError(
                f"{frames}, {height}, {width} tokens along T, H, W: at most {cfg.rope_max_seq_len} each "
                "(rope_max_seq_len); shorten or shrink the clip"
            )
        return frames, height, width

    def _tap_names(self, taps: bool | tuple[str, ...], *, folded: bool) -> tuple[str, ...]:
        known: tuple[str, ...] = () if folded else ("temb", "time_proj")
        known += ("text", "patch_embedding", *(f"block{layer}" for layer in range(self.cfg.num_layers)))
        if isinstance(taps, bool):
            return known if taps else ()
        for name in taps:
            if name not in known:
                raise ValueError(f"unknown tap {name!r}: choose from {', '.join(known)}")
        return tuple(taps)


def padding_bias(kept: int, total: int) -> np.ndarray:
    """Bias that lets the last of `kept` text rows, a padding row, stand for all rows up to `total`.

    Upstream attends to every padding row. All of them are equal, so that n of them weigh as much as one with
    log n added to its logit. Every sentence of the batch must end before row kept - 1.

    Shapes: -> float32 [kept], zero but for its last element.

    Raises:
      ValueError: unless 1 <= kept <= total.
    """
    if not 1 <= kept <= total:
        raise ValueError(f"cannot keep {kept} of {total} text rows")
    bias = np.zeros(kept, np.float32)
    bias[-1] = math.log(total - kept + 1)
    return bias


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^patch_embedding/kernel$", (None, None, None, "conv_in", "embed")),
    (r"^condition_embedder/time_embedder/up/kernel$", (None, "mlp")),
    (r"^condition_embedder/text_embedder/up/kernel$", ("embed", "mlp")),
    (r"^condition_embedder/(time|text)_embedder/down/kernel$", ("mlp", "embed")),
    (r"^condition_embedder/time_proj/kernel$", ("embed", "mlp")),
    (r"^blocks/attn[12]/to_[qkv]/kernel$", ("layers", "embed", "heads")),
    (r"^blocks/attn[12]/to_out/kernel$", ("layers", "heads", "embed")),
    (r"^blocks/ffn/up/kernel$", ("layers", "embed", "mlp")),
    (r"^blocks/ffn/down/kernel$", ("layers", "mlp", "embed")),
    (r"^proj_out/kernel$", ("embed", None)),
    (r"/(scale|bias)$", ()),
    (r"scale_shift_table$", ()),
)
