"""The original models with random weights in every tensor, at scales where each branch counts."""

import dataclasses

import numpy as np
import pytest

from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig
from rvseg_jax.models.wan.vae_config import WanVAEConfig


def tensors(model) -> dict[str, np.ndarray]:
    return {key: value.detach().float().numpy() for key, value in model.state_dict().items()}


def wan_dit(torch, cfg: WanTransformerConfig, seed: int = 0):
    """diffusers' model with random weights in every tensor, so that no gate or norm is neutral."""
    from diffusers import WanTransformer3DModel

    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "precision"}
    model = WanTransformer3DModel(**fields).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("scale_shift_table"):
                noise = 0.3 * noise
            elif parameter.ndim > 1:
                noise = noise / parameter[0].numel() ** 0.5
            else:
                noise = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            parameter.copy_(noise)
    return model


def wan_vae(torch, cfg: WanVAEConfig):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKLWan(
        base_dim=cfg.base_dim,
        z_dim=cfg.z_dim,
        dim_mult=list(cfg.dim_mult),
        num_res_blocks=cfg.num_res_blocks,
        temperal_downsample=list(cfg.temporal_downsample),
        out_channels=cfg.out_channels,
        latents_mean=list(cfg.latents_mean),
        latents_std=list(cfg.latents_std),
    )
    _randomise(torch, model)
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(4)  # so that the clamp at -1 and 1 matters
    return model.eval()


def _randomise(torch, model, seed: int = 0) -> None:
    """Weights at a scale where every branch matters; gains and biases are no longer one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("weight"):
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(1 + 0.1 * noise if name.endswith("gamma") else 0.2 * noise)


def umt5(torch, cfg: UMT5Config, seed: int = 0):
    """transformers' encoder with random weights in every tensor, at scales where each branch counts."""
    from transformers import UMT5Config as TorchConfig
    from transformers import UMT5EncoderModel

    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "precision"}
    with torch.device("meta"):  # upstream's own initialisation would take a minute at the published width
        model = UMT5EncoderModel(TorchConfig(**fields))
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-1.7, 1.7, generator=generator)
            if "norm" in name:
                parameter.mul_(0.2).add_(1)
            elif "shared" not in name and "bias" not in name:
                parameter.mul_(parameter.shape[1] ** -0.5)
    return model
