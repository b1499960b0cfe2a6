"""Checks of datasets on disk: what is whole passes, and every kind of damage is named while the rest goes on."""

import json
import shutil

import pytest
from PIL import Image

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.checks import Report, check_dataset
from rvseg_jax.input_pipeline.checks.dataset import PUBLISHED
from rvseg_jax.input_pipeline.checks.report import compare
from rvseg_jax.input_pipeline.datasets.moving_shapes import (
    MovingShapes,
    MovingShapesConfig,
    held_out,
    to_mevis,
    to_ref_davis,
    to_ref_youtube_vos,
    to_refcoco,
)

CLIPS = MovingShapes(MovingShapesConfig(size=(56, 64), frames=5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Small copies of all datasets, by name."""
    top = tmp_path_factory.mktemp("datasets")
    to_mevis(top / "mevis/train", CLIPS, range(10, 18))
    to_mevis(top / "mevis/valid", CLIPS, range(2), with_masks=False)
    to_ref_youtube_vos(top / "ref_youtube_vos", CLIPS, range(3))
    to_ref_youtube_vos(top / "ref_youtube_vos", CLIPS, range(2), split="valid", with_masks=False)
    to_ref_davis(top / "ref_davis", held_out(CLIPS.config), range(4))
    to_refcoco(top / "refcoco", CLIPS, range(3))
    return top


@pytest.fixture
def copy(made, tmp_path):
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def test_whole_datasets_pass(made):
    found = {name: check_dataset(name, made / name, decode=True) for name in ("mevis", "ref_youtube_vos", "ref_davis")}
    assert [(r.split, r.videos, r.frames) for r in found["mevis"]] == [("train", 8, 40), ("valid", 2, 10)]
    assert [(r.split, r.videos, r.masks) for r in found["ref_youtube_vos"]] == [("train", 3, 15), ("valid", 2, 0)]
    assert [(r.split, r.videos, r.masks) for r in found["ref_davis"]] == [("valid", 4, 20)]
    assert not any(report.problems for reports in found.values() for report in reports)
    assert found["mevis"][0].sentences == 16 and "masks are withheld" in found["mevis"][1].notes
    assert any("name nothing" in note for note in found["mevis"][0].notes)
    (images,) = check_dataset("refcoco", made / "refcoco", decode=True)
    assert (images.split, images.videos, images.problems) == ("train", 3, [])
    listing = json.loads((made / "refcoco/refcoco/instances.json").read_text())
    assert images.masks == len(listing["annotations"])


def test_the_check_of_mevis_goes_on_after_a_problem(copy):
    folder = copy("mevis") / "train"
    (folder / "JPEGImages/train_000011/00003.jpg").unlink()
    (folder / "JPEGImages/train_000012/00001.jpg").write_bytes(b"no image")
    tracks = json.loads((folder / "mask_dict.json").read_text())
    first = json.loads((folder / "meta_expressions.json").read_text())["videos"]["train_000014"]["expressions"]
    tracks[str(first["1"]["anno_id"][0])][0] = {"size": [2, 2], "counts": "04"}
    (folder / "mask_dict.json").write_text(json.dumps(tracks))
    (report,) = check_dataset("mevis", folder)
    assert report.videos == 7 and report.split == "train"
    for problem, part in zip(report.problems, ("000011/00003.jpg", "000012/00001.jpg", "train_000014/1"), strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("name", "damage", "parts"),
    [
        ("ref_youtube_vos", lambda r: (r / "train/meta.json").unlink(), ["train/meta.json is missing"]),
        (
            "ref_youtube_vos",
            lambda r: (r / "train/Annotations/train_000001/00010.png").unlink(),
            ["train_000001/00010.png is missing"],
        ),
        (
            "ref_youtube_vos",
            lambda r: Image.new("L", (9, 9)).save(r / "train/Annotations/train_000001/00010.png"),
            ["00010.png: annotations have size (9, 9), the frames (56, 64)"],
        ),
        ("ref_davis", lambda r: shutil.rmtree(r / "valid/JPEGImages/held_out_000002"), ["held_out_000002 is missing"]),
        (
            "refcoco",
            lambda r: next(r.rglob("*000002.jpg")).unlink(),
            ["COCO_train2014_000000000002.jpg is missing"],
        ),
        (
            "refcoco",
            lambda r: Image.new("RGB", (9, 8)).save(next(r.rglob("*000002.jpg"))),
            ["000002.jpg has size (8, 9), the list says (56, 64)"],
        ),
    ],
)
def test_every_damage_is_named(copy, name, damage, parts):
    root = copy(name)
    damage(root)
    problems = [problem for report in check_dataset(name, root) for problem in report.problems]
    assert len(problems) == len(parts) and all(part in problem for part, problem in zip(parts, problems, strict=True))


def test_an_object_that_is_not_annotated(copy):
    root = copy("ref_davis")
    path = root / "meta_expressions/valid/meta_expressions.json"
    path.write_text(path.read_text().replace('"obj_id": "1"', '"obj_id": "77"', 1))
    (report,) = check_dataset("ref_davis", root)
    assert report.problems == [
        "held_out_000000/0 names object 77, which the annotations lack",
        "held_out_000000/0 names object 77, which meta.json lacks",
    ]


def test_a_bad_mask_of_an_image(copy):
    root = copy("refcoco")
    path = root / "refcoco/instances.json"
    listing = json.loads(path.read_text())
    listing["annotations"][0]["segmentation"] = [[1, 2, 3]]
    listing["annotations"][1]["segmentation"] = []
    path.write_text(json.dumps(listing))
    (report,) = check_dataset("refcoco", root)
    assert len(report.problems) == 1 and "a polygon has 3 numbers" in report.problems[0]
    assert "1 masks are empty" in report.notes


def test_one_unreadable_split_does_not_hide_the_others(copy, capsys):
    root = copy("mevis")
    (root / "train/meta_expressions.json").write_text("{")
    reports = check_dataset("mevis", root)
    assert "cannot be read as JSON" in reports[0].problems[0] and reports[1].videos == 2
    assert main(["data", "check", "mevis", str(root)]) == 1
    captured = capsys.readouterr()
    assert "mevis train: 0 videos" in captured.out and "1 problem\n" in captured.out
    assert main(["data", "check", "mevis", str(root), "--split", "valid"]) == 0
    assert main(["data", "check", "mevis", str(root), "--split", "train"]) == 2


def test_nothing_there_is_bad_input(tmp_path, capsys):
    for name, message in (
        ("mevis", "SPLIT/meta_expressions.json is missing"),
        ("ref_davis", "meta_expressions/SPLIT/meta_expressions.json is missing"),
        ("refcoco+", r"refcoco\+/refs\(unc\).p or refcoco\+/instances_refcoco\+_SPLIT.json is missing"),
    ):
        with pytest.raises(InputError, match=message):
            check_dataset(name, tmp_path)
    assert main(["data", "check", "mevis"]) == 2 and "which mevis?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "split", "videos", "sentences", "note"),
    [
        ("mevis", "train", 1662, 23051, "matches MeViS v1 train"),
        ("mevis", "train", 1662, 27502, "matches MeViS v2 train"),
        ("mevis", "valid_u", 50, 793, "matches MeViS v1 valid_u"),
        ("mevis", "valid", 140, 2523, "matches MeViS v2 valid"),
        ("ref_youtube_vos", "valid", 202, 834, "matches Ref-YouTube-VOS valid"),
        ("refcoco", "testA", 750, 5657, "matches RefCOCO testA"),
    ],
)
def test_published_sizes_are_recognised(name, split, videos, sentences, note):
    report = Report(split, videos=videos, sentences=sentences)
    compare(report, name, PUBLISHED[name])
    assert report.notes == [note] and not report.problems
    other = Report(split, videos=videos - 1, sentences=sentences)
    compare(other, name, PUBLISHED[name])
    assert other.notes[0].startswith(f"not the whole of a published {name} {split}: ")
