"""Clips of a still world with moving objects, filmed by a moving camera, with all of their geometry."""

from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.camera import CAMERAS
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.dataset import (
    GeometricSample,
    GeometricShapes,
    GeometricShapesConfig,
    geometric_held_out,
    geometric_list_hash,
)
from rvseg_jax.input_pipeline.datasets.moving_shapes.geometric.scene import MOTIONS

__all__ = [
    "CAMERAS",
    "MOTIONS",
    "GeometricSample",
    "GeometricShapes",
    "GeometricShapesConfig",
    "geometric_held_out",
    "geometric_list_hash",
]
