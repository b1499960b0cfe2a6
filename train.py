"""Trains a recipe: python train.py configs/tiny/flowrvs_dit.py --workdir=runs/dit --config.optimizer.lr=1e-4

The same as `rvseg train`; see `python train.py --help`. Running it again with the same workdir goes on from the
newest checkpoint. Everything is imported inside `main`, because worker processes that are spawned to read data
import this file again.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Trains and returns the exit code: 0 done or stopped and saved, 1 the run failed, 2 a bad config."""
    from absl import flags

    from rvseg_jax import cli
    from rvseg_jax.training import command

    flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which nobody else parses here
    return cli.main(["train", *command.expand(arguments)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
