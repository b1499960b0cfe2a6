"""Pi3 against its golden cases and against torch, and what holds for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, registry
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.pi3 import camera
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.decoder import frame_rope
from rvseg_jax.models.pi3.model import Pi3
from rvseg_jax.parity import golden as golden_cases
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.weights_rule import rule_weights

TINY = Pi3Config.tiny()


@pytest.fixture(scope="module")
def weights():
    """Under upstream's names, at scales where each branch counts."""
    plan, _ = plan_for(registry.part("pi3"), TINY)
    made = rule_weights({key: list(shape) for key, shape in plan.key_shapes.items()}, 0, [])
    made["point_head.proj.weight"] *= 0.2  # depths are exponentials
    return made


@pytest.fixture(scope="module")
def model(weights):
    return from_torch("pi3", weights, TINY)


@pytest.fixture(scope="module")
def jitted(model):
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, video: nnx.merge(graph, state)(video, taps=True))
    return lambda video: run(state, video)


def video(frames, height=56, width=70, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (1, frames, height, width, 3)).astype(np.float32)


def relative(ours, theirs) -> float:
    theirs = np.asarray(theirs, np.float32)
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", ["a_3x42x70", "b_2x56x56"])
def test_golden_case_passes(golden, name):
    case = golden_cases.read(golden / "pi3" / f"{name}.json")
    produced = kinds.run(case)
    report = compare(case, produced)
    assert report.passed, [row for row in report.rows if not row.passed]
    assert all(row.status == "ok" for row in report.rows), "every tap is exposed"
    taps = [name for name in produced.outputs if name.startswith("tap/")]
    assert taps[2:6] == ["tap/encoder_registers", "tap/block0", "tap/block1", "tap/block2"], "in the order of the pass"


def test_frames_have_no_order(jitted):
    given, order = video(3), [2, 0, 1]
    (first, _), (second, _) = jitted(given), jitted(given[:, order])
    for name in ("points", "local_points", "conf", "camera_poses"):
        assert relative(getattr(second, name), getattr(first, name)[:, order]) < 1e-5, name
    # The frames do see each other.
    assert relative(first.conf[:, :1], jitted(given[:, :1])[0].conf) > 1e-3


@pytest.mark.parametrize("frames", [1, 3])
def test_alternating_decoder(torch, weights, jitted, frames):
    """The decoder on patches that are resized in position and not square, for one frame and for several."""
    import torch_pi3

    _, taps = jitted(video(frames))
    where = torch_pi3.positions(4, 5, TINY.register_tokens)
    registers = torch.from_numpy(weights["register_token"][0]).expand(frames, -1, -1)
    x = torch.cat([registers, torch.from_numpy(np.array(taps["encoder_patch_tokens"]))], 1)
    for layer in range(TINY.depth):
        block = torch_pi3.Block(TINY.width, TINY.num_heads, qk_norm=True, layer_scale=True)
        prefix = f"decoder.{layer}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        block.load_state_dict({key: torch.from_numpy(value) for key, value in own.items()})
        with torch.no_grad():
            if layer % 2:
                x = block(x.reshape(1, -1, TINY.width), where.repeat(frames, 1)).reshape(x.shape)
            else:
                x = block(x, where)
        assert relative(taps[f"block{layer}"], x) < 1e-5, layer
    pairs = [taps["block4"], taps["block5"]]
    np.testing.assert_array_equal(taps["heads_in"], np.concatenate(pairs, axis=-1))


def test_points_can_be_left_out_and_blocks_run_one_by_one(model, jitted):
    given = video(3)
    whole, _ = jitted(given)
    looped = model(given, points=False, mode="host_loop")
    assert looped.points is None and looped.local_points is None
    assert relative(looped.conf, whole.conf) < 1e-5 and relative(looped.camera_poses, whole.camera_poses) < 1e-5
    depth = np.asarray(whole.local_points[..., 2])
    assert depth.min() > 0 and np.isfinite(np.asarray(whole.points)).all()
    rotation = np.asarray(whole.camera_poses[0, :, :3, :3])
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    pixel = rotation[1] @ np.asarray(whole.local_points[0, 1, 9, 33]) + np.asarray(whole.camera_poses[0, 1, :3, 3])
    np.testing.assert_allclose(whole.points[0, 1, 9, 33], pixel, rtol=1e-4)


