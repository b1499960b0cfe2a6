"""`rvseg`: finds the subcommand, imports only its module, and turns errors into one line and an exit code.

Exit codes: 0 fine; 1 a check failed; 2 bad input, nothing written; 3 not available here.
A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`, and with `expand(arguments)` where
its command line has forms that argparse cannot declare.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import rvseg_jax
from rvseg_jax.core import compile_cache, logging
from rvseg_jax.core.errors import CheckFailed, InputError, NotAvailable, UserError

COMMANDS = {
    "predict": ("rvseg_jax.cli.predict", "segment a clip by one or several sentences"),
    "track": ("rvseg_jax.cli.track", "follow objects that are pointed at through a video"),
    "geometry": ("rvseg_jax.cli.geometry", "point cloud, depth and cameras of a clip"),
    "eval": ("rvseg_jax.evaluation.command", "score a checkpoint on a dataset"),
    "train": ("rvseg_jax.training.command", "train by a recipe"),
    "convert": ("rvseg_jax.convert.__main__", "convert PyTorch checkpoints, check and export them"),
    "parity": ("rvseg_jax.parity.command", "compare with golden files of the original code, or record some"),
    "data": ("rvseg_jax.input_pipeline.command", "make, check or record a dataset"),
    "describe": ("rvseg_jax.cli.describe", "parts, sizes, licences and presets of a system"),
    "plan": ("rvseg_jax.cli.plan", "does a training step fit a TPU slice, and on which mesh"),
    "doctor": ("rvseg_jax.cli.doctor", "what runs here: versions, devices, memory, codecs, compile cache"),
    "demo": ("rvseg_jax.cli.demo", "make a small clip and segment it"),
}

# Packages that are imported where they are used, and what installs them.
INSTALLS = {
    "torch": 'pip install "rvseg_jax[torch]"',
    "diffusers": 'pip install "rvseg_jax[torch]"',
    "peft": 'pip install "rvseg_jax[torch]"',
    "gradio": 'pip install "rvseg_jax[demo]"',
    "libtpu": 'pip install "rvseg_jax[plan]"',
}


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rvseg: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rvseg` with these arguments (those of the process by default) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _mark_flags_parsed()
    compile_cache.enable()
    logging.setup("WARNING")
    show_traceback = "--traceback" in arguments
    try:
        parser, handler = _parser(arguments)
        arguments = [argument for argument in arguments if argument != "--traceback"]
        if handler is not None and hasattr(handler, "expand"):
            arguments = handler.expand(arguments)
        args = parser.parse_args(arguments)
        if handler is None:
            parser.print_help()
            return 2
        return int(handler.run(args) or 0)
    except BrokenPipeError:
        # The reader of our output has gone (`rvseg ... | head`); keep Python from complaining about the flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("rvseg: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        known = _as_user_error(error)
        if known is None or show_traceback:
            raise
        message = " ".join(str(known).split())
        print(f"rvseg: error: {message}", file=sys.stderr)
        return known.exit_code


def _parser(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser with the arguments of the chosen subcommand only, and the module that runs it."""
    parser = _Parser(prog="rvseg", description=rvseg_jax.__doc__)
    parser.add_argument("--version", action="version", version=f"rvseg_jax {rvseg_jax.__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from (any place on the line)"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command")
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    handler = None
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            handler = importlib.import_module(module)
            handler.add_arguments(subparser)
    return parser, handler


def _as_user_error(error: Exception) -> UserError | None:
    """The error as one that a user can act on, or None for a fault of the program's own."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in INSTALLS:
            return NotAvailable(f"this needs {package}, which is not installed here: {INSTALLS[package]}")
        return None
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return CheckFailed(
            "out of memory; give --max-memory (such as 4GB), --dtype bfloat16, or a shorter or smaller clip "
            f"({str(error).splitlines()[0][:200] if str(error) else 'host memory'})"
        )
    # The library raises ValueError and OSError for values and files that do not fit.
    if isinstance(error, (ValueError, OSError)):
        return InputError(str(error) or type(error).__name__)
    return None


def _mark_flags_parsed() -> None:
    """Grain's workers read absl flags, which nothing parses here."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()
