"""Attention by JAX's splash kernel for TPUs, which never writes scores to memory.

The kernel wants lengths in whole blocks of 128 and more, masks as ranges of positions and segment numbers, and
all of a call on one device. Lengths are padded here, with numbers that no token has on the padding; on a mesh
each device runs the kernel on its own samples, heads and, where positions do not matter, queries.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from rvseg_jax.ops.attention.forms import Form, arrays_of, form_of
from rvseg_jax.ops.attention.masks import Mask, Span
from rvseg_jax.ops.attention.shards import KV, Q, layout, on_shards

MASKS = ("Causal", "Window", "Lengths", "Segments")
LANES = 128
# Numbers of tokens that belong to no segment: neither equals the other, nor any number of a segment.
_NO_QUERY, _NO_KEY = -1, -2


@dataclass(frozen=True)
class SplashBlocks:
    """Largest tiles of the kernel, in tokens; multiples of 128.

    Larger ones use the matrix units better until VMEM overflows; the backward pass holds more arrays at once,
    so its tiles have fields of their own. A length is padded to whole forward tiles, which are evened out (600
    tokens make two of 384); a backward tile is the largest divisor of that length within its bound.

    Attributes:
      q, kv: queries and keys of a forward tile.
      backward_q, backward_kv: of a backward tile, for the cotangents of q and of k and v alike.
    """

    q: int = 512
    kv: int = 512
    backward_q: int = 512
    backward_kv: int = 512

    def __post_init__(self) -> None:
        for name in ("q", "kv", "backward_q", "backward_kv"):
            if (value := getattr(self, name)) < LANES or value % LANES:
                raise ValueError(f"SplashBlocks.{name} is {value}: give a multiple of {LANES}")

    def sizes(self, q_len: int, kv_len: int) -> tuple[kernels.BlockSizes, int, int]:
        """The kernel's tiles for these lengths, and the lengths with padding."""
        q, q_padded = _even_tile(q_len, self.q)
        kv, kv_padded = _even_tile(kv_len, self.kv)
        back_q, back_kv = _divisor(q_padded, self.backward_q), _divisor(kv_padded, self.backward_kv)
        sizes = kernels.BlockSizes(
            block_q=q,
            block_kv=kv,
            block_kv_compute=kv,
            block_q_dkv=back_q,
            block_kv_dkv=back_kv,
            block_kv_dkv_compute=back_kv,
            block_q_dq=back_q,
            block_kv_dq=back_kv,
        )
        return sizes, q_padded, kv_padded


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    precision: str | None,
    *,
    sizes: SplashBlocks = SplashBlocks(),
    interpret: bool = False,
) -> jax.Array:
    """Attention by the splash kernel, with its own backward kernels.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, Hv] -> [B, Tq, N, Hv]; bias must be None.

    Args:
      sizes: largest tiles.
      interpret: runs the kernel's program as plain JAX on any platform, for tests.
    """
    del bias, precision
    form, arrays = form_of(mask), arrays_of(mask)
    axes = layout(q, k, queries=form.left is None and form.right is None, keys=False)
    local = partial(_local, form=form, scale=scale, sizes=sizes, interpret=interpret)
    segments = arrays.segments
    extra = (arrays.lengths, *((None, None) if segments is None else (segments.q, segments.kv)))
    extra_names = (("batch",), ("batch", "queries"), ("batch", "keys"))
    given = [(array, names) for array, names in zip(extra, extra_names, strict=True) if array is not None]
    present = tuple(array is not None for array in extra)
    run = lambda q, k, v, *rest: local(q, k, v, _restored(rest, present))  # noqa: E731
    return on_shards(run, (q, k, v, *(a for a, _ in given)), (Q, KV, KV, *(n for _, n in given)), Q, axes)


def cannot(problem: Any) -> str | None:
    """Why the kernel cannot compute a `Problem`; None where it can."""
    if problem.platform != "tpu":
        return f"it runs on TPU, not on {problem.platform}"
    if problem.bias:
        return "the kernel has no additive bias"
    if problem.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it knows bfloat16 and float32, not {jnp.dtype(problem.dtype).name}"
    if problem.precision is not None:
        return f"it has no matrix products of precision {problem.precision!r}"
    form: Form = problem.form
    if reason := form.others(*MASKS):
        return reason
    if "Segments" in form.names and (form.left is not None or form.right is not None):
        return "it does not know which queries see nothing where segments and ranges of positions are joined"
    return None


