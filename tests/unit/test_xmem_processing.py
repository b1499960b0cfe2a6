"""XMem's frames, masks and label images equal torch's, as upstream's evaluation makes them."""

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing import xmem

RNG = np.random.default_rng(0)
SIZES = [((37, 53), (48, 68)), ((60, 45), (32, 24)), ((40, 40), (40, 40)), ((9, 200), (23, 511))]


def interpolated(torch, planes, size, **options):
    return torch.nn.functional.interpolate(torch.from_numpy(planes)[None], size, **options)[0].numpy()


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_frames_and_masks(torch, old, new):
    frame = RNG.integers(0, 256, (*old, 3), np.uint8)
    normalised = (frame.astype(np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    planes = np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)
    wanted = interpolated(torch, planes, new, mode="bilinear", align_corners=False).transpose(1, 2, 0)
    np.testing.assert_allclose(xmem.prepare_frame(frame, new), wanted, rtol=0, atol=5e-5)  # positions in float32
    masks = RNG.random((3, *old)) > 0.5
    found = xmem.prepare_masks(masks, new)
    np.testing.assert_array_equal(found, interpolated(torch, masks.astype(np.float32), new, mode="nearest"))


@pytest.mark.parametrize(("old", "new"), SIZES[:2], ids=str)
def test_label_images(torch, old, new):
    probabilities = RNG.random((4, *new)).astype(np.float32)
    wanted = interpolated(torch, probabilities, old, mode="bilinear", align_corners=False).argmax(0)
    assert (xmem.label_image(probabilities, old) != wanted).mean() <= 1e-3


@pytest.mark.parametrize(
    ("size", "short", "wanted"),
    [((480, 854), 480, (480, 854)), ((1080, 1920), 480, (480, 853)), ((100, 50), 24, (48, 24)), ((7, 9), -1, (7, 9))],
)
def test_working_size(size, short, wanted):
    assert xmem.working_size(*size, short) == wanted


def test_wrong_frames_are_refused():
    with pytest.raises(InputError, match="float32"):
        xmem.prepare_frame(np.zeros((4, 4, 3), np.float32), (4, 4))
    with pytest.raises(InputError, match="shorter side of 0"):
        xmem.working_size(10, 20, 0)
