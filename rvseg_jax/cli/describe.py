"""`rvseg describe`: what a system is made of."""

import argparse
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg describe`."""
    parser.add_argument("system", nargs="?", metavar="SYSTEM", help="a system or tracker; default: list them")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg describe` and return its exit code."""
    from rvseg_jax import api

    if args.system is None:
        found: Any = [*api.list_systems(), *api.list_trackers()]
    else:
        found = api.describe(args.system)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(_lines(found)))
    return 0


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested values as indented lines, with numbers of parameters and bytes in groups of three."""
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item:
                lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_text(item)}")
        return lines
    if isinstance(value, list):
        return [line for item in value for line in _lines(item, indent)]
    return [f"{indent}{_text(value)}"]


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
