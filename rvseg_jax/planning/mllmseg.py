"""What planning knows of MLLMSeg: a batch of its images and phrases, and what a step of it does."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rvseg_jax.core.config import ConfigError, from_dataclass
from rvseg_jax.models.lm.flops import adapter_flops, block_flops, flops
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.flops import image_flops, mask_flops
from rvseg_jax.planning.step import PlannedStep
from rvseg_jax.planning.systems import Cuts, Sample, published, trained_part
from rvseg_jax.planning.work import KERNEL_PRODUCTS, Blocks, Work, largest_layer, samples_of, whole_bytes
from rvseg_jax.systems.mllmseg.training import SegmentTrainingConfig

TASK = "mllmseg.segment"
RECIPE = "mllmseg"
SIZES = {
    "1b": MLLMSegConfig.internvl2_5_1b,
    "2b": MLLMSegConfig.internvl2_5_2b,
    "4b": MLLMSegConfig.internvl2_5_4b,
    "8b": MLLMSegConfig.internvl2_5_8b,
}
# Of a tokenizer the step takes the number of one word, so any will do where the recipe's has not been converted yet.
# This one is of Qwen2's form; the family changes nothing else of a network whose sizes are given.
_TOKENIZER, _FAMILY = "zoo/mllmseg_tiny/tokenizer.json", "qwen2"
# Arrays of a block at once for a token: residual, normalised and both branches' outputs, in units of the width; and
# both sides of the activation and their product, in units of the feed-forward.
_WIDTHS, _FEEDFORWARDS = 4, 3
# Float32 arrays of the size of the logits, and of the masks at their images' resolution.
_LOGIT_ARRAYS, _MASK_ARRAYS = 3, 12


def resize(config: ConfigDict, *, size: str | None, frames: int | None) -> None:
    """Sets the network of a recipe to a published size, and a tokenizer that is there."""
    if frames is not None:
        raise ConfigError(f"frames {frames}: MLLMSeg is trained on images, leave the option out")
    if size is not None:
        config.model = from_dataclass(published(SIZES, size, "InternVL2.5"))
    config.tokenizer, config.model.internvl.family = _TOKENIZER, _FAMILY


def sample(own: SegmentTrainingConfig) -> Sample:
    """An image with its phrases."""
    return Sample(
        "images", f"images of {own.size}x{own.size} with up to {own.expressions} phrases in {own.text_length} tokens"
    )


def batch(own: SegmentTrainingConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch as `ReferringImageRow` and `Tokenise` make them."""
    phrases, tokens, side = (rows, own.expressions), (rows, own.text_length), own.size
    array = jax.ShapeDtypeStruct
    return {
        "image": array((rows, side, side, 3), jnp.uint8),
        "masks": array((*phrases, *_box(own)), jnp.bool_),
        "sizes": array((rows, 2), jnp.int32),
        "phrases": array(phrases, jnp.bool_),
        "drawn": array(phrases, jnp.bool_),
        "ids": array(tokens, jnp.int32),
        "valid": array(tokens, jnp.bool_),
        "labelled": array(tokens, jnp.bool_),
        "marks": array(phrases, jnp.int32),
    }


def _box(own: SegmentTrainingConfig) -> tuple[int, int]:
    return own.box if all(own.box) else (own.size, own.size)


def parts(step: PlannedStep) -> dict[str, str]:
    """Whether vision transformer, language model and mask decoder are trained."""
    trained, frozen = ({**tree, **tree.get("internvl", {})} for tree in (step.target.params, step.target.frozen))
    return {
        name: trained_part(trained.get(name, {}), frozen.get(name, {}))
        for name in ("vision", "projector", "language", "mask_decoder")
    }


def cuts(own: SegmentTrainingConfig) -> Cuts:
    """Heads of keys; rows of one image are too short to be cut."""
    return Cuts(own.model.internvl.language.num_key_value_heads, 1)


def work(step: PlannedStep, sizes: Mapping[str, int]) -> Work:
    """The language model forward and backward, the rest around it."""
    own: SegmentTrainingConfig = step.own
    language, samples, tensor = own.model.internvl.language, samples_of(step, sizes), sizes["tensor"]
    frozen = step.target.frozen.get("internvl", {})
    layers, seen = _language_blocks(step, sizes), _vision_blocks(step, sizes)
    cut = 1 if language.vocab_size % tensor else tensor
    logits = _LOGIT_ARRAYS * 4 * samples * own.text_length * language.vocab_size // cut
    height, width = _box(own)
    masks = _MASK_ARRAYS * 4 * samples * own.expressions * height * width
    gathers = 2 + (own.remat == "full")
    base = whole_bytes({"vision": frozen.get("vision", {}), "projector": frozen.get("projector", {})})
    base += gathers * whole_bytes(frozen.get("language", {}))
    flops = _flops(step)
    return Work(
        flops=flops,
        # It is whole on every device, and phrases are not cut.
        repeated={"mask_decoder": "draw the same masks"},
        temporaries=max(seen.kept + layers.kept + max(layers.widest, logits + masks), seen.kept + seen.widest),
        runs=(layers, seen),
        gathers=gathers,
        read=base / tensor,
        gathered=base / tensor,
        traffic=2 * (logits + masks),
    )


