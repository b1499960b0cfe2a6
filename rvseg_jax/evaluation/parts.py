"""Parts of an evaluation that several processes do, each a share of the videos."""

from collections.abc import Sequence
from dataclasses import dataclass

from rvseg_jax.core.errors import InputError


@dataclass(frozen=True)
class Part:
    """Part `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"part {self.index + 1}/{self.count} does not exist; K/N needs K from 1 to N")

    @property
    def suffix(self) -> str:
        """What the names of this part's files end on; nothing for the whole."""
        return "" if self.count == 1 else f"-{self.index + 1}-of-{self.count}"

    def indices(self, videos: Sequence[str]) -> list[int]:
        """Samples of this part: those of every `count`-th video, whatever the order of the samples.

        Args:
          videos: name of the video of every sample.
        """
        places = {video: place for place, video in enumerate(dict.fromkeys(videos))}
        return [index for index, video in enumerate(videos) if places[video] % self.count == self.index]


WHOLE = Part()


def parse(text: str) -> Part:
    """The part that "K/N" means, K from 1 to N.

    Raises:
      InputError: for anything else.
    """
    first, slash, count = text.partition("/")
    if not slash or not first.isdecimal() or not count.isdecimal():
        raise InputError(f"{text!r} is no part; give K/N, such as 1/4 for the first of four")
    return Part(int(first) - 1, int(count))
