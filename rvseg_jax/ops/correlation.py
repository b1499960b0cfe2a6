"""Correlation of two feature maps at several scales, read in windows around moving positions (Teed and Deng 2020).

Level l holds how well each pixel of image 1 fits the pixels of image 2 after l poolings over 2x2. Pooling commutes with
the correlation, so image 2 is pooled and not the pairs. The pairs of a level can be computed once ("all_pairs"), which
takes memory by the square of the number of pixels, or where they are read, each time ("on_demand").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rvseg_jax.core.errors import InputError
from rvseg_jax.parallel import platform

Lookup = Literal["auto", "all_pairs", "on_demand"]
Sampling = Literal["auto", "gather", "matmul"]

# Features that windows of image 2 are gathered into at a time, for a batch's share of one pair.
_BLOCK_BYTES = 2**25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Correlation:
    """What windows are read from.

    Attributes:
      pyramid: of each level all pairs, float32 [B, h * w, h', w'], or the features of image 2, [B, h', w', C].
      features: of image 1, float32 [B, h * w, C], divided by the root of C; None where all pairs are there.
      precision: of the products, as in `jax.lax.Precision`.
    """

    pyramid: tuple[jax.Array, ...]
    features: jax.Array | None
    precision: str | None = field(metadata={"static": True})


def pair_bytes(height: int, width: int, levels: int) -> int:
    """Bytes of all pairs of one pair of feature maps, float32."""
    pixels = height * width
    return 4 * pixels * sum((height >> level) * (width >> level) for level in range(levels))


def correlate(
    features1: jax.Array,
    features2: jax.Array,
    *,
    levels: int,
    lookup: Lookup = "auto",
    max_bytes: int = 2**30,
    precision: str | None = None,
) -> Correlation:
    """The correlation of two feature maps, divided by the root of the number of channels.

    Shapes: features1, features2 [B, h, w, C].

    Args:
      levels: scales; level l is pooled l times, and of an odd side the last row is left out.
      lookup: whether all pairs are computed once, or those that are read each time; "auto" computes all where those
        of one pair of maps take at most `max_bytes`.

    Raises:
      InputError: for maps that differ in shape or are too small for the levels, which need two pixels at the last.
      ValueError: for an unknown lookup.

    Source: `CorrBlock` in torchvision's `models/optical_flow/raft.py`.
    """
    if lookup not in get_args(Lookup):
        raise ValueError(f"unknown lookup {lookup!r}: choose {', '.join(get_args(Lookup))}")
    batch, height, width, channels = features1.shape
    least = 2**levels
    if features1.shape != features2.shape or min(height, width) < least:
        raise InputError(
            f"feature maps {features1.shape} and {features2.shape}: give two of the same shape with both sides of at "
            f"least {least}, for {levels} levels"
        )
    if lookup == "auto":
        lookup = "all_pairs" if pair_bytes(height, width, levels) <= max_bytes else "on_demand"
    features1 = features1.astype(jnp.float32).reshape(batch, height * width, channels) / math.sqrt(channels)
    pyramid = [features2.astype(jnp.float32)]
    for _ in range(levels - 1):
        pyramid.append(_pooled(pyramid[-1]))
    if lookup == "on_demand":
        return Correlation(tuple(pyramid), features1, precision)
    pairs = (jnp.einsum("bpc,bhwc->bphw", features1, maps, precision=precision) for maps in pyramid)
    return Correlation(tuple(pairs), None, precision)


def read_windows(
    correlation: Correlation, positions: jax.Array, *, radius: int, sampling: Sampling = "auto"
) -> jax.Array:
    """Correlations around a position in image 2 for each pixel of image 1, bilinear between pixels, 0 outside.

    Differentiable in the features and in the positions.

    Shapes: positions float32 [B, h, w, 2], (x, y) in pixels of level 0, 0 at the centre of the first ->
    float32 [B, h, w, L * (2 * radius + 1)**2], level by level, in each first by the offset in x and then in y, both
    from -radius to radius in pixels of the level.

    Args:
      sampling: how windows are taken from all pairs: by index, or by products with the bilinear weights, which read
        everything but need no gather; "auto" does that on TPU, whose gathers are slow. On CPU the gather is 9 times
        faster (55x128 pixels, forward).
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"unknown sampling {sampling!r}: choose {', '.join(get_args(Sampling))}")
    batch, height, width, _ = positions.shape
    points = positions.astype(jnp.float32).reshape(batch, height * width, 2)
    if sampling == "auto":
        sampling = "matmul" if platform() == "tpu" else "gather"
    windows = []
    for level, maps in enumerate(correlation.pyramid):
        centres = points / 2**level
        if correlation.features is not None:
            found = _on_demand(correlation.features, maps, centres, radius, correlation.precision)
        elif sampling == "matmul":
            found = _by_weights(maps, centres, radius)
        else:
            found = _by_index(maps, centres, radius)
        windows.append(found.reshape(batch, height, width, -1))
    return jnp.concatenate(windows, axis=-1)


