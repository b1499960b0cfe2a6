"""Conversion between PyTorch checkpoints and rvseg_jax; the only place that knows torch key names."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvseg_jax.convert.api import from_torch, to_torch
    from rvseg_jax.convert.converter import Source, convert
    from rvseg_jax.convert.export import export
    from rvseg_jax.convert.plan import ConversionError, compile_table
    from rvseg_jax.convert.rules import Alias, Drop, Rule, Table, TableError
    from rvseg_jax.convert.store import check_system, load_part
    from rvseg_jax.convert.verify import verify

_MODULES = {
    "api": ("from_torch", "to_torch"),
    "converter": ("Source", "convert"),
    "export": ("export",),
    "plan": ("ConversionError", "compile_table"),
    "rules": ("Alias", "Drop", "Rule", "Table", "TableError"),
    "store": ("check_system", "load_part"),
    "verify": ("verify",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Alias",
    "ConversionError",
    "Drop",
    "Rule",
    "Source",
    "Table",
    "TableError",
    "check_system",
    "compile_table",
    "convert",
    "export",
    "from_torch",
    "load_part",
    "to_torch",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for; the command line's `--help` should not wait for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
