"""Small holes of masks, filled inside a compiled program."""

import jax
import jax.numpy as jnp

# What a filled cell holds: just foreground.
_FILLED = 0.1


def fill_holes(logits: jax.Array, max_area: int) -> jax.Array:
    """Masks without holes of at most `max_area` cells: connected pieces of background, over corners too.

    Only small pieces matter, so that `max_area` steps of spreading labels suffice: a piece that is not of one label
    by then, or has a neighbour of another label, is larger. Exact for every mask.

    Shapes: logits [B, H, W] -> [B, H, W].

    Raises:
      ValueError: if `max_area` is not positive.

    Source: `fill_holes_in_mask_scores`, sam2/utils/misc.py, whose connected components run on CUDA alone.
    """
    if max_area < 1:
        raise ValueError(f"max_area is {max_area}: give a positive number of cells")
    batch, height, width = logits.shape
    size = height * width
    background = logits <= 0
    cells = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32).reshape(height, width), logits.shape)
    labels = jnp.where(background, cells, size)

    def spread(_: int, labels: jax.Array) -> jax.Array:
        return jnp.where(background, _around(labels, size, jnp.minimum), size)

    labels = jax.lax.fori_loop(0, max_area, spread, labels)
    lowest = _around(labels, size, jnp.minimum)
    highest = _around(jnp.where(background, labels, -1), -1, jnp.maximum)
    open_cell = background & ((lowest != labels) | (highest != labels))
    # Cells of each label, and whether any of them borders on another label; the last label is the foreground's.
    flat = labels.reshape(batch, size)
    area = jax.vmap(lambda index: jnp.zeros(size + 1, jnp.int32).at[index].add(1))(flat)
    is_open = jax.vmap(lambda index, value: jnp.zeros(size + 1, jnp.bool_).at[index].max(value))(
        flat, open_cell.reshape(batch, size)
    )
    small = (area <= max_area) & ~is_open
    hole = background & jnp.take_along_axis(small, flat, axis=1).reshape(logits.shape)
    return jnp.where(hole, jnp.asarray(_FILLED, logits.dtype), logits)


def _around(x: jax.Array, empty: int, join) -> jax.Array:
    """`join` over each cell and its eight neighbours; beyond the border lies `empty`."""
    for axis in (1, 2):
        widths = [(0, 0)] * 3
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths, constant_values=empty)
        length = x.shape[axis]
        shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(3)]
        x = join(join(shifted[0], shifted[1]), shifted[2])
    return x
