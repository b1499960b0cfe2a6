"""Convolutions, channels last."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.parallel import platform

Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]

# How a 3-D convolution is computed: by the platform's own one, or with the taps along time laid beside the
# channels of a 2-D convolution, which costs a copy of the input for each tap. XLA's 3-D convolution on CPU is
# 2 to 18 times slower than that forward, and up to 12 times with gradients (the smaller the channel count the
# worse), so "auto" folds there.
ConvImplementation = Literal["auto", "native", "folded"]


class Conv(nnx.Module):
    """N-dimensional cross-correlation with kernel [*k, in / groups, out], as torch's ConvNd.

    Args:
      groups: parts into which the channels are cut, each with outputs of its own; `in_features` for a depthwise one.
      padding: (before, after) for each spatial axis, or "VALID". ("SAME" is TensorFlow's: with strides it
        differs from any symmetric padding.)
      impl: how a 3-D convolution is computed; of no effect for others.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        padding: Padding = "VALID",
        use_bias: bool = True,
        groups: int = 1,
        impl: ConvImplementation = "auto",
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        if impl not in get_args(ConvImplementation):
            raise ValueError(f"unknown convolution {impl!r}: choose {', '.join(get_args(ConvImplementation))}")
        if in_features % groups or out_features % groups:
            raise ValueError(f"{in_features} inputs and {out_features} outputs do not divide into {groups} groups")
        shape = (*kernel_size, in_features // groups, out_features)
        init = jax.nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), shape, precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), precision.param_dtype)) if use_bias else None
        self.strides = tuple(strides or (1,) * len(kernel_size))
        self.padding: Padding = padding if isinstance(padding, str) else tuple((a, b) for a, b in padding)
        self.groups = groups
        self.impl = impl
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, *spatial, in] -> [B, *spatial', out]."""
        compute = self.precision.compute
        x, kernel = compute(x), compute(self.kernel[...])
        folded = self.impl == "folded" or (self.impl == "auto" and platform() == "cpu")
        if folded and len(self.strides) == 3 and self.padding != "SAME" and self.groups == 1:
            y = _fold_time(x, kernel, self.strides, self.padding, self.precision.matmul)
        else:
            y = convolve(x, kernel, self.strides, self.padding, self.precision.matmul, self.groups)
        return y if self.bias is None else y + compute(self.bias[...])


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, precision: str | None, groups: int = 1
) -> jax.Array:
    """What `Conv` computes without its bias. Shapes: x [B, *spatial, in], kernel [*k, in / groups, out]."""
    axes = "DHW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
        precision=precision,
    )


def _fold_time(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, precision: str | None
) -> jax.Array:
    """A 3-D convolution as a 2-D one whose channels hold, side by side, the frames that each tap sees.

    Shapes: x [B, T, H, W, in], kernel [kt, kh, kw, in, out] -> [B, T', H', W', out].
    """
    if not isinstance(padding, str):
        x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
        padding = padding[1:]
    taps, step = kernel.shape[0], strides[0]
    frames = (x.shape[1] - taps) // step + 1
    seen = [x[:, tap : tap + (frames - 1) * step + 1 : step] for tap in range(taps)]
    images = rearrange(jnp.concatenate(seen, axis=-1), "b t h w c -> (b t) h w c")
    kernel = rearrange(kernel, "t h w i o -> h w (t i) o")
    y = convolve(images, kernel, strides[1:], padding, precision)
    return rearrange(y, "(b t) h w c -> b t h w c", t=frames)


class CausalConv3d(Conv):
    """3-D convolution that sees no later frame: time is padded in front only, space on both sides.

    The frames in front of the first are zeros, or the `history` that `__call__` is given, which is how a long
    video runs in pieces.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int, int],
        *,
        strides: tuple[int, int, int] = (1, 1, 1),
        impl: ConvImplementation = "auto",
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        time, *space = kernel_size
        padding = [(0, 0), *((size // 2, size // 2) for size in space)]
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            impl=impl,
            precision=precision,
            rngs=rngs,
        )
        self.history_frames = time - 1

    def __call__(self, x: jax.Array, history: jax.Array | None = None) -> jax.Array:
        """Shapes: x [B, T, H, W, in], history [B, kernel_t - 1, H, W, in] or None -> [B, T', H', W', out]."""
        if self.history_frames:
            if history is None:
                history = jnp.zeros((x.shape[0], self.history_frames, *x.shape[2:]), x.dtype)
            x = jnp.concatenate([history.astype(x.dtype), x], axis=1)
        return super().__call__(x)
