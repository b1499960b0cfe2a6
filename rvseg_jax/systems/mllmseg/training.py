"""MLLMSeg's training; the protocol is `training.tasks.Task`.

mllmseg.segment   answers and masks at once, of images with several phrases each
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import Precision
from rvseg_jax.core.tree_paths import SEPARATOR, matches
from rvseg_jax.input_pipeline.datasets.image_sets import open_images
from rvseg_jax.input_pipeline.datasets.moving_shapes.stills import StillShapes, StillShapesConfig
from rvseg_jax.input_pipeline.image_rows import ReferringImageRow, mixed
from rvseg_jax.input_pipeline.resampling import resize_masks
from rvseg_jax.layers import lora, stack
from rvseg_jax.layers.linear import LoraSpec
from rvseg_jax.models.mllmseg import model as mllmseg
from rvseg_jax.models.mllmseg.config import MLLMSegConfig
from rvseg_jax.models.mllmseg.mask_decoder import BatchStatistics
from rvseg_jax.models.mllmseg.model import MLLMSeg, image_states, states_before
from rvseg_jax.parallel.rules import Table
from rvseg_jax.parts import parameters
from rvseg_jax.parts.parameters import Params
from rvseg_jax.processing.image import squashed
from rvseg_jax.systems.mllmseg import loading
from rvseg_jax.systems.mllmseg.answering import Answering, normalised
from rvseg_jax.systems.mllmseg.config import MLLMSegSystemConfig
from rvseg_jax.systems.mllmseg.losses import MaskLossConfig, mask_losses, text_loss
from rvseg_jax.systems.mllmseg.rows import Tokenise
from rvseg_jax.zoo import resolve

Batch = Mapping[str, jax.Array]
# Of every linear layer of the language model but its head, as upstream.
LORA_LAYERS = r"^internvl/language/layers/(self_attn/[qkvo]_proj|mlp/(gate|up|down))$"
_NORM = r"^internvl/language/norm/scale$"
_WORDS = r"^internvl/language/(embed_tokens|lm_head)/"
# What is trained, for `optimizer.trainable`. Upstream chooses by parts of names, which meet InternLM2's embeddings and
# head and not Qwen2's, so that its Qwen2 models can never tell `[SEG]` from `[REJ]`.
TRAINED_PUBLISHED = {
    "internlm2": (r"^mask_decoder/", lora.TRAINABLE, _NORM, _WORDS),
    "qwen2": (r"^mask_decoder/", lora.TRAINABLE, _NORM),
}
TRAINED = (r"^mask_decoder/", lora.TRAINABLE, _NORM, _WORDS)
# PyTorch's momentum: the share of the new statistics in the stored ones.
_MOMENTUM = 0.1
_STATISTICS = "mask_decoder/norm"


@dataclass(frozen=True)
class SegmentTrainingConfig:
    """What is trained on what.

    Attributes:
      model: sizes of the network.
      tokenizer: `tokenizer.json`, or a folder with one ("zoo/..." is bundled).
      sets: triples (name, root, split) of training sets, drawn in equal shares; none: `stills`.
      stills: images of moving_shapes, also those of validation.
      size: side of the squares that images are squashed to.
      text_length: tokens of a row, T.
      expressions: most phrases of an image, K.
      box: (H, W) of masks at the resolution of their images; (0, 0) has them squashed like the image.
      qualities: least and most quality of the JPEG that images are encoded as again; (0, 0) leaves them.
      losses: weights and form of the losses.
      label_padding: also ask for token 0 behind texts that are shorter than the longest of the batch, as upstream's
        collator does by accident.
      dropout: of the mask decoder.
      batch_statistics: the decoder's batch norm takes each image's own statistics and averages them, as upstream;
        otherwise it uses the stored ones.
      lora_rank, lora_alpha, lora_dropout: of adapters on the language model; rank 0 has none.
      base_bfloat16: InternVL's weights are stored in bfloat16, all but those that `TRAINED` names.
      pretrained: pairs (part, folder) of what training starts from: "mllmseg", or "internvl" for everything but the
        mask decoder, whose words get two more rows.
      remat: what the backward pass computes again.
      validation_images: images of moving_shapes that `evaluate` asks about.
    """

    model: MLLMSegConfig = MLLMSegConfig()
    tokenizer: str = ""
    sets: tuple[tuple[str, str, str], ...] = ()
    stills: StillShapesConfig = StillShapesConfig()
    size: int = 448
    text_length: int = 512
    expressions: int = 5
    box: tuple[int, int] = (640, 640)
    qualities: tuple[int, int] = (75, 100)
    losses: MaskLossConfig = field(default_factory=MaskLossConfig)
    label_padding: bool = False
    dropout: bool = True
    batch_statistics: bool = True
    lora_rank: int = 0
    lora_alpha: float = 128.0
    lora_dropout: float = 0.05
    base_bfloat16: bool = False
    pretrained: tuple[tuple[str, str], ...] = ()
    remat: stack.Remat = "full"
    validation_images: int = 16

    def __post_init__(self) -> None:
        unknown = [part for part, _ in self.pretrained if part not in ("mllmseg", "internvl")]
        if unknown:
            raise ValueError(f"pretrained names {unknown[0]!r}: it takes mllmseg or internvl")


class SegmentTask:
    """Cross entropy of the answer, focal and Dice loss of the masks that it points at."""

    Config = SegmentTrainingConfig
    sharding_table: Table = lora.sharding(mllmseg.SHARDING)

    def __init__(self, config: SegmentTrainingConfig, *, precision: Precision) -> None:
        self.config = config
        self.system = MLLMSegSystemConfig(replace(config.model, precision=precision), size=config.size)
        if not config.tokenizer:
            raise InputError("tokenizer is empty: give the folder of a converted checkpoint, or a tokenizer.json")
        self._tokenizer = resolve(config.tokenizer)
        self._graph = parameters.graph_of(self._model)
        self._answering: Answering | None = None
        # An early error rather than one in a worker.
        loading.tokenizer_of(self._tokenizer, self.system.model)

    def _model(self, rngs: nnx.Rngs) -> nnx.Module:
        made: nnx.Module = MLLMSeg(self.system.model, rngs=rngs)
        if self.config.lora_rank:
            spec = LoraSpec(self.config.lora_rank, self.config.lora_alpha, self.config.lora_dropout)
            made = lora.add(made, LORA_LAYERS, spec, rngs)
        return made

    def init(self, key: jax.Array) -> Params:
        """{"internvl": ..., "mask_decoder": ...}."""
        made = parameters.initialised(self._model, key)
        return _stored_small(made) if self.config.base_bfloat16 else made

    def restore_pretrained(self, target: Params) -> Params:
        """The parts that the recipe names; adapters start anew."""
        given: Params = {}
        for part, folder in self.config.pretrained:
            if part == "mllmseg":
                given |= parameters.read(folder, part, self.system.model.precision, target)
            else:
                wanted = target.get("internvl", {})
                found = parameters.read(folder, part, self.system.model.precision, wanted)
                given["internvl"] = {**found, "language": _with_new_rows(found["language"], wanted.get("language", {}))}
        return parameters.place_matching(given, target)

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """Shapes: batch as `ReferringImageRow` and `Tokenise` make it.

        Returns new statistics of the batch norm under "updates".
        """
        cfg = self.config
        model: Any = nnx.merge(self._graph, params)
        adapters, fusing, drawing = jax.random.split(key, 3)
        if cfg.lora_rank and cfg.lora_dropout:
            model = lora.with_dropout(model, adapters)
        is_image = batch["ids"] == self._image_id
        patches, hidden = model.read(
            normalised(batch["image"]), batch["ids"], is_image, batch["valid"], remat=cfg.remat
        )
        labelled = batch["labelled"]
        if cfg.label_padding:
            longest = jnp.max(jnp.sum(batch["valid"], axis=1))
            labelled = labelled | (~batch["valid"] & (jnp.arange(labelled.shape[1]) < longest))
        text = text_loss(model.internvl.language.logits(hidden), batch["ids"], labelled)
        decoder = model.mask_decoder
        read = image_states(hidden, is_image, self.system.image_tokens)
        noise = (fusing, drawing) if cfg.dropout else (None, None)
        fused = decoder.fuse(patches, read, key=noise[0])
        features = decoder.features(fused, states_before(hidden, batch["marks"]), key=noise[1])
        logits, seen = decoder.logits(features, counted=batch["drawn"] if cfg.batch_statistics else None)
        sizes = batch["sizes"] if all(cfg.box) else None
        terms = mask_losses(cfg.losses, logits, batch["masks"], batch["drawn"], batch["phrases"], sizes)
        total = cfg.losses.text * text + cfg.losses.focal * terms["focal"] + cfg.losses.dice * terms["dice"]
        metrics: dict[str, Any] = {"text": text, **terms}
        if seen is not None:
            stored = params["mask_decoder"]["norm"]
            metrics["updates"] = {
                f"{_STATISTICS}/{name}": value
                for name, value in moved(stored["mean"], stored["var"], jax.lax.stop_gradient(seen)).items()
            }
        return total, metrics

    def source(self, split: str) -> Any:
        """Images with their phrases."""
        if split == "train" and self.config.sets:
            return self._images
        return StillShapes(replace(self.config.stills, split="train" if split == "train" else "valid"))

    @cached_property
    def _images(self) -> Any:
        return mixed([open_images(name, root, split) for name, root, split in self.config.sets])

    def transform(self, split: str) -> Callable[..., Mapping[str, Any]]:
        """A row of an image."""
        cfg = self.config
        tokenise = Tokenise(
            self._tokenizer,
            self.system.model.internvl.family == "internlm2",
            self.system.image_tokens,
            cfg.text_length,
            cfg.expressions,
        )
        return ReferringImageRow(
            tokenise,
            size=cfg.size,
            expressions=cfg.expressions,
            box=cfg.box if all(cfg.box) else None,
            qualities=cfg.qualities if all(cfg.qualities) else None,
            others=self.source(split),
        )

    def evaluate(self, params: Params, *, step: int) -> Mapping[str, float]:
        """On validation images, with answers that the model writes: N-acc, T-acc, cIoU."""
        del step
        model: Any = nnx.merge(self._graph, params)
        if self.config.lora_rank:
            model, _ = lora.merge(model)
        if self._answering is None:
            tokenizer = loading.tokenizer_of(self._tokenizer, self.system.model)
            self._answering = Answering(self.system, model, tokenizer)
        self._answering.use(model)
        images, sums = self.source("validation"), dict.fromkeys(("i", "u", "present", "said", "absent", "rejected"), 0)
        for index in range(self.config.validation_images):
            item = images[index]
            answers = self._answering.answers(
                [squashed(item.image(), self.config.size)], [[e.text for e in item.expressions]]
            )[0]
            for number, answer in enumerate(answers):
                truth = resize_masks(item.mask(number)[None], (self.config.size, self.config.size))[0]
                drawn = np.zeros_like(truth) if answer.probability is None else answer.probability >= 0.5
                sums["i"] += int((drawn & truth).sum())
                sums["u"] += int((drawn | truth).sum())
                named = bool(truth.any())
                sums["present" if named else "absent"] += 1
                sums["said"] += named and answer.status == "ok"
                sums["rejected"] += not named and answer.status == "no_target"
        return {
            "ciou": sums["i"] / max(sums["u"], 1),
            "t_acc": sums["said"] / max(sums["present"], 1),
            "n_acc": sums["rejected"] / max(sums["absent"], 1),
        }

    def export(self, params: Params, folder: Path) -> None:
        """Writes the whole system, adapters merged; see `loading.save`."""
        model = parameters.assembled(self._model, params)
        if self.config.lora_rank:
            model, _ = lora.merge(model)
        file = self._tokenizer / loading.TOKENIZER if self._tokenizer.is_dir() else self._tokenizer
        loading.save(folder, model, file, config=self.system, dtype=jnp.float32)

    @cached_property
    def _image_id(self) -> int:
        return loading.tokenizer_of(self._tokenizer, self.system.model).image_id


def moved(mean: jax.Array, var: jax.Array, seen: BatchStatistics) -> dict[str, jax.Array]:
    """Stored statistics after every image of a batch has moved them in turn, as upstream calls its decoder.

    Shapes: mean and var [C].
    """
    weight = jnp.where(seen.count > 1, _MOMENTUM, 0.0)
    # What is left of an image's share when all after it have taken theirs.
    left = jnp.cumprod((1 - weight)[::-1])[::-1]
    share = weight * jnp.append(left[1:], 1.0)
    corrected = seen.var * (seen.count / jnp.maximum(seen.count - 1, 1))[:, None]
    return {"mean": left[0] * mean + share @ seen.mean, "var": left[0] * var + share @ corrected}


def _stored_small(params: Params, prefix: str = "") -> Params:
    """Parameters with those in bfloat16 that `TRAINED` does not name."""
    return {
        key: _stored_small(value, f"{prefix}{key}{SEPARATOR}")
        if isinstance(value, dict)
        else value.astype(value.dtype if matches(f"{prefix}{key}", TRAINED) else jnp.bfloat16)
        for key, value in params.items()
    }


def _with_new_rows(given: Params, wanted: Params) -> Params:
    """Rows for the words that a vocabulary lacks: small random ones to read, the mean of all to say, as upstream."""
    table, head = given["embed_tokens"]["embedding"], given["lm_head"]["kernel"]
    if "embed_tokens" not in wanted:
        return given
    missing = wanted["embed_tokens"]["embedding"].shape[0] - table.shape[0]
    if missing <= 0:
        return given
    new = 0.02 * jax.random.normal(jax.random.key(0), (missing, table.shape[1]), jnp.float32)
    mean = jnp.mean(head.astype(jnp.float32), axis=1, keepdims=True)
    return {
        **given,
        "embed_tokens": {"embedding": jnp.concatenate([table, new.astype(table.dtype)])},
        "lm_head": {"kernel": jnp.concatenate([head, jnp.repeat(mean, missing, axis=1).astype(head.dtype)], axis=1)},
    }
