"""A window of steps under JAX's profiler."""

from pathlib import Path

import jax
from etils import epath

from rvseg_jax.core.logging import get_logger

FOLDER = "profile"
_logger = get_logger(__name__)


class Profiler:
    """Records `count` steps from step `first` on; every process records its own devices."""

    def __init__(self, workdir: str | Path, first: int, count: int) -> None:
        self._folder = epath.Path(workdir) / FOLDER
        self._first, self._last = first, first + count - 1
        self._running = False

    def before(self, step: int) -> None:
        """To be called before step number `step` (from 1) is dispatched."""
        if step == self._first and self._last >= self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int) -> None:
        """To be called when the results of step `step` have been read."""
        if self._running and step >= self._last:
            self.close()

    def close(self) -> None:
        """Ends a recording that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            _logger.info("steps %d to %d were recorded into %s", self._first, self._last, self._folder)
