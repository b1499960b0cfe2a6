"""`rvseg predict`: right results, or one line that names the cure and nothing written."""

import json
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from rvseg_jax.formats import davis, mask_png, npz, rle, rle_json
from rvseg_jax.formats.frames import write_frames
from rvseg_jax.processing.video import open_video


def _tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _red(path):
    images = np.stack(list(open_video(path))).astype(int)
    return (images[..., 0] > 150) & (images[..., 1] < 110)


def test_writes_masks_overlay_and_summary(tmp_path, rvseg, write_clip):
    clip = write_clip(tmp_path / "clip.mp4", audio="aac")
    out = tmp_path / "out"
    result = rvseg("predict", clip, "the red square", "an absent thing", "-o", out)
    assert (result.code, result.out.count("\n")) == (0, 3)
    assert "'the red square': ok, score 0.90, a mask in 8 of 8 frames" in result.out
    assert "'an absent thing': no_target" in result.out
    expected = _red(clip)
    assert expected.any()
    for index in range(8):
        mask = mask_png.read_mask(out / "mevis" / "clip" / "0" / f"{index:05d}.png")
        np.testing.assert_array_equal(mask, expected[index])
        assert not mask_png.read_mask(out / "mevis" / "clip" / "1" / f"{index:05d}.png").any()
    overlay, source = open_video(out / "clip.overlay.mp4"), open_video(clip)
    assert (overlay.rate, overlay.has_audio, len(list(overlay))) == (source.rate, True, 8)
    summary = json.loads((out / "clip.summary.json").read_text())
    assert summary["files"] == ["mevis/clip", "clip.overlay.mp4"]
    assert [s["status"] for s in summary["sentences"]] == ["ok", "no_target"]
    assert [s["frames_with_mask"] for s in summary["sentences"]] == [8, 0]
    assert summary["sentences"][1]["boxes"] == [None] * 8


def test_all_formats_hold_the_same_masks(tmp_path, rvseg, write_clip):
    clip = write_clip(tmp_path / "clip.mp4")
    formats = [word for name in ("mevis", "davis", "rle", "npz") for word in ("--format", name)]
    assert rvseg("predict", clip, "red", "absent", "-o", tmp_path, "--no-overlay", *formats).code == 0
    expected = np.stack([_red(clip), np.zeros((8, 48, 64), bool)])
    arrays = npz.read(tmp_path / "clip.npz")
    np.testing.assert_array_equal(arrays["masks"], expected)
    assert arrays["text"].tolist() == ["red", "absent"]
    assert arrays["frames"].tolist() == [f"{i:05d}" for i in range(8)]
    record = rle_json.read(tmp_path / "clip.rle.json")
    decoded = [[rle.decode(mask) for mask in sentence["masks"]] for sentence in record["sentences"]]
    np.testing.assert_array_equal(np.array(decoded), expected)
    names, labels = davis.read_folder(tmp_path / "davis" / "clip")
    np.testing.assert_array_equal(labels, expected[0])
    assert len(list((tmp_path / "mevis" / "clip" / "1").iterdir())) == len(names) == 8
    assert not (tmp_path / "clip.overlay.mp4").exists()


def test_frame_folder_keeps_its_names(tmp_path, rvseg):
    frames = tmp_path / "walk"
    frames.mkdir()
    for number in (0, 5, 10):
        image = np.zeros((21, 35, 3), np.uint8)  # odd sizes
        image[4:9, number : number + 7] = (255, 0, 0)
        Image.fromarray(image).save(frames / f"{number:05d}.png")
    result = rvseg("predict", frames, "red", "-o", tmp_path / "out", "--format", "davis", "--fps", "5")
    assert result.code == 0, result.err
    names, labels = davis.read_folder(tmp_path / "out" / "davis" / "walk")
    assert names == ["00000", "00005", "00010"]
    assert labels.shape == (3, 21, 35)
    assert labels[2, 4:9, 10:17].all()
    assert labels.sum() == 3 * 35
    overlay = open_video(tmp_path / "out" / "walk.overlay.mp4")
    assert (overlay.rate, overlay.height, overlay.width, len(list(overlay))) == (5, 22, 36, 3)


@pytest.mark.parametrize("kind", ["mp4", "png"])
def test_one_frame(tmp_path, rvseg, write_clip, kind):
    if kind == "mp4":
        source = write_clip(tmp_path / "one.mp4", times=[0])
    else:
        source = write_frames(tmp_path / "in", [np.full((9, 9, 3), (255, 0, 0), np.uint8)], suffix=".png")[0]
    assert rvseg("predict", source, "red", "-o", tmp_path / "out").code == 0
    overlay = next((tmp_path / "out").glob("*.overlay.mp4"))
    assert len(list(open_video(overlay))) == 1
    masks = list((tmp_path / "out" / "mevis").rglob("*.png"))
    assert len(masks) == 1
    assert mask_png.read_mask(masks[0]).any()