def _language_blocks(step: PlannedStep, sizes: Mapping[str, int]) -> Blocks:
    own: SegmentTrainingConfig = step.own
    cfg = own.model.internvl.language
    heads = 2 * (cfg.num_attention_heads + cfg.num_key_value_heads) * cfg.head_width
    trees = [tree.get("internvl", {}).get("language", {}) for tree in (step.target.params, step.target.frozen)]
    return Blocks(
        layers=cfg.num_hidden_layers,
        tokens=samples_of(step, sizes) * own.text_length,
        width=cfg.hidden_size,
        whole=_WIDTHS * cfg.hidden_size,
        cut=heads + _FEEDFORWARDS * cfg.intermediate_size,
        itemsize=step.itemsize,
        tensor=sizes["tensor"],
        largest=max(largest_layer(tree.get("layers", {})) for tree in trees),
        remat=own.remat,
    )


def _vision_blocks(step: PlannedStep, sizes: Mapping[str, int]) -> Blocks:
    """The vision transformer, which the recipe's `remat` does not reach."""
    own: SegmentTrainingConfig = step.own
    cfg = own.model.internvl.vision
    trained = step.target.params["internvl"].get("vision", {})
    return Blocks(
        layers=cfg.num_hidden_layers,
        tokens=samples_of(step, sizes) * ((own.size // cfg.patch_size) ** 2 + 1),
        width=cfg.hidden_size,
        whole=_WIDTHS * cfg.hidden_size,
        cut=4 * cfg.hidden_size + 2 * cfg.intermediate_size,
        itemsize=step.itemsize,
        tensor=sizes["tensor"],
        largest=cfg.hidden_size * cfg.intermediate_size,
        remat="none" if trained else None,
    )


def _flops(step: PlannedStep) -> dict[str, int]:
    """Operations by part; of frozen weights the backward pass makes the gradients of their inputs alone."""
    own: SegmentTrainingConfig = step.own
    cfg, tokens = own.model.internvl.language, own.text_length
    trained = step.target.params["internvl"]
    blocks = cfg.num_hidden_layers * block_flops(cfg, tokens, tokens)
    product = 2 * cfg.num_hidden_layers * tokens * tokens * cfg.num_attention_heads * cfg.head_width
    head = flops(cfg, tokens) - blocks
    adapters = _adapters(own)
    base, ends = (_weights_trained(trained, name) for name in ("layers", "lm_head"))
    backward = (2 if base else 1) * (blocks - 2 * product) + 2 * 2 * product + (2 if ends else 1) * head + 2 * adapters
    again = {"none": 0, "full": blocks + adapters, "dots": 2 * product}[own.remat]
    of_one = {
        "vision": (3 if "vision" in trained else 1) * image_flops(own.model.internvl, own.size),
        "language_forward": blocks + head + adapters,
        "language_backward": backward,
        "recomputed": again + KERNEL_PRODUCTS["splash"] * product,
        "mask_decoder": 3 * mask_flops(own.model.decoder, own.size, own.expressions, dropout=own.dropout),
    }
    return {name: step.settings.batch_size * count for name, count in of_one.items()}


def _weights_trained(trained: Mapping[str, Mapping], name: str) -> bool:
    """Whether a part of the language model is trained itself, and not by adapters alone."""
    found = jax.tree_util.tree_leaves_with_path(trained.get("language", {}).get(name, {}))
    return any(jax.tree_util.keystr(path[-1:], simple=True) == "kernel" for path, _ in found)


def _adapters(own: SegmentTrainingConfig) -> int:
    """Operations of all adapters forward, on every linear layer of a block."""
    cfg, width = own.model.internvl.language, own.model.internvl.language.hidden_size
    queries, keys = (count * cfg.head_width for count in (cfg.num_attention_heads, cfg.num_key_value_heads))
    layers = [(width, queries), (width, keys), (width, keys), (queries, width)]
    layers += 2 * [(width, cfg.intermediate_size)] + [(cfg.intermediate_size, width)]
    of_one = sum(adapter_flops(inputs, outputs, own.lora_rank, own.text_length) for inputs, outputs in layers)
    return cfg.num_hidden_layers * of_one
