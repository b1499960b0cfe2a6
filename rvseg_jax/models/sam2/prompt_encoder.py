"""Points, boxes, masks and sentences as tokens and maps that the mask decoder reads.

Source: sam2/modeling/sam/prompt_encoder.py; the language embedding is RGA3's and Sa2VA's.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.layers.conv import Conv
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import ACTIVATIONS
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.position_encoding import RandomFourierPositions

# Labels of points. Upstream's padding is a token like any other; what is empty is no token at all.
EMPTY, PADDING, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -2, -1, 0, 1, 2, 3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """What is asked of an image, one row an object; what is None is not asked.

    Shapes: points [B, P, 2], labels int [B, P], masks [B, h, h], language [B, L, D].

    Attributes:
      points: (x, y) in pixels of the model's square image, with corners of boxes first (`with_boxes`).
      labels: 1 foreground, 0 background, 2 and 3 the top left and bottom right corner of a box, -1 for upstream's
        padding, -2 for none, so that objects with fewer points can stand beside others.
      masks: logits at a quarter of the image size, from an earlier prediction.
      language: embeddings from outside, which follow the points as tokens of their own.
    """

    points: jax.Array | None = None
    labels: jax.Array | None = None
    masks: jax.Array | None = None
    language: jax.Array | None = None

    @property
    def count(self) -> int:
        """Number of objects; 1 where nothing is asked."""
        given = next((x for x in (self.points, self.masks, self.language) if x is not None), None)
        return 1 if given is None else given.shape[0]


def with_boxes(points: jax.Array | None, labels: jax.Array | None, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points and labels with the corners of boxes in front.

    Shapes: points [B, P, 2] or None, labels int [B, P] or None, boxes [B, 4] as xyxy -> [B, 2 + P, 2], int [B, 2 + P].
    """
    corners = boxes.reshape(-1, 2, 2)
    kinds = jnp.broadcast_to(jnp.asarray([TOP_LEFT, BOTTOM_RIGHT], jnp.int32), corners.shape[:2])
    if points is None or labels is None:
        return corners, kinds
    return jnp.concatenate([corners, points], axis=1), jnp.concatenate([kinds, labels.astype(jnp.int32)], axis=1)


class MaskDownscaling(nnx.Module):
    """Two convolutions that quarter a mask, and one that widens it."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        narrow, wide = cfg.mask_in_chans // 4, cfg.mask_in_chans
        self.conv1 = Conv(1, narrow, (2, 2), strides=(2, 2), **options)
        self.norm1 = LayerNorm(narrow, eps=1e-6, **options)
        self.conv2 = Conv(narrow, wide, (2, 2), strides=(2, 2), **options)
        self.norm2 = LayerNorm(wide, eps=1e-6, **options)
        self.conv3 = Linear(wide, cfg.d_model, **options)  # a 1x1 convolution

    def __call__(self, masks: jax.Array) -> jax.Array:
        """Shapes: masks [B, 4 h, 4 w] -> [B, h, w, D]."""
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.norm1(self.conv1(masks[..., None])))
        return self.conv3(gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    """Makes sparse tokens of points and language, and a dense map of a mask."""

    def __init__(self, cfg: Sam2Config, *, rngs: nnx.Rngs):
        def embedding(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape, cfg.precision.param_dtype))

        self.pe_layer = RandomFourierPositions(cfg.d_model, precision=cfg.precision, rngs=rngs)
        self.point_embeddings = embedding(4, cfg.d_model)
        self.not_a_point_embed = embedding(cfg.d_model)
        self.mask_downscaling = MaskDownscaling(cfg, rngs=rngs)
        self.no_mask_embed = embedding(cfg.d_model)
        self.image_size = cfg.image_size
        self.size = cfg.image_embedding_size
        self.precision = cfg.precision

    def __call__(self, prompts: Prompts) -> tuple[jax.Array, jax.Array]:
        """Tokens of the points, one token of padding after them, tokens of the language; and the map of the mask.

        Without points there is no padding token either, as in upstream's image predictor.

        Shapes: -> sparse [B, T, D], dense [B, h, w, D].

        Raises:
          ValueError: if points come without labels, or a mask has another size than a quarter of the image's.
        """
        compute, width = self.precision.compute, self.no_mask_embed.shape[0]
        tokens = []
        if prompts.points is not None:
            if prompts.labels is None or prompts.labels.shape != prompts.points.shape[:2]:
                raise ValueError(f"points {prompts.points.shape} need labels {prompts.points.shape[:2]}")
            tokens.append(self._embed_points(prompts.points, prompts.labels))
        if prompts.language is not None:
            tokens.append(compute(prompts.language))
        sparse = jnp.concatenate(tokens, axis=1) if tokens else jnp.zeros((prompts.count, 0, width))
        shape = (prompts.count, self.size, self.size)
        if prompts.masks is None:
            return compute(sparse), jnp.broadcast_to(compute(self.no_mask_embed[...]), (*shape, width))
        wanted = (prompts.count, 4 * self.size, 4 * self.size)
        if prompts.masks.shape != wanted:
            raise ValueError(
                f"masks {prompts.masks.shape} must be {wanted}: a quarter of the image's {self.image_size} px"
            )
        return compute(sparse), self.mask_downscaling(prompts.masks)

    def valid_tokens(self, prompts: Prompts) -> jax.Array:
        """Which of the sparse tokens count, all but those of empty points. Shapes: -> bool [B, T]."""
        tokens = []
        if prompts.labels is not None:
            tokens.append(jnp.pad(prompts.labels, ((0, 0), (0, 1)), constant_values=PADDING) != EMPTY)
        if prompts.language is not None:
            tokens.append(jnp.ones(prompts.language.shape[:2], jnp.bool_))
        return jnp.concatenate(tokens, axis=1) if tokens else jnp.zeros((prompts.count, 0), jnp.bool_)

    def dense_positions(self) -> jax.Array:
        """The encoding of every cell of the image features. Shapes: -> [h, w, D]."""
        return self.precision.compute(self.pe_layer.grid(self.size, self.size))

    def _embed_points(self, points: jax.Array, labels: jax.Array) -> jax.Array:
        """Shapes: points [B, P, 2], labels int [B, P] -> [B, P + 1, D], the last of which is padding."""
        points = jnp.pad(points + 0.5, ((0, 0), (0, 1), (0, 0)))  # to the centres of pixels
        labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=PADDING)[..., None]
        tokens = self.pe_layer(points / self.image_size)
        for kind in (BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT):
            tokens = jnp.where(labels == kind, tokens + self.point_embeddings[kind], tokens)
        return self.precision.compute(jnp.where(labels == PADDING, self.not_a_point_embed[...], tokens))
