"""Submissions: predictions of a split without truth, their check, the archive, and going on after a stop."""

import json
import zipfile
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError, UserError
from rvseg_jax.evaluation import command, datasets, submissions
from rvseg_jax.evaluation.parts import Part
from rvseg_jax.evaluation.predictors import from_function
from rvseg_jax.evaluation.runner import EvaluationOptions
from rvseg_jax.formats import meta_expressions, mevis, submission
from rvseg_jax.formats.meta_expressions import Clip, Expression
from rvseg_jax.systems import base
from rvseg_jax.systems.base import MaskChunk, Verdict

SIZES = {"a": (24, 32), "b": (20, 36)}
NAMES = ("00000", "00005")
# A sentence twice in one video, and once more in another.
TEXTS = {"a": {"0": "the cat", "1": "the dog", "10": "the cat"}, "b": {"0": "the cat"}}
PLACES = [(video, key) for video, texts in TEXTS.items() for key in texts]
MODES = {"mevis": "", "ref_youtube_vos": "Annotations/"}


def clips_of(*videos: str) -> dict[str, Clip]:
    return {video: Clip(NAMES, {key: Expression(text) for key, text in TEXTS[video].items()}) for video in videos}


def write_frames(folder: Path, *videos: str) -> None:
    for video in videos:
        mevis.write_jpegs(folder / video, NAMES, np.zeros((len(NAMES), *SIZES[video], 3), np.uint8))


@pytest.fixture
def root(tmp_path) -> Path:
    """MeViS's split `valid`, and Ref-YouTube-VOS's, whose list holds a video of its test set too."""
    folder = tmp_path / "data"
    meta_expressions.write(folder / "valid" / "meta_expressions.json", clips_of("a", "b"))
    write_frames(folder / "valid" / "JPEGImages", "a", "b")
    listed = clips_of("a", "b") | {"of_test": clips_of("a")["a"]}
    meta_expressions.write(folder / "meta_expressions" / "valid" / "meta_expressions.json", listed)
    meta_expressions.write(
        folder / "meta_expressions" / "test" / "meta_expressions.json", {"of_test": listed["of_test"]}
    )
    return folder


class Counting:
    """Masks that tell video and sentence apart: one column more a call; the calls are kept."""

    name = "counting"

    def __init__(self):
        self.texts = []
        self.stop_after = None

    def segment(self, video, texts, *, options=None, progress=None):
        masks = np.zeros((len(texts), video.count, video.height, video.width), bool)
        for own, text in zip(masks, texts, strict=True):
            if self.stop_after is not None and len(self.texts) == self.stop_after:
                raise KeyboardInterrupt
            self.texts.append(text)
            own[..., : len(self.texts)] = text != "the dog"
        yield MaskChunk(0, masks)
        return [Verdict("ok" if own.any() else "no_target", 0.5) for own in masks]


@pytest.fixture
def system(monkeypatch) -> Counting:
    made = Counting()
    module = type(
        "Module",
        (),
        {
            "READS_TEXT": True,
            "FOR_IMAGES": False,
            "load": staticmethod(lambda checkpoint, *, dtype, mesh, **options: made),
        },
    )
    monkeypatch.setitem(base._MODULES, "counting", module)
    return made


def run_eval(*arguments: object) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args([str(argument) for argument in arguments]))
    except UserError as error:
        print(error)
        return error.exit_code


@pytest.mark.parametrize("dataset", MODES)
def test_archive_holds_what_the_server_wants(root, tmp_path, system, dataset, capsys):
    out = tmp_path / "out"
    assert run_eval("counting", dataset, root, "--split", "valid", "--subset", "-o", out, "--batch", 1) == 0
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == [
            f"{MODES[dataset]}{video}/{key}/{name}.png" for video, key in PLACES for name in NAMES
        ]
        for number, (video, key) in enumerate(PLACES, start=1):
            with archive.open(f"{MODES[dataset]}{video}/{key}/{NAMES[1]}.png") as file, Image.open(file) as image:
                assert image.mode == "L" and image.size == SIZES[video][::-1]
                columns = 0 if key == "1" else number
                expected = np.zeros(SIZES[video], np.uint8)
                expected[:, :columns] = 255
                assert (np.asarray(image) == expected).all(), "equal sentences keep masks of their own"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["videos"], summary["expected"], summary["masks"], summary["packed"]) == (2, 4, 8, 8)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok", "no_target", "ok", "ok"]
    assert "2 videos, 4 sentences, 8 masks" in capsys.readouterr().out


