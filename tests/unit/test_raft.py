"""RAFT's layers and loss against torch and sums by hand, its configs, and the flow of frames of any size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.layers.norm import InstanceNorm
from rvseg_jax.models.raft import inference
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.inference import FlowRunner, pair_memory
from rvseg_jax.models.raft.loss import sequence_loss
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.models.raft.update import ConvGRU, upsampled

TINY = RaftConfig.tiny()
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(random_leaves, cfg: RaftConfig = TINY) -> RAFT:
    graph, shapes = nnx.split(nnx.eval_shape(lambda: RAFT(cfg, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, random_leaves(shapes))


@pytest.fixture(scope="module")
def model(random_leaves) -> RAFT:
    return model_of(random_leaves)


@pytest.fixture(scope="module")
def run(model):
    """Compiled (images 1, images 2) -> flow after every update."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, *images: nnx.merge(graph, state).predictions(*images))
    return lambda *images: np.asarray(compiled(state, *images))


def test_instance_norm(torch):
    x = draw(3, 7, 5, 4) * 3 + 2
    expected = torch.nn.functional.instance_norm(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    found = InstanceNorm(precision=PARITY)(jnp.asarray(x))
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), expected, **TOLERANCE)
    assert InstanceNorm(precision=BFLOAT16)(jnp.asarray(x)).dtype == jnp.bfloat16


def test_recurrent_unit_is_the_textbook_one(torch, random_leaves):
    """Preparing the context's part once changes nothing."""
    hidden, context, motion = draw(2, 6, 5, 3), draw(2, 6, 5, 4, seed=1), draw(2, 6, 5, 2, seed=2)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ConvGRU(3, 6, (1, 5), precision=PARITY, rngs=nnx.Rngs(0))))
    unit = nnx.merge(graph, random_leaves(shapes))
    found = jax.jit(lambda h, c, m: unit(h, m, unit.prepare(c)))(hidden, context, motion)

    def convolved(conv, *parts):
        x = torch.tensor(np.concatenate(parts, -1)).permute(0, 3, 1, 2)
        kernel, bias = (torch.tensor(np.array(leaf[...])) for leaf in (conv.kernel, conv.bias))
        y = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=(0, 2))
        return y.permute(0, 2, 3, 1)

    update = torch.sigmoid(convolved(unit.convz, hidden, context, motion)).numpy()
    reset = torch.sigmoid(convolved(unit.convr, hidden, context, motion)).numpy()
    candidate = torch.tanh(convolved(unit.convq, reset * hidden, context, motion)).numpy()
    np.testing.assert_allclose(found, (1 - update) * hidden + update * candidate, **TOLERANCE)


def test_upsampling_is_a_mean_of_nine_neighbours():
    flow, logits = draw(1, 3, 4, 2), draw(1, 3, 4, 9 * 4, seed=1)
    found = np.asarray(upsampled(jnp.asarray(flow), jnp.asarray(logits), 2))
    assert found.shape == (1, 6, 8, 2)
    for row, column in [(0, 0), (3, 5), (5, 7)]:
        y, i, x, j = *divmod(row, 2), *divmod(column, 2)
        weights = np.exp(logits[0, y, x].reshape(3, 3, 2, 2)[:, :, i, j])
        around = np.pad(flow[0], ((1, 1), (1, 1), (0, 0)))[y : y + 3, x : x + 3]
        wanted = 2 * (weights[..., None] / weights.sum() * around).sum((0, 1))
        np.testing.assert_allclose(found[0, row, column], wanted, **TOLERANCE)
    # Equal weights and an equal flow: inside, the flow in finer pixels.
    still = np.asarray(upsampled(jnp.ones((1, 3, 4, 2)), jnp.zeros((1, 3, 4, 9 * 64)), 8))
    np.testing.assert_allclose(still[0, 8:16, 8:24], 8, rtol=1e-6)


def test_sequence_loss_counts_valid_pixels_and_weighs_late_updates():
    predictions, flow = draw(3, 2, 4, 5, 2), draw(2, 4, 5, 2, seed=1)
    valid = np.ones((2, 4, 5), bool)
    valid[0, :2], flow[0, 0, 0] = False, np.nan  # unknown where it does not count ...
    flow[1, 3, 4] = (300, 300)  # ... and longer than 400 pixels
    counted = valid.copy()
    counted[1, 3, 4] = False
    errors = np.abs(predictions - np.nan_to_num(flow)) * counted[..., None]
    expected = sum(0.8 ** (2 - update) * errors[update].mean() for update in range(3))
    loss, gradient = jax.value_and_grad(sequence_loss)(jnp.asarray(predictions), flow, valid)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    share = 0.8 ** np.arange(2, -1, -1)[:, None, None, None, None] / errors[0].size
    np.testing.assert_allclose(gradient, np.sign(predictions - np.nan_to_num(flow)) * counted[..., None] * share, 1e-6)
    with pytest.raises(InputError, match="predictions"):
        sequence_loss(jnp.zeros((2, 4, 5, 2)), jnp.zeros((2, 4, 5, 2)), jnp.ones((2, 4, 5)))
    with pytest.raises(InputError, match="gamma"):
        sequence_loss(predictions, flow, valid, gamma=1.5)


