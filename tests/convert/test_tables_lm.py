"""The tables of Qwen2 and InternLM2, at published sizes without weights."""

import dataclasses
import math

import numpy as np
import pytest

from rvseg_jax.convert import engine, registry
from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.lm.config import LanguageModelConfig

TINY = LanguageModelConfig.tiny()
PLAIN = dataclasses.replace(TINY, attention_bias=False)
QWEN = {
    "0.5b": (LanguageModelConfig.qwen2_5_0_5b(), 494_032_768),
    "3b": (LanguageModelConfig.qwen2_5_3b(), 3_085_938_688),
    "7b": (LanguageModelConfig.qwen2_5_7b(), 7_615_616_512),
}
INTERNLM = {
    "1.8b": (LanguageModelConfig.internlm2_5_1_8b(), 1_889_110_016),
    "7b": (LanguageModelConfig.internlm2_5_7b(), 7_737_708_544),
}


def internlm2_shapes(cfg: LanguageModelConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of upstream's `InternLM2ForCausalLM`."""
    width, inner, vocabulary = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    fused = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_width
    shapes = {
        "model.tok_embeddings.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "output.weight": (vocabulary, width),
    }
    layer = {
        "attention.wqkv": (fused, width),
        "attention.wo": (width, cfg.num_attention_heads * cfg.head_width),
        "feed_forward.w1": (inner, width),
        "feed_forward.w2": (width, inner),
        "feed_forward.w3": (inner, width),
        "attention_norm": (width,),
        "ffn_norm": (width,),
    }
    for number in range(cfg.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def numbered(shapes) -> dict[str, np.ndarray]:
    """Tensors in which no number is there twice."""
    made, start = {}, 0
    for key, shape in shapes.items():
        size = math.prod(shape)
        made[key] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    assert start < 2**24  # float32 counts no further
    return made


@pytest.mark.parametrize(("cfg", "count"), QWEN.values(), ids=QWEN)
def test_qwen2_as_transformers_builds_it(torch, cfg, count):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(cfg, name) for name in (*names, "num_key_value_heads", "tie_word_embeddings")}
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    plan, skeleton = engine.plan_for(registry.part("qwen2"), cfg)
    repeats = {"lm_head.weight": "model.embed_tokens.weight"} if cfg.tie_word_embeddings else {}
    assert plan.match(shapes).repeats == repeats
    assert plan.key_shapes == {key: shape for key, shape in shapes.items() if key not in repeats}
    assert sum(map(math.prod, skeleton.shapes.values())) == count


@pytest.mark.parametrize(("cfg", "count"), INTERNLM.values(), ids=INTERNLM)
def test_internlm2_at_published_sizes(cfg, count):
    plan, skeleton = engine.plan_for(registry.part("internlm2"), cfg)
    assert plan.key_shapes == internlm2_shapes(cfg)
    assert sum(map(math.prod, skeleton.shapes.values())) == count
    old = {f"model.layers.{layer}.attention.rotary_emb.inv_freq": (cfg.head_width // 2,) for layer in range(2)}
    assert set(plan.match(internlm2_shapes(cfg) | old).dropped) == set(old)


@pytest.mark.parametrize(
    ("part", "cfg"),
    [
        ("qwen2", TINY),
        ("qwen2", dataclasses.replace(TINY, tie_word_embeddings=True)),
        ("internlm2", PLAIN),
        ("internlm2", dataclasses.replace(PLAIN, num_key_value_heads=1, head_dim=6)),
    ],
)
def test_round_trip(part, cfg):
    plan, _ = engine.plan_for(registry.part(part), cfg)
    tensors = numbered(plan.key_shapes)
    back = to_torch(part, from_torch(part, tensors, cfg))
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


def test_rows_of_the_fused_projection():
    """Head h of keys and values: two query heads, a key, a value, each 12 rows."""
    tensors = numbered(internlm2_shapes(PLAIN))
    module = from_torch("internlm2", tensors, PLAIN)
    for layer in range(2):
        fused = tensors[f"model.layers.{layer}.attention.wqkv.weight"]
        blocks = [fused[start : start + 12] for start in range(0, len(fused), 12)]
        for name, order in (("q", (0, 1, 4, 5)), ("k", (2, 6)), ("v", (3, 7))):
            kernel = getattr(module.layers.self_attn, f"{name}_proj").kernel[layer]
            np.testing.assert_array_equal(kernel.T, np.concatenate([blocks[block] for block in order]))


def test_heads_and_embeddings():
    tied = dataclasses.replace(TINY, tie_word_embeddings=True)
    plan, _ = engine.plan_for(registry.part("qwen2"), tied)
    tensors = numbered(plan.key_shapes)
    table = tensors["model.embed_tokens.weight"]
    assert from_torch("qwen2", tensors | {"lm_head.weight": table}, tied).lm_head is None
    with pytest.raises(ConversionError, match="differs from"):
        from_torch("qwen2", tensors | {"lm_head.weight": table + 1}, tied)
    # A model whose head is its own does not take the embeddings for it.
    with pytest.raises(ConversionError, match=r"1 missing \(lm_head.weight"):
        from_torch("qwen2", tensors, TINY)
    with pytest.raises(InputError, match="InternLM2 has no biases"):
        from_torch("internlm2", tensors, TINY)


UPSTREAM = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
INTERN = {
    **{name: value for name, value in UPSTREAM.items() if "size" in name or "num" in name or "max" in name},
    "model_type": "internlm2",
    "bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}


def test_configs_of_upstream():
    assert LanguageModelConfig.from_upstream(UPSTREAM) == LanguageModelConfig.qwen2_5_0_5b()
    new = {name: value for name, value in UPSTREAM.items() if name != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert LanguageModelConfig.from_upstream(new) == LanguageModelConfig.qwen2_5_0_5b()
    found = LanguageModelConfig.from_upstream(INTERN)
    assert (found.rope_scaling, found.attention_bias, found.rms_norm_eps) == (2.0, False, 1e-5)
    sections = {"type": "mrope", "mrope_section": [8, 12, 12]}
    vision = LanguageModelConfig.from_upstream({**UPSTREAM, "model_type": "qwen2_5_vl", "rope_scaling": sections})
    assert vision.mrope_section == (8, 12, 12) and vision.attention_bias


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**UPSTREAM, "model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({**UPSTREAM, "hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({**UPSTREAM, "use_sliding_window": True}, "use_sliding_window"),
        ({**UPSTREAM, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({**UPSTREAM, "rope_scaling": {"type": "dynamic"}}, "lacks its factor"),
        ({**UPSTREAM, "rope_scaling": {"type": "mrope"}}, "lacks its mrope_section"),
        ({**UPSTREAM, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "must add up to 32"),
        ({**UPSTREAM, "num_key_value_heads": 3}, "must be a multiple of"),
        ({**INTERN, "bias": True}, "bias true"),
        ({name: value for name, value in UPSTREAM.items() if name != "vocab_size"}, "lacks vocab_size"),
    ],
)
def test_configs_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig.from_upstream(values)
