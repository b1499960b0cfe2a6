"""GeoMotion's network against its golden cases, and its trained part against torch, values and gradients."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, registry, to_torch
from rvseg_jax.convert.engine import plan_for
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.fusion import FlowEncoder
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.parity import golden as golden_cases
from rvseg_jax.parity import kinds
from rvseg_jax.parity.compare import compare
from rvseg_jax.parity.weights_rule import rule_weights
from rvseg_jax.processing.imagenet import DEVIATION, MEAN

TINY = GeoMotionConfig.tiny()
SHAPE = (1, 3, 56, 70)
TRAINED = ("motion_aware_decoder.", "conf_decoder.", "conf_head.")
# Keys of all queries move alike by these, so that nothing depends on them.
FLAT = "attn.qkv.bias"


@pytest.fixture(scope="module")
def weights():
    """Under upstream's names, at scales where each branch counts."""
    plan, _ = plan_for(registry.part("pi3_motion"), TINY)
    return rule_weights({key: list(shape) for key, shape in plan.key_shapes.items()}, 0)


@pytest.fixture(scope="module")
def model(weights):
    return from_torch("pi3_motion", weights, TINY)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    video = rng.uniform(0, 1, (*SHAPE, 3)).astype(np.float32)
    return video, rng.gamma(1.0, 4.0, SHAPE).astype(np.float32)


def relative(ours, theirs) -> float:
    theirs = np.asarray(theirs, np.float32)
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", ["a_3x42x56", "b_batch2_56x28"])
def test_golden_case_passes(golden, name):
    case = golden_cases.read(golden / "geomotion" / f"{name}.json")
    report = compare(case, kinds.run(case))
    assert report.passed, [row for row in report.rows if not row.passed]
    assert all(row.status == "ok" for row in report.rows), "every tap is exposed"


def test_trained_part_and_its_gradients(torch, weights, model, inputs):
    import torch_pi3

    video, flow = inputs
    graph, state = nnx.split(model)
    weight = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)

    @jax.jit
    def run(state):
        def loss(state):
            model = nnx.merge(graph, state)
            found = model.features(video)
            logits = model.motion(found, flow, remat="full")
            return (logits * weight).sum(), (logits, found)

        return jax.grad(loss, has_aux=True)(state)

    gradient, (logits, found) = run(state)
    theirs = torch_pi3.Motion(TINY)
    own = {key: torch.from_numpy(value) for key, value in weights.items() if key.startswith(TRAINED)}
    theirs.load_state_dict(own)
    low, high, camera = (torch.from_numpy(np.array(one)) for one in (found.low, found.high, found.camera))
    wanted = theirs(low, high, camera, torch.from_numpy(flow[0]))
    assert relative(logits[0], wanted.detach()) < 1e-5
    (wanted * torch.from_numpy(weight[0])).sum().backward()
    exported = to_torch("pi3_motion", nnx.merge(graph, gradient))
    named = dict(theirs.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in named.values())
    for key, value in exported.items():
        if key not in named:
            assert not value.any(), f"{key} is frozen"
            continue
        grad = named[key].grad.numpy()
        if key.endswith(FLAT):  # its middle third is zero but for rounding
            assert np.abs(value - grad).max() < 1e-5 * largest, key
        else:
            assert relative(value, grad) < 1e-4, key


def test_whole_call_agrees_with_its_parts(model, inputs):
    """And blocks one by one with all in one program; without a flow the sizes must allow it."""
    video, flow = inputs
    graph, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(graph, state)
        return model(video, flow, geometry=True), model.motion(model.features(video), flow), model(video, None)

    whole, parts, without = run(state)
    assert relative(whole.logits, parts) < 1e-6
    assert whole.geometry.conf is None and whole.geometry.points.shape == (*SHAPE, 3)
    assert relative(whole.logits, without.logits) > 1e-2
    looped = model(video, flow, mode="host_loop")
    assert looped.geometry is None and relative(looped.logits, whole.logits) < 1e-5


@pytest.mark.parametrize("channels", [(4, 8, 16), (32, 64, 128)])
def test_windows_hold_all_that_counts(random_leaves, channels):
    """The features from a window in each patch are those from whole frames, and their gradients too."""
    cfg = dataclasses.replace(TINY, flow_channels=channels)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: FlowEncoder(cfg, rngs=nnx.Rngs(0))))
    state = random_leaves(shapes)
    flow = np.random.default_rng(0).gamma(1.0, 4.0, (2, 42, 56)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((2, 12, channels[-1])).astype(np.float32)

    def loss(state, flow, name):
        found = getattr(nnx.merge(graph, state), name)(flow)
        return (found * weight).sum(), found

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    (fast, seen), windows = run(state, flow, "in_windows")
    (slow, looked), frames = run(state, flow, "on_whole_frames")
    assert relative(windows, frames) < 1e-6
    for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        assert relative(ours, theirs) < 1e-5
    assert relative(seen, looked) < 1e-5
    inside = np.asarray(looked)[0, :14, :14] != 0
    assert inside[3:11, 3:11].any() and not inside[:3].any() and not inside[11:].any() and not inside[:, 11:].any()


def test_the_form_of_the_flow_branch_is_a_setting():
    for windows in (True, False):
        cfg = dataclasses.replace(TINY, flow_windows=windows)
        assert nnx.eval_shape(lambda cfg=cfg: FlowEncoder(cfg, rngs=nnx.Rngs(0))).windows is windows


def test_published_weights_see_images_normalised_twice(weights, inputs):
    video, flow = inputs
    once = from_torch("pi3_motion", weights, dataclasses.replace(TINY, normalise_twice=False))
    twice = from_torch("pi3_motion", weights, TINY)
    frames = [
        np.asarray(model.features(given, mode="host_loop").camera)
        for model, given in ((once, (video - MEAN) / DEVIATION), (twice, video), (once, video))
    ]
    assert relative(frames[0], frames[1]) < 1e-6 < 1e-2 < relative(frames[2], frames[1])


def test_bfloat16_runs_with_logits_in_float32(weights, inputs):
    found = from_torch("pi3_motion", weights, TINY, precision=BFLOAT16)
    graph, state = nnx.split(found)
    logits = jax.jit(lambda state: nnx.merge(graph, state)(*inputs).logits)(state)
    exact = from_torch("pi3_motion", weights, TINY)(*inputs, mode="host_loop").logits
    assert logits.dtype == np.float32
    error = np.abs(np.asarray(logits - exact)).mean() / np.abs(np.asarray(exact)).mean()
    assert 1e-4 < error < 0.05


def test_flow_must_be_of_the_video(inputs):
    video, flow = inputs
    abstract = nnx.eval_shape(lambda: GeoMotion(TINY, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    with pytest.raises(ValueError, match=r"flow \(1, 2, 56, 70\) must be \(1, 3, 56, 70\)"):
        jax.eval_shape(lambda state: nnx.merge(graph, state)(video, flow[:, :2]).logits, state)
    narrow = dataclasses.replace(TINY, feature_width=32)
    graph, state = nnx.split(nnx.eval_shape(lambda: GeoMotion(narrow, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="32 wide needs a flow"):
        jax.eval_shape(lambda state: nnx.merge(graph, state)(video, None).logits, state)
