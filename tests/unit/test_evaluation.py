"""The evaluation runner, its summaries, protocols, controls and exit codes."""

import json
import shutil
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvseg_jax.core.errors import InputError, UserError
from rvseg_jax.evaluation import bootstrap, command, moving_shapes
from rvseg_jax.evaluation.iou import IoUTotals
from rvseg_jax.evaluation.predictors import Prediction, from_folder, from_function, from_system
from rvseg_jax.evaluation.runner import EvaluationOptions, evaluate
from rvseg_jax.evaluation.scores import Score, score_masks, sentence_keyed, summarise
from rvseg_jax.formats import mask_png, mevis, rle
from rvseg_jax.formats.meta_expressions import Expression
from rvseg_jax.input_pipeline.sources import ReferringSample
from rvseg_jax.systems import base
from rvseg_jax.systems.base import MaskChunk, Verdict

SIZE = (24, 32)
NAMES = ("00000", "00001", "00002")


def disc(top: int, left: int, side: int = 8) -> np.ndarray:
    """bool [3, H, W], a square that moves right by one pixel a frame."""
    masks = np.zeros((3, *SIZE), bool)
    for t, mask in enumerate(masks):
        mask[top : top + side, left + t : left + t + side] = True
    return masks


def sample(video: str, expression: str, text: str, masks: np.ndarray, kind: str = "") -> ReferringSample:
    return ReferringSample(np.zeros((3, *SIZE, 3), np.uint8), masks, text, video, expression, NAMES, kind)


SOURCE = [
    sample("a", "0", "the left one", disc(2, 2), "attribute"),
    sample("a", "1", "the right one", disc(2, 16), "relation"),
    sample("b", "0", "the left one", disc(10, 4), "attribute"),
]
SETTINGS = {"protocol": "test"}


def truth(samples):
    return [Prediction(entry.masks) for entry in samples]


def run_eval(*arguments: object) -> int:
    """`rvseg eval ARGUMENTS` with the exit code of the command line."""
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args([str(argument) for argument in arguments]))
    except UserError as error:
        print(error)
        return error.exit_code


def test_perfect_predictions_and_files(tmp_path):
    groups = []

    def predict(samples):
        groups.append([f"{entry.video}/{entry.expression}" for entry in samples])
        return truth(samples)

    found = evaluate(SOURCE, predict, tmp_path, settings=SETTINGS)
    assert groups == [["a/0", "a/1"], ["b/0"]], "sentences of one video go together"
    assert found.complete and [score.jf for score in found.scores] == [1, 1, 1]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [Score.from_dict(line) for line in lines] == list(found.scores)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["protocol"] == "test" and summary["expected"] == summary["scored"] == 3
    assert summary["overall"]["J&F"] == 1 and summary["overall"]["T-acc"] == 1
    assert summary["overall"]["N-acc"] is None and summary["missing"] == summary["failed"] == []


def test_batch_bounds_the_sentences_of_a_call(tmp_path):
    sizes = []

    def predict(samples):
        sizes.append(len(samples))
        return truth(samples)

    evaluate(SOURCE, predict, tmp_path, settings=SETTINGS, options=EvaluationOptions(batch=1))
    assert sizes == [1, 1, 1]


def test_missing_predictions_are_zeros_and_listed(tmp_path):
    predictions = tmp_path / "masks"
    mevis.write_prediction(predictions, "a", "0", NAMES, disc(2, 2))
    mevis.write_prediction(predictions, "b", "0", NAMES[:2], disc(10, 4)[:2])
    found = evaluate(SOURCE, from_folder(predictions), tmp_path / "zero", settings=SETTINGS)
    assert found.complete
    assert [score.j for score in found.scores] == pytest.approx([1, 0, 2 / 3])
    assert found.summary["missing"] == [
        {"video": "a", "expression": "1", "frames": 3},
        {"video": "b", "expression": "0", "frames": 1},
    ]
    skipping = EvaluationOptions(missing="skip")
    skipped = evaluate(SOURCE, from_folder(predictions), tmp_path / "skip", settings=SETTINGS, options=skipping)
    assert not skipped.complete and skipped.summary["overall"]["J"] == pytest.approx((1 + 2 / 3) / 2)


