"""Training state, step and reports, piece by piece."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax import cli
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import InputError
from rvseg_jax.parallel.mesh import make_mesh
from rvseg_jax.training import command, optim, report, tasks
from rvseg_jax.training.config import OptimizerConfig, default, parse
from rvseg_jax.training.state import abstract, create, initial_params, merge, partition, size, trainable
from rvseg_jax.training.step import batch_sharding, make_train_step, task_loss
from rvseg_jax.training.tasks import UPDATES
from rvseg_jax.training.weights import read_params

sys.path.insert(0, str(Path(__file__).parent.parent / "systems"))
import toy_regression

sys.path.pop(0)


@pytest.fixture
def toy():
    return toy_regression.Regression(toy_regression.Config(), precision=toy_regression.PARITY)


TREE = {"a": {0: {"w": 1, "b": 2}, 1: {"w": 3}}, "c": 4}


def test_partition_and_merge_keep_keys():
    first, second = partition(TREE, lambda path: path.endswith("/w"))
    assert first == {"a": {0: {"w": 1}, 1: {"w": 3}}} and second == {"a": {0: {"b": 2}}, "c": 4}
    assert merge(first, second) == TREE
    with pytest.raises(ValueError, match="'w' is in both trees"):
        merge(first, TREE)


def test_trainable_pattern_without_a_parameter():
    with pytest.raises(ConfigError, match="trainable '\\^b/' matches no parameter: the tree has a, c"):
        trainable(TREE, ["^a/", "^b/"])


def make(toy, mesh, *, accumulate=1, ema=True, rows=8):
    config = OptimizerConfig(lr=0.1, trainable=("^head/",), accumulate=accumulate)
    rate = lambda count: jnp.float32(config.lr)  # noqa: E731
    transform = optim.optimizer(config, rate)
    target = abstract(toy, transform, mesh, patterns=config.trainable, averaged=ema)
    state = create(target, toy, transform, seed=0)
    step = make_train_step(
        task_loss(toy.loss), transform, rate, target, batch_sharding(rows // accumulate, mesh), accumulate=accumulate
    )
    return target, state, step


def batch(rows=8, scale=1.0):
    x = np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32)
    return {"x": x, "y": np.float32(scale) * (x @ np.linspace(-1, 1, 8, dtype=np.float32))}


def test_state_is_as_its_abstract_form_says(toy):
    target, state, _ = make(toy, make_mesh(devices=jax.devices()[:1]))
    assert jax.tree.structure(target) == jax.tree.structure(state)
    for wanted, leaf in zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
    assert size(state.params) == 17 and size(state.frozen) == 128


def test_step_donates_the_state_and_moves_only_the_head(toy):
    _, state, step = make(toy, make_mesh(devices=jax.devices()[:1]))
    head, encoder = state.params["head"]["kernel"], state.frozen["encoder"]["kernel"]
    before = np.array(head)
    after, metrics = step(state, batch())
    assert head.is_deleted() and not encoder.is_deleted()
    assert after.frozen["encoder"]["kernel"] is encoder
    assert not np.array_equal(after.params["head"]["kernel"], before)
    # The first update copies, but for the rounding of old - 1 * (old - new).
    np.testing.assert_allclose(after.ema["head"]["kernel"], after.params["head"]["kernel"], rtol=2e-6)
    assert int(after.step) == 1 and set(metrics) == {"loss", "grad_norm", "lr", "mean_error"}
    step(after, batch())
    assert step.traces == 1


def test_step_traces_again_for_another_shape(toy):
    _, state, step = make(toy, make_mesh(devices=jax.devices()[:1]))
    state, _ = step(state, batch(8))
    step(state, batch(4))
    assert step.traces == 2


def test_random_numbers_differ_from_step_to_step(toy):
    _, state, step = make(toy, make_mesh(devices=jax.devices()[:1]), ema=False)
    frozen_head = jax.tree.map(np.array, state.params)
    state, first = step(state, batch())
    replaced = jax.device_put(frozen_head, jax.tree.map(lambda leaf: leaf.sharding, state.params))
    _, second = step(replace(state, params=replaced), batch())
    assert float(first["loss"]) != float(second["loss"])  # same parameters and batch, other noise


class Counting(toy_regression.Regression):
    """Counts its samples in a parameter that no gradient reaches."""

    sharding_table = (*toy_regression.Regression.sharding_table, ("^head/seen$", ()))

    def init(self, key):
        return super().init(key) | {"head": {**super().init(key)["head"], "seen": jnp.zeros(())}}

    def loss(self, params, batch, key):
        value, metrics = super().loss(params, batch, key)
        return value, {**metrics, UPDATES: {"head/seen": params["head"]["seen"] + batch["x"].shape[0]}}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_gives_leaves_new_values(accumulate):
    """Averaged over micro-batches, left alone by the optimizer, and no metric."""
    counting = Counting(toy_regression.Config(), precision=toy_regression.PARITY)
    mesh = make_mesh(devices=jax.devices()[:1])
    _, state, step = make(counting, mesh, accumulate=accumulate)
    for steps in (1, 2):
        state, metrics = step(state, batch())
        assert float(state.params["head"]["seen"]) == steps * 8 / accumulate and UPDATES not in metrics
    config = OptimizerConfig(trainable=("^head/kernel",))
    transform = optim.optimizer(config, lambda count: jnp.float32(0.1))
    target = abstract(counting, transform, mesh, patterns=config.trainable, averaged=False)
    state = create(target, counting, transform, seed=0)
    step = make_train_step(
        task_loss(counting.loss), transform, lambda count: jnp.float32(0.1), target, batch_sharding(8, mesh)
    )
    with pytest.raises(ConfigError, match="head/seen a new value"):
        step(state, batch())


def test_accumulated_gradients_are_those_of_the_whole_batch():
    quiet = toy_regression.Regression(toy_regression.Config(noise=0.0), precision=toy_regression.PARITY)
    mesh = make_mesh(devices=jax.devices()[:1])
    _, state, step = make(quiet, mesh)
    whole, metrics = step(state, batch())
    _, state, step = make(quiet, mesh, accumulate=4)
    parts, accumulated = step(state, batch())
    for name, value in metrics.items():
        np.testing.assert_allclose(accumulated[name], value, rtol=1e-6)  # other order of the sums
    np.testing.assert_allclose(parts.params["head"]["kernel"], whole.params["head"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bad_step_and_all_after_it_change_nothing(toy, accumulate):
    _, state, step = make(toy, make_mesh(devices=jax.devices()[:1]), accumulate=accumulate)
    state, _ = step(state, batch())
    good = jax.tree.map(np.array, (state.params, state.opt_state, state.ema, state.step))
    state, metrics = step(state, batch(scale=np.inf))
    assert not np.isfinite(metrics["loss"]) and not state.healthy
    state, metrics = step(state, batch())
    assert np.isfinite(metrics["loss"])
    after = (state.params, state.opt_state, state.ema, state.step)
    jax.tree.map(np.testing.assert_array_equal, after, good)


class Pretrained(toy_regression.Regression):
    """Loads the encoder; `changes` spoils what it loads."""

    changes = {}

    def restore_pretrained(self, target):
        leaf = target["encoder"]["kernel"]
        loaded = jax.device_put(jnp.full(leaf.shape, 0.25, leaf.dtype), leaf.sharding)
        return {"encoder": {"kernel": loaded, **self.changes}}


def test_loaded_leaves_are_used_and_the_others_initialised():
    task = Pretrained(toy_regression.Config(), precision=toy_regression.PARITY)
    _, state, _ = make(task, make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_array_equal(state.frozen["encoder"]["kernel"], np.full((8, 16), 0.25, np.float32))
    fresh = task.init(jax.random.key(0))["head"]["kernel"]
    np.testing.assert_allclose(state.params["head"]["kernel"], fresh, rtol=1e-6)  # jitted or not: one rounding


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": jnp.zeros(3)}, "gave 'encoder/bias', which is no parameter"),
        ({"kernel": jnp.zeros((8, 8))}, r"gave 'encoder/kernel' as float32\[8, 8\] instead of float32\[8, 16\]"),
    ],
)
def test_loaded_leaves_must_fit(monkeypatch, changes, message):
    monkeypatch.setattr(Pretrained, "changes", changes)
    task = Pretrained(toy_regression.Config(), precision=toy_regression.PARITY)
    target = abstract(
        task,
        optim.optimizer(OptimizerConfig(), lambda count: count),
        make_mesh(devices=jax.devices()[:1]),
        patterns=("",),
        averaged=False,
    )
    with pytest.raises(ValueError, match=message):
        initial_params(task, jax.random.key(0), target.params)


def test_batch_that_does_not_divide_by_the_mesh():
    mesh = jax.sharding.AbstractMesh((1, 8, 1, 1), ("data", "fsdp", "seq", "tensor"))
    with pytest.raises(ConfigError, match="accumulate is 12: .* make the batch size a multiple of 8"):
        batch_sharding(12, mesh)


def test_task_names(monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    tasks.register("toy", f"{toy_regression.__name__}:Regression")
    assert tasks.task_class("toy") is toy_regression.Regression
    for name, message in [
        ("flowrvs.dti", "unknown task 'flowrvs.dti': choose one of flowrvs.vae"),
        ("no_such_module:Task", "there is no module 'no_such_module'"),
        (f"{toy_regression.__name__}:Task", "has no class 'Task'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            tasks.task_class(name)


def test_run_config_has_the_fields_of_its_task():
    config = default("toy_regression:Regression")
    config.data.samples = 7
    settings, own = parse(config)
    assert own == toy_regression.Config(data=toy_regression.PointsConfig(samples=7))
    assert settings.task == "toy_regression:Regression" and settings.formats.matmul is None
    with config.unlocked():
        config.optimiser = 1
    with pytest.raises(ConfigError, match="unknown config key 'optimiser': did you mean 'optimizer'"):
        parse(config)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"accumulate": 3}, "batch_size 8 is no multiple of optimizer.accumulate 3"),
        ("optimizer", {"trainable": ()}, "trainable is empty"),
        ("checkpoint", {"keep_best": 2}, "keep_best needs best_metric"),
        ("log", {"every": 0}, "config section 'log': every is 0"),
        ("schedule", {"kind": "linear"}, "'schedule.kind' is 'linear': choose one of 'constant'"),
    ],
)
def test_settings_that_make_no_sense(section, values, message):
    config = default("toy_regression:Regression")
    config[section].update(values)
    with pytest.raises(ConfigError, match=message):
        parse(config)


def test_metrics_file_forgets_later_and_cut_off_rows(tmp_path):
    path = tmp_path / report.METRICS
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "los')
    rows = report.Report(tmp_path, start=1, steps=5, tensorboard=False)
    rows.row(2, {"loss": 0.25})
    rows.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.25},
    ]
    assert report.read_rows(tmp_path)[-1] == {"step": 2, "loss": 0.25}


def test_only_the_first_process_writes(tmp_path):
    rows = report.Report(tmp_path, start=0, steps=5, tensorboard=True, writes=False)
    rows.row(1, {"loss": 1.0})
    rows.progress(1, 1.0)
    rows.close()
    assert not list(tmp_path.iterdir())


def test_metrics_of_a_remote_run_are_copied_at_every_save(tmp_path, monkeypatch):
    """Nothing is appended to in the run's folder, which an object store could not do."""
    monkeypatch.setattr(report, "is_remote", lambda path: True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    rows = report.Report(tmp_path, start=1, steps=5, tensorboard=True)
    rows.row(2, {"loss": 2.5})
    assert [row["loss"] for row in report.read_rows(tmp_path)] == [3.0]
    rows.sync()
    assert [row["loss"] for row in report.read_rows(tmp_path)] == [3.0, 2.5]
    rows.row(3, {"loss": 1.5})
    rows.close()
    assert [row["loss"] for row in report.read_rows(tmp_path)] == [3.0, 2.5, 1.5]
    assert any((tmp_path / "tensorboard").iterdir())


def test_meter():
    meter = report.Meter(batch_size=4)
    meter.wait(1e6)
    meter.step()
    values = meter.read()
    assert values["samples_per_second"] > 0 and values["data_wait"] == 1.0
    assert meter.read()["samples_per_second"] == 0.0
    assert 0.01 < report.memory_gib() < 1000


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    rows = report.Report(tmp_path, start=2, steps=5, tensorboard=False)
    rows.row(3, {"loss": 0.5})
    rows.progress(3, 0.5)
    rows.close()
    assert "3/5" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()


def test_command_line_words():
    words = ["tiny/x", "--workdir", "w", "--config.optimizer.lr=1e-4", "steps=3", "--set", "a.b=c", "--workdir=w"]
    assert command.expand(words) == [
        "tiny/x",
        "--workdir",
        "w",
        "--set=optimizer.lr=1e-4",
        "--set=steps=3",
        "--set",
        "a.b=c",
        "--workdir=w",
    ]


def test_command_line_with_a_bad_key_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(
        "from rvseg_jax.configs import base\n\n\n"
        "def get_config():\n    return base.get_config('toy_regression:Regression')\n"
    )
    code = cli.main(["train", "recipe.py", "--set", "optimizer.lrate=1"])
    assert code == 2
    assert capsys.readouterr().err == (
        "rvseg: error: unknown config key 'optimizer.lrate': did you mean 'optimizer.lr'?\n"
    )
    assert cli.main(["train", "recipe.py", "--set", "steps=2", "--set", "log.tensorboard=false"]) == 0
    assert [row["step"] for row in report.read_rows(tmp_path / "runs" / "recipe")] == [2]


def test_reading_where_nothing_was_trained(tmp_path):
    with pytest.raises(InputError, match="holds no training run"):
        read_params(tmp_path)
    assert not list(tmp_path.iterdir())
