"""Which keys a query may see, as structure and not as a [Tq, Tk] array.

A back end asks a mask for one block of positions at a time, so only `Dense` ever holds a quadratic array.
Masks are pytrees: they pass through `jax.jit`, `jax.lax.scan` and `jax.checkpoint`. Two masks join by `&`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Span(NamedTuple):
    """`size` consecutive positions from `start` on, which may be a traced integer."""

    start: jax.Array | int
    size: int

    def positions(self) -> jax.Array:
        """The positions, int32 [size]."""
        return self.start + jnp.arange(self.size, dtype=jnp.int32)

    def moved(self, by: jax.Array | int) -> "Span":
        """The span as many positions further on."""
        return Span(self.start + by, self.size)

    def of(self, array: jax.Array, axis: int) -> jax.Array:
        """The slice of `array` at these positions; an axis of length 1 broadcasts and is kept."""
        if array.shape[axis] == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, self.start, self.size, axis)


def pad_to(array: jax.Array, axis: int, length: int, value: float | int | bool = 0) -> jax.Array:
    """`array` with `value` appended along `axis` up to `length`; an axis of length 1 broadcasts and is kept."""
    if array.shape[axis] in (1, length):
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return jnp.pad(array, widths, constant_values=value)


class Mask:
    """Base of the mask specifications; `Full` is the neutral one."""

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        """Raises ValueError if the mask's arrays do not fit attention of these sizes."""

    def padded(self, q_len: int, kv_len: int) -> "Mask":
        """The mask with its arrays extended to these lengths, so that every block is a full slice."""
        return self

    def keep(self, rows: Span, columns: Span) -> jax.Array | None:
        """Bool, broadcastable to [B, N, rows, columns], True where the query may see the key; None: all True."""
        return None

    def touches(self, rows: Span, columns: Span) -> jax.Array | None:
        """Bool scalar, False if the block is known to be empty and may be skipped; None: not known."""
        return None

    def __and__(self, other: "Mask") -> "Mask":
        return Both(self, other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Causal(Mask):
    """Query i sees keys 0..i+offset.

    Attributes:
      offset: position of the first query among the keys, an integer or int [] or [B]; with a key-value
        cache of n tokens before the queries it is n.
    """

    offset: jax.Array | int = 0

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        if jnp.shape(self.offset) not in ((), (batch,)):
            raise ValueError(f"Causal.offset has shape {jnp.shape(self.offset)}: give a scalar or [{batch}]")

    def keep(self, rows: Span, columns: Span) -> jax.Array:
        last = jnp.reshape(self.offset, (-1, 1, 1, 1)) + rows.positions()[:, None]
        return columns.positions() <= last

    def touches(self, rows: Span, columns: Span) -> jax.Array:
        return columns.start <= jnp.max(jnp.asarray(self.offset)) + rows.start + rows.size - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window(Mask):
    """Query i sees keys i-left..i+right; None leaves that side open.

    Attributes:
      left, right: number of keys on each side, 0 or more.
    """

    left: int | None = field(metadata={"static": True})
    right: int | None = field(metadata={"static": True})

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        for name, value in (("left", self.left), ("right", self.right)):
            if value is not None and value < 0:
                raise ValueError(f"Window.{name} is {value}: give a number of keys of 0 or more, or None")

    def keep(self, rows: Span, columns: Span) -> jax.Array | None:
        distance = columns.positions() - rows.positions()[:, None]
        sides = []
        if self.left is not None:
            sides.append(distance >= -self.left)
        if self.right is not None:
            sides.append(distance <= self.right)
        return _all(*(side[None, None] for side in sides))

    def touches(self, rows: Span, columns: Span) -> jax.Array | None:
        sides: list[jax.Array | bool] = []
        if self.left is not None:
            sides.append(columns.start + columns.size - 1 >= rows.start - self.left)
        if self.right is not None:
            sides.append(columns.start <= rows.start + rows.size - 1 + self.right)
        return _all(*sides)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lengths(Mask):
    """Sample b sees its first `lengths[b]` keys; queries are not masked.

    Attributes:
      lengths: int [B].
    """

    lengths: jax.Array

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        if jnp.shape(self.lengths) != (batch,):
            raise ValueError(
                f"Lengths.lengths has shape {jnp.shape(self.lengths)}: give one length a sample, [{batch}]"
            )

    def keep(self, rows: Span, columns: Span) -> jax.Array:
        return columns.positions() < jnp.asarray(self.lengths)[:, None, None, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segments(Mask):
    """A query sees the keys of its own segment: packed sequences, or windows of an image.

    Attributes:
      q: int [B, Tq], segment of each query.
      kv: int [B, Tk], segment of each key. A negative id belongs to no segment: such a query sees
        nothing and gives zeros, such a key is not seen.
    """

    q: jax.Array
    kv: jax.Array

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        for name, ids, length in (("q", self.q, q_len), ("kv", self.kv, kv_len)):
            if jnp.shape(ids) != (batch, length):
                raise ValueError(f"Segments.{name} has shape {jnp.shape(ids)}: give [{batch}, {length}]")

    def padded(self, q_len: int, kv_len: int) -> "Segments":
        return Segments(pad_to(self.q, 1, q_len, -1), pad_to(self.kv, 1, kv_len, -1))

    def keep(self, rows: Span, columns: Span) -> jax.Array:
        q, kv = rows.of(self.q, 1)[:, None, :, None], columns.of(self.kv, 1)[:, None, None, :]
        return (q == kv) & (q >= 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Mask):
    """Any pattern, at the cost of its array.

    Attributes:
      array: bool, broadcastable to [B, N, Tq, Tk] with all four axes there, True keeps.
    """

    array: jax.Array

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        if self.array.dtype != jnp.bool_:
            raise ValueError(f"Dense.array is {self.array.dtype}: give bool (True keeps), and additive values as bias")
        check_broadcast("Dense.array", self.array.shape, (batch, heads, q_len, kv_len))

    def padded(self, q_len: int, kv_len: int) -> "Dense":
        return Dense(pad_to(pad_to(self.array, 2, q_len), 3, kv_len))

    def keep(self, rows: Span, columns: Span) -> jax.Array:
        return columns.of(rows.of(self.array, 2), 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Both(Mask):
    """A key is seen where both masks let it; written `first & second`."""

    first: Mask
    second: Mask

    def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
        self.first.check(batch, heads, q_len, kv_len)
        self.second.check(batch, heads, q_len, kv_len)

    def padded(self, q_len: int, kv_len: int) -> "Both":
        return Both(self.first.padded(q_len, kv_len), self.second.padded(q_len, kv_len))

    def keep(self, rows: Span, columns: Span) -> jax.Array | None:
        return _all(self.first.keep(rows, columns), self.second.keep(rows, columns))

    def touches(self, rows: Span, columns: Span) -> jax.Array | None:
        return _all(self.first.touches(rows, columns), self.second.touches(rows, columns))


def check_broadcast(name: str, shape: tuple[int, ...], target: tuple[int, int, int, int]) -> None:
    """Raises ValueError unless `shape` has four axes, each as in `target` or 1."""
    if len(shape) != 4 or any(have not in (1, want) for have, want in zip(shape, target, strict=True)):
        raise ValueError(f"{name} has shape {shape}: give [B, N, Tq, Tk] = {target} with 1 where it broadcasts")


def _all(*conditions: jax.Array | bool | None) -> jax.Array | None:
    """The conjunction; None stands for True."""
    known = [condition for condition in conditions if condition is not None]
    if not known:
        return None
    result = jnp.asarray(known[0])
    for condition in known[1:]:
        result = result & condition
    return result
