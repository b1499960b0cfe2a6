"""Whole runs of a toy task: they learn, go on after a stop to the last bit, and stop as they should."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import InputError
from rvseg_jax.training.checkpoint import Checkpoints
from rvseg_jax.training.config import default
from rvseg_jax.training.loop import DataError, NonFiniteLoss, run
from rvseg_jax.training.report import read_rows
from rvseg_jax.training.weights import read_params

HERE = Path(__file__).parent
TASK = "toy_regression:Regression"
# Timing, memory and compile counts differ between runs; the rest of a row must not.
SYSTEM = {"samples_per_second", "data_wait", "memory_gib", "recompiles"}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Makes the toy task importable under the name that recipes give, here and in subprocesses."""
    monkeypatch.syspath_prepend(str(HERE))
    import toy_regression

    monkeypatch.setattr(toy_regression.Points, "reads_left", float("inf"))
    return toy_regression


def recipe(**changes):
    config = default(TASK)
    config.steps = 12
    config.optimizer.update(lr=0.05, trainable=("^head/",), weight_decay=1e-3)
    config.ema.enabled = True
    config.checkpoint.every = 4
    config.log.update(every=1, tensorboard=False)
    return configs.override(config, [f"{key}={value!r}" for key, value in changes.items()])


def numbers(workdir):
    return [{k: v for k, v in row.items() if k not in SYSTEM} for row in read_rows(workdir)]


def leaves(tree):
    """All values of a state as numpy arrays, random keys as their words."""

    def plain(leaf):
        return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]