def _restored(rest: tuple[jax.Array, ...], present: tuple[bool, ...]) -> list[jax.Array | None]:
    """`rest` with None at the places of absent arrays."""
    given = iter(rest)
    return [next(given) if there else None for there in present]


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    extra: list[jax.Array | None],
    *,
    form: Form,
    scale: float,
    sizes: SplashBlocks,
    interpret: bool,
) -> jax.Array:
    """One device's part of a call."""
    lengths, q_ids, kv_ids = extra
    (batch, q_len, heads, _), kv_len = q.shape, k.shape[1]
    tiles, q_padded, kv_padded = sizes.sizes(q_len, kv_len)
    sees, numbers = _numbers(form, lengths, q_ids, kv_ids, (batch, q_len, kv_len), q_padded, kv_padded)
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([_kernel_mask(form, (q_padded, kv_padded))] * heads),
        block_sizes=tiles,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q = q * jnp.asarray(scale, q.dtype)
    q, k, v = (
        _padded(x, length).transpose(0, 2, 1, 3) for x, length in ((q, q_padded), (k, kv_padded), (v, kv_padded))
    )
    out = jax.vmap(kernel)(q, k, v, numbers)
    out = out.transpose(0, 2, 1, 3)[:, :q_len]
    # For a query that sees nothing the kernel gives a mean of all values.
    return out if sees is None else jnp.where(sees[:, :, None, None], out, 0)


def _numbers(
    form: Form,
    lengths: jax.Array | None,
    q_ids: jax.Array | None,
    kv_ids: jax.Array | None,
    sizes: tuple[int, int, int],
    q_padded: int,
    kv_padded: int,
) -> tuple[jax.Array | None, kernels.SegmentIds | None]:
    """Bool [B, Tq], which queries see something (None: all), and the kernel's segment numbers (None: no need)."""
    batch, q_len, kv_len = sizes
    within = form.sees(q_len, kv_len)
    sees = None if np.all(within) else jnp.asarray(within)[None]
    if lengths is None and q_ids is None and kv_padded == kv_len:
        return sees, None
    q_numbers = jnp.zeros((batch, q_len), jnp.int32) if q_ids is None else jnp.maximum(q_ids, _NO_QUERY)
    kv_numbers = jnp.zeros((batch, kv_len), jnp.int32) if kv_ids is None else jnp.where(kv_ids < 0, _NO_KEY, kv_ids)
    if lengths is not None:
        kv_numbers = jnp.where(Span(0, kv_len).positions() < lengths[:, None], kv_numbers, _NO_KEY)
        first = 0 if form.left is None else np.maximum(np.arange(q_len) - form.left, 0)
        sees = (first < lengths[:, None]) & within
    if q_ids is not None:
        sees = jax.vmap(_contains)(jnp.sort(kv_numbers, axis=1), q_numbers)
    numbers = kernels.SegmentIds(
        _padded(q_numbers.astype(jnp.int32), q_padded, _NO_QUERY),
        _padded(kv_numbers.astype(jnp.int32), kv_padded, _NO_KEY),
    )
    return sees, numbers


def _padded(array: jax.Array, length: int, value: int = 0) -> jax.Array:
    """`array` [B, T, ...] with `value` appended up to `length` tokens; one token is no broadcast here."""
    widths = [(0, length - size if axis == 1 else 0) for axis, size in enumerate(array.shape)]
    return jnp.pad(array, widths, constant_values=value)


def _contains(ordered: jax.Array, wanted: jax.Array) -> jax.Array:
    """Whether each of `wanted` [Tq] is among `ordered` [Tk]."""
    places = jnp.minimum(jnp.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[places] == wanted


def _kernel_mask(form: Form, shape: tuple[int, int]) -> Any:
    if form.left is None and form.right is None:
        return kernels.FullMask(shape)
    if form.left is None and form.right is not None:
        return kernels.CausalMask(shape, offset=form.right)
    return kernels.LocalMask(shape, (form.left, form.right), offset=0)


def _even_tile(length: int, limit: int) -> tuple[int, int]:
    """The tile, and the length with padding, that cut `length` into the fewest tiles of at most `limit`."""
    tiles = math.ceil(length / limit)
    tile = math.ceil(length / tiles / LANES) * LANES
    return tile, tile * math.ceil(length / tile)


def _divisor(length: int, limit: int) -> int:
    """The largest tile of at most `limit` that divides a padded length."""
    return next(tile for tile in range(min(limit, length), 0, -LANES) if length % tile == 0)
