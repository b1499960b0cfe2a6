"""Mask files and overlay videos: what is written reads back, and results appear whole or not at all."""

import json
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import davis, frames, mask_png, npz, plain_pickle, rle, rle_json
from rvseg_jax.formats.mp4 import Mp4Writer, write_video
from rvseg_jax.formats.overlay import COLOURS, OverlayWriter, outline, paint
from rvseg_jax.formats.staging import Staging, check_writable
from rvseg_jax.processing.video import open_video


def _masks(sentences=2, frames=3, size=(10, 14), seed=0):
    return np.random.default_rng(seed).random((sentences, frames, *size)) < 0.4


def test_davis_palette_is_pascal_voc():
    palette = davis.palette()
    assert palette[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_davis_palette_matches_real_annotations(shared_data):
    """The folder's masks come from the DAVIS toolkit's own writer."""
    files = sorted((shared_data / "cutie_examples").rglob("*.png"))
    files = [file for file in files if Image.open(file).mode == "P"]
    assert files
    with Image.open(files[0]) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    labels = davis.read_labels(files[0])
    used = np.unique(labels)
    np.testing.assert_array_equal(stored[used], davis.palette()[used])


def test_davis_round_trip_and_overlap(tmp_path):
    masks = _masks()
    writer = davis.DavisWriter(tmp_path / "clip", (1, 2))
    writer.add(["a1", "a2"], masks[:, :2])
    writer.add(["a10"], masks[:, 2:])
    writer.close()
    names, labels = davis.read_folder(tmp_path / "clip")
    assert names == ["a1", "a2", "a10"]
    np.testing.assert_array_equal(labels == 1, masks[0])
    np.testing.assert_array_equal(labels == 2, masks[1] & ~masks[0])
    with Image.open(tmp_path / "clip" / "a1.png") as image:
        assert image.mode == "P"


def test_davis_refuses_colours_and_too_many_objects(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="RGB"):
        davis.read_labels(tmp_path / "0.png")
    with pytest.raises(InputError, match="255 objects"):
        davis.DavisWriter(tmp_path / "clip", range(1, 256))


def test_mask_png_round_trip(tmp_path):
    masks = _masks()
    writer = mask_png.MaskPngWriter(tmp_path / "clip", ("0", "1"))
    writer.add(["00000", "00005", "00010"], masks)
    for sentence in range(2):
        for index, name in enumerate(["00000", "00005", "00010"]):
            path = tmp_path / "clip" / str(sentence) / f"{name}.png"
            np.testing.assert_array_equal(mask_png.read_mask(path), masks[sentence, index])
            with Image.open(path) as image:
                assert image.mode == "L"
                assert set(np.unique(image)) == {0, 255}


def test_npz_round_trip(tmp_path):
    masks = _masks(size=(11, 7))
    npz.write(tmp_path / "m.npz", (m for s in masks for m in s), masks.shape, text=np.array(["a", "ä 猫"]))
    arrays = npz.read(tmp_path / "m.npz")
    np.testing.assert_array_equal(arrays["masks"], masks)
    assert arrays["masks"].dtype == bool
    assert arrays["text"].tolist() == ["a", "ä 猫"]


def _record(masks):
    return {
        "video": "clip",
        "height": masks.shape[2],
        "width": masks.shape[3],
        "rate": "25",
        "frames": [f"{i:05d}" for i in range(masks.shape[1])],
        "sentences": [
            {"text": "猫", "status": "ok", "score": 0.5, "masks": [rle.encode(mask) for mask in sentence]}
            for sentence in masks
        ],
    }


def test_rle_json_round_trip(tmp_path):
    record = _record(_masks())
    rle_json.write(tmp_path / "m.json", record)
    assert rle_json.read(tmp_path / "m.json") == record
    assert "猫" in (tmp_path / "m.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda record: record["sentences"][1]["masks"].pop(), "2 masks for 3 frames"),
        (lambda record: record["sentences"][0]["masks"][0].update(counts="5"), "add up to 5"),
        (lambda record: record["sentences"][0]["masks"][0].update(size=[14, 10]), "size"),
        (lambda record: record.pop("frames"), "frames"),
    ],
)
def test_rle_json_is_checked(tmp_path, break_it, message):
    record = _record(_masks())
    break_it(record)
    (tmp_path / "m.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        rle_json.read(tmp_path / "m.json")


def test_outline_and_paint():
    mask = np.zeros((12, 12), bool)
    mask[2:9, 3:12] = True
    ring = outline(mask, 1)
    assert ring.sum() == 9 + 9 + 5  # top, bottom, left; the right side lies on the image's edge
    image = np.full((12, 12, 3), 100, np.uint8)
    painted = paint(image, np.stack([mask, ~mask & False]))
    np.testing.assert_array_equal(painted[~mask], image[~mask])
    np.testing.assert_array_equal(painted[2, 5], COLOURS[0])
    np.testing.assert_allclose(painted[5, 7], (100 + COLOURS[0].astype(float)) / 2, atol=0.5)


def _packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def _overlay(source, target, masks=None):
    video = open_video(source)
    writer = OverlayWriter(target, video)
    for name, image in zip(range(10**6), video, strict=False):
        writer.add([str(name)], np.zeros((1, 1, *image.shape[:2]), bool))
    writer.close()
    return video, open_video(target)


def test_overlay_keeps_times_and_audio(tmp_path, write_clip):
    times = [0, 20, 30, 90, 100, 200, 260, 300]
    source = write_clip(tmp_path / "vfr.mp4", times=times, time_base=Fraction(1, 600), audio="aac")
    video, written = _overlay(source, tmp_path / "overlay.mp4")
    assert [frame.time for frame in written.frames()] == video.timestamps
    assert _packets(tmp_path / "overlay.mp4") == _packets(source)
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001)])
def test_overlay_keeps_the_frame_rate(tmp_path, write_clip, rate):
    source = write_clip(tmp_path / "clip.mp4", time_base=1 / rate, times=range(12))
    video, written = _overlay(source, tmp_path / "overlay.mp4")
    assert written.rate == video.rate == rate
    assert written.expected_count == len(list(written)) == 12
    assert written.timestamps == video.timestamps
    assert not written.has_audio


