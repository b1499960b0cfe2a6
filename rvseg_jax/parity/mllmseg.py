"""Golden cases of MLLMSeg: the enlargement, the mask decoder, a whole model's answers and masks, and its losses."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import PARITY
from rvseg_jax.models.internvl.config import InternVLConfig
from rvseg_jax.models.internvl.model import pixel_shuffle
from rvseg_jax.models.internvl.vision import InternViTConfig
from rvseg_jax.models.lm.config import LanguageModelConfig
from rvseg_jax.models.mllmseg.config import MaskDecoderConfig, MLLMSegConfig
from rvseg_jax.models.mllmseg.dysample import DySample, initial_offsets
from rvseg_jax.models.mllmseg.mask_decoder import MaskDecoder
from rvseg_jax.models.mllmseg.model import MLLMSeg, image_states, states_before
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Fields, Kind
from rvseg_jax.parity.lm import INTERNLM2
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig, mask_losses, text_loss

_DYSAMPLE = Fields(build=frozenset({"in_channels", "scale", "groups"}), call=frozenset({"style", "dyscope"}))
_DECODER = Fields(
    build=frozenset({"width", "heads", "ffn", "txt_dim", "grid_vit", "grid_llm", "conv1_out"}),
    call=frozenset({"ca_layers", "bn_eps", "norm_eps", "attention", "out_size"}),
    nested={"dysample": Fields(build=frozenset({"scale", "groups"}), call=frozenset({"style", "dyscope"}))},
)
_VISION = Fields(
    build=frozenset({*(InternViTConfig.__dataclass_fields__.keys() - {"precision"}), "qkv_bias", "norm_type"}),
    call=frozenset({"qk_normalization", "use_flash_attn", "drop_path_rate"}),
)
_LANGUAGE = Fields(
    build=frozenset({*(LanguageModelConfig.__dataclass_fields__.keys() - {"precision"}), "kind"}),
)
_MODEL = Fields(
    build=frozenset({"downsample_ratio", "ps_version", "select_layer"}),
    call=frozenset({"seg_token", "rej_token", "img_context_token", "template_tokens"})
    | {f"{name}_loss_weight" for name in ("ce", "focal", "dice")},
    nested={"vision": _VISION, "language": _LANGUAGE, "decoder": _DECODER},
)
_ONLY = {"style": "lp", "dyscope": False, "ca_layers": [1, 1], "bn_eps": 1e-5, "norm_eps": 1e-5}
# The outputs keep every so many pixels or tokens.
_PIXELS, _TOKENS = 4, 16


def _check(config: Mapping[str, Any]) -> None:
    for name, wanted in _ONLY.items():
        if config.get(name, wanted) != wanted:
            raise InputError(f"{name} {config[name]!r}: only {wanted!r} is here")


def _dysample(case: Case) -> Produced:
    config = case.config
    _check(config)
    layer = DySample(
        config["in_channels"], scale=config["scale"], groups=config["groups"], precision=PARITY, rngs=nnx.Rngs(0)
    )
    layer.offset.kernel[...] = jnp.asarray(case.weights["offset.weight"][:, :, 0, 0].T)
    layer.offset.bias = nnx.Param(jnp.asarray(case.weights["offset.bias"]))
    start = case.weights["init_pos"].reshape(-1)
    if not np.array_equal(start, initial_offsets(layer.scale, layer.groups)):
        raise InputError(f"{case.path}: init_pos is not that of scale {layer.scale} and {layer.groups} groups")
    x = jnp.moveaxis(jnp.asarray(case.input("x")), 1, -1)
    return Produced({"y": _channels_first(layer(x)), "tap/offset": _channels_first(layer.offset(x))})


def _channels_first(x: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def decoder_config(config: Mapping[str, Any], text_width: int = MaskDecoderConfig.text_width) -> MaskDecoderConfig:
    """The mask decoder of a golden case.

    Raises:
      InputError: for a decoder that is not built here.
    """
    sampling, patch = config["dysample"], round(config["conv1_out"] ** 0.5)
    _check(config)
    _check(sampling)
    if config["grid_llm"] * sampling["scale"] != config["grid_vit"] or patch**2 != config["conv1_out"]:
        raise InputError("grid_vit must be grid_llm times the scale, and conv1_out a square")
    return MaskDecoderConfig(
        width=config["width"],
        num_heads=config["heads"],
        feedforward=config["ffn"],
        patch_size=patch,
        groups=sampling["groups"],
        scale=sampling["scale"],
        text_width=text_width,
    )


def _res_decoder(case: Case) -> Produced:
    cfg = decoder_config(case.config, text_width=case.config["txt_dim"])
    graph, state = nnx.split(from_torch("mllmseg_decoder", case.weights, cfg))

    def run(weights: nnx.State, patches: jax.Array, read: jax.Array, words: jax.Array) -> dict[str, jax.Array]:
        decoder: MaskDecoder = nnx.merge(graph, weights)
        taps: dict[str, jax.Array] = {}
        seen = decoder.features(decoder.fuse(patches, read, taps=taps), words)
        return {**taps, "features": seen[:, 0], "mask": jax.nn.sigmoid(decoder.logits(seen)[0])}

    found = jax.device_get(jax.jit(run)(state, case.input("img_vit"), case.input("img_llm"), case.input("text_src")))
    side = case.config["grid_vit"]
    tokens = {name: value for name, value in found.items() if name != "mask"}
    maps = {name: _channels_first(value.reshape(-1, side, side, cfg.width)) for name, value in tokens.items()}
    return Produced(
        {
            "tap/upsampled_language": maps["upsampled_language"],
            "attended_vision": maps["attended_vision"],
            "tap/text_out_adapter": found["fused"],
            "fused": maps["features"],
            "mask": found["mask"],
        }
    )


def model_config(config: Mapping[str, Any]) -> MLLMSegConfig:
    """The model of a golden case.

    Raises:
      InputError: for a model that is not built here.
    """
    decoder = decoder_config(config["decoder"])
    language = {name: value for name, value in config["language"].items() if name != "kind"}
    if config["language"]["kind"] == "qwen2":
        language["attention_bias"] = True
    vision = {name: value for name, value in config["vision"].items() if name in InternViTConfig.__dataclass_fields__}
    internvl = InternVLConfig(
        InternViTConfig(**vision),
        LanguageModelConfig(**language),
        config["language"]["kind"],
        config["downsample_ratio"],
    )
    return MLLMSegConfig(internvl, decoder.num_heads, decoder.feedforward, decoder.groups)


def _pixels(case: Case) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(case.input("pixel_values_x32")), 1, -1) / 32.0


def _forward(model: MLLMSeg, images: jax.Array, ids: jax.Array, marks: Mapping[str, int]) -> dict[str, jax.Array]:
    """Hidden states of all tokens, logits of those before `[SEG]` or `[REJ]`, and the logits of a mask a row."""
    is_image = ids == marks["img_context_token"]
    place = jnp.argmax((ids == marks["seg_token"]) | (ids == marks["rej_token"]), axis=1)[:, None]
    patches, hidden = model.read(images, ids, is_image)
    words = states_before(hidden, place)
    read = image_states(hidden, is_image, model.cfg.internvl.image_tokens)
    masks = model.mask_decoder(patches, read, words)[:, 0]
    return {"hidden": hidden, "decide": model.internvl.language.logits(words)[:, 0], "mask": masks}


def _model_inference(case: Case) -> Produced:
    marks, cfg = case.config, model_config(case.config)
    graph, state = nnx.split(from_torch("mllmseg", case.weights, cfg))
    images = _pixels(case)

    def see(weights: nnx.State) -> tuple[jax.Array, jax.Array]:
        internvl = nnx.merge(graph, weights).internvl
        tokens = internvl.vision(images)
        return tokens, internvl.projector(pixel_shuffle(tokens[:, 1:], cfg.internvl.merge))

    run = jax.jit(lambda weights, ids: _forward(nnx.merge(graph, weights), images, ids, marks))
    vision, projected = jax.device_get(jax.jit(see)(state))
    outputs = {"tap/vision": vision, "tap/projected": projected}
    seg, rej = marks["seg_token"], marks["rej_token"]
    rows = np.asarray(case.input("input_ids"))
    cases = {"expr0": rows[:1], "expr1": rows[1:2], "reject_reeval": np.where(rows[:1] == seg, rej, rows[:1])}
    for name, ids in cases.items():
        first = jax.device_get(run(state, ids))
        # Published: the logits of the first pass decide, and every phrase is then read again as `[SEG]`.
        again = first if name != "reject_reeval" else jax.device_get(run(state, np.where(ids == rej, seg, ids)))
        decided = rej if first["decide"][0].argmax() == rej else seg
        mask = 1 / (1 + np.exp(-again["mask"]))
        outputs |= {
            f"{name}/logits_decide": first["decide"],
            f"{name}/tap_hidden": again["hidden"][:, ::_TOKENS],
            f"{name}/ids": np.where((ids == seg) | (ids == rej), decided, ids)[0].astype(np.int32),
            **({f"{name}/mask": mask} if name == "expr0" else {f"{name}/mask_every4": mask[:, ::_PIXELS, ::_PIXELS]}),
        }
    return Produced(outputs)


def _model_train(case: Case) -> Produced:
    """All rows are of one image, and each has a mask; no dropout, stored statistics."""
    marks, cfg = case.config, model_config(case.config)
    model = from_torch("mllmseg", case.weights, cfg)
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
    graph, state, rest = parts
    ids, labels = jnp.asarray(case.input("input_ids")), jnp.asarray(case.input("labels"))
    masks = jnp.asarray(case.input("gt_masks"))[:, None] > 0
    weights = MaskLossConfig(
        text=marks["ce_loss_weight"],
        focal=marks["focal_loss_weight"],
        dice=marks["dice_loss_weight"],
        form="published",
    )
    there = jnp.ones((len(ids), 1), bool)
    sizes = jnp.broadcast_to(jnp.asarray(masks.shape[2:]), (len(ids), 2))

    def loss(params: nnx.State) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graph, params, rest)
        images = jnp.broadcast_to(_pixels(case), (len(ids), *_pixels(case).shape[1:]))
        found = _forward(model, images, ids, marks)
        terms = mask_losses(weights, found["mask"][:, None], masks, there, there, sizes)
        text = text_loss(model.internvl.language.logits(found["hidden"]), jnp.maximum(labels, 0), labels >= 0)
        drawn = weights.focal * terms["focal"] + weights.dice * terms["dice"]
        named = {"ce_loss": text, "mask_focal_loss": terms["focal"], "mask_dice_loss": terms["dice"]}
        return weights.text * text + drawn, {**named, "mask_loss": drawn, "iou": terms["mask_iou"]}

    (total, named), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    slopes = to_torch("mllmseg", nnx.merge(graph, gradients, rest), cfg)
    wanted = [name.removeprefix("grad/") for name in case.outputs if name.startswith("grad/")]
    outputs = jax.device_get({"loss": total, **named})
    return Produced(outputs | {f"grad/{name}": slopes[name] for name in wanted})


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dysample": Kind(_dysample, _DYSAMPLE),
        "internlm2": INTERNLM2,
        "model_inference": Kind(_model_inference, _MODEL),
        "model_train": Kind(_model_train, _MODEL),
        "res_decoder": Kind(_res_decoder, _DECODER),
    }
)
