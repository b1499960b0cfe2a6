"""Evaluations in several parts: the same results as in one, whatever happens in between."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rvseg_jax.core.errors import CheckFailed, InputError, UserError
from rvseg_jax.evaluation import command, moving_shapes, run_folder
from rvseg_jax.evaluation.parts import Part, parse
from rvseg_jax.evaluation.predictors import Prediction, from_folder
from rvseg_jax.evaluation.run_folder import RunFolder
from rvseg_jax.evaluation.runner import EvaluationOptions, evaluate
from rvseg_jax.formats import mevis, ref_davis
from rvseg_jax.formats.meta_expressions import Expression
from rvseg_jax.input_pipeline.sources import ReferringSample

EVAL = Path(__file__).resolve().parents[2] / "eval.py"
SIZE = (20, 28)
NAMES = ("00000", "00001")
VIDEOS = ("d", "b", "a", "c", "e")
SETTINGS = {"protocol": "test", "official_missing_policy": "zero (test)"}


def masks_of(number: int) -> np.ndarray:
    """bool [2, H, W], random squares that differ with the number."""
    rng = np.random.default_rng(number)
    masks = np.zeros((2, *SIZE), bool)
    for mask in masks:
        top, left = rng.integers(0, 12), rng.integers(0, 18)
        mask[top : top + 7, left : left + 8] = True
    return masks


# The same sentence twice in every video, and in all of them.
SOURCE = [
    ReferringSample(
        np.zeros((2, *SIZE, 3), np.uint8), masks_of(3 * v + key), "the cat", video, str(key), NAMES, f"kind {key}"
    )
    for v, video in enumerate(VIDEOS)
    for key in range(3)
]


def shifted(samples):
    """A prediction for every sample that no other has."""
    return [Prediction(np.roll(s.masks, ord(s.video) - 96 + int(s.expression), axis=2)) for s in samples]


def in_parts(folder: Path, count: int, order=None, predict=shifted, **options):
    for index in order or range(count):
        found = evaluate(
            SOURCE, predict, folder, settings=SETTINGS, options=EvaluationOptions(part=Part(index, count), **options)
        )
    return found


def files_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("summary.json", "samples.jsonl", "run.json")]


@pytest.mark.parametrize(("count", "order"), [(3, (0, 1, 2)), (3, (2, 0, 1)), (8, range(8))])
def test_parts_equal_the_whole_byte_by_byte(tmp_path, count, order):
    in_parts(tmp_path / "one", 1)
    found = in_parts(tmp_path / "parts", count, order)
    assert found.complete and files_of(tmp_path / "parts") == files_of(tmp_path / "one")


def test_equal_sentences_do_not_overwrite_each_other(tmp_path):
    in_parts(tmp_path, 2)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["video"], line["expression"]) for line in lines] == [(s.video, s.expression) for s in SOURCE]
    j = [line["j"] for line in lines]
    alone = [evaluate([s], shifted, tmp_path / f"{n}", settings=SETTINGS).scores[0].j for n, s in enumerate(SOURCE)]
    assert j == alone and all(len(set(j[start : start + 3])) == 3 for start in range(0, 15, 3))
    assert json.loads((tmp_path / "summary.json").read_text())["overall"]["J"] == np.mean(j)


def test_every_video_is_in_one_part():
    videos = ["b", "b", "a", "c", "a", "d"]
    parts = [Part(index, 3).indices(videos) for index in range(3)]
    assert parts == [[0, 1, 5], [2, 4], [3]] and Part(0, 1).indices(videos) == list(range(6))
    assert parse("2/3") == Part(1, 3)
    for wrong in ("3", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/2/3"):
        with pytest.raises(InputError, match=wrong):
            parse(wrong)


def test_the_last_part_sums_up(tmp_path):
    first = in_parts(tmp_path, 3, order=(0, 2))
    assert first.waiting == 6 and not first.summary and not (tmp_path / "summary.json").exists()
    assert in_parts(tmp_path, 3, order=(1,)).complete
    with pytest.raises(InputError, match="--resume"):
        in_parts(tmp_path, 3, order=(1,))
    with pytest.raises(InputError, match="--resume"):
        in_parts(tmp_path, 1)


def test_another_division_goes_on(tmp_path):
    """A part has died: the rest is done as a whole, or by two, and nothing is done twice."""
    in_parts(tmp_path / "one", 1)
    in_parts(tmp_path / "three", 3, order=(0, 1))
    done = []

    def counting(samples):
        done.extend((s.video, s.expression) for s in samples)
        return shifted(samples)

    shutil.copytree(tmp_path / "three", tmp_path / "two")
    in_parts(tmp_path / "three", 1, predict=counting, resume=True)
    assert len(done) == 3 and files_of(tmp_path / "three") == files_of(tmp_path / "one")
    with pytest.raises(InputError, match="--resume"):
        in_parts(tmp_path / "two", 2)
    in_parts(tmp_path / "two", 2, predict=counting, resume=True)
    assert len(done) == 6 and files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_failures_of_parts_are_listed_and_tried_again(tmp_path):
    def failing(samples):
        if samples[0].video == "b":
            raise InputError("no such video")
        return shifted(samples)

    one, parts = in_parts(tmp_path / "one", 1, predict=failing), in_parts(tmp_path / "parts", 3, predict=failing)
    assert not parts.complete and [entry["index"] for entry in parts.failed] == [3, 4, 5] == [
        entry["index"] for entry in one.failed
    ]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "one")
    in_parts(tmp_path / "well", 1)
    assert in_parts(tmp_path / "parts", 2, resume=True).complete
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "well")


def test_moving_shapes_in_parts(tmp_path):
    """Runs of one clip stay together, and the controls are those of an undivided run."""
    source = moving_shapes.HeldOutRuns(clips=3)
    assert len(source.videos()) == len(source) == 3 * 5 + 3
    predict = moving_shapes.with_truth_controls(lambda samples: [Prediction(s.masks) for s in samples])
    for folder, count in (("one", 1), ("two", 2)):
        for index in range(count):
            options = EvaluationOptions(part=Part(index, count))
            details = moving_shapes.summary
            evaluate(source, predict, tmp_path / folder, settings=SETTINGS, options=options, details=details)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_runs_do_not_mix(tmp_path):
    with RunFolder(tmp_path, {"a": 1}, part=Part(0, 2)) as run:
        run.add({"index": 0})
    with pytest.raises(InputError, match="other settings"):
        RunFolder(tmp_path, {"a": 2}, part=Part(1, 2))
    assert not (tmp_path / "samples-2-of-2.jsonl").exists()
    # A part of no video comes late, when the others have summed up.
    with RunFolder(tmp_path, {"a": 1}, part=Part(1, 2)) as run:
        run.publish({"done": True})
    with RunFolder(tmp_path, {"a": 1}, part=Part(1, 2), resume=True) as run:
        assert run.lines == {0: {"index": 0}}
    (tmp_path / "samples-1-of-2.jsonl").write_text('{"index": "0"}\n')
    with pytest.raises(InputError, match="something else than scores"):
        RunFolder(tmp_path, {"a": 1}, part=Part(1, 2), resume=True)


def test_missing_predictions_by_each_policy(tmp_path):
    predictions = tmp_path / "masks"
    for sample in SOURCE[1:]:
        mevis.write_prediction(predictions, sample.video, sample.expression, NAMES, sample.masks)
    (predictions / "b" / "1" / "00001.png").unlink()
    gaps = [{"video": "d", "expression": "0", "frames": 2}, {"video": "b", "expression": "1", "frames": 1}]
    found = {
        policy: evaluate(
            SOURCE,
            from_folder(predictions),
            tmp_path / policy,
            settings=SETTINGS,
            options=EvaluationOptions(missing=policy),
        )
        for policy in ("zero", "skip")
    }
    assert [found[policy].summary["missing"] for policy in found] == [gaps, gaps]
    assert found["zero"].complete and found["zero"].summary["overall"]["J"] == pytest.approx(13.5 / 15)
    assert not found["skip"].complete and found["skip"].summary["overall"]["J"] == pytest.approx(13.5 / 14)
    assert found["skip"].failed == [] and found["skip"].waiting == 0
    with pytest.raises(CheckFailed, match="d/0 has no prediction for 2 frames, the first 00000"):
        evaluate(
            SOURCE,
            from_folder(predictions),
            tmp_path / "abort",
            settings=SETTINGS,
            options=EvaluationOptions(missing="abort"),
        )


@pytest.fixture
def split(tmp_path) -> Path:
    """The source in MeViS's layout, with predictions beside it."""
    folder = tmp_path / "data" / "valid_u"
    writer = mevis.SplitWriter(folder)
    for v, video in enumerate(VIDEOS):
        samples = SOURCE[3 * v : 3 * v + 3]
        objects = np.stack([s.masks for s in samples])
        sentences = {s.expression: Expression(s.text, (n,)) for n, s in enumerate(samples)}
        writer.add(video, NAMES, samples[0].frames, objects, sentences)
        for sample, found in zip(samples, shifted(samples), strict=True):
            mevis.write_prediction(tmp_path / "masks", video, sample.expression, NAMES, found.masks)
    writer.close()
    return folder.parent


