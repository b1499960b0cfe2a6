"""MLLMSeg's mask decoder, keys as in upstream's `res_decoder.`."""

from rvseg_jax.convert.rules import Drop, Entry, Rule, Table, conv, linear, reshape, split
from rvseg_jax.convert.tables.layer_rules import batch_norm, norm, weights
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig

_OFFSETS = "offsets of bilinear enlargement, which follow from the scale and the groups"


def table(cfg: MaskDecoderConfig) -> Table:
    """Rules for any sizes."""
    entries: list[Entry] = [
        *weights("img_llm_down", "image_down", linear()),
        *weights("text_down", "text_down", linear()),
        *weights("text_out_adapter", "fusion", linear()),
        *_attention_layer("ca_layer_v2l.decoder", "detail"),
        *_attention_layer("ca_layer_vl.decoder", "text"),
        *_dysample(cfg),
        *weights("conv1.0", "to_pixels", conv()),
        *batch_norm("conv1.1", "norm"),
        *weights("conv2", "smooth", conv()),
    ]
    return Table(entries)


def _dysample(cfg: MaskDecoderConfig) -> list[Entry]:
    """Upstream's convolution of one pixel is a linear layer here."""
    offsets, source = 2 * cfg.groups * cfg.scale**2, "upsample_adapter_l"
    one_pixel = reshape((offsets, cfg.width, 1, 1), (offsets, cfg.width))
    return [
        Rule(f"{source}.offset.weight", "upsample/offset/kernel", one_pixel, linear()),
        Rule(f"{source}.offset.bias", "upsample/offset/bias"),
        Drop(f"{source}.init_pos", _OFFSETS, keep=True),
    ]


def _attention_layer(source: str, target: str) -> list[Rule]:
    layer = f"{source}.layers.0"
    rules = []
    for theirs, ours in (("self_attn", "self_attn"), ("multihead_attn", "cross_attn")):
        kernels = tuple(f"{target}/{ours}/{name}/kernel" for name in "qkv")
        biases = tuple(f"{target}/{ours}/{name}/bias" for name in "qkv")
        rules += [
            Rule(f"{layer}.{theirs}.in_proj_weight", kernels, linear(), split(1, 3)),
            Rule(f"{layer}.{theirs}.in_proj_bias", biases, split(0, 3)),
            *weights(f"{layer}.{theirs}.out_proj", f"{target}/{ours}/out", linear()),
        ]
    rules += weights(f"{layer}.linear1", f"{target}/up", linear())
    rules += weights(f"{layer}.linear2", f"{target}/down", linear())
    for name in ("norm1", "norm2", "norm3"):
        rules += norm(f"{layer}.{name}", f"{target}/{name}")
    return [*rules, *norm(f"{source}.norm", f"{target}/norm")]
