"""The compiled functions of a tracking session, made once for a model."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from rvseg_jax.models.sam2.tracking import Place, enlarged, observe, settle, track_step
from rvseg_jax.models.sam2.tracking_prompts import TrackPrompts
from rvseg_jax.models.sam2.tracking_state import FrameMemory, TrackState

if TYPE_CHECKING:
    from rvseg_jax.models.sam2.model import ImageFeatures, Sam2


class TrackingPrograms:
    """`encode_image`, `observe`, `settle` and `track_step` of a model, each compiled for the shapes that it meets.

    They compile anew only for another number of rows, of prompted slots or of points (see `batched_prompts`), with
    and without prompts, and with and without a state: never for another frame, direction or length of the video.

    Attributes:
      parameters: of the model.
      compiles: how often each function was traced.
    """

    def __init__(self, model: "Sam2"):
        graph, self.parameters = nnx.split(model)
        self.cfg = model.cfg
        self.compiles: Counter[str] = Counter()

        def of_model(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def run(parameters: nnx.State, *inputs: Any) -> Any:
                self.compiles[name] += 1  # when it is traced
                return function(nnx.merge(graph, parameters), *inputs)

            return jax.jit(run)

        def of_config(name: str, function: Callable[..., Any], *static: int) -> Callable[..., Any]:
            def run(*inputs: Any) -> Any:
                self.compiles[name] += 1
                return function(self.cfg, *inputs)

            return jax.jit(run, static_argnums=static)

        self._encode = of_model("encode_image", lambda model, images: model.encode_image(images))
        self._observe = of_model("observe", observe)
        self._step = of_model("track_step", track_step)
        self._settle = of_config("settle", settle)
        self._enlarged = of_config("enlarged", enlarged, 1, 2)

    def encode_image(self, images: jax.Array) -> "ImageFeatures":
        """As `Sam2.encode_image`. Shapes: images [V, S, S, 3], normalised."""
        return self._encode(self.parameters, images)

    def observe(
        self, features: "ImageFeatures", state: TrackState | None, prompts: TrackPrompts | None, place: Place
    ) -> FrameMemory:
        """As `tracking.observe`."""
        return self._observe(self.parameters, features, state, prompts, place)

    def settle(self, state: TrackState, seen: FrameMemory, place: Place, rows: jax.Array) -> TrackState:
        """As `tracking.settle`."""
        return self._settle(state, seen, place, rows)

    def track_step(
        self, state: TrackState, features: "ImageFeatures", place: Place, prompts: TrackPrompts | None = None
    ) -> tuple[TrackState, FrameMemory]:
        """As `tracking.track_step`."""
        return self._step(self.parameters, state, features, place, prompts)

    def enlarged(self, logits: jax.Array, size: tuple[int, int], *, videos: int = 1) -> jax.Array:
        """As `tracking.enlarged`."""
        return self._enlarged(logits, size, videos)
