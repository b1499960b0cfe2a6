"""Batches from a source, in an order that a seed fixes, with worker processes, and resumable.

The order does not depend on the number of workers, nor (for the same global batch) on the number of processes:
the source is shuffled and transformed by global position, and every process takes every `process_count`-th
sample. A position is therefore one number, which the trainer saves with each checkpoint.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvseg_jax.input_pipeline.sources import Source

Row = Mapping[str, np.ndarray]
Transform = Callable[[Any, np.random.Generator], Row]
_ENDLESS = 1 << 48  # samples
_READ_THREADS = 0  # rendering and decoding hold the interpreter lock: threads would only take turns


class SampleError(RuntimeError):
    """A sample that cannot be read or transformed; the message names it, `__cause__` is the reason."""


class StateError(ValueError):
    """A saved position that belongs to other data or other settings."""


@dataclass(frozen=True)
class _Numbered:
    """A source that gives its samples with their numbers, so that a failing step can name the sample."""

    source: Source[Any]

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return int(index), self.source[int(index)]
        except Exception as error:
            raise SampleError(f"sample {index} of {self.source!r}: {_reason(error)}") from error


@dataclass(frozen=True)
class _Transformed:
    """The transform on numbered samples."""

    source: Source[Any]
    transform: Transform

    def __call__(self, item: tuple[int, Any], rng: np.random.Generator) -> Row:
        index, sample = item
        try:
            return self.transform(sample, rng)
        except Exception as error:
            raise SampleError(f"sample {index} of {self.source!r}: {_reason(error)}") from error


@dataclass(frozen=True)
class _Staged:
    """A transform that depends on the position in training."""

    source: Source[Any]
    transform: Any

    def __call__(self, item: tuple[int, tuple[int, Any]], rng: np.random.Generator) -> Row:
        position, numbered = item
        return _Transformed(self.source, self.transform.at(position))(numbered, rng)


def _with_position(position: int, item: tuple[int, Any]) -> tuple[int, tuple[int, Any]]:
    return int(position), item


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def stack(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """One batch from rows, arrays stacked on a new first axis.

    Raises: ValueError for rows with different names, shapes or number formats.
    """
    first = rows[0]
    for row in rows:
        if row.keys() != first.keys():
            raise ValueError(f"rows of a batch differ: {sorted(first)} and {sorted(row)}")
    batch = {}
    for name in first:
        arrays = [np.asarray(row[name]) for row in rows]
        kinds = {(array.shape, array.dtype.str) for array in arrays}
        if len(kinds) > 1:
            raise ValueError(
                f"{name!r} differs within a batch: {sorted(kinds)}; give all rows one shape, or use batches of 1"
            )
        batch[name] = np.stack(arrays)
    return batch


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of a source; make one with `make_loader`. Each `iter` starts at the first batch.

    Attributes:
      batches: Grain's `MapDataset` of this process's batches.
      global_batch: samples of one step, over all processes.
      num_workers: worker processes.
      prefetch: batches that each of them holds ready.
      identity: what a saved position has to agree with.
    """

    batches: Any
    global_batch: int
    num_workers: int
    prefetch: int
    identity: Mapping[str, Any]

    def __iter__(self) -> "LoaderIterator":
        return LoaderIterator(self)

    def start(self, batch: int) -> Any:
        """Grain's iterator over the batches from number `batch` on."""
        import grain

        rest = self.batches[batch:] if batch else self.batches
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_READ_THREADS)
        stream = rest.to_iter_dataset(options)
        if self.num_workers:
            workers = grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=self.prefetch)
            stream = stream.mp_prefetch(workers)
        return iter(stream)


