"""The memory estimates of FlowRVS against what XLA allocates; nothing is run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rvseg_jax.core.precision import FLOAT32
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.systems.flowrvs import memory
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference

RELEASED = FlowRVSConfig.released(FLOAT32)
# Blocks run one after the other, so that two take the memory of thirty.
CONFIG = dataclasses.replace(RELEASED, dit=dataclasses.replace(RELEASED.dit, num_layers=2))


@pytest.fixture(scope="module")
def passes():
    dit = nnx.split(nnx.eval_shape(lambda: WanTransformer(CONFIG.dit, rngs=nnx.Rngs(params=0))))
    vae = nnx.split(nnx.eval_shape(lambda: WanVAE(CONFIG.vae, rngs=nnx.Rngs(params=0))))
    return Inference(CONFIG, dit[0], vae[0]), dit, vae


def allocated(compiled) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("frames", "size", "sentences"), [(5, (240, 416), 1), (17, (240, 416), 2), (17, (464, 832), 1)]
)
def test_the_transformer_takes_what_is_counted(passes, frames, size, sentences):
    inference, (graphdef, state), _ = passes
    shape = (sentences, (frames + 2) // 4 + 1, size[0] // 8, size[1] // 8, CONFIG.vae.z_dim)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    text = jax.ShapeDtypeStruct((sentences, 32, CONFIG.text.d_model), jnp.float32)
    modulation = jax.eval_shape(lambda s: nnx.merge(graphdef, s).fold(jnp.full((1,), 1000.0)), state)
    bias = jax.ShapeDtypeStruct((32,), jnp.float32)
    found = allocated(inference._velocity.lower(state, latents, latents, text, bias, modulation).compile())
    counted = memory.dit_bytes(CONFIG, frames, size, sentences)
    assert 0.5 * counted < found < 1.3 * counted


@pytest.mark.slow
def test_the_autoencoder_takes_what_is_counted(passes):
    inference, _, (_, state) = passes
    frames, size = 17, (240, 416)
    latents = jax.ShapeDtypeStruct((1, (frames + 2) // 4 + 1, 30, 52, CONFIG.vae.z_dim), jnp.float32)
    assert memory.vae_chunk(CONFIG, frames, size) == 1
    counted = memory.vae_bytes(CONFIG, CONFIG.vae.temporal_stride, size)
    clip = jax.ShapeDtypeStruct((1, frames, *size, 3), jnp.uint8)
    for found in (
        allocated(inference._encode.lower(state, clip).compile()),
        allocated(inference._decode.lower(state, latents).compile()),
    ):
        assert 0.5 * counted < found < 1.3 * counted
