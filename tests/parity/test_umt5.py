"""The UMT5 encoder against transformers with random weights, whole and block by block."""

import dataclasses
import gc
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_models
from flax import nnx

from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.umt5.encoder import (
    UMT5Config,
    UMT5Encoder,
    encode_blockwise,
    flops,
    layer_states,
    position_buckets,
)

# float32 sums in another order: outputs measure up to 2e-6, as attention without 1/sqrt(d) has sharp softmaxes.
VALUES = 1e-5
GRADIENTS = 1e-4

TINY = UMT5Config.tiny()


def relative(ours, theirs) -> float:
    """max |a - b| / max |b|."""
    theirs = np.asarray(theirs, np.float32)
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def ported(model, cfg: UMT5Config, precision=None) -> UMT5Encoder:
    tensors = {key: value.float().numpy() for key, value in model.state_dict().items()}
    return from_torch("umt5", tensors, cfg, precision=precision)


def jitted(model: nnx.Module, **options):
    """The compiled model. Its weights are arguments: closed over, XLA would fold them in as constants."""
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, *arrays: nnx.merge(graphdef, state)(*arrays, **options))
    return partial(forward, state)


def sentences(cfg: UMT5Config, tokens: int = 24):
    """Ids padded with 0 after the end-of-sentence id 1: a short sentence and one that fills the row."""
    lengths = np.array([7, tokens])
    ids = np.random.default_rng(tokens).integers(2, cfg.vocab_size, (2, tokens)).astype(np.int32)
    mask = np.arange(tokens) < lengths[:, None]
    ids = np.where(mask, ids, 0)
    ids[np.arange(2), lengths - 1] = 1
    return ids, mask


def run_reference(torch, model, ids, mask):
    return model(
        input_ids=torch.as_tensor(ids).long(), attention_mask=torch.as_tensor(mask).long(), output_hidden_states=True
    )


def test_values_and_taps(torch):
    model = torch_models.umt5(torch, TINY)
    ids, mask = sentences(TINY)
    with torch.no_grad():
        wanted = run_reference(torch, model, ids, mask)
    encoder = ported(model, TINY)
    ours, taps = jitted(encoder, taps=True)(ids, mask)
    assert relative(ours, wanted.last_hidden_state) < VALUES
    # The last of upstream's hidden states is the normalised output.
    for name, value in zip(["embedding", "block0"], wanted.hidden_states, strict=False):
        assert relative(taps[name], value) < VALUES, name
    assert set(taps) == {"embedding", "block0", "block1"}
    assert relative(encoder(ids, mask, mode="host_loop"), ours) < 1e-6
    # A shorter row gives the same numbers, so that padding beyond the longest sentence can be left out.
    short = jitted(encoder)(ids[:1, :9], mask[:1, :9])
    assert relative(short[:, :7], ours[:1, :7]) < 1e-6


def test_gradients(torch):
    model = torch_models.umt5(torch, TINY, seed=1)
    ids, mask = sentences(TINY)
    weight = np.random.default_rng(3).standard_normal((*ids.shape, TINY.d_model)).astype(np.float32)
    weight *= mask[..., None]
    (run_reference(torch, model, ids, mask).last_hidden_state * torch.as_tensor(weight)).sum().backward()
    graphdef, state = nnx.split(ported(model, TINY))

    @jax.jit
    def loss(state):
        return (nnx.merge(graphdef, state)(ids, mask, remat="full") * weight).sum()

    exported = to_torch("umt5", nnx.merge(graphdef, jax.grad(loss)(state)))
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(exported) == set(wanted)
    for name, value in wanted.items():
        assert relative(exported[name], value) < GRADIENTS, name


@pytest.mark.parametrize("buckets,distance", [(32, 128), (8, 16), (16, 200)])
def test_position_buckets(torch, buckets, distance):
    from transformers import UMT5Config as TorchConfig
    from transformers.models.umt5.modeling_umt5 import UMT5Attention

    cfg = dataclasses.replace(TINY, relative_attention_num_buckets=buckets, relative_attention_max_distance=distance)
    upstream = UMT5Attention(
        TorchConfig(relative_attention_num_buckets=buckets, relative_attention_max_distance=distance)
    )
    length = 520  # beyond the 512 tokens that Wan can use
    offset = torch.arange(length)[None] - torch.arange(length)[:, None]
    np.testing.assert_array_equal(position_buckets(cfg, length), upstream._relative_position_bucket(offset))


