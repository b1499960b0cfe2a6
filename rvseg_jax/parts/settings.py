"""Settings by name, for keyword arguments and `--set`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from rvseg_jax.core.errors import InputError

T = TypeVar("T")


def changed(config: T, settings: Mapping[str, Any], what: str, *, fixed: Iterable[str] = ()) -> T:
    """A frozen dataclass with some fields replaced.

    Args:
      what: what to call it in messages.
      fixed: fields that are no settings.

    Raises:
      InputError: for an unknown field, or a value that does not fit.
    """
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    known = {field.name: getattr(config, field.name) for field in fields if field.name not in set(fixed)}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"{what} has no setting {name!r}: it has {', '.join(known)}")
        wanted = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(known[name], bool):
            raise InputError(f"{what}: {name} is {value!r}, give a value such as {known[name]!r}")
    try:
        return dataclasses.replace(config, **settings)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(str(error)) from error
