"""Sizes of XMem's networks, and how its memories are run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvseg_jax.core.precision import PARITY, Precision

STRIDE = 16
_BOTTLENECK = 4


@dataclass(frozen=True)
class XMemConfig:
    """Sizes of XMem; the defaults are the published ones, 62,185,224 parameters.

    Attributes:
      key_dim, value_dim, hidden_dim: channels of keys, of values and of the sensory memory; a hidden_dim of 0 is the
        variant without sensory memory.
      key_planes, key_depths: width of the bottlenecks (a quarter of what they give out) and number of blocks at
        strides 4, 8 and 16 of the key encoder, a ResNet-50 without its last stage. Its stem is as wide as the first.
      value_planes, value_depths: the same of the value encoder, a ResNet-18 of plain blocks.
      decoder_dim: channels of the decoder at stride 16.
      up_dim: its channels at strides 8 and 4.
      reduction: the channel gates of CBAM are as much narrower inside.
      single_object: the value encoder does not see the masks of other objects (upstream's models of stage 0); with
        several objects that is the same as zero weights on them.
    """

    key_dim: int = 64
    value_dim: int = 512
    hidden_dim: int = 64
    key_planes: tuple[int, int, int] = (64, 128, 256)
    key_depths: tuple[int, int, int] = (3, 4, 6)
    value_planes: tuple[int, int, int] = (64, 128, 256)
    value_depths: tuple[int, int, int] = (2, 2, 2)
    decoder_dim: int = 512
    up_dim: int = 256
    reduction: int = 16
    single_object: bool = False
    precision: Precision = PARITY

    @classmethod
    def published(cls, precision: Precision = PARITY) -> "XMemConfig":
        """`XMem.pth`, `XMem-s012.pth` and `XMem-s2.pth` of release v1.0."""
        return cls(precision=precision)

    @classmethod
    def without_sensory(cls, precision: Precision = PARITY) -> "XMemConfig":
        """`XMem-no-sensory.pth` of release v1.0."""
        return cls(hidden_dim=0, precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "XMemConfig":
        """A network for tests and small machines: 1.0 M parameters, made for clips of 128 pixels."""
        return cls(
            key_dim=16,
            value_dim=64,
            hidden_dim=16,
            key_planes=(16, 24, 32),
            key_depths=(1, 1, 2),
            value_planes=(16, 24, 32),
            value_depths=(1, 1, 1),
            decoder_dim=64,
            up_dim=32,
            reduction=8,
            precision=precision,
        )

    @property
    def key_features(self) -> tuple[int, int, int]:
        """Channels that the key encoder gives at strides 4, 8 and 16."""
        first, second, third = self.key_planes
        return first * _BOTTLENECK, second * _BOTTLENECK, third * _BOTTLENECK

    @property
    def mask_channels(self) -> int:
        """Masks that the value encoder sees of each object: its own, and the sum of the others'."""
        return 1 if self.single_object else 2

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], precision: Precision = PARITY) -> "XMemConfig":
        """The config of a checkpoint, from the shapes of its tensors under upstream's keys.

        Raises:
          ValueError: if a tensor that tells a size is missing.
        """

        def width(key: str, axis: int = 0) -> int:
            if key not in shapes or len(shapes[key]) <= axis:
                raise ValueError(f"no XMem checkpoint: it has no tensor {key} with {axis + 1} axes")
            return int(shapes[key][axis])

        def depth(stage: str) -> int:
            return len({key.split(".")[2] for key in shapes if key.startswith(f"{stage}.")})

        def sizes(encoder: str, stages: tuple[str, str, str]) -> dict[str, tuple[int, int, int]]:
            first, second, third = (f"{encoder}_encoder.{stage}" for stage in stages)
            planes = (width(f"{first}.0.conv1.weight"), width(f"{second}.0.conv1.weight"))
            return {
                f"{encoder}_planes": (*planes, width(f"{third}.0.conv1.weight")),
                f"{encoder}_depths": (depth(first), depth(second), depth(third)),
            }

        hidden = "decoder.hidden_update.transform.weight"
        gate = "decoder.fuser.attention.ChannelGate.mlp.1.weight"
        decoder_dim = width("decoder.fuser.block2.conv2.weight")
        kinds: dict[str, Any] = {
            **sizes("key", ("res2", "layer2", "layer3")),
            **sizes("value", ("layer1", "layer2", "layer3")),
        }
        return cls(
            key_dim=width("key_proj.key_proj.weight"),
            value_dim=width("value_encoder.fuser.block2.conv2.weight"),
            hidden_dim=width(hidden) // 3 if hidden in shapes else 0,
            decoder_dim=decoder_dim,
            up_dim=width("decoder.pred.weight", 1),
            reduction=max(decoder_dim // max(width(gate), 1), 1),
            single_object=width("value_encoder.conv1.weight", 1) == 4,
            precision=precision,
            **kinds,
        )


@dataclass(frozen=True)
class MemoryConfig:
    """How the memories are run, under the names of upstream's flags; the defaults are those of its `eval.py`.

    Attributes:
      mem_every: frames from one memory frame to the next.
      deep_update_every: frames between deep updates of the sensory memory; below 0 on every memory frame.
      top_k: memory elements that a position reads from.
      enable_long_term: consolidate old memory frames into prototypes. Without it `max_mid_term_frames` - 1 frames
        are kept, the first and the latest (upstream then keeps all, without bound).
      enable_long_term_count_usage: remove the least used prototypes when the store is full; without it the oldest
        (where upstream stops with an error).
      min_mid_term_frames, max_mid_term_frames: frames of working memory after a consolidation, and those at which
        one is due.
      num_prototypes: prototypes of a consolidation.
      max_long_term_elements: capacity of the long-term store.
      size: pixels of the shorter side at which frames are segmented; -1 leaves them as they are.
      query_block: positions that read from memory at a time, which bounds the memory that a frame takes.
    """

    mem_every: int = 5
    deep_update_every: int = -1
    top_k: int = 30
    enable_long_term: bool = True
    enable_long_term_count_usage: bool = True
    min_mid_term_frames: int = 5
    max_mid_term_frames: int = 10
    num_prototypes: int = 128
    max_long_term_elements: int = 10_000
    size: int = 480
    query_block: int = 256

    def __post_init__(self) -> None:
        for name in ("mem_every", "top_k", "num_prototypes", "query_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 1 <= self.min_mid_term_frames < self.max_mid_term_frames:
            raise ValueError(
                f"min_mid_term_frames {self.min_mid_term_frames} and max_mid_term_frames {self.max_mid_term_frames}: "
                "give 1 <= min < max"
            )
        if self.max_long_term_elements < self.num_prototypes:
            raise ValueError(
                f"max_long_term_elements {self.max_long_term_elements} must hold the num_prototypes "
                f"{self.num_prototypes} of a consolidation"
            )
