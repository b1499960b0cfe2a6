"""Both protocols of Ref-DAVIS17 on a small split with known truth."""

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError, UserError
from rvseg_jax.evaluation import command, datasets, ref_davis_labels
from rvseg_jax.evaluation.davis import region_and_boundary
from rvseg_jax.evaluation.davis_unsupervised import score_sequence
from rvseg_jax.evaluation.predictors import from_grey_folder, from_system
from rvseg_jax.formats import mevis, ref_davis
from rvseg_jax.formats.davis import read_labels, write_labels
from rvseg_jax.systems import base
from rvseg_jax.systems.base import MaskChunk, SegmentOptions, Verdict

SIZE = (24, 32)
NAMES = ("00000", "00001", "00002")
ZERO = ("--protocol", "official_masks", "--missing", "zero")


def square(top: int, left: int, side: int = 8) -> np.ndarray:
    """bool [3, H, W], a square that moves right by one pixel a frame."""
    masks = np.zeros((3, *SIZE), bool)
    for t, mask in enumerate(masks):
        mask[top : top + side, left + t : left + t + side] = True
    return masks


OBJECTS = {"a": [square(2, 2), square(12, 16)], "b": [square(10, 4)]}


def truth_labels(video: str) -> np.ndarray:
    labels = np.zeros((3, *SIZE), np.uint8)
    for number, masks in enumerate(OBJECTS[video], start=1):
        labels[masks] = number
    return labels


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "ref-davis"
    writer = ref_davis.SplitWriter(folder)
    for video, objects in OBJECTS.items():
        texts = [[f"object {n} by {a}" for a in range(4)] for n in range(len(objects))]
        writer.add(video, NAMES, np.zeros((3, *SIZE, 3), np.uint8), truth_labels(video), texts)
    writer.close()
    return folder


def write_masks(folder: Path, wrong: frozenset[tuple[str, int, int]] = frozenset()) -> Path:
    """The truth of every sentence as masks, empty for the (video, object, annotator) in `wrong`."""
    for video, objects in OBJECTS.items():
        for number, masks in enumerate(objects):
            for annotator in range(4):
                own = np.zeros_like(masks) if (video, number, annotator) in wrong else masks
                mevis.write_prediction(folder, video, str(4 * number + annotator), NAMES, own)
    return folder


def run_eval(*arguments: object) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args([str(argument) for argument in arguments]))
    except UserError as error:
        print(error)
        return error.exit_code


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_official_from_masks_is_the_mean_of_four_annotators(root, tmp_path, capsys):
    masks = write_masks(tmp_path / "masks", frozenset({("a", 1, 2)}))
    out = tmp_path / "out"
    assert run_eval(masks, "ref_davis", root, "-o", out, "--protocol", "official_masks") == 0
    summary = summary_of(out)
    assert [summary["annotators"][f"anno_{a}"]["J&F"] for a in range(4)] == pytest.approx([1, 1, 2 / 3, 1])
    assert summary["overall"]["J&F"] == pytest.approx(11 / 12) and summary["overall"]["objects"] == 3
    printed = capsys.readouterr().out
    assert "(A)" in printed and "Not comparable with per_expression (B)" in printed and "abort" in printed
    # The label maps lie where the original toolkit looks for them, and score the same when read from there.
    assert (read_labels(out / "anno_0" / "a" / "00001.png") == truth_labels("a")[1]).all()
    assert run_eval(out, "ref_davis", root, "-o", tmp_path / "again") == 0
    assert summary_of(tmp_path / "again")["annotators"] == summary["annotators"]


def test_per_expression_counts_every_sentence_alike(root, tmp_path, capsys):
    masks = write_masks(tmp_path / "masks", frozenset({("a", 1, 2)}))
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "out", "--protocol", "per_expression") == 0
    summary = summary_of(tmp_path / "out")
    assert summary["overall"]["J&F"] == pytest.approx(11 / 12) and summary["scored"] == 12
    assert "Not comparable with official (A)" in capsys.readouterr().out
    # The mask file and the label maps are the same truth.
    (root / "valid" / "mask_dict.pkl").unlink()
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "labels", "--protocol", "per_expression") == 0
    assert summary_of(tmp_path / "labels") == summary
    shutil.rmtree(root / "valid" / "Annotations")
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "none", "--protocol", "per_expression") == 2
    assert "has no masks of split" in capsys.readouterr().out


