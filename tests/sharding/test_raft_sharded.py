"""RAFT's loss, gradients and flow do not depend on the mesh that pairs are cut over."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.inference import FlowRunner, pair_memory
from rvseg_jax.models.raft.loss import sequence_loss
from rvseg_jax.models.raft.model import RAFT, SHARDING
from rvseg_jax.parallel import DEFAULT_RULES, batch_shardings, make_mesh, pjit, shardings

# Gradients compile for half a minute, on demand for longer.
# A minute to compile each; `test_flow_of_frames_on_eight_devices_is_that_of_one` is the quick one.
MESHES = [pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2))]
LOOKUPS = ["all_pairs", pytest.param("on_demand", marks=pytest.mark.slow)]
AXES = ("data", "fsdp", "seq", "tensor")
PAIRS, SIDE = 8, 32


def config(lookup: str) -> RaftConfig:
    return RaftConfig(
        feature_encoder_layers=(4, 4, 6, 6, 8),
        context_encoder_layers=(4, 4, 6, 6, 8),
        corr_block_num_levels=2,
        corr_block_radius=1,
        motion_encoder_corr_layers=(8, 6),
        motion_encoder_flow_layers=(6, 4),
        motion_encoder_out_channels=8,
        recurrent_block_hidden_state_size=4,
        flow_head_hidden_size=6,
        mask_predictor_hidden_size=6,
        num_flow_updates=2,
        corr_lookup=lookup,
    )


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, PAIRS, SIDE, SIDE, 3)).astype(np.float32)
    flow = (4 * rng.standard_normal((PAIRS, SIDE, SIDE, 2))).astype(np.float32)
    return {"first": images[0], "second": images[1], "flow": flow, "valid": rng.uniform(size=flow.shape[:3]) < 0.7}


@functools.cache
def problem(lookup, fill):
    """Function of parameters and batch, parameters, and what one device makes of them."""
    abstract = nnx.eval_shape(lambda: RAFT(config(lookup), rngs=nnx.Rngs(0)))
    graph, parameters, statistics = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    parameters, statistics = (nnx.to_pure_dict(fill(tree)) for tree in (parameters, statistics))

    def loss(parameters, given):
        model = nnx.merge(graph, parameters, statistics)
        flows = model.predictions(given["first"], given["second"], unroll=False)  # which compiles faster
        return sequence_loss(flows, given["flow"], given["valid"])

    function = jax.value_and_grad(loss)
    return function, parameters, jax.device_get(jax.jit(function)(parameters, batch()))


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes, lookup, random_leaves):
    function, parameters, (wanted_loss, wanted) = problem(lookup, random_leaves)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)))
    given = batch()
    layout = shardings(parameters, SHARDING, DEFAULT_RULES, mesh)
    of_batch = jax.tree.map(lambda x: batch_shardings(x, mesh), given)
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        step = pjit(function, in_shardings=(layout, of_batch), out_shardings=(whole, layout))
        compiled = step.lower(parameters, given).compile()
        found_loss, found = compiled(*jax.device_put((parameters, given), (layout, of_batch)))
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert largest > 0
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1e-2 * largest), rtol=0)
    # Pairs do not see each other: only gradients and the loss are exchanged.
    program = compiled.as_text()
    assert "all-reduce" in program and not any(word in program for word in ("all-gather(", "all-to-all("))


def test_flow_of_frames_on_eight_devices_is_that_of_one(random_leaves):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: RAFT(config("auto"), rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, random_leaves(shapes))
    frames = np.random.default_rng(1).uniform(0, 1, (11, 30, 34, 3)).astype(np.float32)
    mesh = make_mesh({"fsdp": 8})
    one = FlowRunner(model)
    runner = FlowRunner(model, mesh=mesh, max_bytes=pair_memory(model.cfg, 30, 34))
    expected = one.clip(frames)
    largest = np.abs(expected.forward).max()
    # Ten pairs make two batches of eight.
    np.testing.assert_allclose(runner.pairs(frames[:-1], frames[1:]), expected.forward, atol=1e-5 * largest, rtol=0)
    found = runner.clip(frames)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest, rtol=0)