def run_eval(*arguments: object) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args([str(argument) for argument in arguments]))
    except UserError as error:
        print(error)
        return error.exit_code


def test_command_in_shards(split, tmp_path, capsys):
    arguments = (tmp_path / "masks", "mevis", split, "-o")
    assert run_eval(*arguments, tmp_path / "one") == 0
    printed = capsys.readouterr().out
    assert "missing counts as: zero; officially: zero (MeViS's script" in printed
    for k in (1, 2, 3):
        assert not (tmp_path / "three" / "summary.json").exists()
        assert run_eval(*arguments, tmp_path / "three", "--shard", f"{k}/3") == 0
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")
    printed = capsys.readouterr().out
    assert "part 1/3 is done; other parts have 9 to do" in printed and "expected 15, scored 15" in printed
    assert run_eval(*arguments, tmp_path / "four", "--shard", "4/3") == 2


def test_official_ref_davis_in_shards(tmp_path):
    writer = ref_davis.SplitWriter(tmp_path / "data")
    for v, video in enumerate(VIDEOS):
        labels = masks_of(v).astype(np.uint8)
        writer.add(video, NAMES, np.zeros((2, *SIZE, 3), np.uint8), labels, [["the cat"] * 4])
        for annotator in range(4):
            found = np.roll(labels > 0, v + annotator, axis=2)
            mevis.write_prediction(tmp_path / "masks", video, str(annotator), NAMES, found)
    writer.close()
    arguments = (tmp_path / "masks", "ref_davis", tmp_path / "data", "--protocol", "official_masks", "-o")
    assert run_eval(*arguments, tmp_path / "one") == 0
    for k in (2, 1):
        assert run_eval(*arguments, tmp_path / "two", "--shard", f"{k}/2") == 0
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    four = [summary["annotators"][f"anno_{a}"]["J"] for a in range(4)]
    assert len(set(four)) == 4 and summary["overall"]["J"] == pytest.approx(np.mean(four), abs=1e-15)


