"""Pieces of SAM 2's image half against independent computations, and what it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.models.sam2.config import HieraConfig, Sam2Config
from rvseg_jax.models.sam2.hiera import from_windows, max_pool, to_windows
from rvseg_jax.models.sam2.image_predictor import EncodedImage, ImagePredictor, ObjectPrompt
from rvseg_jax.models.sam2.mask_decoder import Upscale, stable_or_best
from rvseg_jax.models.sam2.position_encoding import RandomFourierPositions, sine_encoding
from rvseg_jax.models.sam2.prompt_encoder import with_boxes
from rvseg_jax.processing.sam2 import DEVIATION, MEAN, square_image

RNG = np.random.default_rng(0)


def test_windows_come_back_and_are_padded_below_and_right():
    x = RNG.standard_normal((2, 5, 7, 3)).astype(np.float32)
    windows = to_windows(jnp.asarray(x), 4)
    assert windows.shape == (2 * 2 * 2, 4, 4, 3)
    np.testing.assert_array_equal(windows[0], x[0, :4, :4])
    np.testing.assert_array_equal(windows[1, :, :3], x[0, :4, 4:])
    assert not np.any(windows[1, :, 3]) and not np.any(windows[2, 1:])
    np.testing.assert_array_equal(from_windows(windows, 5, 7), x)


def test_max_pool_leaves_out_what_does_not_fill_a_cell():
    x = RNG.standard_normal((1, 5, 4, 2)).astype(np.float32)
    expected = [[[x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].max() for c in (0, 1)] for j in (0, 1)] for i in (0, 1)]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), (2, 2))[0], expected)


def test_transposed_convolution_matches_torch(torch):
    layer = Upscale(3, 5, precision=PARITY, rngs=nnx.Rngs(0))
    x, kernel, bias = (RNG.standard_normal(s).astype(np.float32) for s in ((2, 4, 3, 3), (2, 2, 5, 3), (5,)))
    layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
        torch.from_numpy(np.transpose(kernel, (3, 2, 0, 1)).copy()),
        torch.from_numpy(bias),
        stride=2,
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(layer(jnp.asarray(x))), -1, 1), expected, atol=1e-5)


def test_sine_encoding_of_a_cell():
    encoding = np.asarray(sine_encoding(3, 5, 8))
    row, column = 2 / (3 + 1e-6) * 2 * np.pi, 4 / (5 + 1e-6) * 2 * np.pi
    expected = [f(p / w) for p in (row, column) for w in (1, 100) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(encoding[1, 3], expected, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_encoding(3, 5, 6)


def test_frequencies_of_points_stay_float32():
    layer = RandomFourierPositions(8, precision=BFLOAT16, rngs=nnx.Rngs(0))
    frequencies = np.asarray(layer.positional_encoding_gaussian_matrix[...], np.float64)
    point = np.array([0.3, 0.9])
    angles = 2 * np.pi * (2 * point - 1) @ frequencies
    encoded = layer(jnp.asarray(point, jnp.float32))
    assert encoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded, np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-5)
    np.testing.assert_allclose(layer.grid(2, 4)[1, 2], layer(jnp.array([2.5 / 4, 1.5 / 2])), atol=1e-6)


def test_boxes_stand_before_points():
    points, labels = jnp.ones((2, 1, 2)), jnp.zeros((2, 1), jnp.int32)
    corners, kinds = with_boxes(points, labels, jnp.asarray([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    np.testing.assert_array_equal(corners[1], [[5, 6], [7, 8], [1, 1]])
    np.testing.assert_array_equal(kinds, [[2, 3, 0]] * 2)


def test_stability_decides_between_one_mask_and_several():
    masks = np.full((3, 4, 2, 2), 0.01, np.float32)  # within the margins: not stable
    masks[0, 0], masks[1, 0] = 5.0, -5.0  # full and empty: stable
    masks[:, 1:] = np.arange(1, 4)[:, None, None]
    iou = np.tile(np.array([0.1, 0.5, 0.9, 0.7], np.float32), (3, 1))
    found, score = stable_or_best(jnp.asarray(masks), jnp.asarray(iou), Sam2Config.tiny().mask_decoder)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [5, -5, 2])
    np.testing.assert_allclose(score[:, 0], [0.1, 0.1, 0.9])


@pytest.mark.parametrize("shape", [(45, 200), (64, 64), (20, 30)])
def test_squashed_image_matches_torch(torch, shape):
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.float32))[None] / 255
    expected = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)[0].numpy()
    np.testing.assert_allclose(square_image(image, 64), (np.moveaxis(expected, 0, -1) - MEAN) / DEVIATION, atol=2e-6)


def test_configs_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="one window for each"):
        HieraConfig(window_spec=(8, 4))
    with pytest.raises(ValueError, match="names block 12"):
        HieraConfig(global_att_blocks=(5, 12))
    with pytest.raises(ValueError, match="multiple of 32"):
        dataclasses.replace(Sam2Config.tiny(), image_size=100)
    with pytest.raises(ValueError, match="leaves none"):
        dataclasses.replace(Sam2Config.tiny(), scalp=4)


def test_prompts_that_cannot_be_batched_are_refused():
    model = nnx.eval_shape(lambda: Sam2Stub(Sam2Config.tiny()))
    predictor, image = ImagePredictor(model), EncodedImage(None, 48, 64)
    click = ObjectPrompt(points=np.array([[3.0, 4.0]]), labels=np.array([1]))
    logits = np.zeros((32, 32), np.float32)
    for prompts in ([], [ObjectPrompt()], [click, ObjectPrompt(logits=logits)]):
        with pytest.raises(InputError, match="one prompt or more"):
            predictor.predict(image, prompts)
    with pytest.raises(InputError, match=r"must be \(32, 32\)"):
        predictor.predict(image, [ObjectPrompt(logits=logits[:5])])
    with pytest.raises(InputError, match="uint8"):
        predictor.encode(np.zeros((4, 5, 3), np.float32))


class Sam2Stub(nnx.Module):
    """A model of which only the config is asked for."""

    def __init__(self, cfg):
        self.cfg = cfg
