"""What a step does and holds on a device, in the terms in which a system's planning module says it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rvseg_jax.layers.stack import Remat
from rvseg_jax.planning.step import PlannedStep

# Arrays that one block holds in its backward pass, in units of its forward pass's: the recomputed ones, their
# cotangents, and the float32 copies of both under norms and gates. The compiler had 4.59 GiB of temporaries where
# this gives 4.41 (FlowRVS 1.3B, 17 frames, fsdp=4).
_BACKWARD_FACTOR = 6


@dataclass(frozen=True)
class Blocks:
    """A run of equal transformer blocks on one device.

    Attributes:
      layers: blocks.
      tokens: of all samples, as the device has them.
      width: numbers of a token between blocks.
      whole, cut: numbers that a block holds at once for a token, those that the devices along tensor share included
        in `cut` as if there were one device.
      itemsize: bytes of a number.
      tensor: devices that share `cut`.
      largest: numbers of the largest matrix of a layer.
      remat: what the backward pass computes again; None where no gradient passes.
    """

    layers: int
    tokens: int
    width: int
    whole: int
    cut: int
    itemsize: int
    tensor: int
    largest: int
    remat: Remat | None

    @property
    def between(self) -> int:
        """Bytes of the tokens between two blocks."""
        return self.tokens * self.width * self.itemsize

    @property
    def block(self) -> int:
        """Bytes of a block's activations."""
        return self.tokens * self.itemsize * (self.whole + self.cut // self.tensor)

    @property
    def kept(self) -> int:
        """Bytes that wait for the backward pass."""
        return 0 if self.remat is None else self.layers * (self.between if self.remat == "full" else self.block)

    @property
    def widest(self) -> int:
        """Bytes in the widest place, beside what is kept: one block, and one layer's matrix in two copies."""
        factor = 1 if self.remat is None else _BACKWARD_FACTOR
        return factor * self.block + 2 * self.itemsize * self.largest // self.tensor

    @property
    def traffic(self) -> float:
        """Bytes of activations between HBM and the chip."""
        passes = 1 if self.remat is None else 3 + (self.remat == "full")
        return 2 * passes * self.layers * self.tokens * self.itemsize * (self.whole + self.cut) / self.tensor

    def sent(self, sizes: Mapping[str, int]) -> float:
        """Bytes of activations that a device sends along tensor and seq."""
        # Two products of each block end in a sum over tensor; forward, again in the backward pass, and its gradients.
        passes = 1 if self.remat is None else 3
        tensor = 2 * others(sizes, "tensor") * 2 * passes * self.layers * self.between
        # Keys and values go around, forward and again; their float32 gradients too.
        around = {None: 2.0, "full": 2 * 2 * 2 + 2 * 4 / self.itemsize}.get(self.remat, 2 * 2 + 2 * 4 / self.itemsize)
        return tensor + (sizes["seq"] - 1) * self.layers * self.between / sizes["tensor"] * around


@dataclass(frozen=True)
class Work:
    """What a step does.

    Attributes:
      flops: operations over all devices by part, each counted once.
      repeated: parts that every device of a row of seq and tensor does again, with what they do in words.
      temporaries: bytes of a device beside the state, the batch and the gradients.
      runs: blocks whose activations pass between HBM and the chip, and between devices.
      gathers: how often the trained weights are gathered along fsdp.
      read: bytes of frozen weights that a device reads.
      gathered: bytes of frozen weights that are gathered along fsdp.
      traffic: further bytes between HBM and the chip.
    """

    flops: dict[str, int]
    repeated: Mapping[str, str]
    temporaries: int
    runs: tuple[Blocks, ...]
    gathers: int
    read: float
    gathered: float
    traffic: float


def others(sizes: Mapping[str, int], axis: str) -> float:
    """Share of an array that is on the other devices of an axis."""
    return (sizes[axis] - 1) / sizes[axis]


def samples_of(step: PlannedStep, sizes: Mapping[str, int]) -> int:
    """Samples that a device has at a time."""
    return max(step.settings.batch_size // step.settings.optimizer.accumulate // (sizes["data"] * sizes["fsdp"]), 1)


def kernel_of(sizes: Mapping[str, int]) -> str:
    """Attention back end of long rows."""
    return "ring" if sizes["seq"] > 1 else "splash"


# The splash kernel makes the gradients of queries and of keys in two passes; a ring keeps only row sums.
KERNEL_PRODUCTS = {"splash": 3, "ring": 1}


def sharded_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree)
    )


def whole_bytes(tree: Any, itemsize: int | None = None) -> int:
    """Bytes of a tree, in its formats or in one with numbers of `itemsize` bytes."""
    return sum(math.prod(leaf.shape) * (itemsize or _itemsize(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def largest_layer(tree: Any) -> int:
    """Numbers of the largest matrix of one layer of stacked ones."""
    return max((math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(tree)), default=0)


def _itemsize(dtype: Any) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
