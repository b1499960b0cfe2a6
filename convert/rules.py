"""The rule language of conversion tables: torch key patterns, parameter paths and invertible operations.

A table is a list of rules. A rule says where a torch tensor goes and how its axes move on the way:

    Rule("blocks.{layer}.attn1.to_q.weight", "blocks/attn1/to_q/kernel", linear())
    Rule("decoder.up.{i}.conv.weight", "decoder/up/{i}/conv/kernel", conv())
    Rule("blocks.{layer}.qkv.weight", ("blocks/q/kernel", "blocks/k/kernel", "blocks/v/kernel"),
         split(0, 3), linear())

`{name}` stands for an integer. A placeholder that the target repeats is copied into the path. One that the
target lacks is stacked: layer 0, 1, ... of the source are the entries of a new leading axis of the leaf
(several such placeholders make several leading axes, in the order in which the source names them).

Operations act on what one layer holds and are written in the direction torch -> leaf. Every one is undone
exactly from the shapes of the leaves alone, so one table loads a checkpoint and writes it back.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]
FIELD = re.compile(r"\{(\w+)\}")


class TableError(ValueError):
    """A conversion table is wrong in itself, or does not belong to the model."""


class OperationError(ValueError):
    """An operation cannot act on an array of this shape."""


class Operation(Protocol):
    """A bijection between the entries of some arrays and the entries of some others."""

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """Shapes of the results, given those of the inputs; `OperationError` if it cannot act on them."""
        ...

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Results, as views of the inputs where that is possible."""
        ...

    def inverse(self) -> "Operation":
        """The operation that undoes this one."""
        ...


@dataclass(frozen=True)
class Transpose:
    """Axes in another order; see `transpose`."""

    axes: tuple[int, ...]

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [tuple(shape[axis] for axis in self._axes(len(shape))) for shape in shapes]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array.transpose(self._axes(array.ndim)) for array in arrays]

    def inverse(self) -> "Transpose":
        return Transpose(tuple(int(axis) for axis in np.argsort(self.axes)))

    def _axes(self, rank: int) -> tuple[int, ...]:
        if rank != len(self.axes):
            raise OperationError(f"transpose{self.axes} wants {len(self.axes)} axes, not {rank}")
        return self.axes


@dataclass(frozen=True)
class Kernel:
    """Channel axes from the front to the back or the reverse, for any number of spatial axes.

    Attributes:
      swap: whether the two channel axes change places on the way.
      to_back: True for torch -> leaf.
    """

    swap: bool
    to_back: bool = True

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [tuple(shape[axis] for axis in self._axes(len(shape))) for shape in shapes]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array.transpose(self._axes(array.ndim)) for array in arrays]

    def inverse(self) -> "Kernel":
        return Kernel(self.swap, not self.to_back)

    def _axes(self, rank: int) -> tuple[int, ...]:
        if rank < 3:
            raise OperationError(f"a convolution kernel has at least 3 axes, not {rank}")
        axes = (*range(2, rank), *((1, 0) if self.swap else (0, 1)))
        return axes if self.to_back else tuple(int(axis) for axis in np.argsort(axes))


