"""What planning knows of MLLMSeg and GeoMotion: batches, arguments to the byte, operations, and its errors."""

import math

import jax
import numpy as np
import pytest

from rvseg_jax.cli.dispatch import main
from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.planning import geomotion, mllmseg
from rvseg_jax.planning.chips import Topology
from rvseg_jax.planning.estimate import abstract_mesh, estimate
from rvseg_jax.planning.step import planned_step, task_of
from rvseg_jax.training.config import parse

ONE = {"data": 1, "fsdp": 1, "seq": 1, "tensor": 1}


def planner(module, *changes, size=None, frames=None):
    """A function that plans the published recipe on a mesh."""
    config = configs.load(module.RECIPE, changes)
    module.resize(config, size=size, frames=frames)
    task = task_of(config)

    def on(**sizes):
        sizes = {**ONE, **sizes}
        config.mesh.update(sizes)
        config.batch_size = sizes["data"] * sizes["fsdp"]
        return planned_step(config, abstract_mesh(sizes), task), sizes

    return on


@pytest.fixture(scope="module")
def eight_billion():
    return planner(mllmseg)


@pytest.fixture(scope="module")
def motion():
    return planner(geomotion, frames=32)


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_arguments_of_mllmseg_are_its_base_in_bfloat16_and_what_is_trained(eight_billion):
    step, sizes = eight_billion()
    found = estimate(step, sizes, Topology.parse("v5p:2x2x1"))
    words = 2 * 92_555 * 4096
    # Of rank 64 on 32 layers: gate, up, down; queries and output; keys and values.
    adapters = 64 * 32 * (3 * (4096 + 14_336) + 2 * (4096 + 4096) + 2 * (4096 + 1024))
    # The mask decoder with the statistics of its batch norm, the words, adapters and the last norm.
    assert count(step.target.params) == 34_385_542 + 2 * 196 + words + adapters + 4096
    # Linear layers of the language model, its norms, the vision transformer and the projector.
    frozen = 7_737_708_544 - 2 * 92_544 * 4096 - 4096 + 304_012_288 + (4096 * 4096 * 2 + 4096 * 2) + 2 * 4096
    assert count(step.target.frozen) == frozen
    batch = 448 * 448 * 3 + 5 * 640 * 640 + 8 + 5 + 5 + 1024 * 6 + 5 * 4
    scalars = found.arguments - 12 * count(step.target.params) - 2 * frozen - batch
    assert 0 < scalars < 64  # steps, key and the mark of health


def test_arguments_of_mllmseg_are_shared_out(eight_billion):
    (one, one_sizes), (many, many_sizes) = eight_billion(), eight_billion(fsdp=4, tensor=4)
    place = Topology.parse("v5e:4x4")
    whole, parts = estimate(one, one_sizes, place), estimate(many, many_sizes, place)
    decoder = 12 * 34_385_542 * 15 / 16  # whole on every device
    # 92,555 rows do not divide by 4, and an adapter's rank is not cut: both lie on fsdp or tensor alone.
    words = 12 * (2 * 92_555 * 4096 + 167_772_160) * (1 / 4 - 1 / 16)
    assert parts.arguments == pytest.approx(whole.arguments / 16 + decoder + words, rel=0.01)
    assert parts.notes == ("4 devices each draw the same masks",)


def test_mllmseg_computes_what_its_sizes_say(eight_billion):
    step, sizes = eight_billion()
    flops = mllmseg.work(step, sizes).flops
    base = 7_737_708_544 - 92_544 * 4096
    # Two operations a weight and token; attention to 1,024 keys and the adapters are a few percent.
    assert flops["language_forward"] == pytest.approx(2 * 1024 * base, rel=0.06)
    assert flops["language_forward"] < flops["language_backward"] < 1.2 * flops["language_forward"]
    assert flops["vision"] == pytest.approx(2 * 1025 * 304e6, rel=0.2)


@pytest.mark.parametrize(("size", "layers"), [("1b", 24), ("2b", 24), ("4b", 36), ("8b", 32)])
def test_published_sizes_of_mllmseg(size, layers):
    config = configs.load("mllmseg")
    mllmseg.resize(config, size=size, frames=None)
    assert config.model.internvl.language.num_hidden_layers == layers


