"""`rvseg parity`: run golden cases, or record one from a torch model of your own."""

import argparse
import json
import math
import sys
import traceback
from pathlib import Path
from typing import Any

from rvseg_jax.core.errors import InputError, NotAvailable
from rvseg_jax.parity import golden, kinds
from rvseg_jax.parity.compare import Report, Row, compare

RECORD = "record"
_MARKS = {"ok": "ok", "not exposed": "--"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg parity`."""
    parser.description = (
        "Run golden cases (inputs, weights and outputs of an original implementation) with this library and compare. "
        f"`rvseg parity {RECORD} SCRIPT.py --part P -o DIR` writes such cases from the torch models that the function "
        "`cases()` of the script yields (docs/parity.md). Exit codes: 0 all equal within tolerance, 1 beyond "
        "tolerance, 2 unreadable case or none found, 3 a part or kind that this library does not have."
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a case, or a folder of cases")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    parser.add_argument("--verbose", action="store_true", help="print sources, tolerances and tracebacks too")
    parser.add_argument("--part", choices=kinds.parts(), help=f"with {RECORD}: the part the models belong to")
    parser.add_argument("-o", "--output", type=Path, help=f"with {RECORD}: folder that the cases are written to")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg parity` and return its exit code."""
    if str(args.paths[0]) == RECORD:
        return _record(args)
    if args.part or args.output:
        raise InputError(f"--part and -o belong to `rvseg parity {RECORD} SCRIPT.py`; leave them out here")
    results = [_run_case(path, args) for path in golden.find(args.paths)]
    if args.json:
        print(json.dumps({"passed": not any(code for code, _ in results), "cases": [entry for _, entry in results]}))
    else:
        passed = sum(code == 0 for code, _ in results)
        print(f"{passed} of {len(results)} cases pass")
    # A difference is the worst news, then what could not be read, then what the library does not have.
    return next((code for code in (1, 2, 3) if any(found == code for found, _ in results)), 0)


def _run_case(path: Path, args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    try:
        case = golden.read(path)
        report = compare(case, kinds.run(case))
    except (InputError, NotAvailable) as error:
        if args.verbose:
            traceback.print_exc()
        status = "not available" if isinstance(error, NotAvailable) else "unreadable"
        return error.exit_code, _failure(path, status, str(error), args)
    except Exception as error:  # whatever a case makes the library do, the cases after it are run too
        if args.verbose:
            traceback.print_exc()
        return 1, _failure(path, "crashed", f"{type(error).__name__}: {error} (--verbose shows where)", args)
    if not args.json:
        _print(report, args.verbose)
    return (0 if report.passed else 1), _as_json(report)


def _failure(path: Path, status: str, message: str, args: argparse.Namespace) -> dict[str, Any]:
    if not args.json:
        print(f"{status.upper()}  {path}\n  {message}", flush=True)
    return {"case": str(path), "status": status, "error": message}


def _print(report: Report, verbose: bool) -> None:
    case = report.case
    print(f"{'PASS' if report.passed else 'FAIL'}  {case.part}/{case.kind}  {case.path}")
    width = max(len(row.name) for row in report.rows)
    print(f"  {'output':<{width}}  {'max error':>12}  {'relative':>10}  {'allowed':>12}")
    for row in report.rows:
        numbers = "" if row.status in ("missing", "shape", "dtype", "not exposed") else _numbers(row)
        mark = _MARKS.get(row.status, "FAIL")
        remark = row.note or ("tap that this library does not expose" if row.status == "not exposed" else "")
        print(f"  {row.name:<{width}}  {numbers:<38}  {mark:<4}  {remark}".rstrip())
    failed = [row.name for row in report.rows if not row.passed]
    if failed:
        tap = report.first_diverging_tap
        print(f"  beyond tolerance: {', '.join(failed)}")
        print(f"  first tap that diverges: {tap or 'none of the taps compared'}")
    if verbose:
        print(f"  config: {json.dumps(case.config)}")
    sys.stdout.flush()


def _numbers(row: Row) -> str:
    error = f"{int(row.error)} values" if row.unit == "elements" else f"{row.error:.2e}"
    allowed = f"{int(row.allowed)} values" if row.unit == "elements" else f"{row.allowed:.1e}"
    return f"{error:>12}  {row.relative:>10.2e}  {allowed:>12}"


def _as_json(report: Report) -> dict[str, Any]:
    rows = [
        {
            "output": row.name,
            "status": row.status,
            "error": _finite(row.error),
            "unit": row.unit,
            "relative": _finite(row.relative),
            "allowed": row.allowed,
            "note": row.note,
        }
        for row in report.rows
    ]
    return {
        "case": str(report.case.path),
        "part": report.case.part,
        "kind": report.case.kind,
        "status": "pass" if report.passed else "fail",
        "first_diverging_tap": report.first_diverging_tap,
        "outputs": rows,
    }


def _finite(value: float) -> float | str:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else str(value)


def _record(args: argparse.Namespace) -> int:
    if len(args.paths) != 2 or not args.part or not args.output:
        usage = f"rvseg parity {RECORD} SCRIPT.py --part P -o DIR"
        raise InputError(f"recording needs one script, a part and a folder: {usage}")
    try:
        from rvseg_jax.parity import record
    except ImportError as error:
        raise NotAvailable(f"recording needs PyTorch ({error}): pip install 'rvseg_jax[torch]'") from error
    written = [str(path) for path in record.run_script(args.paths[1], args.part, args.output)]
    print(json.dumps({"written": written}) if args.json else "\n".join(f"wrote {path}" for path in written))
    return 0
