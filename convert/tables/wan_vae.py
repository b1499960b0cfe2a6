"""Wan autoencoder, keys as in diffusers' AutoencoderKLWan; FlowRVS puts `vae.` in front of them."""

from itertools import pairwise

from rvseg_jax.convert.rules import Rule, Table, conv, linear, reshape
from rvseg_jax.convert.tables.layer_rules import weights
from rvseg_jax.models.wan.vae_config import WanVAEConfig


def table(cfg: WanVAEConfig) -> Table:
    """Rules of the autoencoder, for any number of levels, blocks and output channels."""
    rules = [
        *_pointwise("quant_conv", "quant_conv", 2 * cfg.z_dim, 2 * cfg.z_dim),
        *_pointwise("post_quant_conv", "post_quant_conv", cfg.z_dim, cfg.z_dim),
    ]
    for half, middle in (("encoder", cfg.encoder_dims[-1]), ("decoder", cfg.decoder_dims[0])):
        rules += [
            *_conv(f"{half}.conv_in", f"{half}/conv_in"),
            *_conv(f"{half}.conv_out", f"{half}/conv_out"),
            _norm(f"{half}.norm_out", f"{half}/norm_out"),
            *_residual(f"{half}.mid_block.resnets.{{j}}", f"{half}/mid_block/resnets/{{j}}"),
            *_attention(f"{half}.mid_block.attentions.0", f"{half}/mid_block/attentions/0", middle),
        ]
    down, up = "down_blocks.{i}", "up_blocks.{i}"
    rules += _residual(f"encoder.{down}", f"encoder/{_path(down)}")
    rules += _residual(f"decoder.{up}.resnets.{{j}}", f"decoder/{_path(up)}/resnets/{{j}}")
    if cfg.temporal_downsample:
        # Item 0 of upstream's resampling is the padding or the enlargement, without weights.
        resamplers = {f"encoder.{down}": f"encoder/{_path(down)}"}
        resamplers[f"decoder.{up}.upsamplers.0"] = f"decoder/{_path(up)}/upsampler"
        for source, target in resamplers.items():
            rules += _conv(f"{source}.resample.1", f"{target}/resample")
            if any(cfg.temporal_downsample):
                rules += _conv(f"{source}.time_conv", f"{target}/time_conv")
    for place, inputs, outputs in _blocks(cfg):
        if inputs != outputs:
            rules += _pointwise(f"{place}.conv_shortcut", f"{_path(place)}/conv_shortcut", inputs, outputs)
    return Table(rules)


def _blocks(cfg: WanVAEConfig) -> list[tuple[str, int, int]]:
    """Place and channels of the residual blocks that a level begins with."""
    blocks = []
    for level, (inputs, outputs) in enumerate(pairwise(cfg.encoder_dims)):
        # A level and its downsampling take num_res_blocks + 1 places of one flat list.
        blocks.append((f"encoder.down_blocks.{level * (cfg.num_res_blocks + 1)}", inputs, outputs))
    for level, (inputs, outputs) in enumerate(pairwise(cfg.decoder_dims)):
        blocks.append((f"decoder.up_blocks.{level}.resnets.0", inputs // 2 if level else inputs, outputs))
    return blocks


def _path(name: str) -> str:
    return name.replace(".", "/")


def _residual(source: str, target: str) -> list[Rule]:
    return [
        *(_norm(f"{source}.{name}", f"{target}/{name}") for name in ("norm1", "norm2")),
        *_conv(f"{source}.conv1", f"{target}/conv1"),
        *_conv(f"{source}.conv2", f"{target}/conv2"),
    ]


def _attention(source: str, target: str, features: int) -> list[Rule]:
    return [
        Rule(f"{source}.norm.gamma", f"{target}/norm/scale", reshape((-1, 1, 1), (-1,))),
        *_pointwise(f"{source}.to_qkv", f"{target}/to_qkv", features, 3 * features, axes=2),
        *_pointwise(f"{source}.proj", f"{target}/proj", features, features, axes=2),
    ]


def _norm(source: str, target: str) -> Rule:
    return Rule(f"{source}.gamma", f"{target}/scale", reshape((-1, 1, 1, 1), (-1,)))


def _conv(source: str, target: str) -> list[Rule]:
    return weights(source, target, conv())


def _pointwise(source: str, target: str, inputs: int, outputs: int, *, axes: int = 3) -> list[Rule]:
    """A convolution with a window of 1 along all axes, which is a linear layer here."""
    squeeze = reshape((outputs, inputs, *(1,) * axes), (outputs, inputs))
    return weights(source, target, squeeze, linear())
