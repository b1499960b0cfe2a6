"""Shared layers against torch, and the stacked-block runner in all its modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.layers import stack
from rvseg_jax.layers.conv import CausalConv3d, Conv
from rvseg_jax.layers.embed import Embed, sinusoidal
from rvseg_jax.layers.linear import Linear, LoraSpec
from rvseg_jax.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from rvseg_jax.layers.norm import LayerNorm, RMSNorm
from rvseg_jax.layers.rope import grid_angles, rotate_interleaved

# Single layers in float32: both sides round a handful of times.
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomise(module: nnx.Module, seed: int = 0) -> None:
    """Gives every parameter random values, so that no scale is one and no bias zero."""
    for index, leaf in enumerate(jax.tree.leaves(nnx.state(module), is_leaf=lambda x: isinstance(x, nnx.Param))):
        leaf[...] = jnp.asarray(array(*leaf[...].shape, seed=seed + index))


@pytest.mark.parametrize("use_bias", [True, False])
def test_linear(torch, use_bias):
    layer = Linear(5, 3, use_bias=use_bias, precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = array(2, 4, 5, seed=9)
    bias = torch.tensor(np.asarray(layer.bias[...])) if use_bias else None
    expected = torch.nn.functional.linear(torch.tensor(x), torch.tensor(np.asarray(layer.kernel[...]).T), bias)
    np.testing.assert_allclose(layer(x), expected, **TOLERANCE)


def test_lora_equals_peft(torch):
    peft = pytest.importorskip("peft")
    layer = Linear(6, 4, lora=LoraSpec(rank=2, alpha=8), precision=PARITY, rngs=nnx.Rngs(0))
    x = array(3, 6)
    plain = np.asarray(layer(x))
    np.testing.assert_array_equal(plain, x @ layer.kernel[...] + layer.bias[...])
    randomise(layer)
    reference = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(6, 4)),
        peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0"], lora_dropout=0.0),
    )
    state = {
        "base_model.model.0.base_layer.weight": layer.kernel,
        "base_model.model.0.lora_A.default.weight": layer.lora_a,
        "base_model.model.0.lora_B.default.weight": layer.lora_b,
    }
    state = {key: torch.tensor(np.asarray(value[...]).T) for key, value in state.items()}
    state["base_model.model.0.base_layer.bias"] = torch.tensor(np.asarray(layer.bias[...]))
    reference.load_state_dict(state)
    np.testing.assert_allclose(layer(x), reference(torch.tensor(x)).detach(), **TOLERANCE)


@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, True), (False, False)])
def test_layer_norm(torch, use_scale, use_bias):
    layer = LayerNorm(7, eps=1e-3, use_scale=use_scale, use_bias=use_bias, precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = 3 * array(4, 7, seed=5) + 2
    scale, bias = (
        torch.tensor(np.asarray(value[...])) if value is not None else None for value in (layer.scale, layer.bias)
    )
    expected = torch.nn.functional.layer_norm(torch.tensor(x), (7,), scale, bias, eps=1e-3)
    np.testing.assert_allclose(layer(x), expected, **TOLERANCE)


def test_rms_norm(torch):
    layer = RMSNorm(7, eps=1e-3, precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = 3 * array(4, 7, seed=5) + 2
    scale = torch.tensor(np.asarray(layer.scale[...]))
    np.testing.assert_allclose(
        layer(x), torch.nn.functional.rms_norm(torch.tensor(x), (7,), scale, eps=1e-3), **TOLERANCE
    )


def test_norm_statistics_are_float32_in_bfloat16():
    # In bfloat16 sums the mean of 512 values near 100 would be off by whole units.
    x = jnp.asarray(100 + array(1, 512), jnp.bfloat16)
    layer = LayerNorm(512, eps=1e-6, precision=BFLOAT16, rngs=nnx.Rngs(0))
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=2**-8 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("gelu", lambda f, x: f.gelu(x)),
        ("gelu_tanh", lambda f, x: f.gelu(x, approximate="tanh")),
        ("silu", lambda f, x: f.silu(x)),
        ("relu", lambda f, x: f.relu(x)),
    ],
)
def test_activations(torch, name, call):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](x), call(torch.nn.functional, torch.tensor(x)), rtol=1e-5, atol=1e-6)


def test_feed_forward_blocks():
    x = array(3, 4)
    mlp = MLP(4, 8, 5, activation="relu", precision=PARITY, rngs=nnx.Rngs(0))
    hidden = np.maximum(x @ mlp.up.kernel[...] + mlp.up.bias[...], 0)
    np.testing.assert_allclose(mlp(x), hidden @ mlp.down.kernel[...] + mlp.down.bias[...], **TOLERANCE)
    gated = GatedMLP(4, 8, activation="relu", precision=PARITY, rngs=nnx.Rngs(0))
    hidden = np.maximum(x @ gated.gate.kernel[...], 0) * (x @ gated.up.kernel[...])
    np.testing.assert_allclose(gated(x), hidden @ gated.down.kernel[...], **TOLERANCE)


def test_sinusoidal_embedding_equals_diffusers(torch):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    times = np.array([0.0, 1.0, 437.0, 1000.0], np.float32)
    expected = embeddings.get_timestep_embedding(torch.tensor(times), 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    # Angles reach 1000: float32 holds them to 6e-5.
    np.testing.assert_allclose(sinusoidal(times, 32), expected, atol=1e-4)
    with pytest.raises(ValueError, match="even width, got 31"):
        sinusoidal(times, 31)


def test_embedding_takes_rows():
    table = Embed(5, 3, precision=PARITY, rngs=nnx.Rngs(0))
    ids = np.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(table(ids), np.asarray(table.embedding[...])[ids])


def test_rotation_is_complex_multiplication():
    angles = grid_angles((2, 1, 3), (4, 2, 2), theta=10_000.0)
    assert angles.shape == (6, 4)
    # Cell (1, 0, 2): the first two pairs turn with t = 1, the third with h = 0, the last with w = 2.
    np.testing.assert_allclose(angles[5], [1, 10_000**-0.5, 0, 2])
    x = array(2, 6, 3, 8)
    turned = rotate_interleaved(jnp.asarray(x), jnp.cos(angles), jnp.sin(angles))
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[None, :, None, :]
    np.testing.assert_allclose(turned[..., 0::2], pairs.real, **TOLERANCE)
    np.testing.assert_allclose(turned[..., 1::2], pairs.imag, **TOLERANCE)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolution(torch, axes):
    sizes, strides, pads = (3, 2, 3)[:axes], (2, 1, 2)[:axes], (1, 0, 1)[:axes]
    layer = Conv(4, 5, sizes, strides=strides, padding=[(pad, pad) for pad in pads], precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = array(2, *(7, 6, 5)[:axes], 4, seed=3)
    convolve = getattr(torch.nn.functional, f"conv{axes}d")
    expected = convolve(
        torch.tensor(np.moveaxis(x, -1, 1)),
        torch.tensor(np.transpose(np.asarray(layer.kernel[...]), (axes + 1, axes, *range(axes)))),
        torch.tensor(np.asarray(layer.bias[...])),
        stride=strides,
        padding=pads,
    )
    np.testing.assert_allclose(np.moveaxis(layer(x), -1, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups,sizes", [(2, (3, 3)), (4, (3, 3)), (2, (3, 1, 3))])
def test_grouped_convolution(torch, groups, sizes):
    axes = len(sizes)
    layer = Conv(4, 8, sizes, padding=[(1, 1)] * axes, groups=groups, precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = array(2, *(5, 4, 6)[:axes], 4, seed=3)
    kernel = torch.tensor(np.transpose(np.asarray(layer.kernel[...]), (axes + 1, axes, *range(axes))))
    assert kernel.shape[1] == 4 // groups
    expected = getattr(torch.nn.functional, f"conv{axes}d")(
        torch.tensor(np.moveaxis(x, -1, 1)),
        kernel,
        torch.tensor(np.asarray(layer.bias[...])),
        padding=1,
        groups=groups,
    )
    np.testing.assert_allclose(np.moveaxis(layer(x), -1, 1), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="3 groups"):
        Conv(4, 8, sizes, groups=3, precision=PARITY, rngs=nnx.Rngs(0))


def test_causal_convolution_sees_no_later_frame_and_runs_in_pieces():
    layer = CausalConv3d(2, 3, (3, 3, 3), precision=PARITY, rngs=nnx.Rngs(0))
    randomise(layer)
    x = array(1, 6, 4, 5, 2)
    whole = layer(x)
    assert whole.shape == (1, 6, 4, 5, 3)
    changed = x.copy()
    changed[:, 4:] = 7
    np.testing.assert_array_equal(layer(changed)[:, :4], whole[:, :4])
    pieces = jnp.concatenate([layer(x[:, :4]), layer(x[:, 4:], history=x[:, 2:4])], axis=1)
    np.testing.assert_allclose(pieces, whole, **TOLERANCE)


def _layer_with_input(block: nnx.Module, carry: jax.Array, layer_input: jax.Array, shared: jax.Array) -> jax.Array:
    return jnp.tanh(block(carry) + layer_input + shared)


@pytest.fixture(scope="module")
def blocks() -> nnx.Module:
    return stack.stacked(lambda rngs: Linear(4, 4, precision=PARITY, rngs=rngs), 5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("mode", ["scan", "unroll", "host_loop"])
def test_stack_equals_a_loop_over_its_slices(blocks, mode):
    x, inputs, shared = array(2, 4), array(5, 2, 4, seed=1), array(4, seed=2)
    y, kept = stack.run(blocks, x, _layer_with_input, shared, per_layer=inputs, mode=mode, taps=(0, 3))
    expected, seen = x, []
    for layer in range(5):
        kernel, bias = blocks.kernel[...][layer], blocks.bias[...][layer]
        expected = np.tanh(expected @ kernel + bias + inputs[layer] + shared)
        seen.append(expected)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept, np.stack([seen[0], seen[3]]), rtol=1e-5, atol=1e-6)


def test_layers_of_a_stack_start_differently(blocks):
    kernels = np.asarray(blocks.kernel[...])
    assert kernels.shape == (5, 4, 4) and stack.length(blocks) == 5
    assert len({kernel.tobytes() for kernel in kernels}) == 5


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("mode", ["scan", "unroll"])
def test_recomputation_changes_no_gradient(blocks, mode, remat):
    graphdef, state = nnx.split(blocks)
    x = array(2, 4)

    def loss(state, remat):
        y, kept = stack.run(nnx.merge(graphdef, state), x, _plain, mode=mode, remat=remat, taps=(1,))
        return jnp.sum(y**2) + jnp.sum(kept)

    expected, found = (jax.grad(loss)(state, choice) for choice in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def _plain(block: nnx.Module, carry: jax.Array) -> jax.Array:
    return jnp.tanh(block(carry))


@pytest.mark.parametrize("taps", [(5,), (2, 1), (0, 0), (-1,)])
def test_taps_must_be_layers(blocks, taps):
    with pytest.raises(ValueError, match="ascending layer numbers below 5"):
        stack.run(blocks, array(2, 4), _plain, taps=taps)
