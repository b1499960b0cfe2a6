"""GeoMotion's network: which pixels of a video move by themselves, from latent geometry and optical flow.

Source: upstream's `pi3/models/pi3_conf_flow_cam_lowfeature_wo_mean.py`. Pi3 is frozen; the fusion and the decoder of
what was Pi3's confidence are trained.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rvseg_jax.layers import stack
from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.fusion import MotionAwareDecoder
from rvseg_jax.models.pi3 import model as pi3
from rvseg_jax.models.pi3.decoder import frame_rope
from rvseg_jax.models.pi3.model import Geometry, Pi3, Tokens
from rvseg_jax.parallel import Table, prefixed
from rvseg_jax.processing.imagenet import DEVIATION, MEAN

# Paths of the parameters that are trained; 80,320,196 at the published sizes.
TRAINED = (r"^motion_aware_decoder/", r"^pi3/conf_(decoder|head)/")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """What the frozen part of the network says of a video.

    Shapes: high and low [B T, R + h w, 2 D], camera [B T, R + h w, camera_width].

    Attributes:
      high, low: outputs of the decoder blocks `pi3.heads_from` and `low_blocks`, side by side.
      camera: output of the camera decoder.
    """

    tokens: Tokens
    high: jax.Array
    low: jax.Array
    camera: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MotionOutput:
    """Shapes: logits float32 [B, T, H, W].

    Attributes:
      logits: that a pixel moves by itself; upstream's `motion_mask` is their sigmoid.
      geometry: what Pi3 says of the video, without a confidence; None where it was not asked for.
    """

    logits: jax.Array
    geometry: Geometry | None


class GeoMotion(nnx.Module):
    """The whole network; `features` is the frozen part and `motion` the trained one."""

    def __init__(self, cfg: GeoMotionConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.pi3 = Pi3(cfg.pi3, rngs=rngs)
        self.motion_aware_decoder = MotionAwareDecoder(cfg, rngs=rngs)

    @overload
    def __call__(
        self,
        video: jax.Array,
        flow: jax.Array | None,
        *,
        geometry: bool = False,
        taps: Literal[False] = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> MotionOutput: ...

    @overload
    def __call__(
        self,
        video: jax.Array,
        flow: jax.Array | None,
        *,
        geometry: bool = False,
        taps: Literal[True],
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> tuple[MotionOutput, dict[str, jax.Array]]: ...

    def __call__(
        self,
        video: jax.Array,
        flow: jax.Array | None,
        *,
        geometry: bool = False,
        taps: bool = False,
        mode: stack.Mode = "scan",
        remat: stack.Remat = "none",
    ) -> MotionOutput | tuple[MotionOutput, dict[str, jax.Array]]:
        """Motion of the pixels of videos.

        Shapes: video [B, T, H, W, 3] in 0..1, flow [B, T, H, W] or None, sides multiples of the patch size.

        Args:
          flow: magnitude in pixels of this size, not normalised: for each frame the larger one of the flows to its
            neighbours. None leaves the fusion out, as upstream does; that is not how the weights were trained.
          geometry: whether points and cameras are computed; the motion does not need them.
          taps: return also intermediate results, a row a frame: those of Pi3, "fused" (with a flow) and "conf_decoder".
          mode, remat: how blocks run, see `layers.stack.run`; "host_loop" (not inside a jit) keeps one layer's
            temporaries.

        Raises:
          ValueError: for shapes that do not fit.
        """
        how: dict[str, Any] = {"mode": mode, "remat": remat}
        blocks = range(self.cfg.pi3.depth) if taps else ()
        found = self.features(video, keep=blocks, **how)
        fused = self.fuse(found, flow)
        decoded = self.pi3.conf_decoder(fused, found.tokens.rope, **how)
        logits = self.pi3.confidence(found.tokens, decoded)
        point = self.pi3.point_decoder(found.high, found.tokens.rope, **how) if geometry else None
        shape = self.pi3.geometry(found.tokens, point, None, found.camera) if geometry else None
        output = MotionOutput(logits, shape)
        if not taps:
            return output
        seen = {"conf_decoder": decoded} | ({} if point is None else {"point_decoder": point})
        seen |= {} if flow is None else {"fused": fused}
        return output, {**self.pi3.taps(found.tokens, found.high, found.camera), **seen}

    def features(self, video: jax.Array, *, keep: Iterable[int] = (), **how: Any) -> Features:
        """The frozen part; no gradient leaves it.

        Shapes: video [B, T, H, W, 3] in 0..1.

        Args:
          keep: numbers of further decoder blocks whose outputs are kept.
          how: `mode` and `remat`, as for `__call__`.
        """
        if self.cfg.normalise_twice:
            video = (video - MEAN) / DEVIATION
        tokens = self.pi3.encode(video, keep={*keep, *self.cfg.low_blocks}, **how)
        high, low = tokens.join(self.cfg.pi3.heads_from), tokens.join(self.cfg.low_blocks)
        camera = self.pi3.camera_decoder(high, tokens.rope, **how)
        return jax.lax.stop_gradient(Features(tokens, high, low, camera))

    def recalled(self, high: jax.Array, low: jax.Array, camera: jax.Array, grid: tuple[int, int]) -> Features:
        """What `features` gave, from arrays that were stored.

        Shapes: high and low [B, T, R + h w, 2 D], camera [B, T, R + h w, camera width].

        Args:
          grid: rows and columns of patches.
        """
        cfg, compute = self.cfg.pi3, self.cfg.precision.compute
        high, low, camera = compute(high), compute(low), compute(camera)
        blocks = {
            number: part
            for numbers, joined in ((self.cfg.low_blocks, low), (cfg.heads_from, high))
            for number, part in zip(numbers, jnp.split(joined, len(numbers), axis=-1), strict=True)
        }
        tokens = Tokens(None, blocks, frame_rope(cfg, *grid, cfg.head_width // cfg.head_heads), grid)
        rows = (rearrange(x, "b t n d -> (b t) n d") for x in (high, low, camera))
        return jax.lax.stop_gradient(Features(tokens, *rows))

    def fuse(self, found: Features, flow: jax.Array | None) -> jax.Array:
        """Tokens for the motion decoder. Shapes: flow [B, T, H, W] or None -> [B T, R + h w, feature_width].

        Raises:
          ValueError: for a flow that is not of the video, or none where the motion decoder cannot do without it.
        """
        cfg = self.cfg
        if flow is None:
            if found.high.shape[-1] != cfg.feature_width:
                raise ValueError(f"a network whose fused tokens are {cfg.feature_width} wide needs a flow")
            return found.high
        shape = found.tokens.videos(found.high).shape[:2] + tuple(
            cells * cfg.pi3.patch_size for cells in found.tokens.grid
        )
        if flow.shape != shape:
            raise ValueError(f"flow {tuple(flow.shape)} must be {shape}, a number for each pixel of the video")
        return self.motion_aware_decoder(found.low, found.high, found.camera, rearrange(flow, "b t h w -> (b t) h w"))

    def motion(self, found: Features, flow: jax.Array, **how: Any) -> jax.Array:
        """The trained part. Shapes: flow [B, T, H, W] in pixels -> logits float32 [B, T, H, W]."""
        decoded = self.pi3.conf_decoder(self.fuse(found, flow), found.tokens.rope, **how)
        return self.pi3.confidence(found.tokens, decoded)


# Logical axes of the parameters; the first pattern that is found in a path counts, and () keeps a leaf whole.
SHARDING: Table = (
    *prefixed(pi3.SHARDING, "pi3"),
    (r"^motion_aware_decoder/(feature_proj|fusion_proj)/kernel$", ("embed", None)),
    (r"^motion_aware_decoder/flow_encoder/convs/\d+/kernel$", (None, None, "conv_in", "conv_out")),
    (r"^motion_aware_decoder/.*/bias$", ()),
)
