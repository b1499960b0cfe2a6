"""Settings of a system on the command line: `--set NAME=VALUE`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rvseg_jax.core.errors import InputError


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declares `--set`; `parse(args.set)` reads it."""
    parser.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        default=[],
        help="a setting of the system, such as num_steps=4; may be given several times",
    )


def parse(pairs: Sequence[str]) -> dict[str, Any]:
    """`["num_steps=4", "schedule=demo"]` as `{"num_steps": 4, "schedule": "demo"}`; values are JSON or text.

    Lists become tuples, which is what settings hold.

    Raises: InputError for a pair without a name or a "=".
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name.isidentifier() or not equals:
            raise InputError(f"--set {pair!r} is not of the form NAME=VALUE, such as num_steps=4")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        settings[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return settings