def _pooled(x: jax.Array) -> jax.Array:
    """Means over 2x2. Shapes: [B, H, W, C] -> [B, H // 2, W // 2, C]."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _by_index(pairs: jax.Array, centres: jax.Array, radius: int) -> jax.Array:
    """Shapes: pairs [B, P, h, w], centres [B, P, 2] -> [B, P, side, side]."""
    batch, points, height, width = pairs.shape
    index, inside, fraction = _taps(centres, (height, width), radius)
    taps = jnp.take_along_axis(pairs.reshape(batch, points, -1), index.reshape(batch, points, -1), -1, mode="clip")
    return _between(jnp.where(inside, taps.reshape(index.shape), 0), fraction)


def _by_weights(pairs: jax.Array, centres: jax.Array, radius: int) -> jax.Array:
    """Shapes: pairs [B, P, h, w], centres [B, P, 2] -> [B, P, side, side]."""

    def weights(centre: jax.Array, size: int) -> jax.Array:
        wanted = centre[..., None] + jnp.arange(-radius, radius + 1)
        return jnp.maximum(1 - jnp.abs(wanted[..., None] - jnp.arange(size)), 0)

    columns, rows = weights(centres[..., 0], pairs.shape[3]), weights(centres[..., 1], pairs.shape[2])
    # The weights would be rounded to bfloat16 at less than the highest precision.
    along_x = jnp.einsum("bphw,bpiw->bpih", pairs, columns, precision="highest")
    return jnp.einsum("bpih,bpjh->bpij", along_x, rows, precision="highest")


def _on_demand(
    features1: jax.Array, features2: jax.Array, centres: jax.Array, radius: int, precision: str | None
) -> jax.Array:
    """Shapes: features1 [B, P, C], features2 [B, h, w, C], centres [B, P, 2] -> [B, P, side, side].

    Block after block of the points, in both directions, so that the gathered features of one block are alive.
    """
    batch, points, channels = features1.shape
    maps = features2.reshape(batch, -1, channels)

    def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, places = part
        index, inside, fraction = _taps(places, features2.shape[1:3], radius)
        rows = jnp.take_along_axis(maps, index.reshape(batch, -1, 1), axis=1, mode="clip")
        seen = rows.reshape(batch, -1, (2 * radius + 2) ** 2, channels)
        taps = jnp.einsum("bpc,bpkc->bpk", own, seen, precision=precision).reshape(index.shape)
        return _between(jnp.where(inside, taps, 0), fraction)

    size = min(points, max(1, _BLOCK_BYTES // (4 * channels * (2 * radius + 2) ** 2)))
    count = -(-points // size)

    def blocks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, count * size - points), (0, 0)))
        return jnp.moveaxis(padded.reshape(batch, count, size, -1), 1, 0)

    found = jax.lax.map(jax.checkpoint(block), (blocks(features1), blocks(centres)))
    return jnp.moveaxis(found, 0, 1).reshape(batch, count * size, *found.shape[3:])[:, :points]


def _taps(centres: jax.Array, size: Sequence[int], radius: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pixels that count for windows, by x and then y: flat index, whether it is on the map, fraction of a pixel.

    All entries of a window lie at the same fraction, so that (2 * radius + 2)**2 pixels make all of it.

    Shapes: centres [B, P, 2] -> int32 and bool [B, P, 2 * radius + 2, 2 * radius + 2], float32 [B, P, 2].
    """
    height, width = size
    first = jax.lax.stop_gradient(jnp.floor(centres))
    # Far outside nothing is inside; this keeps the integers in range.
    limit = jnp.array([width + radius, height + radius], jnp.float32)
    whole = jnp.clip(first, -radius - 2, limit).astype(jnp.int32)[..., None] + jnp.arange(-radius, radius + 2)
    x, y = whole[..., 0, :, None], whole[..., 1, None, :]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    return index, inside, centres - first


def _between(taps: jax.Array, fraction: jax.Array) -> jax.Array:
    """Values between pixels. Shapes: taps [B, P, n + 1, n + 1] by x and y, fraction [B, P, 2] -> [B, P, n, n]."""
    x, y = fraction[..., 0, None, None], fraction[..., 1, None, None]
    along_x = taps[..., :-1, :] * (1 - x) + taps[..., 1:, :] * x
    return along_x[..., :-1] * (1 - y) + along_x[..., 1:] * y
