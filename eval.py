"""Score a system on a dataset: `python eval.py SYSTEM DATASET [ROOT] -o DIR` (the same as `rvseg eval`)."""

import sys


def main() -> int:
    """Parse the command line, run the evaluation, and return its exit code."""
    import argparse

    from rvseg_jax.core.errors import UserError
    from rvseg_jax.evaluation import command

    parser = argparse.ArgumentParser(prog="eval.py")
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
