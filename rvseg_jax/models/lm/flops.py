"""Operations of a language model, two for each multiply-add of a matrix product."""

from rvseg_jax.models.lm.config import LanguageModelConfig


def block_flops(cfg: LanguageModelConfig, tokens: int, keys: int) -> int:
    """Operations of one layer.

    Args:
      tokens: that it computes.
      keys: that each of them attends to; a causal mask saves none of them here.
    """
    heads, kv_heads = cfg.num_attention_heads * cfg.head_width, cfg.num_key_value_heads * cfg.head_width
    projections = cfg.hidden_size * (2 * heads + 2 * kv_heads + 3 * cfg.intermediate_size)
    return 2 * tokens * (projections + 2 * keys * heads)


def flops(cfg: LanguageModelConfig, tokens: int, *, before: int = 0, scored: int | None = None) -> int:
    """Operations of a forward pass of one row.

    Args:
      tokens: that are read; 1 for a step of generation.
      before: tokens in the cache, or its slots if free ones are attended to as well.
      scored: tokens whose successors are scored, all by default.
    """
    head = 2 * (tokens if scored is None else scored) * cfg.hidden_size * cfg.vocab_size
    return cfg.num_hidden_layers * block_flops(cfg, tokens, before + tokens) + head


def adapter_flops(inputs: int, outputs: int, rank: int, tokens: int) -> int:
    """Operations that an adapter adds to a linear layer of these widths."""
    return 2 * tokens * rank * (inputs + outputs)
