"""Planning without compiling: topologies, collectives in HLO text, estimates, and the command."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import rvseg_jax as rv
from rvseg_jax.cli.dispatch import main
from rvseg_jax.core import config as configs
from rvseg_jax.core.config import ConfigError
from rvseg_jax.core.errors import CheckFailed, InputError, NotAvailable
from rvseg_jax.planning import compile as compiler
from rvseg_jax.planning import flowrvs, plan, worker
from rvseg_jax.planning.chips import CHIPS, Topology
from rvseg_jax.planning.collectives import Collective, collectives
from rvseg_jax.planning.estimate import abstract_mesh, estimate, meshes, ranked
from rvseg_jax.planning.step import planned_step, task_of
from rvseg_jax.training.config import parse

# Loops, a started operation, one that is carried through two fusions, and the three ways to write groups.
HLO = """
HloModule jit_body

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%started (p: f32[4,8]) -> f32[16,8] {
  %gather.1 = f32[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%done (p: f32[4,8]) -> f32[16,8] {
  %gather.2 = f32[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (state: (s32[], bf16[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(30)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%body (state: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %one = f32[16,8] fusion(%p), kind=kOutput, calls=%started
  %two = f32[16,8] fusion(%p), kind=kOutput, calls=%done
  %reduced = (bf16[8]{0}, f32[2,2]{1,0}) all-reduce(%x, %y), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%sum
  %turned = (bf16[8]{0}, bf16[8]{0}, u32[]) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1}}
}

ENTRY %main (p: bf16[8]) -> f32[2] {
  %loop = (s32[], bf16[8]) while(%tuple), condition=%condition, body=%body, metadata={op_name="while"}
  %scattered = f32[2]{0} reduce-scatter(%z), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%sum
}

%unused (p: f32[4]) -> f32[4] {
  %never = f32[4]{0} all-reduce(%p), channel_id=11, replica_groups={{0,1}}, to_apply=%sum
}
"""


def test_bytes_of_collectives_are_those_of_rings_times_the_runs_of_loops():
    assert collectives(HLO) == {
        "all-gather": Collective(30, 30 * 16 * 8 * 4 * 3 // 4),
        "all-reduce": Collective(30, 30 * (8 * 2 + 4 * 4)),  # 2 * size * 1/2
        "collective-permute": Collective(30, 30 * 16),
        "reduce-scatter": Collective(1, 2 * 4 * 7),
    }


def test_a_compiled_program_has_the_collectives_of_its_shardings():
    assert collectives(jax.jit(lambda x: x * 2).lower(jax.ShapeDtypeStruct((4,), "float32")).compile().as_text()) == {}


@pytest.mark.parametrize(
    ("name", "kind", "devices"), [("v5e:16x16", "v5e", 256), ("v5p:4x4x4", "v5p", 64), ("tpu7x:2x2x1", "tpu7x", 8)]
)
def test_topologies(name, kind, devices):
    found = Topology.parse(name)
    assert (found.kind, found.devices, found.chip) == (kind, devices, CHIPS[kind])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v3:2x2", "unknown TPU 'v3'.* choose one of v4, v5e"),
        ("v5e:4x4x4", "not of 2 dimensions.*write v5e:4x4"),
        ("v5p", "not of 3 dimensions"),
        ("v5e:0x4", "not of 2 dimensions"),
    ],
)
def test_bad_topologies_are_named(name, message):
    with pytest.raises(InputError, match=message):
        Topology.parse(name)


@pytest.fixture(scope="module")
def published():
    """The published recipe, its task, and a function that plans it on a mesh."""
    config = configs.load("flowrvs_mevis")
    task = task_of(config)

    def on(**sizes):
        sizes = {"data": 1, "fsdp": 1, "seq": 1, "tensor": 1, **sizes}
        config.mesh.update(sizes)
        config.batch_size = sizes["data"] * sizes["fsdp"]
        return planned_step(config, abstract_mesh(sizes), task), sizes

    return on


def test_arguments_are_what_the_shardings_leave_on_a_device(published):
    (one, one_sizes), (many, many_sizes) = published(), published(fsdp=8, tensor=2)
    place = Topology.parse("v5p:2x2x4")
    whole, parts = estimate(one, one_sizes, place), estimate(many, many_sizes, place)
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(one.target.params))
    frozen = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(one.target.frozen))
    assert trained == 1_418_996_800
    # Float32 parameters, two moments and average; bfloat16 encoders; uint8 frames, masks, valid latents, a text.
    batch = 480 * 832 * 17 * 4 + 60 * 104 + 256 * 5
    assert whole.arguments == pytest.approx(16 * trained + 2 * frozen + batch, rel=1e-6)
    # All large matrices divide by 16; norms, biases and the autoencoder stay whole.
    assert whole.arguments / 16 < parts.arguments < whole.arguments / 16 + 2**29
    assert parts.notes == ("2 devices each encode the same clips",)


@pytest.mark.parametrize("cache", ["", "a file"])
def test_the_planned_batch_is_one_that_the_loss_takes(cache):
    """Published resolution; shallow networks, as tracing the deep ones takes a minute."""
    config = configs.load("flowrvs_mevis")
    config.text_cache = config.latent_cache = cache
    config.dit.num_layers, config.text.num_layers, config.vae.num_res_blocks = 1, 1, 1
    task = task_of(config)
    arrays = flowrvs.batch(parse(config)[1], 2)
    params = jax.eval_shape(task.init, jax.random.key(0))
    loss, _ = jax.eval_shape(task.loss, params, arrays, jax.random.key(0))
    assert loss.shape == ()


def test_operations_are_shared_out_and_the_encoders_repeated(published):
    (step, sizes), (other, other_sizes) = published(fsdp=8), published(fsdp=4, seq=2)
    place = Topology.parse("v5p:2x2x2")
    flops, ring = flowrvs.work(step, sizes).flops, flowrvs.work(other, other_sizes).flops
    assert flops["dit_backward"] == 2 * flops["dit_forward"]
    assert estimate(step, sizes, place).flops == pytest.approx(sum(flops.values()) / 8)
    assert ring["recomputed"] < flops["recomputed"] / 2  # half the clips, and one product recomputed in place of three
    shared = sum(ring.values()) - ring["vae"]
    assert estimate(other, other_sizes, place).flops == pytest.approx(ring["vae"] / 4 + shared / 8)


def test_meshes_are_ranked_by_what_they_can_train(published):
    _, own = parse(configs.load("flowrvs_mevis"))
    candidates = list(meshes(8, flowrvs.cuts(own)))
    assert all(math.prod(sizes.values()) == 8 for sizes in candidates)
    assert {sizes["tensor"] for sizes in candidates} == {1, 2, 4}  # 12 heads
    place = Topology.parse("v5p:2x2x2")
    found = [estimate(*published(**sizes), place) for sizes in candidates[:4]]
    order = ranked(found)
    assert [one.rate for one in order] == sorted((one.rate for one in order), reverse=True)
    tight = [dataclasses.replace(one, memory=one.arguments) for one in found]
    assert ranked(tight) == []


def test_sizes_frames_and_caches_change_the_step():
    config = configs.load("flowrvs_mevis", ["dit.in_channels=32"])
    flowrvs.resize(config, size="14b", frames=81)
    assert (config.dit.num_layers, config.dit.in_channels, config.data.frames) == (40, 32, 81)
    _, own = parse(configs.load("flowrvs_mevis", ["text_cache=texts"]))
    assert flowrvs.batch(own, 4)["text_states"].shape == (4, 256, 4096)
    assert flowrvs.encoders_in_step(own, {"vae": {}}) == {
        "vae": "in the step, frozen",
        "text": "not in the step: cached on disk",
    }
    _, own = parse(configs.load("tiny/flowrvs_dit"))
    latents = flowrvs.batch(own, 4)
    assert latents["video_mean"].shape == latents["mask_latents"].shape and "frames" not in latents
    with pytest.raises(ConfigError, match="size '2b': choose 1.3b or 14b"):
        flowrvs.resize(config, size="2b", frames=None)
    with pytest.raises(ConfigError, match="task 'flowrvs.vae' cannot be planned"):
        task_of(configs.load("tiny/flowrvs_vae"))


TINY = ["plan", "flowrvs", "--topology", "v5e:2x2", "--config", "tiny/flowrvs_dit"]


def test_the_command_estimates_and_speaks_json(capsys):
    assert main([*TINY, "--fast", "--json", "--mesh", "1,-1,1,1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["mesh"] == {"data": 1, "fsdp": 4, "seq": 1, "tensor": 1}
    assert found["compiled"] is None and found["fits"] and found["batch_size"] == 4
    assert found["topology"]["chip"]["source"].startswith("https://")
    assert found["sample"] == {"unit": "clips", "words": "clips of 9 frames at 96x96"}
    assert main([*TINY, "--fast"]) == 0
    assert "HBM a device, estimated" in capsys.readouterr().out


def test_the_planned_batch_is_what_the_data_give():
    config = configs.load("tiny/flowrvs_dit", ["latent_cache="])
    _, own = parse(config)
    task = task_of(config)
    row = task.transform("train")(task.source("train")[0], np.random.default_rng(0))
    planned = flowrvs.batch(own, 1)
    assert {name: (value.shape, value.dtype) for name, value in planned.items()} == {
        name: ((1, *np.shape(value)), np.asarray(value).dtype) for name, value in row.items()
    }


def test_python_gets_the_same_values():
    found = rv.plan("flowrvs", "v5e:2x2", recipe="tiny/flowrvs_dit", fast=True)
    assert found["fits"] and found["chosen"]["mesh"]["fsdp"] == 4
    json.dumps(found)


def test_what_does_not_fit_is_a_result(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "available", lambda: True)
    refused = {"fits": False, "memory": 20 * 2**30, "available": 15.75 * 2**30, "message": "", "compile_seconds": 1.0}
    monkeypatch.setattr(compiler, "compiled", lambda *arguments: refused)
    assert main(TINY) == 1
    assert "DOES NOT FIT needs 20.00 GiB of 15.75 GiB" in capsys.readouterr().out


def test_the_compilers_refusal_is_read():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.91G of 15.75G hbm. Exceeded by 3.16G."
    found = worker.over_memory(message)
    assert not found["fits"] and found["memory"] == round(18.91 * 2**30) and found["available"] == 15.75 * 2**30
    found = worker.over_memory(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (200.98G) exceeds "
        "available HBM (15.75G)."
    )
    assert found["memory"] == round(200.98 * 2**30) and found["available"] == 15.75 * 2**30
    with pytest.raises(RuntimeError, match="Mosaic failed"):
        worker.over_memory("INTERNAL: Mosaic failed")


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "available", lambda: False)
    assert main(TINY) == NotAvailable.exit_code == 3
    assert 'pip install "rvseg_jax[plan]"' in capsys.readouterr().err


def test_a_compiler_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(compiler, "available", lambda: True)
    monkeypatch.setattr(compiler.sys, "executable", "/bin/false")
    with pytest.raises(CheckFailed, match="exit code 1"):
        compiler.compiled(configs.load("tiny/flowrvs_dit"), "v5e:2x2", {"fsdp": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "1,2"], "--mesh '1,2': give four sizes"),
        (["--mesh", "1,3,1,1"], "needs 3 devices but there are 4"),
        (["--topology", "v9:2"], "unknown TPU 'v9'"),
        (["nonsense=1"], "unknown config key 'nonsense'"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    assert main([*TINY, "--fast", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_system_is_named():
    with pytest.raises(InputError, match="system 'rga3' cannot be planned"):
        plan("rga3", "v5e:2x2")
