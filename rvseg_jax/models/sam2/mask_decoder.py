"""From image features and prompts to masks, their quality, and whether the object is there.

Source: sam2/modeling/sam/mask_decoder.py.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers import stack
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import ACTIVATIONS
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.sam2.config import MaskDecoderConfig, Sam2Config
from rvseg_jax.models.sam2.two_way_transformer import TwoWayTransformer

# Stands for the score of an object where none is predicted: surely there.
_PRESENT = 10.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskOutput:
    """What the decoder predicts for each object; M is 1, or the number of alternatives.

    Shapes: masks float32 [B, M, H, W], iou float32 [B, M], tokens [B, M or 1, D], object_score float32 [B, 1].

    Attributes:
      masks: logits at a quarter of the image size.
      iou: predicted overlap of each mask with the truth, 0..1 where the config has the sigmoid.
      tokens: mask tokens that object pointers are made of.
      object_score: logit that the object is in the image.
    """

    masks: jax.Array
    iou: jax.Array
    tokens: jax.Array
    object_score: jax.Array


class Perceptron(nnx.Module):
    """Linear layers with ReLU between them, and optionally a sigmoid behind; `MLP` of sam2/modeling/sam2_utils.py."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        depth: int,
        *,
        sigmoid: bool = False,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nnx.List([Linear(a, b, precision=precision, rngs=rngs) for a, b in pairwise(widths)])
        self.sigmoid = sigmoid

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., in] -> [..., out]."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x) if index == last else jax.nn.relu(layer(x))
        return jax.nn.sigmoid(x) if self.sigmoid else x


