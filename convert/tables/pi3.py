"""Pi3, keys as in upstream's `model.safetensors`."""

from rvseg_jax.convert.rules import Drop, Entry, Rule, Table, linear, reshape, stack
from rvseg_jax.convert.tables import dinov2
from rvseg_jax.convert.tables.layer_rules import weights
from rvseg_jax.convert.tables.vit_block import block_rules
from rvseg_jax.models.pi3.config import Pi3Config

_STATISTICS = "ImageNet's mean and deviation, which the model holds as constants"
_CAMERA = (
    *(f"res_conv.{block}.res_conv{layer}" for block in range(2) for layer in (1, 2, 3)),
    "fc_t",
    "fc_rot",
)


def table(cfg: Pi3Config) -> Table:
    """Rules for any sizes."""
    entries: list[Entry] = [*Table(dinov2.rules(cfg.encoder)).under("encoder.", "encoder/").entries]
    registers = (cfg.register_tokens, -1)
    entries.append(Rule("register_token", "register_token", reshape((1, 1, *registers), registers)))
    entries += [*_alternating(cfg), *_branches(cfg), *_camera_head()]
    entries += [Drop(f"image_{name}", _STATISTICS, keep=True) for name in ("mean", "std")]
    return Table(entries)


def _alternating(cfg: Pi3Config) -> list[Rule]:
    """Blocks with an even number are the first of their pair, the others the second."""
    made = []
    options = {"qk_norm": cfg.qk_norm, "layer_scale": cfg.layer_scale is not None}
    for place, name in enumerate(("frame", "across")):
        for rule in block_rules("decoder.{layer}", f"decoder/{name}", width=cfg.width, **options):
            keys = tuple(rule.sources[0].replace("{layer}", str(layer)) for layer in range(place, cfg.depth, 2))
            made.append(Rule(keys, rule.targets, *rule.operations, stack(len(keys))))
    return made


def _branches(cfg: Pi3Config) -> list[Rule]:
    made = []
    options = {"qk_norm": cfg.head_qk_norm, "layer_scale": cfg.head_layer_scale is not None}
    for name in ("point_decoder", "conf_decoder", "camera_decoder"):
        made += block_rules(f"{name}.blocks.{{layer}}", f"{name}/blocks", width=cfg.head_width, **options)
        for layer in ("projects", "linear_out"):
            made += weights(f"{name}.{layer}", f"{name}/{layer}", linear())
    for name in ("point_head", "conf_head"):
        made += weights(f"{name}.proj", f"{name}/proj", linear())
    return made


def _camera_head() -> list[Rule]:
    names = {name: name.replace(".", "/") for name in _CAMERA}
    names |= {f"more_mlps.{2 * layer}": f"more_mlps/{layer}" for layer in range(2)}  # between them lie activations
    return [
        rule for name, path in names.items() for rule in weights(f"camera_head.{name}", f"camera_head/{path}", linear())
    ]
