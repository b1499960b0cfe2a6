"""Pi3's table is a bijection onto upstream's keys; even blocks are frame blocks, odd ones global blocks."""

import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvseg_jax.convert import converter, export, from_torch, registry, to_torch
from rvseg_jax.convert.engine import leaves_of, plan_for
from rvseg_jax.convert.manifest import config_fields, config_from
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.model import SHARDING
from rvseg_jax.parity import pi3 as cases

PART = registry.part("pi3")
TINY = Pi3Config.tiny()
STATISTICS = {"image_mean", "image_std"}


def tensors(cfg: Pi3Config = TINY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plan, _ = plan_for(PART, cfg)
    made = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    return made | {name: rng.uniform(0, 1, (1, 3, 1, 1)).astype(np.float32) for name in STATISTICS}


def test_bijection_with_upstream(golden):
    meta = json.loads((golden / "pi3" / "a_3x42x70.json").read_text())
    shapes = {key: tuple(shape) for key, shape in meta["weights"]["keys"].items()}
    plan, _ = plan_for(PART, cases.model_config(meta["config"]))
    assert dict(plan.key_shapes) == {key: shape for key, shape in shapes.items() if key not in STATISTICS}
    assert plan.match(shapes).dropped.keys() == STATISTICS


def test_published_size():
    plan, model = plan_for(PART, Pi3Config.published())
    assert len(plan.key_shapes) + len(STATISTICS) == 1_210
    assert sum(map(math.prod, model.shapes.values())) == 958_696_732
    counts = {"encoder": 304_371_712, "decoder": 453_547_008, "register_token": 5_120}
    counts |= {"point_decoder": 66_128_896, "conf_decoder": 66_128_896, "camera_decoder": 65_604_096}
    counts |= {"point_head": 602_700, "conf_head": 200_900, "camera_head": 2_107_404}
    for part, count in counts.items():
        assert sum(math.prod(shape) for path, shape in model.shapes.items() if path.split("/")[0] == part) == count
    wanted = {
        "encoder.pos_embed": (1, 1370, 1024),
        "encoder.blocks.23.attn.qkv.weight": (3072, 1024),
        "decoder.35.attn.q_norm.weight": (64,),
        "decoder.35.ls2.gamma": (1024,),
        "camera_decoder.projects.weight": (1024, 2048),
        "camera_decoder.linear_out.weight": (512, 1024),
        "camera_head.res_conv.1.res_conv3.weight": (512, 512),
        "camera_head.more_mlps.2.bias": (512,),
        "point_head.proj.weight": (588, 1024),
    }
    assert {key: plan.key_shapes[key] for key in wanted} == wanted


def test_blocks_alternate():
    weights = tensors()
    model = from_torch("pi3", weights, TINY)
    leaves = leaves_of(model)
    for layer in range(TINY.depth):
        name = ("frame", "across")[layer % 2]
        fc1 = weights[f"decoder.{layer}.mlp.fc1.weight"]
        np.testing.assert_array_equal(leaves[f"decoder/{name}/mlp/up/kernel"][layer // 2], fc1.T)
        qkv = weights[f"decoder.{layer}.attn.qkv.weight"]
        np.testing.assert_array_equal(leaves[f"decoder/{name}/attn/qkv/kernel"][layer // 2, :, 1], qkv[32:64].T)
    back = to_torch("pi3", model)
    assert back.keys() | STATISTICS == weights.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)


def test_files_come_back_unchanged(tmp_path):
    weights, file = tensors(), tmp_path / "model.safetensors"
    save_file(weights, file)
    converter.convert({"pi3": converter.Source((file,), config=TINY)}, tmp_path / "out")
    export.export(tmp_path / "out", "pi3", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_weights_of_another_model_are_refused():
    """Pi3X shares most keys, but its heads are others; upstream would leave random heads in place."""
    weights = {key: value for key, value in tensors().items() if not key.startswith("conf_head")}
    with pytest.raises(ConversionError, match=r"conf_head\.proj"):
        from_torch("pi3", weights, TINY)


def test_every_leaf_has_a_sharding_rule_of_its_rank():
    _, model = plan_for(PART, TINY)
    for path, shape in model.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) in (0, len(shape)), path


def test_one_number_format_for_all_of_it():
    cfg = Pi3Config.tiny(BFLOAT16)
    assert cfg.encoder.precision == BFLOAT16
    assert config_from(Pi3Config, config_fields(cfg), PARITY) == TINY


@pytest.mark.parametrize(
    "changes,message",
    [({"depth": 5}, "must be even"), ({"heads_from": (5, 4)}, "ascending"), ({"heads_from": ()}, "asc")],
)
def test_sizes_that_do_not_fit_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        Pi3Config(**changes)
