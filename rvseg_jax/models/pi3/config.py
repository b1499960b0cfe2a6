"""Sizes of Pi3."""

from dataclasses import dataclass, field, replace

from rvseg_jax.core.precision import PARITY, Precision
from rvseg_jax.models.dinov2.encoder import Dinov2Config


@dataclass(frozen=True)
class Pi3Config:
    """Sizes of Pi3; the defaults are the published ones, 958,696,732 parameters.

    Attributes:
      encoder: its width is that of the decoder, as there is no projection between them.
      depth: blocks of the alternating decoder; those with an even number attend within a frame, the others to all
        frames. It is even.
      heads_from: decoder blocks whose outputs, side by side, are what the head decoders see.
      qk_norm, layer_scale: of the decoder's blocks; a layer_scale of None leaves the factors out.
      register_tokens: tokens in front of each frame's patches, at rotary position 0.
      rope_theta: base of the rotary frequencies.
      head_width, head_depth, head_heads, head_mlp_ratio, head_qk_norm, head_layer_scale: of the decoders in front of
        the heads, which attend within a frame.
      point_width, conf_width, camera_width: what these decoders give to their heads.
    """

    encoder: Dinov2Config = field(default_factory=Dinov2Config)
    depth: int = 36
    num_heads: int = 16
    mlp_ratio: float = 4
    heads_from: tuple[int, ...] = (34, 35)
    qk_norm: bool = True
    layer_scale: float | None = 0.01
    register_tokens: int = 5
    rope_theta: float = 100.0
    norm_eps: float = 1e-6
    head_width: int = 1024
    head_depth: int = 5
    head_heads: int = 16
    head_mlp_ratio: float = 4
    head_qk_norm: bool = False
    head_layer_scale: float | None = None
    point_width: int = 1024
    conf_width: int = 1024
    camera_width: int = 512
    precision: Precision = PARITY

    def __post_init__(self) -> None:
        # One number format for all of it: `with_precision` and the manifests know the outer one only.
        object.__setattr__(self, "encoder", replace(self.encoder, precision=self.precision))
        if self.depth % 2:
            raise ValueError(f"depth {self.depth} must be even: frame and global blocks alternate")
        check_blocks("heads_from", self.heads_from, self.depth)

    @classmethod
    def published(cls, precision: Precision = PARITY) -> "Pi3Config":
        """`yyfz233/Pi3`: 958,696,732 parameters."""
        return cls(precision=precision)

    @classmethod
    def tiny(cls, precision: Precision = PARITY) -> "Pi3Config":
        """A network for tests."""
        return cls(
            encoder=Dinov2Config.tiny(precision),
            depth=6,
            num_heads=2,
            heads_from=(4, 5),
            head_width=32,
            head_depth=2,
            head_heads=2,
            point_width=32,
            conf_width=32,
            camera_width=16,
            precision=precision,
        )

    @property
    def width(self) -> int:
        """Width of the encoder and of the decoder."""
        return self.encoder.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder.patch_size


def check_blocks(name: str, blocks: tuple[int, ...], depth: int) -> None:
    """Raises `ValueError` unless `blocks` are numbers of different decoder blocks in ascending order."""
    if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= depth:
        raise ValueError(f"{name} {blocks} must be ascending numbers of blocks below {depth}")
