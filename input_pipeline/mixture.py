"""Several sources as one, in fixed shares."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from rvseg_jax.input_pipeline.sources import Source


class Mixture:
    """Interleaves sources by whole-number weights: of every `sum(weights)` samples, `weights[k]` are from k.

    An index alone says which sample of which source it is, so a mixture can be shuffled, split over processes
    and resumed as any source. A source that is used up before the epoch ends starts again.
    """

    def __init__(self, sources: Sequence[Source[Any]], weights: Sequence[int], *, length: int | None = None) -> None:
        """Mixes sources.

        Args:
          sources: what to mix.
          weights: samples of each source in one round.
          length: samples an epoch; None: whole rounds until every sample of every source was there once.

        Raises: ValueError for an empty source, a weight that is not positive, or lists that do not match.
        """
        if len(sources) != len(weights) or not sources:
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights: give one weight a source")
        for source, weight in zip(sources, weights, strict=True):
            if weight < 1 or weight != int(weight):
                raise ValueError(f"weight {weight} of {source!r} must be a positive whole number")
            if not len(source):
                raise ValueError(f"{source!r} has no samples to mix")
        self.sources = list(sources)
        self.weights = [int(weight) for weight in weights]
        self._ends = [sum(self.weights[: k + 1]) for k in range(len(self.weights))]
        rounds = max(-(-len(source) // weight) for source, weight in zip(sources, self.weights, strict=True))
        self._length = length or rounds * self._ends[-1]

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        parts = ", ".join(f"{w} x {source!r}" for w, source in zip(self.weights, self.sources, strict=True))
        return f"mixture of {parts}"

    def locate(self, index: int) -> tuple[int, int]:
        """Which source, and which of its samples, stands at `index`.

        Raises: IndexError beyond the ends.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"{self!r} has no sample {index}")
        turn, place = divmod(index, self._ends[-1])
        k = bisect_right(self._ends, place)
        within = place - (self._ends[k] - self.weights[k])
        return k, (turn * self.weights[k] + within) % len(self.sources[k])

    def __getitem__(self, index: int) -> Any:
        k, place = self.locate(index)
        return self.sources[k][place]
