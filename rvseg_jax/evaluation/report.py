"""What `rvseg eval` prints of a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvseg_jax.evaluation.runner import Evaluation

_SHOWN = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")


def show(evaluation: Evaluation, folder: Path) -> None:
    """Print protocol, counts, what is missing, and the scores of every group."""
    summary = evaluation.summary
    print(summary["protocol"])
    for name, digest in summary.get("list_hashes", {}).items():
        print(f"list {name}  sha256 {digest}")
    print(f"expected {evaluation.expected}, scored {len(evaluation.scores)}, missing {len(summary['missing'])}")
    print(f"missing counts as: {summary['missing_policy']}; officially: {summary['official_missing_policy']}")
    for gap in summary["missing"]:
        print(f"  missing: {gap['video']}/{gap['expression']}, {gap['frames']} frames")
    for failure in evaluation.failed:
        print(f"  failed: sample {failure['index']}: {failure['error']}")
    for name, group in _groups(summary).items():
        _show_group(name, group)
    for name, margin in summary.get("margins", {}).items():
        _show_interval(f"margin over {name}", margin)
    for name, accuracy in summary.get("accuracies", {}).items():
        _show_interval(name, accuracy)
    print(f"details in {folder}")


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups that are worth a line, by name."""
    bound = {"reconstruction": summary["reconstruction"]} if "reconstruction" in summary else {}
    groups = bound | {**summary.get("annotators", {}), "overall": summary["overall"]}
    groups |= {**summary.get("by_kind", {}), **summary.get("controls", {})}
    return groups | ({"by sentence": summary["by_sentence"]} if summary.get("by_sentence") else {})


def _show_group(name: str, group: Mapping[str, Any]) -> None:
    numbers = "  ".join(f"{key} {_number(group[key])}" for key in _SHOWN if key in group)
    interval = group.get("J&F_interval")
    band = f"  95% [{interval['low']:.4f}, {interval['high']:.4f}]" if interval else ""
    print(f"{name}: {numbers}{band}")


def _show_interval(name: str, interval: Mapping[str, float] | None) -> None:
    if interval is None:
        print(f"{name}: none")
    else:
        print(f"{name}: {interval['mean']:.4f}  95% [{interval['low']:.4f}, {interval['high']:.4f}]")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
