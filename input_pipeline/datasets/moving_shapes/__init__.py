"""A procedural referring-video dataset: moving textured shapes, sentences of a grammar, exact truth."""

from rvseg_jax.input_pipeline.datasets.moving_shapes.dataset import (
    KINDS,
    MovingShapes,
    MovingShapesConfig,
    MovingShapesSample,
    held_out,
    list_hash,
    sample_hash,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.grammar import vocabulary

__all__ = [
    "KINDS",
    "MovingShapes",
    "MovingShapesConfig",
    "MovingShapesSample",
    "held_out",
    "list_hash",
    "sample_hash",
    "vocabulary",
]
