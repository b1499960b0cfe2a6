"""Low-rank adapters: added by path, merged and unmerged, dropped out, trained alone, and exchanged with PEFT."""

import dataclasses
import json
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from rvseg_jax.convert import peft, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.peft_config import PeftConfig, written
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import BFLOAT16, PARITY
from rvseg_jax.core.tree_paths import flatten
from rvseg_jax.layers import lora
from rvseg_jax.layers.linear import LoraSpec
from rvseg_jax.models.dinov2.encoder import Dinov2, Dinov2Config
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.training.config import OptimizerConfig, ScheduleConfig
from rvseg_jax.training.optim import optimizer, schedule
from rvseg_jax.training.state import trainable

TINY = LanguageModelConfig.tiny()
INTERNLM2 = dataclasses.replace(TINY, attention_bias=False)
SPEC = LoraSpec(rank=4, alpha=10)
ALL = r"_proj$|mlp/"


@cache
def random_model(random_leaves, cfg=TINY, pattern=ALL, spec=SPEC):
    """A model with random weights, and with random adapters where there is a pattern."""

    def make():
        model = LanguageModel(cfg, rngs=nnx.Rngs(0))
        return lora.add(model, pattern, spec, nnx.Rngs(1)) if pattern else model

    graph, shapes = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, random_leaves(shapes))


@cache
def compiled(graph):
    def run(state, ids):
        model = nnx.merge(graph, state)
        return model(model.embed(ids), mode="unroll")[0].astype(jnp.float32)

    return jax.jit(run)


def states(model) -> np.ndarray:
    graph, state = nnx.split(model)
    ids = np.random.default_rng(0).integers(0, model.cfg.vocab_size, (2, 6))
    return np.asarray(compiled(graph)(state, ids))


def largest(a, b) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(np.asarray(a, np.float32) - b).max() / np.abs(np.asarray(b, np.float32)).max())


def leaves(model) -> dict:
    return flatten(nnx.to_pure_dict(nnx.state(model)))


def test_new_adapters_change_nothing_and_leave_the_model_alone(random_leaves):
    plain = random_model(random_leaves, pattern="")
    adapted = lora.add(plain, r"self_attn/(q|v)_proj$", SPEC, nnx.Rngs(0))
    assert set(lora.adapters(adapted)) == {"layers/self_attn/q_proj", "layers/self_attn/v_proj"}
    assert not lora.adapters(plain) and set(leaves(plain)) < set(leaves(adapted))
    np.testing.assert_array_equal(states(adapted), states(plain))
    a = leaves(adapted)["layers/self_attn/q_proj/lora_a"]
    assert a.shape == (2, 48, 4) and a.dtype == jnp.float32
    assert np.abs(a).max() <= 48**-0.5 and np.std(a) == pytest.approx((3 * 48) ** -0.5, rel=0.1)
    assert largest(a[0], a[1]) > 0.5
    with pytest.raises(InputError, match=r"no linear layer's path matches 'qkv'.*layers/"):
        lora.add(plain, "qkv", SPEC, nnx.Rngs(0))
    with pytest.raises(InputError, match="layers/self_attn/q_proj has an adapter already"):
        lora.add(adapted, "q_proj", SPEC, nnx.Rngs(0))
    with pytest.raises(ValueError, match="rank must be 1 or more"):
        LoraSpec(rank=0, alpha=1)


def test_adapters_of_any_model():
    model = nnx.eval_shape(lambda: Dinov2(Dinov2Config.tiny(), rngs=nnx.Rngs(0)))
    assert {"blocks/attn/proj", "blocks/mlp/up", "blocks/mlp/down"} <= set(lora.linears(model))
    adapted = nnx.eval_shape(lambda: lora.add(model, r"mlp/up$", SPEC, nnx.Rngs(0)))
    assert set(lora.adapters(adapted)) == {"blocks/mlp/up"}


def test_merged_and_unmerged_agree(random_leaves):
    adapted = random_model(random_leaves)
    wanted = states(adapted)
    assert largest(states(lora.remove(adapted)), wanted) > 0.1
    merged, folded = lora.merge(adapted)
    assert not lora.adapters(merged) and nnx.graphdef(merged) == nnx.graphdef(lora.remove(adapted))
    assert largest(states(merged), wanted) < 1e-5
    restored = lora.unmerge(merged, folded)
    assert nnx.graphdef(restored) == nnx.graphdef(adapted)
    assert largest(states(restored), wanted) < 1e-5
    with pytest.raises(InputError, match="no adapter to merge"):
        lora.merge(merged)


