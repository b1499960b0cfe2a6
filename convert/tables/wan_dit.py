"""Wan diffusion transformer, keys as in diffusers and FlowRVS; the two differ in order only."""

from rvseg_jax.convert.rules import Rule, Table, conv, linear
from rvseg_jax.models.wan.transformer import WanTransformerConfig

# torch module -> path, of the linear layers outside the blocks
_OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "condition_embedder/time_embedder/up",
    "condition_embedder.time_embedder.linear_2": "condition_embedder/time_embedder/down",
    "condition_embedder.time_proj": "condition_embedder/time_proj",
    "condition_embedder.text_embedder.linear_1": "condition_embedder/text_embedder/up",
    "condition_embedder.text_embedder.linear_2": "condition_embedder/text_embedder/down",
}
_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_FEED_FORWARD = {"ffn.net.0.proj": "ffn/up", "ffn.net.2": "ffn/down"}
_ATTENTIONS = ("attn1", "attn2")
_NORMS = ("norm_q", "norm_k")


def table(cfg: WanTransformerConfig) -> Table:
    """Rules of the transformer, with or without direct video injection."""
    rules = [
        Rule("scale_shift_table", "scale_shift_table"),
        Rule("patch_embedding.weight", "patch_embedding/kernel", conv()),
        Rule("patch_embedding.bias", "patch_embedding/bias"),
        *_linear("proj_out", "proj_out"),
        Rule("blocks.{layer}.scale_shift_table", "blocks/scale_shift_table"),
    ]
    for source, target in _OUTSIDE.items():
        rules += _linear(source, target)
    for attention in _ATTENTIONS:
        for source, target in _PROJECTIONS.items():
            rules += _linear(f"blocks.{{layer}}.{attention}.{source}", f"blocks/{attention}/{target}")
        for norm in _NORMS:
            rules.append(Rule(f"blocks.{{layer}}.{attention}.{norm}.weight", f"blocks/{attention}/{norm}/scale"))
    if cfg.cross_attn_norm:
        rules.append(Rule("blocks.{layer}.norm2.weight", "blocks/norm2/scale"))
        rules.append(Rule("blocks.{layer}.norm2.bias", "blocks/norm2/bias"))
    for source, target in _FEED_FORWARD.items():
        rules += _linear(f"blocks.{{layer}}.{source}", f"blocks/{target}")
    return Table(rules)


def parameter_order(cfg: WanTransformerConfig) -> list[str]:
    """Torch keys in the order of `parameters()` of FlowRVS's class, which its nameless EMA lists follow.

    FlowRVS builds its attention from diffusers' older `Attention`, which registers the norms of queries and
    keys before the projections. Today's `WanTransformer3DModel` registers them after: its order would put
    weights of one shape in another's place without an error.
    """
    order = ["scale_shift_table", *_pair("patch_embedding")]
    for name in _OUTSIDE:
        order += _pair(name)
    for layer in range(cfg.num_layers):
        block = f"blocks.{layer}"
        order.append(f"{block}.scale_shift_table")
        for attention in _ATTENTIONS:
            order += [f"{block}.{attention}.{norm}.weight" for norm in _NORMS]
            for name in _PROJECTIONS:
                order += _pair(f"{block}.{attention}.{name}")
        if cfg.cross_attn_norm:
            order += _pair(f"{block}.norm2")
        for name in _FEED_FORWARD:
            order += _pair(f"{block}.{name}")
    return order + _pair("proj_out")


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}/kernel", linear()),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def _pair(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]