def test_ref_youtube_vos_has_202_videos(root, tmp_path, system, capsys):
    assert run_eval("counting", "ref_youtube_vos", root, "-o", tmp_path / "out") == 2
    assert "lists 2 videos that test does not have, the benchmark has 202" in capsys.readouterr().out
    lists = root / "meta_expressions"
    many = {f"v{n:03}": clips_of("b")["b"] for n in range(202)}
    meta_expressions.write(lists / "valid" / "meta_expressions.json", many | clips_of("a"))
    meta_expressions.write(lists / "test" / "meta_expressions.json", clips_of("a"))
    for video in many:
        (root / "valid" / "JPEGImages" / video).mkdir()
    source = datasets.ref_youtube_vos_split(root, split="valid")
    assert len(source.clips) == 202 and "a" not in source.clips


def test_resume_predicts_what_is_not_complete(root, tmp_path, system):
    out = tmp_path / "out"
    arguments = ("counting", "mevis", root, "--split", "valid", "-o", out, "--batch", 1)
    system.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run_eval(*arguments)
    assert sorted(path.name for path in (out / "Annotations" / "a").iterdir()) == ["0", "1"]
    system.stop_after = None
    assert run_eval(*arguments) == 2 and system.texts == ["the cat", "the dog"]
    # Half-written by another program; and a mask of another size.
    (out / "Annotations" / "a" / "0" / "00005.png").unlink()
    assert run_eval(*arguments, "--resume") == 0
    assert system.texts == ["the cat", "the dog", "the cat", "the cat", "the cat"]
    before = (out / "submission.zip").read_bytes()
    Image.new("L", (5, 5)).save(out / "Annotations" / "a" / "1" / "00000.png")
    assert run_eval(*arguments, "--resume") == 0 and system.texts[5:] == ["the dog"]
    assert (out / "submission.zip").read_bytes() == before
    assert run_eval(*arguments, "--resume", "--dtype", "float32") == 2


def damaged(masks: Path, damage) -> Path:
    for video, key in PLACES:
        submission.write_sentence(masks, video, key, NAMES, np.ones((2, *SIZES[video]), bool))
    damage(masks)
    return masks


def truncate(path: Path) -> None:
    """Random pixels, cut in the middle of their data: the header is as it should be."""
    Image.fromarray((np.random.default_rng(0).random(SIZES["a"]) < 0.5).astype(np.uint8) * 255).save(path)
    path.write_bytes(path.read_bytes()[:-40])