def test_the_batch_of_mllmseg_is_what_its_data_give():
    config = configs.load("tiny/mllmseg")
    mllmseg.resize(config, size=None, frames=None)
    _, own = parse(config)
    task = task_of(config)
    assert described(mllmseg.batch(own, 1)) == drawn(task)


def test_the_batch_of_geomotion_is_what_its_data_give():
    config = configs.load("tiny/geomotion")
    task = task_of(config)
    assert described(geomotion.batch(parse(config)[1], 1)) == drawn(task)


@pytest.mark.parametrize("features", [False, True])
def test_the_planned_batch_of_a_cache_is_one_that_the_loss_takes(features):
    config = configs.load("tiny/geomotion", ["cache=a file", f"cache_features={features}"])
    task = task_of(config)
    arrays = geomotion.batch(parse(config)[1], 2)
    assert ("frames" in arrays) != features
    params = jax.eval_shape(task.init, jax.random.key(0))
    loss, _ = jax.eval_shape(task.loss, params, arrays, jax.random.key(0))
    assert loss.shape == ()


def described(batch):
    return {name: (value.shape, value.dtype) for name, value in batch.items()}


def drawn(task):
    row = task.transform("train")(task.source("train")[0], np.random.default_rng(0))
    return {name: ((1, *np.shape(value)), np.asarray(value).dtype) for name, value in row.items()}


def test_arguments_of_geomotion(motion):
    step, sizes = motion()
    found = estimate(step, sizes, Topology.parse("v5p:2x2x1"))
    trained, frozen = 80_320_196, 972_687_132 - 80_320_196 + 5_257_536
    assert count(step.target.params) == trained
    batch = 32 * 518 * 518 * 5
    assert 0 < found.arguments - 12 * trained - 4 * frozen - batch < 2**16  # RAFT's stored statistics
    parts = estimate(*motion(fsdp=16), Topology.parse("v5e:4x4"))
    raft = 4 * 5_257_536
    assert parts.arguments - batch == pytest.approx((12 * trained + 4 * frozen) / 16 + raft, rel=0.15)


def test_geomotion_computes_flow_geometry_and_motion(motion):
    step, sizes = motion()
    flops = geomotion.work(step, sizes).flops
    # Without points: all of Pi3 but one of three decoders (20.9 TFLOP together).
    assert flops["geometry"] + flops["motion_forward"] == pytest.approx((219.3 + 13.9 + 1.27) * 1e12, rel=0.02)
    assert flops["motion_backward"] == 2 * flops["motion_forward"]
    assert geomotion.work(*motion(seq=2)).flops["flow"] == flops["flow"]
    assert estimate(*motion(seq=2), Topology.parse("v5e:1x2")).notes == (
        "2 devices each find the flow of the same clips",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mllmseg", "--size", "14b"], "no InternVL2.5 of size '14b': choose 1b or 2b or 4b or 8b"),
        (["mllmseg", "--frames", "9"], "MLLMSeg is trained on images"),
        (["geomotion", "--size", "8b"], "GeoMotion has one published size"),
        (["geomotion", "--config", "mllmseg"], "give one of geomotion.motion"),
        (["geomotion", "--config", "tiny/geomotion_flow"], "give one of geomotion.motion"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    assert main(["plan", *arguments, "--topology", "v5e:2x2", "--fast"]) == 2
    assert message in capsys.readouterr().err


def test_other_stages_cannot_be_planned():
    with pytest.raises(ConfigError, match="task 'geomotion.flow' cannot be planned: give a recipe of geomotion.motion"):
        task_of(configs.load("tiny/geomotion_flow"))


@pytest.mark.parametrize("system", ["mllmseg", "geomotion"])
def test_the_command_estimates(system, capsys):
    assert main(["plan", system, "--topology", "v5e:2x2", "--config", f"tiny/{system}", "--fast"]) == 0
    assert "HBM a device, estimated" in capsys.readouterr().out
