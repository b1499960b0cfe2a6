"""FlowRVS from video and sentence to logits against diffusers and transformers, in float32 and in bfloat16."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch_models

from rvseg_jax.convert.api import from_torch
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.processing.text import TokenBatch
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference, encode_text

CONFIG = FlowRVSConfig(
    dit=dataclasses.replace(WanTransformerConfig.tiny(), num_layers=2),
    vae=WanVAEConfig.tiny(),
    text=UMT5Config.tiny(),
    text_length=16,
    box=(32, 48),
)


@pytest.fixture(scope="module")
def parts(torch):
    """The three torch models; their weights are bfloat16 numbers, so that only the arithmetic differs."""
    models = {
        "wan_dit": torch_models.wan_dit(torch, CONFIG.dit),
        "wan_vae": torch_models.wan_vae(torch, CONFIG.vae),
        "umt5": torch_models.umt5(torch, CONFIG.text),
    }
    with torch.no_grad():
        for model in models.values():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16().float())
    return models


@pytest.fixture(scope="module")
def inputs():
    """A clip of 9 frames, and a sentence of 7 tokens."""
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    ids = np.random.default_rng(1).integers(3, CONFIG.text.vocab_size, (1, CONFIG.text_length), np.int32)
    mask = np.arange(CONFIG.text_length)[None] < 7
    ids = np.where(mask, ids, 0).astype(np.int32)
    return clip, TokenBatch(ids, mask, np.array([7], np.int32), np.array([False]))


def by_torch(torch, parts, inputs, dtype, steps=1):
    """Upstream's inference: logits [T, H, W] before the threshold."""
    clip, tokens = inputs
    sigmas = [1.0, 0.9, 0.75, 0.501, 0.0] if steps == 4 else [1.0, 0.0]
    with torch.no_grad():
        for model in parts.values():
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        pixels = torch.tensor(clip / np.float32(127.5) - 1).permute(3, 0, 1, 2)[None].to(dtype)
        mean, std = (
            torch.tensor(values, dtype=dtype).view(1, -1, 1, 1, 1)
            for values in (CONFIG.vae.latents_mean, CONFIG.vae.latents_std)
        )
        latents = (parts["wan_vae"].encode(pixels).latent_dist.mean - mean) / std
        mask = torch.tensor(tokens.mask).long()
        text = parts["umt5"](torch.tensor(tokens.ids).long(), mask).last_hidden_state * mask[..., None].to(dtype)
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            time = torch.tensor([1000 * now])
            velocity = parts["wan_dit"](latents, time, text.to(dtype), return_dict=False)[0]
            step = torch.tensor(after - now, dtype=torch.float32) * velocity
            latents = (latents.float() + step.to(dtype).float()).to(dtype)
        return parts["wan_vae"].decode(latents).sample[0, 0].float().numpy()


def by_us(parts, inputs, precision, steps=1):
    clip, tokens = inputs
    config = dataclasses.replace(CONFIG, num_steps=steps).with_precision(precision)
    configs = {"wan_dit": config.dit, "wan_vae": config.vae, "umt5": config.text}
    dit, vae, umt5 = (from_torch(part, torch_models.tensors(parts[part]), own) for part, own in configs.items())
    inference, text = Inference.of(config, dit, vae), encode_text(umt5, tokens)
    logits = inference.logits(inference.mask_latents(inference.video_latents(clip), text))[0]
    return np.asarray(logits.astype(jnp.float32))


@pytest.mark.parametrize("steps", [1, 4])
def test_float32_equals_torch(torch, parts, inputs, steps):
    expected = by_torch(torch, parts, inputs, torch.float32, steps)
    found = by_us(parts, inputs, PARITY, steps)
    assert 0.05 < np.abs(expected).mean() < 1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_bfloat16_is_as_close_as_torch(torch, parts, inputs):
    exact = by_torch(torch, parts, inputs, torch.float32)
    ours = np.abs(by_us(parts, inputs, BFLOAT16) - exact).mean()
    theirs = np.abs(by_torch(torch, parts, inputs, torch.bfloat16) - exact).mean()
    assert ours < 1.25 * theirs
    assert ours > 1e-4 * np.abs(exact).mean()  # it did run in bfloat16
