"""Counts of operations against closed forms and against what XLA counts in small models without loops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig
from rvseg_jax.models.mllmseg.flops import mask_flops
from rvseg_jax.models.mllmseg.mask_decoder import MaskDecoder
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.flops import encoder_flops, pair_flops
from rvseg_jax.models.raft.model import RAFT
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


@pytest.mark.parametrize("dropout", [False, True])
def test_the_mask_decoder_has_the_operations_that_xla_counts(dropout):
    cfg = MaskDecoderConfig(width=128, text_width=96, num_heads=2, feedforward=160, precision=FLOAT32)
    graph, state = abstract(lambda rngs: MaskDecoder(cfg, rngs=rngs))
    shapes = [jax.ShapeDtypeStruct((1, count, width), jnp.float32) for count, width in ((256, 128), (64, 96), (3, 96))]

    def forward(state, patches, read, words):
        decoder, key = nnx.merge(graph, state), jax.random.key(0, impl="rbg") if dropout else None
        return decoder.logits(decoder.features(decoder.fuse(patches, read, key=key), words, key=key))[0]

    expected = mask_flops(cfg, 16 * 14, 3, dropout=dropout)
    assert counted(forward, state, *shapes) == pytest.approx(expected, rel=0.06)


def test_raft_has_the_operations_that_xla_counts():
    cfg = RaftConfig(
        feature_encoder_layers=(32, 32, 48, 64, 64),
        context_encoder_layers=(32, 32, 48, 64, 96),
        corr_block_num_levels=2,
        corr_block_radius=2,
        motion_encoder_corr_layers=(64, 48),
        motion_encoder_flow_layers=(32, 16),
        motion_encoder_out_channels=64,
        recurrent_block_hidden_state_size=32,
        flow_head_hidden_size=64,
        mask_predictor_hidden_size=64,
        num_flow_updates=3,
        precision=FLOAT32,
    )
    graph, state = abstract(lambda rngs: RAFT(cfg, rngs=rngs))
    image = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.float32)

    def forward(state, first, second):
        return nnx.merge(graph, state)(first, second, unroll=True)

    encoders = 2 * encoder_flops(cfg.feature_encoder_layers, 96, 128)
    encoders += encoder_flops(cfg.context_encoder_layers, 96, 128)
    # On CPU windows are gathered, where the count has products of a few percent.
    assert counted(forward, state, image, image) == pytest.approx(encoders + pair_flops(cfg, 96, 128), rel=0.1)
