"""Comparison of what this library computes with the outputs of a golden case."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.parity.golden import Case

TAP = "tap/"
_MASK_SHARE = 1e-4


@dataclass(frozen=True)
class Excuse:
    """Elements of an output (a bool array of its shape) in which this library is right to differ, and why."""

    elements: np.ndarray
    reason: str


@dataclass(frozen=True)
class Produced:
    """What a runner computed for a case, in the original's layout.

    Attributes:
      outputs: arrays by the case's output names; taps (`tap/<name>`) in the order of the forward pass.
      masks: outputs that are a threshold of floats, where single pixels may fall on the other side.
      sentinel: a number that stands for "no value" in the float outputs, and must stand at the same places.
      excuses: elements of float outputs that are not compared.
    """

    outputs: Mapping[str, np.ndarray]
    masks: frozenset[str] = frozenset()
    sentinel: float | None = None
    excuses: Mapping[str, Excuse] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Comparison of one output.

    Attributes:
      name: the output, without `out/`.
      status: "ok", "beyond" (more than allowed), "missing" (required, not produced), "shape" or "dtype" (cannot be
        compared), "not exposed" (a tap that this library does not give).
      error: what `unit` counts: the largest absolute difference, or the number of elements that differ.
      relative: the largest absolute difference over max|reference|, or the share of elements that differ.
      allowed: largest allowed `relative` of floats, or largest allowed `error` of the others.
      unit: "abs" or "elements".
      note: what else a reader should know, such as both shapes.
    """

    name: str
    status: str
    error: float = 0.0
    relative: float = 0.0
    allowed: float = 0.0
    unit: str = "abs"
    note: str = ""

    @property
    def is_tap(self) -> bool:
        """Whether the output is an intermediate one, compared where it is exposed."""
        return self.name.startswith(TAP)

    @property
    def passed(self) -> bool:
        """Whether the output is within its tolerance, or a tap that is not exposed."""
        return self.status in ("ok", "not exposed")


@dataclass(frozen=True)
class Report:
    """Comparison of a whole case: taps in forward order, then the required outputs in the order of the file."""

    case: Case
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every required output and every exposed tap is within its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def first_diverging_tap(self) -> str | None:
        """The earliest tap of the forward pass that is beyond its tolerance."""
        return next((row.name[len(TAP) :] for row in self.rows if row.is_tap and not row.passed), None)


def compare(case: Case, produced: Produced) -> Report:
    """Compare every output of `case`, under the rules of the golden format.

    Raises:
      InputError: if the case has no required output, so that nothing would be shown.
    """
    required = [name for name in case.outputs if not name.startswith(TAP)]
    if not required:
        raise InputError(f"{case.path} has no tensor out/*: there is nothing to compare")
    exposed = [name for name in produced.outputs if name.startswith(TAP) and name in case.outputs]
    hidden = [name for name in case.outputs if name.startswith(TAP) and name not in produced.outputs]
    rows = [_row(case, produced, name) for name in (*exposed, *required)]
    return Report(case, (*rows, *(Row(name, "not exposed") for name in hidden)))


def _row(case: Case, produced: Produced, name: str) -> Row:
    if name not in produced.outputs:
        return Row(name, "missing", note="required, but not produced by the runner")
    ours, reference = np.asarray(produced.outputs[name]), case.outputs[name]
    if ours.shape != reference.shape:
        return Row(name, "shape", note=f"{ours.shape} instead of {reference.shape}")
    if reference.dtype.kind == "f":
        return _float_row(case, produced, name, ours, reference)
    if ours.dtype.kind not in "biu":
        return Row(name, "dtype", unit="elements", note=f"{ours.dtype} instead of {reference.dtype}")
    # Compared as they are: 0/1 masks may be boolean on one side, and nothing is cast to fit.
    different = int(np.count_nonzero(ours != reference))
    allowed = max(1.0, _MASK_SHARE * reference.size) if name in produced.masks else 0.0
    status = "ok" if different <= allowed else "beyond"
    return Row(name, status, different, different / max(reference.size, 1), allowed, "elements")


def _float_row(case: Case, produced: Produced, name: str, ours: np.ndarray, reference: np.ndarray) -> Row:
    if ours.dtype.kind not in "fbiu":
        return Row(name, "dtype", note=f"{ours.dtype} instead of {reference.dtype}")
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    counted = np.ones(reference.shape, bool)
    note = ""
    if name in produced.excuses:
        counted &= ~produced.excuses[name].elements
        note = produced.excuses[name].reason
    if produced.sentinel is not None:
        if not np.array_equal((ours == produced.sentinel)[counted], (reference == produced.sentinel)[counted]):
            return Row(name, "beyond", allowed=case.bar(name), note=f"{produced.sentinel:g} stands at other places")
        counted &= reference != produced.sentinel
    ours, reference = ours[counted], reference[counted]
    error = float(np.max(np.abs(ours - reference), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    # Written so that NaN on either side is beyond any tolerance.
    status = "ok" if error <= case.bar(name) * scale else "beyond"
    relative = error / scale if scale else (0.0 if error == 0 else float("inf"))
    return Row(name, status, error, relative, case.bar(name), note=note)
