"""Errors that a user can act on; the command line prints their one line and leaves with their exit code."""


class UserError(Exception):
    """An error whose cause lies outside the program: the message names the value and the cure in one line."""

    exit_code = 1


class InputError(UserError, ValueError):
    """Bad input: a file, a value or a flag. Nothing has been written."""

    exit_code = 2


class CheckFailed(UserError, RuntimeError):
    """A check ran and failed."""

    exit_code = 1


class NotAvailable(UserError, RuntimeError):
    """A part, device or package that is not here; the message names the command that installs it."""

    exit_code = 3
