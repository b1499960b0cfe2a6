"""Datasets of motion segmentation as they lie on disk: truth is the generator's, and damage is named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.formats import davis, motion_masks
from rvseg_jax.input_pipeline.checks import check_dataset
from rvseg_jax.input_pipeline.datasets.motion_sets import BENCHMARKS, NAMES, TRAINING, open_motion
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric import GeometricShapes, GeometricShapesConfig
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.writers import LAYOUTS, write_layout

CLIPS = GeometricShapes(GeometricShapesConfig(size=(64, 80), frames=8, with_flow=False, empty=0.0, moving=(2, 2)))
# Where frames and truth of the first clip lie.
FIRST = {
    "davis16": ("JPEGImages/480p/train_000000", "Annotations/480p/train_000000"),
    "davis17": ("JPEGImages/480p/train_000000", "Annotations/480p/train_000000"),
    "fbms": ("JPEGImages/train_000000", "Annotations/train_000000"),
    "segtrack": ("JPEGImages_jpg_standardized/train_000000", "GroundTruth/train_000000"),
    "got10k": ("train_000000/images", "train_000000/masks"),
    "hoi4d": ("images/train_000000", "dynamic_masks/train_000000"),
    "dynamic_stereo": ("train/train_000000/images", "train/train_000000/dynamic_masks"),
    "gotmoving": ("train_000000", "train_000000/masks"),
    "dynamic_verse": ("scenes/train_000000/rgb", "scenes/train_000000/mask"),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two clips in every layout."""
    top = tmp_path_factory.mktemp("motion")
    for layout in LAYOUTS:
        assert write_layout(layout, top / layout, CLIPS, range(2)) == 2
    return top


@pytest.fixture
def copy(made, tmp_path):
    return lambda layout: shutil.copytree(made / layout, tmp_path / layout)


def test_every_dataset_has_a_layout_that_is_written():
    assert set(FIRST) == set(LAYOUTS) and set(NAMES) - set(LAYOUTS) == {"davis_all", "davis16_m", "davis17_m"}
    assert set(BENCHMARKS) | set(TRAINING) == set(NAMES)


@each_layout
def test_truth_is_the_generators(made, layout):
    source = open_motion(layout, made / layout)
    assert len(source) == 2
    for index in range(2):
        truth, video = CLIPS[index], source[index]
        assert len(video) == 8 and video.name.endswith(truth.video)
        known = range(0, 8, 5) if layout == "fbms" else range(8)
        assert list(video.annotated) == list(known)
        clip = video.sample([5, 2, 5, 0])
        shown = [place in known for place in (5, 2, 5, 0)]
        np.testing.assert_array_equal(clip.masks[shown], truth.masks[[5, 2, 5, 0]][shown])
        assert clip.valid is None and clip.frames.shape == (4, 64, 80, 3)
        if layout == "fbms":
            assert clip.known.tolist() == shown and not clip.masks[1].any()
        else:
            assert clip.known is None
        assert np.abs(clip.frames.astype(int) - truth.frames[[5, 2, 5, 0]]).mean() < 5
        assert clip.frame_names == ("00005", "00002", "00005", "00000")


@each_layout
def test_whole_datasets_pass_their_check(made, layout):
    (report,) = check_dataset(layout, made / layout, decode=True)
    assert not report.problems and (report.videos, report.frames) == (2, 16)
    assert report.masks == (4 if layout == "fbms" else 16)
    assert any("some frames only" in note for note in report.notes) == (layout == "fbms")


@each_layout
def test_a_damaged_file_of_truth_is_named(copy, layout):
    folder = copy(layout)
    path = sorted((folder / FIRST[layout][1]).iterdir())[0]
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=f"{path.name} cannot be read"):
        open_motion(layout, folder)[0].sample([0])
    (report,) = check_dataset(layout, folder)
    assert len(report.problems) == 1 and str(path) in report.problems[0]


@each_layout
def test_truth_without_a_frame_is_an_error(copy, layout):
    folder = copy(layout)
    frames, truth = (folder / part for part in FIRST[layout])
    first = sorted(path for path in frames.iterdir() if path.is_file())[0]
    first.unlink()
    with pytest.raises(InputError, match="has no frame of that name|files for the 7 frames"):
        open_motion(layout, folder)[0]
    assert truth.is_dir()


