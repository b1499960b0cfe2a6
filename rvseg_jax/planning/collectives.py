"""Bytes that a compiled program sends between devices, read from its HLO text."""

import math
import re
from dataclasses import dataclass

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|branch_computations)=\{?([^,\s{}]+(?:, %[\w.\-]+)*)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Collective:
    """All operations of one kind in a step.

    Attributes:
      count: how often they run.
      bytes: that a device sends, if each runs in a ring of the devices that take part.
    """

    count: int = 0
    bytes: int = 0


def collectives(text: str) -> dict[str, Collective]:
    """Kind to count and bytes of a compiled module, with the bodies of loops as often as they run.

    One asynchronous operation that TPUs carry through several fusions has one channel number and counts once.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry)
    found: dict[str, Collective] = {}
    seen: set[str] = set()
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None or not runs.get(name):
                continue
            channel = _CHANNEL.search(line)
            if channel and channel[1] in seen:
                continue
            if channel:
                seen.add(channel[1])
            kind = match[2]
            size = _sent(kind, match[1], started=bool(match[3]), line=line)
            before = found.get(kind, Collective())
            found[kind] = Collective(before.count + runs[name], before.bytes + round(size * runs[name]))
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[1]
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current is not None:
            computations[current].append(line)
    return computations, entry


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in a step; of a conditional every branch counts."""
    runs = {entry: 1}
    waiting = [entry]
    while waiting:
        caller = waiting.pop()
        for line in computations.get(caller, ()):
            called = [(name.strip().lstrip("%"), 1) for group in _CALLED.findall(line) for name in group.split(",")]
            if match := _WHILE.search(line):
                called.append((match[2], _trips(computations.get(match[1], []), line)))
            for name, times in called:
                if name in computations and runs.get(name, 0) < runs[caller] * times:
                    runs[name] = runs[caller] * times
                    waiting.append(name)
    return runs


def _trips(condition: list[str], line: str) -> int:
    """Runs of a loop: what the compiler says, else the bound that its counter is compared with."""
    if known := re.search(r'known_trip_count"?:?\{?"?n"?:?"?(\d+)', line.replace("=", ":")):
        return int(known[1])
    bounds = [int(value) for text in condition for value in re.findall(r"s32\[\][^=]*constant\((\d+)\)", text)]
    return max(bounds, default=1)


def _sent(kind: str, shapes: str, *, started: bool, line: str) -> float:
    """Bytes that a device sends for one operation in a ring."""
    arrays = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(shapes)]
    if kind == "collective-permute":
        return arrays[0]
    size = _group_size(line)
    # A started operation has operands and results in its type.
    whole = max(arrays, default=0.0) if started else sum(arrays)
    share = (size - 1) / size
    return {
        "all-gather": whole * share,
        "all-reduce": 2 * whole * share,
        "reduce-scatter": whole * size * share if not started else whole * share,
        "all-to-all": whole * share,
    }[kind]


def _bytes(dtype: str, dims: str) -> float:
    width = _ITEM_BYTES.get(dtype)
    if width is None:
        bits = re.search(r"\d+", dtype)
        width = int(bits[0]) / 8 if bits else 1
    return width * math.prod(int(size) for size in dims.split(",") if size)


def _group_size(line: str) -> int:
    """Devices that take part in one group of an operation; the three ways in which XLA writes groups."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    return 1
