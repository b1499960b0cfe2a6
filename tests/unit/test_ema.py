"""The moving average against diffusers' EMAModel and against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.training import ema


def test_decay_by_hand():
    values = [float(ema.decay(jnp.asarray(s), 0.9999)) for s in (0, 1, 2, 90, 89_989, 89_991, 10**6)]
    # (1 + 89989) / (10 + 89989) is just below the cap of 0.9999; float32 is good to 6e-8 there.
    expected = [0.0, 2 / 11, 3 / 12, 91 / 100, 89_990 / 89_999, 0.9999, 0.9999]
    np.testing.assert_allclose(values, expected, rtol=2e-7)


def test_first_update_copies_and_the_average_is_float32():
    start = ema.init({"w": jnp.asarray([1.0, 2.0], jnp.bfloat16)})
    assert start["w"].dtype == jnp.float32
    after = ema.update(start, {"w": jnp.asarray([5.0, -3.0], jnp.bfloat16)}, jnp.asarray(0), 0.9999)
    np.testing.assert_array_equal(after["w"], np.asarray([5.0, -3.0], np.float32))
    assert after["w"].dtype == jnp.float32


@pytest.mark.parametrize("max_decay", [0.9999, 0.5])
def test_against_diffusers(torch, max_decay):
    training_utils = pytest.importorskip("diffusers.training_utils")
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(25)]
    parameter = torch.nn.Parameter(torch.tensor(values[0]))
    reference = training_utils.EMAModel([parameter], decay=max_decay)
    average = ema.init({"w": jnp.asarray(values[0])})
    for updates, value in enumerate(values):
        with torch.no_grad():
            parameter.copy_(torch.tensor(value))
        reference.step([parameter])
        average = ema.update(average, {"w": jnp.asarray(value)}, jnp.asarray(updates), max_decay)
        expected = reference.shadow_params[0].numpy()
        # Same operations in float32; only the decay itself is rounded from double on torch's side.
        np.testing.assert_allclose(average["w"], expected, rtol=1e-6, atol=1e-6)
