"""Conversion between PyTorch checkpoints and rvseg_jax; the only place that knows torch key names."""

from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.plan import ConversionError, Plan, compile_table
from rvseg_jax.convert.rules import (
    Alias,
    Drop,
    Rule,
    Table,
    TableError,
    concat,
    conv,
    deconv,
    linear,
    reshape,
    split,
    stack,
    transpose,
)

__all__ = [
    "Alias",
    "ConversionError",
    "Drop",
    "Plan",
    "Rule",
    "Table",
    "TableError",
    "compile_table",
    "concat",
    "conv",
    "deconv",
    "from_torch",
    "linear",
    "reshape",
    "split",
    "stack",
    "to_torch",
    "transpose",
]
