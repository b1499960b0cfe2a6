"""FlowRVS: schedule, Euler steps, training pairs, boundary-biased sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.systems.flowrvs import flow


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        (1, [1000]),
        (2, [1000, 750]),
        (4, [1000, 900, 750, 501]),
        (8, [1000, 955, 900, 834, 750, 643, 501, 302]),
    ],
)
def test_schedule_of_the_benchmark_script(steps, times):
    assert flow.schedule(steps).timesteps == tuple(times)


def test_schedule_rounds_as_torch(torch):
    for steps in range(1, 101):
        grid = torch.linspace(1.0, 0.001, steps + 1)
        expected = (3 * grid / (1 + 2 * grid) * 1000)[:-1].round()
        assert list(flow.schedule(steps).timesteps) == expected.tolist(), steps


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_demo_schedule_is_the_schedulers_default(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(steps)
    times = flow.schedule(steps, "demo")
    np.testing.assert_allclose(times.timesteps, scheduler.timesteps, rtol=1e-6)
    np.testing.assert_allclose(times.sigmas, scheduler.sigmas, rtol=1e-6)


def test_schedule_rejects_no_steps():
    with pytest.raises(ValueError, match="num_steps must lie in 1..1000, got 0"):
        flow.schedule(0)
    with pytest.raises(ValueError, match="'cosine'"):
        flow.schedule(1, "cosine")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("steps", [1, 3])
def test_euler_steps_equal_diffusers(torch, dtype, steps):
    diffusers = pytest.importorskip("diffusers")
    times = flow.schedule(steps)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(timesteps=list(times.timesteps))
    rng = np.random.default_rng(0)
    start, *velocities = rng.standard_normal((steps + 1, 2, 3, 5)).astype(np.float32)
    expected = torch.tensor(start, dtype=getattr(torch, dtype))
    for time, velocity in zip(scheduler.timesteps, velocities, strict=True):
        expected = scheduler.step(torch.tensor(velocity, dtype=expected.dtype), time, expected, return_dict=False)[0]
    given = iter(velocities)
    found, seen = flow.solve(lambda *_: jnp.asarray(next(given), dtype), jnp.asarray(start, dtype), times)
    assert found.dtype == jnp.dtype(dtype) and len(seen) == steps
    np.testing.assert_allclose(found.astype(jnp.float32), expected.float(), rtol=1e-6, atol=1e-6)


def test_training_pair_is_a_straight_line():
    rng = np.random.default_rng(1)
    video, mask = jnp.asarray(rng.standard_normal((2, 3, 1, 2, 2, 4)), jnp.float32)
    state, velocity = flow.training_pair(video, mask, jnp.asarray([1000.0, 250.0, 0.001]))
    np.testing.assert_array_equal(state[0], video[0])
    np.testing.assert_allclose(state[1], 0.25 * video[1] + 0.75 * mask[1], rtol=1e-6)
    np.testing.assert_allclose(state[2], mask[2] + 1e-5 * velocity[2], rtol=1e-5, atol=1e-6)
    # One step from the start of the path along the velocity ends at the mask.
    np.testing.assert_allclose(flow.euler_step(state[0], velocity[0], 1.0, 0.0), mask[0], atol=1e-6)


def test_boundary_biased_sampling_of_a_batch_is_exact():
    times = jax.vmap(lambda key: flow.boundary_biased_timesteps(key, 7))(jax.random.split(jax.random.key(0), 500))
    at_boundary = np.asarray(times) == 1000
    # floor(7 / 2) are placed there; a uniform draw is clipped to 1000 only from u = 1, which does not occur.
    assert (at_boundary.sum(axis=1) == 3).all()
    assert (np.abs(at_boundary.mean(axis=0) - 3 / 7) < 0.1).all(), "the order is random"
    rest = np.asarray(times)[~at_boundary]
    assert rest.min() == 1 and rest.max() < 1000 and abs(rest.mean() - 500) < 30
    assert (rest == np.floor(rest)).all()


def test_boundary_biased_sampling_of_one_sample_is_a_coin():
    keys = jax.random.split(jax.random.key(3), 2000)
    times = np.asarray(jax.vmap(lambda key: flow.boundary_biased_timesteps(key, 1))(keys))
    assert abs((times == 1000).mean() - 0.5) < 0.05
    always = jax.vmap(lambda key: flow.boundary_biased_timesteps(key, 1, probability=1.0))(keys)
    assert (np.asarray(always) == 1000).all()
    with pytest.raises(ValueError, match=r"0\.\.1, got 1\.5"):
        flow.boundary_biased_timesteps(keys[0], 1, probability=1.5)
