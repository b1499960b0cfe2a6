"""What is known of TPU chips, and names of their topologies such as "v5p:4x4x4"."""

import math
import re
from dataclasses import dataclass

from rvseg_jax.core.errors import InputError


@dataclass(frozen=True)
class Chip:
    """Peak figures of one device as JAX counts them, from the vendor's pages; a roofline never gets better than these.

    Attributes:
      flops: bfloat16 operations a second.
      memory: bytes that a program may use, below the HBM that is built in.
      memory_rate: bytes a second between HBM and the chip.
      link_rate: bytes a second that a chip sends over all its links, half of the bidirectional figure.
      axes: dimensions of a topology.
      source: where the figures are from.
    """

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    axes: int
    source: str


_DOCS = "https://cloud.google.com/tpu/docs"
# The compiler keeps 0.25 GiB of HBM for itself: v5e refuses programs above 15.75 GiB.
_RESERVED = 2**28


def _chip(tflops: float, gib: float, gigabytes: float, links: float, axes: int, page: str) -> Chip:
    memory = gib * 2**30 - _RESERVED
    return Chip(tflops * 1e12, memory, gigabytes * 1e9, links / 2 * 1e9, axes, f"{_DOCS}/{page}")


CHIPS = {
    "v4": _chip(275, 32, 1200, 600, 3, "v4"),
    "v5e": _chip(197, 16, 819, 400, 2, "v5e"),
    "v5p": _chip(459, 95, 2765, 1200, 3, "v5p"),
    "v6e": _chip(918, 32, 1638, 800, 2, "v6e"),
    # JAX sees each of the two halves of a chip as a device.
    "tpu7x": _chip(2307 / 2, 192 / 2, 7380 / 2, 1200 / 2, 3, "tpu7x"),
}


@dataclass(frozen=True)
class Topology:
    """A slice of a pod.

    Attributes:
      name: as libtpu knows it.
      kind: key of `CHIPS`.
      devices: devices that JAX sees.
    """

    name: str
    kind: str
    devices: int

    @property
    def chip(self) -> Chip:
        """Peak figures of a device."""
        return CHIPS[self.kind]

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """The slice called "KIND:AxB" or "KIND:AxBxC".

        Raises:
          InputError: for an unknown kind, or another number of dimensions than its pods have.
        """
        kind, _, shape = name.partition(":")
        if kind not in CHIPS:
            raise InputError(f"unknown TPU {kind!r} in topology {name!r}: choose one of {', '.join(CHIPS)}")
        axes = CHIPS[kind].axes
        if not re.fullmatch("x".join([r"[1-9]\d{0,3}"] * axes), shape):
            example = f"{kind}:{'x'.join(['4'] * axes)}"
            raise InputError(f"topology {name!r} is not of {axes} dimensions, as those of {kind} are: write {example}")
        chips = math.prod(int(size) for size in shape.split("x"))
        return cls(name, kind, chips * (2 if kind == "tpu7x" else 1))