class Upscale(nnx.Module):
    """A transposed convolution with window and stride 2: every cell becomes 2x2 cells by one matrix product."""

    def __init__(self, inputs: int, outputs: int, *, precision: Precision, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, outputs, inputs), precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), precision.param_dtype))
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, H, W, in] -> [B, 2 H, 2 W, out]."""
        compute = self.precision.compute
        kernel = compute(self.kernel[...])
        cells = jnp.einsum("bhwi,pqoi->bhpwqo", compute(x), kernel, precision=self.precision.matmul)
        return rearrange(cells, "b h p w q o -> b (h p) (w q) o") + compute(self.bias[...])


class OutputUpscaling(nnx.Module):
    """Enlarges image features four times, with finer features of the image added on the way."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.conv1 = Upscale(cfg.d_model, cfg.d_model // 4, **options)
        self.norm = LayerNorm(cfg.d_model // 4, eps=1e-6, **options)
        self.conv2 = Upscale(cfg.d_model // 4, cfg.d_model // 8, **options)

    def __call__(self, x: jax.Array, high_res: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """Adds `high_res` where it is given.

        Shapes: x [B, h, w, D], high_res [B or 1, 4 h, 4 w, D / 8] and [B or 1, 2 h, 2 w, D / 4] -> as its first.
        """
        gelu = ACTIVATIONS["gelu"]
        fine, middle = high_res if high_res is not None else (0.0, 0.0)
        x = gelu(self.norm(self.conv1(x) + middle))
        return gelu(self.conv2(x) + fine)


class MaskDecoder(nnx.Module):
    """Predicts masks from tokens that have looked at the image."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        decoder, width = cfg.mask_decoder, cfg.d_model

        def tokens(count: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (count, width), cfg.precision.param_dtype))

        self.transformer = TwoWayTransformer(cfg, rngs=rngs)
        self.iou_token = tokens(1)
        self.mask_tokens = tokens(decoder.num_mask_tokens)
        self.obj_score_token = tokens(1) if decoder.pred_obj_scores else None
        self.output_upscaling = OutputUpscaling(cfg, rngs=rngs)
        # 1x1 convolutions of the two finest levels; the image encoder's caller applies them once an image.
        self.conv_s0 = Linear(width, width // 8, **options) if decoder.use_high_res_features else None
        self.conv_s1 = Linear(width, width // 4, **options) if decoder.use_high_res_features else None
        # One for each mask token, stacked.
        self.output_hypernetworks_mlps = stack.stacked(
            lambda keys: Perceptron(width, width, width // 8, 3, precision=cfg.precision, rngs=keys),
            decoder.num_mask_tokens,
            rngs=rngs,
        )
        self.iou_prediction_head = Perceptron(
            width,
            decoder.iou_head_hidden,
            decoder.num_mask_tokens,
            decoder.iou_head_depth,
            sigmoid=decoder.iou_prediction_use_sigmoid,
            **options,
        )
        self.pred_obj_score_head = _object_score_head(cfg, rngs=rngs)
        self.options = decoder
        self.precision = cfg.precision

    def high_res_features(self, levels: list[jax.Array]) -> tuple[jax.Array, jax.Array] | None:
        """What the decoder needs of the two finest levels of an image, or None if it needs none.

        Shapes: [B, 4 h, 4 w, D] and [B, 2 h, 2 w, D] first in `levels` -> [B, 4 h, 4 w, D / 8], [B, 2 h, 2 w, D / 4].
        """
        if self.conv_s0 is None or self.conv_s1 is None:
            return None
        return self.conv_s0(levels[0]), self.conv_s1(levels[1])

    def __call__(
        self,
        image: jax.Array,
        image_positions: jax.Array,
        sparse: jax.Array,
        dense: jax.Array,
        high_res: tuple[jax.Array, jax.Array] | None,
        *,
        multimask_output: bool,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> MaskOutput:
        """Predicts masks of B objects, in one image for all (first axis 1) or in one image each.

        Shapes:
          image [B or 1, h, w, D], image_positions [h, w, D], sparse [B, T, D], dense [B, h, w, D],
          high_res [B or 1, 4 h, 4 w, D / 8] and [B or 1, 2 h, 2 w, D / 4].

        Args:
          multimask_output: give the alternatives for an ambiguous prompt instead of one mask.
          train: without the fallback from one mask that is not stable to the best of the alternatives.
          valid: bool [B, T], which of the tokens `sparse` count; None for all.
        """
        masks, iou, tokens, score = self.predict(image, image_positions, sparse, dense, high_res, valid)
        options = self.options
        several = multimask_output and options.use_multimask_token_for_obj_ptr
        tokens = tokens[:, 1:] if several else tokens[:, :1]
        if multimask_output:
            masks, iou = masks[:, 1:], iou[:, 1:]
        elif options.dynamic_multimask_via_stability and not train:
            masks, iou = stable_or_best(masks, iou, options)
        else:
            masks, iou = masks[:, :1], iou[:, :1]
        return MaskOutput(masks, iou, tokens, score)

    def predict(
        self,
        image: jax.Array,
        image_positions: jax.Array,
        sparse: jax.Array,
        dense: jax.Array,
        high_res: tuple[jax.Array, jax.Array] | None,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Masks [B, K, H, W], IoU [B, K], tokens [B, K, D] of all K mask tokens, and the object score [B, 1]."""
        compute, count = self.precision.compute, self.options.num_mask_tokens
        own = [self.iou_token[...], self.mask_tokens[...]]
        if self.obj_score_token is not None:
            own.insert(0, self.obj_score_token[...])
        fixed = compute(jnp.concatenate(own))
        fixed = jnp.broadcast_to(fixed, (sparse.shape[0], *fixed.shape))
        mixed = image + dense
        height = mixed.shape[1]
        if valid is not None:
            valid = jnp.pad(valid, ((0, 0), (fixed.shape[1], 0)), constant_values=True)
        tokens, pixels = self.transformer(
            rearrange(mixed, "b h w d -> b (h w) d"),
            rearrange(image_positions, "h w d -> (h w) d"),
            jnp.concatenate([fixed, sparse], axis=1),
            valid,
        )
        skip = len(own) - 2
        iou_token, mask_tokens = tokens[:, skip], tokens[:, skip + 1 : skip + 1 + count]
        upscaled = self.output_upscaling(rearrange(pixels, "b (h w) d -> b h w d", h=height), high_res)
        masks = jnp.einsum(
            "bkc,bhwc->bkhw",
            self._hypernetworks(mask_tokens),
            upscaled,
            precision=self.precision.matmul,
            preferred_element_type=jnp.float32,
        )
        iou = self.iou_prediction_head(iou_token).astype(jnp.float32)
        if self.pred_obj_score_head is None:
            score = jnp.full((sparse.shape[0], 1), _PRESENT)
        else:
            score = self.pred_obj_score_head(tokens[:, 0]).astype(jnp.float32)
        return masks, iou, mask_tokens, score

    def _hypernetworks(self, tokens: jax.Array) -> jax.Array:
        """Every mask token through its own network. Shapes: [B, K, D] -> [B, K, D / 8]."""
        graph, states = nnx.split(self.output_hypernetworks_mlps)
        apply = jax.vmap(lambda state, x: nnx.merge(graph, state)(x), in_axes=(0, 1), out_axes=1)
        return apply(states, tokens)


def _object_score_head(cfg: Sam2Config, *, rngs: nnx.Rngs) -> Perceptron | Linear | None:
    if not cfg.mask_decoder.pred_obj_scores:
        return None
    if not cfg.mask_decoder.pred_obj_scores_mlp:
        return Linear(cfg.d_model, 1, precision=cfg.precision, rngs=rngs)
    return Perceptron(cfg.d_model, cfg.d_model, 1, 3, precision=cfg.precision, rngs=rngs)


def stable_or_best(masks: jax.Array, iou: jax.Array, options: MaskDecoderConfig) -> tuple[jax.Array, jax.Array]:
    """The single mask where it is stable, else the alternative with the highest predicted IoU.

    Stability is the area at threshold +delta over the area at -delta; a mask that is empty at both is stable.

    Shapes: masks [B, K, H, W], iou [B, K], the single one first -> [B, 1, H, W], [B, 1].
    """
    single, delta = masks[:, :1], options.dynamic_multimask_stability_delta
    inner = jnp.sum(single > delta, axis=(-2, -1)).astype(jnp.float32)
    outer = jnp.sum(single > -delta, axis=(-2, -1)).astype(jnp.float32)
    stability = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0)
    stable = stability >= options.dynamic_multimask_stability_thresh
    best_mask, best_iou = best_of(masks[:, 1:], iou[:, 1:])
    return jnp.where(stable[..., None, None], single, best_mask), jnp.where(stable, iou[:, :1], best_iou)


def best_of(masks: jax.Array, iou: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mask with the highest predicted IoU. Shapes: [B, M, H, W], [B, M] -> [B, 1, H, W], [B, 1]."""
    best = jnp.argmax(iou, axis=-1)[:, None]
    return jnp.take_along_axis(masks, best[..., None, None], axis=1), jnp.take_along_axis(iou, best, axis=1)
