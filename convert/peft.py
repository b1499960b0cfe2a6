"""Adapters of PEFT (`adapter_model.safetensors` and `adapter_config.json`) on our models and back.

The table of the model under an adapter says which of its kernels belongs to which module. Where a table cuts a fused
projection in pieces, as InternLM2's `wqkv`, its one A serves all pieces, and B's rows are cut as the kernel's are.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from rvseg_jax.convert import engine
from rvseg_jax.convert.peft_config import PeftConfig, written
from rvseg_jax.convert.plan import ConversionError, Move, Plan, compile_table
from rvseg_jax.convert.rules import Rule, Table, linear
from rvseg_jax.convert.safetensors_file import read_safetensors
from rvseg_jax.convert.sources import read_json
from rvseg_jax.formats.staging import Staging
from rvseg_jax.layers import lora
from rvseg_jax.layers.linear import LoraSpec
from rvseg_jax.layers.lora import Adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_WRAPPER = "base_model.model."
_MATRIX = re.compile(r"^(?P<module>.+)\.lora_(?P<which>[AB])(\.[^.]+)?\.weight$")


@dataclass(frozen=True)
class _Module:
    """A torch linear layer and the kernels that it became: rows[i] are the outputs that leaf i took, in its order."""

    name: str
    move: Move
    rows: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(outputs, inputs)."""
        return self.move.key_shapes[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of our linear layers."""
        return tuple(leaf.removesuffix("/kernel") for leaf in self.move.leaves)


def load(
    model: nnx.Module,
    table: Table,
    source: str | Path | tuple[Mapping[str, Any], Mapping[str, np.ndarray]],
    *,
    prefix: str = "",
    dtype: Any = jnp.float32,
) -> nnx.Module:
    """The model with the adapter of a PEFT folder.

    Args:
      model: without adapters.
      table: that reads the torch keys of `model`, as for `compile_table`.
      source: the folder, or (settings, tensors) that are at hand.
      prefix: what stands in the table's keys in front of the names of the module that PEFT wrapped.
      dtype: format of the adapter's leaves.

    Raises:
      ConversionError: for files that cannot be read, settings that are not supported, tensors that do not fit the
        model, or an adapter on some layers of a stack only.
    """
    config, tensors = _read(source)
    modules = _modules(model, table)
    pieces: dict[str, dict[tuple[int, ...], Adapter]] = {}
    for name, (a, b) in _pairs(tensors).items():
        module = modules.get(prefix + name)
        if module is None:
            raise ConversionError(f"the adapter is on {name}, which is no linear layer of the model")
        spec = config.spec(name)
        wanted = (spec.rank, module.shape[1]), (module.shape[0], spec.rank)
        if (a.shape, b.shape) != wanted:
            raise ConversionError(f"the adapter on {name} has matrices {a.shape} and {b.shape}, not {wanted}")
        for path, rows in zip(module.layers, module.rows, strict=True):
            pieces.setdefault(path, {})[module.move.row] = Adapter(spec, a.T, b[rows].T)
    shapes = {path: layer.kernel.shape for path, layer in lora.linears(model).items()}
    return lora.attach(model, {path: _stacked(path, found, shapes[path], dtype) for path, found in pieces.items()})


def save(model: nnx.Module, table: Table, folder: str | Path, *, prefix: str = "", base: str = "") -> None:
    """Writes the model's adapters as PEFT reads them; the inverse of `load`.

    The pieces of a fused projection that no longer share their A, as after training, make one adapter whose rank is
    the sum of theirs.

    Args:
      model, table, prefix: as for `load`.
      folder: gets both files, in place of such that are there.
      base: name or path of the model under the adapter, for the settings.

    Raises:
      ConversionError: if the model has no adapter, or one that no key of the table stands for.
    """
    found = lora.adapters(model)
    modules = _modules(model, table)
    known = {path for module in modules.values() for path in module.layers}
    lost = sorted(set(found) - known) if found else ["the model"]
    if lost:
        raise ConversionError(f"{lost[0]} has no adapter that could be written for torch")
    tensors, specs = {}, {}
    for key, module in modules.items():
        present = [path in found for path in module.layers]
        if any(present):
            name = key.removeprefix(prefix)
            specs[name], a, b = _fused(module, found)
            tensors[f"{_WRAPPER}{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
            tensors[f"{_WRAPPER}{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
    names = [key.removeprefix(prefix) for key in modules if key.startswith(prefix)]
    with Staging(folder) as staging:
        save_file(tensors, staging.path(WEIGHTS), metadata={"format": "pt"})
        staging.path(CONFIG).write_text(json.dumps(written(specs, names, base), indent=2) + "\n")


def unwrapped(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the weights under their own keys, the adapter's tensors) of a checkpoint that was saved with PEFT around it.

    For a whole model in which only a part is wrapped, `load` takes the second with an empty prefix.
    """
    base, adapter = {}, {}
    for key, value in tensors.items():
        own = key.replace(_WRAPPER, "", 1)
        if _MATRIX.match(own):
            adapter[own] = value
        else:
            base[own.replace(".base_layer.", ".")] = value
    return base, adapter


def _read(source: Any) -> tuple[PeftConfig, Mapping[str, np.ndarray]]:
    if isinstance(source, tuple):
        return PeftConfig.read(source[0]), source[1]
    folder = Path(source)
    return PeftConfig.read(read_json(folder / CONFIG)), read_safetensors(folder / WEIGHTS)


def _pairs(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{module: (A, B)} by the names inside the wrapped model."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        match = _MATRIX.match(key.replace(_WRAPPER, "", 1))
        if match is None:
            raise ConversionError(f"{key} is no matrix of a LoRA adapter, which have names with lora_A or lora_B")
        if match["which"] in found.setdefault(match["module"], {}):
            raise ConversionError(f"{match['module']} has two adapters: give the tensors of one")
        found[match["module"]][match["which"]] = np.asarray(value)
    if not found:
        raise ConversionError("the adapter has no tensors")
    for module, matrices in found.items():
        if len(matrices) != 2 or any(matrix.ndim != 2 for matrix in matrices.values()):
            raise ConversionError(f"{module} needs two matrices, lora_A and lora_B")
    return {module: (matrices["A"], matrices["B"]) for module, matrices in found.items()}


def _modules(model: nnx.Module, table: Table) -> dict[str, _Module]:
    """{torch module: its place in the model} of all linear layers, whole or fused."""
    plan: Plan = compile_table(table, engine.skeleton_of(lora.remove(model)).shapes)
    kernels = {f"{path}/kernel" for path in lora.linears(model)}
    rows: dict[Rule, tuple[np.ndarray, ...] | None] = {}
    found = {}
    for move in plan.moves:
        if len(move.keys) != 1 or not set(move.leaves) <= kernels or not move.keys[0].endswith(".weight"):
            continue
        if move.rule not in rows:
            rows[move.rule] = _rows(move)
        taken = rows[move.rule]
        if taken is not None:
            name = move.keys[0].removesuffix(".weight")
            found[name] = _Module(name, move, taken)
    return found


def _rows(move: Move) -> tuple[np.ndarray, ...] | None:
    """The rows of the torch weight that became the columns of each leaf; None if a rule does more than pick rows."""
    if len(move.key_shapes[0]) != 2:
        return None
    outputs, inputs = move.key_shapes[0]
    row, column = np.arange(outputs, dtype=np.int32)[:, None], np.arange(inputs, dtype=np.int32)[None, :]
    if move.rule.operations == (linear(),):
        return (row[:, 0],)
    taken = []
    for by_row, by_column in zip(
        move.to_leaves([np.broadcast_to(row, (outputs, inputs))]),
        move.to_leaves([np.broadcast_to(column, (outputs, inputs))]),
        strict=True,
    ):
        if by_row.shape[0] != inputs or (by_row != by_row[:1]).any() or (by_column != column.T).any():
            return None
        taken.append(np.array(by_row[0]))
    return tuple(taken)


def _stacked(path: str, found: Mapping[tuple[int, ...], Adapter], kernel: Sequence[int], dtype: Any) -> Adapter:
    """The adapter of a layer of ours from those of all torch layers that it holds."""
    specs = {adapter.spec for adapter in found.values()}
    if len(specs) > 1:
        raise ConversionError(f"the layers of {path} have adapters of different rank or factor: {specs}")
    lead = tuple(kernel[:-2])
    absent = [row for row in np.ndindex(*lead) if row not in found]
    if absent:
        raise ConversionError(f"layer {absent[0][0]} of {path} has no adapter, but others have: it must be on all")
    order = [found[row] for row in np.ndindex(*lead)]
    a, b = (
        np.stack(matrices).reshape(*lead, *matrices[0].shape)
        for matrices in ([piece.a for piece in order], [piece.b for piece in order])
    )
    return Adapter(specs.pop(), jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def _fused(module: _Module, found: Mapping[str, Adapter]) -> tuple[LoraSpec, np.ndarray, np.ndarray]:
    """(spec, A, B) of a torch layer from the adapters of the pieces that it became."""
    pieces = [
        (rows, _row(found[path], module.move.row))
        for path, rows in zip(module.layers, module.rows, strict=True)
        if path in found
    ]
    first = pieces[0][1]
    shared = all(piece.spec == first.spec and np.array_equal(piece.a, first.a) for _, piece in pieces)
    rank = first.spec.rank if shared else sum(piece.spec.rank for _, piece in pieces)
    b = np.zeros((module.shape[0], rank), np.float32)
    start = 0
    for rows, piece in pieces:
        b[rows, start : start + piece.spec.rank] = piece.b.T * (piece.spec.scale / first.spec.scale)
        start += 0 if shared else piece.spec.rank
    a = first.a.T if shared else np.concatenate([piece.a.T for _, piece in pieces])
    return replace(first.spec, rank=rank, alpha=first.spec.scale * rank), a, b


def _row(adapter: Adapter, row: tuple[int, ...]) -> Adapter:
    """The adapter of one layer of a stack, as numpy arrays."""
    a, b = (np.asarray(leaf[row], np.float32) for leaf in (adapter.a, adapter.b))
    return Adapter(adapter.spec, a, b)