def test_processes_of_one_jax_run_share_the_videos(split, tmp_path):
    run_eval(tmp_path / "masks", "mevis", split, "-o", tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, str(EVAL), str(tmp_path / "masks"), "mevis", str(split)]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        processes.append(
            subprocess.Popen(
                [*line, "-o", str(tmp_path / "two")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        printed.append(out)
    assert ["expected 15, scored 15" in text for text in printed] == [True, False], "one process speaks for all"
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert len((tmp_path / "two" / "samples-2-of-2.jsonl").read_text().splitlines()) == 6


def test_parts_that_run_together_wait_for_each_other(tmp_path, monkeypatch):
    """Without a barrier of devices, which gives up after seconds."""
    done = []
    with ThreadPoolExecutor(2) as pool:
        slow = threading.Event()

        def predict(samples):
            assert samples[0].video not in ("b", "c") or slow.wait(30)
            done.append(samples[0].video)
            return shifted(samples)

        both = [pool.submit(in_parts, tmp_path, 2, (index,), predict, together=True) for index in range(2)]
        while len(done) < 3:
            time.sleep(0.01)
        assert not both[0].done()
        slow.set()
        assert [future.result(30).complete for future in both] == [True, True]
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    with pytest.raises(InputError, match="not shared with process 1"):
        in_parts(tmp_path / "alone", 2, order=(0,), together=True)
