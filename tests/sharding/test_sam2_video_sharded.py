"""Tracking by SAM 2 with the objects spread over devices gives what one device gives."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.models.sam2.config import Sam2Config
from rvseg_jax.models.sam2.model import SHARDING, ImageFeatures, Sam2
from rvseg_jax.models.sam2.tracking import Place, track_step
from rvseg_jax.models.sam2.tracking_state import FrameMemory, empty_state, remember
from rvseg_jax.parallel import DEFAULT_RULES, batch_shardings, make_mesh, pjit, shardings

CFG = Sam2Config.tiny()
ROWS = 8


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).standard_normal(shape), jnp.float32)


def problem(random_leaves):
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Sam2(CFG, rngs=nnx.Rngs(0))))
    parameters = nnx.to_pure_dict(random_leaves(abstract))
    side, width, low = CFG.image_embedding_size, CFG.d_model, CFG.low_res_size
    state, everywhere = empty_state(CFG, ROWS, memory_dtype="float32"), jnp.ones(ROWS, bool)
    for frame in (0, 1, 2):
        seen = FrameMemory(
            draw(ROWS, side, side, CFG.mem_dim, seed=frame),
            draw(ROWS, width, seed=frame),
            draw(ROWS, low, low, seed=frame),
            draw(ROWS, seed=frame),
            draw(ROWS, seed=frame),
        )
        prompted = everywhere if frame == 0 else ~everywhere
        state = remember(state, seen, jnp.full(ROWS, frame), as_prompted=prompted, as_tracked=~prompted)
    high = draw(1, 4 * side, 4 * side, width // 8), draw(1, 2 * side, 2 * side, width // 4)
    frame_features = ImageFeatures(draw(1, side, side, width), high)

    def step(parameters, state, features, place):
        return track_step(nnx.merge(graph, parameters), state, features, place)

    return step, (parameters, state, frame_features, Place.of(ROWS, 3, num_frames=20))


def test_objects_over_devices(random_leaves):
    step, arguments = problem(random_leaves)
    expected_state, expected = jax.jit(step)(*arguments)
    assert float(jnp.std(expected.memory)) > 1e-3
    mesh = make_mesh({"data": 4, "fsdp": 2})
    whole = NamedSharding(mesh, PartitionSpec())
    parameters, state, frame_features, place = arguments
    places = (
        shardings(parameters, SHARDING, DEFAULT_RULES, mesh),
        batch_shardings(state, mesh),
        jax.tree.map(lambda leaf: whole, frame_features),
        batch_shardings(place, mesh),
    )
    out = (places[1], batch_shardings(expected, mesh))
    with jax.set_mesh(mesh):
        compiled = pjit(step, in_shardings=places, out_shardings=out)
        found_state, found = compiled(*(jax.device_put(x, at) for x, at in zip(arguments, places, strict=True)))
    assert found.logits.sharding.spec[0] == ("data", "fsdp")
    assert found_state.memory.addressable_shards[0].data.shape[0] == ROWS // 8
    for ours, theirs in zip(
        jax.tree.leaves((found_state, found)), jax.tree.leaves((expected_state, expected)), strict=True
    ):
        scale = np.abs(np.asarray(theirs, np.float32)).max()
        np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-5 * scale + 1e-6, rtol=0)