class LoaderIterator:
    """Iterates over batches; `get_state` after a batch, given to `set_state`, goes on with the next one."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._next = 0
        self._stream: list[Any] = []  # Grain's iterator, once it runs
        # Runs at interpreter exit too, while the modules that worker processes are ended with still exist.
        weakref.finalize(self, _close, self._stream)

    def __iter__(self) -> "LoaderIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._stream:
            self._stream.append(self._loader.start(self._next))
        batch = next(self._stream[0])
        self._next += 1
        # Arrays from worker processes lie in shared memory, which has to be free again before they die.
        return {name: np.array(array, subok=False) for name, array in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """The position as JSON-able values: samples taken over all processes, and what they were taken of."""
        return {"samples": self._next * self._loader.global_batch, **self._loader.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `get_state` gave; worker processes start anew with the next batch.

        Raises: StateError where source, seed or order are others, or the global batch does not divide the
          position.
        """
        for name, value in self._loader.identity.items():
            if state.get(name) != value:
                raise StateError(
                    f"the saved data position has {name} {state.get(name)!r}, this run {value!r}: "
                    "resume with the settings of the saved run, or start a new one"
                )
        batch, rest = divmod(int(state["samples"]), self._loader.global_batch)
        if rest:
            raise StateError(
                f"{state['samples']} samples were taken, no whole number of batches of {self._loader.global_batch}"
            )
        self.close()
        self._next = batch

    def close(self) -> None:
        """Ends the worker processes, if any."""
        _close(self._stream)


def _close(stream: list[Any]) -> None:
    while stream:
        stream.pop().close()


def make_loader(
    source: Source[Any],
    *,
    transform: Transform,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    prefetch: int = 2,
    num_epochs: int | None = None,
    shuffle: bool = True,
) -> Loader:
    """Batches of `source`.

    Args:
      source: samples by index; pickled for worker processes.
      transform: a sample and a random generator (fixed by seed and position) to named arrays; pickled too. One with a
        method `at` is asked for `transform.at(position)`, the transform of the sample that so many precede in training.
      batch_size: samples a batch of this process.
      seed: of the order and of the transform's randomness, from 0 to 2**32 - 1.
      process_index, process_count: this process among all that share the data.
      num_workers: worker processes; 0 works in this one.
      prefetch: batches that each worker holds ready.
      num_epochs: passes over the source, each in its own order; None: without end.
      shuffle: whether the order is random; otherwise it is that of the source.

    Raises: ValueError for settings that fit together badly. With `num_epochs` the last batch is smaller where
      samples are left over; several processes would then disagree, so there they have to divide evenly.
      While iterating: SampleError for a sample that fails, naming it.
    """
    import grain
    from absl import flags

    if batch_size < 1 or num_workers < 0 or prefetch < 1:
        raise ValueError(
            f"batch_size {batch_size} and prefetch {prefetch} must be positive, num_workers {num_workers} not negative"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not one of {process_count} processes")
    count = len(source)
    if not count:
        raise ValueError(f"{source!r} has no samples")
    if num_epochs is not None and process_count > 1 and count * num_epochs % (batch_size * process_count):
        raise ValueError(
            f"{count * num_epochs} samples do not divide into batches of {batch_size} on {process_count} processes"
        )
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # worker processes read absl's flags, used or not
    samples = grain.MapDataset.source(_Numbered(source)).seed(seed)
    if shuffle:
        samples = samples.shuffle()
    # Grain's own endless repeat is too long to be batched by one: its length no longer fits an index.
    epochs = max(1, _ENDLESS // count) if num_epochs is None else num_epochs
    samples = samples.repeat(epochs)
    if hasattr(transform, "at"):
        samples = samples.map_with_index(_with_position).random_map(_Staged(source, transform))
    else:
        samples = samples.random_map(_Transformed(source, transform))
    # Batches are cut before they are dealt out, so that the processes' batches side by side are the batch that one
    # process alone would have: noise drawn for a row meets the same sample on every number of processes.
    batches = samples.batch(batch_size, batch_fn=stack)[process_index::process_count]
    identity = {"source": repr(source), "length": count, "seed": seed, "shuffle": shuffle}
    return Loader(batches, batch_size * process_count, num_workers, prefetch, identity)
