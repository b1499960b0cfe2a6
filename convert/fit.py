"""Finds the configuration that a checkpoint belongs to, and the plan that reads it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rvseg_jax.convert import engine
from rvseg_jax.convert.plan import ConversionError, Match, Mismatch, Plan
from rvseg_jax.convert.registry import Part
from rvseg_jax.convert.sources import Checkpoint
from rvseg_jax.convert.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Fit:
    """A checkpoint with the model that it fits.

    Attributes:
      tensors: all tensors under their names.
      match: how their keys take part in `plan`.
      layout: of the keys, one of the part's layouts or "" for the original's.
    """

    config: Any
    plan: Plan
    skeleton: engine.Skeleton
    tensors: Tensors
    match: Match
    layout: str = ""


def fit(part: Part, checkpoint: Checkpoint, config: Any = None, *, precision: Any = None) -> Fit:
    """The plan for a checkpoint, proved on keys and shapes before any weight is read.

    Args:
      config: the configuration, if it is known; otherwise that of upstream's `config.json` beside the
        weights, or one of the published sizes, whichever fits in every key and shape.
      precision: number format, a `Precision` or its name; None leaves that of the config.

    Raises:
      ConversionError: if nothing fits; the message is about the configuration that comes nearest.
    """
    candidates = [config] if config is not None else _candidates(part, checkpoint)
    nearest: ConversionError | None = None
    for candidate in candidates:
        candidate = engine.with_precision(candidate, precision)
        for layout in ("", *part.layouts):
            try:
                return _fit(part, checkpoint, candidate, layout)
            except ConversionError as error:
                if nearest is None or _distance(error) < _distance(nearest):
                    nearest = error
    if nearest is None:
        raise ConversionError(f"{part.name} has no published size: give its config")
    message, where = str(nearest), f"{checkpoint.files[0]}: " if checkpoint.files else ""
    if any(".lora_A." in key for key in checkpoint.tensors):
        hint = (
            "; its adapters are not merged into its weights: merge them with peft first, or part the two by "
            "`convert.peft.unwrapped` and put the adapter on the model by `convert.peft.load`"
        )
    else:
        hint = "" if config is not None or checkpoint.upstream else "; for sizes of your own, give the config"
    raise ConversionError(where + message.removeprefix(where) + hint)


def _fit(part: Part, checkpoint: Checkpoint, config: Any, layout: str) -> Fit:
    order = None if checkpoint.shadow is None else part.parameter_order(config)
    tensors = checkpoint.named(order)
    plan, skeleton = engine.plan_for(part, config, layout)
    match = plan.match({key: array.shape for key, array in tensors.items()})
    engine.check_kinds(plan, match, skeleton, tensors)
    return Fit(config, plan, skeleton, tensors, match, layout)


def _candidates(part: Part, checkpoint: Checkpoint) -> list[Any]:
    try:
        shapes = {key: tuple(array.shape) for key, array in checkpoint.tensors.items()}
        return part.candidates(_upstream(part, checkpoint), shapes)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{checkpoint.files[0].parent / 'config.json'}: {error}") from None


def _upstream(part: Part, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The `config.json` beside the weights, if it describes this kind of model."""
    found = checkpoint.upstream
    if found is None:
        return None
    names = [found.get("_class_name"), *(found.get("architectures") or ())]
    return found if any(name in part.upstream for name in names) else None


def _distance(error: ConversionError) -> float:
    return error.count if isinstance(error, Mismatch) else float("inf")
