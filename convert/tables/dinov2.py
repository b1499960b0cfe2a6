"""DINOv2 with registers, keys as in upstream's checkpoints and in Pi3's `encoder.`."""

from rvseg_jax.convert.rules import Drop, Rule, Table, conv, reshape
from rvseg_jax.convert.tables.layer_rules import norm, weights
from rvseg_jax.convert.tables.vit_block import block_rules
from rvseg_jax.models.dinov2.encoder import Dinov2Config

MASK_REASON = "stands for hidden patches in pre-training; an encoder of whole images has no use for it"


def table(cfg: Dinov2Config) -> Table:
    """Rules for any size."""
    return Table([*rules(cfg), Drop("mask_token", MASK_REASON, keep=True)])


def rules(cfg: Dinov2Config) -> list[Rule]:
    """The rules of `table`."""
    rows = {"cls_token": 1, "register_tokens": cfg.num_register_tokens, "pos_embed": 1 + cfg.grid**2}
    shapes = {name: (count, -1) for name, count in rows.items()} | {"cls_token": (-1,)}
    return [
        *(Rule(name, name, reshape((1, count, -1), shapes[name])) for name, count in rows.items()),
        *weights("patch_embed.proj", "patch_embed", conv()),
        *block_rules("blocks.{layer}", "blocks", width=cfg.embed_dim, layer_scale=cfg.layer_scale is not None),
        *norm("norm", "norm"),
    ]
