"""Trains a recipe: python train.py configs/tiny/flowrvs_dit.py --workdir=runs/dit --config.optimizer.lr=1e-4

The same as `rvseg train`. Running it again with the same workdir goes on from the newest checkpoint.
Everything is imported inside `main`, because worker processes that are spawned to read data import this file
again.
"""

import sys


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code: 0 fine, 1 the loss is not finite, 2 a bad config."""
    import argparse

    from absl import flags

    from rvseg_jax.core.errors import UserError
    from rvseg_jax.training import command

    flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which nobody else parses here
    parser = argparse.ArgumentParser(prog="train.py", description="Train a recipe.")
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(command.expand(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