def test_annotation_ids_count_over_ids_sorted_as_text(tmp_path):
    """Three objects have the sentences 0 to 11: "10" and "11" come before "2"."""
    writer = ref_davis.SplitWriter(tmp_path)
    objects = [square(0, 0), square(8, 8), square(16, 16)]
    labels = sum((masks * np.uint8(n + 1) for n, masks in enumerate(objects)), np.zeros((3, *SIZE), np.uint8))
    writer.add("v", NAMES, np.zeros((3, *SIZE, 3), np.uint8), labels, [["x"] * 4] * 3)
    writer.close()
    assert [key for _, key in ref_davis.annotation_order(ref_davis.read_clips(tmp_path, "valid"))][:5] == [
        "0",
        "1",
        "10",
        "11",
        "2",
    ]
    source = datasets.ref_davis_split(tmp_path, split=None)
    assert len(source) == 12 and all(
        (source[place].masks == objects[int(source[place].expression) // 4]).all() for place in range(12)
    )


def test_overlap_goes_to_the_lowest_object_among_masks_and_to_the_best_score_among_scores(root):
    source = datasets.ref_davis_split(root, split="valid")

    class Fake:
        """Everything is foreground to both objects of a clip; the second one is surer of it."""

        name = "fake"

        def segment(self, video, texts, *, options=SegmentOptions(), progress=None):
            masks = np.ones((len(texts), video.count, video.height, video.width), bool)
            sure = np.array([0.9 if "object 1" in text else 0.6 for text in texts], np.float32)
            scores = masks * sure[:, None, None, None] if options.scores else None
            yield MaskChunk(0, masks, scores)
            return [Verdict("ok", 1.0)] * len(texts)

    def labels(scores: bool, folder: Path) -> np.ndarray:
        predict = from_system(Fake(), SegmentOptions(scores=scores))
        return ref_davis_labels.from_predictions(source, predict, folder, batch=1)("a", 3).labels

    assert (labels(False, root / "masks") == 1).all() and (labels(True, root / "scores") == 2).all()
    assert (read_labels(root / "scores" / "anno_3" / "a" / "00002.png") == 2).all()


def test_scores_below_one_half_are_background():
    scores = np.array([0.49, 0.5, 0.7], np.float32).reshape(1, 1, 1, 3)
    assert ref_davis.merge_objects(scores).tolist() == [[[0, 1, 1]]]
    assert ref_davis.merge_objects(np.concatenate([scores, scores + 0.1])).tolist() == [[[2, 2, 2]]]


def test_official_asks_for_scores(root, tmp_path, monkeypatch, capsys):
    class Masks:
        name = "masks"

        def segment(self, video, texts, *, options=SegmentOptions(), progress=None):
            yield MaskChunk(0, np.zeros((len(texts), video.count, video.height, video.width), bool))
            return [Verdict("no_target", 0.0)] * len(texts)

    module = type(
        "Module",
        (),
        {
            "READS_TEXT": True,
            "FOR_IMAGES": False,
            "load": staticmethod(lambda checkpoint, *, dtype, mesh, **options: Masks()),
        },
    )
    monkeypatch.setitem(base._MODULES, "masks", module)
    assert run_eval("masks", "ref_davis", root, "-o", tmp_path / "out") == 1
    assert "gives masks without scores" in capsys.readouterr().out
    assert run_eval("masks", "ref_davis", root, "-o", tmp_path / "m", "--protocol", "official_masks") == 0
    assert summary_of(tmp_path / "m")["overall"]["J&F"] == 0
    assert run_eval("masks", "ref_davis", root, "-o", tmp_path / "t", "--threshold", "0.6") == 2
    assert "official_masks" in capsys.readouterr().out
    masks = write_masks(tmp_path / "masks")
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "n") == 2
    assert "holds masks of sentences" in capsys.readouterr().out
    assert run_eval(tmp_path / "m", "ref_davis", root, "-o", tmp_path / "n", "--protocol", "official_masks") == 2
    assert "merged already" in capsys.readouterr().out


def test_missing_files_abort_unless_zero_is_chosen(root, tmp_path, capsys):
    masks = write_masks(tmp_path / "masks")
    shutil.rmtree(masks / "b" / "1")
    arguments = (masks, "ref_davis", root, "--protocol", "official_masks", "-o", tmp_path / "out")
    assert run_eval(*arguments) == 1
    assert "lacks 3 of 36 files, such as b/1/00000.png" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run_eval(*arguments, "--missing", "skip") == 2
    assert run_eval(*arguments, "--missing", "zero") == 0
    summary = summary_of(tmp_path / "out")
    assert summary["missing"] == [{"video": "b", "expression": "anno_1", "frames": 3}]
    assert summary["missing_policy"] == "zero" and summary["official_missing_policy"].startswith("abort")
    assert summary["annotators"]["anno_1"]["J&F"] == pytest.approx(2 / 3)
    (tmp_path / "out" / "anno_2" / "a" / "00001.png").unlink()
    assert run_eval(tmp_path / "out", "ref_davis", root, "-o", tmp_path / "labels") == 1
    assert "anno_2/a/00001.png" in capsys.readouterr().out
    assert run_eval(tmp_path / "out", "ref_davis", root, "-o", tmp_path / "labels", "--missing", "zero") == 0
    assert summary_of(tmp_path / "labels")["annotators"]["anno_2"]["J"] == pytest.approx(7 / 9)


def test_void_of_the_official_truth_is_not_counted(root, tmp_path):
    masks = write_masks(tmp_path / "masks")
    truth = root / "DAVIS" / "Annotations_unsupervised" / "480p" / "b"
    for name, image in zip(NAMES, truth_labels("b"), strict=True):
        write_labels(truth / f"{name}.png", np.where(image == 0, 255, image).astype(np.uint8))
    mevis.write_prediction(masks, "b", "0", NAMES, np.ones((3, *SIZE), bool))
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "out", "--protocol", "official_masks") == 0
    assert summary_of(tmp_path / "out")["overall"]["J&F"] == 1