def assert_same_state(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run that nothing disturbs: its folder and result."""
    sys.path.insert(0, str(HERE))
    workdir = tmp_path_factory.mktemp("whole")
    try:
        return workdir, run(recipe(), workdir)
    finally:
        sys.path.remove(str(HERE))


def test_run_learns_and_reports(whole):
    workdir, result = whole
    rows = read_rows(workdir)
    assert result.finished and result.step == 12
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert {"loss", "grad_norm", "lr", "mean_error"} | SYSTEM < set(rows[0])
    assert rows[-1]["recompiles"] == 0
    assert Checkpoints(workdir).steps() == [8, 12]


def test_frozen_parameters_are_untouched_and_without_slots(whole, toy):
    _, result = whole
    fresh = toy.Regression(toy.Config(), precision=toy.PARITY).init(jax.random.key(42))
    np.testing.assert_array_equal(result.state.frozen["encoder"]["kernel"], fresh["encoder"]["kernel"])
    assert set(result.state.params) == set(result.state.ema) == {"head"}
    shapes = [leaf.shape for leaf in jax.tree.leaves(result.state.opt_state)]
    assert (8, 16) not in shapes and shapes.count((16,)) == 2
    assert not np.array_equal(result.state.params["head"]["kernel"], fresh["head"]["kernel"])


def test_crashed_run_resumes_to_the_last_bit(whole, toy, monkeypatch, tmp_path):
    workdir, result = whole
    monkeypatch.setattr(toy.Points, "reads_left", 7 * 8)  # steps 1..7 get their batches of 8
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path)
    assert Checkpoints(tmp_path).latest() == 4
    assert read_rows(tmp_path)[-1]["step"] > 4  # rows past the checkpoint, to be forgotten
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # the write that a kill cut off
    monkeypatch.setattr(toy.Points, "reads_left", float("inf"))
    resumed = run(recipe(), tmp_path)
    assert numbers(tmp_path) == numbers(workdir)
    assert_same_state(resumed.state, result.state)


def test_sample_that_cannot_be_read_saves_first(whole, toy, monkeypatch, tmp_path):
    monkeypatch.setattr(toy.Points, "reads_left", 7 * 8)
    monkeypatch.setattr(toy.Points, "failure", OSError("truncated file"))
    with pytest.raises(DataError, match="no data for step 8 .*truncated file.*: the state after step 7 is saved"):
        run(recipe(), tmp_path)
    assert Checkpoints(tmp_path).latest() == 7
    monkeypatch.setattr(toy.Points, "reads_left", float("inf"))
    assert_same_state(run(recipe(), tmp_path).state, whole[1].state)


def test_other_data_are_not_resumed_on(tmp_path):
    run(recipe(steps=1), tmp_path)
    with pytest.raises(InputError, match="the saved data position has .*Points.48.*, this run .*Points.56."):
        run(recipe(steps=2, **{"data.samples": 56}), tmp_path)


def test_epochs_count_steps_and_a_window_of_them_is_profiled(tmp_path):
    config = recipe(epochs=2, steps=1, batch_size=16)
    config.log.profile = (2, 2)
    result = run(config, tmp_path)
    assert result.step == 2 * (48 // 16) and result.finished
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_finished_run_does_nothing_more(whole):
    workdir, result = whole
    before = numbers(workdir)
    again = run(recipe(), workdir)
    assert again.finished and numbers(workdir) == before
    assert_same_state(again.state, result.state)


def test_save_cut_off_leaves_the_one_before(whole, tmp_path):
    run(recipe(steps=8), tmp_path)
    newest = tmp_path / "checkpoints" / "8"
    newest.rename(newest.with_name("8.orbax-checkpoint-tmp-3"))  # as a save looks that never got to its end
    assert Checkpoints(tmp_path).latest() == 4
    resumed = run(recipe(), tmp_path)
    assert_same_state(resumed.state, whole[1].state)
    assert sorted(path.name for path in newest.parent.iterdir()) == ["12", "8"]


def test_read_params_for_evaluation(whole, tmp_path):
    workdir, result = whole
    params, meta = read_params(workdir)
    np.testing.assert_array_equal(params["head"]["kernel"], result.state.ema["head"]["kernel"])
    assert set(params) == {"head"}  # the frozen encoder was not saved
    assert configs.from_json(meta["config"]).task == TASK
    trained, _ = read_params(workdir, averaged=False, step=12)
    np.testing.assert_array_equal(trained["head"]["bias"], result.state.params["head"]["bias"])
    with pytest.raises(InputError, match="has no checkpoint of step 5; it has: 8, 12"):
        read_params(workdir, step=5)


def test_complete_checkpoint_holds_frozen_parameters(tmp_path):
    result = run(recipe(**{"checkpoint.save_frozen": True, "steps": 1}), tmp_path)
    params, _ = read_params(tmp_path)
    np.testing.assert_array_equal(params["encoder"]["kernel"], result.state.frozen["encoder"]["kernel"])


def test_loss_that_is_not_finite_stops_the_run(toy, tmp_path, caplog):
    clean, poisoned = tmp_path / "clean", tmp_path / "poisoned"
    run(recipe(steps=6, **{"data.samples": 48}), clean)
    with pytest.raises(NonFiniteLoss) as error:
        run(recipe(steps=6, **{"data.poison": 5}), poisoned)
    bad = int(str(error.value).split(" at step ")[1].split(":")[0])
    assert str(error.value).startswith(f"loss is inf at step {bad}: the state after step {bad - 1} is saved")
    assert numbers(poisoned) == numbers(clean)[: bad - 1]
    # The saved state is the one before the bad step, and its data position too: without the poison, going on
    # from it gives the clean run.
    assert Checkpoints(poisoned).latest() == bad - 1
    run(recipe(steps=6), poisoned)
    assert numbers(poisoned) == numbers(clean)


def test_changed_config_is_logged_and_misfit_is_an_error(tmp_path, caplog):
    run(recipe(steps=1), tmp_path)
    with caplog.at_level("WARNING", logger="rvseg_jax"):
        import logging

        logging.getLogger("rvseg_jax").propagate = True
        run(recipe(steps=2, **{"optimizer.lr": 0.01}), tmp_path)
    assert "config key optimizer.lr was 0.05 when this run was saved and is 0.01 now" in caplog.text
    run(recipe(steps=3, **{"optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.0}), tmp_path)
    with pytest.raises(InputError, match=r"'head/kernel' has shape \[16\] there and \[24\] here"):
        run(recipe(steps=4, **{"model.width": 24}), tmp_path)
    with pytest.raises(InputError, match="only the config's model has 'encoder/kernel'"):
        run(recipe(steps=4, **{"optimizer.trainable": ("",)}), tmp_path)


def test_best_checkpoints_are_kept(tmp_path):
    config = recipe(**{"checkpoint.every": 1, "checkpoint.keep": 1, "evaluation.every": 1})
    config.checkpoint.update(keep_best=2, best_metric="score")
    run(config, tmp_path)
    scores = {r["step"]: r["evaluation/score"] for r in read_rows(tmp_path) if "evaluation/score" in r}
    best = sorted(scores, key=lambda step: scores[step])[-2:]
    assert Checkpoints(tmp_path).steps() == sorted({*best, 12})
    config.checkpoint.best_metric = "accuracy"
    config.steps = 13
    with pytest.raises(ConfigError, match="best_metric is 'accuracy', but the evaluation gives score"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.trainable": ("^haed/",)}, "'^haed/' matches no parameter: the tree has encoder, head"),
        ({"batch_size": 49}, "batch_size 49 is more than the 48 training samples"),
    ],
)
def test_config_that_cannot_run(changes, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(recipe(**changes), tmp_path)
    assert message in str(error.value)


RECIPE = """
from rvseg_jax.training.config import default

def get_config():
    config = default("toy_regression:Regression")
    config.steps = 1_000_000
    config.optimizer.trainable = ("^head/",)
    config.loader.num_workers = 1
    config.log.update(every=5, tensorboard=True)
    return config
"""


# Runs a command whose files cannot grow beyond 3 KB: to write more fails as on a full disk.
SMALL_FILES = """
import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def training(folder, workdir, *words, wrapper=()):
    """`train.py` at work on the recipe, in a process of its own that does not outlive the block."""
    (folder / "recipe.py").write_text(RECIPE)
    command = [*wrapper, sys.executable, "train.py", str(folder / "recipe.py"), "--workdir", str(workdir), *words]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    root = HERE.parent.parent
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(process, condition):
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)


