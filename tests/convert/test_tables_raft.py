"""RAFT's table is a bijection onto torchvision's keys, for any sizes, which the tensors tell."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from rvseg_jax.convert import converter, engine, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.export import export
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.safetensors_file import read_safetensors
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.model import RAFT, SHARDING

PART = registry.part("raft")
TINY = RaftConfig.tiny()
COUNTER = ".num_batches_tracked"


def tensors_of(cfg: RaftConfig) -> dict[str, np.ndarray]:
    plan, _ = engine.plan_for(PART, cfg)
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    norms = [key.removesuffix(".running_var") for key in tensors if key.endswith(".running_var")]
    return tensors | {norm + COUNTER: np.array(7 + len(norm)) for norm in norms}


def test_bijection_with_torchvision(golden):
    meta = json.loads((golden / "raft_large" / "a_128x160.json").read_text())
    keys = {key: tuple(shape) for key, shape in meta["weights"]["keys"].items()}
    assert len(keys) == 169
    assert RaftConfig.from_shapes(keys) == RaftConfig.large()
    plan, model = engine.plan_for(PART, RaftConfig.large())
    match = plan.match(keys)
    assert len(match.dropped) == 15 and all(key.endswith(COUNTER) for key in match.dropped)
    assert dict(plan.key_shapes) == {key: shape for key, shape in keys.items() if not key.endswith(COUNTER)}
    learned = [shape for path, shape in model.shapes.items() if not path.endswith(("/mean", "/var"))]
    assert sum(map(math.prod, learned)) == 5_257_536


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"motion_encoder_corr_layers": (40,), "recurrent_block_kernel_size": ((3, 3),)},
        {"corr_block_num_levels": 3, "corr_block_radius": 1, "recurrent_block_kernel_size": ((1, 3), (7, 1))},
    ],
    ids=str,
)
def test_sizes_are_told_by_the_tensors(changes):
    cfg = dataclasses.replace(TINY, **changes)
    plan, _ = engine.plan_for(PART, cfg)
    plan.match(plan.key_shapes)
    told = RaftConfig.from_shapes(plan.key_shapes)
    assert dataclasses.replace(told, num_flow_updates=TINY.num_flow_updates) == cfg


def test_round_trip_through_python():
    tensors = tensors_of(TINY)
    model = from_torch("raft", {f"module.{key}": value for key, value in tensors.items()}, precision="parity")
    back = to_torch("raft", model)
    assert set(back) == {key for key in tensors if not key.endswith(COUNTER)}
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key])
    kernel = np.asarray(model.update_block.recurrent_block.convgru1.convr.kernel[...])
    source = tensors["update_block.recurrent_block.convgru1.convr.weight"]
    assert kernel.shape[:2] == (1, 5)
    np.testing.assert_array_equal(kernel, source.transpose(2, 3, 1, 0))
    variance = np.asarray(model.context_encoder.layer2[0].downsample.norm.var[...])
    np.testing.assert_array_equal(variance, tensors["context_encoder.layer2.0.downsample.1.running_var"])


def test_export_writes_every_tensor_of_the_file_back(tmp_path):
    tensors = tensors_of(TINY)
    save_file(tensors, tmp_path / "raft.safetensors")
    converter.convert({"raft": converter.Source((tmp_path / "raft.safetensors",))}, tmp_path / "out")
    export(tmp_path / "out", "raft", tmp_path / "back.safetensors")
    back = read_safetensors(tmp_path / "back.safetensors")
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


def test_a_file_that_does_not_fit_is_refused():
    tensors = tensors_of(TINY)
    without = {key: value for key, value in tensors.items() if key != "mask_predictor.conv.bias"}
    with pytest.raises(ConversionError, match=r"mask_predictor\.conv\.bias"):
        from_torch("raft", without)
    with pytest.raises(ConversionError, match=r"feature_encoder\.layer1\.0\.convnormrelu1\.1"):
        from_torch("raft", tensors | {"feature_encoder.layer1.0.convnormrelu1.1.weight": np.zeros(16, np.float32)})


def test_statistics_are_no_parameters_and_every_variable_has_a_sharding_rule():
    model = nnx.eval_shape(lambda: RAFT(RaftConfig.large(), rngs=nnx.Rngs(0)))
    _, _, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    assert len(nnx.to_flat_state(statistics)) == 2 * 15
    _, skeleton = engine.plan_for(PART, RaftConfig.large())
    for path, shape in skeleton.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) == len(shape), path
