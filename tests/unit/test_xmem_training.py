"""XMem's losses against PyTorch's own operations, and its training forward against a loop over the frames."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import BFLOAT16, FLOAT32, MIXED
from rvseg_jax.models.xmem.clip import ClipChoices, draw_choices, segment_clip
from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.inference import Duties, _memory_frame
from rvseg_jax.models.xmem.memory import empty_memory
from rvseg_jax.models.xmem.network import XMem, aggregate
from rvseg_jax.parts import bundle
from rvseg_jax.trackers.xmem.losses import BootstrapSchedule, clip_losses
from rvseg_jax.trackers.xmem.training import XMemTask, XMemTrainingConfig

RNG = np.random.default_rng(0)
SMALL = dataclasses.replace(
    XMemConfig.tiny(), key_planes=(4, 4, 4), key_depths=(1, 1, 1), value_planes=(4, 4, 4), value_dim=16, decoder_dim=16
)


@pytest.mark.parametrize("iteration", [0, 19_999, 20_000, 45_000, 90_000])
def test_losses_and_their_gradients_are_torchs(torch, iteration):
    batch, frames, objects, size = 2, 2, 3, (6, 7)
    scores = RNG.standard_normal((batch, frames, objects + 1, *size)).astype(np.float32)
    labels = RNG.integers(0, 3, (batch, frames, *size))
    labels[0][labels[0] > 1] = 1
    counts = np.array([1, 3])

    def ours(scores):
        masks = jax.nn.softmax(scores, axis=2)[:, :, 1:]
        found = clip_losses(scores, masks, labels, counts, iteration)
        return found.total, found

    (total, found), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(scores)

    tensor, truth = torch.tensor(scores, requires_grad=True), torch.from_numpy(labels)
    share = 0.15 + 0.85 * (70_000 - iteration) / 50_000
    share = 1.0 if iteration < 20_000 else max(share, 0.15)
    expected = 0
    for frame in range(frames):
        for clip in range(batch):
            logits = tensor[clip : clip + 1, frame, : counts[clip] + 1]
            raw = torch.nn.functional.cross_entropy(logits, truth[clip : clip + 1, frame], reduction="none").flatten()
            expected = expected + torch.topk(raw, int(len(raw) * share)).values.mean() / batch
        masks = torch.softmax(tensor[:, frame], dim=1)[:, 1:]
        for item in range(objects):
            mask, own = masks[:, item].flatten(1), (truth[:, frame] == item + 1).float().flatten(1)
            dice = 1 - (2 * (mask * own).sum(-1) + 1) / (mask.sum(-1) + own.sum(-1) + 1)
            expected = expected + dice.mean() / objects
    expected.backward()
    np.testing.assert_allclose(found.share, share, rtol=1e-6)
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(total, (found.cross_entropy + found.dice).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)


def test_choices_are_frames_that_lie_before():
    choices = draw_choices(jax.random.key(0), clips=3, frames=8, num_ref_frames=3, deep_update_prob=0.5)
    assert choices.references.shape == (3, 7, 3) and choices.references.dtype == jnp.int32
    assert choices.deep[0] and not np.all(choices.deep)
    for time in range(1, 8):
        rows = np.asarray(choices.references[:, time - 1, : min(time, 3)])
        assert np.all(rows[:, 0] == 0) and np.all(rows < time)
        assert all(len(set(row)) == len(row) for row in rows.tolist())
    drawn = np.asarray(choices.references[:, 6, 1:])
    assert len({tuple(row) for row in drawn.tolist()}) > 1, "each clip has references of its own"
    with pytest.raises(InputError, match="two frames"):
        draw_choices(jax.random.key(0), clips=1, frames=1)
    with pytest.raises(InputError, match="start_warm"):
        BootstrapSchedule(start_warm=5, end_warm=4)


def by_hand(model: XMem, frames, first_masks, selector, choices: ClipChoices):
    """The frames one after the other, with lists for memories and a direct softmax of distances."""
    batch, length = frames.shape[:2]
    images = [model.encode_key(frames[:, time]) for time in range(length)]
    shape = images[0].key.shape[1:3]
    hidden = jnp.zeros((*first_masks.shape[:2], *shape, model.cfg.hidden_dim))
    masks, values, found = first_masks, [], []
    for time in range(1, length):
        before = images[time - 1]
        value, deep = model.encode_value(frames[:, time - 1], before.f16, hidden, masks)
        hidden = deep if choices.deep[time - 1] else hidden
        values.append(value)
        readouts = []
        for clip in range(batch):
            chosen = [int(at) for at in choices.references[clip, time - 1, : min(time, choices.references.shape[2])]]
            key, shrinkage = (
                jnp.concatenate([getattr(images[at], name)[clip].reshape(-1, width) for at in chosen])
                for name, width in (("key", model.cfg.key_dim), ("shrinkage", 1))
            )
            query, selection = (
                getattr(images[time], name)[clip].reshape(-1, 1, model.cfg.key_dim) for name in ("key", "selection")
            )
            scores = -shrinkage[:, 0] * jnp.sum(selection * (query - key) ** 2, -1) / jnp.sqrt(model.cfg.key_dim)
            held = jnp.concatenate([values[at][clip].reshape(value.shape[1], -1, value.shape[-1]) for at in chosen], 1)
            readouts.append(jnp.einsum("qn,onc->oqc", jax.nn.softmax(scores, axis=-1), held))
        readout = jnp.stack(readouts).reshape(*value.shape)
        logits, hidden = model.segment(images[time], readout, hidden)
        merged, every = aggregate(jax.nn.sigmoid(logits) * selector[..., None, None], axis=1)
        masks = every[:, 1:]
        found.append(merged)
    return jnp.stack(found, 1)


def test_a_clip_is_its_frames_one_after_the_other(random_leaves):
    graph, state = nnx.split(nnx.eval_shape(lambda: XMem(SMALL, rngs=nnx.Rngs(0))))
    state = random_leaves(state)
    frames = RNG.standard_normal((2, 4, 32, 32, 3)).astype(np.float32)
    masks = (RNG.random((2, 2, 32, 32)) > 0.5).astype(np.float32)
    selector = np.array([[1.0, 1], [1, 0]], np.float32)
    masks *= selector[..., None, None]
    choices = ClipChoices(
        jnp.array([[[0, 0], [0, 1], [0, 2]], [[0, 0], [0, 1], [0, 1]]]), jnp.array([True, False, True])
    )

    @jax.jit
    def both(state):
        model = nnx.merge(graph, state)
        plain = segment_clip(model, frames, masks, selector, choices)
        saved = segment_clip(model, frames, masks, selector, choices, remat=True)
        hand = by_hand(model, jnp.asarray(frames), jnp.asarray(masks), jnp.asarray(selector), HOST)
        return plain, saved, hand

    HOST = ClipChoices(np.asarray(choices.references), np.asarray(choices.deep))
    plain, saved, hand = both(state)
    assert plain.logits.shape == (2, 3, 3, 32, 32) and plain.masks.shape == (2, 3, 2, 32, 32)
    np.testing.assert_allclose(plain.logits, hand, atol=1e-4 * np.abs(hand).max())
    np.testing.assert_allclose(saved.logits, plain.logits, atol=1e-5)
    assert np.asarray(plain.masks).std() > 1e-3


@pytest.mark.parametrize("precision", [MIXED, BFLOAT16], ids=["mixed", "bfloat16"])
def test_formats_in_bfloat16(precision):
    cfg = dataclasses.replace(SMALL, precision=precision)
    model = nnx.eval_shape(lambda: XMem(cfg, rngs=nnx.Rngs(0)))
    choices = ClipChoices(jnp.zeros((1, 2, 2), jnp.int32), jnp.ones(2, bool))
    arrays = jnp.zeros((1, 3, 32, 32, 3)), jnp.zeros((1, 2, 32, 32)), jnp.ones((1, 2))
    graph, state = nnx.split(model)
    found = jax.eval_shape(lambda state, *given: segment_clip(nnx.merge(graph, state), *given, choices), state, *arrays)
    assert found.logits.dtype == found.masks.dtype == jnp.float32
    memory = empty_memory(cfg, MemoryConfig(), size=(32, 32), objects=2)
    assert memory.value.dtype == jnp.bfloat16 and memory.key.dtype == memory.hidden.dtype == jnp.float32
    duties = Duties(*(jnp.asarray(True),) * 4)
    given = arrays[0][0, 0], arrays[1][0], jnp.ones(2, bool), duties
    masks, after = jax.eval_shape(partial(_memory_frame, graph, MemoryConfig()), state, memory, *given)
    assert masks.dtype == jnp.float32
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), memory
    )


def test_a_network_of_stage_0_is_taught_to_see_other_masks(random_leaves, tmp_path):
    graph, state = nnx.split(
        nnx.eval_shape(lambda: XMem(dataclasses.replace(SMALL, single_object=True), rngs=nnx.Rngs(0)))
    )
    single = random_leaves(state)
    bundle.save(tmp_path, "xmem", {"xmem": nnx.merge(graph, single)})
    task = XMemTask(XMemTrainingConfig(model=SMALL, pretrained=str(tmp_path)), precision=FLOAT32)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    found = task.restore_pretrained(target)
    assert jax.tree.structure(found) == jax.tree.structure(target)
    kernel, before = found["value_encoder"]["conv1"]["kernel"], single["value_encoder"]["conv1"]["kernel"][...]
    np.testing.assert_array_equal(kernel[:, :, :1], before)
    added = np.asarray(kernel[:, :, 1]).reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(added.T @ added, np.eye(added.shape[1]), atol=1e-5)
    np.testing.assert_array_equal(found["decoder"]["pred"]["kernel"], single["decoder"]["pred"]["kernel"][...])
