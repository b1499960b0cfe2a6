"""A look at the masks while the DiT trains: region similarity on a few clips; scores come from `evaluation`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference, TextFeatures


class Validator:
    """One-clip inference whose weights change from call to call while its compiled passes stay."""

    def __init__(self, system: FlowRVSConfig, graphs: Mapping[str, nnx.GraphDef]) -> None:
        self._inference = Inference(system, graphs["dit"], graphs["vae"])
        self._encode = jax.jit(lambda state, ids, mask: nnx.merge(graphs["text"], state)(ids, mask))

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes the weights {"dit", "text", "vae"}."""
        self._text = params["text"]
        self._inference.load(params["dit"], params["vae"])

    def masks(self, row: Mapping[str, np.ndarray]) -> np.ndarray:
        """Masks of a row of `SentenceRow`. Shapes: frames [T, H, W, 3] -> bool [T, H, W]."""
        ids, mask = row["ids"][None], row["text_mask"][None]
        encoded = jnp.where(mask[..., None], self._encode(self._text, ids, mask), 0)
        text = TextFeatures(encoded, jnp.zeros(ids.shape[1]))
        latents = self._inference.mask_latents(self._inference.video_latents(row["frames"]), text)
        return np.asarray(self._inference.logits(latents)[0] > 0)


def region_similarity(samples: Sequence[Any], masks: Iterable[np.ndarray]) -> dict[str, float]:
    """Mean intersection over union, frame by frame, of all samples ("j") and of each kind ("j_<kind>").

    Frames without any mask on both sides count 1.
    """
    scores: dict[str, list[float]] = {}
    for sample, found in zip(samples, masks, strict=True):
        shared = (found & sample.masks).sum(axis=(1, 2))
        union = (found | sample.masks).sum(axis=(1, 2))
        value = float(np.where(union > 0, shared / np.maximum(union, 1), 1.0).mean())
        for name in ("j", f"j_{sample.kind}"):
            scores.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sorted(scores.items())}
