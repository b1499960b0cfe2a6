"""The language model's cache, choice of tokens, generation and operations."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.lm.cache import KVCache
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.lm.decoder import LanguageModel
from rvseg_jax.models.lm.flops import adapter_flops, flops
from rvseg_jax.models.lm.generate import GenerationOptions, bucket, generate
from rvseg_jax.models.lm.sampling import choose, limited, penalised

TINY = LanguageModelConfig.tiny()
GREEDY = GenerationOptions(max_new_tokens=8, repetition_penalty=1.3)


@cache
def random_model(random_leaves, cfg=TINY) -> LanguageModel:
    graph, shapes = nnx.split(nnx.eval_shape(lambda: LanguageModel(cfg, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, random_leaves(shapes))
    model.embed_tokens.embedding[...] *= TINY.vocab_size**0.5
    return model


def prompts(*lengths, seed=0):
    """Ids with padding behind, and which of them are tokens."""
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.random.default_rng(seed).integers(1, TINY.vocab_size, valid.shape).astype(np.int32), valid


class Compilations:
    """Counts the programs that XLA compiles."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, name, *_, **__):
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.clear_event_listeners()


def test_a_text_read_in_pieces(random_leaves):
    """In one go, piece by piece through a cache, and with padding between the pieces."""
    graph, state = nnx.split(random_model(random_leaves))
    ids, _ = prompts(9, 9)

    @jax.jit
    def run(state):
        model = nnx.merge(graph, state)
        x = model.embed(ids)
        whole, nothing = model(x)
        assert nothing is None
        first, cache = model.prefill(x[:, :5], 16)
        second, cache = model(x[:, 5:7], cache=cache)
        third, cache = model(x[:, 7:8], cache=cache)
        start = KVCache.empty(TINY, 2, 12)
        at_once, _ = model(x, cache=start)
        # The second row has only three tokens of the first piece; its fourth comes with the second piece.
        valid = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
        _, apart = model(x[:, :5], cache=start, valid=valid)
        after = jnp.stack([x[0, 5:7], x[1, 3:5]])
        late, apart = model(after, cache=apart)
        return whole, jnp.concatenate([first, second, third], 1), at_once, late, cache, apart

    whole, pieces, at_once, late, cache, apart = run(state)
    scale = np.abs(whole).max()
    assert np.abs(pieces - whole[:, :8]).max() < 1e-5 * scale
    assert np.abs(at_once - whole).max() < 1e-5 * scale
    assert np.abs(late[0] - whole[0, 5:7]).max() < 1e-5 * scale
    assert np.abs(late[1] - whole[1, 3:5]).max() < 1e-5 * scale
    assert int(cache.filled) == 8 and cache.next_position.tolist() == [8, 8]
    assert int(apart.filled) == 7 and apart.next_position.tolist() == [7, 5]
    assert apart.valid.sum(axis=1).tolist() == [7, 5] and apart.size == 12
    assert cache.keys.shape == (2, 2, 16, 2, 12)


def test_scores_are_changed_as_in_transformers(torch):
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(0)
    scores = (rng.standard_normal((3, 50)) * 3).astype(np.float32)
    ids = rng.integers(0, 50, (3, 20))
    seen = np.zeros((3, 50), bool)
    seen[np.arange(3)[:, None], ids] = True
    wanted = theirs.RepetitionPenaltyLogitsProcessor(1.7)(torch.as_tensor(ids), torch.as_tensor(scores))
    ours = penalised(jnp.asarray(scores), jnp.asarray(seen), 1.7)
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-6)
    for temperature, top_k, top_p in ((0.6, 0, 1.0), (1.3, 7, 1.0), (0.9, 0, 0.8), (0.7, 12, 0.6), (1.0, 99, 0.01)):
        steps = [theirs.TemperatureLogitsWarper(temperature)]
        steps += [theirs.TopKLogitsWarper(top_k)] if top_k else []
        steps += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
        values = torch.as_tensor(scores)
        for step in steps:
            values = step(None, values)
        options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        found = limited(jnp.asarray(scores), options)
        kept = np.isfinite(values.numpy())
        np.testing.assert_array_equal(np.isfinite(found), kept)
        np.testing.assert_allclose(np.asarray(found)[kept], values.numpy()[kept], rtol=1e-6)
        assert top_k == 0 and top_p == 1 or kept.sum() < kept.size


def test_the_best_token_and_drawn_ones():
    scores = jnp.array([[1.0, 3.0, 3.0, 0.0]])
    assert choose(scores, None, GREEDY, None).tolist() == [1]  # the lowest id of equal ones
    assert choose(scores, jnp.array([[False, True, False, False]]), GREEDY, None).tolist() == [2]
    options = GenerationOptions(temperature=2.0, top_k=3)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: choose(scores, None, options, key)[0])(keys)
    share = np.bincount(drawn, minlength=4) / 4000
    weights = np.exp([0.5, 1.5, 1.5, -np.inf])
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.03)
    assert share[3] == 0


