"""`rvseg train CONFIG`, which is also `train.py`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

_ASSIGNMENT = re.compile(r"(--config\.)?[A-Za-z_][\w.]*=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run` to a parser."""
    parser.add_argument("config", help="recipe: a path, or a name in configs/ such as tiny/flowrvs_dit")
    parser.add_argument("--workdir", help="folder of checkpoints and metrics [runs/NAME_OF_RECIPE]")
    parser.add_argument(
        "--export", metavar="DIR", help="when all steps are done, write the weights there for `rvseg --checkpoint`"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="config value, such as optimizer.lr=1e-4; KEY=VALUE or --config.KEY=VALUE alone does the same",
    )


def expand(arguments: Sequence[str]) -> list[str]:
    """The words of a command line with `KEY=VALUE` and `--config.KEY=VALUE` written as `--set=KEY=VALUE`.

    argparse can neither declare options whose names it does not know nor mix loose words with options. The
    value of an option that takes one is left alone.
    """
    words: list[str] = []
    for word in arguments:
        free = not (words and words[-1] in ("--set", "--workdir", "--export"))
        assigns = free and _ASSIGNMENT.match(word)
        words.append(f"--set={word.removeprefix('--config.')}" if assigns else word)
    return words


def run(args: argparse.Namespace) -> int:
    """Trains; a run that was stopped by SIGTERM after saving is a success.

    Raises:
      UserError: see `training.loop.run`.
    """
    from rvseg_jax.core import config as configs
    from rvseg_jax.training import export, loop

    config = configs.load(args.config, args.set)
    workdir = args.workdir or Path("runs") / configs.recipe_path(args.config).stem
    result = loop.run(config, workdir)
    if args.export and result.finished:
        export.export(workdir, args.export)
    return 0