def test_wrong_lists_and_files(root, tmp_path, capsys):
    masks = write_masks(tmp_path / "masks")
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(masks / "a" / "0" / "00000.png")
    source = datasets.ref_davis_split(root, split="valid", with_frames=False)
    with pytest.raises(InputError, match="no value above 1; this protocol reads 50"):
        from_grey_folder(masks)([source[0]])
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "out", "--protocol", "official_masks") == 1
    assert "failed: sample 0: a: " in capsys.readouterr().out
    (root / "DAVIS" / "Annotations_unsupervised" / "480p" / "b" / "00001.png").unlink()
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "short", "--protocol", "official_masks") == 1
    assert "2 frames that are not the 3 of the list" in capsys.readouterr().out
    meta = root / "meta_expressions" / "valid" / "meta_expressions.json"
    meta.write_text(meta.read_text().replace('"7":', '"9":'))
    assert run_eval(masks, "ref_davis", root, "-o", tmp_path / "three", *ZERO) == 2
    assert "four an object" in capsys.readouterr().out


def test_protocols_differ_on_the_same_masks(root, tmp_path):
    """Predictions of two objects exchanged: matching forgives that, sentences do not."""
    masks = write_masks(tmp_path / "masks")
    for annotator in range(4):
        one, two = masks / "a" / str(annotator), masks / "a" / str(4 + annotator)
        one.rename(masks / "a" / "x")
        two.rename(one)
        (masks / "a" / "x").rename(two)
    run_eval(masks, "ref_davis", root, "-o", tmp_path / "a", "--protocol", "official_masks")
    run_eval(masks, "ref_davis", root, "-o", tmp_path / "b", "--protocol", "per_expression")
    assert summary_of(tmp_path / "a")["overall"]["J&F"] == 1
    assert summary_of(tmp_path / "b")["overall"]["J&F"] == pytest.approx(1 / 3)


def test_real_masks(shared_data):
    """Masks of two methods as two proposals for one object, all frames: the better one is taken, whole."""
    folder = shared_data / "davis_predictions"
    reference = json.loads((folder / "reference_metrics.json").read_text())
    sequence = next(name for name, scores in reference["osvos"].items() if "J_per_frame" in scores)
    files = sorted((folder / "osvos" / sequence).glob("*.png"))[:6]

    def masks(method: Path) -> np.ndarray:
        return np.stack([np.asarray(Image.open(method / file.name)) > 0 for file in files])

    truth = masks(shared_data / "davis16_mini" / "Annotations" / "480p" / sequence)
    proposals = [masks(folder / "rvos" / sequence), masks(folder / "osvos" / sequence)]
    labels = np.where(proposals[0], 1, np.where(proposals[1], 2, 0)).astype(np.uint8)
    (found,) = score_sequence(truth.astype(np.uint8), labels)
    scores = [region_and_boundary(truth, labels == n) for n in (1, 2)]
    totals = [j.mean() + f.mean() for j, f in scores]
    assert found.proposal == int(np.argmax(totals)) + 1 and found.j.mean + found.f.mean == pytest.approx(max(totals))
