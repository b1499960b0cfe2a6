"""Operations of Pi3's forward pass, two for each multiply-add of a matrix product."""

from rvseg_jax.models.pi3.config import Pi3Config


def block_flops(width: int, mlp_ratio: float, tokens: int, keys: int) -> int:
    """Operations of a block of `layers.vit_block`.

    Args:
      tokens: all tokens of the batch.
      keys: tokens that each of them attends to.
    """
    projections = (4 + 2 * mlp_ratio) * width * width
    return int(2 * tokens * (projections + 2 * keys * width))


def encoder_flops(cfg: Pi3Config, frames: int, grid: tuple[int, int]) -> int:
    """Operations of DINOv2 on frames of `grid` patches."""
    encoder, patches = cfg.encoder, grid[0] * grid[1]
    tokens = patches + 1 + encoder.num_register_tokens
    embedding = 2 * frames * patches * 3 * encoder.patch_size**2 * encoder.embed_dim
    return embedding + encoder.depth * block_flops(encoder.embed_dim, encoder.mlp_ratio, frames * tokens, tokens)


def decoder_flops(cfg: Pi3Config, frames: int, grid: tuple[int, int]) -> int:
    """Operations of the alternating decoder on one video."""
    tokens = grid[0] * grid[1] + cfg.register_tokens
    keys = (tokens, frames * tokens)
    return cfg.depth // 2 * sum(block_flops(cfg.width, cfg.mlp_ratio, frames * tokens, one) for one in keys)


def head_decoder_flops(cfg: Pi3Config, inputs: int, outputs: int, frames: int, grid: tuple[int, int]) -> int:
    """Operations of one decoder in front of a head."""
    tokens = grid[0] * grid[1] + cfg.register_tokens
    blocks = cfg.head_depth * block_flops(cfg.head_width, cfg.head_mlp_ratio, frames * tokens, tokens)
    return blocks + 2 * frames * tokens * cfg.head_width * (inputs + outputs)


def flops(cfg: Pi3Config, frames: int, height: int, width: int, *, points: bool = True) -> int:
    """Operations of a forward pass on one video.

    Args:
      height, width: of the frames in pixels.
      points: whether the points are computed.
    """
    grid = (height // cfg.patch_size, width // cfg.patch_size)
    patches, seen = frames * grid[0] * grid[1], len(cfg.heads_from) * cfg.width
    widths = {"conf": cfg.conf_width, "camera": cfg.camera_width} | ({"point": cfg.point_width} if points else {})
    decoders = sum(head_decoder_flops(cfg, seen, width, frames, grid) for width in widths.values())
    pixels = sum(channels * widths.get(name, 0) for name, channels in (("point", 3), ("conf", 1))) * cfg.patch_size**2
    camera = 6 * cfg.camera_width**2
    heads = 2 * patches * (pixels + camera)
    return encoder_flops(cfg, frames, grid) + decoder_flops(cfg, frames, grid) + decoders + heads
