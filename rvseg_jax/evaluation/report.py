"""What `rvseg eval` prints of a result."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvseg_jax.evaluation.run_folder import SUMMARY_FILE
from rvseg_jax.evaluation.runner import Evaluation

_SHOWN_PROBLEMS = 20
_SHOWN = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")


def show(evaluation: Evaluation, folder: Path) -> None:
    """Print protocol, counts, what is missing, and the scores of every group."""
    summary = evaluation.summary
    print(summary["protocol"])
    if "packed" in summary:
        _show_submission(evaluation, folder)
        return
    for name, digest in summary.get("list_hashes", {}).items():
        print(f"list {name}  sha256 {digest}")
    print(f"expected {evaluation.expected}, scored {len(evaluation.scores)}, missing {len(summary['missing'])}")
    if "expressions" in summary:
        print(f"expressions: expected {summary['expressions']['expected']}, scored {summary['expressions']['scored']}")
    print(f"missing counts as: {summary['missing_policy']}; officially: {summary['official_missing_policy']}")
    for gap in summary["missing"]:
        print(f"  missing: {gap['video']}/{gap['expression']}, {gap['frames']} frames")
    for failure in evaluation.failed:
        print(f"  failed: sample {failure['index']}: {failure['error']}")
    for name, group in _groups(summary).items():
        _show_group(name, group, summary.get("shown", _SHOWN))
    for name, margin in summary.get("margins", {}).items():
        _show_interval(f"margin over {name}", margin)
    for name, accuracy in summary.get("accuracies", {}).items():
        _show_interval(name, accuracy)
    print(f"details in {folder}")


def show_errors(evaluation: Evaluation) -> None:
    """Say on the error stream why an evaluation is not complete."""
    if evaluation.problems:
        print(f"error: {len(evaluation.problems)} problems; no archive was written", file=sys.stderr)
    elif not evaluation.complete:
        print(f"error: {len(evaluation.scores)} of {evaluation.expected} samples were scored", file=sys.stderr)


def _show_submission(evaluation: Evaluation, folder: Path) -> None:
    summary = evaluation.summary
    print(f"{summary['videos']} videos, {summary['expected']} sentences, {summary['masks']} masks expected")
    for failure in evaluation.failed:
        print(f"  failed: sample {failure['index']}: {failure['error']}")
    for problem in evaluation.problems[:_SHOWN_PROBLEMS]:
        print(f"  {problem}")
    if len(evaluation.problems) > _SHOWN_PROBLEMS:
        print(f"  and {len(evaluation.problems) - _SHOWN_PROBLEMS} more, all of them in {folder / SUMMARY_FILE}")
    if summary["archive"] is not None:
        print(f"{summary['packed']} masks in {folder / summary['archive']}")


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups that are worth a line, by name."""
    bound = {"reconstruction": summary["reconstruction"]} if "reconstruction" in summary else {}
    groups = bound | {**summary.get("annotators", {}), "overall": summary["overall"]}
    others = {
        name: group for name, group in summary.get("protocols", {}).items() if group["text"] != summary["protocol"]
    }
    groups |= {f"as {name}": group for name, group in others.items()}
    groups |= {**summary.get("by_kind", {}), **summary.get("controls", {})}
    return groups | ({"by sentence": summary["by_sentence"]} if summary.get("by_sentence") else {})


def _show_group(name: str, group: Mapping[str, Any], shown: Sequence[str]) -> None:
    # A measure that samples of a kind do not determine is none of theirs.
    numbers = "  ".join(f"{key} {group[key]:.4f}" for key in shown if group.get(key) is not None)
    interval = group.get("J&F_interval")
    band = f"  95% [{interval['low']:.4f}, {interval['high']:.4f}]" if interval else ""
    if interval := group.get("gIoU_interval"):
        band = f"  gIoU 95% [{interval['low']:.4f}, {interval['high']:.4f}]"
    print(f"{name}: {numbers}{band}")


def _show_interval(name: str, interval: Mapping[str, float] | None) -> None:
    if interval is None:
        print(f"{name}: none")
    else:
        print(f"{name}: {interval['mean']:.4f}  95% [{interval['low']:.4f}, {interval['high']:.4f}]")
