"""InternVL, keys as in upstream's checkpoints (`internvl_chat`)."""

import importlib

from rvseg_jax.convert.rules import Entry, Rule, Table, conv, linear, reshape
from rvseg_jax.convert.tables.layer_rules import norm, weights
from rvseg_jax.convert.tables.vit_block import block_rules
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.internvl.vision import InternViTConfig


def table(cfg: InternVLConfig) -> Table:
    """Rules for any sizes; the keys of the language model are those of its family."""
    language = importlib.import_module(f"rvseg_jax.convert.tables.{cfg.family}").table(cfg.language)
    entries: list[Entry] = [
        *Table(vision_rules(cfg.vision)).under("vision_model.", "vision/").entries,
        *norm("mlp1.0", "projector/norm"),
        *weights("mlp1.1", "projector/linear_1", linear()),
        *weights("mlp1.3", "projector/linear_2", linear()),
        *language.under("language_model.", "language/").entries,
    ]
    return Table(entries)


def vision_rules(cfg: InternViTConfig) -> list[Rule]:
    """Rules of the vision transformer."""
    rows = 1 + cfg.grid**2
    return [
        Rule("embeddings.class_embedding", "cls_token", reshape((1, 1, -1), (-1,))),
        Rule("embeddings.position_embedding", "pos_embed", reshape((1, rows, -1), (rows, -1))),
        *weights("embeddings.patch_embedding", "patch_embed", conv()),
        *block_rules("encoder.layers.{layer}", "blocks", width=cfg.hidden_size, layer_scale=True, gamma=""),
    ]
