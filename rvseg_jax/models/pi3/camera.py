"""The camera head of Pi3: one pose a frame, its rotation by orthogonalisation of nine numbers.

Source: upstream's `pi3/models/layers/camera_head.py`; Levinson et al. 2020 (arXiv 2006.14616) for the rotation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.linear import Linear

_NORM_EPS = 1e-12
# Below this the sum of two singular values counts as zero: no rotation is nearest, and no gradient is right.
_GAP_EPS = 1e-6


class ResidualMLP(nnx.Module):
    """x + three linear layers, each with a ReLU; upstream writes them as convolutions with a window of 1."""

    def __init__(self, width: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.res_conv1 = Linear(width, width, **options)
        self.res_conv2 = Linear(width, width, **options)
        self.res_conv3 = Linear(width, width, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shapes: x [..., D] -> [..., D]."""
        y = jax.nn.relu(self.res_conv1(x))
        y = jax.nn.relu(self.res_conv2(y))
        return x + jax.nn.relu(self.res_conv3(y))


class CameraHead(nnx.Module):
    """Camera-to-world poses from the patch tokens of frames."""

    def __init__(self, width: int, *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.res_conv = nnx.List([ResidualMLP(width, **options) for _ in range(2)])
        self.more_mlps = nnx.List([Linear(width, width, **options) for _ in range(2)])
        self.fc_t = Linear(width, 3, **options)
        self.fc_rot = Linear(width, 9, **options)

    def __call__(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The nine numbers of the rotation and the translation.

        Shapes: patches [B, h w, D], a row a frame -> [B, 3, 3] before `nearest_rotation`, [B, 3].
        """
        x = patches
        for block in self.res_conv:
            x = block(x)
        x = x.mean(axis=1)
        for layer in self.more_mlps:
            x = jax.nn.relu(layer(x))
        return self.fc_rot(x).reshape(-1, 3, 3), self.fc_t(x)


def poses(raw: jax.Array, translation: jax.Array) -> jax.Array:
    """Camera-to-world matrices. Shapes: raw [..., 3, 3], translation [..., 3] -> [..., 4, 4]."""
    rotation = nearest_rotation(unit_rows(raw))
    top = jnp.concatenate([rotation, translation[..., None]], axis=-1)
    last = jnp.broadcast_to(jnp.asarray([0, 0, 0, 1], top.dtype), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, last], axis=-2)


def unit_rows(matrix: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros stays, without a gradient. Shapes: [..., R, C] -> [..., R, C]."""
    squares = jnp.square(matrix).sum(axis=-1, keepdims=True)
    return matrix * jax.lax.rsqrt(jnp.maximum(squares, _NORM_EPS**2))


@jax.custom_jvp
def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """The rotation nearest to each matrix in the Frobenius norm.

    Its gradient is formed without that of the singular vectors, which is infinite where two singular values are
    equal: only sums of singular values divide, the last one negative where the determinant is. So it is finite
    everywhere, and right wherever a nearest rotation is unique.

    Shapes: matrix float32 [..., 3, 3] -> [..., 3, 3].
    """
    return _orthogonalised(matrix)[0]


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
    """M = R P with P = U diag(s) U^T symmetric, so R^T dM - dM^T R = W P + P W for the skew W = R^T dR."""
    (matrix,), (change,) = primals, tangents
    rotation, basis, values = _orthogonalised(matrix)
    turned = _product(jnp.swapaxes(rotation, -1, -2), change)
    skew = turned - jnp.swapaxes(turned, -1, -2)
    inside = _product(_product(jnp.swapaxes(basis, -1, -2), skew), basis)
    sums = values[..., :, None] + values[..., None, :]
    # The diagonal is zero but for rounding, and in a reflection its last sum is negative.
    inside = jnp.where(jnp.eye(3, dtype=bool), 0, inside / jnp.maximum(sums, _GAP_EPS))
    outside = _product(_product(basis, inside), jnp.swapaxes(basis, -1, -2))
    return rotation, _product(rotation, outside)


def _orthogonalised(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotation, right singular vectors [..., 3, 3], and singular values [..., 3] with the sign of the determinant."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    sign = jnp.sign(jnp.linalg.det(_product(left, right)))
    signs = jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign], axis=-1)
    return _product(left * signs[..., None, :], right), jnp.swapaxes(right, -1, -2), values * signs


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
