"""The control of motion segmentation: what one homography a pair of frames leaves of the true optical flow.

A homography explains the flow of a plane, and of any still world seen by a camera that turns or zooms and does not
travel. What is left over are moving objects, and still ones at other depths: a model that scores no better has not
told the two apart.
"""

import numpy as np

_HYPOTHESES = 200
# Pixels from one point to the next: of those that hypotheses are tried on, and of those that the best is refined on.
_COARSE, _FINE = 4, 2
_CUT = 1.0  # pixels beyond which an error counts no more in choosing a hypothesis
_ROUNDS = 12


def residuals(flow: np.ndarray, backward_flow: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the best homographies leave of a clip's flow: for each frame the larger of both directions.

    Shapes: flow [T-1, H, W, 2] from frames 0..T-2 to the next, backward_flow [T-1, H, W, 2] from frames 1..T-1 to the
      one before, in pixels; -> float64 [T, H, W], pixels.
    """
    out = np.zeros((len(flow) + 1, *flow.shape[1:3]))
    for t, (ahead, back) in enumerate(zip(flow, backward_flow, strict=True)):
        out[t] = np.maximum(out[t], residual(ahead, fit(ahead, seed)))
        out[t + 1] = np.maximum(out[t + 1], residual(back, fit(back, seed)))
    return out


def fit(flow: np.ndarray, seed: int = 0) -> np.ndarray:
    """The homography that explains most of a flow: RANSAC, then re-weighted least squares with Cauchy's weights.

    Shapes: flow [H, W, 2], pixels; -> float64 [3, 3], of coordinates in which the longer side goes from -1 to 1.
    """
    start, unit = _places(flow.shape[:2])
    end = start + flow / unit
    few, few_ends = (points[::_COARSE, ::_COARSE].reshape(-1, 2) for points in (start, end))
    chosen = np.random.default_rng(seed).integers(len(few), size=(_HYPOTHESES, 4))
    rows, right = _equations(few[chosen], few_ends[chosen])
    # Four points of which three lie on a line have no answer, or a wild one, which loses.
    rows = rows + 1e-9 * np.eye(8)
    tried = _as_matrix(np.linalg.solve(rows, right[..., None])[..., 0])
    errors = np.minimum(_distance(tried[:, None], few, few_ends) * unit, _CUT).sum(axis=-1)
    best = tried[np.argmin(errors)]
    points, ends = (places[::_FINE, ::_FINE].reshape(-1, 2) for places in (start, end))
    rows, right = _equations(points[:, None], ends[:, None])
    for step in range(_ROUNDS):
        scale = max(1.0 - 0.1 * step, 0.2)  # pixels: ever stricter
        error = _distance(best, points, ends) * unit / scale
        weight = np.repeat(1 / (1 + error * error), 2)
        a, b = rows.reshape(-1, 8), right.reshape(-1)
        best = _as_matrix(np.linalg.solve((a * weight[:, None]).T @ a, (a * weight[:, None]).T @ b))
    return best


def residual(flow: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Pixels by which a flow differs from that of a homography. Shapes: [H, W, 2], [3, 3] -> [H, W]."""
    start, unit = _places(flow.shape[:2])
    return _distance(homography, start, start + flow / unit) * unit


def _places(size: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Pixel centres as float64 [H, W, 2] x and y, 0 in the middle, and the pixels of their unit."""
    unit = max(size) / 2
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([columns - size[1] / 2, rows - size[0] / 2], -1) / unit, unit


def _equations(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Linear equations of the first eight numbers of a homography; the ninth is 1.

    Shapes: start, end [B, P, 2] -> [B, 2 P, 8], [B, 2 P].
    """
    x, y, u, v = start[..., 0], start[..., 1], end[..., 0], end[..., 1]
    zero, one = np.zeros_like(x), np.ones_like(x)
    first = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    rows = np.stack([first, second], -2).reshape(*x.shape[:-1], 2 * x.shape[-1], 8)
    return rows, end.reshape(*x.shape[:-1], -1)


def _as_matrix(numbers: np.ndarray) -> np.ndarray:
    """Shapes: [..., 8] -> [..., 3, 3]."""
    return np.concatenate([numbers, np.ones((*numbers.shape[:-1], 1))], -1).reshape(*numbers.shape[:-1], 3, 3)


def _distance(homography: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Lengths of the differences. Shapes: homography [..., 3, 3], start, end [..., 2] -> [...]."""
    x, y = start[..., 0], start[..., 1]
    h = homography
    u, v, w = (h[..., k, 0] * x + h[..., k, 1] * y + h[..., k, 2] for k in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.hypot(u / w - end[..., 0], v / w - end[..., 1])
    return np.where(np.isfinite(lengths), lengths, np.inf)
