"""Tracking without a model: sessions, whole videos in both directions, the command and its errors, and the scores."""

import json

import numpy as np
import pytest
from PIL import Image

import rvseg_jax as rv
from rvseg_jax.cli import track
from rvseg_jax.cli.predict import FORMAT_NAMES
from rvseg_jax.core.errors import InputError
from rvseg_jax.evaluation import tracking
from rvseg_jax.evaluation.runner import EvaluationOptions
from rvseg_jax.formats.davis import read_labels, write_labels
from rvseg_jax.formats.output import FORMATS
from rvseg_jax.input_pipeline.datasets.davis import Davis
from rvseg_jax.input_pipeline.sources import TrackingSample
from rvseg_jax.trackers import base
from rvseg_jax.trackers.base import Session
from rvseg_jax.trackers.prompts import KINDS, Prompt

SIZE = (48, 64)
COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250))


class ColourSession(Session):
    """Follows the colour that is found under the prompt, whatever else the prompt says."""

    accepts = KINDS

    def __init__(self):
        super().__init__()
        self.colours = {}

    def _step(self, frame, prompts, end):
        for object_id, prompt in prompts.items():
            if prompt.mask is not None:
                y, x = np.argwhere(prompt.mask)[0]
            elif prompt.points is not None:
                x, y = prompt.points[0].astype(int)
            else:
                x, y = ((prompt.box[:2] + prompt.box[2:]) / 2).astype(int)
            self.colours[object_id] = frame[y, x]
        masks = np.stack([(frame == self.colours[object_id]).all(axis=-1) for object_id in self.ids])
        return masks, masks.any(axis=(1, 2)).astype(np.float32)

    def _forget(self, object_id):
        del self.colours[object_id]


class ColourTracker:
    name, accepts = "sam2", KINDS

    def session(self, *, objects=1):
        return ColourSession()


def clip(frames=6):
    """Three squares that move to the right, one below the other; the second is there from frame 2 on."""
    images = np.zeros((frames, *SIZE, 3), np.uint8)
    masks = np.zeros((3, frames, *SIZE), bool)
    for t in range(frames):
        for i, colour in enumerate(COLOURS):
            if i != 1 or t >= 2:
                window = (slice(4 + 14 * i, 14 + 14 * i), slice(4 + 6 * t, 14 + 6 * t))
                images[t][window] = colour
                masks[i, t][window] = True
    return images, masks


@pytest.fixture
def colours(monkeypatch):
    class Module:
        load = staticmethod(lambda checkpoint, **_: ColourTracker())

    monkeypatch.setattr(base, "module", lambda name: Module)


def test_a_session_follows_adds_and_removes():
    images, masks = clip()
    session = ColourTracker().session()
    nothing = session.step(images[0])
    assert nothing.ids == () and nothing.masks.shape == (0, *SIZE)
    session.add(7, points=[[12, 8]])
    session.add(3, box=(10, 32, 20, 42))
    found = session.step(images[1])
    assert found.ids == (7, 3) and found.index == 1
    np.testing.assert_array_equal(found[7], masks[0, 1])
    np.testing.assert_array_equal(found[3], masks[2, 1])
    session.remove(7)
    session.add(9, mask=masks[1, 2])
    found = session.step(images[2])
    assert found.ids == (3, 9)
    np.testing.assert_array_equal(found[9], masks[1, 2])
    assert session.frames == 3
    with pytest.raises(KeyError):
        found[7]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ({}, "say where the object is"),
        ({"points": [[1, 2, 3]]}, "must be \\[P, 2\\]"),
        ({"points": [[1, 2]], "labels": [2]}, "1 \\(on the object\\) or 0"),
        ({"points": [[np.nan, 2]]}, "no finite number"),
        ({"points": "here"}, "must be numbers"),
        ({"box": (5, 5, 5, 9)}, "x0 < x1"),
        ({"mask": np.ones((4, 4)), "box": (1, 1, 2, 2)}, "either a mask"),
        ({"mask": np.ones(4)}, "one object a mask"),
    ],
)
def test_what_is_no_prompt(prompt, text):
    with pytest.raises(InputError, match=text):
        Prompt.of(**prompt)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ({"points": [[64.5, 2]]}, "\\(64.5, 2\\) lies outside of the frame of 64x48"),
        ({"box": (-1, 0, 5, 5)}, "\\(-1, 0\\) lies outside"),
        ({"mask": np.ones((48, 63))}, "63x48 pixels but the frame is 64x48"),
        ({"mask": np.zeros((48, 64))}, "is empty, so there is nothing to follow"),
    ],
)
def test_a_prompt_that_does_not_fit_leaves_the_session_as_it_was(prompt, text):
    images, _ = clip()
    session = ColourTracker().session()
    session.add(4, **prompt)
    with pytest.raises(InputError, match=f"object 4 in frame 0: .*{text}"):
        session.step(images[0])
    session.remove(4)
    session.add(4, points=[[8, 8]])
    assert session.step(images[0]).ids == (4,)


