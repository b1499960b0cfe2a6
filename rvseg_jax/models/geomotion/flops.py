"""Operations of GeoMotion's forward pass, two for each multiply-add of a matrix product."""

from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.pi3 import flops as pi3

# Pixels that the three convolutions of the flow give for each patch, in windows of 8 x 8.
_WINDOW_OUTPUTS = (6 * 6, 4 * 4, 2 * 2)


def fusion_flops(cfg: GeoMotionConfig, frames: int, grid: tuple[int, int]) -> int:
    """Operations of the fusion of geometry, camera and flow."""
    patches, side = frames * grid[0] * grid[1], cfg.pi3.patch_size
    tokens = patches + frames * cfg.pi3.register_tokens
    blocks = len(cfg.low_blocks) + len(cfg.pi3.heads_from)
    seen = cfg.feature_width + cfg.flow_channels[-1] + cfg.pi3.camera_width
    linear = tokens * blocks * cfg.pi3.width * cfg.feature_width + patches * seen * cfg.feature_width
    outputs = _WINDOW_OUTPUTS if cfg.flow_windows else (side**2,) * 3
    channels = (1, *cfg.flow_channels)
    convs = sum(9 * a * b * count for a, b, count in zip(channels, channels[1:], outputs, strict=False))
    return 2 * (linear + patches * convs)


def flops(cfg: GeoMotionConfig, frames: int, height: int, width: int, *, geometry: bool = False) -> int:
    """Operations of a forward pass on one video and its flow.

    Args:
      height, width: of the frames in pixels.
      geometry: whether points and cameras are computed.
    """
    pi3_cfg, grid = cfg.pi3, (height // cfg.pi3.patch_size, width // cfg.pi3.patch_size)
    patches, seen = frames * grid[0] * grid[1], len(pi3_cfg.heads_from) * pi3_cfg.width
    area = pi3_cfg.patch_size**2
    decoders = [(cfg.feature_width, pi3_cfg.conf_width), (seen, pi3_cfg.camera_width)]
    heads = area * pi3_cfg.conf_width
    if geometry:
        decoders.append((seen, pi3_cfg.point_width))
        heads += 3 * area * pi3_cfg.point_width + 6 * pi3_cfg.camera_width**2
    return (
        pi3.encoder_flops(pi3_cfg, frames, grid)
        + pi3.decoder_flops(pi3_cfg, frames, grid)
        + sum(pi3.head_decoder_flops(pi3_cfg, inputs, outputs, frames, grid) for inputs, outputs in decoders)
        + fusion_flops(cfg, frames, grid)
        + 2 * patches * heads
    )
