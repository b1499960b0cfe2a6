"""The settings of a PEFT adapter, `adapter_config.json`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.layers.linear import LoraSpec

# Settings under which an adapter is something else than W + (alpha / r) B A.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)


@dataclass(frozen=True)
class PeftConfig:
    """Sizes and factors of an adapter by the names of its modules.

    Attributes:
      rank, alpha: of modules that no pattern names.
      ranks, alphas: {pattern: value}; a pattern names a module as PEFT's `get_pattern_key` matches it.
      dropout: share of inputs that training drops.
      by_root: whether the factor is alpha / sqrt(r) ("rank-stabilised").
    """

    rank: int
    alpha: float
    dropout: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    by_root: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "PeftConfig":
        """The settings in `adapter_config.json`.

        Raises:
          ConversionError: for another kind of adapter, a setting that is not supported, or no number where one belongs.
        """
        if values.get("peft_type", "LORA") != "LORA":
            raise ConversionError(f"peft_type {values['peft_type']!r} is not supported: use 'LORA'")
        for name in _UNSUPPORTED:
            if values.get(name):
                raise ConversionError(f"{name} {values[name]!r} of a PEFT adapter is not supported")
        if values.get("bias", "none") != "none":
            raise ConversionError(f"bias {values['bias']!r} of a PEFT adapter is not supported: use 'none'")
        if isinstance(start := values.get("init_lora_weights"), str) and start != "gaussian":
            raise ConversionError(f"init_lora_weights {start!r} is not supported: it changes the weights under it")
        try:
            return cls(
                rank=int(values["r"]),
                alpha=float(values["lora_alpha"]),
                dropout=float(values.get("lora_dropout", 0.0)),
                ranks={key: int(value) for key, value in (values.get("rank_pattern") or {}).items()},
                alphas={key: float(value) for key, value in (values.get("alpha_pattern") or {}).items()},
                by_root=bool(values.get("use_rslora", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConversionError(f"the settings of a PEFT adapter lack or spoil a number: {error!r}") from None

    def spec(self, module: str) -> LoraSpec:
        """The adapter of the module called `module`, without what the wrapping puts in front of its name."""
        rank, alpha = _matching(self.ranks, module, self.rank), _matching(self.alphas, module, self.alpha)
        try:
            return LoraSpec(rank, alpha * math.sqrt(rank) if self.by_root else alpha, self.dropout)
        except ValueError as error:
            raise ConversionError(f"{module}: {error}") from None


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ConversionError(f"{pattern!r} in the settings of a PEFT adapter is no regex: {error}") from None
    return default


def written(specs: Mapping[str, LoraSpec], modules: Iterable[str], base: str) -> dict[str, Any]:
    """The contents of `adapter_config.json` for adapters on the modules in `specs`.

    Args:
      specs: by the name of each module.
      modules: names of all modules that an adapter could be on.
      base: name or path of the model under the adapter.
    """
    counts: dict[LoraSpec, int] = {}
    for spec in specs.values():
        counts[spec] = counts.get(spec, 0) + 1
    common = max(counts, key=lambda spec: counts[spec])
    others = {name: spec for name, spec in specs.items() if spec != common}
    last = {name.rsplit(".", 1)[-1] for name in specs}
    exact = {name for name in modules if name.rsplit(".", 1)[-1] in last} == set(specs)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": common.rank,
        "lora_alpha": common.alpha,
        "lora_dropout": common.dropout,
        # Short names where they mean the same modules.
        "target_modules": sorted(last) if exact else "|".join(re.escape(name) for name in specs),
        "rank_pattern": {re.escape(name): spec.rank for name, spec in others.items()},
        "alpha_pattern": {re.escape(name): spec.alpha for name, spec in others.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }
