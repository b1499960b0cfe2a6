"""A small model with every kind of rule: stacks, a fused qkv, a concat, convolutions, an alias, drops."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.convert.registry import Part
from rvseg_jax.convert.rules import (
    Alias,
    Drop,
    Rule,
    Table,
    concat,
    conv,
    deconv,
    linear,
    reshape,
    split,
    stack,
    transpose,
)
from rvseg_jax.core.precision import FLOAT32, Precision


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Sizes of the toy model."""

    width: int = 4
    layers: int = 3
    vocab: int = 16
    window: tuple[int, int] = (2, 3)
    precision: Precision = FLOAT32


class Leaf(nnx.Module):
    """Named parameters."""

    def __init__(self, dtype, **shapes):
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape, dtype)))


class Toy(nnx.Module):
    """Stacked blocks, a list of convolutions, an embedding, a gate that joins two torch tensors."""

    def __init__(self, cfg, *, rngs):
        d, dtype, layers = cfg.width, cfg.precision.param_dtype, cfg.layers
        self.cfg = cfg
        self.embed = Leaf(dtype, embedding=(cfg.vocab, d))
        self.blocks = Leaf(
            dtype,
            q=(layers, d, d),
            k=(layers, d, d),
            v=(layers, d, d),
            up=(layers, d, 2 * d),
            scale=(layers, d),
        )
        self.convs = nnx.List([Leaf(dtype, kernel=(*cfg.window, d, 2 * d), gamma=(d,)) for _ in range(2)])
        self.up = Leaf(dtype, kernel=(2, 2, d, 2 * d))
        self.pair = Leaf(dtype, kernel=(2, d, 3))


def table(cfg):
    """Rules of the toy model."""
    return Table(
        [
            Rule("shared.weight", "embed/embedding"),
            Rule("blocks.{layer}.qkv.weight", ("blocks/q", "blocks/k", "blocks/v"), split(0, 3), linear()),
            Rule(
                ("blocks.{layer}.gate.weight", "blocks.{layer}.value.weight"),
                "blocks/up",
                concat(0, 2),
                linear(),
            ),
            Rule("blocks.{layer}.norm.weight", "blocks/scale"),
            Rule("convs.{i}.weight", "convs/{i}/kernel", conv()),
            Rule("convs.{i}.norm.gamma", "convs/{i}/gamma", reshape((-1, 1, 1), (-1,))),
            Rule("up.weight", "up/kernel", deconv()),
            Rule(("heads.0.weight", "heads.4.weight"), "pair/kernel", stack(2), transpose(0, 2, 1)),
            Alias("encoder.embed.weight", of="shared.weight"),
            Drop("blocks.{layer}.freqs", "computed from the config"),
            Drop("step", "how long it was trained", keep=True),
        ]
    )


SHARDING = (
    (r"^blocks/[qkv]$", ("layers", "embed", "heads")),
    (r"^embed/embedding$", ("vocab", "embed")),
    (r"^blocks/up$", ("layers", "embed", "mlp")),
    (r"", ()),
)

PART = Part("toy", __name__, "Toy", "ToyConfig", licence="CC0-1.0 (toy)", table_module=__name__)


def tensors(cfg=None, seed=0):
    """Random torch-layout weights of the toy model, with the alias and the dropped keys."""
    cfg = cfg or ToyConfig()
    rng, d = np.random.default_rng(seed), cfg.width
    shapes = {"shared.weight": (cfg.vocab, d), "up.weight": (2 * d, d, 2, 2)}
    for layer in range(cfg.layers):
        shapes |= {
            f"blocks.{layer}.qkv.weight": (3 * d, d),
            f"blocks.{layer}.gate.weight": (d, d),
            f"blocks.{layer}.value.weight": (d, d),
            f"blocks.{layer}.norm.weight": (d,),
            f"blocks.{layer}.freqs": (5,),
        }
    for i in range(2):
        shapes |= {f"convs.{i}.weight": (2 * d, d, *cfg.window), f"convs.{i}.norm.gamma": (d, 1, 1)}
    shapes |= {"heads.0.weight": (3, d), "heads.4.weight": (3, d), "step": ()}
    made = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    made["step"] = np.asarray(7, np.int64)
    made["encoder.embed.weight"] = made["shared.weight"].copy()
    return made
