"""The pre-normalised block of vision transformers, as DINOv2, Pi3 and InternViT use it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import MLP
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.layers.rope import rotate_halves
from rvseg_jax.ops.attention import attention
from rvseg_jax.parallel import constrain, current_rules, use_rules
from rvseg_jax.parallel.rules import mesh_axes

# The epsilon of the layer normalisation of queries and keys is torch's default, whatever that of the block is.
_QK_NORM_EPS = 1e-5

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines of the rotary angles of a grid of rows and columns, two float32 [T, H // 2]."""


class FusedQKV(nnx.Module):
    """Queries, keys and values by one product; the kernel [D, 3, D] keeps them apart, so that heads can be cut."""

    def __init__(self, width: int, *, use_bias: bool = True, precision: Precision, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        self.kernel = nnx.Param(init(rngs.params(), (width, 3, width), precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros((3, width), precision.param_dtype)) if use_bias else None
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, T, D] -> [B, T, 3, D]."""
        compute = self.precision.compute
        y = jnp.einsum("btd,dce->btce", compute(x), compute(self.kernel[...]), precision=self.precision.matmul)
        return y if self.bias is None else y + compute(self.bias[...])


class ViTAttention(nnx.Module):
    """Self-attention with optional normalisation of each head's queries and keys, and optional 2-D rotation."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.qkv = FusedQKV(width, **options)
        self.q_norm = LayerNorm(width // heads, eps=_QK_NORM_EPS, **options) if qk_norm else None
        self.k_norm = LayerNorm(width // heads, eps=_QK_NORM_EPS, **options) if qk_norm else None
        self.proj = Linear(width, width, **options)
        self.heads = heads
        self.precision = precision

    def __call__(self, x: jax.Array, rope: Rope | None) -> jax.Array:
        """Shapes: x [B, T, D] -> [B, T, D]."""
        qkv = self.qkv(x)
        q, k, v = (
            constrain(y.reshape(*x.shape[:2], self.heads, -1), "batch", "seq", "heads", None)
            for y in (qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (rotate_halves(y, *rope, axes=2) for y in (q, k))
        y = attention(q, k, v, precision=self.precision.matmul)
        return self.proj(y.reshape(x.shape))


class ViTBlock(nnx.Module):
    """x + attention, then x + feed-forward with the exact GELU; each normalised before and, optionally, scaled after.

    Args:
      layer_scale: initial value of the factors on both branches, a vector each; None for none.
      qk_norm: whether each head's queries and keys are normalised.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4,
        eps: float = 1e-6,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.norm1 = LayerNorm(width, eps=eps, **options)
        self.attn = ViTAttention(width, heads, qk_norm=qk_norm, **options)
        self.norm2 = LayerNorm(width, eps=eps, **options)
        self.mlp = MLP(width, int(width * mlp_ratio), width, activation="gelu", **options)
        self.ls1 = _scale(width, layer_scale, precision)
        self.ls2 = _scale(width, layer_scale, precision)
        self.precision = precision

    def __call__(self, x: jax.Array, rope: Rope | None = None) -> jax.Array:
        """Shapes: x [B, T, D] -> [B, T, D]."""
        x = x + self._scaled(self.attn(self.norm1(x), rope), self.ls1)
        x = x + self._scaled(self.mlp(self.norm2(x)), self.ls2)
        return constrain(x, "batch", "seq", "embed")

    def _scaled(self, y: jax.Array, scale: nnx.Param | None) -> jax.Array:
        return y if scale is None else y * self.precision.compute(scale[...])


def _scale(width: int, value: float | None, precision: Precision) -> nnx.Param | None:
    return None if value is None else nnx.Param(jnp.full((width,), value, precision.param_dtype))


def apply_block(block: ViTBlock, x: jax.Array, rope: Rope | None = None) -> jax.Array:
    """One layer of a stack of blocks, for `layers.stack.run`."""
    return block(x, rope)


@contextlib.contextmanager
def images_apart() -> Iterator[None]:
    """Lays out what is traced inside for images of their own, [B T, tokens, ...], whose tokens no device cuts.

    The batch takes the mesh axes of "seq" as well, so that the frames of one video spread over them.
    """
    rules = current_rules()
    axes = (*mesh_axes("batch", rules, "images_apart"), *mesh_axes("seq", rules, "images_apart"))
    with use_rules({**rules, "batch": tuple(dict.fromkeys(axes)), "seq": None}):
        yield


# Logical axes of the parameters of a stack of blocks; () keeps a leaf whole.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"/attn/qkv/kernel$", ("layers", "embed", None, "heads")),
    (r"/attn/qkv/bias$", ("layers", None, "heads")),
    (r"/attn/proj/kernel$", ("layers", "heads", "embed")),
    (r"/mlp/up/kernel$", ("layers", "embed", "mlp")),
    (r"/mlp/down/kernel$", ("layers", "mlp", "embed")),
    (r"/(norm1|norm2|q_norm|k_norm)/(scale|bias)$", ()),
    (r"/(attn/proj|mlp/up|mlp/down)/bias$", ()),
    (r"/ls[12]$", ()),
)
