"""Pi3: point maps, confidence and cameras of the frames of a video, which have no order.

Source: upstream's `pi3/models/pi3.py`. Positions are counted within a frame only, so that frames can be permuted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import stack, vit_block
from rvseg_jax.layers.linear import Linear
from rvseg_jax.layers.vit_block import Rope
from rvseg_jax.models.dinov2 import encoder as dinov2
from rvseg_jax.models.dinov2.encoder import Dinov2, ImageTokens
from rvseg_jax.models.pi3.camera import CameraHead, poses
from rvseg_jax.models.pi3.config import Pi3Config
from rvseg_jax.models.pi3.decoder import AlternatingPair, HeadDecoder, alternate, frame_rope
from rvseg_jax.parallel import Table, prefixed
from rvseg_jax.processing.imagenet import DEVIATION, MEAN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """What the backbone of Pi3 gives to the decoders in front of the heads.

    Shapes: blocks {number: [B, T, R + h w, D]}, rope two [R + h w, head width // 2].

    Attributes:
      encoder: tokens of the images, a row a frame; None where the blocks were stored.
      blocks: outputs of the blocks that were asked for, registers in front.
      rope: rotary tables of a frame's tokens for the decoders in front of the heads.
      grid: rows and columns of patches.
    """

    encoder: ImageTokens | None
    blocks: dict[int, jax.Array]
    rope: Rope
    grid: tuple[int, int] = field(metadata={"static": True})

    def join(self, numbers: Sequence[int]) -> jax.Array:
        """Outputs of several blocks side by side, a row a frame. Shapes: -> [B T, R + h w, len(numbers) D]."""
        return rearrange(jnp.concatenate([self.blocks[one] for one in numbers], axis=-1), "b t n d -> (b t) n d")

    def videos(self, x: jax.Array) -> jax.Array:
        """Rows that are frames as frames of videos. Shapes: [B T, ...] -> [B, T, ...]."""
        return x.reshape(next(iter(self.blocks.values())).shape[:2] + x.shape[1:])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Geometry:
    """What Pi3 says of the frames of a video, in float32; the scale is one unknown number for the whole video.

    Shapes: points and local_points [B, T, H, W, 3], conf [B, T, H, W], camera_poses [B, T, 4, 4].

    Attributes:
      points: of each pixel in a frame of reference that all cameras share; None where points were not asked for.
      local_points: of each pixel as its camera sees them: x to the right, y down, z forward.
      conf: logits that a point is right; GeoMotion has none, as its decoder of them was trained anew.
      camera_poses: camera to world.
    """

    points: jax.Array | None
    local_points: jax.Array | None
    conf: jax.Array | None
    camera_poses: jax.Array


class PixelHead(nnx.Module):
    """`channels` numbers for each pixel of a patch, by one linear layer."""

    def __init__(self, cfg: Pi3Config, inputs: int, channels: int, *, rngs: nnx.Rngs):
        precision = cfg.precision.in_float32()  # upstream keeps the heads out of autocast
        self.proj = Linear(inputs, channels * cfg.patch_size**2, precision=precision, rngs=rngs)
        self.patch_size = cfg.patch_size

    def __call__(self, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Shapes: patches [B, h w, D] -> [B, H, W, channels]."""
        form = "b (h w) (c p q) -> b (h p) (w q) c"
        side = self.patch_size
        return rearrange(self.proj(patches), form, h=grid[0], w=grid[1], p=side, q=side)


class Pi3(nnx.Module):
    """The whole model; `encode` is its backbone, and the rest are branches that can be asked for one by one."""

    def __init__(self, cfg: Pi3Config, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(1e-6)
        seen = len(cfg.heads_from) * cfg.width
        self.cfg = cfg
        self.encoder = Dinov2(cfg.encoder, rngs=rngs)
        self.register_token = nnx.Param(
            init(rngs.params(), (cfg.register_tokens, cfg.width), cfg.precision.param_dtype)
        )
        self.decoder = stack.stacked(lambda keys: AlternatingPair(cfg, rngs=keys), cfg.depth // 2, rngs=rngs)
        self.point_decoder = HeadDecoder(cfg, seen, cfg.point_width, rngs=rngs)
        self.conf_decoder = HeadDecoder(cfg, seen, cfg.conf_width, rngs=rngs)
        self.camera_decoder = HeadDecoder(cfg, seen, cfg.camera_width, rngs=rngs)
        self.point_head = PixelHead(cfg, cfg.point_width, 3, rngs=rngs)
        self.conf_head = PixelHead(cfg, cfg.conf_width, 1, rngs=rngs)
        self.camera_head = CameraHead(cfg.camera_width, precision=cfg.precision.in_float32(), rngs=rngs)

    @overload
    def __call__(
        self,
        video: jax.Array,
        *,
        points: bool = True,
        taps: Literal[False] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> Geometry: ...

    @overload
    def __call__(
        self,
        video: jax.Array,
        *,
        points: bool = True,
        taps: Literal[True],
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> tuple[Geometry, dict[str, jax.Array]]: ...

    def __call__(
        self,
        video: jax.Array,
        *,
        points: bool = True,
        taps: bool = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> Geometry | tuple[Geometry, dict[str, jax.Array]]:
        """Geometry of the frames of videos.

        Shapes: video [B, T, H, W, 3] in 0..1, sides multiples of the patch size.

        Args:
          points: whether the points are computed; confidence and cameras do not need them.
          taps: return also intermediate results, a row a frame: "encoder_patch_tokens", "encoder_cls",
            "encoder_registers", "block0", "block1", ..., "heads_in", "point_decoder", "conf_decoder",
            "camera_decoder", "camera_raw_3x3", "camera_translation".
          mode, remat: how blocks run, see `layers.stack.run`; "host_loop" (not inside a jit) keeps one layer's
            temporaries.

        Raises:
          ValueError: for a video of another shape.
        """
        how: dict[str, Any] = {"mode": mode, "remat": remat}
        tokens = self.encode(video, keep=range(self.cfg.depth) if taps else (), **how)
        seen = tokens.join(self.cfg.heads_from)
        point = self.point_decoder(seen, tokens.rope, **how) if points else None
        conf = self.conf_decoder(seen, tokens.rope, **how)
        camera = self.camera_decoder(seen, tokens.rope, **how)
        geometry = self.geometry(tokens, point, self.confidence(tokens, conf), camera)
        if not taps:
            return geometry
        decoded = {"conf_decoder": conf} | ({} if point is None else {"point_decoder": point})
        return geometry, {**self.taps(tokens, seen, camera), **decoded}

    def encode(
        self,
        video: jax.Array,
        *,
        keep: Iterable[int] = (),
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> Tokens:
        """The backbone: tokens of all frames after chosen blocks of the decoder.

        Shapes: video [B, T, H, W, 3] in 0..1.

        Args:
          keep: numbers of the blocks, besides those of `cfg.heads_from`.
          mode, remat: as for `__call__`.

        Raises:
          ValueError: for a video of another shape.
        """
        cfg = self.cfg
        if video.ndim != 5:
            raise ValueError(f"video {tuple(video.shape)} must be [B, T, H, W, 3]")
        frames, grid = video.shape[1], (video.shape[2] // cfg.patch_size, video.shape[3] // cfg.patch_size)
        found = self.encoder(rearrange((video - MEAN) / DEVIATION, "b t h w c -> (b t) h w c"), mode=mode, remat=remat)
        registers = cfg.precision.compute(self.register_token[...])
        registers = jnp.broadcast_to(registers, (len(found.patches), *registers.shape))
        x = rearrange(jnp.concatenate([registers, found.patches], axis=1), "(b t) n d -> b t n d", t=frames)
        rope = frame_rope(cfg, *grid, cfg.width // cfg.num_heads)
        kept = alternate(self.decoder, x, rope, {*keep, *cfg.heads_from}, mode=mode, remat=remat)
        return Tokens(found, kept, frame_rope(cfg, *grid, cfg.head_width // cfg.head_heads), grid)

    def confidence(self, tokens: Tokens, decoded: jax.Array) -> jax.Array:
        """Logits for each pixel, from the output of `conf_decoder`.

        Shapes: decoded [B T, R + h w, conf_width] -> float32 [B, T, H, W].
        """
        return tokens.videos(self.conf_head(self._patches(decoded), tokens.grid)[..., 0])

    def geometry(self, tokens: Tokens, point: jax.Array | None, conf: jax.Array | None, camera: jax.Array) -> Geometry:
        """Points and cameras from the outputs of `point_decoder` and `camera_decoder`.

        Shapes: point [B T, R + h w, point_width] or None, conf [B, T, H, W] as it is to be handed on,
        camera [B T, R + h w, camera_width].
        """
        cameras = tokens.videos(poses(*self.camera_head(self._patches(camera))))
        if point is None:
            return Geometry(None, None, conf, cameras)
        raw = tokens.videos(self.point_head(self._patches(point), tokens.grid))
        depth = jnp.exp(raw[..., 2:])
        local = jnp.concatenate([raw[..., :2] * depth, depth], axis=-1)
        return Geometry(to_world(local, cameras), local, conf, cameras)

    def taps(self, tokens: Tokens, seen: jax.Array, camera: jax.Array) -> dict[str, jax.Array]:
        """The intermediate results of `__call__` that GeoMotion has too.

        Shapes: seen [B T, R + h w, 2 D] of `heads_from`, camera [B T, R + h w, camera_width] of `camera_decoder`.
        """
        encoder, (raw, translation) = tokens.encoder, self.camera_head(self._patches(camera))
        assert encoder is not None, "tokens that were stored have no taps"
        named = {"patch_tokens": encoder.patches, "cls": encoder.cls, "registers": encoder.registers}
        return {
            **{f"encoder_{name}": value for name, value in named.items()},
            **{f"block{number}": tokens.join([number]) for number in sorted(tokens.blocks)},
            **{"heads_in": seen, "camera_decoder": camera, "camera_raw_3x3": raw, "camera_translation": translation},
        }

    def _patches(self, decoded: jax.Array) -> jax.Array:
        """Without the registers. Shapes: [B, R + h w, D] -> [B, h w, D]."""
        return decoded[:, self.cfg.register_tokens :]


def to_world(local: jax.Array, camera_poses: jax.Array) -> jax.Array:
    """Points in the frame that the cameras share.

    Shapes: local [B, T, H, W, 3], camera_poses [B, T, 4, 4] -> [B, T, H, W, 3].
    """
    rotation, translation = camera_poses[..., :3, :3], camera_poses[..., :3, 3]
    turned = jnp.einsum("btij,bthwj->bthwi", rotation, local, precision="highest")
    return turned + translation[:, :, None, None]


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    *prefixed(dinov2.SHARDING, "encoder"),
    *prefixed(vit_block.SHARDING, "decoder"),
    *prefixed(vit_block.SHARDING, "(point|conf|camera)_decoder/blocks"),
    (r"^(point|conf|camera)_decoder/(projects|linear_out)/kernel$", ("embed", None)),
    # The camera head and the two heads of pixels are small.
    (r"^(register_token$|camera_head/|point_head/|conf_head/)", ()),
    (r"^(point|conf|camera)_decoder/(projects|linear_out)/bias$", ()),
)
