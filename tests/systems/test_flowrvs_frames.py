"""FlowRVS: sizes, resampling, padding and windows of frames."""

import numpy as np
import pytest

from rvseg_jax.systems import windows
from rvseg_jax.systems.flowrvs import frames


@pytest.mark.parametrize(
    ("source", "fitted"),
    [
        ((1080, 1920), (464, 832)),
        ((480, 854), (464, 832)),
        ((576, 1024), (464, 832)),
        ((480, 640), (480, 640)),
        ((1280, 720), (480, 256)),
        ((405, 720), (464, 816)),  # int(720 * (832 / 720)) is 831
    ],
)
def test_sizes_of_the_published_box(source, fitted):
    assert frames.fitted_size(*source, box=(480, 832), multiple=16) == fitted


def test_a_vanishing_side_is_an_error():
    with pytest.raises(ValueError, match="4000x20 are too elongated"):
        frames.fitted_size(20, 4000, box=(480, 832), multiple=16)


def test_resampling_is_pillows():
    image = pytest.importorskip("PIL.Image")
    frame = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    expected = np.asarray(image.fromarray(frame).resize((32, 16), image.Resampling.BILINEAR))
    np.testing.assert_array_equal(frames.resampled(frame, (16, 32)), expected)
    assert frames.resampled(frame, (37, 53)) is frame


def test_time_is_padded_with_the_last_frame():
    assert [frames.padded_length(n) for n in (1, 2, 5, 6, 9, 17)] == [1, 5, 5, 9, 9, 17]
    # Tokens of three latent frames: 3, 6, 9, ... latent frames.
    assert [frames.padded_length(n, 3) for n in (1, 9, 10, 21, 22)] == [9, 9, 21, 21, 33]
    clip = np.arange(6)[:, None]
    np.testing.assert_array_equal(frames.padded(clip)[:, 0], [0, 1, 2, 3, 4, 5, 5, 5, 5])


@pytest.mark.parametrize("count", [1, 8, 9, 10, 16, 23, 40])
@pytest.mark.parametrize("overlap", [0, 2, 5])
def test_windows_cover_each_frame_once(count, overlap):
    clip = [np.full(2, float(index)) for index in range(count)]
    pieces = list(windows.run_windows(iter(clip), lambda w: w[None], length=9, overlap=overlap))
    starts = [start for start, _ in pieces]
    assert starts == list(np.cumsum([0] + [values.shape[1] for _, values in pieces[:-1]]))
    joined = np.concatenate([values for _, values in pieces], axis=1)
    np.testing.assert_allclose(joined[0, :, 0], np.arange(count), rtol=1e-6)
    assert max(values.shape[1] for _, values in pieces) <= 9


def test_shared_frames_fade_linearly():
    values = iter([0.0, 1.0])
    pieces = windows.run_windows(
        iter(np.zeros((7, 1))), lambda w: np.full((1, len(w), 1), next(values)), length=5, overlap=3
    )
    joined = np.concatenate([piece for _, piece in pieces], axis=1)[0, :, 0]
    np.testing.assert_allclose(joined, [0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_windows_read_lazily():
    read = []

    def clip():
        for index in range(100):
            read.append(index)
            yield np.full(1, index)

    next(windows.windows(clip(), 5, 2))
    assert len(read) == 6, "a window needs its frames and one more, to know whether it is the last"
    with pytest.raises(ValueError, match="windows of 5 frames cannot share 5"):
        next(windows.windows(clip(), 5, 5))