def test_one_broken_sample_does_not_take_others_along(tmp_path):
    predictions = tmp_path / "masks"
    for entry in SOURCE:
        mevis.write_prediction(predictions, entry.video, entry.expression, NAMES, entry.masks)
    mevis.write_prediction(predictions, "a", "1", NAMES, np.zeros((3, 5, 5), bool))

    class Broken(list):
        def __getitem__(self, index):
            if index == 2:
                raise InputError("frame 00001.jpg cannot be decoded")
            return super().__getitem__(index)

    found = evaluate(Broken(SOURCE), from_folder(predictions), tmp_path / "out", settings=SETTINGS)
    assert [score.index for score in found.scores] == [0] and not found.complete
    assert {failure["index"]: failure["error"].split()[0] for failure in found.failed}.keys() == {1, 2}


def test_resume_goes_on_where_a_run_stopped(tmp_path):
    calls = []

    def predict(samples):
        calls.extend(entry.video for entry in samples)
        if "b" in calls and len(calls) == 3:
            raise KeyboardInterrupt
        return truth(samples)

    with pytest.raises(KeyboardInterrupt):
        evaluate(SOURCE, predict, tmp_path, settings=SETTINGS)
    with pytest.raises(InputError, match="--resume"):
        evaluate(SOURCE, predict, tmp_path, settings=SETTINGS)
    with pytest.raises(InputError, match="other settings"):
        evaluate(SOURCE, predict, tmp_path, settings={"protocol": "x"}, options=EvaluationOptions(resume=True))
    lines = tmp_path / "samples.jsonl"
    lines.write_text(lines.read_text() + '{"index": 2, "vid')  # the write that was cut off
    found = evaluate(SOURCE, predict, tmp_path, settings=SETTINGS, options=EvaluationOptions(resume=True))
    assert calls == ["a", "a", "b", "b"] and found.complete and len(lines.read_text().splitlines()) == 3


def test_limit_and_wrong_options(tmp_path):
    found = evaluate(SOURCE, truth, tmp_path, settings=SETTINGS, options=EvaluationOptions(limit=2))
    assert found.expected == 2 and found.complete
    for wrong in ({"batch": 0}, {"limit": 0}, {"missing": "ignore"}):
        with pytest.raises(InputError):
            EvaluationOptions(**wrong)


def test_function_and_system_predictors():
    masks = np.stack([disc(2, 2), disc(2, 16)])
    called = from_function(lambda frames, texts: masks.astype(np.uint8) * 255)
    assert all(np.array_equal(p.masks, m) for p, m in zip(called(SOURCE[:2]), masks, strict=True))
    with pytest.raises(ValueError, match="instead of"):
        called(SOURCE[:1])
    found = from_system(Fake())(SOURCE[:2])
    assert [prediction.status for prediction in found] == ["ok", "no_target"]
    assert found[0].masks[:, 0, 0].tolist() == [False, True, True] and not found[1].masks.any()


def test_a_system_that_stops_early_is_an_error():
    class Short(Fake):
        def segment(self, video, texts, **options):
            chunks = super().segment(video, texts)
            yield next(chunks)
            return [Verdict("ok", 0.5)] * len(texts)

    with pytest.raises(RuntimeError, match="1 of 3 frames"):
        from_system(Short())(SOURCE[:2])


class Fake:
    """A system in two chunks: the first sentence gets everything from frame 1 on, the others nothing."""

    name = "fake"
    reads_text = True
    max_tokens = 10

    def token_count(self, text):
        return len(text.split())

    def segment(self, video, texts, *, options=None, progress=None):
        masks = np.zeros((len(texts), 3, video.height, video.width), bool)
        masks[0, 1:] = True
        yield MaskChunk(0, masks[:, :1])
        yield MaskChunk(1, masks[:, 1:])
        return [Verdict("no_target" if n else "ok", 0.5) for n in range(len(texts))]


def a_score(index: int, j: float, f: float, text: str = "x", **changes: object) -> Score:
    score = Score(index, "v", "0", text, "", 3, j, f, 1, 1, 0, 0, 5, 10, True, False, "ok")
    return replace(score, **changes)