def test_unmerging_bfloat16_is_exact_with_the_kernels(random_leaves):
    adapted = random_model(random_leaves, dataclasses.replace(TINY, precision=BFLOAT16))
    kernels = {path for path in leaves(adapted) if path.endswith("kernel")}
    assert {leaves(adapted)[path].dtype for path in kernels} == {jnp.dtype(jnp.bfloat16)}
    merged, folded = lora.merge(adapted, keep_kernels=True)
    assert largest(states(merged), states(adapted)) < 0.1
    restored = leaves(lora.unmerge(merged, folded))
    for path, leaf in leaves(adapted).items():
        np.testing.assert_array_equal(restored[path], leaf, err_msg=path)
    # Without them a rounding stays, which is why they can be kept.
    rough = leaves(lora.unmerge(merged, dataclasses.replace(folded, kernels={})))
    assert any(np.any(rough[path] != leaves(adapted)[path]) for path in kernels)


def test_dropout_by_keys(random_leaves):
    spec = dataclasses.replace(SPEC, dropout=0.5)
    graph, state = nnx.split(random_model(random_leaves, pattern=r"q_proj$", spec=spec))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, TINY.hidden_size)), jnp.float32)

    @jax.jit
    def run(state, key):
        model = lora.with_dropout(nnx.merge(graph, state), key)
        return model(x, remat="full")[0], nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    found, used = zip(*(run(state, key) for key in keys), strict=True)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3
    own = jax.random.key_data(used[0]["layers"]["self_attn"]["q_proj"]["lora_key"])
    assert len(own) == TINY.num_hidden_layers and np.any(own[0] != own[1])
    # Without keys nothing is dropped.
    assert np.abs(nnx.merge(graph, state)(x)[0] - found[0]).max() > 1e-3
    # On one layer: half of the inputs count twice, so that the mean stays.
    layer = dataclasses.replace(spec, rank=1)
    inputs = jnp.ones((4096, 8))
    linear = lora.Linear(8, 1, lora=layer, precision=PARITY, rngs=nnx.Rngs(0))
    linear.lora_a[...], linear.lora_b[...] = jnp.ones((8, 1)), jnp.ones((1, 1))
    added = lora.with_dropout(linear, jax.random.key(0))(inputs) - inputs @ linear.kernel[...]
    counts, where = np.unique(np.round(np.asarray(added) / (2 * layer.scale), 4), return_counts=True)
    assert set(counts) <= set(range(9)) and len(counts) > 4
    assert np.sum(counts * where) / where.sum() == pytest.approx(4, abs=0.1)


def test_a_frozen_base_has_no_slots_in_the_optimizer(random_leaves):
    model = random_model(random_leaves, dataclasses.replace(TINY, precision=BFLOAT16))
    params, frozen = trainable(nnx.to_pure_dict(nnx.state(model)), (lora.TRAINABLE, r"^norm/scale$"))
    assert {path.split("/")[-1] for path in flatten(params)} == {"lora_a", "lora_b", "scale"}
    assert {leaf.dtype for leaf in flatten(frozen).values()} == {jnp.dtype(jnp.bfloat16)}
    config = OptimizerConfig()
    transform = optimizer(config, schedule(ScheduleConfig(), 1e-3, steps=10, steps_per_epoch=10))
    slots = [leaf for leaf in jax.tree.leaves(jax.eval_shape(transform.init, params)) if leaf.ndim]
    assert sum(leaf.size for leaf in slots) == 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    adapters = [leaf for path, leaf in flatten(params).items() if "lora" in path]
    assert {leaf.dtype for leaf in adapters} == {jnp.dtype(jnp.float32)}


def test_rules_of_a_table_reach_its_adapters():
    table = lora.sharding(((r"^layers/q/kernel$", ("layers", "embed", "heads")), (r"/scale$", ())))
    assert table[1:3] == (
        (r"^layers/q/lora_a$", ("layers", "embed", None)),
        (r"^layers/q/lora_b$", ("layers", None, "heads")),
    )
    assert len(table) == 4


