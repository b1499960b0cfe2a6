"""XMem's affinity, its memories and the rules by which a video runs through them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.xmem.affinity import similarity, strongest
from rvseg_jax.models.xmem.config import MemoryConfig, XMemConfig
from rvseg_jax.models.xmem.consolidation import make_room
from rvseg_jax.models.xmem.inference import Clock, Propagator
from rvseg_jax.models.xmem.memory import appear, empty_memory, read, remember, with_room
from rvseg_jax.models.xmem.network import XMem, aggregate

KEYS = jnp.array([[1.0, 0], [0, 1], [2, -1]])
SHRINKAGE = jnp.array([1.0, 2, 1.5])
QUERIES, SELECTION = jnp.array([[0.5, 0.5], [1, -1]]), jnp.array([[0.2, 0.6], [0.9, 0.4]])
SMALL = dataclasses.replace(
    XMemConfig.tiny(), key_planes=(4, 4, 4), value_planes=(4, 4, 4), value_dim=16, decoder_dim=16, up_dim=8
)


def test_similarity_top_k_and_usage_of_the_worked_example():
    scores = similarity(KEYS, SHRINKAGE, QUERIES, SELECTION)
    wanted = [[-0.1414, -0.2828, -1.9092], [-0.2828, -3.5355, -0.9546]]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    direct = -np.sum(SELECTION[:, None] * (KEYS[None] - QUERIES[:, None]) ** 2, -1) * SHRINKAGE / np.sqrt(2)
    np.testing.assert_allclose(scores, direct, rtol=1e-5)
    weights, elements = strongest(scores, jnp.ones(3, bool), 2)
    dense = np.zeros((2, 3))
    np.put_along_axis(dense, np.asarray(elements), np.asarray(weights), axis=1)
    np.testing.assert_allclose(dense, [[0.5353, 0.4647, 0], [0.6619, 0, 0.3381]], atol=1e-4)
    np.testing.assert_allclose(dense.sum(0), [1.1972, 0.4647, 0.3381], atol=1e-4)


def test_fewer_elements_than_top_k():
    scores = jnp.array([[3.0, -1, 2], [0, 5, 0]])
    weights, elements = strongest(scores, jnp.array([True, False, True]), 30)
    dense = np.zeros((2, 3))
    np.put_along_axis(dense, np.asarray(elements), np.asarray(weights), axis=1)
    share = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(dense, [[share, 0, 1 - share], [0.5, 0, 0.5]], rtol=1e-6)
    nothing, _ = strongest(scores, jnp.zeros(3, bool), 2)
    assert not np.any(nothing)


def test_aggregation_of_the_worked_example():
    _, found = aggregate(jnp.array([0.9, 0.3]), axis=0)
    np.testing.assert_allclose(found, [0.0079, 0.9470, 0.0451], atol=1e-4)
    logits, same = aggregate(jnp.array([0.9, 0.7, 0.3]), jnp.array([True, False, True]), axis=0)
    np.testing.assert_allclose(same, [found[0], found[1], 0, found[2]], rtol=1e-6)
    assert logits[2] == -jnp.inf


def tiny_memory(cfg: MemoryConfig, objects: int = 1):
    """Memory of 6 x 6 positions, and a function that puts a frame into it: frame number t has the value t."""
    sizes = XMemConfig(key_dim=2, value_dim=1, hidden_dim=1)
    memory = empty_memory(sizes, cfg, size=(96, 96), objects=objects)

    @jax.jit
    def put(memory, key, time, labelled):
        selection = jnp.ones((6, 6, 2))
        memory = jax.lax.cond(time > 0, lambda m: read(m, key, selection, cfg)[1], lambda m: m, memory)
        memory = appear(memory, labelled)
        value = jnp.full((objects, 6, 6, 1), time, jnp.float32)
        return make_room(remember(memory, key, jnp.ones((6, 6)), selection, value), cfg)

    return memory, lambda memory, time, labelled: put(
        memory, jax.random.normal(jax.random.key(time), (6, 6, 2)), time, jnp.asarray(labelled)
    )


@pytest.mark.parametrize("count_usage", [True, False])
def test_sizes_follow_the_published_trace(count_usage):
    cfg = MemoryConfig(num_prototypes=8, max_long_term_elements=40, enable_long_term_count_usage=count_usage)
    memory, put = tiny_memory(cfg)
    sizes = []
    for time in range(36):
        memory = put(memory, time, [True])
        sizes.append((int(memory.frames), int(memory.long_size)))
    assert sizes[:9] == [(count, 0) for count in range(1, 10)]
    assert [long for frames, long in sizes[9::5]] == [8, 16, 24, 32, 40, 40]
    assert [frames for frames, _ in sizes[9:15]] == [5, 6, 7, 8, 9, 5]
    # The first frame stays for ever, beside the latest four.
    kept = memory.value[0, memory.long_capacity : memory.long_capacity + 5 * 36 : 36, 0]
    np.testing.assert_array_equal(kept, [0, 31, 32, 33, 34] if sizes[-1][0] == 5 else kept)
    np.testing.assert_array_equal(kept[:2], [0, 31])
    # What is forgotten leaves no gap: the prototypes stand for later and later frames.
    prototypes = np.asarray(memory.value[0, : int(memory.long_size), 0])
    assert np.all(np.diff(prototypes[::8]) > 0) and prototypes.min() > (0 if count_usage else 5)


def test_an_object_that_appears_later_reads_its_own_frames_only():
    cfg = MemoryConfig(min_mid_term_frames=2, max_mid_term_frames=6, num_prototypes=8, max_long_term_elements=40)
    memory, put = tiny_memory(cfg, objects=3)
    for time in range(5):
        memory = put(memory, time, [True, time >= 3, False])
    np.testing.assert_array_equal(memory.owned, [5, 2, 0])
    np.testing.assert_array_equal(memory.group, [0, 1, 0])
    key, selection = jnp.zeros((6, 6, 2)), jnp.ones((6, 6, 2))
    readout, after = jax.jit(partial(read, cfg=cfg))(memory, key, selection)
    assert np.all(readout[1] >= 3) and np.all(readout[0] < 4.01) and np.any(readout[0] < 3)
    assert not np.any(readout[2])
    np.testing.assert_allclose(np.sum(after.use - memory.use), 36, rtol=1e-5)
    memory = put(memory, 5, [False] * 3)
    # The late object has too few frames to be consolidated, and keeps its own.
    assert int(memory.frames) == 2 and int(memory.long_size) == 8
    np.testing.assert_array_equal(memory.owned, [2, 2, 0])
    np.testing.assert_array_equal(memory.long_owned, [8, 0, 0])
    grown = with_room(memory, 5)
    assert grown.value.shape[0] == 5 and not grown.present[3]
    with pytest.raises(InputError, match="room for 5"):
        with_room(grown, 4)


def test_without_long_term_memory_the_oldest_frame_but_the_first_goes():
    cfg = MemoryConfig(enable_long_term=False, min_mid_term_frames=1, max_mid_term_frames=4)
    memory, put = tiny_memory(cfg, objects=2)
    for time in range(7):
        memory = put(memory, time, [True, time >= 5])
    assert memory.long_capacity == 0 and int(memory.frames) == 3
    np.testing.assert_array_equal(memory.value[0, : 3 * 36 : 36, 0], [0, 5, 6])
    np.testing.assert_array_equal(memory.owned, [3, 2])


@pytest.mark.parametrize(
    ("changes", "stored", "deep"),
    [({}, [0, 3, 6], [0, 3, 6]), ({"deep_update_every": 4}, [0, 3, 6], [0, 6]), ({"mem_every": 100}, [0, 3], [0, 3])],
)
def test_which_frames_are_stored(changes, stored, deep):
    cfg = MemoryConfig(**{"mem_every": 3, **changes})
    clock, duties = Clock.start(cfg), []
    for time in range(9):
        done, clock = clock.tick(cfg, given=time in (0, 3), complete=time == 0, end=time == 8)
        duties.append(done)
    assert [time for time, done in enumerate(duties) if done.store] == stored
    assert [time for time, done in enumerate(duties) if done.deep] == deep
    assert [done.segment for done in duties] == [False] + [True] * 8
    assert not duties[8].update and not duties[8].store


@pytest.fixture(scope="module")
def small(random_leaves):
    graph, state = nnx.split(nnx.eval_shape(lambda: XMem(SMALL, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, random_leaves(state))


def test_a_long_video_takes_no_more_memory_and_two_programs(small):
    cfg = MemoryConfig(
        mem_every=2, min_mid_term_frames=2, max_mid_term_frames=4, num_prototypes=3, max_long_term_elements=9
    )
    propagator = Propagator(small, cfg)
    track = propagator.start((32, 40), objects=3)
    masks = np.zeros((3, 32, 40), np.float32)
    masks[0, :16], masks[1, 20:] = 1, 1
    frames = np.random.default_rng(0).standard_normal((7, 32, 40, 3)).astype(np.float32)
    sizes, compiled = set(), []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    for time in range(200):
        if time == 5:
            compiled.clear()
        labelled = {0: [0], 90: [1]}.get(time)
        mask = masks if labelled else None
        found, track = propagator.step(track, frames[time % 7], mask, labelled, end=time == 199)
        sizes.add(sum(leaf.nbytes for leaf in jax.tree.leaves(track.memory)))
    jax.monitoring.clear_event_listeners()
    assert propagator.compiled == 2 and len(sizes) == 1
    assert not [name for name in compiled if "backend_compile" in name]
    assert int(track.memory.long_size) == 9 and track.objects == 2
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert not np.any(found[3]) and np.all(np.isfinite(found))
    assert not np.any(track.memory.hidden[2])


def test_wrong_calls_are_refused(small):
    propagator = Propagator(small)
    track = propagator.start((32, 40), objects=2)
    frame, mask = np.zeros((32, 40, 3), np.float32), np.ones((2, 32, 40), np.float32)
    with pytest.raises(InputError, match="no object has appeared"):
        propagator.step(track, frame)
    with pytest.raises(InputError, match="next to appear is 0"):
        propagator.step(track, frame, mask, [1])
    with pytest.raises(InputError, match="room for 2"):
        propagator.step(track, frame, mask, [0, 1, 2])
    with pytest.raises(InputError, match=r"\(2, 32, 40\)"):
        propagator.step(track, frame, mask[:1])
    with pytest.raises(InputError, match="frames of"):
        propagator.step(track, frame[:16], mask)
    with pytest.raises(InputError, match="without a mask"):
        propagator.step(track, frame, None, [0])
    with pytest.raises(ValueError, match="min < max"):
        MemoryConfig(min_mid_term_frames=10)
    with pytest.raises(InputError, match="multiples of 16"):
        small.encode_key(jnp.zeros((1, 30, 32, 3)))
    assert propagator.compiled == 0
