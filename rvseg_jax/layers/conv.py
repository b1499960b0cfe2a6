"""Convolutions, channels last."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision

Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]


class Conv(nnx.Module):
    """N-dimensional cross-correlation with kernel [*k, in, out], as torch's ConvNd.

    Args:
      padding: (before, after) for each spatial axis, or "VALID". ("SAME" is TensorFlow's: with strides it
        differs from any symmetric padding.)
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
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_features, out_features)
        init = jax.nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), shape, precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), precision.param_dtype)) if use_bias else None
        self.strides = tuple(strides or (1,) * len(kernel_size))
        self.padding = padding if isinstance(padding, str) else tuple(tuple(pair) for pair in padding)
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, *spatial, in] -> [B, *spatial', out]."""
        compute = self.precision.compute
        axes = "DHW"[-len(self.strides) :]
        y = jax.lax.conv_general_dilated(
            compute(x),
            compute(self.kernel[...]),
            window_strides=self.strides,
            padding=self.padding,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            precision=self.precision.matmul,
        )
        return y if self.bias is None else y + compute(self.bias[...])


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