def test_sentence_keyed_average_lets_equal_sentences_overwrite():
    scores = [a_score(0, 0.0, 0.0, "same"), a_score(1, 0.5, 0.7, "other"), a_score(2, 1.0, 1.0, "same")]
    assert summarise(scores)["J&F"] == pytest.approx((1.5 / 3 + 1.7 / 3) / 2)
    assert sentence_keyed(scores) == {"sentences": 2, "J&F": pytest.approx(0.8), "J": 0.75, "F": pytest.approx(0.85)}


def test_score_masks_by_hand():
    numbers = score_masks(disc(2, 2), disc(2, 4))
    assert numbers["j"] == pytest.approx(48 / 80) and numbers["intersection"] == 3 * 48 and numbers["union"] == 3 * 80
    assert numbers["has_target"] and not numbers["said_empty"] and numbers["j_recall"] == 1
    with pytest.raises(InputError, match="clip's size"):
        score_masks(disc(2, 2), disc(2, 2)[:, :5])


def test_iou_totals_by_hand():
    """The golden triples of gRefCOCO's evaluators."""
    plain = IoUTotals()
    plain.add(50, 100, has_target=True, said_empty=False)
    plain.add(0, 20, has_target=True, said_empty=False)
    assert (plain.ciou, plain.giou) == (pytest.approx(0.416667, abs=1e-6), 0.25)
    for style, giou, ciou in (("gsva", 0.5, 50 / 120), ("rela", 1 / 3, 0)):
        totals = IoUTotals(style)
        totals.add(0, 0, has_target=False, said_empty=True)
        totals.add(0, 20, has_target=False, said_empty=False)
        totals.add(50, 100, has_target=True, said_empty=True)
        assert totals.giou == pytest.approx(giou) and totals.ciou == pytest.approx(ciou)
        assert (totals.no_target_accuracy, totals.target_accuracy) == (0.5, 0)
    with pytest.raises(ValueError, match="lisa"):
        IoUTotals("lisa")


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(0.6, 0.2, 400)
    found = bootstrap.interval(values)
    # The normal approximation of the same interval: half a width of 1.96 * 0.2 / 20.
    assert found.mean == pytest.approx(values.mean()) and found.high - found.low == pytest.approx(0.0392, rel=0.15)
    assert found == bootstrap.interval(values) and found != bootstrap.interval(values, seed=1)
    assert bootstrap.interval(np.ones(3)).low == 1
    for wrong in (np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))):
        with pytest.raises(ValueError):
            bootstrap.interval(wrong)
    with pytest.raises(ValueError, match="level"):
        bootstrap.interval(values, level=1.0)


CLIPS = 4


@pytest.fixture(scope="module")
def held_out():
    return moving_shapes.HeldOutRuns(clips=CLIPS)


def test_held_out_runs_hold_every_control(held_out):
    assert len(held_out) == CLIPS * 5 + CLIPS
    runs = [held_out[index] for index in range(5)]
    assert [run.expression for run in runs] == [
        "target",
        "empty_sentence",
        "other_sentence",
        "all_objects",
        "largest_object",
    ]
    assert runs[1].text == "" and runs[2].text not in ("", runs[0].text)
    assert all(np.array_equal(run.masks, runs[0].masks) for run in runs)
    absent = held_out[len(held_out) - 1]
    assert absent.expression == "absent" and not absent.masks.any()
    with pytest.raises(IndexError):
        held_out[len(held_out)]


def test_moving_shapes_summary_of_an_oracle(held_out, tmp_path):
    """The truth for the sentence, nothing otherwise: every number is known."""

    def oracle(samples):
        asked = {"target", "absent"}
        return [Prediction(s.masks if s.expression in asked else np.zeros_like(s.masks)) for s in samples]

    predict = moving_shapes.with_truth_controls(oracle)
    found = evaluate(held_out, predict, tmp_path, settings=SETTINGS, details=moving_shapes.summary)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert found.complete and summary["overall"]["J&F"] == 1 and summary["overall"]["samples"] == CLIPS
    assert set(summary["by_kind"]) == {"attribute", "relation", "motion", "several"}
    assert summary["controls"]["empty_sentence"]["J&F"] == summary["controls"]["other_sentence"]["J&F"] == 0
    assert 0 < summary["controls"]["all_objects"]["J&F"] < 1
    assert summary["margins"]["other_sentence"]["mean"] == 1
    largest = summary["controls"]["largest_object"]["J&F"]
    assert summary["margins"]["largest_object"]["mean"] == pytest.approx(1 - largest)
    assert [summary["accuracies"][name]["mean"] for name in ("N-acc", "T-acc")] == [1, 1]


