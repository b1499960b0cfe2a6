"""FlowRVS from pixels and tokens to mask logits: the passes of the three parts, jitted."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.models.umt5.encoder import UMT5Encoder
from rvseg_jax.models.wan.transformer import Modulation, WanTransformer, padding_bias
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.ops.resize import resize
from rvseg_jax.processing.text import TokenBatch
from rvseg_jax.systems.flowrvs import flow, memory
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig

Weights = nnx.State | dict[str, Any]

TEXT_BUCKET = 16  # sentences are padded to multiples of it, so that few shapes are compiled


@dataclass(frozen=True)
class TextFeatures:
    """Encoded sentences, padding rows collapsed.

    Upstream gives the DiT `text_length` rows, of which those behind the sentence are zero, and attends to all.
    Equal rows can be one row with a bias, so only a bucket of rows is kept.

    Shapes: rows [N, S, D], bias float32 [S], zero but for the last element.
    """

    rows: jax.Array
    bias: jax.Array

    def __getitem__(self, sentences: slice) -> "TextFeatures":
        return TextFeatures(self.rows[sentences], self.bias)


def kept_rows(tokens: TokenBatch) -> int:
    """Text rows that stand for all: the longest sentence and one row of padding, rounded up to a bucket."""
    total = tokens.ids.shape[1]
    needed = int(tokens.lengths.max()) + 1
    return min(-(-needed // TEXT_BUCKET) * TEXT_BUCKET, total)


def text_features(encoded: jax.Array, mask: np.ndarray, total: int) -> TextFeatures:
    """Features from the encoder's output at `kept_rows` positions.

    The encoder masks padding keys, so that a shorter padding changes no valid row.

    Shapes: encoded [N, S, D], mask bool [N, S]; `total` is the padded length upstream uses.
    """
    rows = jnp.where(jnp.asarray(mask)[..., None], encoded, 0)
    return TextFeatures(rows, jnp.asarray(padding_bias(mask.shape[1], total)))


def encode_text(encoder: UMT5Encoder, tokens: TokenBatch) -> TextFeatures:
    """Features of tokenised sentences by an encoder in memory; see `TextFeatures`."""
    kept = kept_rows(tokens)
    encoded = encoder(jnp.asarray(tokens.ids[:, :kept]), jnp.asarray(tokens.mask[:, :kept]), mode="host_loop")
    return text_features(encoded, tokens.mask[:, :kept], tokens.ids.shape[1])


def normalised_pixels(frames: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 -1..1, as ToTensor and Normalize(0.5, 0.5)."""
    return (frames.astype(jnp.float32) / 255 - 0.5) / 0.5


