"""DINOv2 with registers against transformers, at the size of its table of positions and at others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.dinov2.encoder import Dinov2, Dinov2Config

TINY = dataclasses.replace(Dinov2Config.tiny(), embed_dim=48, num_heads=3, depth=3, num_register_tokens=2)
SIZES = [(56, 56), (42, 98), (84, 84)]
VALUES = 1e-5


@pytest.fixture(scope="module")
def original(torch):
    """transformers' model with random weights in every tensor, at scales where each branch counts."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=TINY.embed_dim,
        num_hidden_layers=TINY.depth,
        num_attention_heads=TINY.num_heads,
        patch_size=TINY.patch_size,
        image_size=TINY.image_size,
        num_register_tokens=TINY.num_register_tokens,
        layer_norm_eps=TINY.norm_eps,
    )
    model = transformers.Dinov2WithRegistersModel(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            drawn = rng.standard_normal(tensor.shape)
            if tensor.ndim > 1 and "embeddings" not in name:
                drawn /= np.sqrt(np.prod(tensor.shape[1:]))
            elif "norm" in name and name.endswith("weight"):
                drawn = 1 + 0.2 * drawn
            elif tensor.ndim == 1:
                drawn = 0.5 * drawn
            tensor.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return model


@pytest.fixture(scope="module")
def weights(original):
    return {key: value.numpy().copy() for key, value in original.state_dict().items()}


def relative(ours, theirs) -> float:
    theirs = np.asarray(theirs, np.float32)
    assert np.shape(ours) == theirs.shape
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def images(size, count=2):
    return np.random.default_rng(sum(size)).standard_normal((count, *size, 3)).astype(np.float32)


def run_reference(torch, model, given):
    pixels = torch.from_numpy(np.moveaxis(given, -1, 1).copy()).to(model.dtype)
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state.float().numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens(torch, original, weights, size):
    model = from_torch("dinov2", weights, TINY)
    graph, state = nnx.split(model)
    given = images(size)
    found = jax.jit(lambda state, given: nnx.merge(graph, state)(given))(state, given)
    wanted = run_reference(torch, original, given)
    first = 1 + TINY.num_register_tokens
    assert relative(found.cls, wanted[:, 0]) < VALUES
    assert relative(found.registers, wanted[:, 1:first]) < VALUES
    assert relative(found.patches, wanted[:, first:]) < VALUES


def test_one_block_at_a_time(weights):
    model = from_torch("dinov2", weights, TINY)
    given = images((28, 42), count=1)
    scanned, looped = (model(given, mode=mode) for mode in ("scan", "host_loop"))
    assert relative(looped.patches, scanned.patches) < 1e-6


def test_gradients(torch, original, weights):
    given = images((28, 42))
    pixels = torch.from_numpy(np.moveaxis(given, -1, 1).copy())
    weight = np.random.default_rng(5).standard_normal((2, 6, TINY.embed_dim)).astype(np.float32)
    original.zero_grad()
    patches = original(pixel_values=pixels).last_hidden_state[:, -6:]
    (patches * torch.from_numpy(weight)).sum().backward()
    graph, state = nnx.split(from_torch("dinov2", weights, TINY))

    @jax.jit
    def loss(state):
        return (nnx.merge(graph, state)(given, remat="full").patches * weight).sum()

    exported = to_torch("dinov2", nnx.merge(graph, jax.grad(loss)(state)), layout="transformers")
    renamed = {
        f"{short}_proj": f"attention.{name}" for short, name in zip("qkv", ("query", "key", "value"), strict=True)
    }
    renamed["o_proj"] = "output.dense"
    wanted = {}
    for name, parameter in original.named_parameters():
        for short, long in renamed.items():
            name = name.replace(short, long)
        if parameter.grad is not None:
            wanted[name] = parameter.grad.numpy()
    assert exported.keys() == wanted.keys()
    largest = max(np.abs(value).max() for value in wanted.values())
    for name, value in wanted.items():
        if name.endswith("key.bias"):  # adds the same to all scores of a query, so that nothing depends on it
            assert max(np.abs(exported[name]).max(), np.abs(value).max()) < 1e-6 * largest
        else:
            assert relative(exported[name], value) < 1e-4, name


def test_bfloat16_is_as_near_as_torch(torch, original, weights):
    given = images((56, 56))
    exact = run_reference(torch, original, given)[:, 3:]
    found = from_torch("dinov2", weights, TINY, precision=BFLOAT16)(given).patches
    assert found.dtype == jnp.bfloat16
    theirs = run_reference(torch, original.bfloat16(), given)[:, 3:]
    original.float().load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    ours = np.abs(np.asarray(found, np.float32) - exact).mean()
    assert 1e-4 * np.abs(exact).mean() < ours < 1.25 * np.abs(theirs - exact).mean()


@pytest.mark.parametrize("antialias,offset", [(False, 0.0), (True, 0.1), (False, 0.1)])
def test_positions_are_resized_as_the_config_says(torch, random_leaves, antialias, offset):
    cfg = dataclasses.replace(TINY, interpolate_antialias=antialias, interpolate_offset=offset)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Dinov2(cfg, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, random_leaves(shapes))
    table = torch.from_numpy(np.array(model.pos_embed[1:])).T.reshape(1, -1, cfg.grid, cfg.grid)
    size: dict = {"size": (3, 7)} if not offset else {"scale_factor": (3.1 / cfg.grid, 7.1 / cfg.grid)}
    wanted = torch.nn.functional.interpolate(table, mode="bicubic", antialias=antialias, **size)
    assert relative(model._positions(3, 7), np.moveaxis(wanted[0].numpy(), 0, -1)) < 1e-5


def test_images_must_fit_the_patches():
    model = nnx.eval_shape(lambda: Dinov2(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"\(1, 30, 28, 3\) must be"):
        model(np.zeros((1, 30, 28, 3), np.float32))