def mevis_split(folder: Path) -> Path:
    """A split of two videos in MeViS's layout: three objects, three sentences."""
    writer = mevis.SplitWriter(folder)
    frames = np.zeros((3, *SIZE, 3), np.uint8)
    objects = np.stack([disc(2, 2), disc(2, 16)])
    expressions = {"0": Expression("the left one", (0,)), "1": Expression("both", (0, 1))}
    writer.add("a", NAMES, frames, objects, expressions)
    writer.add("b", NAMES, frames, disc(10, 4)[None], {"0": Expression("the left one", (0,))})
    writer.close()
    return folder


def test_eval_command_scores_a_folder(tmp_path, capsys):
    split = mevis_split(tmp_path / "mevis" / "valid_u")
    masks = tmp_path / "masks"
    mevis.write_prediction(masks, "a", "0", NAMES, disc(2, 2))
    mevis.write_prediction(masks, "a", "1", NAMES, disc(2, 2) | disc(2, 16))
    assert run_eval(masks, "mevis", tmp_path / "mevis", "-o", tmp_path / "one", "--by-sentence") == 0
    printed = capsys.readouterr().out
    assert "MeViS" in printed and "missing: b/0, 3 frames" in printed and "expected 3, scored 3, missing 1" in printed
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["overall"]["J&F"] == pytest.approx(2 / 3)
    assert summary["by_sentence"]["J&F"] == pytest.approx(0.5), "the missing clip overwrites the found one"
    assert run_eval(masks, "mevis", split, "-o", tmp_path / "two", "--missing", "skip") == 1
    assert "2 of 3 samples were scored" in capsys.readouterr().err
    assert run_eval(masks, "mevis", split, "-o", tmp_path / "two") == 2
    assert "--resume" in capsys.readouterr().out
    assert run_eval(masks, "mevis", split, "-o", tmp_path / "two", "--missing", "skip", "--resume", "--json") == 1
    assert json.loads(capsys.readouterr().out)["overall"]["J&F"] == 1


