"""XMem, keys as in upstream's `XMem.pth`."""

from rvseg_jax.convert.rules import Entry, Rule, Table, conv, linear, split
from rvseg_jax.convert.tables.layer_rules import batch_norm, path_of, weights
from rvseg_jax.models.xmem.config import XMemConfig

_KEY_STAGES = ("res2", "layer2", "layer3")
_VALUE_STAGES = ("layer1", "layer2", "layer3")


def table(cfg: XMemConfig) -> Table:
    """Rules of the network, for any sizes, with or without sensory memory, for one object or several."""
    features, value = cfg.key_features, "value_encoder"
    image_and_masks = (3, cfg.mask_channels)
    entries: list[Entry] = [
        *_kernel("key_encoder.conv1", "key_encoder/conv1"),
        *batch_norm("key_encoder.bn1", "key_encoder/bn1"),
        *_stages("key_encoder", _KEY_STAGES, 3, _KEY_STAGES),
        _divided(f"{value}.conv1", f"{value}/image_conv1", f"{value}/conv1", image_and_masks),
        *batch_norm(f"{value}.bn1", f"{value}/bn1"),
        *_stages(value, _VALUE_STAGES, 2, _VALUE_STAGES[1:]),
        *_fuser(f"{value}.fuser", features[-1], cfg.value_planes[-1], cfg.value_dim),
        *_fuser("decoder.fuser", features[-1], cfg.value_dim + cfg.hidden_dim, cfg.decoder_dim),
        *_up("decoder.up_16_8", cfg.decoder_dim, cfg.up_dim),
        *_up("decoder.up_8_4", cfg.up_dim, cfg.up_dim),
    ]
    convs = ["decoder.pred", *(f"key_proj.{name}" for name in ("key_proj", "d_proj", "e_proj"))]
    if cfg.hidden_dim:
        update = "decoder.hidden_update"
        convs += [f"{value}.hidden_reinforce.transform", f"{update}.transform"]
        convs += [f"{update}.{name}" for name in ("g16_conv", "g8_conv", "g4_conv")]
    return Table([*entries, *(rule for name in convs for rule in weights(name, path_of(name), conv()))])


def _stages(encoder: str, names: tuple[str, ...], convs: int, shortcuts: tuple[str, ...]) -> list[Entry]:
    """Blocks with `convs` convolutions each; the first block of some stages has a shortcut."""
    entries: list[Entry] = []
    for name in names:
        block = f"{encoder}.{name}.{{i}}"
        for index in range(1, convs + 1):
            entries += _kernel(f"{block}.conv{index}", f"{path_of(block)}/conv{index}")
            entries += batch_norm(f"{block}.bn{index}", f"{path_of(block)}/bn{index}")
    for name in shortcuts:
        first = f"{encoder}.{name}.0.downsample"
        entries += _kernel(f"{first}.0", f"{path_of(first)}/conv")
        entries += batch_norm(f"{first}.1", f"{path_of(first)}/norm")
    return entries


def _fuser(source: str, image: int, group: int, outputs: int) -> list[Entry]:
    target, gates = path_of(source), f"{source}.attention"
    changed = ["conv1"] if image + group == outputs else ["conv1", "downsample"]
    entries: list[Entry] = []
    for name in changed:
        place = f"{source}.block1.{name}"
        entries.append(_divided(place, f"{target}/block1/image_{name}", f"{target}/block1/{name}", (image, group)))
        entries.append(Rule(f"{place}.bias", f"{target}/block1/{name}/bias"))
    for name in ("block1.conv2", "block2.conv1", "block2.conv2"):
        entries += weights(f"{source}.{name}", f"{target}/{path_of(name)}", conv())
    # Items 0 and 2 of upstream's gate are a flattening and an activation.
    entries += weights(f"{gates}.ChannelGate.mlp.1", f"{target}/attention/channel/fc1", linear())
    entries += weights(f"{gates}.ChannelGate.mlp.3", f"{target}/attention/channel/fc2", linear())
    entries += weights(f"{gates}.SpatialGate.spatial.conv", f"{target}/attention/spatial/conv", conv())
    return entries


def _up(source: str, inputs: int, outputs: int) -> list[Entry]:
    names = ["skip_conv", "out_conv.conv1", "out_conv.conv2"]
    if inputs != outputs:
        names.append("out_conv.downsample")
    return [rule for name in names for rule in weights(f"{source}.{name}", path_of(f"{source}.{name}"), conv())]


def _kernel(source: str, target: str) -> list[Entry]:
    return [Rule(f"{source}.weight", f"{target}/kernel", conv())]


def _divided(source: str, image: str, group: str, channels: tuple[int, int]) -> Rule:
    """One kernel on the channels of image and object as two."""
    return Rule(f"{source}.weight", (f"{image}/kernel", f"{group}/kernel"), split(1, channels), conv())
