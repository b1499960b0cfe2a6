"""The torch side of FlowRVS's kinds: how diffusers' or upstream's models are called and watched when recorded.

Nothing here imports torch: models and tensors come from the caller.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from rvseg_jax.parity.kinds import TorchSide

# Upstream's autoencoder lies inside a wrapper called `vae`, diffusers' is bare.
_DECODER = r"(?:vae\.)?decoder"


def _call_transformer(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    del watch
    latents = inputs["hidden_states"]
    arguments = {"timestep": inputs["timestep"], "encoder_hidden_states": inputs["encoder_hidden_states"]}
    condition = inputs.get("video_condition")
    if "video_condition" in inspect.signature(model.forward).parameters:
        arguments["video_condition"] = condition  # upstream's class concatenates by itself
    elif condition is not None and model.patch_embedding.in_channels == 2 * latents.shape[1]:
        # `latents` is a torch tensor: the new one is made by its own methods, as torch is not imported here.
        joined = latents.new_empty((latents.shape[0], 2 * latents.shape[1], *latents.shape[2:]))
        joined[:, : latents.shape[1]], joined[:, latents.shape[1] :] = latents, condition
        latents = joined
    return {"velocity": model(hidden_states=latents, return_dict=False, **arguments)[0]}


def _call_mask_vae(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    vae = getattr(model, "vae", model)
    posterior = vae.encode(inputs["video"]).latent_dist
    mean, deviation = (_statistics(vae, name, posterior.mean) for name in ("latents_mean", "latents_std"))
    decoded = vae.decode(inputs["latent"], return_dict=False)[0]
    mask = inputs["mask"].transpose(1, 2).repeat(1, 3, 1, 1, 1) * 2 - 1
    with watch.paused():
        mode = vae.encode(mask).latent_dist.mode()
        recon = vae.decode(mode, return_dict=False)[0]
    return {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "latent_norm": (posterior.mean - mean) / deviation,
        "decode": decoded,
        "mask_mode": mode,
        "mask_recon": recon,
    }


def _call_rgb_vae(model: Any, inputs: Mapping[str, Any], watch: Any) -> dict[str, Any]:
    del watch
    vae = getattr(model, "vae", model)
    decoded = vae.decode(inputs["latent"], return_dict=False)[0]
    return {"decode": decoded, "one_frame_mean": vae.encode(inputs["one_frame"]).latent_dist.mean}


def _statistics(vae: Any, name: str, like: Any) -> Any:
    """A list of the model's config as a tensor that broadcasts over [B, Z, t, h, w]."""
    return like.new_tensor(getattr(vae.config, name)).view(1, -1, 1, 1, 1)


_DIT_TAPS = {
    r"condition_embedder\.time_embedder": "temb",
    r"condition_embedder\.time_proj": "time_proj",
    r"condition_embedder\.text_embedder": "text",
    r"blocks\.(\d+)": r"block\1",
}
_DIT_INPUTS = ("hidden_states", "timestep", "encoder_hidden_states")

DIT_PLAIN = TorchSide(_call_transformer, _DIT_INPUTS, _DIT_TAPS)
DIT_DVI = TorchSide(_call_transformer, (*_DIT_INPUTS, "video_condition"), _DIT_TAPS)
MASK_VAE = TorchSide(_call_mask_vae, ("video", "latent", "mask"), {_DECODER: "decode_unclamped"})
WAN_VAE_RGB = TorchSide(_call_rgb_vae, ("latent", "one_frame"), {_DECODER: "decode_unclamped"})
