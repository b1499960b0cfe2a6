"""Records golden cases from torch models: the weights, inputs and outputs, and taps caught by forward hooks.

A script defines `cases()`, which yields `Recording`s:

    from diffusers import WanTransformer3DModel
    from rvseg_jax.parity.record import Recording

    def cases():
        config = {"num_attention_heads": 2, "attention_head_dim": 24, ...}
        model = WanTransformer3DModel(**config)
        inputs = {"hidden_states": torch.randn(1, 16, 3, 4, 6), ...}
        yield Recording("my_dit", kind="dit_plain", model=model, config=config, inputs=inputs)

The original is run in float32, again in float32 (it must repeat itself) and in float64, which gives the tolerance.
"""

import contextlib
import copy
import json
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.staging import Staging
from rvseg_jax.parity import kinds

_LEAST_BAR = 1e-4
_TIME_AXIS = 2

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recording:
    """A torch model, and a call of it that is to be recorded.

    Attributes:
      case: name of the case, and of its files.
      kind: one of the part's kinds; it decides the call and the taps.
      model: the torch module; it is run in eval mode and left as it was.
      config: the config fields of the kind, by the original's names.
      inputs: inputs of the call by the kind's names, floats in float32.
      source: where the model comes from, such as `owner/name@commit`.
    """

    case: str
    kind: str
    model: torch.nn.Module
    config: Mapping[str, Any]
    inputs: Mapping[str, torch.Tensor]
    source: str = ""


@dataclass
class Watch:
    """Collects the outputs of the modules whose path fits a tap; what runs under `paused` is left out."""

    taps: Mapping[str, str]
    seen: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    active: bool = True

    @contextlib.contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """Watch `model` inside a `with` block."""
        handles = []
        for path, module in model.named_modules():
            for pattern, tap in self.taps.items():
                fit = re.fullmatch(pattern, path)
                if fit:
                    handles.append(module.register_forward_hook(self._hook(fit.expand(tap))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the modules that run inside a `with` block."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def results(self) -> Tensors:
        """The taps in the order in which they first ran; a module that ran in chunks of time is joined."""
        return {
            f"tap/{name}": parts[0] if len(parts) == 1 else torch.cat(parts, dim=_TIME_AXIS)
            for name, parts in self.seen.items()
        }

    def _hook(self, name: str) -> Any:
        def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            del module, arguments
            if self.active:
                value = output[0] if isinstance(output, tuple) else output
                self.seen.setdefault(name, []).append(value.detach().clone())

        return keep


def run_script(script: Path, part: str, folder: Path) -> list[Path]:
    """Record every case that `cases()` of a script yields.

    Args:
      script: a Python file of the user's own; it is executed.
      part: the part that the models belong to.
      folder: where the cases are written.

    Returns:
      The JSON files.

    Raises:
      InputError: if there is no such file, or it defines no `cases()`, or that yields something else or nothing.
    """
    if not script.is_file():
        raise InputError(f"there is no script {script}")
    cases = runpy.run_path(str(script)).get("cases")
    if not callable(cases):
        raise InputError(f"{script} defines no function cases(); see docs/parity.md for an example")
    written = [record(recording, part, folder) for recording in _recordings(cases(), script)]
    if not written:
        raise InputError(f"cases() of {script} yields nothing")
    return written


def _recordings(cases: Iterable[Any], script: Path) -> Iterator[Recording]:
    for recording in cases:
        if not isinstance(recording, Recording):
            raise InputError(f"cases() of {script} yields a {type(recording).__name__}, not a Recording")
        yield recording


def record(recording: Recording, part: str, folder: Path) -> Path:
    """Run the model and write `<case>.json` and `<case>.safetensors`.

    Raises:
      InputError: if the kind cannot be recorded, the config has a field that it does not know, an input is missing or
        is no float32, or the model does not repeat its own numbers.
      NotAvailable: if the library does not have the part or the kind.
    """
    kind = kinds.kind_of(part, recording.kind)
    if kind.torch is None:
        raise InputError(f"kind {recording.kind!r} of {part!r} cannot be recorded: it runs more than one model")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", recording.case):
        raise InputError(f"{recording.case!r} cannot be the name of a file: use letters, digits, '_', '-' and '.'")
    kind.fields.check(recording.config)
    inputs = _checked_inputs(recording, kind.torch.inputs)
    model = copy.deepcopy(recording.model).eval().float()
    outputs, again = (_outputs(kind.torch, model, inputs) for _ in range(2))
    repeated = max(_difference(outputs[name], again[name]) for name in outputs)
    if repeated:
        raise InputError(f"two runs of {recording.case!r} differ by {repeated:g}: switch off what is random in it")
    exact = _outputs(kind.torch, model.double(), {name: _doubled(tensor) for name, tensor in inputs.items()})
    weights = {
        name: tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        for name, tensor in recording.model.state_dict().items()
    }
    meta = _meta(recording, part, inputs, outputs, exact, weights)
    tensors = {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
    tensors |= {f"w/{k}": v for k, v in weights.items()}
    with Staging(folder) as staging:
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        save_file(arrays, staging.path(f"{recording.case}.safetensors"))
        staging.path(f"{recording.case}.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return Path(folder) / f"{recording.case}.json"


def _checked_inputs(recording: Recording, names: tuple[str, ...]) -> Tensors:
    missing = [name for name in names if name not in recording.inputs]
    if missing:
        raise InputError(f"recording {recording.case!r} lacks the input {missing[0]!r}; kind needs {', '.join(names)}")
    inputs = {name: tensor.detach().cpu() for name, tensor in recording.inputs.items()}
    for name, tensor in inputs.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"input {name!r} of {recording.case!r} is {tensor.dtype}: give float32")
    return inputs


def _outputs(side: kinds.TorchSide, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    watch = Watch(side.taps)
    with torch.no_grad(), watch.on(model):
        outputs = dict(side.call(model, inputs, watch))
    return {name: tensor.detach().clone() for name, tensor in {**outputs, **watch.results()}.items()}


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.double() - right.double()).abs().max()) if left.numel() else 0.0


def _meta(
    recording: Recording, part: str, inputs: Tensors, outputs: Tensors, exact: Tensors, weights: Tensors
) -> dict[str, Any]:
    described = {f"in/{name}": tensor for name, tensor in inputs.items()}
    described |= {f"out/{name}": tensor for name, tensor in outputs.items()}
    return {
        "part": part,
        "case": recording.case,
        "kind": recording.kind,
        "source": recording.source,
        "config": dict(recording.config),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.numpy().dtype)}
            for name, tensor in described.items()
        },
        "weights": {
            "file": f"{recording.case}.safetensors",
            "keys": {name: list(tensor.shape) for name, tensor in weights.items()},
        },
        "environment": f"torch {torch.__version__}, float32, eval mode",
        "tolerance": {
            "note": "rel = max|float32 run - float64 run| / max|float64 run|; suggested = max(1e-4, 10 * rel)",
            "outputs": {name: _tolerance(tensor, exact[name]) for name, tensor in outputs.items()},
        },
        "reproduced_max_abs_diff": 0.0,
    }


def _tolerance(single: torch.Tensor, double: torch.Tensor) -> dict[str, Any]:
    if not single.is_floating_point():
        return {"mismatches_f32_f64": int((single != double).sum()), "of": single.numel()}
    scale = float(double.abs().max()) if double.numel() else 0.0
    relative = _difference(single, double) / scale if scale else 0.0
    return {"f32_f64_rel": relative, "suggested_rel": max(_LEAST_BAR, 10 * relative)}