def test_variable_frame_rate(tmp_path, rvseg, write_clip):
    times = [0, 20, 30, 90, 100, 200, 260, 300]
    clip = write_clip(tmp_path / "vfr.mp4", times=times, time_base=Fraction(1, 600), audio="aac")
    assert rvseg("predict", clip, "red", "-o", tmp_path / "out").code == 0
    frames = list(open_video(tmp_path / "out" / "vfr.overlay.mp4").frames())
    assert [frame.time for frame in frames] == [Fraction(time, 600) for time in times]
    assert len(list((tmp_path / "out" / "mevis" / "vfr" / "0").iterdir())) == 8


@pytest.mark.parametrize("text", ["赤い四角形", "der rötliche Würfel", "🟥 square", 'quote " and \\ and <b>'])
def test_text_in_any_script(tmp_path, rvseg, write_clip, text):
    clip = write_clip(tmp_path / "clip.mp4", times=range(2))
    result = rvseg("predict", clip, text, "-o", tmp_path / "out", "--format", "rle", "--no-overlay", "--json")
    assert result.code == 0
    assert json.loads(result.out)["sentences"][0]["text"] == text
    assert rle_json.read(tmp_path / "out" / "clip.rle.json")["sentences"][0]["text"] == text


def test_output_into_the_input_folder_spares_the_input(tmp_path, rvseg, write_clip):
    clip = write_clip(tmp_path / "clip.mp4")
    before = clip.read_bytes()
    for _ in range(2):  # a second run replaces the first one's results
        assert rvseg("predict", clip, "red", "-o", tmp_path, "--format", "davis").code == 0
    assert clip.read_bytes() == before
    assert [name for name in _tree(tmp_path) if "/" not in name] == [
        *("clip.mp4", "clip.overlay.mp4", "clip.summary.json", "davis"),
    ]


def _clip(folder, write_clip):
    return write_clip(folder / "clip.mp4")


def _text_file(folder, _):
    (folder / "clip.mp4").write_text("not a video\n" * 100)
    return folder / "clip.mp4"


def _zero_frames(folder, _):
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return folder / "clip.mp4"


def _cut_off(folder, write_clip):
    path = write_clip(folder / "clip.mp4")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _damaged(folder, write_clip):
    path = write_clip(folder / "clip.mp4", times=range(30), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 60] = b"\xff" * 60
    path.write_bytes(data)
    return path


def _mixed_sizes(folder, _):
    write_frames(folder / "clip", [np.zeros((8, 8, 3), np.uint8)] * 2 + [np.zeros((8, 9, 3), np.uint8)])
    return folder / "clip"


def _no_frames(folder, _):
    (folder / "clip").mkdir()
    (folder / "clip" / "readme.txt").write_text("no frames here")
    return folder / "clip"


OUT = ("-o", "OUT")
BAD = {
    "no such file": (lambda folder, _: folder / "absent.mp4", ["red", *OUT], "absent.mp4: no such file"),
    "not a video": (_text_file, ["red", *OUT], "not a video"),
    "zero frames": (_zero_frames, ["red", *OUT], "no video stream|no frames"),
    "cut off": (_cut_off, ["red", *OUT], "cut off"),
    "mixed sizes": (_mixed_sizes, ["red", *OUT], "00002.jpg is 9x8 but .*00000.jpg is 8x8"),
    "no frames": (_no_frames, ["red", *OUT], "holds no frames"),
    "no text": (_clip, [*OUT], "no sentence"),
    "empty text": (_clip, ["  ", *OUT], "sentence 1 is empty"),
    "empty second text": (_clip, ["red", "", *OUT], "sentence 2 is empty"),
    "text that is no UTF-8": (_clip, ["red \udcff", *OUT], "not valid UTF-8"),
    "no output": (_clip, ["red"], "-o/--output"),
    "output below a file": (_clip, ["red", "-o", "IN/below"], "cannot write to .*choose another folder"),
    "unwritable output": (_clip, ["red", "-o", "/proc/rvseg"], "cannot write to /proc/rvseg"),
    "unknown format": (_clip, ["red", *OUT, "--format", "gif"], "choose from mevis, davis, rle, npz, overlay"),
    "overlay and none": (_clip, ["red", *OUT, "--format", "overlay", "--no-overlay"], "exclude each other"),
    "threshold": (_clip, ["red", *OUT, "--threshold", "1.5"], "1.5 is not between 0 and 1"),
    "memory": (_clip, ["red", *OUT, "--max-memory", "lots"], "write it like 4GB"),
    "memory and whole": (_clip, ["red", *OUT, "--max-memory", "1GB", "--whole-clip"], "exclude each other"),
    "setting": (_clip, ["red", *OUT, "--set", "steps"], "NAME=VALUE"),
    "rate": (_clip, ["red", *OUT, "--fps", "-1"], "not positive"),
    "dtype": (_clip, ["red", *OUT, "--dtype", "int8"], "invalid choice: 'int8'"),
}
# Known only once the system is there.
BAD_LATER = {
    "long text": (_clip, ["red " * 20, *OUT], "has 21 tokens but red_things reads 16; shorten it"),
    "other checkpoint": (_clip, ["red", *OUT, "--checkpoint", "."], "no checkpoint of red_things"),
    "damaged frame": (_damaged, ["red", *OUT], r"frame \d+ cannot be decoded"),
    "too many sentences for a label image": (_clip, ["red"] * 255 + [*OUT, "--format", "davis"], "at most 254"),
}


