"""Object pointers: one vector that says which object was followed in a frame, and how far away in time that was."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import Sam2


def sine_of_distance(distance: jax.Array, features: int, *, temperature: float = 10_000.0) -> jax.Array:
    """Sines, then cosines, of a distance in time at geometrically spaced wavelengths, each twice.

    Shapes: distance [...] -> float32 [..., D].

    Source: `get_1d_sine_pe`, sam2/modeling/sam2_utils.py.
    """
    half = features // 2
    wavelengths = temperature ** (2 * (jnp.arange(half, dtype=jnp.float32) // 2) / half)
    angles = distance.astype(jnp.float32)[..., None] / wavelengths
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def make_pointers(model: "Sam2", tokens: jax.Array, object_score: jax.Array) -> jax.Array:
    """Pointers of objects from the mask tokens that were chosen for them.

    Shapes: tokens [B, D], object_score float32 [B] -> [B, D].

    Source: the end of `SAM2Base._forward_sam_heads`.
    """
    assert model.obj_ptr_proj is not None
    pointers = model.obj_ptr_proj(tokens)
    if not model.cfg.mask_decoder.pred_obj_scores:
        return pointers
    soft = model.cfg.tracking.soft_no_obj_ptr
    present = jax.nn.sigmoid(object_score) if soft else (object_score > 0).astype(jnp.float32)
    return mix_absent(model, pointers, present)


def mix_absent(model: "Sam2", pointers: jax.Array, present: jax.Array) -> jax.Array:
    """Pointers with the embedding of absence where, or as far as, objects are absent.

    Shapes: pointers [B, D], present in 0..1 [B] -> [B, D].
    """
    if model.no_obj_ptr is None:
        return pointers
    share = present[:, None].astype(pointers.dtype)
    kept = share * pointers if model.cfg.tracking.fixed_no_obj_ptr else pointers
    return kept + (1 - share) * model.no_obj_ptr[...].astype(pointers.dtype)


def pointer_tokens(
    model: "Sam2", pointers: jax.Array, distance: jax.Array, valid: jax.Array, longest: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pointers cut into tokens of the width of memories, with their position encoding and validity.

    Shapes: pointers [B, P, D], distance in frames int [B, P], valid bool [B, P], longest int [B]
      -> [B, P * n, M], [B, P * n, M], bool [B, P * n] with n = D / M.

    Args:
      longest: the distance that is encoded as 1.

    Source: `SAM2Base._prepare_memory_conditioned_features`.
    """
    cfg = model.cfg
    batch, count, width = pointers.shape
    pieces = width // cfg.mem_dim
    if cfg.tracking.add_tpos_enc_to_obj_ptrs:
        features = width if cfg.tracking.proj_tpos_enc_in_obj_ptrs else cfg.mem_dim
        position = sine_of_distance(distance / jnp.maximum(longest, 1)[:, None], features)
        if model.obj_ptr_tpos_proj is not None:
            position = model.obj_ptr_tpos_proj(position)
    else:
        position = jnp.zeros((batch, count, cfg.mem_dim), jnp.float32)
    tokens = pointers.reshape(batch, count * pieces, cfg.mem_dim)
    return tokens, jnp.repeat(position, pieces, axis=1), jnp.repeat(valid, pieces, axis=1)
