"""Referring video segmentation in JAX: a video and a sentence go in, a mask per frame comes out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rvseg_jax.api import Prediction as Prediction
    from rvseg_jax.api import Predictor as Predictor
    from rvseg_jax.api import VideoTracker as VideoTracker
    from rvseg_jax.api import describe as describe
    from rvseg_jax.api import list_systems as list_systems
    from rvseg_jax.api import list_trackers as list_trackers
    from rvseg_jax.api import load as load
    from rvseg_jax.api import plan as plan
    from rvseg_jax.trackers.prompts import Prompt as Prompt

__version__ = "0.1.0"

__all__ = [
    "Prediction",
    "Predictor",
    "Prompt",
    "VideoTracker",
    "describe",
    "list_systems",
    "list_trackers",
    "load",
    "plan",
]


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: workers and `rvseg --help` start without JAX.
    if name in __all__:
        from rvseg_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'rvseg_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
