"""Images of every kind as RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.image import of_array, read_rgb, stored_size


def saved(image, suffix=".png", **options):
    file = io.BytesIO()
    image.save(file, format={".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[suffix], **options)
    return file.getvalue()


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    values = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)
    expected = np.array([[0, 0, 1], [1, 128, 255]], np.uint8)
    for suffix in (".png", ".tif"):
        path = tmp_path / f"deep{suffix}"
        path.write_bytes(saved(Image.fromarray(values), suffix))
        found = read_rgb(path)
        assert found.dtype == np.uint8 and found.shape == (2, 3, 3)
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=-1))
    np.testing.assert_array_equal(of_array(values)[..., 0], expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", ".png"), ("L", ".png"), ("P", ".png"), ("RGB", ".png"), ("CMYK", ".tif"), ("YCbCr", ".tif")],
)
def test_other_modes_are_those_of_pillow(mode, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    data = saved(Image.fromarray(pixels).convert(mode), suffix)
    found = read_rgb(data)
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert (found == pixels).all() == (mode in ("RGB", "CMYK"))


def test_transparent_pixels_keep_their_colours():
    """Nothing is laid under them, whatever their transparency."""
    four = np.random.default_rng(1).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    np.testing.assert_array_equal(read_rgb(saved(Image.fromarray(four))), four[..., :3])
    two = read_rgb(saved(Image.fromarray(four[..., :2])))
    np.testing.assert_array_equal(two, np.repeat(four[..., :1], 3, axis=-1))


def test_orientation_is_applied_where_it_is_asked_for(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 200  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right: bright above
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(Image.fromarray(pixels), ".jpg", quality=95, exif=exif))
    upright, stored = read_rgb(path), read_rgb(path, upright=False)
    assert upright.shape == (16, 8, 3) and stored.shape == (8, 16, 3)
    assert upright[:8].min() > 150 and upright[8:].max() < 50 and stored[:, :8].min() > 150
    assert stored_size(path) == (8, 16) and stored_size(path, upright=True) == (16, 8)


def test_files_that_are_no_images_are_named(tmp_path):
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)), ".jpg")
    cases = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.png": b"no image at all"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_rgb(tmp_path / name)
        with pytest.raises(InputError, match="an upload"):
            read_rgb(data, where="an upload")
    with pytest.raises(InputError, match="absent.png"):
        read_rgb(tmp_path / "absent.png")
    with pytest.raises(InputError, match="floating point"):
        read_rgb(saved(Image.fromarray(np.zeros((3, 3), np.float32)), ".tif"))
    with pytest.raises(InputError, match="more than 16 bits"):
        read_rgb(saved(Image.fromarray(np.full((3, 3), 1 << 20, np.int32)), ".tif"))


def test_arrays():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(of_array(array), np.stack([grey] * 3, axis=-1))
    four = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(of_array(four), four[..., :3])
    for wrong in (
        np.zeros((2, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 3, 2), np.uint8),
        np.zeros(3, np.uint8),
    ):
        with pytest.raises(InputError, match="my picture"):
            of_array(wrong, "my picture")