@pytest.mark.parametrize("case", [*BAD, *BAD_LATER])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, rvseg, red_things, write_clip, case):
    make, arguments, message = {**BAD, **BAD_LATER}[case]
    source = make(tmp_path, write_clip)
    before = _tree(tmp_path)
    words = [word.replace("OUT", str(tmp_path / "new" / "out")).replace("IN", str(source)) for word in arguments]
    result = rvseg("predict", source, *words)
    assert result.code == 2
    lines = result.err.splitlines()
    assert lines[-1].startswith("rvseg: error: ")
    assert "Traceback" not in result.err
    assert re.search(message, lines[-1]), lines[-1]
    assert _tree(tmp_path) == before
    if case in BAD:
        assert not red_things.loads, "weights were loaded for a request that cannot work"
        assert len(lines) == 1


def test_choices_reach_the_system(tmp_path, rvseg, red_things, write_clip):
    clip = write_clip(tmp_path / "clip.mp4", times=range(2))
    settings = [word for pair in ("num_steps=4", "schedule=demo") for word in ("--set", pair)]
    result = rvseg("predict", clip, "red", "-o", tmp_path / "out", "--dtype", "bfloat16", *settings)
    assert result.code == 0
    assert red_things.loads == [{"checkpoint": None, "dtype": "bfloat16", "num_steps": 4, "schedule": "demo"}]


def test_unknown_system_names_the_nearest(tmp_path, rvseg, write_clip):
    clip = write_clip(tmp_path / "clip.mp4")
    result = rvseg("predict", clip, "red", "-o", tmp_path / "out", "--system", "red_thing", system=False)
    assert result.code == 2
    assert "did you mean red_things?" in result.err


@pytest.mark.parametrize(("text", "code"), [("fail interrupt", 130), ("fail memory", 1)])
def test_a_run_that_stops_leaves_nothing(tmp_path, rvseg, write_clip, text, code):
    clip = write_clip(tmp_path / "clip.mp4")
    formats = [word for name in ("mevis", "davis", "rle", "npz") for word in ("--format", name)]
    result = rvseg("predict", clip, text, "-o", tmp_path / "out", *formats)
    assert result.code == code
    assert _tree(tmp_path) == ["clip.mp4"]


def test_real_clips_keep_rate_count_and_sound(tmp_path, rvseg, shared_data):
    """The first dozen frames of each real clip and their sound, copied without decoding."""
    for name, rate in (("04_coffee", Fraction(30000, 1001)), ("bedroom", Fraction(30))):
        clip = tmp_path / f"{name}.mp4"
        with av.open(str(shared_data / "sam2_videos" / f"{name}.mp4")) as source, av.open(str(clip), "w") as target:
            streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
            count = 0
            for packet in source.demux(list(streams)):
                if packet.dts is None or count == 12:
                    break
                count += packet.stream.type == "video"
                packet.stream = streams[packet.stream]
                target.mux(packet)
        result = rvseg("predict", clip, "red", "-o", tmp_path / "out", "--format", "rle")
        assert result.code == 0, result.err
        overlay, source = open_video(tmp_path / "out" / f"{name}.overlay.mp4"), open_video(clip)
        assert (source.rate, overlay.has_audio) == (rate, source.has_audio)
        assert [f.time for f in overlay.frames()] == [f.time for f in source.frames()]
        assert len(overlay.names) == len(rle_json.read(tmp_path / "out" / f"{name}.rle.json")["frames"])
