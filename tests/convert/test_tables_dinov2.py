"""DINOv2's tables are bijections onto the keys of the original and of transformers, and files come back unchanged."""

import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvseg_jax.convert import converter, export, from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.models.dinov2.encoder import SHARDING, Dinov2Config

PART = registry.part("dinov2")
TINY = Dinov2Config.tiny()
MASKS = {"": "mask_token", "transformers": "embeddings.mask_token"}
# Parameters without the mask token, which the encoder does not have.
SIZES = {"vit_s14_reg": 22_057_728, "vit_b14_reg": 86_582_784, "vit_l14_reg": 304_371_712}


def tensors(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plan, _ = plan_for(PART, TINY, layout)
    made = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    return made | {MASKS[layout]: rng.standard_normal((1, TINY.embed_dim)).astype(np.float32)}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    plan, model = plan_for(PART, getattr(Dinov2Config, name)())
    assert sum(map(math.prod, model.shapes.values())) == SIZES[name]
    assert sum(map(math.prod, plan.key_shapes.values())) == SIZES[name]


def test_bijection_with_pi3s_encoder(golden):
    """Upstream's keys, as a checkpoint of Pi3 holds them."""

    keys = json.loads((golden / "pi3" / "a_3x42x70.json").read_text())["weights"]["keys"]
    shapes = {key.removeprefix("encoder."): tuple(shape) for key, shape in keys.items() if key.startswith("encoder.")}
    plan, _ = plan_for(PART, TINY)
    assert dict(plan.key_shapes) == shapes
    assert plan.match({**shapes, "mask_token": (1, 32)}).dropped.keys() == {"mask_token"}


def test_bijection_with_transformers(torch, tmp_path):
    """With the keys of the files and with those of the module, which differ."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56
    )
    model = transformers.Dinov2WithRegistersModel(config)
    plan, _ = plan_for(PART, TINY, "transformers")
    module = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert plan.match(module).dropped.keys() == {"embeddings.mask_token"}
    model.save_pretrained(tmp_path)
    saved = {key: array.shape for key, array in load_file(tmp_path / "model.safetensors").items()}
    assert {key: shape for key, shape in saved.items() if "mask_token" not in key} == dict(plan.key_shapes)
    read = from_torch("dinov2", tmp_path)  # by the config.json beside it
    assert (read.cfg.embed_dim, read.cfg.grid, read.cfg.depth) == (32, 4, 2)
    for key, value in to_torch("dinov2", from_torch("dinov2", _arrays(model), TINY), layout="transformers").items():
        np.testing.assert_array_equal(value, load_file(tmp_path / "model.safetensors")[key], err_msg=key)


def _arrays(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


def test_both_layouts_hold_the_same_model():
    weights = tensors("")
    model = from_torch("dinov2", weights, TINY)
    renamed = to_torch("dinov2", model, layout="transformers")
    fused = weights["blocks.1.attn.qkv.weight"]
    for place, name in enumerate(("query", "key", "value")):
        one = renamed[f"encoder.layer.1.attention.attention.{name}.weight"]
        np.testing.assert_array_equal(one, fused[32 * place : 32 * (place + 1)])
    back = to_torch("dinov2", from_torch("dinov2", renamed, TINY))
    assert back.keys() | {"mask_token"} == weights.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)


@pytest.mark.parametrize("layout", MASKS, ids=["original", "transformers"])
def test_files_come_back_unchanged(layout, tmp_path):
    weights, file = tensors(layout), tmp_path / "model.safetensors"
    save_file(weights, file)
    converter.convert({"dinov2": converter.Source((file,), config=TINY)}, tmp_path / "out")
    export.export(tmp_path / "out", "dinov2", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_every_leaf_has_a_sharding_rule_of_its_rank():
    _, model = plan_for(PART, TINY)
    for path, shape in model.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) in (0, len(shape)), path


def test_networks_that_are_not_here_are_refused():
    with pytest.raises(ValueError, match="use_swiglu_ffn is True"):
        Dinov2Config.from_upstream({"use_swiglu_ffn": True})