@each_layout
def test_frames_of_different_sizes_are_an_error(copy, layout):
    folder = copy(layout)
    path = sorted(path for path in (folder / FIRST[layout][0]).iterdir() if path.is_file())[3]
    Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(InputError, match=r"has size \(40, 40\)"):
        open_motion(layout, folder)[0].sample(range(8))
    (report,) = check_dataset(layout, folder)
    assert any("size (40, 40)" in problem for problem in report.problems)


@pytest.mark.parametrize("layout", ["davis16", "davis17", "segtrack"])
def test_benchmarks_need_truth_of_every_frame(copy, layout):
    folder = copy(layout)
    (folder / FIRST[layout][1] / "00004.png").unlink()
    with pytest.raises(InputError, match=r"00004\.png is missing: every frame needs truth"):
        open_motion(layout, folder)[0]


@pytest.mark.parametrize("layout", ["got10k", "hoi4d", "gotmoving", "dynamic_verse"])
def test_numbering_with_gaps_and_frames_without_truth(copy, layout):
    folder = copy(layout)
    frames, truth = (folder / part for part in FIRST[layout])
    for place in range(7, -1, -1):
        for path in (*frames.glob(f"{place:05d}.*"), *truth.glob(f"{place:05d}.*")):
            path.rename(path.with_name(f"{place * 3 + 90}{path.suffix}"))
    next(truth.glob("96.*")).unlink()
    video = open_motion(layout, folder)[0]
    assert video.frames.names == tuple(str(place * 3 + 90) for place in range(8))
    assert video.annotated == [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(video.sample([3, 7]).masks, CLIPS[0].masks[[3, 7]])


def test_frames_are_brought_to_the_size_of_the_truth(copy):
    folder = copy("davis16")
    for path in (folder / FIRST["davis16"][0]).iterdir():
        with Image.open(path) as image:
            image.resize((160, 128)).save(path)
    clip = open_motion("davis16", folder)[0].sample(range(8))
    assert clip.frames.shape == (8, 64, 80, 3)
    assert np.abs(clip.frames.astype(int) - CLIPS[0].frames).mean() < 12
    (report,) = check_dataset("davis16", folder)
    assert not report.problems and any("another size than the frames of 1 videos" in note for note in report.notes)


def test_truth_of_different_sizes_is_an_error(copy):
    folder = copy("davis16")
    Image.new("L", (40, 40)).save(folder / FIRST["davis16"][1] / "00003.png")
    with pytest.raises(InputError, match=r"00003\.png has size \(40, 40\)"):
        open_motion("davis16", folder)[0].sample([0, 3])


def test_void_of_palette_images_is_left_out_and_white_of_grey_ones_moves(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[0], labels[1], labels[2] = 1, 3, davis.VOID
    davis.write_labels(tmp_path / "void.png", labels)
    moving, valid = motion_masks.read_image(tmp_path / "void.png")
    np.testing.assert_array_equal(moving, (labels == 1) | (labels == 3))
    np.testing.assert_array_equal(valid, labels != davis.VOID)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    moving, valid = motion_masks.read_image(tmp_path / "grey.png")
    assert valid is None and moving.sum() == 18
    white = Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8))
    white.putpalette([value for value in range(256) for _ in range(3)])
    white.save(tmp_path / "white.png")
    moving, valid = motion_masks.read_image(tmp_path / "white.png")
    assert valid is None and moving.sum() == 18
    Image.fromarray(np.where(labels[..., None] > 0, [0, 0, 90], 0).astype(np.uint8)).save(tmp_path / "colour.png")
    assert motion_masks.read_image(tmp_path / "colour.png")[0].sum() == 18


def test_void_reaches_the_sample(copy):
    folder = copy("davis17")
    path = folder / FIRST["davis17"][1] / "00002.png"
    labels = davis.read_labels(path).copy()
    labels[:5] = davis.VOID
    davis.write_labels(path, labels)
    clip = open_motion("davis17", folder)[0].sample([1, 2])
    assert clip.valid[0].all() and not clip.valid[1, :5].any() and clip.valid[1, 5:].all()
    assert not clip.masks[1, :5].any()
    (report,) = check_dataset("davis17", folder)
    assert "1 frames have void" in report.notes


