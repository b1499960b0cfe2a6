"""InternVL, keys as in transformers' `InternVLForConditionalGeneration`; InternLM2 has those of Llama there."""

from rvseg_jax.convert.rules import Entry, Rule, Table, concat, conv, linear, reshape
from rvseg_jax.convert.tables import qwen2
from rvseg_jax.convert.tables.layer_rules import norm, weights
from rvseg_jax.models.internvl.config import InternVLConfig

_TOWER = "model.vision_tower"
_LAYER = f"{_TOWER}.encoder.layer.{{layer}}"
_BRANCHES = {
    "attention.projection_layer": "attn/proj",
    "mlp.fc1": "mlp/up",
    "mlp.fc2": "mlp/down",
}


def table(cfg: InternVLConfig) -> Table:
    """Rules for any sizes and both families."""
    rows, width = 1 + cfg.vision.grid**2, cfg.vision.hidden_size
    entries: list[Entry] = [
        Rule(f"{_TOWER}.embeddings.cls_token", "vision/cls_token", reshape((1, 1, -1), (-1,))),
        Rule(f"{_TOWER}.embeddings.position_embeddings", "vision/pos_embed", reshape((1, rows, -1), (rows, -1))),
        *weights(f"{_TOWER}.embeddings.patch_embeddings.projection", "vision/patch_embed", conv()),
        *_queries_keys_values(width),
        *norm(f"{_LAYER}.layernorm_before", "vision/blocks/norm1"),
        *norm(f"{_LAYER}.layernorm_after", "vision/blocks/norm2"),
        *(Rule(f"{_LAYER}.lambda_{branch}", f"vision/blocks/ls{branch}") for branch in (1, 2)),
        *norm("model.multi_modal_projector.layer_norm", "projector/norm"),
        *weights("model.multi_modal_projector.linear_1", "projector/linear_1", linear()),
        *weights("model.multi_modal_projector.linear_2", "projector/linear_2", linear()),
    ]
    for source, target in _BRANCHES.items():
        entries += weights(f"{_LAYER}.{source}", f"vision/blocks/{target}", linear())
    for entry in qwen2.table(cfg.language).rules:
        # The head stands beside the model there, and all else one level deeper.
        sources = tuple(
            key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key
            for key in entry.sources
        )
        entries.append(Rule(sources, tuple(f"language/{path}" for path in entry.targets), *entry.operations))
    return Table(entries)


def _queries_keys_values(width: int) -> list[Rule]:
    """Three layers there, one with an axis of three here."""
    kernels = tuple(f"{_LAYER}.attention.{name}_proj.weight" for name in "qkv")
    biases = tuple(f"{_LAYER}.attention.{name}_proj.bias" for name in "qkv")
    return [
        Rule(
            kernels,
            "vision/blocks/attn/qkv/kernel",
            concat(0, 3),
            linear(),
            reshape((width, 3 * width), (width, 3, width)),
        ),
        Rule(biases, "vision/blocks/attn/qkv/bias", concat(0, 3), reshape((3 * width,), (3, width))),
    ]
