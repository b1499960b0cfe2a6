"""The table of the Wan transformer: a bijection at every published size, and upstream's parameter order."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from rvseg_jax.convert import engine, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.tables.wan_dit import parameter_order
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.core.tree_paths import flatten, unflatten
from rvseg_jax.models.wan.transformer import SHARDING, WanTransformerConfig
from rvseg_jax.parallel import AXES, DEFAULT_RULES, shardings

T2V_1_3B = WanTransformerConfig.t2v_1_3b()
SIZES = {
    "1.3B": T2V_1_3B,
    "1.3B with direct video injection": T2V_1_3B.with_direct_video_injection(),
    "14B": WanTransformerConfig.t2v_14b(),
    "tiny": WanTransformerConfig.tiny(),
}


def upstream(torch, cfg: WanTransformerConfig):
    """diffusers' model without weights."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(
            num_attention_heads=cfg.num_attention_heads,
            attention_head_dim=cfg.attention_head_dim,
            in_channels=cfg.in_channels,
            out_channels=cfg.out_channels,
            text_dim=cfg.text_dim,
            freq_dim=cfg.freq_dim,
            ffn_dim=cfg.ffn_dim,
            num_layers=cfg.num_layers,
            rope_max_seq_len=cfg.rope_max_seq_len,
        )


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("cfg", SIZES.values(), ids=SIZES)
def test_bijection(torch, cfg):
    plan, _ = engine.plan_for(registry.part("wan_dit"), cfg)
    shapes = shapes_of(upstream(torch, cfg))
    assert plan.key_shapes == shapes
    assert not plan.match(shapes).dropped


def test_published_size():
    plan, model = engine.plan_for(registry.part("wan_dit"), T2V_1_3B)
    assert len(plan.key_shapes) == 825
    assert sum(map(math.prod, model.shapes.values())) == 1_418_996_800


@pytest.mark.parametrize("cfg", SIZES.values(), ids=SIZES)
def test_parameter_order(torch, cfg):
    from diffusers.models.attention_processor import Attention

    # FlowRVS's class: diffusers' older attention, and with injection a wider convolution put in afterwards.
    model = upstream(torch, cfg)
    with torch.device("meta"):
        for block in model.blocks:
            for name in ("attn1", "attn2"):
                attention = Attention(
                    query_dim=cfg.inner_dim,
                    heads=cfg.num_attention_heads,
                    kv_heads=cfg.num_attention_heads,
                    dim_head=cfg.attention_head_dim,
                    qk_norm=cfg.qk_norm,
                    bias=True,
                    out_bias=True,
                )
                setattr(block, name, attention)
        model.patch_embedding = torch.nn.Conv3d(cfg.in_channels, cfg.inner_dim, cfg.patch_size, cfg.patch_size)
    assert parameter_order(cfg) == [name for name, _ in model.named_parameters()]
    # The order of today's diffusers differs, so that it must not be used to name an EMA list.
    assert parameter_order(cfg) != [name for name, _ in upstream(torch, cfg).named_parameters()]


@pytest.mark.parametrize("case", ["dit_plain", "dit_dvi"])
def test_parameter_order_of_the_original(golden, case):
    meta = json.loads((golden / "flowrvs" / f"{case}.json").read_text())
    cfg = WanTransformerConfig.from_upstream(meta["config"])
    assert parameter_order(cfg) == list(meta["weights"]["keys"])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_exact(dtype):
    cfg = WanTransformerConfig.tiny()
    plan, _ = engine.plan_for(registry.part("wan_dit"), cfg)
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape).astype(dtype) for key, shape in plan.key_shapes.items()}
    precision = BFLOAT16 if dtype == ml_dtypes.bfloat16 else None
    back = to_torch("wan_dit", from_torch("wan_dit", tensors, cfg, precision=precision))
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        assert back[key].dtype == dtype
        np.testing.assert_array_equal(back[key], value)


def test_weights_of_the_other_width_are_refused():
    cfg = WanTransformerConfig.tiny()
    plan, _ = engine.plan_for(registry.part("wan_dit"), cfg)
    tensors = {key: np.zeros(shape, np.float32) for key, shape in plan.key_shapes.items()}
    with pytest.raises(ConversionError, match="patch_embedding.weight"):
        from_torch("wan_dit", tensors, cfg.with_direct_video_injection())


def test_large_leaves_are_cut_over_both_axes():
    model = engine.skeleton(registry.part("wan_dit"), T2V_1_3B)
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in model.shapes.items()}
    mesh = AbstractMesh((1, 4, 1, 4), AXES)
    layout = flatten(shardings(unflatten(leaves), SHARDING, DEFAULT_RULES, mesh))
    assert layout["blocks/attn1/to_q/kernel"].spec == P(None, "fsdp", "tensor")
    assert layout["blocks/attn2/to_out/kernel"].spec == P(None, "tensor", "fsdp")
    held = sum(math.prod(layout[path].shard_shape(leaf.shape)) for path, leaf in leaves.items())
    assert held < 1.02 * 1_418_996_800 / 16
