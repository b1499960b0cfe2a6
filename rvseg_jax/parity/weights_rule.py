"""Weights of golden cases that are too large to store: every tensor follows from its name, its shape and a seed."""

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rvseg_jax.core.errors import InputError

_MAX_ELEMENTS = 2**29
_MAX_PATTERN = 200
_NORM_SCALES = ("weight", "gamma", ".scale")


def rule_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor that the rule gives to one name: float32, or integer 0 for a counter of batches.

    The draw is standard normal from Philox, keyed by the CRC-32 of "weight:" + name with the seed above it. Matrices
    and kernels are scaled by the root of their inputs, running variances and norm scales lie around 1, biases get 0.2.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    key = zlib.crc32(b"weight:" + name.encode()) + seed * 2**32
    draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    if name.endswith("running_var"):
        draw = 1 + 0.1 * np.abs(draw)
    elif name.endswith("running_mean"):
        draw = 0.1 * draw
    elif sum(length > 1 for length in shape) > 1:
        draw = draw / math.sqrt(max(math.prod(shape[1:]), 1))
    elif name.endswith(_NORM_SCALES):
        draw = 1 + 0.1 * draw
    else:
        draw = 0.2 * draw
    return np.asarray(draw, np.float32)


def rule_weights(
    keys: Mapping[str, Iterable[int]], seed: int, changes: Iterable[Mapping[str, Any]] = ()
) -> dict[str, np.ndarray]:
    """All tensors of a case, with its changes applied in their order.

    Args:
      keys: shape of every tensor.
      seed: the case's seed, at least 0.
      changes: {"match": regular expression, "op": "mul" or "set", "value": number or list}; a change concerns every
        tensor in whose name the expression is found.

    Raises:
      InputError: for shapes that are none, more than 2^29 elements, another operation, or an expression that could run
        for ever (golden files are not trusted).
    """
    shapes = {name: _shape(name, shape) for name, shape in keys.items()}
    if sum(math.prod(shape) for shape in shapes.values()) > _MAX_ELEMENTS:
        raise InputError(f"the weights rule is asked for more than {_MAX_ELEMENTS} elements: this is no tiny case")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed {seed!r} of the weights rule must be an integer from 0 to 2^32 - 1")
    weights = {name: rule_tensor(name, shape, seed) for name, shape in shapes.items()}
    for change in changes:
        _apply(change, weights)
    return weights


def _apply(change: Mapping[str, Any], weights: dict[str, np.ndarray]) -> None:
    try:
        pattern, operation, value = change["match"], change["op"], np.asarray(change["value"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"change {change!r} of the weights rule needs match, op and a numeric value") from error
    if operation not in ("mul", "set"):
        raise InputError(f"operation {operation!r} of the weights rule is unknown: use 'mul' or 'set'")
    expression = _expression(pattern)
    for name, array in weights.items():
        if expression.search(name):
            try:
                changed = array * value if operation == "mul" else np.broadcast_to(value, array.shape)
            except ValueError as error:
                raise InputError(f"value of shape {value.shape} does not fit {name!r} of {array.shape}") from error
            weights[name] = np.array(changed, np.float32)


def _expression(pattern: Any) -> re.Pattern[str]:
    # A repeated group can make the search exponential in the length of a name, so none is allowed.
    if not isinstance(pattern, str) or len(pattern) > _MAX_PATTERN or re.search(r"\)\s*[*+?{]", pattern):
        raise InputError(f"pattern {pattern!r} of the weights rule must be short and without repeated groups")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern {pattern!r} of the weights rule is no regular expression: {error}") from error


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    valid = isinstance(shape, list | tuple) and len(shape) <= 8
    if not valid or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MAX_ELEMENTS for n in shape):
        raise InputError(f"shape {shape!r} of {name!r} must be a list of at most eight lengths")
    return tuple(shape)