def test_bfloat16_is_as_near_as_torch(torch, weights):
    import torch_pi3

    block = torch_pi3.Block(TINY.width, TINY.num_heads, qk_norm=True, layer_scale=True)
    own = {key.removeprefix("decoder.0."): value for key, value in weights.items() if key.startswith("decoder.0.")}
    block.load_state_dict({key: torch.from_numpy(value) for key, value in own.items()})
    pairs = from_torch("pi3", weights, TINY, precision=BFLOAT16).decoder
    graph, state = nnx.split(pairs)
    x = np.random.default_rng(0).standard_normal((2, 25, TINY.width)).astype(np.float32)
    where = torch_pi3.positions(4, 5, TINY.register_tokens)
    with torch.no_grad():
        exact = block(torch.from_numpy(x), where).numpy()
        theirs = block.bfloat16()(torch.from_numpy(x).bfloat16(), where).float().numpy()
    head = TINY.width // TINY.num_heads

    @jax.jit
    def run(state, x):
        first = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], state)).frame
        return first(x, frame_rope(TINY, 4, 5, head))

    ours = np.asarray(run(state, jnp.asarray(x, jnp.bfloat16)), np.float32)
    error = np.abs(ours - exact).mean()
    assert 1e-4 * np.abs(exact).mean() < error < 1.25 * np.abs(theirs - exact).mean()


def matrices():
    """Matrices of both orientations; singular values well apart."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((8, 3, 3)))[0] for _ in range(2))
    left[::2] *= np.sign(np.linalg.det(left @ right))[::2, None, None]
    left[1::2] *= -np.sign(np.linalg.det(left @ right))[1::2, None, None]
    return (left * np.array([1.5, 0.9, 0.4])) @ right


def torch_rotation(torch, raw):
    """Rows normalised, then the product of the singular vectors with the sign of its determinant."""
    m = torch.nn.functional.normalize(raw, dim=-1)
    u, _, vh = torch.linalg.svd(m)
    signs = torch.ones(m.shape[:2], dtype=m.dtype)
    signs[:, 2] = torch.linalg.det(u @ vh).sign()
    return (u * signs[:, None]) @ vh


def test_rotation_and_its_gradient(torch):
    raw = matrices()
    weight = np.random.default_rng(1).standard_normal(raw.shape)
    theirs = torch.from_numpy(raw).requires_grad_()
    wanted = torch_rotation(torch, theirs)
    (wanted * torch.from_numpy(weight)).sum().backward()
    assert {int(sign) for sign in np.sign(np.linalg.det(raw))} == {-1, 1}

    def loss(matrix):
        found = camera.nearest_rotation(camera.unit_rows(matrix))
        return (found * weight).sum(), found

    gradient, found = jax.grad(loss, has_aux=True)(jnp.asarray(raw, jnp.float32))
    assert relative(found, wanted.detach()) < 1e-5
    assert relative(gradient, theirs.grad) < 1e-4


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-4])
def test_gradient_of_the_rotation_where_singular_values_meet(gap):
    """Near a rotation R the nearest rotation to R + E is R + R (R^T E - E^T R) / 2, whatever the singular values."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    weight, change = rng.standard_normal((2, 3, 3))
    matrix = jnp.asarray(rotation @ np.diag([1 + gap, 1, 1 - gap]), jnp.float32)
    gradient = jax.grad(lambda m: (camera.nearest_rotation(m) * weight).sum())(matrix)
    turned = rotation.T @ change
    wanted = (weight * (rotation @ (turned - turned.T) / 2)).sum()
    assert (np.asarray(gradient) * change).sum() == pytest.approx(wanted, abs=1e-3)
    assert np.isfinite(np.asarray(jax.grad(lambda m: camera.nearest_rotation(m).sum())(jnp.zeros((3, 3))))).all()
    reflection = jnp.diag(jnp.asarray([1.0, 0.5, -0.5]))  # two nearest rotations, so no gradient is right
    assert np.isfinite(np.asarray(jax.grad(lambda m: (camera.nearest_rotation(m) * weight).sum())(reflection))).all()
    assert np.isfinite(np.asarray(jax.grad(lambda m: camera.unit_rows(m).sum())(jnp.zeros((3, 3))))).all()


def test_bad_input():
    cfg = dataclasses.replace(TINY, num_heads=16)
    with pytest.raises(ValueError, match="multiple of 4"):
        frame_rope(cfg, 4, 5, cfg.width // cfg.num_heads)

    abstract = nnx.eval_shape(lambda: Pi3(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="must be"):
        abstract.encode(np.zeros((3, 56, 56, 3), np.float32))
