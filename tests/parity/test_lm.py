"""The language model against transformers with random weights, and against the original InternLM2's golden case."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.convert.api import from_torch, to_torch
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.models.lm.generate import GenerationOptions, generate
from rvseg_jax.models.lm.rotary import rotary
from rvseg_jax.parity import golden as cases
from rvseg_jax.parity import lm
from rvseg_jax.parity.compare import compare

# float32 sums in another order; outputs measure up to 2e-6.
VALUES = 1e-5
GRADIENTS = 1e-4

TINY = LanguageModelConfig.tiny()
TIED = dataclasses.replace(TINY, tie_word_embeddings=True, num_key_value_heads=1)
GROWING = dataclasses.replace(
    TINY, rope_scaling=2.0, max_position_embeddings=16, attention_bias=False, rms_norm_eps=1e-5
)
LENGTHS = np.array([5, 12, 9])
NEW = 10


def relative(ours, theirs) -> float:
    """max |a - b| / max |b|."""
    theirs = np.asarray(theirs, np.float32)
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def prompts(rows=LENGTHS, length=12):
    """Ids and which of them are tokens; padding behind."""
    rng = np.random.default_rng(0)
    valid = np.arange(length) < rows[:, None]
    return np.where(valid, rng.integers(1, TINY.vocab_size, (len(rows), length)), 0).astype(np.int32), valid


def fields(cfg: LanguageModelConfig) -> dict:
    """The arguments of a config of transformers."""
    names = {entry.name for entry in dataclasses.fields(cfg)} - {
        *("precision", "head_dim", "rope_theta", "rope_scaling", "attention_bias", "mrope_section"),
    }
    rope = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if cfg.rope_scaling is not None:
        rope |= {"rope_type": "dynamic", "factor": cfg.rope_scaling}
    return {name: getattr(cfg, name) for name in names} | {"rope_parameters": rope, "attn_implementation": "eager"}


def randomised(torch, model, seed=0):
    """Random weights at scales where each branch counts, and answers vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
            else:
                parameter.copy_(noise * (1.0 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5))
    return model.eval()


@cache
def qwen2(torch, cfg: LanguageModelConfig):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = randomised(torch, Qwen2ForCausalLM(Qwen2Config(**fields(cfg))))
    model.tie_weights()
    return model, from_torch("qwen2", tensors(model), cfg)


