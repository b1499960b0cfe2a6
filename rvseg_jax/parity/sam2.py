"""Golden cases of SAM 2: its image predictor here, its video predictor in `sam2_video`.

The files are channels first; everything here is channels last.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from rvseg_jax.convert import from_torch
from rvseg_jax.core.errors import InputError
from rvseg_jax.models.sam2.image_predictor import EncodedImage, ImagePredictor, ObjectPrompt
from rvseg_jax.models.sam2.position_encoding import sine_encoding
from rvseg_jax.parity import sam2_video
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case
from rvseg_jax.parity.kinds import Kind
from rvseg_jax.parity.sam2_config import MODEL_FIELDS, model_config
from rvseg_jax.processing.sam2 import square_image

# Prediction -> inputs of the case that prompt it, and whether several masks are predicted.
_PREDICTIONS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "points": (("points", "point_labels"), True),
    "points_single": (("points", "point_labels"), False),
    "box": (("box",), False),
    "box_points": (("points", "point_labels", "box"), True),
    "mask": (("mask_input",), False),
}
_FIELDS = {"points": "points", "point_labels": "labels", "box": "box", "mask_input": "logits"}


def _image_predictor(case: Case) -> Produced:
    model: Any = from_torch("sam2", case.weights, model_config(case.config))
    cfg, image = model.cfg, case.input("image")
    graph, state = nnx.split(model)

    def encode(weights: nnx.State, pixels: jax.Array) -> Any:
        made: Any = nnx.merge(graph, weights)
        features, taps = made.encode_image(pixels, taps=True)
        return features, made.without_memory(features).embedding, taps

    features, embedding, taps = jax.jit(encode)(state, square_image(image, cfg.image_size)[None])
    outputs = {
        f"tap/{name}/{level}": _first(x) for name in ("hiera_stage", "fpn") for level, x in enumerate(taps[name])
    }
    for level, x in enumerate(taps["fpn"]):
        position = sine_encoding(*x.shape[1:], temperature=cfg.position_encoding_temperature)
        outputs[f"tap/fpn_pos/{level}"] = _first(position[None])
    outputs["tap/image_embed"] = _first(embedding)
    outputs |= {f"tap/high_res_feats/{level}": _first(x) for level, x in enumerate(features.high_res or ())}
    predictor, encoded = ImagePredictor(model), EncodedImage(features, *image.shape[:2])
    for name in dict.fromkeys(output.split("/")[0] for output in case.outputs if not output.startswith("tap/")):
        if name not in _PREDICTIONS:
            raise InputError(f"{case.path} has outputs of {name!r}; this kind predicts {', '.join(_PREDICTIONS)}")
        inputs, several = _PREDICTIONS[name]
        prompt = replace(ObjectPrompt(), **{_FIELDS[key]: _squeezed(key, case.input(key)) for key in inputs})
        found = predictor.predict(encoded, [prompt], multimask_output=several)
        outputs |= {f"{name}/masks": found.logits[0], f"{name}/iou": found.iou[0], f"{name}/low_res": found.low_res[0]}
    return Produced(outputs)


def _squeezed(name: str, array: np.ndarray) -> np.ndarray:
    return array[0] if name == "mask_input" else array


def _first(array: Any) -> np.ndarray:
    """[B, H, W, C] -> [B, C, H, W]."""
    return np.moveaxis(np.asarray(array), -1, 1)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {"image_predictor": Kind(_image_predictor, MODEL_FIELDS), **sam2_video.KINDS}
)
