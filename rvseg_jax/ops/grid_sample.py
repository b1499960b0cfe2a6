"""Sampling of images at real coordinates, equal to `torch.nn.functional.grid_sample`."""

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.ops.resize import cubic_kernel

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border")


def grid_sample(
    x: jax.Array, grid: jax.Array, *, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool
) -> jax.Array:
    """Values of `x` at the points of `grid`.

    Weights and sums are float32 and the result has the format of `x`; the coordinates are taken as they come,
    so a bfloat16 grid keeps its coarse positions. Differentiable in both arguments ("nearest": in `x` only).

    Shapes:
      x [B, H, W, C], grid [B, ..., 2] -> [B, ..., C].

    Args:
      grid: (x, y), each -1..1 over the image; outside of it `padding_mode` rules. NaN counts as -1 with border
        padding, and gives 0 with zero padding.
      mode: "bilinear", "nearest" (halves go to the even pixel) or "bicubic" (kernel a = -0.75).
      padding_mode: "zeros", or "border" for the value at the nearest border pixel.
      align_corners: whether -1 and 1 are the centres of the corner pixels or the outer edges.

    Raises:
      ValueError: for unknown modes or shapes that do not fit.

    Source: aten/src/ATen/native/GridSampler.h of PyTorch, re-derived.
    """
    if mode not in MODES:
        raise ValueError(f"unknown sampling mode {mode!r}: choose one of {', '.join(MODES)}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"unknown padding mode {padding_mode!r}: choose one of {', '.join(PADDING_MODES)}")
    if x.ndim != 4 or grid.ndim < 2 or grid.shape[0] != x.shape[0] or grid.shape[-1] != 2:
        raise ValueError(f"x {x.shape} and grid {grid.shape}: give [B, H, W, C] and [B, ..., 2] with the same B")
    batch, height, width, channels = x.shape
    points = jnp.asarray(grid, jnp.float32).reshape(batch, -1, 2)
    columns = _pixels(points[..., 0], width, align_corners)
    rows = _pixels(points[..., 1], height, align_corners)
    border = padding_mode == "border"
    if border and mode != "bicubic":
        # Bicubic clamps its taps one by one, the others the position, which then has no gradient outside.
        columns, rows = _clamp(columns, width), _clamp(rows, height)
    x_index, x_weight = _taps(columns, width, mode, border)
    y_index, y_weight = _taps(rows, height, mode, border)

    # All taps of a point in one gather: sixteen of them for bicubic compile many times slower.
    index = (y_index[:, None] * width + x_index[None]).reshape(-1, *columns.shape)
    weight = (y_weight[:, None] * x_weight[None]).reshape(-1, *columns.shape)
    pixels = x.reshape(batch, height * width, channels)
    gather = jax.vmap(lambda image, index: jnp.take(image, index, axis=0, mode="clip"), (0, 1), 1)
    out = jnp.sum(gather(pixels, index).astype(jnp.float32) * weight[..., None], axis=0)
    return out.astype(x.dtype).reshape(*grid.shape[:-1], channels)


def _pixels(coordinate: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """Coordinates of -1..1 in pixels, 0 at the centre of the first one."""
    if align_corners:
        return (coordinate + 1) / 2 * (size - 1)
    return ((coordinate + 1) * size - 1) / 2


def _clamp(position: jax.Array, size: int) -> jax.Array:
    """`position` on the image; the gradient is zero from the border pixels' centres on, as in PyTorch."""
    inside = (position > 0) & (position < size - 1)
    limit = jnp.where(position >= size - 1, float(size - 1), 0.0)  # NaN goes to 0
    return jnp.where(inside, position, limit)


def _taps(position: jax.Array, size: int, mode: str, border: bool) -> tuple[jax.Array, jax.Array]:
    """The pixels that count along one axis, as valid indices, and their float32 weights; both [taps, B, P]."""
    # Far outside, nothing counts but the side; this keeps the integers in range and the weights finite.
    position = jnp.where(jnp.isnan(position), -4.0, jnp.clip(position, -4.0, size + 3.0))
    first = jax.lax.stop_gradient(jnp.round(position) if mode == "nearest" else jnp.floor(position))
    offsets = {"nearest": (0,), "bilinear": (0, 1), "bicubic": (-1, 0, 1, 2)}[mode]
    offset = np.array(offsets, np.int32)[:, None, None]
    index = first.astype(jnp.int32) + offset
    distance = position - first - offset
    distance = jnp.where(distance < 0, -distance, distance)  # jnp.abs has no slope at 0, where torch has one
    if mode == "nearest":
        weight = jnp.ones_like(distance)
    elif mode == "bilinear":
        weight = 1 - distance
    else:
        weight = cubic_kernel(distance, -0.75)
    if not border:
        weight = jnp.where((index >= 0) & (index < size), weight, 0.0)
    return jnp.clip(index, 0, size - 1), weight
