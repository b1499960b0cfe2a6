"""Predictions of systems for images with several expressions; those of folders are in `image_jobs`."""

from collections.abc import Sequence
from typing import Any

from rvseg_jax.evaluation.image_jobs import Predict
from rvseg_jax.evaluation.image_scores import ImagePrediction
from rvseg_jax.input_pipeline.image_referrals import ImageReferrals


def answering(system: Any, threshold: float | None = None) -> Predict:
    """What a system answers by itself; where it says that there is nothing, the mask is empty.

    Args:
      system: with `answer`, see `systems.mllmseg.system`.
      threshold: probability of foreground; None takes the system's own.
    """

    def predict(item: ImageReferrals, texts: Sequence[str]) -> list[ImagePrediction]:
        (found,) = system.answer([item.image()], [list(texts)], threshold=threshold)
        return [
            ImagePrediction(mask, verdict.status, verdict.score)
            for mask, verdict in zip(found.masks, found.verdicts, strict=True)
        ]

    return predict


def reading_truth(system: Any) -> Predict:
    """MLLMSeg's published evaluation: the model reads the true answer, and draws what it would have rejected too.

    A text that is not the image's own, as a control asks for it, names something.

    Args:
      system: with `read_truth`, see `systems.mllmseg.system`.
    """

    def predict(item: ImageReferrals, texts: Sequence[str]) -> list[ImagePrediction]:
        own = [one.text for one in item.expressions]
        absent = [text == own[number] and not item.mask(number).any() for number, text in enumerate(texts)]
        masks, rejected = system.read_truth(item.image(), list(texts), absent)
        return [ImagePrediction(mask, "no_target" if no else "ok") for mask, no in zip(masks, rejected, strict=True)]

    return predict
