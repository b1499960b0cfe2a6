"""Golden cases of FlowRVS: its transformer, its autoencoders, the sampler, the training step, direct video injection.

The files are in upstream's layout, channels first; everything here is channels last.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.umt5.encoder import UMT5Config
from rvseg_jax.models.wan.transformer import WanTransformer, WanTransformerConfig
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.models.wan.vae_config import WanVAEConfig
from rvseg_jax.ops.resize import resize
from rvseg_jax.parity import flowrvs_torch
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind
from rvseg_jax.systems.flowrvs import flow, frames, injection, losses
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference, TextFeatures, state_input

_VAE_PREFIX = "vae."

_SCHEDULES: tuple[flow.ScheduleKind, ...] = ("mevis", "demo")

_DIT = Fields(
    build=frozenset(entry.name for entry in fields(WanTransformerConfig)) - {"precision"},
    # Image-to-video fields must be null.
    call=frozenset({"use_dvi"}),
    ignored=frozenset({"mask_branch", "image_dim", "added_kv_proj_dim", "pos_embed_seq_len"}),
)
_VAE = Fields(
    build=frozenset(entry.name for entry in fields(WanVAEConfig)) - {"precision", "conv_impl", "temporal_downsample"}
    | {"temperal_downsample", "out_channels_decoder"},
)
_SCHEDULER = Fields(call=frozenset({"num_train_timesteps", "shift"}))
_EULER = Fields(
    call=frozenset({"num_steps", "source_height", "source_width"}),
    nested={"dit": _DIT, "vae": _VAE, "scheduler": _SCHEDULER},
)
# The inputs hold the times too.
_TRAIN_LOSS = Fields(call=frozenset({"amp"}), ignored=frozenset({"timesteps"}), nested={"dit": _DIT, "vae": _VAE})
_SURGERY = Fields(call=frozenset({"video_latent_channels"}), ignored=frozenset({"inner_dim", "mask_latent_channels"}))


def _dit(case: Case) -> Produced:
    model = _transformer(case, case.config)
    latents = _last(case.input("hidden_states"))
    if latents.shape[-1] != model.cfg.in_channels:
        latents = np.concatenate([latents, _last(case.input("video_condition"))], axis=-1)
    timestep = case.input("timestep").astype(np.float32)
    forward = _jitted(model, lambda dit, *inputs: dit(*inputs, taps=True))
    velocity, taps = forward(latents, timestep, case.input("encoder_hidden_states"))
    # What JAX returns from a jitted function is sorted by name: restore the order of the forward pass.
    order = ["temb", "time_proj", "text", "patch_embedding", *(f"block{n}" for n in range(model.cfg.num_layers))]
    outputs = {f"tap/{name}": np.asarray(taps[name]) for name in order}
    return Produced({**outputs, "velocity": _first(velocity)})


def _mask_vae(case: Case) -> Produced:
    vae = _autoencoder(case, case.config)
    encode = _jitted(vae, lambda model, pixels: model.encode(pixels))
    decode = _jitted(vae, lambda model, latents: model.decode(latents, clamp=False))
    posterior = encode(_last(case.input("video")))
    decoded = decode(_last(case.input("latent")))
    # The mask path of FlowRVS: three equal channels in -1..1, the posterior's mean, decoded as it is.
    mask = np.repeat(np.moveaxis(case.input("mask"), 2, -1), 3, axis=-1) * 2 - 1
    mode = encode(mask).mean
    return Produced(
        {
            "tap/decode_unclamped": _first(decoded),
            "mean": _first(posterior.mean),
            "logvar": _first(posterior.logvar),
            "latent_norm": _first(vae.normalise(posterior.mean)),
            "decode": _first(jnp.clip(decoded, -1, 1)),
            "mask_mode": _first(mode),
            "mask_recon": _first(jnp.clip(decode(mode), -1, 1)),
        }
    )


def _wan_vae_rgb(case: Case) -> Produced:
    channels = case.config.get("z_dim", WanVAEConfig.z_dim)
    # This kind normalises nothing, so its config need not state the statistics of the latents.
    neutral = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    vae = _autoencoder(case, {**neutral, **case.config})
    decoded = _jitted(vae, lambda model, latents: model.decode(latents, clamp=False))(_last(case.input("latent")))
    posterior = _jitted(vae, lambda model, pixels: model.encode(pixels))(_last(case.input("one_frame")))
    return Produced(
        {
            "tap/decode_unclamped": _first(decoded),
            "decode": _first(jnp.clip(decoded, -1, 1)),
            "one_frame_mean": _first(posterior.mean),
        }
    )


def _dvi_surgery(case: Case) -> Produced:
    kernel = np.transpose(case.input("weight"), (2, 3, 4, 1, 0))
    widened = injection.widened_patch_kernel(jnp.asarray(kernel), case.config["video_latent_channels"])
    return Produced({"weight": np.transpose(widened, (4, 3, 0, 1, 2)), "bias": case.input("bias")})


def _euler(case: Case) -> Produced:
    system, dit, vae = _system(case)
    scheduler = case.config.get("scheduler", {})
    if scheduler.get("num_train_timesteps", flow.TIME_STEPS) != flow.TIME_STEPS or scheduler.get("shift", 1.0) != 1.0:
        raise InputError(f"scheduler {dict(scheduler)} is not upstream's: 1000 training steps, shift 1")
    clip = np.moveaxis(case.input("clip"), 1, -1)
    pixels = frames.padded(clip)[None]
    start = _jitted(vae, lambda model, video: model.normalise(model.encode(video).mean))(pixels)
    text = case.input("prompt_embeds")
    features = TextFeatures(jnp.asarray(text), jnp.zeros(text.shape[1], jnp.float32))
    forward = _jitted(dit, lambda model, state, time: model(state_input(system, state, start), time, text))
    size = (case.config["source_height"], case.config["source_width"])
    steps = [int(count) for count in np.atleast_1d(case.config["num_steps"])]
    # Inference as users run it, with folded time vectors, for the first schedule; the others share its decoder.
    inference = Inference.of(replace(system, num_steps=steps[0], schedule=_SCHEDULES[0]), dit, vae)
    outputs: dict[str, np.ndarray] = {"x0": _first(start)}
    for num_steps in steps:
        for kind in _SCHEDULES:
            times = flow.schedule(num_steps, kind)
            latents, velocities = flow.solve(lambda z, time: forward(z, jnp.full((1,), time)), start, times)
            if (num_steps, kind) == (steps[0], _SCHEDULES[0]):
                latents = inference.mask_latents(start, features)
            logits = inference.logits(latents)
            enlarged = resize(logits[..., None], size, mode="bilinear")[0, : len(clip), ..., 0]
            mask = inference.probabilities(logits, size)[0, : len(clip)] > system.threshold
            found: dict[str, np.ndarray] = {
                "timesteps": np.asarray(times.timesteps, np.float32),
                "sigmas": np.asarray(times.sigmas, np.float32),
                "velocity": np.stack([_first(velocity) for velocity in velocities]),
                "latents": _first(latents),
                "logits": np.asarray(logits)[:, None],
                "logits_source": np.asarray(enlarged)[:, None],
                "mask": np.asarray(mask)[:, None],
            }
            outputs |= {f"{kind}_k{num_steps}/{name}": array for name, array in found.items()}
    return Produced(outputs, masks=frozenset(name for name in outputs if name.endswith("/mask")))


def _train_loss(case: Case) -> Produced:
    if case.config.get("amp", False):
        raise InputError("amp is true: upstream's mixed precision on CUDA has no counterpart in float32 parity")
    system, dit, vae = _system(case)
    encode = _jitted(vae, lambda model, video: model.encode(video))
    posterior = encode(np.moveaxis(case.input("video"), 2, -1))
    sample = posterior.sample(noise=jnp.asarray(_last(case.input("posterior_noise"))))
    start = vae.normalise(sample)
    masks = np.repeat(case.input("mask")[..., None], 3, axis=-1) * 2 - 1
    times = jnp.asarray(case.input("timesteps"), jnp.float32)
    state, velocity = flow.training_pair(start, encode(masks).mean, times)
    text = jnp.asarray(case.input("prompt_embeds"))
    graph, parameters = nnx.split(dit)

    def loss(weights: nnx.State) -> tuple[jax.Array, jax.Array]:
        model: Any = nnx.merge(graph, weights)
        predicted = model(state_input(system, state, start), times, text)
        return jnp.mean(losses.velocity_errors(predicted, velocity)), predicted

    (value, predicted), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    exported = to_torch("wan_dit", nnx.merge(graph, gradients), dit.cfg)
    return Produced(
        {
            "x0": _first(start),
            "x_t": _first(state),
            "velocity": _first(predicted),
            "loss": np.asarray(value),
            "grad_norm": np.asarray(optax.tree.norm(gradients)),
            **{f"grad/{key}": array for key, array in exported.items()},
        }
    )


def _system(case: Case) -> tuple[FlowRVSConfig, WanTransformer, WanVAE]:
    """The transformer and the mask autoencoder of a composed case."""
    dit = _transformer(case.component("transformer"), case.config["dit"])
    lender = case.component("mask_vae")
    # The composed config leaves the statistics of the latents to the autoencoder's own case.
    statistics = {name: lender.config[name] for name in ("latents_mean", "latents_std") if name in lender.config}
    vae = _autoencoder(lender, {"out_channels_decoder": 1, **statistics, **case.config["vae"]})
    system = FlowRVSConfig(dit=dit.cfg, vae=vae.cfg, text=UMT5Config(d_model=dit.cfg.text_dim))
    return system, dit, vae


def _transformer(case: Case, config: Mapping[str, Any]) -> WanTransformer:
    cfg = WanTransformerConfig.from_upstream(config)
    if config.get("use_dvi") and cfg.in_channels == cfg.out_channels:  # the config before the network was widened
        cfg = cfg.with_direct_video_injection()
    return from_torch("wan_dit", case.weights, cfg)


def _autoencoder(case: Case, config: Mapping[str, Any]) -> WanVAE:
    config = dict(config)
    if "out_channels_decoder" in config:
        config["out_channels"] = config.pop("out_channels_decoder")
    weights = {key.removeprefix(_VAE_PREFIX): array for key, array in case.weights.items()}
    return from_torch("wan_vae", weights, WanVAEConfig.from_upstream(config))


def _jitted(model: nnx.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(model, *inputs)` as one compiled program of the inputs."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda weights, *inputs: function(nnx.merge(graph, weights), *inputs))
    return lambda *inputs: compiled(state, *inputs)


def _last(array: np.ndarray) -> np.ndarray:
    """[B, C, T, H, W] -> [B, T, H, W, C]."""
    return np.moveaxis(array, 1, -1)


def _first(array: Any) -> np.ndarray:
    """[B, T, H, W, C] -> [B, C, T, H, W]."""
    return np.moveaxis(np.asarray(array), -1, 1)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dit_plain": Kind(_dit, _DIT, flowrvs_torch.DIT_PLAIN),
        "dit_dvi": Kind(_dit, _DIT, flowrvs_torch.DIT_DVI),
        "dvi_surgery": Kind(_dvi_surgery, _SURGERY),
        "euler": Kind(_euler, _EULER),
        "mask_vae": Kind(_mask_vae, _VAE, flowrvs_torch.MASK_VAE),
        "wan_vae_rgb": Kind(_wan_vae_rgb, _VAE, flowrvs_torch.WAN_VAE_RGB),
        "train_loss": Kind(_train_loss, _TRAIN_LOSS),
    }
)
