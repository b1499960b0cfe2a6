"""Operations of RAFT's forward pass, two for each multiply-add of a convolution or matrix product."""

import math
from collections.abc import Sequence

from rvseg_jax.models.raft.config import STRIDE, RaftConfig


def encoder_flops(layers: Sequence[int], height: int, width: int) -> int:
    """Operations of one encoder on an image of these sides, multiples of 8."""
    first, *stages, outputs = layers
    pixels, inputs = height * width // 4, first
    total = pixels * 49 * 3 * first
    for index, channels in enumerate(stages):
        if index:
            pixels //= 4
            total += pixels * inputs * channels
        total += pixels * 9 * (inputs * channels + 3 * channels * channels)
        inputs = channels
    return 2 * (total + pixels * inputs * outputs)


def pair_flops(cfg: RaftConfig, height: int, width: int) -> int:
    """Operations from the encoded images of a pair to its flow, if all pairs of pixels are correlated once.

    Windows are counted as read by products with bilinear weights, as on TPU.

    Args:
      height, width: of the images, multiples of 8.
    """
    rows, columns = height // STRIDE, width // STRIDE
    pixels, side, hidden = rows * columns, 2 * cfg.corr_block_radius + 1, cfg.recurrent_block_hidden_state_size
    levels = [(rows >> level, columns >> level) for level in range(cfg.corr_block_num_levels)]
    correlation = cfg.feature_encoder_layers[-1] * sum(a * b for a, b in levels)
    windows = sum(a * b * side + a * side * side for a, b in levels)
    taps = sum(math.prod(kernel) for kernel in cfg.recurrent_block_kernel_size)
    context = taps * cfg.context_channels * 3 * hidden
    mask = cfg.mask_predictor_hidden_size * (9 * hidden + 9 * STRIDE**2)
    update = windows + taps * (hidden + cfg.motion_encoder_out_channels) * 3 * hidden
    update += _motion_flops(cfg) + 9 * cfg.flow_head_hidden_size * (hidden + 2)
    return 2 * pixels * (correlation + context + mask + cfg.num_flow_updates * update)


def clip_flops(cfg: RaftConfig, frames: int, height: int, width: int) -> int:
    """Operations of the flow between neighbouring frames in both directions, each frame encoded once."""
    height, width = (math.ceil(side / STRIDE) * STRIDE for side in (height, width))
    encoders = (cfg.feature_encoder_layers, cfg.context_encoder_layers)
    images = frames * sum(encoder_flops(layers, height, width) for layers in encoders)
    return images + 2 * (frames - 1) * pair_flops(cfg, height, width)


def _motion_flops(cfg: RaftConfig) -> int:
    """Multiply-adds of the motion encoder for a pixel."""
    corr, flow = cfg.motion_encoder_corr_layers, cfg.motion_encoder_flow_layers
    read = cfg.corr_channels * corr[0] + (9 * corr[0] * corr[1] if len(corr) == 2 else 0)
    moved = 49 * 2 * flow[0] + 9 * flow[0] * flow[1]
    return read + moved + 9 * (corr[-1] + flow[-1]) * (cfg.motion_encoder_out_channels - 2)
