"""What a system offers to the library (a clip and sentences in, masks out in chunks), and the registry."""

import difflib
import importlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.processing.video import Video

Status = Literal["ok", "no_target", "no_seg_token", "parse_error"]
# Called with the stage's name, the steps done and all steps (None while unknown).
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class MaskChunk:
    """Masks of consecutive frames.

    Shapes: masks [N, t, H, W] bool at source size, for frames start .. start + t - 1; N sentences. `scores`, where
      they were asked for and the system has them: float32 of the same shape, probabilities of foreground in 0..1.
    """

    start: int
    masks: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome for one sentence: how it ended, and a confidence in 0..1."""

    status: Status
    score: float


@dataclass(frozen=True)
class SegmentOptions:
    """Choices of one call that every system understands.

    max_memory: bytes that activations may take; a longer clip is cut into windows that fit. None: no bound here;
      a `Predictor` then sets half of the memory that is free.
    whole_clip: never cut into windows, as published evaluations do.
    threshold: probability above which a pixel belongs to the mask; None: the system's own.
    scores: also give the probabilities behind the masks, in systems that have them.
    """

    max_memory: int | None = None
    whole_clip: bool = False
    threshold: float | None = None
    scores: bool = False


class System(Protocol):
    """A loaded segmentation system."""

    name: str
    # As in its module.
    reads_text: bool
    # Longest sentence in tokens, with the end token, that is read whole.
    max_tokens: int

    def token_count(self, text: str) -> int:
        """Number of tokens of a sentence, with the end token."""

    def segment(
        self,
        video: Video,
        texts: Sequence[str],
        *,
        options: SegmentOptions = SegmentOptions(),
        progress: Progress | None = None,
    ) -> Generator[MaskChunk, None, list[Verdict]]:
        """Yield the masks of all sentences, each frame once and in order; return one verdict per sentence."""


class SystemModule(Protocol):
    """The module of a system, `rvseg_jax.systems.<name>`."""

    # Whether the system is told by sentences what to segment; one that is not gives a single mask.
    READS_TEXT: bool
    # Whether it is made for single images and several sentences about each, and is scored on such datasets too.
    FOR_IMAGES: bool

    def load(self, checkpoint: Path | None, *, dtype: str | None, mesh: Any, **options: Any) -> System:
        """Build the system from a checkpoint folder, or with the bundled tiny weights where it is None."""

    def describe(self) -> dict[str, Any]:
        """Parts, parameter counts, licences of weights and published presets, as JSON-able values."""


_MODULES: dict[str, str | SystemModule] = {
    "flowrvs": "rvseg_jax.systems.flowrvs",
    "geomotion": "rvseg_jax.systems.geomotion",
    "mllmseg": "rvseg_jax.systems.mllmseg",
}


def names() -> list[str]:
    """Names of the systems, sorted."""
    return sorted(_MODULES)


def module(name: str) -> SystemModule:
    """The module of a system, imported now.

    Raises: InputError for an unknown name, with the nearest known one.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names())}"
        raise InputError(f"no system is called {name!r}; {hint}")
    found = _MODULES[name]
    return importlib.import_module(found) if isinstance(found, str) else found


def register(name: str, system: str | SystemModule) -> None:
    """Add a system under a name: its module, or the name of the module to import on first use.

    Raises: InputError where the name is taken.
    """
    if name in _MODULES:
        raise InputError(f"a system called {name!r} is registered already; choose another name")
    _MODULES[name] = system