@dataclass(frozen=True)
class Reshape:
    """Another shape with the entries in the same (row-major) order; see `reshape`."""

    torch: Shape
    leaf: Shape

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [self._result(shape) for shape in shapes]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array.reshape(self._result(array.shape)) for array in arrays]

    def inverse(self) -> "Reshape":
        return Reshape(self.leaf, self.torch)

    def _result(self, shape: Shape) -> Shape:
        fits = len(shape) == len(self.torch) and all(
            want in (-1, size) for want, size in zip(self.torch, shape, strict=True)
        )
        known = math.prod(size for size in self.leaf if size != -1)
        size = math.prod(shape)
        if not fits or (size % known if -1 in self.leaf else size != known):
            raise OperationError(f"cannot reshape {shape} by {self.torch} -> {self.leaf}")
        return tuple(size // known if want == -1 else want for want in self.leaf)


@dataclass(frozen=True)
class Split:
    """One array in pieces along an axis; see `split`."""

    axis: int
    parts: int | tuple[int, ...]

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        (shape,) = _count(shapes, 1, "split")
        sizes = self._sizes(shape)
        return [(*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in sizes]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        (array,) = arrays
        bounds = np.cumsum(self._sizes(array.shape))[:-1]
        return np.split(array, [int(bound) for bound in bounds], axis=self.axis)

    def inverse(self) -> "Concat":
        return Concat(self.axis, self.parts)

    def _sizes(self, shape: Shape) -> tuple[int, ...]:
        if self.axis >= len(shape):
            raise OperationError(f"split along axis {self.axis} of a tensor of shape {shape}")
        total = shape[self.axis]
        if isinstance(self.parts, int):
            if total % self.parts:
                raise OperationError(f"axis {self.axis} of {shape} does not divide into {self.parts} parts")
            return (total // self.parts,) * self.parts
        if sum(self.parts) != total:
            raise OperationError(f"parts {self.parts} do not add up to axis {self.axis} of {shape}")
        return self.parts


@dataclass(frozen=True)
class Concat:
    """Several arrays end to end along an axis; see `concat`."""

    axis: int
    parts: int | tuple[int, ...]

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        count = self.parts if isinstance(self.parts, int) else len(self.parts)
        _count(shapes, count, "concat")
        if self.axis >= len(shapes[0]):
            raise OperationError(f"concat along axis {self.axis} of tensors of shape {shapes[0]}")
        sizes = tuple(shape[self.axis] for shape in shapes)
        wanted = (sizes[0],) * count if isinstance(self.parts, int) else self.parts
        around = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes}
        if sizes != wanted or len(around) > 1:
            raise OperationError(f"cannot concat {shapes} along axis {self.axis} with parts {self.parts}")
        first = shapes[0]
        return [(*first[: self.axis], sum(sizes), *first[self.axis + 1 :])]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate(arrays, axis=self.axis)]

    def inverse(self) -> Split:
        return Split(self.axis, self.parts)


@dataclass(frozen=True)
class Stack:
    """Several arrays of one shape on a new leading axis; see `stack`."""

    count: int

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        _count(shapes, self.count, "stack")
        if len(set(shapes)) > 1:
            raise OperationError(f"cannot stack tensors of shapes {shapes}")
        return [(self.count, *shapes[0])]

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.stack(arrays)]

    def inverse(self) -> "Unstack":
        return Unstack(self.count)


@dataclass(frozen=True)
class Unstack:
    """The entries of a leading axis, one by one; the inverse of `Stack`."""

    count: int

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        (shape,) = _count(shapes, 1, "unstack")
        if not shape or shape[0] != self.count:
            raise OperationError(f"cannot take {self.count} entries from a tensor of shape {shape}")
        return [shape[1:]] * self.count

    def arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(arrays[0])

    def inverse(self) -> Stack:
        return Stack(self.count)


def _count(shapes: list[Shape], wanted: int, name: str) -> list[Shape]:
    if len(shapes) != wanted:
        raise OperationError(f"{name} wants {wanted} tensors, not {len(shapes)}")
    return shapes


def transpose(*axes: int) -> Transpose:
    """Axes in another order: axis i of the result is axis `axes[i]` of the torch tensor."""
    if sorted(axes) != list(range(len(axes))):
        raise TableError(f"transpose{axes} is no permutation of the axes")
    return Transpose(axes)


def linear() -> Transpose:
    """Weight of a linear layer: torch [out, in] -> kernel [in, out]."""
    return Transpose((1, 0))


def conv() -> Kernel:
    """Weight of a convolution: torch [out, in, *window] -> kernel [*window, in, out]."""
    return Kernel(swap=True)


def deconv() -> Kernel:
    """Weight of a transposed convolution: torch [in, out, *window] -> kernel [*window, out, in].

    That is the layout which `jax.lax.conv_transpose(..., transpose_kernel=True)` takes; the window is not
    flipped.
    """
    return Kernel(swap=True)


def reshape(torch: Iterable[int], leaf: Iterable[int]) -> Reshape:
    """Another shape: torch shape `torch` -> leaf shape `leaf`, each with at most one -1 (any size).

    Both are given because the way back needs the first: `reshape((-1, 1, 1, 1), (-1,))`.
    """
    operation = Reshape(tuple(torch), tuple(leaf))
    for shape in (operation.torch, operation.leaf):
        if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
            raise TableError(f"reshape to {shape}: sizes are positive, with at most one -1")
    return operation


def split(axis: int, parts: int | Iterable[int]) -> Split:
    """One torch tensor in pieces along `axis`: `parts` equal ones, or pieces of the given sizes.

    The rule names one target for each piece; operations that follow act on every piece.
    """
    return Split(axis, parts if isinstance(parts, int) else tuple(parts))


def concat(axis: int, parts: int | Iterable[int]) -> Concat:
    """Several torch tensors end to end along `axis`: `parts` of equal length, or of the given lengths."""
    return Concat(axis, parts if isinstance(parts, int) else tuple(parts))


