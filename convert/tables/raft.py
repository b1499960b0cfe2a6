"""RAFT, keys as in torchvision's `raft_large`."""

from rvseg_jax.convert.rules import Entry, Table, conv
from rvseg_jax.convert.tables.layer_rules import batch_norm, path_of, weights
from rvseg_jax.models.raft.config import RaftConfig


def table(cfg: RaftConfig) -> Table:
    """Rules of the model, for any sizes."""
    motion, head = "update_block.motion_encoder", "update_block.flow_head"
    units = [f"update_block.recurrent_block.convgru{unit + 1}" for unit in range(len(cfg.recurrent_block_kernel_size))]
    # Item 0 of upstream's sequences is the convolution, item 1 the norm or an activation.
    seen = [f"convcorr{index + 1}" for index in range(len(cfg.motion_encoder_corr_layers))]
    sequences = [f"{motion}.{name}" for name in (*seen, "convflow1", "convflow2", "conv")] + ["mask_predictor.convrelu"]
    convs = [f"{unit}.{name}" for unit in units for name in ("convz", "convr", "convq")]
    convs += [f"{head}.conv1", f"{head}.conv2", "mask_predictor.conv"]
    return Table(
        [
            *_encoder("feature_encoder", norms=False),
            *_encoder("context_encoder", norms=True),
            *(rule for name in sequences for rule in weights(f"{name}.0", path_of(name), conv())),
            *(rule for name in convs for rule in weights(name, path_of(name), conv())),
        ]
    )


def _encoder(name: str, *, norms: bool) -> list[Entry]:
    """An encoder, whose norms have weights or none."""
    pairs = [f"{name}.convnormrelu"]
    for stage in ("layer1", "layer2", "layer3"):
        pairs += [f"{name}.{stage}.{{i}}.convnormrelu{index}" for index in (1, 2)]
    pairs += [f"{name}.{stage}.0.downsample" for stage in ("layer2", "layer3")]
    entries: list[Entry] = weights(f"{name}.conv", f"{name}/conv", conv())
    for pair in pairs:
        entries += weights(f"{pair}.0", f"{path_of(pair)}/conv", conv())
        if norms:
            entries += batch_norm(f"{pair}.1", f"{path_of(pair)}/norm")
    return entries
