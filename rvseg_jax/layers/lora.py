"""Low-rank adapters on the linear layers of any model, chosen by their paths (Hu et al. 2021).

    adapted = lora.add(model, r"^layers/.*(q|v)_proj$", LoraSpec(rank=8, alpha=16), nnx.Rngs(0))
    optimizer.trainable = (lora.TRAINABLE,)
    merged, folded = lora.merge(adapted)

Functions return a model of their own and leave the one that they are given as it was; the arrays are shared.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.tree_paths import SEPARATOR
from rvseg_jax.layers.linear import DropoutKey, Linear, LoraSpec

# Path regex of all leaves of adapters, for `optimizer.trainable`.
TRAINABLE = r"/lora_[ab]$"

Table = tuple[tuple[str, tuple[str | None, ...]], ...]


@dataclass(frozen=True)
class Adapter:
    """The adapter of one linear layer, or of one that is stacked. Shapes: a [(L,) in, r], b [(L,) r, out]."""

    spec: LoraSpec
    a: Any
    b: Any

    def update(self) -> jax.Array:
        """What it adds to the kernel, float32 [(L,) in, out]."""
        a, b = (jnp.asarray(leaf, jnp.float32) for leaf in (self.a, self.b))
        return self.spec.scale * jnp.matmul(a, b, precision="highest")


@dataclass(frozen=True)
class Folded:
    """What `merge` took out of a model.

    Attributes:
      adapters: by the path of their layer.
      kernels: kernels as they were, where they are kept.
    """

    adapters: Mapping[str, Adapter]
    kernels: Mapping[str, jax.Array] = field(default_factory=dict)


def linears(model: nnx.Module) -> dict[str, Linear]:
    """All linear layers of a model by their path."""
    return dict(_linears(model, ()))


def _linears(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Linear]]:
    if isinstance(node, Linear):
        yield SEPARATOR.join(path), node
    elif isinstance(node, (nnx.List, list, tuple)):
        for index, value in enumerate(node):
            yield from _linears(value, (*path, str(index)))
    elif isinstance(node, (nnx.Dict, dict)):
        for name, value in node.items():
            yield from _linears(value, (*path, str(name)))
    elif isinstance(node, nnx.Module):
        for name, value in vars(node).items():
            yield from _linears(value, (*path, name))


def adapters(model: nnx.Module) -> dict[str, Adapter]:
    """The adapters of a model by the path of their layer."""
    return {
        path: Adapter(layer.lora, layer.lora_a.get_value(), layer.lora_b.get_value())
        for path, layer in linears(model).items()
        if layer.lora is not None
    }


def add(model: nnx.Module, pattern: str, spec: LoraSpec, rngs: nnx.Rngs, *, dtype: Any = jnp.float32) -> nnx.Module:
    """The model with a new adapter, which changes nothing yet, on every linear layer whose path `pattern` matches.

    Args:
      pattern: regex that is searched for in paths like "layers/self_attn/q_proj".
      dtype: format of the adapters; that of the kernels is often too coarse for training.

    Raises:
      InputError: if no layer matches, or one has an adapter already.
    """
    adapted = _copy(model)
    chosen = {path: layer for path, layer in linears(adapted).items() if re.search(pattern, path)}
    if not chosen:
        some = ", ".join(list(linears(adapted))[:4])
        raise InputError(f"no linear layer's path matches {pattern!r}: the model has {some}, ...")
    for path, layer in chosen.items():
        if layer.lora is not None:
            raise InputError(f"{path} has an adapter already: merge it or remove it before adding another")
        layer.adapt(spec, rngs=rngs, dtype=dtype)
    return adapted


def attach(model: nnx.Module, found: Mapping[str, Adapter]) -> nnx.Module:
    """The model with given adapters on layers that have none.

    Raises:
      InputError: for a path that is no linear layer, one with an adapter, or matrices of another shape.
    """
    adapted = _copy(model)
    layers = linears(adapted)
    for path, adapter in found.items():
        if path not in layers:
            raise InputError(f"the model has no linear layer {path!r} for an adapter")
        layer = layers[path]
        if layer.lora is not None:
            raise InputError(f"{path} has an adapter already: merge it or remove it before adding another")
        *stacked, inputs, outputs = layer.kernel.shape
        wanted = (*stacked, inputs, adapter.spec.rank), (*stacked, adapter.spec.rank, outputs)
        if (adapter.a.shape, adapter.b.shape) != wanted:
            raise InputError(f"the adapter of {path} is {adapter.a.shape} and {adapter.b.shape}, not {wanted}")
        layer.lora_a, layer.lora_b = nnx.Param(adapter.a), nnx.Param(adapter.b)
        layer.lora = adapter.spec
    return adapted


def remove(model: nnx.Module) -> nnx.Module:
    """The model without its adapters, which are lost."""
    return _without_adapters(_copy(model))


def merge(model: nnx.Module, *, keep_kernels: bool = False) -> tuple[nnx.Module, Folded]:
    """The model with its adapters added to the kernels, at no cost in a forward pass; and what `unmerge` needs.

    Args:
      keep_kernels: keeps the kernels as they were, so that `unmerge` gives them back to the last bit; without them it
        subtracts again, which is exact to rounding in the format of the kernels.

    Raises:
      InputError: if the model has no adapter.
    """
    found = adapters(model)
    if not found:
        raise InputError("the model has no adapter to merge")
    merged = _copy(model)
    kernels = {}
    for path, layer in linears(merged).items():
        if path in found:
            kernels[path] = layer.kernel[...]
            layer.kernel = nnx.Param(_shifted(layer.kernel[...], found[path].update()))
    return _without_adapters(merged), Folded(found, kernels if keep_kernels else {})


def unmerge(model: nnx.Module, folded: Folded) -> nnx.Module:
    """The model as it was before `merge` folded its adapters in.

    Raises:
      InputError: if the adapters are not of this model.
    """
    restored = attach(model, folded.adapters)
    for path, layer in linears(restored).items():
        if path in folded.kernels:
            layer.kernel = nnx.Param(folded.kernels[path])
        elif path in folded.adapters:
            layer.kernel = nnx.Param(_shifted(layer.kernel[...], -folded.adapters[path].update()))
    return restored


def with_dropout(model: nnx.Module, key: jax.Array) -> nnx.Module:
    """The model with dropout on the inputs of its adapters, for one forward pass by `key`.

    Every layer of a stack, and every linear layer, has a key of its own. The keys are leaves of the model: call this
    inside the loss on a model that has just been merged from its parameters.
    """
    noisy = _copy(model)
    for number, layer in enumerate(linears(noisy).values()):
        if layer.lora is not None and layer.lora.dropout:
            own = jax.random.fold_in(key, number)
            stacked = layer.kernel.shape[:-2]
            layer.lora_key = DropoutKey(jax.random.split(own, stacked) if stacked else own)
    return noisy


def sharding(table: Sequence[tuple[str, Sequence[str | None]]]) -> Table:
    """A model's table of logical axes with rules for the adapters of all its kernels; the rank stays whole."""
    made: list[tuple[str, tuple[str | None, ...]]] = []
    for pattern, names in table:
        made.append((pattern, tuple(names)))
        if pattern.endswith("/kernel$") and len(names) >= 2:
            stem, *lead, inputs, outputs = pattern.removesuffix("kernel$"), *names
            made += [(f"{stem}lora_a$", (*lead, inputs, None)), (f"{stem}lora_b$", (*lead, None, outputs))]
    return tuple(made)


def _shifted(kernel: jax.Array, update: jax.Array) -> jax.Array:
    return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


def _without_adapters(model: nnx.Module) -> nnx.Module:
    for layer in linears(model).values():
        if layer.lora is not None:
            del layer.lora_a, layer.lora_b
            layer.lora = None
    return model


def _copy(model: nnx.Module) -> nnx.Module:
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