def test_block_by_block(torch):
    model = torch_models.umt5(torch, TINY)
    encoder = ported(model, TINY)
    ids, mask = sentences(TINY)
    alive: list[weakref.ref] = []

    def one_at_a_time():
        for state in layer_states(encoder):
            gc.collect()
            assert not any(ref() for ref in alive), "the block before is still held"
            kernel = np.array(state["ffn"]["down"]["kernel"])
            state["ffn"]["down"]["kernel"] = kernel
            alive.append(weakref.ref(kernel))
            del kernel
            yield state
            del state

    embedding, norm = np.asarray(encoder.shared.embedding[...]), np.asarray(encoder.final_layer_norm.scale[...])
    ours = encode_blockwise(TINY, embedding, one_at_a_time(), norm, ids, mask)
    assert len(alive) == TINY.num_layers
    with torch.no_grad():
        assert relative(ours, run_reference(torch, model, ids, mask).last_hidden_state) < VALUES
    with pytest.raises(ValueError, match="got 1 layers of a UMT5 encoder that has 2"):
        encode_blockwise(TINY, embedding, [next(layer_states(encoder))], norm, ids, mask)


def test_bfloat16_is_as_close_as_torch(torch):
    cfg = dataclasses.replace(TINY, d_model=64, num_layers=3)
    model = torch_models.umt5(torch, cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    ids, mask = sentences(cfg, tokens=48)
    with torch.no_grad():
        exact = run_reference(torch, model, ids, mask).last_hidden_state.numpy()
    ours = jitted(ported(model, cfg, precision=BFLOAT16))(ids, mask)
    assert ours.dtype == jnp.bfloat16
    with torch.no_grad():
        theirs = run_reference(torch, model.bfloat16(), ids, mask).last_hidden_state.float().numpy()
    our_error = np.abs(np.asarray(ours, np.float32) - exact)[mask].mean()
    assert our_error < 1.25 * np.abs(theirs - exact)[mask].mean()
    assert our_error > 1e-4 * np.abs(exact).mean()  # it did run in bfloat16


@pytest.mark.slow
def test_published_width(torch):
    # All of XXL but its depth and its vocabulary.
    cfg = dataclasses.replace(UMT5Config.xxl(), num_layers=2, vocab_size=256)
    model = torch_models.umt5(torch, cfg)
    ids, mask = sentences(cfg, tokens=16)
    with torch.no_grad():
        wanted = run_reference(torch, model, ids, mask).last_hidden_state.numpy()
    encoder = ported(model, cfg)
    del model
    assert relative(jitted(encoder)(ids, mask), wanted) < VALUES


def test_operations_as_xla_counts_them():
    cfg = dataclasses.replace(TINY, d_model=256, d_kv=32, d_ff=512)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UMT5Encoder(cfg, rngs=nnx.Rngs(0))))
    ids, mask = sentences(cfg, tokens=64)

    @jax.jit
    def forward(state):
        return nnx.merge(graphdef, state)(ids[:1], mask[:1], mode="unroll")

    counted = forward.lower(state).cost_analysis()["flops"]
    assert flops(cfg, 64) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    "mask,taps,message",
    [
        (np.ones((2, 23), bool), False, "must both be"),
        (np.ones((2, 24), np.int32), False, "must be boolean"),
        (np.ones((2, 24), bool), ("block7",), "unknown tap"),
    ],
)
def test_bad_input(mask, taps, message):
    encoder = nnx.eval_shape(lambda: UMT5Encoder(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        encoder(sentences(TINY)[0], mask, taps=taps)


def test_config_of_upstream():
    wan = {"d_model": 4096, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 24, "dropout_rate": 0.1}
    assert UMT5Config.from_upstream(wan) == UMT5Config.xxl()
    with pytest.raises(ValueError, match="feed_forward_proj 'relu'"):
        UMT5Config.from_upstream({"feed_forward_proj": "relu"})
