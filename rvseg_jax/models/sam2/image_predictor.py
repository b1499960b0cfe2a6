"""Masks of prompted objects in an image, in and out in the image's own pixels.

Source: sam2/sam2_image_predictor.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.mask_decoder import MaskOutput
from rvseg_jax.models.sam2.model import ImageFeatures, Sam2
from rvseg_jax.models.sam2.prompt_encoder import EMPTY, FOREGROUND, PADDING, Prompts
from rvseg_jax.models.sam2.tracking_prompts import scaled_points
from rvseg_jax.ops.resize import resize
from rvseg_jax.processing.sam2 import square_image

# Low-resolution logits are given back within these bounds, so that they can be a prompt again.
_LOW_RES_BOUND = 32.0


@dataclass(frozen=True)
class ObjectPrompt:
    """What is asked about one object; any of points, box and logits.

    Shapes: points [P, 2], labels int [P], box [4], logits [h, h].

    Attributes:
      points: (x, y) in pixels of the image.
      labels: 1 foreground, 0 background; all foreground where None.
      box: xyxy in pixels of the image.
      logits: of an earlier prediction, `ImagePrediction.low_res`.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | None = None
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class EncodedImage:
    """Features of an image with its size in pixels."""

    features: ImageFeatures
    height: int
    width: int


@dataclass(frozen=True)
class ImagePrediction:
    """Masks of N objects, with M alternatives each.

    Shapes: logits float32 [N, M, H, W], iou float32 [N, M], low_res float32 [N, M, h, h], object_score float32 [N].

    Attributes:
      logits: in the size of the image.
      iou: predicted overlap with the truth, 0..1.
      low_res: logits as the model gives them, within -32..32.
      object_score: logit that the object is there; masks do not depend on it.
      mask_threshold: logits above it are mask.
    """

    logits: np.ndarray
    iou: np.ndarray
    low_res: np.ndarray
    object_score: np.ndarray
    mask_threshold: float = 0.0

    @property
    def masks(self) -> np.ndarray:
        """bool [N, M, H, W]."""
        return self.logits > self.mask_threshold


class ImagePredictor:
    """Compiled programs of a model. Numbers of objects and of points are rounded up to powers of two."""

    def __init__(self, model: Sam2, *, mask_threshold: float = 0.0):
        graph, self._state = nnx.split(model)
        self.cfg, self.mask_threshold = model.cfg, mask_threshold

        def encode(state: nnx.State, image: jax.Array) -> ImageFeatures:
            return nnx.merge(graph, state).encode_image(image)

        def segment(state: nnx.State, features: ImageFeatures, prompts: Prompts, several: bool) -> MaskOutput:
            model: Any = nnx.merge(graph, state)
            return model.segment_image(features, prompts, multimask_output=several, ragged=True)

        self._encode = jax.jit(encode)
        self._segment = jax.jit(segment, static_argnums=3)

    def encode(self, image: np.ndarray) -> EncodedImage:
        """The features of an image, for any number of predictions.

        Shapes: image uint8 [H, W, 3].

        Raises:
          InputError: for anything but an RGB image of bytes.
        """
        pixels = square_image(image, self.cfg.image_size)[None]
        return EncodedImage(self._encode(self._state, pixels), *image.shape[:2])

    def predict(
        self, image: EncodedImage, prompts: Sequence[ObjectPrompt], *, multimask_output: bool = True
    ) -> ImagePrediction:
        """Masks of the objects that the prompts ask for.

        Args:
          prompts: one for each object; all of one kind: with points or boxes or without, with logits or without.
          multimask_output: predict alternatives, for prompts that are ambiguous, such as a single click.

        Raises:
          InputError: for no prompts, prompts of several kinds, or arrays of other shapes than `ObjectPrompt` says.
        """
        out = self._segment(self._state, image.features, self._batched(image, prompts), multimask_output)
        masks = out.masks[: len(prompts)]
        logits = _enlarged(masks, (image.height, image.width))
        return ImagePrediction(
            np.asarray(logits),
            np.asarray(out.iou)[: len(prompts)],
            np.clip(np.asarray(masks), -_LOW_RES_BOUND, _LOW_RES_BOUND),
            np.asarray(out.object_score)[: len(prompts), 0],
            self.mask_threshold,
        )

    def _batched(self, image: EncodedImage, prompts: Sequence[ObjectPrompt]) -> Prompts:
        """The prompts in pixels of the model's image, padded to powers of two of objects and points."""
        placed = [one.points is not None or one.box is not None for one in prompts]
        drawn = [one.logits is not None for one in prompts]
        if not prompts or len(set(placed)) != 1 or len(set(drawn)) != 1 or not (placed[0] or drawn[0]):
            raise InputError("give one prompt or more, all with points or boxes or none, and all with logits or none")
        rows, size = _power_of_two(len(prompts)), (image.height, image.width)
        arrays: dict[str, np.ndarray] = {}
        if placed[0]:
            given = [scaled_points(self.cfg, size, **_points(one)) for one in prompts]
            count = _power_of_two(max(len(one) for one, _ in given))
            points = np.zeros((rows, count, 2), np.float32)
            labels = np.full((rows, count), EMPTY, np.int32)
            labels[len(prompts) :, 0] = PADDING
            for row, (coordinates, kinds) in enumerate(given):
                points[row, : len(kinds)], labels[row, : len(kinds)] = coordinates, kinds
            arrays |= {"points": points, "labels": labels}
        if drawn[0]:
            side = self.cfg.low_res_size
            masks = np.zeros((rows, side, side), np.float32)
            for row, one in enumerate(prompts):
                logits = np.asarray(one.logits)
                if logits.shape != (side, side):
                    raise InputError(f"logits of shape {logits.shape} must be ({side}, {side})")
                masks[row] = logits
            arrays["masks"] = masks
        return Prompts(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _points(prompt: ObjectPrompt) -> dict[str, Any]:
    labels = prompt.labels
    if prompt.points is not None and labels is None:
        labels = np.full(len(prompt.points), FOREGROUND)
    return {"points": prompt.points, "labels": labels, "box": prompt.box}


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


@partial(jax.jit, static_argnums=1)
def _enlarged(masks: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Shapes: masks [N, M, h, h] -> [N, M, H, W]."""
    return jnp.moveaxis(resize(jnp.moveaxis(masks, 1, -1), size, mode="bilinear"), -1, 1)
