"""Rules of the blocks of vision transformers, keys as in DINOv2 and in what is built of its blocks."""

from rvseg_jax.convert.rules import Rule, linear, reshape
from rvseg_jax.convert.tables.layer_rules import norm, weights


def block_rules(
    source: str, target: str, *, width: int, qk_norm: bool = False, layer_scale: bool = False, gamma: str = ".gamma"
) -> list[Rule]:
    """Rules of one `layers.vit_block.ViTBlock`, or of a stack where `source` has a placeholder.

    Args:
      gamma: what follows on "ls1" and "ls2" in the keys of the factors on both branches.
    """
    rules = [
        *norm(f"{source}.norm1", f"{target}/norm1"),
        *norm(f"{source}.norm2", f"{target}/norm2"),
        Rule(
            f"{source}.attn.qkv.weight",
            f"{target}/attn/qkv/kernel",
            linear(),
            reshape((width, 3 * width), (width, 3, width)),
        ),
        Rule(f"{source}.attn.qkv.bias", f"{target}/attn/qkv/bias", reshape((3 * width,), (3, width))),
        *weights(f"{source}.attn.proj", f"{target}/attn/proj", linear()),
        *weights(f"{source}.mlp.fc1", f"{target}/mlp/up", linear()),
        *weights(f"{source}.mlp.fc2", f"{target}/mlp/down", linear()),
    ]
    for name in ("q_norm", "k_norm") if qk_norm else ():
        rules += norm(f"{source}.attn.{name}", f"{target}/attn/{name}")
    for name in ("ls1", "ls2") if layer_scale else ():
        rules.append(Rule(f"{source}.{name}{gamma}", f"{target}/{name}"))
    return rules
