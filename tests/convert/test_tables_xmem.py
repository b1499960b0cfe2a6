"""XMem's table is a bijection onto upstream's keys, for all published variants; sizes are told by the tensors."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from rvseg_jax.convert import converter, engine, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.export import export
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.safetensors_file import read_safetensors
from rvseg_jax.models.xmem.config import XMemConfig
from rvseg_jax.models.xmem.network import SHARDING, XMem

PART = registry.part("xmem")
TINY = XMemConfig.tiny()
COUNTER = ".num_batches_tracked"


@pytest.fixture(scope="module")
def upstream(golden) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of upstream's state dict at key, value and hidden dimensions of 16, 32 and 16."""
    meta = json.loads((golden / "xmem" / "encoders.json").read_text())
    return {key: tuple(shape) for key, shape in meta["weights"]["keys"].items()}


def tensors_of(cfg: XMemConfig, *, counters: bool = True) -> dict[str, np.ndarray]:
    plan, _ = engine.plan_for(PART, cfg)
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    norms = [key.removesuffix(".running_var") for key in tensors if key.endswith(".running_var")]
    return tensors | ({norm + COUNTER: np.array(7 + len(norm)) for norm in norms} if counters else {})


def test_bijection_with_upstream(upstream):
    assert len(upstream) == 412
    cfg = XMemConfig.from_shapes(upstream)
    assert cfg == XMemConfig(key_dim=16, value_dim=32, hidden_dim=16)
    plan, _ = engine.plan_for(PART, cfg)
    match = plan.match(upstream)
    assert len(match.dropped) == 58 and all(key.endswith(COUNTER) for key in match.dropped)
    assert dict(plan.key_shapes) == {key: shape for key, shape in upstream.items() if not key.endswith(COUNTER)}


def test_published_sizes(upstream):
    plan, model = engine.plan_for(PART, XMemConfig.published())
    assert set(plan.key_shapes) == {key for key in upstream if not key.endswith(COUNTER)}
    learned = [shape for path, shape in model.shapes.items() if not path.endswith(("/mean", "/var"))]
    assert sum(map(math.prod, learned)) == 62_185_224
    wanted = {
        "key_proj.key_proj.weight": (64, 1024, 3, 3),
        "value_encoder.conv1.weight": (64, 5, 7, 7),
        "value_encoder.fuser.block1.conv1.weight": (512, 1280, 3, 3),
        "value_encoder.fuser.attention.ChannelGate.mlp.1.weight": (32, 512),
        "value_encoder.hidden_reinforce.transform.weight": (192, 576, 3, 3),
        "decoder.fuser.block1.downsample.weight": (512, 1600, 3, 3),
        "decoder.hidden_update.g4_conv.weight": (256, 257, 1, 1),
        "decoder.pred.weight": (1, 256, 3, 3),
    }
    assert {key: plan.key_shapes[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_dim": 0},
        {"single_object": True},
        {"key_depths": (2, 1, 3), "value_depths": (1, 2, 1), "value_dim": 48, "decoder_dim": 80, "up_dim": 40},
        # Widths at which no shortcut needs a convolution.
        {"value_dim": 160, "up_dim": 64},
    ],
    ids=str,
)
def test_sizes_are_told_by_the_tensors(changes):
    cfg = dataclasses.replace(TINY, **changes)
    plan, _ = engine.plan_for(PART, cfg)
    assert XMemConfig.from_shapes(plan.key_shapes) == cfg
    plan.match(plan.key_shapes)


def test_variants_leave_out_what_they_lack():
    keys = {
        name: set(engine.plan_for(PART, dataclasses.replace(TINY, hidden_dim=dim))[0].key_shapes)
        for name, dim in (("with", 16), ("without", 0))
    }
    assert keys["without"] < keys["with"]
    assert all("hidden_" in key for key in keys["with"] - keys["without"])


def test_round_trip_through_python():
    tensors = tensors_of(TINY)
    model = from_torch("xmem", {f"module.{key}": value for key, value in tensors.items()}, precision="parity")
    assert model.cfg == TINY
    back = to_torch("xmem", model)
    assert set(back) == {key for key in tensors if not key.endswith(COUNTER)}
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key])
    kernel = np.asarray(model.value_encoder.conv1.kernel[...])
    np.testing.assert_array_equal(kernel, tensors["value_encoder.conv1.weight"][:, 3:].transpose(2, 3, 1, 0))


def test_export_writes_every_tensor_of_the_file_back(tmp_path):
    tensors = tensors_of(dataclasses.replace(TINY, hidden_dim=0))
    save_file(tensors, tmp_path / "XMem.safetensors")
    converter.convert({"xmem": converter.Source((tmp_path / "XMem.safetensors",))}, tmp_path / "out")
    export(tmp_path / "out", "xmem", tmp_path / "back.safetensors")
    back = read_safetensors(tmp_path / "back.safetensors")
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


def test_a_file_that_does_not_fit_is_refused():
    tensors = tensors_of(TINY, counters=False)
    without = {key: value for key, value in tensors.items() if key != "decoder.pred.bias"}
    with pytest.raises(ConversionError, match=r"decoder\.pred\.bias"):
        from_torch("xmem", without)
    with pytest.raises(ConversionError, match=r"layer3\.0\.bn4"):
        from_torch("xmem", tensors | {"value_encoder.layer3.0.bn4.weight": np.zeros(3, np.float32)})


def test_statistics_are_no_parameters_and_every_variable_has_a_sharding_rule():
    model = nnx.eval_shape(lambda: XMem(XMemConfig.published(), rngs=nnx.Rngs(0)))
    _, learned, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    assert len(nnx.to_flat_state(statistics)) == 2 * 58
    _, skeleton = engine.plan_for(PART, XMemConfig.published())
    for path, shape in skeleton.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) == len(shape), path
    assert all(leaf.dtype == jnp.float32 for _, leaf in nnx.to_flat_state(learned))
