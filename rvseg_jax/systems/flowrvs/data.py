"""Real videos, or images as clips of one frame, that FlowRVS trains on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rvseg_jax.processing.text import clean_text


@dataclass(frozen=True)
class DatasetsConfig:
    """Datasets on disk and what becomes of their clips.

    Attributes:
      sets: (dataset, folder, split, weight) each, names as in `input_pipeline.datasets.registry`; of every
        sum(weights) samples `weight` are from one. Empty: the stage trains on its `clips` of moving_shapes.
      frames: frames of a clip, 4n + 1; 1 for still images.
      augmentation: "video" or "image" as FlowRVS does with either, or "none", which only fits clips into the box.
      reversed_share: share of clips that are played backwards; upstream has 0.3 for Ref-YouTube-VOS.
      skip_short: leaves out videos with fewer than `frames` frames, as upstream does for Ref-YouTube-VOS; they
        are counted in the log. Otherwise frames of such a video repeat.
      replace_empty: draws another video where nothing that the sentence names shows in the clip, as upstream.
      box: (height, width) that every clip is padded to, or shrunk into where it is larger: a step has one shape.
    """

    sets: tuple[tuple[str, str, str, int], ...] = ()
    frames: int = 17
    augmentation: Literal["video", "image", "none"] = "video"
    reversed_share: float = 0.0
    skip_short: bool = False
    replace_empty: bool = True
    box: tuple[int, int] = (480, 832)

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise ValueError(f"data.frames is {self.frames}: the autoencoder takes 1, 5, 9, ... frames")
        if any(side % 16 for side in self.box):
            raise ValueError(f"data.box is {self.box}: both sides must be multiples of 16")


def training_source(config: DatasetsConfig) -> Any:
    """The training samples, undecoded.

    Raises:
      InputError: if a dataset is unknown or incomplete.
    """
    from rvseg_jax.input_pipeline.datasets.registry import open_dataset
    from rvseg_jax.input_pipeline.mixture import Mixture

    sources = [open_dataset(name, root, split, clip_frames=config.frames) for name, root, split, _ in config.sets]
    if config.skip_short:
        from rvseg_jax.input_pipeline.sampling import LongEnough

        sources = [LongEnough(source, config.frames) for source in sources]
    if len(sources) == 1:
        return sources[0]
    return Mixture(sources, [weight for *_, weight in config.sets])


def training_samples(config: DatasetsConfig, source: Any) -> Any:
    """From an undecoded sample to an augmented clip of one size, as a step for data workers."""
    from rvseg_jax.input_pipeline import transforms

    others = source if config.replace_empty else None
    steps: list[Any] = [transforms.DrawClip(config.frames, others)]
    if config.reversed_share:
        steps.append(transforms.PlayBackwards(config.reversed_share))
    if config.augmentation == "video":
        steps.append(transforms.FlowRVSAugmentation())
    elif config.augmentation == "image":
        steps.append(transforms.FlowRVSImageAugmentation())
    else:
        steps.append(transforms.NormalisedCaption())
    return transforms.Steps([*steps, transforms.PadToBox(config.box)])


def captions(config: DatasetsConfig, source: Any) -> Iterator[str]:
    """Every sentence that `training_samples` may give, mirrored ones too."""
    from rvseg_jax.input_pipeline.captions import normalised_caption, swap_left_right

    for index in range(len(source)):
        caption = normalised_caption(source[index].text)
        yield clean_text(caption)
        if config.augmentation != "none":
            yield clean_text(swap_left_right(caption))
