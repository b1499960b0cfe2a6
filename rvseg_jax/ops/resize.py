"""Resizing equal to `torch.nn.functional.interpolate`, flag by flag."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")

# A row of at most this many pixels is resized by a matrix product, which has a cheap gradient everywhere;
# on longer ones, gathering the few pixels under each filter does less work.
_MATRIX_LIMIT = 256


def resize(
    x: jax.Array,
    size: tuple[int, int] | None = None,
    *,
    mode: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale_factor: float | tuple[float, float] | None = None,
) -> jax.Array:
    """Resizes the two axes before the last, as PyTorch does with the same arguments.

    Filters are evaluated in float32 and the result has the format of `x`. Differentiable. `jax.image.resize`
    differs: it always antialiases when it shrinks, has another cubic kernel (a = -0.5, where PyTorch has
    -0.75 without antialias) and no `align_corners`.

    Shapes:
      x [..., H, W, C] -> [..., h, w, C].

    Args:
      size: (h, w); or None with `scale_factor`.
      mode: "nearest" (PyTorch's, which takes the pixel at floor(i * H / h)), "nearest-exact" (pixel centres, as
        Pillow), "bilinear", "bicubic", or "area" (mean over each output pixel's cells).
      align_corners: bilinear and bicubic: put the centres of the corner pixels on each other.
      antialias: bilinear and bicubic: widen the filter when shrinking, as Pillow does.
      scale_factor: one factor, or one for H and one for W, in place of `size`. The output is floor(H * factor)
        high, and positions are scaled by 1 / factor and not by H / h: PyTorch's
        `recompute_scale_factor=False`. They differ where H * factor is not whole.

    Raises:
      ValueError: for an unknown mode, a flag the mode has no use for, an empty output, both or neither of size
        and scale_factor, or integers where a mean is to be taken.

    Source: aten/src/ATen/native/UpSample.h and cpu/UpSampleKernel.cpp of PyTorch, re-derived.
    """
    if mode not in MODES:
        raise ValueError(f"unknown resize mode {mode!r}: choose one of {', '.join(MODES)}")
    if (align_corners or antialias) and mode not in ("bilinear", "bicubic"):
        flag = "align_corners" if align_corners else "antialias"
        raise ValueError(f"{flag} has no meaning for mode {mode!r}: only bilinear and bicubic have it")
    if x.ndim < 3:
        raise ValueError(f"x has shape {x.shape}: give [..., H, W, C]")
    nearest = mode.startswith("nearest")
    if not nearest and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"mode {mode!r} averages, and x is {x.dtype}: convert it to a float format first")
    sizes, factors = _output_size(x.shape[-3:-1], size, scale_factor)

    out = x if nearest else x.astype(jnp.float32)
    for axis, length, factor in zip((x.ndim - 3, x.ndim - 2), sizes, factors, strict=True):
        if nearest:
            out = _take(out, axis, nearest_index(out.shape[axis], length, mode == "nearest-exact", factor))
        else:
            out = _filter(out, axis, *_taps(out.shape[axis], length, mode, align_corners, antialias, factor))
    return out.astype(x.dtype)


def _output_size(
    current: Sequence[int], size: tuple[int, int] | None, scale_factor: float | tuple[float, float] | None
) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    """((h, w), (factor of H, factor of W)); the factors are None where the size was given."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"size={size} and scale_factor={scale_factor}: give exactly one of them")
    factors: tuple[float | None, ...] = (None, None)
    if scale_factor is not None:
        pair = scale_factor if isinstance(scale_factor, tuple) else (scale_factor, scale_factor)
        factors = tuple(float(factor) for factor in pair)
        size = (math.floor(current[0] * pair[0]), math.floor(current[1] * pair[1]))
    assert size is not None
    if len(size) != 2 or min(size) < 1 or min(current) < 1:
        raise ValueError(f"cannot resize {tuple(current)} to {tuple(size)}: both need two sizes of 1 or more")
    return (int(size[0]), int(size[1])), factors


def _step(inputs: int, outputs: int, align_corners: bool, factor: float | None) -> np.float32:
    """Distance of two output pixels in input pixels. PyTorch rounds it to float32, which decides ties."""
    if align_corners:
        return np.float32(inputs - 1) / np.float32(outputs - 1) if outputs > 1 else np.float32(0)
    return np.float32(1.0 / factor) if factor else np.float32(inputs) / np.float32(outputs)


def nearest_index(inputs: int, outputs: int, exact: bool, factor: float | None) -> np.ndarray:
    """Input pixel of each output pixel, int [outputs]; `factor` is the scale factor if one was given."""
    if inputs == outputs and not exact:
        return np.arange(outputs)  # PyTorch copies, whatever the scale factor was
    position = np.arange(outputs, dtype=np.float32)
    if exact:
        position = position + np.float32(0.5)
    position = position * _step(inputs, outputs, False, factor)
    return np.minimum(np.floor(position).astype(np.int64), inputs - 1)


@functools.lru_cache(maxsize=256)
def _taps(
    inputs: int, outputs: int, mode: str, align_corners: bool, antialias: bool, factor: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Input pixels under the filter of each output pixel, int [outputs, taps], and their float32 weights."""
    if mode == "area":
        return _area_taps(inputs, outputs)
    if inputs == outputs and (mode == "bilinear" or antialias):
        factor = None  # PyTorch copies, whatever the scale factor was
    step = _step(inputs, outputs, align_corners, factor)
    if antialias:
        return _antialiased_taps(inputs, outputs, mode, step)
    index = np.arange(outputs, dtype=np.float32)
    position = index * step if align_corners else (index + np.float32(0.5)) * step - np.float32(0.5)
    if mode == "bilinear":
        position = np.maximum(position, 0)  # PyTorch clamps the position here, and the taps only for bicubic
        offsets = np.arange(2)
    else:
        offsets = np.arange(-1, 3)
    first = np.floor(position)
    if mode == "bilinear":
        first = np.minimum(first, inputs - 1)
    distance = np.abs((position - first)[:, None] - offsets)
    weights = np.maximum(1 - distance, 0) if mode == "bilinear" else cubic_kernel(distance, -0.75)
    taps = np.clip(first[:, None].astype(np.int64) + offsets, 0, inputs - 1)
    return taps, weights.astype(np.float32)


def _antialiased_taps(inputs: int, outputs: int, mode: str, step: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Taps of a filter as wide as an output pixel, cut off at the border and normalised."""
    radius, kernel = (1.0, _triangle) if mode == "bilinear" else (2.0, functools.partial(cubic_kernel, a=-0.5))
    width = max(float(step), 1.0)
    centres = np.float32(step) * (np.arange(outputs, dtype=np.float32) + np.float32(0.5))
    begin = np.maximum((centres - radius * width + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + radius * width + 0.5).astype(np.int64), inputs)
    taps = begin[:, None] + np.arange(int((end - begin).max()))
    weights = kernel(np.abs(taps - centres[:, None] + 0.5) / width) * (taps < end[:, None])
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.minimum(taps, inputs - 1), weights.astype(np.float32)


def _area_taps(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal weights for every input pixel that an output pixel touches."""
    index = np.arange(outputs)
    begin, end = index * inputs // outputs, -(-(index + 1) * inputs // outputs)
    taps = begin[:, None] + np.arange(int((end - begin).max()))
    weights = (taps < end[:, None]) / (end - begin)[:, None]
    return np.minimum(taps, inputs - 1), weights.astype(np.float32)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def cubic_kernel(distance, a: float):
    """Keys' cubic convolution kernel (1981) at `distance` >= 0, zero from 2 on; numpy or JAX arrays."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return near * (distance <= 1) + far * ((distance > 1) & (distance < 2))


def _take(x: jax.Array, axis: int, index: np.ndarray) -> jax.Array:
    """`x` at `index` along `axis`; whole factors become repeats and strided slices, whose gradients are cheap."""
    size, count = x.shape[axis], len(index)
    if count % size == 0 and np.array_equal(index, np.arange(count) // (count // size)):
        return x if count == size else jnp.repeat(x, count // size, axis=axis)
    steps = np.diff(index)
    if count > 1 and steps[0] > 0 and np.all(steps == steps[0]):
        return jax.lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, int(steps[0]), axis)
    return jnp.take(x, index, axis=axis, mode="clip")


def _filter(x: jax.Array, axis: int, taps: np.ndarray, weights: np.ndarray) -> jax.Array:
    """The weighted sums of float32 `x` over `taps` along `axis`."""
    size, (count, width) = x.shape[axis], taps.shape
    if size <= _MATRIX_LIMIT or width > 4:
        matrix = np.zeros((count, size), np.float32)
        np.add.at(matrix, (np.arange(count)[:, None], taps), weights)
        out = jnp.tensordot(x, matrix, axes=(axis, 1), precision="highest")
        return jnp.moveaxis(out, -1, axis)
    shape = [count if i == axis else 1 for i in range(x.ndim)]
    terms = [jnp.take(x, taps[:, i], axis=axis, mode="clip") * weights[:, i].reshape(shape) for i in range(width)]
    return functools.reduce(jnp.add, terms)