def test_mevis_by_its_rules(tmp_path, capsys):
    """Squares with published values: union of annotations, null masks, all frames, every sentence alike, any value."""
    objects = np.zeros((2, 4, 20, 20), bool)
    objects[0, :3, 5:15, 5:10] = objects[1, :3, 5:15, 10:15] = True  # frame 3 has null masks
    names = ("00000", "00001", "00002", "00003")
    writer = mevis.SplitWriter(tmp_path / "valid_u")
    sentences = {"0": Expression("both", (0, 1)), "1": Expression("none", ())}
    writer.add("v", names, np.zeros((4, 20, 20, 3), np.uint8), objects, sentences)
    writer.close()
    prediction = np.zeros((4, 20, 20), bool)
    prediction[:, 7:17, 7:17] = True
    prediction[1, 7:17, 7:17], prediction[1, 6:16, 6:16] = False, True
    mevis.write_prediction(tmp_path / "masks", "v", "0", names, prediction)
    mevis.write_prediction(tmp_path / "masks", "v", "1", names, np.zeros((4, 20, 20), bool))
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.fromarray((mask_png.read_mask(path) * 3).astype(np.uint8)).save(path)
    assert run_eval(tmp_path / "masks", "mevis", tmp_path, "-o", tmp_path / "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    j, f = (0.470588 + 0.680672 + 0.470588 + 0) / 4, (0.15 + 0.975 + 0.15 + 0) / 4
    assert summary["overall"]["J"] == pytest.approx((j + 1) / 2, abs=1e-6), "nothing for nothing scores 1"
    assert summary["overall"]["F"] == pytest.approx((f + 1) / 2, abs=1e-6)
    assert summary["overall"]["J&F"] == pytest.approx((j + f + 2) / 4, abs=1e-6)
    assert summary["missing_policy"] == "zero" and summary["official_missing_policy"].startswith("zero (MeViS's script")
    # A missing sentence is zero in every frame, as officially, and a missing frame where nothing is to be found too.
    (tmp_path / "masks" / "v" / "0" / "00003.png").unlink()
    assert run_eval(tmp_path / "masks", "mevis", tmp_path, "-o", tmp_path / "frame", "--json") == 0
    assert json.loads(capsys.readouterr().out)["overall"]["J"] == pytest.approx((j + 1) / 2, abs=1e-6)
    shutil.rmtree(tmp_path / "masks" / "v" / "0")
    assert run_eval(tmp_path / "masks", "mevis", tmp_path, "-o", tmp_path / "gap", "--json") == 0
    gap = json.loads(capsys.readouterr().out)
    assert gap["missing"] == [{"video": "v", "expression": "0", "frames": 4}]
    assert gap["overall"]["J"] == gap["overall"]["F"] == 1 / 2
    assert run_eval(tmp_path / "masks", "mevis", tmp_path, "-o", tmp_path / "no", "--protocol", "official") == 2


def test_eval_command_runs_a_system(tmp_path, monkeypatch, capsys):
    module = type(
        "Module",
        (),
        {
            "READS_TEXT": True,
            "FOR_IMAGES": False,
            "load": staticmethod(lambda checkpoint, *, dtype, mesh, **options: Fake()),
        },
    )
    monkeypatch.setitem(base._MODULES, "fake", module)
    split = mevis_split(tmp_path / "split")
    assert run_eval("fake", "mevis", split, "-o", tmp_path / "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok", "no_target", "ok"]
    area = 64 / (SIZE[0] * SIZE[1])
    assert summary["overall"]["J"] == pytest.approx((2 * area * 2 / 3) / 3)


def test_eval_command_refuses(tmp_path, capsys):
    split = mevis_split(tmp_path / "split")
    masks = tmp_path / "masks"
    masks.mkdir()
    assert run_eval(masks, "mevis", "-o", tmp_path / "out") == 2
    assert "needs ROOT" in capsys.readouterr().out
    assert run_eval(masks, "moving_shapes", "-o", tmp_path / "out") == 2
    assert run_eval("no_such_system", "mevis", split, "-o", tmp_path / "out") == 2
    assert run_eval(masks, "mevis", tmp_path / "absent", "-o", tmp_path / "out") == 2
    (split / "mask_dict.json").unlink()
    assert run_eval(masks, "mevis", split, "-o", tmp_path / "out") == 2
    assert "truth is not public" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_davis_clips_in_mevis_form(shared_data, tmp_path):
    """Real masks through the loader: the truth itself as a prediction scores 1 on every sentence."""
    root = shared_data / "davis16_mini"
    split = root / "expressions" / "mevis_style"
    tracks, meta = mevis.read_masks(split), json.loads((split / "meta_expressions.json").read_text())["videos"]
    video, entry = next(iter(meta.items()))
    for key, expression in entry["expressions"].items():
        masks = np.stack(
            [
                np.any([rle.decode(tracks[str(n)][t]) for n in expression["anno_id"] if tracks[str(n)][t]], axis=0)
                for t in range(len(entry["frames"]))
            ]
        )
        mevis.write_prediction(tmp_path / "masks", video, key, entry["frames"], masks)
    count = len(entry["expressions"])
    arguments = ("-o", tmp_path / "out", "--frames", root / "JPEGImages" / "480p", "--limit", count)
    assert run_eval(tmp_path / "masks", "mevis", split, *arguments) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["overall"]["J&F"] == 1 and summary["scored"] == count


def test_reconstruction_is_scored_where_a_system_has_it(tmp_path):
    source = moving_shapes.HeldOutRuns(clips=2, reconstruction=True)
    assert len(source) == 2 * 6 + 2 and source[5].expression == "reconstruction"
    predict = moving_shapes.with_truth_controls(
        lambda samples: [Prediction(np.zeros_like(s.masks)) for s in samples], reconstruct=lambda masks: ~masks
    )
    evaluate(source, predict, tmp_path, settings=SETTINGS, details=moving_shapes.summary)
    assert json.loads((tmp_path / "summary.json").read_text())["reconstruction"]["J"] == 0
    predict = moving_shapes.with_truth_controls(
        lambda samples: [Prediction(np.zeros_like(s.masks)) for s in samples], reconstruct=lambda masks: masks
    )
    found = evaluate(source, predict, tmp_path / "exact", settings=SETTINGS, details=moving_shapes.summary)
    assert found.summary["reconstruction"]["J&F"] == 1 and found.summary["overall"]["J&F"] == 0