PROBLEMS = {
    "video": (lambda m: (m / "b").rename(m / "c"), ["c is no video of the lists", "b is missing with all its 1"]),
    "sentence": (lambda m: (m / "a" / "10").rename(m / "a" / "2"), ["2 is no sentence", "10 lacks 2 of 2 masks"]),
    "frame": (
        lambda m: (m / "b" / "0" / "00005.png").rename(m / "b" / "0" / "00001.png"),
        ["0 lacks 1 of 2 masks, first 00005.png", "00001.png is no frame of the lists"],
    ),
    "size": (
        lambda m: Image.new("L", (32, 20)).save(m / "a" / "1" / "00000.png"),
        ["1/00000.png is 32x20, the frames 32x24"],
    ),
    "mode": (lambda m: Image.new("RGB", (32, 24)).save(m / "a" / "1" / "00000.png"), ["is a PNG of mode RGB"]),
    "values": (lambda m: Image.new("L", (32, 24), 1).save(m / "a" / "1" / "00000.png"), ["has the value 1: write 0"]),
    "damage": (lambda m: truncate(m / "a" / "1" / "00000.png"), ["00000.png is damaged"]),
    "no image": (lambda m: (m / "a" / "1" / "00000.png").write_text("x"), ["missing or no image"]),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_check_that_fails_names_what_is_wrong(root, tmp_path, capsys, kind):
    damage, expected = PROBLEMS[kind]
    masks = damaged(tmp_path / "masks", damage)
    out = tmp_path / "out"
    assert run_eval(masks, "mevis", root, "--split", "valid", "-o", out) == 1
    found = capsys.readouterr()
    assert len(json.loads((out / "summary.json").read_text())["problems"]) == len(expected)
    assert all(problem in found.out for problem in expected) and f"{len(expected)} problems" in found.err
    assert not (out / "submission.zip").exists() and not list(out.glob(".*"))


def test_a_folder_is_checked_and_packed(root, tmp_path, capsys):
    masks = damaged(tmp_path / "given" / "Annotations", lambda m: None)
    out = tmp_path / "out"
    for given in (masks, masks.parent):
        folder = out / given.name
        assert run_eval(given, "ref_youtube_vos", root, "--subset", "-o", folder) == 0
        assert len(zipfile.ZipFile(folder / "submission.zip").namelist()) == 8
    (masks / "b" / "0" / "00005.png").unlink()
    arguments = (masks, "ref_youtube_vos", root, "--subset", "-o", out / "Annotations", "--resume")
    assert run_eval(*arguments) == 1 and not (out / "Annotations" / "submission.zip").exists(), "no stale archive"
    capsys.readouterr()
    submission.write_sentence(masks, "b", "0", NAMES, np.zeros((2, *SIZES["b"]), bool))
    assert run_eval(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["packed"] == 8


def test_refusals(root, tmp_path, system, capsys):
    arguments = ("counting", "mevis", root, "--split", "valid", "-o", tmp_path / "out")
    assert run_eval(*arguments, "--limit", 1) == 2 and run_eval(*arguments, "--missing", "zero") == 2
    # The split that can be scored, without its masks, is a mistake and no submission.
    (root / "valid").rename(root / "valid_u")
    assert run_eval("counting", "mevis", root, "-o", tmp_path / "out") == 2
    assert "has no masks" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_failed_sentence_means_no_archive(root, tmp_path, system, capsys):
    class Refusing(Counting):
        def segment(self, video, texts, **options):
            if "the dog" in texts:
                raise InputError("the sentence is too long")
            return (yield from super().segment(video, texts, **options))

    base._MODULES["counting"].load = staticmethod(lambda checkpoint, **options: Refusing())
    out = tmp_path / "out"
    assert run_eval("counting", "mevis", root, "--split", "valid", "-o", out) == 1
    found = capsys.readouterr()
    assert "failed: sample 1: the sentence is too long" in found.out and "1 lacks 2 of 2" in found.out
    assert not (out / "submission.zip").exists()
    assert sorted(path.name for path in (out / "Annotations" / "a").iterdir()) == ["0", "10"]


def test_parts_make_the_same_archive(root, tmp_path, system, capsys):
    arguments = ("counting", "mevis", root, "--split", "valid", "--batch", 1, "-o")
    assert run_eval(*arguments, tmp_path / "one") == 0
    system.texts.clear()
    two = tmp_path / "two"
    assert run_eval(*arguments, two, "--shard", "1/2") == 0
    assert "other parts have 1 to do" in capsys.readouterr().out and not (two / "submission.zip").exists()
    assert run_eval(*arguments, two, "--shard", "2/2") == 0
    for name in ("submission.zip", "summary.json", "samples.jsonl"):
        assert (two / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_parts_that_run_together_pack_once(root, tmp_path):
    source = datasets.mevis_split(root, split="valid", frames=None)

    def part(index: int):
        return submissions.evaluate(
            "mevis",
            source if index else datasets.mevis_split(root, split="valid", frames=None),
            from_function(lambda frames, texts: np.zeros((len(texts), *frames.shape[:3]))),
            tmp_path / "out",
            settings={"protocol": "test"},
            options=EvaluationOptions(part=Part(index, 2), together=True, missing="abort"),
        )

    with ThreadPoolExecutor(2) as pool:
        found = [future.result(60) for future in [pool.submit(part, index) for index in range(2)]]
    assert [bool(each.summary) for each in found] == [True, False] and all(each.complete for each in found)
    assert len(zipfile.ZipFile(tmp_path / "out" / "submission.zip").namelist()) == 8