def test_bad_frames_and_numbers():
    images, _ = clip()
    session = ColourTracker().session()
    session.add(1, points=[[8, 8]])
    with pytest.raises(InputError, match="a prompt for frame 0 already"):
        session.add(1, points=[[9, 9]])
    for number in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="number objects 1, 2"):
            session.add(number, points=[[8, 8]])
    session.step(images[0])
    with pytest.raises(InputError, match="frame 1 has 63x48 pixels, those before it 64x48"):
        session.step(images[1][:, :-1])
    with pytest.raises(InputError, match="give uint8"):
        session.step(images[1].astype(float))
    with pytest.raises(InputError, match="there is no object 5"):
        session.remove(5)
    np.testing.assert_array_equal(session.step(images[1])[1], clip()[1][0, 1])


def test_a_tracker_refuses_prompts_that_it_does_not_take():
    session = ColourTracker().session()
    session.accepts = ("mask",)
    with pytest.raises(InputError, match="takes no points, only mask; sam2 takes"):
        session.add(1, points=[[8, 8]])


def test_track_in_both_directions(colours):
    images, masks = clip()
    prompts = {3: {5: Prompt.of(points=[[24, 8]])}, 2: {2: Prompt.of(mask=masks[1, 2])}}
    tracker = rv.load("sam2")
    forward = tracker.track(images, prompts)
    assert forward.objects == (2, 5) and forward.text == ("object 2", "object 5")
    np.testing.assert_array_equal(forward.masks[1], np.where(np.arange(6)[:, None, None] >= 3, masks[0], False))
    np.testing.assert_array_equal(forward.masks[0], masks[1])
    both = tracker.track(images, prompts, backward=True)
    np.testing.assert_array_equal(both.masks[1], masks[0])
    np.testing.assert_array_equal(both.masks[0], masks[1])
    with pytest.raises(InputError, match="only once"):
        tracker.track(iter(images), prompts, backward=True)
    with pytest.raises(InputError, match="a prompt is for frame 9, but clip ends after 6 frames"):
        tracker.track(images, {0: prompts[2], 9: prompts[3]})
    with pytest.raises(InputError, match="nothing to follow"):
        tracker.track(images, {})


def test_results_keep_the_numbers_of_objects(colours, tmp_path):
    images, masks = clip()
    prompts = {0: {9: Prompt.of(mask=masks[0, 0]), 4: Prompt.of(mask=masks[2, 0])}}
    rv.load("sam2").track_to(tmp_path, images, prompts, formats=("davis", "mevis"))
    labels = read_labels(tmp_path / "davis" / "clip" / "00003.png")
    np.testing.assert_array_equal(labels, 9 * masks[0, 3] + 4 * masks[2, 3])
    assert sorted(path.name for path in (tmp_path / "mevis" / "clip").iterdir()) == ["4", "9"]
    with pytest.raises(InputError, match="number objects from 1 to 254"):
        rv.load("sam2").track_to(tmp_path / "b", images, {0: {300: prompts[0][9]}})


def test_command(colours, rvseg, tmp_path):
    images, masks = clip()
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(frames / f"{index:05d}.png")
    out = tmp_path / "out"
    given = ["--box", "4,4,14,14", "--object", "6", "--at", "2", "--points", "20,22;1,1,0"]
    result = rvseg("track", str(frames), *given, "-o", str(out), "--json", "--no-overlay")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert [one["text"] for one in summary["sentences"]] == ["object 1", "object 6"]
    labels = read_labels(out / "davis" / "frames" / "00004.png")
    np.testing.assert_array_equal(labels, masks[0, 4] + 6 * masks[1, 4])
    write_labels(tmp_path / "first.png", (3 * masks[0, 0] + 250 * masks[2, 0]).astype(np.uint8))
    result = rvseg("track", str(frames), "--mask", str(tmp_path / "first.png"), "-o", str(out), "--format", "davis")
    assert result.code == 0, result.err
    assert "'object 250'" in result.out
    for wrong, text in (
        ([], "nothing to follow"),
        (["--box", "1,2,3"], "not of the form --box"),
        (["--points", "90,10"], "(90, 10) lies outside"),
        (["--box", "1,1,9,9", "--size", "64"], "--size is for xmem"),
        (["--at", "40", "--box", "1,1,9,9"], "ends after 6 frames"),
    ):
        result = rvseg("track", str(frames), *wrong, "-o", str(tmp_path / "none"))
        assert result.code == 2 and text in result.err, result.err
        assert not (tmp_path / "none").exists() or not any((tmp_path / "none").iterdir())


def test_the_help_names_every_format():
    assert tuple(FORMATS) == FORMAT_NAMES