def stack(count: int) -> Stack:
    """`count` torch tensors, named one by one in the rule, on a new leading axis."""
    return Stack(count)


@dataclass(frozen=True, init=False)
class Rule:
    """Torch keys `sources` become the leaves `targets` by `operations`, one after the other.

    Attributes:
      sources: key patterns; more than one where `concat` or `stack` joins them.
      targets: path patterns; more than one where `split` parts them.
      operations: applied in the direction torch -> leaf; none leaves the tensor as it is.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...]

    def __init__(self, source: str | tuple[str, ...], target: str | tuple[str, ...], *operations: Operation) -> None:
        object.__setattr__(self, "sources", (source,) if isinstance(source, str) else tuple(source))
        object.__setattr__(self, "targets", (target,) if isinstance(target, str) else tuple(target))
        object.__setattr__(self, "operations", operations)
        for patterns in (self.sources, self.targets):
            if len({frozenset(fields(pattern)) for pattern in patterns}) != 1:
                raise TableError(f"{self}: all patterns on one side need the same placeholders")
        unknown = set(fields(self.targets[0])) - set(fields(self.sources[0]))
        if unknown:
            raise TableError(f"{self}: the source has no placeholder {', '.join(sorted(unknown))}")

    @property
    def stacked(self) -> tuple[str, ...]:
        """Placeholders that become leading axes of the leaf, outermost first."""
        copied = fields(self.targets[0])
        return tuple(name for name in fields(self.sources[0]) if name not in copied)

    def __str__(self) -> str:
        return f"rule {' + '.join(self.sources)} -> {', '.join(self.targets)}"


@dataclass(frozen=True)
class Drop:
    """A torch key that no leaf takes.

    Attributes:
      source: key pattern with placeholders; the key may be absent.
      reason: why nothing is lost without it.
      keep: False if the model recomputes the tensor; True if it is stored beside the manifest, so that
        `export` writes it back.
    """

    source: str
    reason: str
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.reason:
            raise TableError(f"drop of {self.source}: say why nothing is lost")


@dataclass(frozen=True)
class Alias:
    """A torch key that repeats another one (a tied weight); equality is checked when both are there.

    Attributes:
      source: key pattern; it may be absent, and stands in where only it is stored.
      of: pattern of the key that a rule reads.
    """

    source: str
    of: str


Entry = Rule | Drop | Alias


@dataclass(frozen=True)
class Table:
    """The rules of a part or a system.

    Attributes:
      entries: rules, drops and aliases; their order carries no meaning.
    """

    entries: tuple[Entry, ...]

    def __init__(self, entries: Iterable[Entry]) -> None:
        object.__setattr__(self, "entries", tuple(entries))

    def __add__(self, other: "Table") -> "Table":
        return Table(self.entries + other.entries)

    def under(self, source_prefix: str = "", target_prefix: str = "") -> "Table":
        """The same table for a part that lies deeper: both prefixes are put in front as they stand.

        `table.under("vae.", "vae/")` maps `vae.conv.weight` to `vae/conv/kernel`.
        """
        return Table(_prefixed(entry, source_prefix, target_prefix) for entry in self.entries)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The entries that fill leaves."""
        return tuple(entry for entry in self.entries if isinstance(entry, Rule))


def _prefixed(entry: Entry, source: str, target: str) -> Entry:
    if isinstance(entry, Drop):
        return Drop(source + entry.source, entry.reason, entry.keep)
    if isinstance(entry, Alias):
        return Alias(source + entry.source, source + entry.of)
    return Rule(
        tuple(source + pattern for pattern in entry.sources),
        tuple(target + pattern for pattern in entry.targets),
        *entry.operations,
    )


def fields(pattern: str) -> tuple[str, ...]:
    """Names of the placeholders of a pattern, in order."""
    return tuple(FIELD.findall(pattern))


def fill(pattern: str, values: Mapping[str, int]) -> str:
    """The pattern with its placeholders replaced by integers."""
    return FIELD.sub(lambda match: str(values[match.group(1)]), pattern)


def match(pattern: str, name: str) -> dict[str, int] | None:
    """Values of the placeholders if `name` fits the pattern, else None."""
    parts = FIELD.split(pattern)
    expression = "".join(f"(?P<{part}>0|[1-9][0-9]*)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    found = re.fullmatch(expression, name)
    return {key: int(value) for key, value in found.groupdict().items()} if found else None
