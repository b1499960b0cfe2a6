"""Qwen2 and Qwen2.5, keys as in transformers' `Qwen2ForCausalLM`."""

from rvseg_jax.convert.rules import Alias, Drop, Entry, Rule, Table, linear
from rvseg_jax.models.lm.config import LanguageModelConfig

_LAYER = "model.layers.{layer}"
_ATTENTION = ("q_proj", "k_proj", "v_proj")
_FREQUENCIES = "frequencies of the rotation, which the model computes"


def table(cfg: LanguageModelConfig) -> Table:
    """Rules for any sizes; a head that is tied to the embeddings may be stored or not."""
    attention, mlp = f"{_LAYER}.self_attn", f"{_LAYER}.mlp"
    kernels = {f"{attention}.{name}": f"layers/self_attn/{name}" for name in (*_ATTENTION, "o_proj")}
    kernels |= {f"{mlp}.{name}_proj": f"layers/mlp/{name}" for name in ("gate", "up", "down")}
    norms = {f"{_LAYER}.{name}": f"layers/{name}" for name in ("input_layernorm", "post_attention_layernorm")}
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    entries: list[Entry] = [
        Rule(embeddings, "embed_tokens/embedding"),
        *(Rule(f"{source}.weight", f"{target}/kernel", linear()) for source, target in kernels.items()),
        *(Rule(f"{source}.weight", f"{target}/scale") for source, target in {**norms, "model.norm": "norm"}.items()),
        Drop(f"{attention}.rotary_emb.inv_freq", _FREQUENCIES),
    ]
    if cfg.attention_bias:
        entries += [Rule(f"{attention}.{name}.bias", f"layers/self_attn/{name}/bias") for name in _ATTENTION]
    entries.append(Alias(head, embeddings) if cfg.tie_word_embeddings else Rule(head, "lm_head/kernel", linear()))
    return Table(entries)