def rows_written(workdir):
    return len(read_rows(workdir)) if (workdir / "metrics.jsonl").exists() else 0


def test_sigterm_saves_and_the_run_goes_on_to_the_last_bit(tmp_path):
    workdir = tmp_path / "run"
    with training(tmp_path, workdir) as process:
        wait_for(process, lambda: rows_written(workdir) > 0)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    step = Checkpoints(workdir).latest()
    assert f"stopped by SIGTERM after step {step}, which is saved" in errors
    assert any((workdir / "tensorboard").iterdir())

    # The saved run read its data in a worker process; to go on without one makes no difference to the numbers.
    config = configs.load(tmp_path / "recipe.py", [f"steps={step + 5}", "loader.num_workers=0"])
    resumed = run(config, workdir)
    straight = run(config, tmp_path / "straight")
    assert numbers(workdir) == numbers(tmp_path / "straight")
    assert_same_state(resumed.state, straight.state)


def test_a_data_worker_that_dies_ends_the_run_with_its_state_saved(tmp_path):
    workdir = tmp_path / "run"
    with training(tmp_path, workdir, "log.tensorboard=false") as process:
        wait_for(process, lambda: rows_written(workdir) > 1)
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
        workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 1
        os.kill(int(workers[0]), signal.SIGKILL)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    step = Checkpoints(workdir).latest()
    assert step and f"the state after step {step} is saved" in errors and "exit code -9" in errors


@pytest.mark.parametrize(("width", "failing"), [(16, "metrics.jsonl"), (100_000, "a checkpoint in ")])
def test_a_full_disk_ends_the_run_and_leaves_its_last_checkpoint_whole(tmp_path, width, failing):
    workdir = tmp_path / "run"
    words = [f"model.width={width}", "log.tensorboard=false", "loader.num_workers=0", "checkpoint.every=5"]
    with training(tmp_path, workdir, *words, "log.every=1", wrapper=(sys.executable, "-c", SMALL_FILES)) as process:
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert failing in errors and "could not be written" in errors and "File too large" in errors
    step = Checkpoints(workdir).latest()
    if width == 16:
        config = configs.load(tmp_path / "recipe.py", [*words, "log.every=1", f"steps={step + 3}"])
        assert_same_state(run(config, workdir).state, run(config, tmp_path / "straight").state)
    else:
        assert step is None and "there is no earlier one" in errors


@pytest.mark.slow
def test_killed_while_it_saves_the_run_goes_on_to_the_last_bit(tmp_path):
    workdir = tmp_path / "run"
    words = ["checkpoint.every=1", "log.every=1", "log.tensorboard=false"]
    for further in (3, 4, 6):  # with a save at every step, hardly a moment lies outside of one
        goal = rows_written(workdir) + further
        with training(tmp_path, workdir, *words) as process:
            wait_for(process, lambda goal=goal: rows_written(workdir) >= goal)
            process.kill()
    step = Checkpoints(workdir).latest()
    assert step >= 3
    config = configs.load(tmp_path / "recipe.py", [*words, f"steps={step + 3}", "loader.num_workers=0"])
    resumed = run(config, workdir)
    straight = run(config, tmp_path / "straight")
    assert numbers(workdir) == numbers(tmp_path / "straight")
    assert_same_state(resumed.state, straight.state)
