"""Windows of correlations against torch's pooling and sampling, in every way that they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.ops import correlation as ops
from rvseg_jax.ops.correlation import correlate, pair_bytes, read_windows

BATCH, HEIGHT, WIDTH, CHANNELS, LEVELS, RADIUS = 2, 11, 8, 6, 2, 2
SIDE = 2 * RADIUS + 1
WAYS = {"gather": ("all_pairs", "gather"), "matmul": ("all_pairs", "matmul"), "on_demand": ("on_demand", "auto")}
# Sums of a dozen float32 products.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of both images, positions on the maps and around them, and weights of a sum over all outputs."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, BATCH, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
    size = np.array([WIDTH, HEIGHT])
    positions = (rng.uniform(-0.4, 1.4, (BATCH, HEIGHT, WIDTH, 2)) * size).astype(np.float32)
    positions[0, 0, :3] = [[0, 0], [WIDTH - 1, HEIGHT - 1], [1e12, -1e12]]
    weights = rng.standard_normal((BATCH, HEIGHT, WIDTH, LEVELS * SIDE**2)).astype(np.float32)
    return first, second, positions, weights


def in_torch(torch, first, second, positions, weights):
    """Windows, and gradients of their weighted sum, by all pairs and `grid_sample` at every offset."""
    first, second, positions = (torch.tensor(x, requires_grad=True) for x in (first, second, positions))
    batch, height, width, channels = first.shape
    volume = torch.einsum("bhwc,bijc->bhwij", first, second) / channels**0.5
    volume = volume.reshape(batch * height * width, 1, height, width)
    found = []
    for level in range(LEVELS):
        offsets = [(x, y) for x in range(-RADIUS, RADIUS + 1) for y in range(-RADIUS, RADIUS + 1)]
        points = positions.reshape(-1, 1, 1, 2) / 2**level + torch.tensor(offsets).reshape(1, -1, 1, 2)
        size = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1])
        sampled = torch.nn.functional.grid_sample(volume, 2 * points / size - 1, align_corners=True)
        found.append(sampled.reshape(batch, height, width, -1))
        volume = torch.nn.functional.avg_pool2d(volume, 2)
    windows = torch.cat(found, -1)
    (windows * torch.tensor(weights)).sum().backward()
    return windows.detach().numpy(), [x.grad.numpy() for x in (first, second, positions)]


def test_windows_and_gradients_equal_torch(torch, monkeypatch):
    # Blocks of seven points, the last not full.
    monkeypatch.setattr(ops, "_BLOCK_BYTES", 4 * CHANNELS * (SIDE + 1) ** 2 * 7)
    first, second, positions, weights = inputs()
    expected, gradients = in_torch(torch, first, second, positions, weights)
    assert np.mean(expected != 0) > 0.2 and np.all(expected[0, 0, 2] == 0)
    for lookup, sampling in WAYS.values():

        def total(*arguments, lookup=lookup, sampling=sampling):
            pyramid = correlate(*arguments[:2], levels=LEVELS, lookup=lookup, precision="highest")
            windows = read_windows(pyramid, arguments[2], radius=RADIUS, sampling=sampling)
            return jnp.sum(windows * weights), windows

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
        (_, windows), found = run(first, second, positions)
        np.testing.assert_allclose(windows, expected, **TOLERANCE)
        for ours, theirs in zip(found[:2], gradients[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, **TOLERANCE)
        # Where a position is a whole number the slope jumps, and each side takes one of its two values.
        between = positions != np.floor(positions)
        np.testing.assert_allclose(found[2][between], gradients[2][between], rtol=2e-4, atol=2e-4)


def test_order_is_level_then_x_then_y():
    """One pixel of image 2 answers; the entry that finds it tells its offset."""
    first = np.ones((1, 8, 8, 1), np.float32)
    second = np.zeros((1, 8, 8, 1), np.float32)
    second[0, 5, 2] = 1
    positions = np.full((1, 8, 8, 2), 4.0, np.float32)
    run = jax.jit(lambda *maps: read_windows(correlate(*maps, levels=2), positions, radius=2))
    windows = np.asarray(run(first, second))
    level0, level1 = windows[0, 3, 3].reshape(2, 5, 5)
    assert level0[-2 + 2, 1 + 2] == 1 and level0.sum() == 1  # x - 4 = -2, y - 4 = 1
    assert level1[-1 + 2, 0 + 2] == 0.25 and level1.sum() == 0.25  # (2, 5) // 2 - (4, 4) / 2


def test_auto_weighs_memory():
    maps = jax.ShapeDtypeStruct((2, 16, 24, 4), jnp.float32)
    bytes_of_pairs = pair_bytes(16, 24, 2)
    assert bytes_of_pairs == 4 * 16 * 24 * (16 * 24 + 8 * 12)

    def made(**options):
        return jax.eval_shape(lambda a, b: correlate(a, b, levels=2, **options), maps, maps)

    whole, less = made(max_bytes=bytes_of_pairs), made(max_bytes=bytes_of_pairs - 1)
    assert whole.features is None and sum(x.size for x in whole.pyramid) * 4 == 2 * bytes_of_pairs
    assert less.features is not None and less.pyramid[1].shape == (2, 8, 12, 4)


def test_memory_on_demand_is_bounded_forward_and_backward():
    """All pairs of these maps take 201 MB; what is gathered for a block at most 34 MB."""
    maps = jax.ShapeDtypeStruct((1, 64, 96, 64), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, 64, 96, 2), jnp.float32)

    def total(first, second, positions, lookup):
        return read_windows(correlate(first, second, levels=4, lookup=lookup), positions, radius=4).sum()

    def temporary(lookup):
        run = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=3)
        return run.lower(maps, maps, positions, lookup).compile().memory_analysis().temp_size_in_bytes

    assert pair_bytes(64, 96, 4) > 200e6
    assert temporary("on_demand") < 120e6 < temporary("all_pairs")


@pytest.mark.parametrize(
    ("shapes", "levels"),
    [(((1, 8, 8, 4), (1, 8, 9, 4)), 2), (((1, 8, 7, 4), (1, 8, 7, 4)), 3)],
    ids=["differ", "small"],
)
def test_maps_that_do_not_fit_are_refused(shapes, levels):
    with pytest.raises(InputError, match="feature maps"):
        correlate(*(jnp.zeros(shape) for shape in shapes), levels=levels)


def test_unknown_names_are_refused():
    maps = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ValueError, match="all_pairs"):
        correlate(maps, maps, levels=1, lookup="some")
    with pytest.raises(ValueError, match="gather"):
        read_windows(correlate(maps, maps, levels=1), jnp.zeros((1, 4, 4, 2)), radius=1, sampling="some")