def test_the_last_flow_is_that_of_the_last_update(model, run):
    images = draw(2, 1, 32, 40, 3)
    every = run(*images)
    assert every.shape == (3, 1, 32, 40, 2) and np.std(np.diff(every, axis=0)) > 1e-3
    graph, state = nnx.split(model)
    for updates, unroll in ((None, None), (2, False)):
        one = jax.jit(lambda s, *x, u=updates, r=unroll: nnx.merge(graph, s)(*x, num_flow_updates=u, unroll=r))
        wanted = every[(updates or 3) - 1]
        np.testing.assert_allclose(one(state, *images), wanted, atol=1e-5 * np.abs(wanted).max())


def test_lookups_agree_inside_the_model(random_leaves, run):
    images = draw(2, 1, 32, 40, 3)
    sparse = model_of(random_leaves, dataclasses.replace(TINY, corr_lookup="on_demand"))
    graph, state = nnx.split(sparse)
    found = jax.jit(lambda state, *images: nnx.merge(graph, state).predictions(*images))(state, *images)
    expected = run(*images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_images_that_do_not_fit_are_refused(model):
    for first, second in [((1, 36, 40, 3), (1, 36, 40, 3)), ((1, 24, 40, 3),) * 2, ((1, 32, 40, 3), (2, 32, 40, 3))]:
        with pytest.raises(InputError, match="images of"):
            jax.eval_shape(model, jnp.zeros(first), jnp.zeros(second))
    with pytest.raises(InputError, match="num_flow_updates"):
        jax.eval_shape(lambda x: model(x, x, num_flow_updates=0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_encoder_layers": (16, 24, 24, 32, 32)},
        {"context_encoder_layers": (16, 16, 24, 32, 16)},
        {"motion_encoder_corr_layers": ()},
        {"motion_encoder_out_channels": 2},
        {"recurrent_block_kernel_size": ((1, 4),)},
        {"num_flow_updates": 0},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)


@pytest.fixture(scope="module")
def runner(model) -> FlowRunner:
    return FlowRunner(model, max_bytes=2 * pair_memory(TINY, 36, 45))  # two pairs at a time


def test_frames_of_any_size_are_resized_and_the_flow_scaled_back(torch, run, runner):
    frames = np.random.default_rng(0).uniform(0, 1, (4, 36, 45, 3)).astype(np.float32)
    pairs = np.stack([frames[:3], frames[1:]])

    def resized(x, size):
        return torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=False)

    images = [2 * resized(torch.tensor(np.moveaxis(x, -1, 1).copy()), (40, 48)) - 1 for x in pairs]
    flow = run(*(np.moveaxis(x.numpy(), 1, -1) for x in images))[-1]
    expected = resized(torch.tensor(np.moveaxis(flow, -1, 1).copy()), (36, 45)).numpy()
    expected = np.moveaxis(expected, 1, -1) * np.array([45 / 48, 36 / 40], np.float32)
    found = runner.pairs(*pairs)
    assert found.shape == (3, 36, 45, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    clip = runner.clip(frames)
    np.testing.assert_allclose(clip.forward, expected, atol=1e-5 * np.abs(expected).max())
    backward = runner.pairs(frames[1:], frames[:3])
    np.testing.assert_allclose(clip.backward, backward, atol=1e-5 * np.abs(backward).max())
    assert np.abs(clip.backward - clip.forward).max() > 0.1


def test_batches_are_bounded_by_memory_and_equal(model, monkeypatch):
    memory = pair_memory(TINY, 36, 45)
    runner = FlowRunner(model, max_bytes=4 * memory)
    assert list(runner._batches(10, memory)) == [(0, 4), (4, 4), (8, 4)]
    assert list(runner._batches(5, memory)) == [(0, 3), (3, 3)]
    assert list(runner._batches(3, 100 * memory)) == [(0, 1), (1, 1), (2, 1)]
    assert list(runner._batches(0, memory)) == []
    monkeypatch.setattr(inference, "free_bytes", lambda: 4 * memory)
    assert list(FlowRunner(model)._batches(4, memory)) == [(0, 2), (2, 2)]
    large = RaftConfig.large()
    sparse = dataclasses.replace(large, corr_lookup="on_demand")
    assert pair_memory(large, 436, 1024) - pair_memory(sparse, 436, 1024) > 4 * (55 * 128) ** 2


def test_a_clip_of_one_frame_has_no_flow(runner):
    assert runner.clip(np.zeros((1, 36, 45, 3), np.float32)).forward.shape == (0, 36, 45, 2)


def test_frames_that_do_not_fit_are_refused(runner):
    with pytest.raises(InputError, match="floats"):
        runner.clip(np.zeros((2, 36, 45, 3), np.uint8))
    with pytest.raises(InputError, match="at least 25"):
        runner.clip(np.zeros((2, 24, 45, 3), np.float32))
    with pytest.raises(InputError, match="same shape"):
        runner.pairs(np.zeros((2, 36, 45, 3), np.float32), np.zeros((1, 36, 45, 3), np.float32))


def test_bfloat16_stays_near_float32(random_leaves, run):
    """Flow and correlations stay float32; the rest is rounded."""
    images = draw(2, 1, 32, 40, 3)
    graph, state = nnx.split(model_of(random_leaves, dataclasses.replace(TINY, precision=BFLOAT16)))
    found = jax.jit(lambda state, *images: nnx.merge(graph, state).predictions(*images))(state, *images)
    expected = run(*images)
    assert found.dtype == jnp.float32
    error = np.mean(np.abs(np.asarray(found) - expected)) / np.mean(np.abs(expected))
    assert 1e-5 < error < 0.05
