"""The tables of InternVL and MLLMSeg are bijections onto upstream's keys, and onto transformers'."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.convert.manifest import config_fields, config_from
from rvseg_jax.core.precision import PARITY
from rvseg_jax.core.tree_paths import flatten, matches
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig, MLLMSegConfig
from rvseg_jax.models.mllmseg.mask_decoder import MaskDecoder
from rvseg_jax.models.mllmseg.model import SHARDING
from rvseg_jax.parity import mllmseg as cases

PART = registry.part("mllmseg")
# What a checkpoint holds and no leaf takes.
OFFSETS, COUNTER = "res_decoder.upsample_adapter_l.init_pos", "res_decoder.conv1.1.num_batches_tracked"


def keys_of(golden, name):
    return json.loads((golden / "mllmseg" / f"{name}.json").read_text())


def test_bijection_with_upstream(golden):
    meta = keys_of(golden, "model_inference")
    shapes = {key: tuple(shape) for key, shape in meta["weights"]["keys"].items()}
    plan, _ = plan_for(PART, cases.model_config(meta["config"]))
    assert dict(plan.key_shapes) == {key: shape for key, shape in shapes.items() if key not in (OFFSETS, COUNTER)}
    assert plan.match(shapes).dropped.keys() == {OFFSETS, COUNTER}


@pytest.mark.parametrize(
    ("width", "count"), [(896, 27_831_942), (2048, 30_191_238), (4096, 34_385_542)], ids=["1B", "2B and 4B", "8B"]
)
def test_size_of_the_mask_decoder(width, count):
    cfg = MaskDecoderConfig(text_width=width)
    params = nnx.state(nnx.eval_shape(lambda: MaskDecoder(cfg, rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("size", ["1b", "2b", "4b", "8b"])
def test_published_sizes(size):
    """Keys and shapes of the specification's table, section 6."""
    cfg = getattr(MLLMSegConfig, f"internvl2_5_{size}")()
    language = cfg.internvl.language
    plan, model = plan_for(PART, cfg)
    width, rows = language.hidden_size, {"internlm2": 92_555, "qwen2": 151_676}[cfg.internvl.family]
    wanted = {
        "vision_model.embeddings.position_embedding": (1, 1025, 1024),
        "vision_model.encoder.layers.23.attn.qkv.weight": (3072, 1024),
        "vision_model.encoder.layers.0.ls1": (1024,),
        "mlp1.1.weight": (width, 4096),
        "res_decoder.img_llm_down.weight": (1024, width),
        "res_decoder.ca_layer_vl.decoder.layers.0.multihead_attn.in_proj_weight": (3072, 1024),
        "res_decoder.conv1.0.weight": (196, 1024, 3, 3),
    }
    if cfg.internvl.family == "internlm2":
        grouped = (language.num_attention_heads + 2 * language.num_key_value_heads) * language.head_width
        wanted |= {
            "language_model.model.tok_embeddings.weight": (rows, width),
            "language_model.output.weight": (rows, width),
            "language_model.model.layers.0.attention.wqkv.weight": (grouped, width),
        }
    else:
        wanted |= {
            "language_model.model.embed_tokens.weight": (rows, width),
            "language_model.lm_head.weight": (rows, width),
            "language_model.model.layers.0.self_attn.k_proj.bias": (256 if size == "4b" else 128,),
        }
    assert {key: plan.key_shapes[key] for key in wanted} == wanted
    assert sum(map(math.prod, plan.key_shapes.values())) == sum(map(math.prod, model.shapes.values()))
    rules = [pattern for pattern, _ in SHARDING]
    assert all(matches(path, rules) for path in model.shapes)
    internvl, _ = plan_for(registry.part("internvl"), cfg.internvl)
    assert {key: shape for key, shape in plan.key_shapes.items() if not key.startswith("res_")} == internvl.key_shapes


def test_a_checkpoint_comes_back_unchanged(golden):
    case = cases_golden(golden)
    model = from_torch("mllmseg", case.weights, cases.model_config(case.config))
    back = to_torch("mllmseg", model)
    assert back.keys() == case.weights.keys() - {OFFSETS, COUNTER}
    for key, value in back.items():
        np.testing.assert_array_equal(value, case.weights[key], err_msg=key)


def cases_golden(golden):
    from rvseg_jax.parity import golden as golden_cases

    return golden_cases.read(golden / "mllmseg" / "model_inference.json")


def test_config_of_the_manifest_and_of_upstream():
    tiny = MLLMSegConfig.tiny()
    assert config_from(MLLMSegConfig, config_fields(tiny), PARITY) == tiny
    values = {
        "architectures": ["MLLMSeg"],
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            "vocab_size": 92_555,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "rope_theta": 1_000_000,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rms_norm_eps": 1e-5,
            "bias": False,
        },
        "vision_config": {"hidden_size": 1024, "image_size": 448, "num_hidden_layers": 24, "norm_type": "layer_norm"},
    }
    assert MLLMSegConfig.from_upstream(values) == MLLMSegConfig.internvl2_5_8b()
    for change in ({"ps_version": "v1"}, {"select_layer": -2}, {"llm_config": {"architectures": ["Phi3ForCausalLM"]}}):
        with pytest.raises(ValueError, match="only"):
            MLLMSegConfig.from_upstream(values | change)
    with pytest.raises(ValueError, match="qk_normalization"):
        MLLMSegConfig.from_upstream(values | {"vision_config": {"qk_normalization": True}})
    with pytest.raises(ValueError, match="downsample_ratio"):
        dataclasses.replace(InternVLConfig.tiny(), downsample_ratio=0.3)


def test_dropout_and_groups_survive():
    cfg = dataclasses.replace(MLLMSegConfig.tiny(), dropout=0.0, groups=2)
    assert cfg.decoder.dropout == 0 and cfg.decoder.groups == 2 and cfg.decoder.feedforward == 32
    state = nnx.state(nnx.eval_shape(lambda: MaskDecoder(cfg.decoder, rngs=nnx.Rngs(0))))
    assert flatten(nnx.to_pure_dict(state))["upsample/offset/kernel"].shape == (32, 2 * 2 * 4)
