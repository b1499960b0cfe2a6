"""Counts of operations against closed forms and against what XLA counts in small models without loops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.models.umt5 import encoder as umt5
from rvseg_jax.models.wan.flops import attention_products, training_flops
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig, flops

# Wide enough that matrix products outweigh norms, activations and softmax.
DIT = WanTransformerConfig(
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=4,
    out_channels=4,
    text_dim=64,
    freq_dim=32,
    ffn_dim=512,
    num_layers=3,
    rope_max_seq_len=32,
    precision=FLOAT32,
)
LATENTS, TEXT = (1, 3, 16, 16, 4), 32
TOKENS = 3 * 8 * 8


def counted(function, *shapes) -> float:
    """Operations that XLA counts in a compiled program."""
    # Unoptimised: products of equal inputs stay two, and recomputation stays.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*shapes).compile(options).cost_analysis()["flops"]


def abstract(make) -> tuple[nnx.GraphDef, Any]:
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


def test_published_sizes_have_the_counts_of_their_closed_forms():
    cfg = WanTransformerConfig.t2v_1_3b()
    # 17 frames of 464x832: 7,540 tokens, 29.8 TFLOP forward.
    assert flops(cfg, 7540, 256) == pytest.approx(29.8e12, rel=0.01)
    # Two attention products a layer, T * T * D multiply-adds each, beside the text's.
    assert attention_products(cfg, 7540, 256) == 2 * 30 * 7540 * (7540 + 256) * 1536
    whole = training_flops(cfg, 7540, 256, remat="full", kernel_products=3)
    assert whole.backward == 2 * whole.forward
    outside = flops(dataclasses.replace(cfg, num_layers=0), 7540, 256)
    assert whole.recomputed == whole.forward - outside + 3 * attention_products(cfg, 7540, 256)
    assert whole.total == whole.forward + whole.backward + whole.recomputed
    assert training_flops(cfg, 7540, 256, remat="none").recomputed == 0


def test_a_forward_pass_has_the_operations_that_xla_counts():
    graph, state = abstract(lambda rngs: WanTransformer(DIT, rngs=rngs))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (LATENTS, (1,), (1, TEXT, DIT.text_dim))]

    def forward(state, *given):
        return nnx.merge(graph, state)(*given, mode="unroll")

    assert counted(forward, state, *shapes) == pytest.approx(flops(DIT, TOKENS, TEXT), rel=0.05)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_training_step_has_the_operations_that_xla_counts(remat):
    graph, state = abstract(lambda rngs: WanTransformer(DIT, rngs=rngs))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (LATENTS, (1,), (1, TEXT, DIT.text_dim))]

    def loss(state, *given):
        return jnp.sum(nnx.merge(graph, state)(*given, mode="unroll", remat=remat) ** 2)

    expected = training_flops(DIT, TOKENS, TEXT, remat=remat).total
    assert counted(jax.grad(loss), state, *shapes) == pytest.approx(expected, rel=0.06)


def test_the_text_encoder_has_the_operations_that_xla_counts():
    cfg = dataclasses.replace(umt5.UMT5Config.tiny(FLOAT32), d_model=128, d_kv=32, num_heads=4, d_ff=256)
    graph, state = abstract(lambda rngs: umt5.UMT5Encoder(cfg, rngs=rngs))
    ids = jax.ShapeDtypeStruct((1, 48), jnp.int32)

    def forward(state, ids):
        return nnx.merge(graph, state)(ids, ids >= 0, mode="unroll")

    assert counted(forward, state, ids) == pytest.approx(umt5.flops(cfg, 48), rel=0.05)
