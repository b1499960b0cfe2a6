"""MLLMSeg (Wang et al. 2025, arXiv 2508.04107): InternVL answers with `[SEG]` or `[REJ]`, and a decoder draws masks.

Upstream: `MLLMSeg` in `mllmseg/mllmseg_internvl.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.models.internvl import model as internvl
from rvseg_jax.models.internvl.model import InternVL
from rvseg_jax.models.mllmseg import mask_decoder
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.mask_decoder import MaskDecoder
from rvseg_jax.parallel import Table, prefixed


class MLLMSeg(nnx.Module):
    """InternVL and the mask decoder.

    Of the hidden states of a text, those are used that stand one token before the token that they are for: the state
    before `[SEG]`, whose logits predict it, is the phrase, and the states before the image tokens are the image. So the
    map of the image is one token late, its first is that of `<img>`, and its last is never seen: the published weights
    were trained that way.
    """

    def __init__(self, cfg: MLLMSegConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.internvl = InternVL(cfg.internvl, rngs=rngs)
        self.mask_decoder = MaskDecoder(cfg.decoder, rngs=rngs)

    def read(
        self,
        images: jax.Array,
        ids: jax.Array,
        is_image: jax.Array,
        valid: jax.Array | None = None,
        *,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> tuple[jax.Array, jax.Array]:
        """What the vision transformer and the language model make of an image and a text.

        Shapes: images [B, S, S, 3], normalised by ImageNet's statistics, ids int [B, T], is_image and valid bool [B, T]
          -> patches [B, P, Dv], hidden [B, T, D] after the final normalisation.
        """
        patches, tokens = self.internvl.see(images, mode=mode)
        words = self.internvl.embed(ids, tokens, is_image)
        hidden, _ = self.internvl.language(words, valid=valid, mode=mode, remat=remat)
        return patches, hidden


def states_before(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Hidden states one token before some tokens. Shapes: hidden [B, T, D], positions int [B, K] >= 1 -> [B, K, D]."""
    return jnp.take_along_axis(hidden, (positions - 1)[..., None], axis=1)


def image_states(hidden: jax.Array, is_image: jax.Array, count: int) -> jax.Array:
    """The states of an image, see `MLLMSeg`.

    Shapes: hidden [B, T, D], is_image bool [B, T] -> [B, count, D].

    Args:
      is_image: true for `count` tokens side by side, the first of them not at 0.
    """
    first = jnp.argmax(is_image, axis=1)
    return states_before(hidden, first[:, None] + jnp.arange(count))


# Logical axes of the parameters; the first pattern that is found in a path counts.
SHARDING: Table = (*prefixed(internvl.SHARDING, "internvl"), *prefixed(mask_decoder.SHARDING, "mask_decoder"))
