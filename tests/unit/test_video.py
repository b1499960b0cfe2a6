"""Clips of every kind give each frame once, upright, with its time; what cannot be read says so in one line."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats.frames import list_frames, write_frames
from rvseg_jax.processing.video import open_video


def _images(count=3, size=(20, 30)):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_file(tmp_path, write_clip):
    video = open_video(write_clip(tmp_path / "clip.mp4", audio="aac"))
    assert (video.height, video.width, video.rate, video.has_audio) == (48, 64, 25, True)
    assert (video.name, video.expected_count, video.count) == ("clip", 8, None)
    images = list(video)
    assert len(images) == video.count == 8
    assert video.names == [f"{i:05d}" for i in range(8)]
    assert video.timestamps == [Fraction(i, 25) for i in range(8)]
    for index, image in enumerate(images):
        assert image.dtype == np.uint8
        assert image.shape == (48, 64, 3)
        square = image[12:20, 8 + 2 * index : 16 + 2 * index].astype(int)
        assert abs(square.mean((0, 1)) - (220, 40, 40)).max() < 12  # what H.264 costs
        assert image[40:].mean() < 45
    for again, first in zip(video, images, strict=True):
        np.testing.assert_array_equal(again, first)


def test_variable_rate_gives_every_frame_once_at_its_time(tmp_path, write_clip):
    times = [0, 20, 30, 90, 100, 200, 260, 300]
    video = open_video(write_clip(tmp_path / "vfr.mp4", times=times, time_base=Fraction(1, 600)))
    assert [frame.time for frame in video.frames()] == [Fraction(t, 600) for t in times]
    assert len(video.names) == 8


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [
        (90, (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)),
        (180, (-1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)),
        (270, (0, -1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30)),
    ],
)
def test_display_matrix_is_honoured(tmp_path, write_clip, degrees, matrix):
    path = write_clip(tmp_path / "upright.mp4")
    upright = next(iter(open_video(path)))
    data = path.read_bytes()
    # The matrix of a version 0 track header lies 40 bytes into its payload: ISO/IEC 14496-12, tkhd.
    at = data.index(b"tkhd") + 4 + 40
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :])
    video = open_video(turned)
    image = next(iter(video))
    assert image.shape[:2] == (video.height, video.width)
    # A matrix of 90 degrees turns the picture clockwise.
    np.testing.assert_array_equal(image, np.rot90(upright, -degrees // 90))


def test_folder_in_natural_order(tmp_path):
    images = _images()
    for name, image in zip(("frame10", "frame2", "frame1"), images, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_bytes(b"")
    video = open_video(tmp_path, rate=10)
    np.testing.assert_array_equal(np.stack(list(video)), images[[2, 1, 0]])
    assert video.names == ["frame1", "frame2", "frame10"]
    assert video.timestamps == [0, Fraction(1, 10), Fraction(1, 5)]
    assert (video.count, video.rate, video.height, video.width) == (3, 10, 20, 30)


def test_image_modes_and_orientation(tmp_path):
    grey = np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to view"
    Image.fromarray(grey).save(tmp_path / "0.png", exif=exif)
    video = open_video(tmp_path / "0.png")
    assert (video.count, video.height, video.width) == (1, 30, 20)
    np.testing.assert_array_equal(next(iter(video)), np.rot90(grey, -1)[..., None].repeat(3, -1))


def test_array_and_iterator():
    images = _images()
    array = open_video(images, rate=12.5)
    np.testing.assert_array_equal(np.stack(list(array)), images)
    assert array.rate == Fraction(25, 2)
    once = open_video(image for image in images)
    assert (once.count, once.height, once.width) == (None, 20, 30)
    np.testing.assert_array_equal(np.stack(list(once)), images)
    assert len(once.timestamps) == 3
    with pytest.raises(InputError, match="once"):
        list(once)
    assert open_video(array) is array


def test_decoding_is_lazy():
    asked = []

    def frames():
        for index in range(1000):
            asked.append(index)
            yield np.zeros((4, 4, 3), np.uint8)

    stream = iter(open_video(frames()))
    next(stream)
    next(stream)
    assert len(asked) == 2


def _mixed_sizes(folder):
    folder = folder / "mixed"
    write_frames(folder, [np.zeros((4, 6, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)])
    return folder


def _twice(folder):
    write_frames(folder / "twice", _images(1), suffix=".png")
    write_frames(folder / "twice", _images(1), suffix=".jpg")
    return folder / "twice"


def _broken_image(folder):
    (folder / "broken").mkdir()
    (folder / "broken" / "0.png").write_bytes(b"\x89PNG nothing")
    return folder / "broken"


def _file(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.mp4", "no such file"),
        (_empty_folder, "no frames"),
        (_mixed_sizes, r"00001.jpg is 8x4 but .*00000.jpg is 6x4"),
        (_twice, "two files for one frame"),
        (_broken_image, "0.png cannot be read as an image"),
        (_file("notes.mp4", b"some words\n" * 50), "not a video"),
        (_file("nothing.mp4", b""), "not a video"),
        (_file("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n"), "not a video"),
        (lambda _: np.zeros((3, 4, 4, 3), np.float32), "float32"),
        (lambda _: np.zeros((4, 4, 3), np.uint8), "T, H, W, 3"),
        (lambda _: np.zeros((0, 4, 4, 3), np.uint8), "T, H, W, 3"),
        (lambda _: iter([]), "no frames"),
        (lambda _: 7, "from int"),
    ],
)
def test_what_cannot_be_opened(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as caught:
        open_video(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_iterator_that_changes_size():
    video = open_video(iter([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]))
    with pytest.raises(InputError, match="frame 00001 is 6x4 but the first is 4x4"):
        list(video)


def test_file_without_video_stream(tmp_path):
    import av

    with av.open(str(tmp_path / "song.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        wave.sample_rate = 8000
        container.mux(stream.encode(wave))
    with pytest.raises(InputError, match="no video stream"):
        open_video(tmp_path / "song.wav")


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_cut_off_file(tmp_path, write_clip, options):
    data = write_clip(tmp_path / "whole.mp4", options=options).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 8 // 10])
    with pytest.raises(InputError, match="cut off"):
        open_video(tmp_path / "cut.mp4")


def test_damaged_frame_is_named(tmp_path, write_clip):
    path = write_clip(tmp_path / "clip.mp4", times=range(30), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = (start + len(data)) // 2
    data[middle : middle + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"clip.mp4: frame \d+ cannot be decoded"):
        list(open_video(path))


def test_listing_passes_over_other_files(tmp_path):
    write_frames(tmp_path, _images())
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_frames(tmp_path)] == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_real_clips_are_read_lazily(shared_data):
    for name, size, rate, audio in [
        ("04_coffee", (720, 1280), Fraction(30000, 1001), True),
        ("bedroom", (540, 960), Fraction(30), False),
    ]:
        video = open_video(shared_data / "sam2_videos" / f"{name}.mp4")
        assert ((video.height, video.width), video.rate, video.has_audio) == (size, rate, audio)
        frames = video.frames()
        assert [next(frames).time for _ in range(3)] == [i / rate for i in range(3)]
        assert len(video.names) == 3