def test_live_peft(torch, tmp_path, random_leaves):
    """What PEFT saves gives PEFT's states here, and what we save gives ours there."""
    live = pytest.importorskip("peft")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **{name: getattr(TINY, name) for name in ("vocab_size", "hidden_size", "intermediate_size")},
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": TINY.rope_theta, "rope_type": "default"},
        tie_word_embeddings=False,
    )
    base = Qwen2ForCausalLM(config).eval()
    plain = from_torch("qwen2", {key: value.numpy() for key, value in base.state_dict().items()}, TINY)
    settings = live.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.05)
    settings.rank_pattern, settings.alpha_pattern = {"down_proj": 2}, {"down_proj": 3}
    wrapped = live.get_peft_model(base, settings).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    wrapped.save_pretrained(tmp_path / "theirs")
    table = registry.part("qwen2").table(TINY)
    ours = peft.load(plain, table, tmp_path / "theirs")
    assert lora.adapters(ours)["layers/mlp/down"].spec == LoraSpec(2, 3, 0.05)
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 6))

    def reference(model):
        with torch.no_grad():
            return model(input_ids=torch.as_tensor(ids), output_hidden_states=True).hidden_states[-1].numpy()

    wanted = reference(wrapped)
    assert largest(states(ours), wanted) < 1e-5 < largest(states(plain), wanted)
    other = random_model(random_leaves, spec=LoraSpec(3, 7, 0.1))
    changed = lora.attach(plain, lora.adapters(other))
    peft.save(changed, table, tmp_path / "ours", base="Qwen")
    again = live.PeftModel.from_pretrained(wrapped.unload(), tmp_path / "ours").eval()
    assert largest(states(changed), reference(again)) < 1e-5
    assert set(again.peft_config["default"].target_modules) == {
        *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")),
    }


def fused_adapter(weights, rank=3):
    """Random matrices on every linear layer of an InternLM2 checkpoint, under PEFT's keys."""
    rng = np.random.default_rng(5)
    made = {}
    for key, value in weights.items():
        if value.ndim == 2 and key.startswith("model.layers."):
            module = f"base_model.model.{key.removesuffix('.weight')}"
            made[f"{module}.lora_A.weight"] = rng.standard_normal((rank, value.shape[1])).astype(np.float32)
            made[f"{module}.lora_B.weight"] = rng.standard_normal((value.shape[0], rank)).astype(np.float32)
    return made


def test_fused_projections(random_leaves, tmp_path):
    """W + s B A of the fused matrix, cut as the table cuts W, is what our adapters make of the pieces."""
    plain = random_model(random_leaves, INTERNLM2, pattern="")
    table = registry.part("internlm2").table(INTERNLM2)
    weights = to_torch("internlm2", plain)
    adapter = fused_adapter(weights)
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    adapted = peft.load(plain, table, (settings, adapter))
    merged = leaves(lora.merge(adapted)[0])
    name = "base_model.model.{}.lora_{}.weight"
    for key in weights:
        if (matrix := name.format(key.removesuffix(".weight"), "A")) in adapter:
            update = adapter[name.format(key.removesuffix(".weight"), "B")] @ adapter[matrix]
            weights[key] = weights[key] + 2 * update
    wanted = leaves(from_torch("internlm2", weights, INTERNLM2))
    assert set(merged) == set(wanted)
    for path, leaf in wanted.items():
        assert largest(merged[path], np.asarray(leaf)) < 1e-5, path
    # Shared still, the pieces go back as they came.
    peft.save(adapted, table, tmp_path / "shared")
    back = load_file(tmp_path / "shared" / peft.WEIGHTS)
    assert set(back) == set(adapter)
    for key, value in adapter.items():
        np.testing.assert_array_equal(back[key], value)
    assert json.loads((tmp_path / "shared" / peft.CONFIG).read_text())["r"] == 3
    # After training they differ, and one of them may be gone: a larger rank holds them all.
    found = lora.adapters(adapted)
    found.pop("layers/self_attn/k_proj")
    query = found["layers/self_attn/q_proj"]
    found["layers/self_attn/q_proj"] = dataclasses.replace(query, a=query.a * 1.5, spec=LoraSpec(3, 12))
    trained = lora.attach(plain, found)
    peft.save(trained, table, tmp_path / "own")
    config = PeftConfig.read(json.loads((tmp_path / "own" / peft.CONFIG).read_text()))
    assert config.spec("model.layers.1.attention.wqkv") == LoraSpec(6, 24)
    assert config.spec("model.layers.1.attention.wo") == LoraSpec(3, 6)
    again = leaves(lora.merge(peft.load(plain, table, tmp_path / "own"))[0])
    for path, leaf in leaves(lora.merge(trained)[0]).items():
        assert largest(again[path], np.asarray(leaf)) < 1e-5, path


