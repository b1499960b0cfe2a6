"""Operations of MLLMSeg outside its language model, two for each multiply-add of a matrix product."""

from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig
from rvseg_jax.models.pi3.flops import block_flops


def image_flops(cfg: InternVLConfig, size: int) -> int:
    """Operations of vision transformer and projector on one image.

    Args:
      size: side of the image in pixels.
    """
    vision = cfg.vision
    patches = (size // vision.patch_size) ** 2
    embedding = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    ratio = vision.intermediate_size / vision.hidden_size
    blocks = vision.num_hidden_layers * block_flops(vision.hidden_size, ratio, patches + 1, patches + 1)
    width, tokens = cfg.language.hidden_size, patches // cfg.merge**2
    return embedding + blocks + 2 * tokens * width * (vision.hidden_size * cfg.merge**2 + width)


def mask_flops(cfg: MaskDecoderConfig, size: int, phrases: int, *, dropout: bool = False) -> int:
    """Operations of the mask decoder on one image; sampling at learned points has no products.

    Args:
      size: side of the image in pixels.
      phrases: masks that are drawn.
      dropout: whether there is one, which makes the attention to a single word a real one.
    """
    width, positions = cfg.width, (size // cfg.patch_size) ** 2
    read, square = positions // cfg.scale**2, width * width
    among = 4 * positions * square + 2 * positions * positions * width
    forward = 2 * positions * width * cfg.feedforward
    to_image = (2 * positions + 2 * read) * square + 2 * positions * read * width
    to_word = 2 * positions * square + 2 * square + 2 * positions * width if dropout else 2 * square
    fused = read * width * (cfg.text_width + 2 * cfg.groups * cfg.scale**2)
    fused += among + to_image + forward + 3 * positions * square + among
    pixels = 9 * positions * width * cfg.patch_size**2 + 25 * size * size
    return 2 * (fused + phrases * (cfg.text_width * width + to_word + forward + pixels))
