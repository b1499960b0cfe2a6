"""Log messages of the library: one stdlib logger, quiet on every process but the first."""

import logging
import sys

ROOT = "rvseg_jax"
_seen: set[tuple[str, str]] = set()


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time, so that progress bars and tests can stand in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def setup(level: int | str = logging.INFO, *, process_index: int = 0) -> None:
    """Sends the library's messages to stderr from process 0; other processes report errors only.

    Call it from a program's entry point, after multi-process initialisation; a library user who has set up
    logging need not call it. Calling it again changes the level and adds no second handler.

    Args:
      level: lowest level shown on process 0.
      process_index: this process's number, as `jax.process_index()`.
    """
    logger = logging.getLogger(ROOT)
    logger.setLevel(level if process_index == 0 else logging.ERROR)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        line = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(line, "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}")


def log_once(logger: logging.Logger, message: str, *args: object, level: int = logging.WARNING) -> None:
    """Logs a message the first time that this logger gets this text with these arguments."""
    text = message % args if args else message
    if (logger.name, text) not in _seen:
        _seen.add((logger.name, text))
        logger.log(level, "%s", text)
