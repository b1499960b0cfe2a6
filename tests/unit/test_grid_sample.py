"""`grid_sample` against torch.nn.functional.grid_sample."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.ops.grid_sample import MODES, PADDING_MODES, grid_sample
from rvseg_jax.ops.resize import resize

CASES = list(itertools.product(MODES, PADDING_MODES, (False, True)))
# Pixel centres, edges and halves of images of 5 x 7, on both conventions, and points far outside.
SPECIAL = np.array([-1, 1, 0, -0.5, 0.5, 1 / 3, -8 / 7, 8 / 7, -1.0001, 1.4, 2, -2.3, 1e6], np.float32)


def noise(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("mode", "padding_mode", "align_corners"))
def sample_and_gradients(x, grid, cotangent, **options):
    """The samples, and the gradients of sum(samples * cotangent) to both arguments."""
    out, pull = jax.vjp(lambda x, grid: grid_sample(x, grid, **options), x, grid)
    return out, *pull(cotangent)


def with_torch(torch, x, grid, cotangent, **options):
    """torch's result, and the gradients of sum(result * cotangent) to both arguments, channels last."""
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    points = torch.from_numpy(grid.copy()).requires_grad_()
    out = torch.nn.functional.grid_sample(image, points, **options).permute(0, 2, 3, 1)
    (out * torch.from_numpy(cotangent)).sum().backward()
    return out.detach().numpy(), image.grad.permute(0, 2, 3, 1).numpy(), points.grad.numpy()


@pytest.mark.parametrize(("mode", "padding", "corners"), CASES)
@pytest.mark.parametrize("points", ["random", "special"])
def test_values_and_gradients_are_torchs(torch, mode, padding, corners, points):
    options = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    for height, width in ((5, 7), (1, 4)):
        x = noise(2, height, width, 3)
        if points == "random":
            grid = noise(2, 6, 8, 2, scale=0.9)
        else:
            special = np.stack(np.meshgrid(SPECIAL, SPECIAL), -1)
            grid = np.stack([special, special[::-1]])
        cotangent = noise(*grid.shape[:-1], 3)
        expected = with_torch(torch, x, grid, cotangent, **options)
        ours = sample_and_gradients(x, grid, cotangent, **options)
        # Sixteen float32 products; the gradient of the grid is multiplied by the size of the image.
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "padding", "corners"), CASES)
def test_broken_coordinates_give_numbers(mode, padding, corners):
    options = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    x = 1 + np.abs(noise(1, 5, 7, 1))
    broken = np.array([[np.nan, 0], [0, np.nan], [np.inf, 0], [0, -np.inf], [3e38, 0], [0, -3e38]], np.float32)[None]
    values, *gradients = sample_and_gradients(x, broken, np.ones((1, 6, 1), np.float32), **options)
    if padding == "zeros":
        np.testing.assert_array_equal(values, 0)
    else:
        # NaN counts as -1 and the others as the border they lie beyond.
        tame = np.array([[-9, 0], [0, -9], [9, 0], [0, -9], [9, 0], [0, -9]], np.float32)[None]
        same = sample_and_gradients(x, tame, np.ones((1, 6, 1), np.float32), **options)[0]
        np.testing.assert_allclose(values, same, rtol=1e-6)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


def test_zero_offsets_resize_like_bilinear():
    # DySample's start: with zero offsets it is an ordinary resize by two.
    x = noise(1, 4, 6, 3)
    rows, columns = np.arange(8) / 8 * 2 - 7 / 8, np.arange(12) / 12 * 2 - 11 / 12
    grid = np.stack(np.meshgrid(columns, rows), -1)[None].astype(np.float32)
    sampled = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    np.testing.assert_allclose(sampled, resize(x, (8, 12), mode="bilinear"), atol=2e-6)


def test_any_shape_of_points_and_the_format_of_the_image():
    x = noise(2, 5, 7, 3)
    grid = noise(2, 24, 2, scale=0.5)
    flat = grid_sample(x, grid, align_corners=False)
    assert flat.shape == (2, 24, 3)
    deep = grid_sample(x, grid.reshape(2, 2, 3, 4, 2), align_corners=False)
    np.testing.assert_array_equal(deep.reshape(2, 24, 3), flat)
    assert grid_sample(x, grid[:, 0], align_corners=False).shape == (2, 3)
    half = jnp.asarray(x, jnp.bfloat16)
    sampled = grid_sample(half, grid, align_corners=False)
    exact = grid_sample(half.astype(jnp.float32), grid, align_corners=False)
    np.testing.assert_array_equal(sampled, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "linear"}, "unknown sampling mode 'linear'"),
        ({"padding_mode": "reflection"}, "unknown padding mode 'reflection'"),
        ({"grid": np.zeros((3, 4, 2), np.float32)}, "same B"),
    ],
)
def test_bad_arguments_are_named(options, message):
    arguments = {"grid": np.zeros((2, 4, 2), np.float32), "align_corners": False, **options}
    with pytest.raises(ValueError, match=message):
        grid_sample(noise(2, 3, 3, 1), **arguments)
