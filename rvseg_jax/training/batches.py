"""Training batches as global arrays on the mesh."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from rvseg_jax.core.config import ConfigError
from rvseg_jax.parallel import distributed
from rvseg_jax.training.config import RunConfig
from rvseg_jax.training.tasks import Batch, Task


class Batches:
    """Iterator over the training batches of a run; it reads this process's part and knows its position."""

    def __init__(self, settings: RunConfig, task: Task, source: Any, mesh: Mesh) -> None:
        from rvseg_jax.input_pipeline.loader import make_loader

        index, count = distributed.data_shard(mesh)
        if settings.batch_size % count:
            raise ConfigError(f"batch_size {settings.batch_size} does not divide by {count} loading processes")
        self._mesh = mesh
        self._loader = iter(
            make_loader(
                source,
                transform=task.transform("train"),
                batch_size=settings.batch_size // count,
                seed=settings.seed,
                process_index=index,
                process_count=count,
                num_workers=settings.loader.num_workers,
                prefetch=settings.loader.prefetch,
            )
        )

    def __next__(self) -> Batch:
        return distributed.batch_to_global(next(self._loader), self._mesh)

    def get_state(self) -> dict[str, Any]:
        """Position after the batches given so far, as JSON values."""
        return self._loader.get_state()

    def set_state(self, position: Mapping[str, Any]) -> None:
        """Goes on after the batches given before `position` was read.

        Raises:
          ValueError: if the position belongs to other data.
        """
        self._loader.set_state(position)

    def close(self) -> None:
        """Ends the worker processes."""
        self._loader.close()
