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
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="config value, such as optimizer.lr=1e-4; KEY=VALUE or --config.KEY=VALUE alone does the same",
    )


def expand(arguments: Sequence[str]) -> list[str]:
    """The words of a command line with `KEY=VALUE` and `--config.KEY=VALUE` written as `--set=KEY=VALUE`.

    argparse can neither declare options whose names it does not know nor mix loose words with options.
    """
    return [f"--set={word.removeprefix('--config.')}" if _ASSIGNMENT.match(word) else word for word in arguments]


def run(args: argparse.Namespace) -> int:
    """Trains; a run that was stopped by SIGTERM after saving is a success.

    Raises:
      UserError: see `training.loop.run`.
    """
    from rvseg_jax.core import config as configs
    from rvseg_jax.training import loop

    config = configs.load(args.config, args.set)
    workdir = args.workdir or Path("runs") / configs.recipe_path(args.config).stem
    loop.run(config, workdir)
    return 0
