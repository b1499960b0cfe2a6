"""The optimizer against torch.optim.AdamW with clip_grad_norm_, and the schedules by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvseg_jax.core.config import ConfigError
from rvseg_jax.training import optim
from rvseg_jax.training.config import OptimizerConfig, ScheduleConfig


def rates(config, *, steps=10, steps_per_epoch=1, count=12):
    rate = optim.schedule(config, 2.0, steps=steps, steps_per_epoch=steps_per_epoch)
    return np.asarray([float(rate(jnp.asarray(k))) for k in range(count)])


def test_constant_with_warmup():
    np.testing.assert_allclose(rates(ScheduleConfig(warmup_steps=4)), [0.5, 1.0, 1.5] + [2.0] * 9)
    np.testing.assert_array_equal(rates(ScheduleConfig()), [2.0] * 12)


def test_cosine_with_warmup():
    values = rates(ScheduleConfig(kind="cosine", warmup_steps=2, final=0.1))
    progress = np.clip((np.arange(12) - 2) / 8, 0, 1)
    expected = 2 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress)))
    expected[0] *= 0.5
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert values[1] == 2.0 and values[-1] == pytest.approx(0.2)


def test_multistep_against_torch(torch):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.9)
    expected = []
    for _ in range(6):
        expected += [optimizer.param_groups[0]["lr"]] * 2
        optimizer.step()
        scheduler.step()
    config = ScheduleConfig(kind="multistep", milestones=(2, 4), gamma=0.9)
    np.testing.assert_allclose(rates(config, steps_per_epoch=2), expected, rtol=1e-6)


def run_torch(torch, start, gradients, config, factors):
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [parameter], "lr": config.lr * factors.get(name, 1.0)} for name, parameter in parameters.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    norms = []
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm)))
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}, norms


@pytest.mark.parametrize("scale", [1e-3, 30.0], ids=["below the clip", "above the clip"])
@pytest.mark.parametrize("steps", [1, 3])
def test_adamw_and_clip_against_torch(torch, steps, scale):
    config = OptimizerConfig(lr=5e-3, weight_decay=5e-2, clip_norm=1.0, lr_factors=(("^b", 0.1),))
    rng = np.random.default_rng(steps)
    start = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(5,))}
    start = {name: value.astype(np.float32) for name, value in start.items()}
    gradients = [
        {name: (scale * rng.normal(size=value.shape)).astype(np.float32) for name, value in start.items()}
        for _ in range(steps)
    ]
    expected, norms = run_torch(torch, start, gradients, config, {"b": 0.1})

    transform = optim.optimizer(config, lambda count: jnp.float32(config.lr))
    params = jax.tree.map(jnp.asarray, start)
    state = transform.init(params)
    for gradient, norm in zip(gradients, norms, strict=True):
        assert float(optim.global_norm(jax.tree.map(jnp.asarray, gradient))) == pytest.approx(norm, rel=1e-6)
        updates, state = transform.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-6, atol=1e-7)
        # The way travelled is 1e-3 of the values, and optax has Adam's bias correction in float32, where
        # 1 - 0.999 is good to 1.3e-5 only.
        np.testing.assert_allclose(params[name] - start[name], value - start[name], rtol=1e-4, atol=3e-7)


def test_clip_has_torchs_epsilon(torch):
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([3e-7, 0.0, 4e-7])
    torch.nn.utils.clip_grad_norm_([parameter], 2e-7)
    clipped, _ = optim.clip_by_global_norm(2e-7).update({"w": jnp.asarray([3e-7, 0.0, 4e-7])}, optax.EmptyState())
    # Without the epsilon the coefficient would be 0.4 instead of 0.1333.
    np.testing.assert_allclose(clipped["w"], parameter.grad.numpy(), rtol=1e-6)


def test_clip_keeps_a_small_gradient_bit_for_bit():
    gradient = {"w": jnp.asarray([0.1, -0.2])}
    clipped, _ = optim.clip_by_global_norm(1.0).update(gradient, optax.EmptyState())
    np.testing.assert_array_equal(clipped["w"], gradient["w"])


def test_decay_by_path():
    config = OptimizerConfig(lr=1.0, weight_decay=0.5, decay=("kernel$",), clip_norm=0.0)
    transform = optim.optimizer(config, lambda count: jnp.float32(1.0))
    params = {"layer": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_array_equal(updates["layer"]["kernel"], [-0.5, -0.5])
    np.testing.assert_array_equal(updates["layer"]["bias"], [0.0, 0.0])


def test_moments_have_the_format_of_the_parameters():
    transform = optim.optimizer(OptimizerConfig(weight_decay=0.1), lambda count: jnp.float32(1e-3))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    updates, state = transform.update(params, transform.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    moments = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    assert moments == [jnp.bfloat16, jnp.bfloat16]


def test_multistep_counts_epochs_or_steps():
    by_epoch = ScheduleConfig(kind="multistep", milestones=(2,), gamma=0.1)
    by_step = ScheduleConfig(kind="multistep", milestones=(7,), gamma=0.1, milestone_unit="steps")
    for config, first in ((by_epoch, 10), (by_step, 7)):
        rate = optim.schedule(config, 1.0, steps=100, steps_per_epoch=5)
        np.testing.assert_allclose([rate(first - 1), rate(first)], [1.0, 0.1], rtol=1e-6)


def test_muon_orthogonalises_the_kernels_that_ask_for_it():
    config = OptimizerConfig(lr=1.0, muon=("kernel$",), betas=(0.9, 0.99), clip_norm=0.0)
    transform = optim.optimizer(config, lambda count: jnp.float32(1.0))
    rng = np.random.default_rng(0)
    gradient = {"blocks": {"kernel": jnp.asarray(rng.normal(size=(3, 8, 16)), jnp.float32)}, "bias": jnp.ones(4)}
    updates, _ = transform.update(gradient, transform.init(gradient), gradient)
    # Newton-Schulz brings all singular values near 1; the update is scaled to a root mean square of about 0.2.
    for layer in updates["blocks"]["kernel"]:
        values = np.linalg.svd(np.asarray(layer) / (optim.MUON_RMS * 4), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
    plain, _ = optim.optimizer(config.__class__(lr=1.0, clip_norm=0.0), lambda _: jnp.float32(1.0)).update(
        gradient, optim.optimizer(OptimizerConfig(), lambda _: jnp.float32(1.0)).init(gradient), gradient
    )
    np.testing.assert_allclose(updates["bias"], plain["bias"], rtol=1e-5)


@pytest.mark.parametrize(("pattern", "text"), [("bias$", "name kernels"), ("nothing", "matches no trained")])
def test_muon_refuses_what_is_no_matrix(pattern, text):
    transform = optim.optimizer(OptimizerConfig(muon=(pattern,)), lambda count: jnp.float32(1.0))
    with pytest.raises(ConfigError, match=text):
        transform.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
