"""InternLM2 and InternLM2.5, keys as in upstream's `InternLM2ForCausalLM`."""

from rvseg_jax.convert.rules import Alias, Drop, Entry, Operation, Rule, Table, linear, reshape, split
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.lm.config import LanguageModelConfig

_LAYER = "model.layers.{layer}"
_KERNELS = {
    "attention.wo": "self_attn/o_proj",
    "feed_forward.w1": "mlp/gate",
    "feed_forward.w3": "mlp/up",
    "feed_forward.w2": "mlp/down",
}
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_FREQUENCIES = "frequencies of the rotation, which the model computes"


def table(cfg: LanguageModelConfig) -> Table:
    """Rules for any sizes.

    Raises:
      InputError: for a config with biases, which upstream's attention has in its fused projection.
    """
    if cfg.attention_bias:
        raise InputError("InternLM2 has no biases: set attention_bias to False")
    projections = tuple(f"layers/self_attn/{name}_proj/kernel" for name in "qkv")
    head, embeddings = "output.weight", "model.tok_embeddings.weight"
    entries: list[Entry] = [
        Rule(embeddings, "embed_tokens/embedding"),
        Rule(f"{_LAYER}.attention.wqkv.weight", projections, *_by_head(cfg), linear()),
        *(Rule(f"{_LAYER}.{theirs}.weight", f"layers/{ours}/kernel", linear()) for theirs, ours in _KERNELS.items()),
        *(Rule(f"{_LAYER}.{theirs}.weight", f"layers/{ours}/scale") for theirs, ours in _NORMS.items()),
        Rule("model.norm.weight", "norm/scale"),
        Drop(f"{_LAYER}.attention.rotary_emb.inv_freq", _FREQUENCIES),
    ]
    entries.append(Alias(head, embeddings) if cfg.tie_word_embeddings else Rule(head, "lm_head/kernel", linear()))
    return Table(entries)


def _by_head(cfg: LanguageModelConfig) -> tuple[Operation, ...]:
    """The fused rows, which lie by head of keys and values: its query heads, its key, its value; -> q, k, v."""
    groups, width = cfg.num_key_value_heads, cfg.head_width
    queries = cfg.num_attention_heads // groups
    return (
        reshape((groups * (queries + 2) * width, -1), (groups, queries + 2, width, -1)),
        split(1, (queries, 1, 1)),
        reshape((groups, -1, width, cfg.hidden_size), (-1, cfg.hidden_size)),
    )
