"""Pi3's training losses (Wang et al. 2025, arXiv 2507.13347, section 3.3): a clip's scale is unknown, its frame too.

Predicted points are scaled by the one number that brings them closest to the truth; no gradient passes through it.
"""

import jax
import jax.numpy as jnp

_LEAST_DEPTH = 1e-6
_SPARSE = 4  # pixels from one point that the scale is measured on to the next


def best_scale(points: jax.Array, truth: jax.Array) -> jax.Array:
    """The scale of each clip with the least sum of depth-weighted absolute errors: a weighted median of ratios.

    It is measured on every fourth row and column.

    Shapes: points, truth [B, T, H, W, 3] in camera coordinates -> [B]; positive.
    """
    points, truth = (array[:, :, ::_SPARSE, ::_SPARSE] for array in (points, truth))
    weights = jnp.broadcast_to(_depth_weight(truth), truth.shape).reshape(len(truth), -1)
    found, true = (jax.lax.stop_gradient(array).reshape(len(truth), -1) for array in (points, truth))
    # sum w |s p - q| = sum w |p| |s - q / p|
    ratio = true / jnp.where(jnp.abs(found) < _LEAST_DEPTH, _LEAST_DEPTH, found)
    order = jnp.argsort(ratio, axis=1)
    mass = jnp.cumsum(jnp.take_along_axis(weights * jnp.abs(found), order, axis=1), axis=1)
    middle = jnp.argmax(mass >= mass[:, -1:] / 2, axis=1)
    scale = jnp.take_along_axis(jnp.take_along_axis(ratio, order, axis=1), middle[:, None], axis=1)[:, 0]
    return jnp.maximum(jax.lax.stop_gradient(scale), _LEAST_DEPTH)


def point_loss(points: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean absolute error over the true depth. Shapes: scaled points and truth [B, T, H, W, 3] -> []."""
    return jnp.mean(_depth_weight(truth) * jnp.abs(points - truth))


def normal_loss(points: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean angle in radians between the normals of neighbouring points. Shapes: [B, T, H, W, 3] twice -> []."""
    found, true = _normals(points), _normals(truth)
    across = jnp.linalg.norm(jnp.cross(found, true) + 1e-12, axis=-1)
    return jnp.mean(jnp.arctan2(across, jnp.sum(found * true, axis=-1)))


def camera_losses(poses: jax.Array, truth: jax.Array, *, delta: float = 0.1) -> tuple[jax.Array, jax.Array]:
    """Huber loss of relative translations, and mean angle in radians of relative rotations, over all pairs of frames.

    Shapes: poses, truth [B, T, 4, 4], camera to world, translations scaled already -> [], [].
    """
    turn, way = _relative(poses)
    true_turn, true_way = _relative(truth)
    error = jnp.abs(way - true_way)
    huber = jnp.where(error < delta, 0.5 * jnp.square(error), delta * (error - 0.5 * delta))
    pairs = ~jnp.eye(poses.shape[1], dtype=bool)
    trace = jnp.einsum("bstij,bstij->bst", turn, true_turn, precision="highest")
    # The arc cosine has no gradient at its ends.
    angle = jnp.arccos(jnp.clip((trace - 1) / 2, -1 + 1e-6, 1 - 1e-6))
    count = poses.shape[0] * jnp.maximum(jnp.sum(pairs), 1)
    return (
        jnp.sum(huber * pairs[None, :, :, None]) / (3 * count),
        jnp.sum(angle * pairs[None]) / count,
    )


def confidence_loss(logits: jax.Array, points: jax.Array, truth: jax.Array, *, most: float = 0.02) -> jax.Array:
    """Binary cross entropy against "the error over the depth is below `most`".

    Shapes: logits [B, T, H, W], scaled points and truth [B, T, H, W, 3] -> [].
    """
    error = jnp.mean(_depth_weight(truth) * jnp.abs(points - truth), axis=-1)
    right = jax.lax.stop_gradient(error < most).astype(jnp.float32)
    return jnp.mean(jnp.logaddexp(0, logits) - right * logits)


def _depth_weight(truth: jax.Array) -> jax.Array:
    """Shapes: [..., 3] -> [..., 1]."""
    return 1 / jnp.maximum(truth[..., 2:], _LEAST_DEPTH)


def _normals(points: jax.Array) -> jax.Array:
    """Unit normals between each pixel and its right and lower neighbour.

    Shapes: [..., H, W, 3] -> [..., H - 1, W - 1, 3].
    """
    right = points[..., :-1, 1:, :] - points[..., :-1, :-1, :]
    down = points[..., 1:, :-1, :] - points[..., :-1, :-1, :]
    normal = jnp.cross(right, down)
    return normal * jax.lax.rsqrt(jnp.sum(jnp.square(normal), axis=-1, keepdims=True) + 1e-12)


def _relative(poses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotation and translation of each camera as every other one sees it.

    Shapes: [B, T, 4, 4] -> [B, T, T, 3, 3], [B, T, T, 3].
    """
    turn, place = poses[..., :3, :3], poses[..., :3, 3]
    rotations = jnp.einsum("bsji,btjk->bstik", turn, turn, precision="highest")
    ways = jnp.einsum("bsji,bstj->bsti", turn, place[:, None] - place[:, :, None], precision="highest")
    return rotations, ways