def test_archives_are_not_trusted(tmp_path, monkeypatch):
    for name, arrays, text in (
        ("pickle", {"0": np.array([{"a": 1}], dtype=object)}, "cannot be read as masks"),
        ("names", {"mask": np.ones((4, 4))}, "holds no object"),
        ("sizes", {"1": np.ones((4, 4)), "2": np.ones((1, 4, 5))}, "object 2 has shape"),
        ("volume", {"1": np.ones((2, 4, 4))}, "object 1 has shape"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=text):
            motion_masks.read_archive(path)
    np.savez(tmp_path / "two.npz", **{"0": np.eye(4)[None], "7": np.eye(4)[::-1] * 3.0, "names": np.ones(3)})
    union, _ = motion_masks.read_archive(tmp_path / "two.npz")
    np.testing.assert_array_equal(union, (np.eye(4) + np.eye(4)[::-1]) > 0)
    monkeypatch.setattr(motion_masks, "_MOST_BYTES", 100)
    with pytest.raises(InputError, match="more than the 100"):
        motion_masks.read_archive(tmp_path / "two.npz")


def test_lists_of_davis(made, copy):
    folder = copy("davis16")
    shutil.rmtree(folder / "ImageSets")
    with pytest.raises(InputError, match=r"blackswan is missing, one of 20 listed"):
        open_motion("davis16_m", folder)
    with pytest.raises(InputError, match=r"bike-packing is missing, one of 30 listed"):
        open_motion("davis17_m", folder)
    assert len(open_motion("davis_all", folder)) == 2
    assert len(open_motion("davis_all", folder)[1]) == 8
    shutil.move(folder, folder.parent / "DAVIS")
    assert len(open_motion("davis_all", folder.parent)) == 2
    (folder.parent / "DAVIS/ImageSets/2016").mkdir(parents=True)
    (folder.parent / "DAVIS/ImageSets/2016/val.txt").write_text("train_000001\n../x\n")
    with pytest.raises(InputError, match="no name of a folder"):
        open_motion("davis16", folder.parent)


def test_gotmoving_takes_a_list_of_folders(made, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text(f"{made / 'gotmoving/train_000001'}\n\n")
    source = open_motion("gotmoving", listing)
    assert len(source) == 1 and source[0].name == "train_000001"
    np.testing.assert_array_equal(source[0].sample([4]).masks, CLIPS[1].masks[[4]])
    listing.write_text("nowhere\n")
    with pytest.raises(InputError, match="lists nowhere"):
        open_motion("gotmoving", listing)


def test_segtrack_with_objects_in_folders_says_what_to_do(copy):
    folder = copy("segtrack")
    (folder / FIRST["segtrack"][1] / "1").mkdir()
    with pytest.raises(InputError, match="bring the objects of each frame into one image"):
        open_motion("segtrack", folder)
    shutil.rmtree(folder / FIRST["segtrack"][1] / "1")
    for path in (folder / FIRST["segtrack"][1]).iterdir():
        path.rename(path.with_name(f"gt_{path.name}"))
    # Not one name agrees: the order counts.
    np.testing.assert_array_equal(open_motion("segtrack", folder)[0].sample([6]).masks, CLIPS[0].masks[[6]])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="choose from dynamic_stereo"):
        open_motion("dynamicstereo", tmp_path)
    for name in NAMES:
        with pytest.raises(InputError, match="missing|no folders|no videos"):
            open_motion(name, tmp_path / "none")


def test_the_command_line_writes_and_checks(tmp_path, capsys):
    make = ["data", "make", "--layout", "fbms", "--clips", "2", "--size", "64", "64", "--frames", "6"]
    assert main([*make, "-o", str(tmp_path)]) == 0
    assert main(["data", "check", "fbms", str(tmp_path / "fbms"), "--json"]) == 0
    out = capsys.readouterr().out
    assert f"2 clips written to {tmp_path / 'fbms'}" in out
    (report,) = json.loads(out[out.index("{") :])["splits"]
    assert report["frames"] == 12 and report["masks"] == 4 and not report["problems"]
    assert any("FBMS-59 has 59 videos" in note for note in report["notes"])
    assert main(["data", "check", "fbms", str(tmp_path / "fbms"), "--split", "val"]) == 2
    assert main(["data", "check", "fbms", str(tmp_path / "nothing")]) == 2
    assert main([*make, "-o", str(tmp_path / "more"), "--split", "val"]) == 2