def test_options_of_systems_are_refused(colours, davis_root, rvseg, tmp_path):
    for option in (["--threshold", "0.7"], ["--missing", "skip"], ["--whole-clip"]):
        result = rvseg("eval", "sam2", "davis", davis_root, "-o", tmp_path / "no", *option)
        assert result.code == 2 and f"{option[0]} means nothing for sam2" in result.err, result.err


def test_prompts_of_the_command_line(tmp_path):
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "mask.png")
    given = [("points", "1,2"), ("points", "3,4,0"), ("object", 2), ("mask", str(tmp_path / "mask.png"))]
    found = track.read_prompts(given)
    np.testing.assert_array_equal(found[0][1].points, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(found[0][1].labels, [1, 0])
    assert found[0][2].mask.all()
    assert track.read_prompts([("mask", str(tmp_path / "mask.png"))])[0][1].mask.all()
    with pytest.raises(InputError, match="two boxes"):
        track.read_prompts([("box", "1,1,2,2"), ("box", "1,1,3,3")])
    with pytest.raises(InputError, match="either --mask"):
        track.read_prompts([("object", 1), ("box", "1,1,2,2"), ("mask", str(tmp_path / "mask.png"))])


@pytest.fixture
def davis_root(tmp_path):
    """Two videos in DAVIS's layout; of the second, object 1 is number 5."""
    images, masks = clip()
    for name, labels in (("a", masks[0] + 2 * masks[2]), ("b", 5 * masks[0])):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind / "480p" / name).mkdir(parents=True)
        for t in range(6):
            Image.fromarray(images[t]).save(tmp_path / "JPEGImages" / "480p" / name / f"{2 * t:05d}.png")
            write_labels(tmp_path / "Annotations" / "480p" / name / f"{2 * t:05d}.png", labels[t].astype(np.uint8))
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("a\nb\n")
    return tmp_path


def test_davis_semi_supervised(colours, davis_root, rvseg, tmp_path):
    out = tmp_path / "scores"
    result = rvseg("eval", "sam2", "davis", str(davis_root), "-o", str(out), "--write-masks")
    assert result.code == 0, result.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["overall"]["J&F"] == 1 and summary["overall"]["objects"] == 3
    copied = summary["controls"]["first_mask"]
    # Squares of 10 pixels move 6 a frame: a third is left in the second frame, nothing later. Frames 1 to 4 count.
    assert copied["J"] == pytest.approx((40 / 160) / 4)
    assert summary["margins"]["first_mask"]["mean"] == pytest.approx(1 - copied["J&F"])
    assert set(np.unique(read_labels(out / "masks" / "b" / "00004.png"))) == {0, 5}
    result = rvseg("eval", "flowrvs", "davis", str(davis_root), "-o", str(tmp_path / "no"))
    assert result.code == 2 and "only on mevis" in result.err


def test_davis_layout_errors(davis_root):
    (davis_root / "Annotations" / "480p" / "a" / "00004.png").unlink()
    with pytest.raises(InputError, match="00004.png is missing"):
        Davis(davis_root)[0]
    first = davis_root / "Annotations" / "480p" / "b" / "00000.png"
    write_labels(first, np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match="shows no object"):
        Davis(davis_root)[1]
    write_labels(first, np.ones((48, 63), np.uint8))
    with pytest.raises(InputError, match="is 63x48, its frame 64x48"):
        Davis(davis_root)[1]
    with pytest.raises(InputError, match="train.txt is missing"):
        Davis(davis_root, "train")


def test_davis_2016_is_one_object(davis_root):
    (davis_root / "ImageSets" / "2017").rename(davis_root / "ImageSets" / "2016")
    sample = Davis(davis_root)[0]
    assert sample.ids == (1,)
    np.testing.assert_array_equal(sample.masks[0], clip()[1][0] | clip()[1][2])


def test_hidden_frames_are_scored_apart(tmp_path):
    images, masks = clip()
    sample = TrackingSample(images, masks[:1].copy(), (1,), "clip", tuple("012345"), "full")
    sample.masks[0, 3] = False
    wrong = sample.masks.copy()
    wrong[0, 3] = True
    for found, empty in ((sample.masks, 1), (wrong, 0)):
        (line,) = tracking.visible_frames(sample, found)
        assert line == {"object": 1, "j": 1.0, "f": 1.0, "hidden": 1, "hidden_empty": empty}
    evaluation = tracking.evaluate(
        [sample],
        ColourTracker(),
        tmp_path,
        score=tracking.visible_frames,
        settings={},
        options=EvaluationOptions(),
        controls={"first_only": lambda one: tracking.first_only(ColourTracker(), one)},
    )
    assert evaluation.summary["overall"]["hidden_frames"] == 1
    assert evaluation.summary["overall"]["hidden_empty"] == 0  # its square is still to be seen in the frame
    assert evaluation.summary["by_kind"]["full"]["J&F"] == evaluation.summary["controls"]["first_only"]["J&F"] == 1
