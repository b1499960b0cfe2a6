"""What a training step of the Wan transformer computes; the forward pass alone is `transformer_config.flops`."""

from dataclasses import dataclass, replace

from rvseg_jax.layers.stack import Remat
from rvseg_jax.models.wan.transformer_config import WanTransformerConfig, flops


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of one sample, two for each multiply-add of a matrix product.

    Attributes:
      forward: the forward pass.
      backward: gradients of inputs and weights, twice the forward pass.
      recomputed: what is computed again in the backward pass to save memory.
    """

    forward: int
    backward: int
    recomputed: int

    @property
    def total(self) -> int:
        """All operations that the device carries out."""
        return self.forward + self.backward + self.recomputed


def attention_products(cfg: WanTransformerConfig, tokens: int, text_tokens: int) -> int:
    """Operations of one of the two products of attention, queries with keys, over all layers."""
    return 2 * cfg.num_layers * tokens * (tokens + text_tokens) * cfg.inner_dim


def training_flops(
    cfg: WanTransformerConfig, tokens: int, text_tokens: int, *, remat: Remat, kernel_products: int = 0
) -> TrainingFlops:
    """Operations of forward and backward pass of one sample.

    Args:
      tokens, text_tokens: as for `flops`.
      remat: of `layers.stack.run`: "full" computes every block again, "dots" the products of attention.
      kernel_products: products like queries with keys that the attention kernel computes again in its backward
        pass: 0 for plain attention, 1 for a kernel that keeps no weights, 3 for one that makes the gradients of
        queries and of keys in two passes.
    """
    forward = flops(cfg, tokens, text_tokens)
    blocks = forward - flops(replace(cfg, num_layers=0), tokens, text_tokens)
    product = attention_products(cfg, tokens, text_tokens)
    again = {"none": 0, "full": blocks, "dots": 2 * product}[remat]
    return TrainingFlops(forward, 2 * forward, again + kernel_products * product)