def test_checkpoints_saved_with_peft_around_a_part(random_leaves):
    plain = random_model(random_leaves, INTERNLM2, pattern="")
    weights = to_torch("internlm2", plain)
    wrapped = {"vision_model.x": np.zeros(2)}
    for key, value in weights.items():
        inside = key.replace("wqkv.weight", "wqkv.base_layer.weight")
        wrapped[f"language_model.base_model.model.{inside}"] = value
    for key, value in fused_adapter(weights).items():
        if "wqkv" in key:
            wrapped["language_model." + key.replace(".weight", ".default.weight")] = value
    base, adapter = peft.unwrapped(wrapped)
    assert set(base) == {"vision_model.x", *(f"language_model.{key}" for key in weights)}
    table = registry.part("internlm2").table(INTERNLM2)
    settings = {"r": 3, "lora_alpha": 6}
    whole = peft.load(plain, table.under("language_model.", ""), (settings, adapter))
    bare = {key.removeprefix("language_model."): value for key, value in adapter.items()}
    for same in (
        peft.load(plain, table, (settings, bare)),
        peft.load(plain, table.under("language_model.", ""), (settings, bare), prefix="language_model."),
    ):
        for path, adapter_leaf in lora.adapters(whole).items():
            np.testing.assert_array_equal(lora.adapters(same)[path].b, adapter_leaf.b)
    assert set(lora.adapters(whole)) == {f"layers/self_attn/{name}_proj" for name in "qkv"}


def test_modules_are_named_exactly():
    names = ["a.q", "b.q", "b.k"]
    assert written({"a.q": SPEC, "b.q": SPEC}, names, "")["target_modules"] == ["q"]
    only = written({"a.q": SPEC, "b.k": LoraSpec(2, 3)}, names, "")
    assert [name for name in names if re.fullmatch(only["target_modules"], name)] == ["a.q", "b.k"]
    assert PeftConfig.read(only).spec("b.k") == LoraSpec(2, 3) and PeftConfig.read(only).spec("a.q") == SPEC


def test_adapters_that_do_not_fit(random_leaves):
    plain = random_model(random_leaves, INTERNLM2, pattern="")
    table = registry.part("internlm2").table(INTERNLM2)
    good, settings = fused_adapter(to_torch("internlm2", plain)), {"r": 3, "lora_alpha": 6}

    def refused(match, tensors=good, **changes):
        with pytest.raises(ConversionError, match=match):
            peft.load(plain, table, (settings | changes, tensors))

    module = "base_model.model.model.layers.1.attention.wo"
    refused("peft_type 'LOHA'", peft_type="LOHA")
    refused("use_dora True", use_dora=True)
    refused("init_lora_weights 'pissa'", init_lora_weights="pissa")
    refused("bias 'all'", bias="all")
    refused("lack or spoil a number", r="many")
    refused(r"attention.wqkv has matrices \(3, 48\).*not \(\(4, 48\)", r=4)
    refused("of different rank or factor", alpha_pattern={r"model\.layers\.1\.attention\.wo": 7})
    refused("needs two matrices", {key: value for key, value in good.items() if key != f"{module}.lora_A.weight"})
    refused(
        "layer 1 of layers/self_attn/o_proj has no adapter",
        {key: value for key, value in good.items() if not key.startswith(module)},
    )
    refused("no matrix of a LoRA adapter", {**good, f"{module}.lora_magnitude_vector": np.ones(3)})
    refused(
        "on model.head, which is no linear layer",
        {key.replace("layers.1.attention.wo", "head"): good[key] for key in good},
    )
    with pytest.raises(ConversionError, match="the model has no adapter"):
        peft.save(plain, table, "/nowhere")
    # A factor by the root of the rank.
    spec = PeftConfig.read({"r": 4, "lora_alpha": 6, "use_rslora": True}).spec("x")
    assert spec.scale == pytest.approx(3.0)
