"""Coloured points as a binary PLY file, which every viewer of point clouds opens."""

from pathlib import Path

import numpy as np

_VERTEX = np.dtype([(axis, "<f4") for axis in "xyz"] + [(colour, "u1") for colour in ("red", "green", "blue")])


def write(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Shapes: points float [P, 3], colours uint8 [P, 3], RGB.

    Raises:
      ValueError: for arrays of other shapes, or points that are not finite.
    """
    if points.ndim != 2 or points.shape != colours.shape or points.shape[1] != 3:
        raise ValueError(f"points {points.shape} and colours {colours.shape} must both be [P, 3]")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite")
    vertices = np.empty(len(points), _VERTEX)
    for index, name in enumerate(_VERTEX.names or ()):
        vertices[name] = points[:, index] if index < 3 else colours[:, index - 3]
    properties = [f"property {'float' if name in 'xyz' else 'uchar'} {name}" for name in _VERTEX.names or ()]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(lines).encode() + vertices.tobytes())