def test_each_row_is_answered_as_if_alone(random_leaves):
    model = random_model(random_leaves)
    ids, valid = prompts(4, 9, 1)
    together = generate(model, model.embed(ids), valid, prompt_ids=ids, options=GREEDY)
    assert together.tokens.shape == (3, 8) and together.hidden.shape == (3, 8, TINY.hidden_size)
    assert together.prompt_hidden.shape == (3, 9, TINY.hidden_size)
    for row, length in enumerate((4, 9, 1)):
        own, there = ids[row : row + 1, :length], valid[row : row + 1, :length]
        alone = generate(model, model.embed(own), there, prompt_ids=own, options=GREEDY)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.hidden[0], together.hidden[row], atol=2e-5)
        np.testing.assert_allclose(alone.prompt_hidden[0], together.prompt_hidden[row, :length], atol=2e-5)
    scores = model.logits(together.hidden)
    fresh = np.asarray(jnp.argmax(scores, axis=-1))
    assert np.mean(fresh == together.tokens) > 0.3  # the states that gave the tokens, but for the penalty


def test_drawing_is_reproducible(random_leaves):
    model = random_model(random_leaves)
    ids, valid = prompts(4, 9)
    options = GenerationOptions(max_new_tokens=8, temperature=1.5, top_k=20)
    found = [
        generate(model, model.embed(ids), valid, options=options, key=jax.random.key(seed)).tokens for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.mean(found[0] == found[2]) < 0.5
    assert len(np.unique(found[0])) > 8


def test_one_program_for_each_bucket(random_leaves):
    model = random_model(random_leaves)

    def run(length, new, options=GREEDY):
        ids, valid = prompts(length, length - 2)
        padded = np.zeros((2, bucket(length)), np.int32)
        padded[:, :length] = ids
        there = np.zeros(padded.shape, bool)
        there[:, :length] = valid
        embedded = model.embed(padded)
        options = dataclasses.replace(options, max_new_tokens=new)
        with Compilations() as compiled:
            found = generate(model, embedded, there, prompt_ids=padded, options=options)
        assert int(found.lengths[0]) == new
        return compiled.count

    first = run(10, 5)
    assert first >= 1
    run(12, 6)  # cuts the answers to another length, which is a program of one slice
    assert run(20, 5) == run(64, 6) == 0
    assert run(65, 5) >= 1
    assert [bucket(length) for length in (1, 64, 65, 1000, 1025, 5000)] == [64, 64, 128, 1024, 1152, 5120]


def test_operations_as_xla_counts_them():
    cfg = dataclasses.replace(TINY, hidden_size=256, num_attention_heads=8, intermediate_size=512, vocab_size=512)
    graph, state = nnx.split(nnx.eval_shape(lambda: LanguageModel(cfg, rngs=nnx.Rngs(0))))
    ids = np.zeros((1, 64), np.int32)

    def forward(state):
        model = nnx.merge(graph, state)
        return model.logits(model(model.embed(ids), mode="unroll")[0])

    def step(state, cache):
        model = nnx.merge(graph, state)
        return model.logits(model(model.embed(ids[:, :1]), cache=cache, mode="unroll")[0])

    counted = jax.jit(forward).lower(state).cost_analysis()["flops"]
    assert flops(cfg, 64) == pytest.approx(counted, rel=0.05)
    cache = jax.eval_shape(lambda: KVCache.empty(cfg, 1, 128))
    counted = jax.jit(step).lower(state, cache).cost_analysis()["flops"]
    assert flops(cfg, 1, before=127) == pytest.approx(counted, rel=0.05)
    assert flops(cfg, 64) - flops(cfg, 64, scored=1) == 2 * 63 * 256 * 512
    assert adapter_flops(256, 512, 4, 10) == 2 * 10 * (256 * 4 + 4 * 512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": np.array([[True, False, True]])}, "padding in front of a token"),
        ({"valid": np.zeros((1, 3), bool)}, "prompt 0 has no token"),
        ({"valid": np.ones((1, 3), int)}, "give bool"),
        ({"valid": np.ones((1, 4), bool)}, r"valid has shape \(1, 4\)"),
        ({"prompt_ids": np.ones((2, 3), int)}, "prompt_ids has shape"),
        ({"options": GenerationOptions(temperature=0.5)}, "give a key"),
        ({"embeddings": jnp.zeros((1, 3, 7))}, r"give \[B, T, 48\]"),
    ],
)
def test_prompts_that_are_refused(changes, message):
    model = nnx.eval_shape(lambda: LanguageModel(TINY, rngs=nnx.Rngs(0)))
    given = {"embeddings": jnp.zeros((1, 3, 48)), "valid": np.ones((1, 3), bool), "options": GREEDY, **changes}
    with pytest.raises(InputError, match=message):
        generate(model, given.pop("embeddings"), given.pop("valid"), **given)


def test_calls_that_are_refused(random_leaves):
    model = random_model(random_leaves)
    x = jnp.zeros((1, 5, 48))
    with pytest.raises(ValueError, match="padding in front of a token"):
        model(x, valid=jnp.array([[False, True, True, True, True]]))
    with pytest.raises(ValueError, match="give bool"):
        model(x, valid=jnp.ones((1, 4), bool))
    with pytest.raises(ValueError, match="do not fit a cache of 4 slots"):
        model(x, cache=KVCache.empty(TINY, 1, 4))
    with pytest.raises(ValueError, match="without a cache"):
        model(x, cache=KVCache.empty(TINY, 1, 8), taps=(0,))
    with pytest.raises(ValueError, match=r"give \[B, T\]"):
        model(x, positions=jnp.zeros((3, 1, 5), jnp.int32))
    with pytest.raises(InputError, match="top_p 0 must be"):
        GenerationOptions(top_p=0)
    for options in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_k": -1}, {"repetition_penalty": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            GenerationOptions(**options)
