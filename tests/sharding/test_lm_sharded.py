"""The language model and its adapters give the same on every mesh: rows cut, tokens cut, weights cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rvseg_jax.core.tree_paths import flatten, matches, unflatten
from rvseg_jax.layers import lora
from rvseg_jax.layers.linear import LoraSpec
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import SHARDING, LanguageModel
from rvseg_jax.models.lm.generate import GenerationOptions, generate
from rvseg_jax.parallel import AXES, DEFAULT_RULES, make_mesh, pjit, shardings

EVEN = LanguageModelConfig.tiny()
# One head of keys and values and 121 words, which two devices cannot share; the head is the table of embeddings.
ODD = dataclasses.replace(EVEN, num_key_value_heads=1, vocab_size=121, tie_word_embeddings=True)
# Everything cut; then one device, weights cut, rows and weights cut. A step compiles for a quarter of a minute.
EVERYTHING = (1, 2, 2, 2)
OTHERS = [*((EVEN, sizes) for sizes in ((1, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2))), (ODD, EVERYTHING)]
CASES = [(EVEN, EVERYTHING), *(pytest.param(cfg, sizes, marks=pytest.mark.slow) for cfg, sizes in OTHERS)]
LENGTHS = np.array([16, 3, 9, 16, 7, 12, 1, 15])


def inputs(cfg):
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (8, 16)).astype(np.int32)
    return ids, np.arange(16) < LENGTHS[:, None]


@functools.cache
def parameters(random_leaves, cfg):
    """Graph and parameters of a model with adapters on all layers of its stack."""

    def make():
        model = LanguageModel(cfg, rngs=nnx.Rngs(0))
        return lora.add(model, r"_proj$|mlp/", LoraSpec(rank=4, alpha=8), nnx.Rngs(1))

    graph, shapes = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(random_leaves(shapes, seed=1))


def loss(graph, params, ids, valid):
    """Mean cross-entropy of the next token, and the states."""
    model = nnx.merge(graph, params)
    states, _ = model(model.embed(ids), valid=valid, remat="full")
    scores = jax.nn.log_softmax(model.logits(states)[:, :-1])
    taken = jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(taken * valid[:, 1:]) / jnp.sum(valid[:, 1:]), states


@functools.cache
def on_one_device(random_leaves, cfg):
    graph, params = parameters(random_leaves, cfg)
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    return jax.device_get(jax.jit(function)(params, *inputs(cfg)))


@pytest.mark.parametrize(("cfg", "sizes"), CASES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(cfg, sizes, random_leaves):
    (wanted_loss, wanted), wanted_gradient = on_one_device(random_leaves, cfg)
    graph, params = parameters(random_leaves, cfg)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices=jax.devices()[: np.prod(sizes)])
    where = shardings(params, SHARDING, DEFAULT_RULES, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "seq"))
    whole = NamedSharding(mesh, PartitionSpec())
    function = jax.value_and_grad(functools.partial(loss, graph), has_aux=True)
    with jax.set_mesh(mesh):
        step = pjit(function, in_shardings=(where, rows, rows), out_shardings=((whole, rows), where))
        (found_loss, found), gradient = step(jax.tree.map(jax.device_put, params, where), *inputs(cfg))
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    valid = inputs(cfg)[1]
    np.testing.assert_allclose(np.asarray(found)[valid], wanted[valid], atol=1e-5 * np.abs(wanted).max(), rtol=0)
    gradient, wanted_gradient = flatten(gradient), flatten(wanted_gradient)
    largest = max(np.abs(leaf).max() for leaf in wanted_gradient.values())
    for path, theirs in wanted_gradient.items():
        assert np.abs(theirs).max() > 0, path
        np.testing.assert_allclose(gradient[path], theirs, atol=1e-5 * largest, rtol=0, err_msg=path)


def test_answers_do_not_depend_on_the_mesh(random_leaves):
    graph, params = parameters(random_leaves, EVEN)
    ids, valid = inputs(EVEN)
    options = GenerationOptions(max_new_tokens=6, repetition_penalty=1.5)

    def answers(params):
        model = nnx.merge(graph, params)
        return jax.device_get(generate(model, model.embed(ids), valid, prompt_ids=ids, options=options))

    wanted = answers(params)
    assert len(np.unique(wanted.tokens)) >= 10
    mesh = make_mesh(dict(zip(AXES, EVERYTHING, strict=True)))
    with jax.set_mesh(mesh):
        found = answers(jax.tree.map(jax.device_put, params, shardings(params, SHARDING, DEFAULT_RULES, mesh)))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.hidden, wanted.hidden, atol=1e-5 * np.abs(wanted.hidden).max(), rtol=0)


def test_what_is_cut():
    """At 7B every large leaf is cut in sixteen; adapters are cut as their kernels, but for the rank."""

    def make():
        model = LanguageModel(LanguageModelConfig.qwen2_5_7b(), rngs=nnx.Rngs(0))
        return lora.add(model, r"_proj$|mlp/", LoraSpec(rank=64, alpha=128), nnx.Rngs(1))

    shapes = flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make))))
    mesh = AbstractMesh((1, 4, 1, 4), AXES)
    found = flatten(shardings(unflatten(shapes), SHARDING, DEFAULT_RULES, mesh))
    assert found["layers/self_attn/q_proj/kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert found["layers/self_attn/v_proj/lora_a"].spec == PartitionSpec(None, "fsdp", None)
    assert found["layers/self_attn/v_proj/lora_b"].spec == PartitionSpec(None, None, "tensor")
    assert found["layers/mlp/down/lora_a"].spec == PartitionSpec(None, "tensor", None)
    assert found["lm_head/kernel"].spec == PartitionSpec("fsdp", "tensor")
    held = {path: np.prod(found[path].shard_shape(leaf.shape)) for path, leaf in shapes.items()}
    base = [path for path in shapes if not matches(path, (lora.TRAINABLE,))]
    total = sum(shapes[path].size for path in base)
    assert sum(held[path] for path in base) < 1.01 * total / 16
