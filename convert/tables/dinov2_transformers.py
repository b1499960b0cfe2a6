"""DINOv2 with registers, keys as transformers' `Dinov2WithRegistersModel` writes them to files.

Queries, keys and values stand apart there. From version 5 on the module itself has shorter names for the attention.
"""

from rvseg_jax.convert.rules import Alias, Drop, Rule, Table, concat, linear, reshape
from rvseg_jax.convert.tables import dinov2
from rvseg_jax.models.dinov2.encoder import Dinov2Config

# Name of the original -> name in transformers, by the beginning of a key; `blocks.` follow in `_RENAMED_IN_BLOCK`.
_RENAMED = {
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm.": "layernorm.",
    "blocks.{layer}.": "encoder.layer.{layer}.",
}
_RENAMED_IN_BLOCK = {
    ".attn.proj.": ".attention.output.dense.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
}
# Name in files -> name in the module, both within a layer.
_SHORT = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def table(cfg: Dinov2Config) -> Table:
    """The rules of the original layout under transformers' names."""
    made = [
        Rule(_renamed(rule.sources[0]), rule.targets, *rule.operations)
        for rule in dinov2.rules(cfg)
        if ".qkv." not in rule.sources[0]
    ]
    layer = "encoder.layer.{layer}."
    short = [
        Alias(f"{layer}{ours}.{kind}", f"{layer}{name}.{kind}")
        for name, ours in _SHORT.items()
        for kind in ("weight", "bias")
    ]
    mask = Drop("embeddings.mask_token", dinov2.MASK_REASON, keep=True)
    return Table([*made, *_qkv(cfg.embed_dim), *short, mask])


def _qkv(width: int) -> list[Rule]:
    layer, path = "encoder.layer.{layer}.attention.attention", "blocks/attn/qkv"
    weights, biases = (
        tuple(f"{layer}.{name}.{kind}" for name in ("query", "key", "value")) for kind in ("weight", "bias")
    )
    fused = (concat(0, 3), linear(), reshape((width, 3 * width), (width, 3, width)))
    return [
        Rule(weights, f"{path}/kernel", *fused),
        Rule(biases, f"{path}/bias", concat(0, 3), reshape((3 * width,), (3, width))),
    ]


def _renamed(key: str) -> str:
    for start, name in _RENAMED.items():
        if key.startswith(start):
            key = name + key.removeprefix(start)
            break
    for part, name in _RENAMED_IN_BLOCK.items():
        key = key.replace(part, name)
    return key