def test_audio_that_mp4_does_not_hold_is_encoded_again(tmp_path, write_clip):
    source = write_clip(tmp_path / "clip.mkv", audio="pcm_s16le", times=range(25))
    _overlay(source, tmp_path / "overlay.mp4")
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == "aac"
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    # A second of the tone that the clip was made with: 16 kHz, 20 samples a radian, a quarter of full scale.
    spectrum = np.abs(np.fft.rfft(sound[:16000]))
    assert abs(np.argmax(spectrum) - 16000 / (2 * np.pi * 20)) <= 1
    assert 16000 <= len(sound) <= 16000 + 2 * 1024


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    images = np.random.default_rng(0).integers(100, 110, (3, 47, 63, 3), dtype=np.uint8)
    write_video(tmp_path / "odd.mp4", images, 10)
    video = open_video(tmp_path / "odd.mp4")
    assert (video.height, video.width, video.rate, len(list(video))) == (48, 64, 10, 3)


def test_colours_survive_the_codec(tmp_path):
    colours = np.array([(230, 60, 60), (40, 130, 255), (30, 185, 100), (255, 255, 255)], np.uint8)
    image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 16, 0), 16, 1)
    write_video(tmp_path / "c.mp4", [image] * 2, 10)
    read = next(iter(open_video(tmp_path / "c.mp4")))
    # A wrong colour matrix (BT.601 read as BT.709) would be off by 20 and more.
    np.testing.assert_allclose(read[8::16, 8::16].astype(int), image[8::16, 8::16].astype(int), atol=5)


def test_times_that_repeat_are_moved_apart(tmp_path):
    writer = Mp4Writer(tmp_path / "c.mp4", 16, 16, rate=Fraction(10))
    for time in (0, 0, 1):
        writer.add(np.zeros((16, 16, 3), np.uint8), Fraction(time, 10), Fraction(1, 10))
    writer.close()
    assert len(list(open_video(tmp_path / "c.mp4"))) == 3


def test_no_frames_is_refused(tmp_path):
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "c.mp4", [], 10)


def test_staging_publishes_and_replaces(tmp_path):
    out = tmp_path / "new" / "out"
    for text in ("first", "second"):
        with Staging(out) as staging:
            staging.path("a.txt").write_text(text)
            folder = staging.path("mevis/clip")
            folder.mkdir()
            (folder / f"{text}.png").write_text(text)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == [
        "a.txt",
        "mevis",
        "mevis/clip",
        "mevis/clip/second.png",
    ]
    assert (out / "a.txt").read_text() == "second"


def test_staging_leaves_nothing_after_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "new" / "out"):
        with pytest.raises(KeyboardInterrupt), Staging(folder) as staging:
            staging.path("a.txt").write_text("half")
            raise KeyboardInterrupt
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["out", "out/a.txt"]
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"


def test_staging_in_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/out"):
        with pytest.raises(InputError, match="cannot write to"):
            check_writable(place)
    check_writable(tmp_path / "a" / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_one_line(tmp_path):
    with pytest.raises(InputError, match="No space left"), Staging(tmp_path) as staging:
        staging.path("a")
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_read(tmp_path, protocol):
    path = tmp_path / "x.p"
    value = [{"a": 1, 2: [3.5, None, True, "é", b"\x00\xff"]}, (1, {2}, 1 << 70)]
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    if protocol < 4:  # sets are built by a call there
        with pytest.raises(InputError, match="it refers to .*set"):
            plain_pickle.read(path)
        value[1] = (1, [2], 1 << 70)
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert plain_pickle.read(path) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'echo executed'\ntR.", "refers to (os|posix|nt).system"),
        (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "it encodes str as 'rot13'"),
        (b"\x80\x04\x95", "no pickle of plain values"),
        (b"", "no pickle of plain values"),
        (b"S'\xe9'\n.", "no pickle of plain values"),
        (b"Pother\n.", "no pickle of plain values"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    path = tmp_path / "x.p"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        plain_pickle.read(path)
    with pytest.raises(InputError, match="y.p is missing"):
        plain_pickle.read(tmp_path / "y.p")


def test_large_pickles_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(list(range(100))))
    monkeypatch.setattr(plain_pickle, "SIZE_LIMIT", 100)
    with pytest.raises(InputError, match="above 100 bytes are refused"):
        plain_pickle.read(path)


def test_images_are_read_from_bytes_as_from_files(tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    data = path.read_bytes()
    assert (frames.decode_image(data, "x") == frames.read_image(path)).all()
    assert frames.encoded_size(data, "x") == frames.image_size(path) == (9, 6)
    with pytest.raises(InputError, match="frame 3 cannot be read as an image"):
        frames.decode_image(data[:20], "frame 3")