class Inference:
    """Jitted passes of the DiT and the autoencoder.

    The constant adaLN vectors of each time step are computed once and kept. Weights are arguments of the
    compiled passes: `load` may be called again with others.
    """

    def __init__(self, config: FlowRVSConfig, dit: nnx.GraphDef, vae: nnx.GraphDef):
        """Takes the graph definitions of the `WanTransformer` and the `WanVAE`."""
        self.config = config
        self._dit_graph, self._vae_graph = dit, vae
        self._times = flow.schedule(config.num_steps, config.schedule)
        self._fold = jax.jit(lambda state, time: nnx.merge(self._dit_graph, state).fold(time))
        self._encode = jax.jit(self._encode_pass)
        self._velocity = jax.jit(self._velocity_pass)
        self._mask_mean = jax.jit(self._mask_mean_pass)
        self._decode = jax.jit(self._decode_pass)
        self._masks = jax.jit(self._masks_pass, static_argnums=(1,))

    @classmethod
    def of(cls, config: FlowRVSConfig, dit: WanTransformer, vae: WanVAE) -> "Inference":
        """Passes of modules with their weights."""
        (dit_graph, dit_state), (vae_graph, vae_state) = nnx.split(dit), nnx.split(vae)
        inference = cls(config, dit_graph, vae_graph)
        inference.load(dit_state, vae_state)
        return inference

    def load(self, dit: Weights, vae: Weights) -> None:
        """Takes the weights of both parts, as `nnx.State` or pure dict."""
        self._dit, self._vae = dit, vae
        self._modulations = {time: self._fold(dit, jnp.full((1,), time)) for time in self._times.timesteps}

    def video_latents(self, frames: np.ndarray) -> jax.Array:
        """Normalised posterior mean of a clip.

        Shapes: frames uint8 [T, H, W, 3] with T = 4n + 1 and H, W multiples of 16 -> [1, t, h, w, Z].
        """
        return self._encode(self._vae, frames[None])

    def mask_latents(self, video_latents: jax.Array, text: TextFeatures) -> jax.Array:
        """Solution of the flow for several sentences.

        Shapes: video_latents [1, t, h, w, Z], text of N sentences -> [N, t, h, w, Z].
        """
        start = jnp.broadcast_to(video_latents, (text.rows.shape[0], *video_latents.shape[1:]))

        def velocity(latents: jax.Array, time: float) -> jax.Array:
            return self._velocity(self._dit, latents, start, text.rows, text.bias, self._modulations[time])

        return flow.solve(velocity, start, self._times)[0]

    def true_mask_latents(self, frames: np.ndarray) -> jax.Array:
        """Latents of a known mask, which a perfect DiT would find.

        Shapes: frames uint8 0 or 255 [T, H, W, 3], the mask as a grey clip -> [1, t, h, w, Z].
        """
        return self._mask_mean(self._vae, frames[None])

    def logits(self, mask_latents: jax.Array) -> jax.Array:
        """Mask logits in -1..1, where upstream's decoder clamps.

        Shapes: mask_latents [N, t, h, w, Z] -> [N, T, H, W].
        """
        return jnp.concatenate([self._decode(self._vae, latents[None]) for latents in mask_latents])

    def probabilities(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Mask probabilities at the source's size, in the format of computation.

        In bfloat16 the rounded sigmoid is 0.5 for logits up to 0.0078, so that the threshold 0.5 acts there.

        Shapes: logits [N, T, H, W] -> [N, T, *size].
        """
        return self._masks(logits, size)

    def _posterior_mean(self, vae: WanVAE, frames: jax.Array) -> jax.Array:
        count, height, width = frames.shape[1:4]
        chunk = memory.vae_chunk(self.config, count, (height, width))
        return vae.encode(normalised_pixels(frames), chunk=chunk).mean

    def _encode_pass(self, state: Weights, frames: jax.Array) -> jax.Array:
        vae: WanVAE = nnx.merge(self._vae_graph, state)
        return vae.normalise(self._posterior_mean(vae, frames))

    def _mask_mean_pass(self, state: Weights, frames: jax.Array) -> jax.Array:
        vae: WanVAE = nnx.merge(self._vae_graph, state)
        latents = self._posterior_mean(vae, frames)
        return vae.normalise(latents) if self.config.mask_latent_space == "normalised" else latents

    def _velocity_pass(
        self,
        state: Weights,
        latents: jax.Array,
        video_latents: jax.Array,
        text: jax.Array,
        bias: jax.Array,
        modulation: Modulation,
    ) -> jax.Array:
        dit: WanTransformer = nnx.merge(self._dit_graph, state)
        return dit(state_input(self.config, latents, video_latents), None, text, modulation=modulation, text_bias=bias)

    def _decode_pass(self, state: Weights, latents: jax.Array) -> jax.Array:
        vae: WanVAE = nnx.merge(self._vae_graph, state)
        if self.config.mask_latent_space == "normalised":
            latents = vae.denormalise(latents)
        # "raw" latents go in as they are although the video's were normalised: upstream's asymmetry.
        count, height, width = latents.shape[1:4]
        stride, frames = vae.cfg.spatial_stride, 1 + (count - 1) * vae.cfg.temporal_stride
        chunk = memory.vae_chunk(self.config, frames, (height * stride, width * stride))
        return vae.decode(latents, chunk=chunk)[..., 0]

    @staticmethod
    def _masks_pass(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        enlarge = partial(resize, size=size, mode="bilinear", align_corners=False)
        return jax.nn.sigmoid(enlarge(logits[..., None])[..., 0])


def state_input(config: FlowRVSConfig, latents: jax.Array, video_latents: jax.Array) -> jax.Array:
    """What enters the DiT: the state, with direct video injection followed by the video latent.

    Shapes: latents and video_latents [B, t, h, w, Z] -> [B, t, h, w, Z or 2 Z].
    """
    if not config.direct_video_injection:
        return latents
    return jnp.concatenate([latents, video_latents.astype(latents.dtype)], axis=-1)