@cache
def llama(torch, cfg: LanguageModelConfig):
    """transformers' Llama, and our InternLM2 with its weights behind fused projections."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = randomised(torch, LlamaForCausalLM(LlamaConfig(**fields(cfg), attention_bias=False, head_dim=12)))
    return model, from_torch("internlm2", as_internlm2(tensors(model), cfg), cfg)


def tensors(model) -> dict[str, np.ndarray]:
    return {key: value.detach().float().numpy() for key, value in model.state_dict().items()}


def as_internlm2(weights, cfg: LanguageModelConfig) -> dict[str, np.ndarray]:
    """Llama's weights under InternLM2's keys, the fused rows written head by head."""
    made = {
        "model.tok_embeddings.weight": weights["model.embed_tokens.weight"],
        "model.norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    groups, width = cfg.num_attention_heads // cfg.num_key_value_heads, cfg.head_width
    for layer in range(cfg.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"model.layers.{layer}"
        q, k, v = (weights[f"{theirs}.self_attn.{name}_proj.weight"] for name in "qkv")
        rows = []
        for head in range(cfg.num_key_value_heads):
            rows += [q[(head * groups + one) * width :][:width] for one in range(groups)]
            rows += [k[head * width :][:width], v[head * width :][:width]]
        made[f"{ours}.attention.wqkv.weight"] = np.concatenate(rows)
        made[f"{ours}.attention.wo.weight"] = weights[f"{theirs}.self_attn.o_proj.weight"]
        for ours_name, name in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            made[f"{ours}.feed_forward.{ours_name}.weight"] = weights[f"{theirs}.mlp.{name}_proj.weight"]
        made[f"{ours}.attention_norm.weight"] = weights[f"{theirs}.input_layernorm.weight"]
        made[f"{ours}.ffn_norm.weight"] = weights[f"{theirs}.post_attention_layernorm.weight"]
    return made


FAMILIES = {"qwen2": (qwen2, TINY), "tied": (qwen2, TIED), "internlm2": (llama, GROWING)}


@cache
def forward(model: LanguageModel):
    """The compiled model: embeddings, the outputs of all layers but the last, states and scores."""
    graph, state = nnx.split(model)

    def run(state, ids):
        model = nnx.merge(graph, state)
        embedded = model.embed(ids)
        states, cache, between = model(embedded, taps=range(model.cfg.num_hidden_layers - 1))
        assert cache is None
        return [embedded, *between, states], model.logits(states)

    return partial(jax.jit(run), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_scores_with_padding(torch, family):
    make, cfg = FAMILIES[family]
    reference, ours = make(torch, cfg)
    ids, valid = prompts()
    with torch.no_grad():
        wanted = reference(
            input_ids=torch.as_tensor(ids).long(),
            attention_mask=torch.as_tensor(valid).long(),
            output_hidden_states=True,
        )
    states, scores = forward(ours)(ids)
    assert scores.dtype == jnp.float32
    assert relative(scores[valid], wanted.logits.numpy()[valid]) < VALUES
    assert len(states) == len(wanted.hidden_states)
    for layer, (found, theirs) in enumerate(zip(states, wanted.hidden_states, strict=True)):
        assert relative(found[valid], theirs.numpy()[valid]) < VALUES, layer


def test_base_that_grows_with_the_length(torch):
    reference, ours = llama(torch, GROWING)
    ids, _ = prompts(np.array([24, 24]), 24)  # beyond the 16 positions of the config
    with torch.no_grad():
        wanted = reference(input_ids=torch.as_tensor(ids).long()).logits.numpy()
    assert relative(forward(ours)(ids)[1], wanted) < VALUES
    # A base that stayed would show.
    plain = from_torch("internlm2", to_torch("internlm2", ours), dataclasses.replace(GROWING, rope_scaling=None))
    assert relative(forward(plain)(ids)[1], wanted) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_those_of_single_prompts(torch, family):
    make, cfg = FAMILIES[family]
    reference, ours = make(torch, cfg)
    ids, valid = prompts()
    answers, states = [], []
    for row, length in zip(ids, LENGTHS, strict=True):
        with torch.no_grad():
            out = reference.generate(
                torch.as_tensor(row[None, :length]).long(),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                repetition_penalty=1.3,
                return_dict_in_generate=True,
                output_hidden_states=True,
            )
        answers.append(out.sequences[0, length:].numpy())
        states.append(np.concatenate([step[-1][0, -1:].numpy() for step in out.hidden_states]))
    assert len({token for answer in answers for token in answer}) > 8, "answers that repeat a token show little"
    stop = int(answers[0][3])
    options = GenerationOptions(max_new_tokens=NEW, repetition_penalty=1.3, stop_tokens=(stop,), pad_token=7)
    found = generate(ours, ours.embed(ids), valid, prompt_ids=ids, options=options)
    prompt = forward(ours)(ids)[0][-1]
    for row, (answer, wanted) in enumerate(zip(answers, states, strict=True)):
        ends = np.flatnonzero(answer == stop)
        length = int(ends[0]) + 1 if len(ends) else NEW
        assert int(found.lengths[row]) == length
        np.testing.assert_array_equal(found.tokens[row, :length], answer[:length])
        assert np.all(np.asarray(found.tokens[row, length:]) == 7)
        assert relative(found.hidden[row, :length], wanted[:length]) < VALUES
        assert not np.any(np.asarray(found.hidden[row, length:]))
        if cfg.rope_scaling is None:
            assert relative(found.prompt_hidden[row][valid[row]], prompt[row][valid[row]]) < VALUES
    assert int(found.lengths[0]) == list(answers[0]).index(stop) + 1 < NEW


def test_gradients(torch):
    cfg = dataclasses.replace(TINY, num_hidden_layers=1)
    reference, ours = qwen2(torch, cfg)
    ids, valid = prompts()
    weight = np.random.default_rng(3).standard_normal((*ids.shape, cfg.vocab_size)).astype(np.float32)
    weight *= valid[..., None]
    out = reference(input_ids=torch.as_tensor(ids).long(), attention_mask=torch.as_tensor(valid).long())
    (out.logits * torch.as_tensor(weight)).sum().backward()
    graph, state = nnx.split(ours)

    @jax.jit
    def gradient(state):
        def loss(state):
            model = nnx.merge(graph, state)
            states, _ = model(model.embed(ids), valid=jnp.asarray(valid), remat="dots")
            return (model.logits(states) * weight).sum()

        return jax.grad(loss)(state)

    exported = to_torch("qwen2", nnx.merge(graph, gradient(state)))
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert set(exported) == set(wanted)
    for name, value in wanted.items():
        if name.endswith("k_proj.bias"):  # the same for all keys of a query, up to the rotation
            assert np.abs(exported[name] - value.numpy()).max() < 1e-4 * float(wanted[name[:-4] + "weight"].abs().max())
        else:
            assert relative(exported[name], value) < GRADIENTS, name


def test_bfloat16_is_as_close_as_torch(torch):
    cfg = dataclasses.replace(TINY, num_hidden_layers=3, hidden_size=64, num_attention_heads=8)
    reference, _ = qwen2(torch, cfg)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16().float())
    ids, valid = prompts(np.full(3, 32), 32)
    with torch.no_grad():
        exact = reference(input_ids=torch.as_tensor(ids).long()).logits.numpy()
        ours = forward(from_torch("qwen2", tensors(reference), cfg, precision=BFLOAT16))(ids)[1]
        theirs = reference.bfloat16()(input_ids=torch.as_tensor(ids).long()).logits.float().numpy()
    error = np.abs(np.asarray(ours) - exact).mean()
    assert 1e-4 * np.abs(exact).mean() < error < 1.25 * np.abs(theirs - exact).mean()


def test_three_rows_of_positions(torch):
    """Time, height and width turn their own frequencies, as in transformers' Qwen2.5-VL."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VLRotaryEmbedding,
        Qwen2_5_VLTextModel,
    )

    cfg = dataclasses.replace(TINY, mrope_section=(2, 3, 1), tie_word_embeddings=True)
    values = fields(cfg)
    values["rope_parameters"] |= {"mrope_section": [2, 3, 1]}
    upstream = Qwen2_5_VLTextConfig(**values)
    rng = np.random.default_rng(1)
    ids, _ = prompts(np.full(2, 12), 12)
    positions = rng.integers(0, 400, (3, *ids.shape)).astype(np.int32)
    cos, sin = Qwen2_5_VLRotaryEmbedding(upstream)(torch.zeros(1), torch.as_tensor(positions).long())
    half = cfg.head_width // 2
    for ours, theirs in zip(rotary(cfg, jnp.asarray(positions)), (cos, sin), strict=True):
        assert np.abs(ours - theirs[..., :half].numpy()).max() < 1e-4  # an angle of 400 has a step of 3e-5
    model = randomised(torch, Qwen2_5_VLTextModel(upstream))
    renamed = {f"model.{key}": value for key, value in tensors(model).items()}
    decoder = from_torch("qwen2", renamed, cfg)
    with torch.no_grad():
        wanted = model(input_ids=torch.as_tensor(ids).long(), position_ids=torch.as_tensor(positions).long())
    states, _ = decoder(decoder.embed(ids), positions=jnp.asarray(positions))
    assert relative(states, wanted.last_hidden_state) < VALUES
    # Equal rows are ordinary positions.
    text = jnp.broadcast_to(jnp.arange(12), ids.shape)
    same = [rotary(cfg, places) for places in (text, jnp.broadcast_to(text, (3, *text.shape)))]
    np.testing.assert_array_equal(same[0][0], same[1][0])


def test_golden_internlm2(golden):
    case = cases.read(golden / "mllmseg" / "internlm2.json")
    lm.FIELDS.check(case.config)
    report = compare(case, lm.INTERNLM2.run(case))
    assert len(report.rows) == 9
    for row in report.rows:
        assert row.status == "ok" and row.relative < VALUES, row
