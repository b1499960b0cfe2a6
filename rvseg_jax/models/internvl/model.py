"""InternVL2 and 2.5 (Chen et al. 2024, arXiv 2412.05271): patches, merged and projected, take the place of words.

Upstream: `internvl/model/internvl_chat/modeling_internvl_chat.py` of OpenGVLab/InternVL.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.mlp import ACTIVATIONS
from rvseg_jax.layers.norm import LayerNorm
from rvseg_jax.models.internvl import vision
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.internvl.vision import InternViT
from rvseg_jax.models.lm import decoder
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.parallel import Table, constrain, prefixed

_NORM_EPS = 1e-5  # torch's default, unlike that of the vision transformer


class Projector(nnx.Module):
    """Merged patches to the width of the language model."""

    def __init__(self, cfg: InternVLConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        merged, width = cfg.vision.hidden_size * cfg.merge**2, cfg.language.hidden_size
        self.norm = LayerNorm(merged, eps=_NORM_EPS, **options)
        self.linear_1 = Linear(merged, width, **options)
        self.linear_2 = Linear(width, width, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [B, T, merged] -> [B, T, D]."""
        return self.linear_2(ACTIVATIONS["gelu"](self.linear_1(self.norm(x))))


class InternVL(nnx.Module):
    """Vision transformer, projector and language model."""

    def __init__(self, cfg: InternVLConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.vision = InternViT(cfg.vision, rngs=rngs)
        self.projector = Projector(cfg, rngs=rngs)
        self.language = LanguageModel(cfg.language, rngs=rngs)

    def see(
        self, images: jax.Array, *, mode: stack.Mode = "scan", remat: stack.Remat = "none"
    ) -> tuple[jax.Array, jax.Array]:
        """Patches as the vision transformer leaves them, and the image tokens that the language model reads.

        Shapes: images [B, S, S, 3], normalised by ImageNet's statistics -> [B, P, Dv] and [B, P / merge^2, D], both
          row by row.
        """
        patches = self.vision(images, mode=mode, remat=remat)[:, 1:]
        return patches, self.projector(pixel_shuffle(patches, self.cfg.merge))

    def embed(self, ids: jax.Array, tokens: jax.Array, is_image: jax.Array) -> jax.Array:
        """Embeddings of a prompt with the image tokens in place of those of `<IMG_CONTEXT>`, in order.

        Shapes: ids int [B, T], tokens [B, I, D], is_image bool [B, T], true I times in every row -> [B, T, D].
        """
        place = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, tokens.shape[1] - 1)
        seen = jnp.take_along_axis(tokens, place[..., None], axis=1)
        words = self.language.embed(ids)
        return constrain(jnp.where(is_image[..., None], seen.astype(words.dtype), words), "batch", "seq", "embed")


def pixel_shuffle(patches: jax.Array, merge: int) -> jax.Array:
    """Squares of patches side by side in the channels, row by row: upstream's `ps_version` v2.

    Shapes: patches [B, P, D], P a square -> [B, P / merge^2, D * merge^2].
    """
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h p w q) c -> b (h w) (p q c)", h=side // merge, w=side // merge, p=merge, q=merge)


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    *prefixed(vision.SHARDING, "vision"),
    *prefixed(decoder.SHARDING, "language"),
    (r"^projector/linear_1/kernel$", (None, "mlp")),
    (r"^projector/linear_2/kernel$", ("mlp", "embed")),
    (r"^projector/", ()),
)
