"""A procedural referring-video dataset: moving textured shapes, sentences of a grammar, exact truth."""

from rvseg_jax.input_pipeline.datasets.moving_shapes.dataset import (
    KINDS,
    KindWeights,
    MovingShapes,
    MovingShapesConfig,
    MovingShapesSample,
    held_out,
    list_hash,
    sample_hash,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import vocabulary
from rvseg_jax.input_pipeline.datasets.moving_shapes.writers import (
    to_mevis,
    to_ref_davis,
    to_ref_youtube_vos,
    to_refcoco,
)

__all__ = [
    "KINDS",
    "KindWeights",
    "MovingShapes",
    "MovingShapesConfig",
    "MovingShapesSample",
    "held_out",
    "list_hash",
    "sample_hash",
    "to_mevis",
    "to_ref_davis",
    "to_ref_youtube_vos",
    "to_refcoco",
    "vocabulary",
]
