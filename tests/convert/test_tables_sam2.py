"""SAM 2's tables are bijections onto the keys of the original and of transformers, at every published size."""

import hashlib
import re

import numpy as np
import pytest

from rvseg_jax.convert import from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.convert.fit import fit
from rvseg_jax.convert.manifest import config_fields, config_from
from rvseg_jax.convert.sources import Checkpoint
from rvseg_jax.convert.tensors import Tensors
from rvseg_jax.core.precision import PARITY
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import SHARDING

# Of the original package's `build_sam2`: number of keys, trained parameters (without the buffer of Fourier
# frequencies), and the start of the sha256 of all "key [shape]" lines, sorted.
PUBLISHED = {
    "sam2_1_tiny": (471, 38_962_498, "aa97d3d723e3d9a2"),
    "sam2_1_small": (519, 46_060_354, "3bfa6b62d57cfb99"),
    "sam2_1_base_plus": (615, 80_850_178, "3306e68a5090c989"),
    "sam2_1_large": (903, 224_446_642, "e80150164c9113ce"),
    "sam2_tiny": (468, 38_945_986, "46dfd9146506224d"),
    "sam2_small": (516, 46_043_842, "30cd13d02cb4e26a"),
    "sam2_base_plus": (612, 80_833_666, "3b46430dd2c541d6"),
    "sam2_large": (900, 224_430_130, "6d40bc872944b9e4"),
}
QUICK = ("sam2_1_tiny",)
FOURIER = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
PART = registry.part("sam2")


def sizes():
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]


def digest(shapes) -> str:
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", sizes())
def test_bijection_with_the_original(name):
    keys, parameters, known = PUBLISHED[name]
    cfg = getattr(Sam2Config, name)()
    plan, _ = plan_for(PART, cfg)
    assert len(plan.key_shapes) == keys
    assert sum(int(np.prod(shape)) for key, shape in plan.key_shapes.items() if key != FOURIER) == parameters
    assert digest(plan.key_shapes) == known
    assert Sam2Config.from_shapes(plan.key_shapes) == cfg


@pytest.mark.parametrize("name", sizes())
def test_bijection_with_transformers(torch, name):
    transformers = pytest.importorskip("transformers")
    from transformers.models.sam2 import configuration_sam2 as configs

    cfg, quick = getattr(Sam2Config, name)(), name in QUICK
    trunk = configs.Sam2HieraDetConfig(
        hidden_size=cfg.hiera.embed_dim,
        num_attention_heads=cfg.hiera.num_heads,
        blocks_per_stage=list(cfg.hiera.stages),
        embed_dim_per_stage=list(cfg.hiera.widths),
        num_attention_heads_per_stage=list(cfg.hiera.heads),
        window_size_per_stage=list(cfg.hiera.window_spec),
        global_attention_blocks=list(cfg.hiera.global_att_blocks),
        window_positional_embedding_background_size=list(cfg.hiera.window_pos_embed_bkg_spatial_size),
    )
    vision = configs.Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=list(reversed(cfg.hiera.widths)))
    video = transformers.Sam2VideoConfig(
        vision_config=vision,
        enable_temporal_pos_encoding_for_object_pointers=cfg.tracking.add_tpos_enc_to_obj_ptrs,
        enable_occlusion_spatial_embedding=cfg.no_obj_embed_spatial,
    )
    models = [(transformers.Sam2VideoModel, video, cfg)]
    if quick:
        models.append((transformers.Sam2Model, configs.Sam2Config(vision_config=vision), cfg.image_only()))
    for model, config, wanted in models:
        with torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in model(config).state_dict().items()}
        plan, _ = plan_for(PART, wanted, "transformers")
        repeated = {"prompt_encoder.shared_embedding.positional_embedding"}
        assert {key: shape for key, shape in shapes.items() if key not in repeated} == dict(plan.key_shapes)
        assert plan.match(shapes).repeats.keys() == repeated
        assert Sam2Config.from_shapes(shapes) == wanted
        read = Sam2Config.from_upstream(config.to_dict())
        assert (read.hiera, read.no_obj_embed_spatial, read.d_model) == (cfg.hiera, wanted.no_obj_embed_spatial, 256)
        assert read.tracking == cfg.tracking


@pytest.mark.parametrize("cfg", [Sam2Config.tiny(), Sam2Config.tiny().as_sam2_0(), Sam2Config.tiny().image_only()])
def test_both_layouts_hold_the_same_model(cfg):
    """Weights go from one layout through the model to the other and back without a change."""
    rng = np.random.default_rng(0)
    plan, _ = plan_for(PART, cfg)
    weights = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in plan.key_shapes.items()}
    model = from_torch("sam2", weights, cfg)
    renamed = to_torch("sam2", model, aliases=True, layout="transformers")
    # These names alone are the same in both.
    assert all(key.startswith(("mask_downsample.", "memory_attention.")) for key in renamed.keys() & weights.keys())
    stacked = np.concatenate([weights[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)])
    np.testing.assert_array_equal(renamed["prompt_encoder.point_embed.weight"], stacked)
    checkpoint = Checkpoint(Tensors(renamed))
    assert fit(PART, checkpoint, cfg).layout == "transformers"
    back = to_torch("sam2", from_torch("sam2", renamed, cfg))
    assert back.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_every_leaf_has_a_sharding_rule_of_its_rank():
    _, model = plan_for(PART, Sam2Config.tiny())
    for path, shape in model.shapes.items():
        names = next((names for pattern, names in SHARDING if re.search(pattern, path)), None)
        assert names is not None and len(names) in (0, len(shape)), path


def test_configs_survive_a_manifest():
    cfg = Sam2Config.tiny().as_sam2_0().with_postprocessing()
    assert config_from(Sam2Config, config_fields(cfg), PARITY) == cfg


def test_networks_that_are_not_here_are_refused():
    with pytest.raises(ValueError, match="hidden_act"):
        Sam2Config.from_upstream({"mask_decoder_config": {"hidden_act": "silu"}})
    with pytest.raises(ValueError, match="doubles from stage to stage"):
        Sam2Config.from_upstream({"vision_config": {"backbone_config": {"embed_dim_per_stage": [96, 96, 96, 96]}}})
    with pytest.raises(ValueError, match="window_spec"):
        Sam2Config.from_upstream({"vision_config": {"backbone_config": {"window_size_per_stage": [8, 4]}}})
