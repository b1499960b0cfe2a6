"""Golden cases of XMem: its networks (`encoders`) and whole videos with all three memories (`core`)."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.xmem.config import STRIDE, MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.inference import Propagator, Track
from rvseg_jax.models.xmem.network import ImageFeatures, XMem, aggregate
from rvseg_jax.parity import xmem_torch
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind

_DIMS = ("key_dim", "value_dim", "hidden_dim")
# The backbones are told in words; the weights have their widths.
_NETWORK = Fields(
    build=frozenset({*_DIMS, "decoder_width", "pad_multiple", "single_object"}),
    ignored=frozenset({"key_backbone", "value_backbone"}),
)
_RUN = frozenset(entry.name for entry in fields(MemoryConfig)) - {"query_block"}
_INFERENCE = Fields(build=frozenset({*_DIMS, "single_object"}), call=_RUN)
_CORE = Fields(
    build=_NETWORK.build,
    ignored=_NETWORK.ignored | {"height", "width_px", "num_frames"},  # the shapes of the inputs
    call=frozenset({"steps"}),
    nested={"inference": _INFERENCE},
)
_STEP_FIELDS = {"frame", "all_labels", "valid_labels", "boxes"}


def _encoders(case: Case) -> Produced:
    model = _network(case)
    graph, state = nnx.split(model)
    inputs = {name: case.input(name) for name in ("frame", "masks", "hidden", "readout")}
    found = jax.device_get(jax.jit(lambda weights, given: _encode(nnx.merge(graph, weights), given))(state, inputs))
    features: ImageFeatures = found["features"]
    outputs = {
        **{name: _first(getattr(features, name)) for name in ("key", "selection", "f16", "f8", "f4")},
        "shrinkage": features.shrinkage[:, None],
        **{name: np.moveaxis(array, -1, 2) for name, array in found["objects"].items()},
        **found["planes"],
    }
    # Without a deep update the values are the same and the sensory memory stays.
    return Produced({**outputs, "value_no_deep": outputs["value"], "hidden_no_deep": case.input("hidden")})


def _encode(model: XMem, given: Mapping[str, jax.Array]) -> dict[str, Any]:
    frame = jnp.moveaxis(given["frame"], 1, -1)
    hidden, readout = (jnp.moveaxis(given[name], 2, -1) for name in ("hidden", "readout"))
    features = model.encode_key(frame)
    value, deep = model.encode_value(frame, features.f16, hidden, given["masks"])
    single, single_deep = model.encode_value(frame, features.f16, hidden[:, :1], given["masks"][:, :1])
    logits, updated = model.segment(features, readout, hidden)
    merged, probabilities = aggregate(jax.nn.sigmoid(logits), axis=1)
    objects = {
        "value": value,
        "hidden_deep": deep,
        "value_single": single,
        "hidden_single": single_deep,
        "segment_hidden": updated,
    }
    planes = {"segment_logits": merged, "segment_prob": probabilities}
    return {"features": features, "objects": objects, "planes": planes}


def _core(case: Case) -> Produced:
    run = dict(case.config.get("inference", {}))
    cfg = MemoryConfig(**{name: run[name] for name in _RUN & run.keys()})
    propagator = Propagator(_network(case), cfg)
    frames = np.moveaxis(case.input("frames"), 1, -1)
    steps = {_frame_of(step, len(frames)): step for step in case.config.get("steps", [])}
    room = max((len(step["all_labels"]) for step in steps.values()), default=0)
    track = propagator.start(frames.shape[1:3], room)
    outputs: dict[str, np.ndarray] = {}
    sizes = []
    for index, frame in enumerate(frames):
        mask, labelled = None, None
        if index in steps:
            given = case.input(f"mask/{index}")
            mask = np.pad(given, ((0, room - len(given)), (0, 0), (0, 0)))
            labelled = _planes_of(steps[index], len(given))
        found, track = propagator.step(track, frame, mask, labelled, end=index == len(frames) - 1)
        outputs[f"prob/{index}"] = np.asarray(found[: track.objects + 1])
        memory = track.memory
        sizes.append((int(memory.frames) * memory.positions, int(memory.long_size)))
    return Produced({**outputs, "sizes": np.array(sizes, np.int64), **_stored(track)})


def _frame_of(step: Any, frames: int) -> int:
    if not isinstance(step, Mapping) or set(step) - _STEP_FIELDS or not {"frame", "all_labels"} <= set(step):
        raise InputError(f"step {step!r} needs frame and all_labels, and knows {', '.join(sorted(_STEP_FIELDS))}")
    if step["frame"] not in range(frames):
        raise InputError(f"step at frame {step['frame']!r}: the clip has {frames} frames")
    return int(step["frame"])


def _planes_of(step: Mapping[str, Any], planes: int) -> list[int]:
    """The planes of a mask that count. Labels are 1, 2, ... in the order of the planes."""
    every = list(step["all_labels"])
    if every != list(range(1, planes + 1)):
        raise InputError(f"labels {every} of a mask with {planes} planes: only 1, 2, ... in order can be run")
    valid = step.get("valid_labels")
    return [label - 1 for label in (every if valid is None else valid)]


def _stored(track: Track) -> dict[str, np.ndarray]:
    """What the memories hold at the end, without the room that is free, in upstream's layout."""
    memory: Any = jax.device_get(track.memory)
    limit, long = memory.long_capacity, int(memory.long_size)
    work = slice(limit, limit + int(memory.frames) * memory.positions)
    outputs = {
        "hidden": np.moveaxis(memory.hidden[: track.objects], -1, 1)[None],
        "work_key": memory.key[work].T[None],
        "work_usage": memory.usage()[work][None, None],
        "long_key": memory.key[:long].T[None],
        "long_shrinkage": memory.shrinkage[:long][None, None],
    }
    for group in range(int(memory.groups)):
        members = np.flatnonzero(memory.present & (memory.group == group))
        owned = int(memory.long_owned[members[0]])
        if owned:
            outputs[f"long_value/{group}"] = np.moveaxis(memory.value[members, long - owned : long], -1, 1)
    return outputs


def _network(case: Case) -> XMem:
    """The network of a case, whose sizes the weights tell and the config must not contradict."""
    config = case.config
    cfg = XMemConfig.from_shapes({key: array.shape for key, array in case.weights.items()})
    told = {name: getattr(cfg, name) for name in (*_DIMS, "single_object")}
    told |= {"decoder_width": cfg.up_dim, "pad_multiple": STRIDE}
    for where in (config, config.get("inference", {})):
        for name in told.keys() & where.keys():
            if where[name] != told[name]:
                raise InputError(f"config says {name} = {where[name]!r}, but the weights say {told[name]!r}")
    return from_torch("xmem", case.weights, cfg)


def _first(array: np.ndarray) -> np.ndarray:
    """Channels from the last axis to the second."""
    return np.moveaxis(array, -1, 1)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {"encoders": Kind(_encoders, _NETWORK, xmem_torch.ENCODERS), "core": Kind(_core, _CORE)}
)
