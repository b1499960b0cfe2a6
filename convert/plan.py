"""A table made explicit for one model: which tensor fills which slice of which leaf, proved weightless."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rvseg_jax.convert.rules import (
    Alias,
    Drop,
    OperationError,
    Rule,
    Shape,
    Table,
    TableError,
    fields,
    fill,
    match,
)
from rvseg_jax.core.errors import InputError

SHOWN = 4


class ConversionError(InputError):
    """A checkpoint does not fit the model, or cannot be read or written."""


class Mismatch(ConversionError):
    """Keys or shapes of a checkpoint are not those of the model.

    Attributes:
      count: how many keys are missing, unknown or of wrong shape.
    """

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


@dataclass(frozen=True)
class Move:
    """One use of a rule: whole torch tensors become whole leaves, or one entry of stacked leaves.

    Attributes:
      keys: torch keys.
      key_shapes: their shapes.
      leaves: leaf paths.
      row: index into the stacked leading axes of the leaves; () for a leaf that is filled whole.
    """

    rule: Rule
    keys: tuple[str, ...]
    key_shapes: tuple[Shape, ...]
    leaves: tuple[str, ...]
    row: tuple[int, ...]

    def to_leaves(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the leaves hold at `row`, from the tensors of `keys`."""
        arrays = list(tensors)
        for operation in self.rule.operations:
            arrays = operation.arrays(arrays)
        return arrays

    def to_keys(self, slices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tensors of `keys`, from what the leaves hold at `row`."""
        arrays = list(slices)
        for operation in reversed(self.rule.operations):
            arrays = operation.inverse().arrays(arrays)
        return arrays


@dataclass(frozen=True)
class Plan:
    """A bijection between the entries of torch tensors and the entries of leaves.

    Attributes:
      moves: all of them; every key and every leaf entry is in exactly one.
      leaf_shapes: {leaf path: shape}.
      key_shapes: {torch key: shape} of the tensors that the leaves need.
      by_leaf: {leaf path: [(move, position of the leaf in it)]}.
    """

    moves: tuple[Move, ...]
    leaf_shapes: Mapping[str, Shape]
    key_shapes: Mapping[str, Shape]
    by_leaf: Mapping[str, tuple[tuple[Move, int], ...]]
    drops: tuple[Drop, ...]
    aliases: tuple[Alias, ...]

    def match(self, shapes: Mapping[str, Shape]) -> "Match":
        """Holds the plan against the keys and shapes of a checkpoint.

        Raises:
          Mismatch: one line with the missing, unknown and wrongly shaped keys.
        """
        dropped, repeated, extra = {}, {}, []
        for key in shapes:
            if key in self.key_shapes:
                continue
            drop = next((drop for drop in self.drops if match(drop.source, key) is not None), None)
            canonical = self._canonical(key)
            if drop is not None:
                dropped[key] = drop
            elif canonical is not None:
                repeated[key] = canonical
            else:
                extra.append(key)
        stored = {key: key for key in self.key_shapes if key in shapes}
        for alias, canonical in repeated.items():
            stored.setdefault(canonical, alias)
        missing = [key for key in self.key_shapes if key not in stored]
        wrong = [
            f"{stored[key]} is {tuple(shapes[stored[key]])}, the model wants {want}"
            for key, want in self.key_shapes.items()
            if key in stored and tuple(shapes[stored[key]]) != want
        ]
        wrong += [
            f"{alias} is {tuple(shapes[alias])}, the model wants {self.key_shapes[key]}"
            for alias, key in repeated.items()
            if stored[key] != alias and tuple(shapes[alias]) != self.key_shapes[key]
        ]
        if missing or extra or wrong:
            message = _mismatch(missing, extra, wrong, self.key_shapes, shapes)
            raise Mismatch(message, len(missing) + len(extra) + len(wrong))
        repeats = {alias: key for alias, key in repeated.items() if stored[key] != alias}
        return Match(stored, dropped, repeats)

    def _canonical(self, key: str) -> str | None:
        for alias in self.aliases:
            values = match(alias.source, key)
            if values is not None:
                return fill(alias.of, values)
        return None


@dataclass(frozen=True)
class Match:
    """How a checkpoint's keys take part in a plan.

    Attributes:
      stored: {key of the plan: key of the checkpoint}, different where only an alias is stored.
      dropped: {key of the checkpoint: the drop that names it}.
      repeats: {alias in the checkpoint: key of the plan that it must equal}.
    """

    stored: Mapping[str, str]
    dropped: Mapping[str, Drop]
    repeats: Mapping[str, str]


def compile_table(table: Table, leaf_shapes: Mapping[str, Shape]) -> Plan:
    """The explicit plan of `table` for a model with these leaves.

    Needs no weights: the shapes of the torch tensors follow from those of the leaves, each operation is
    undone on shapes and done again, and every key and every leaf entry must turn up exactly once.

    Args:
      table: rules of the model.
      leaf_shapes: {leaf path: shape} of the model.

    Raises:
      TableError: if the table is no bijection onto these leaves; names the rules, leaves and keys.
    """
    moves = [move for rule in table.rules for move in _moves(rule, leaf_shapes)]
    by_leaf: dict[str, list[tuple[Move, int]]] = defaultdict(list)
    owners: dict[str, Rule] = {}
    key_shapes: dict[str, Shape] = {}
    for move in moves:
        for key, shape in zip(move.keys, move.key_shapes, strict=True):
            if key in key_shapes:
                raise TableError(f"key {key} is used twice: by {owners[key]} and by {move.rule}")
            owners[key], key_shapes[key] = move.rule, shape
        for position, leaf in enumerate(move.leaves):
            by_leaf[leaf].append((move, position))
    for leaf, filled in by_leaf.items():
        if len({move.row for move, _ in filled}) != len(filled):
            raise TableError(f"leaf {leaf} is filled twice: by {' and by '.join(_rules(filled))}")
        if len({move.rule for move, _ in filled}) != 1:
            raise TableError(f"leaf {leaf} is filled by {' and by '.join(_rules(filled))}")
    unfilled = [leaf for leaf in leaf_shapes if leaf not in by_leaf]
    if unfilled:
        raise TableError(f"no rule fills {_some(unfilled)}")
    drops = tuple(entry for entry in table.entries if isinstance(entry, Drop))
    aliases = tuple(entry for entry in table.entries if isinstance(entry, Alias))
    _check_side_entries(drops, aliases, key_shapes)
    return Plan(
        tuple(moves),
        dict(leaf_shapes),
        key_shapes,
        {leaf: tuple(filled) for leaf, filled in by_leaf.items()},
        drops,
        aliases,
    )


def _moves(rule: Rule, leaf_shapes: Mapping[str, Shape]) -> list[Move]:
    first = rule.targets[0]
    if fields(first):
        bindings = [found for leaf in leaf_shapes if (found := match(first, leaf)) is not None]
    else:
        bindings = [{}] if first in leaf_shapes else []
    if not bindings:
        near = difflib.get_close_matches(first, leaf_shapes, 1)
        raise TableError(f"{rule}: the model has no leaf {first}" + (f", but {near[0]}" if near else ""))
    return [move for binding in bindings for move in _bound_moves(rule, binding, leaf_shapes)]


def _bound_moves(rule: Rule, binding: Mapping[str, int], leaf_shapes: Mapping[str, Shape]) -> list[Move]:
    leaves = tuple(fill(target, binding) for target in rule.targets)
    absent = [leaf for leaf in leaves if leaf not in leaf_shapes]
    if absent:
        raise TableError(f"{rule}: the model has no leaf {absent[0]}")
    depth = len(rule.stacked)
    counts = {leaf_shapes[leaf][:depth] for leaf in leaves}
    if len(counts) != 1 or any(len(leaf_shapes[leaf]) < depth for leaf in leaves):
        shapes = [leaf_shapes[leaf] for leaf in leaves]
        raise TableError(f"{rule}: leaves of shapes {shapes} have no common {depth} leading axes to stack on")
    key_shapes = _torch_shapes(rule, [leaf_shapes[leaf][depth:] for leaf in leaves])
    moves = []
    for row in np.ndindex(*counts.pop()):
        values = {**binding, **dict(zip(rule.stacked, row, strict=True))}
        keys = tuple(fill(source, values) for source in rule.sources)
        moves.append(Move(rule, keys, key_shapes, leaves, row))
    return moves


def _torch_shapes(rule: Rule, leaf_shapes: list[Shape]) -> tuple[Shape, ...]:
    """Undoes the operations of a rule on shapes, and proves that doing them leads back."""
    try:
        shapes = list(leaf_shapes)
        for operation in reversed(rule.operations):
            shapes = operation.inverse().shapes(shapes)
        forward = torch_shapes = shapes
        for operation in rule.operations:
            forward = operation.shapes(forward)
    except OperationError as error:
        raise TableError(f"{rule}: {error} (leaf shapes {leaf_shapes})") from None
    if forward != leaf_shapes or len(torch_shapes) != len(rule.sources):
        raise TableError(
            f"{rule}: {len(torch_shapes)} tensors of shapes {torch_shapes} lead to {forward}, not to {leaf_shapes}"
        )
    return tuple(torch_shapes)


def _check_side_entries(drops: Sequence[Drop], aliases: Sequence[Alias], key_shapes: Mapping[str, Shape]) -> None:
    for entry in (*drops, *aliases):
        used = next((key for key in key_shapes if match(entry.source, key) is not None), None)
        if used is not None:
            raise TableError(f"key {used} is both read by a rule and named by {entry}")
    for alias in aliases:
        if not any(match(alias.of, key) is not None for key in key_shapes):
            raise TableError(f"{alias}: no rule reads {alias.of}")


def _rules(filled: Iterable[tuple[Move, int]]) -> list[str]:
    return list(dict.fromkeys(str(move.rule) for move, _ in filled))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _mismatch(
    missing: Sequence[str],
    extra: Sequence[str],
    wrong: Sequence[str],
    wanted: Mapping[str, Shape],
    present: Mapping[str, Shape],
) -> str:
    if len(missing) == len(wanted):
        return (
            f"none of the {len(wanted)} keys that the model needs is there: "
            f"it wants {_some(missing)}; the checkpoint has {_some(list(present)) or 'no tensors'}"
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some([_near(key, extra) for key in missing[:SHOWN]])}")
        parts[-1] += f" and {len(missing) - SHOWN} more)" if len(missing) > SHOWN else ")"
    if extra:
        known = missing or list(wanted)
        parts.append(f"{len(extra)} unknown ({_some([_near(key, known) for key in extra[:SHOWN]])}")
        parts[-1] += f" and {len(extra) - SHOWN} more)" if len(extra) > SHOWN else ")"
    if wrong:
        parts.append(f"{len(wrong)} of wrong shape ({'; '.join(wrong[:SHOWN])}")
        parts[-1] += f" and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ")"
    return "the checkpoint does not fit the model: " + "; ".join(parts)


def _near(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others, 1, 0.8)
    return f"{name}, perhaps {near[0]}" if near else name
