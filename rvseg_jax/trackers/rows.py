"""Training rows of trackers, made in data workers: numpy only, so that no worker starts a JAX backend."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rvseg_jax.core.errors import InputError
from rvseg_jax.input_pipeline.sources import TrackingSample, TrackingVideo

_DRAWS = 20  # clips tried of one video before it counts as one without objects


@dataclass(frozen=True)
class ClipRow:
    """A clip of a video and some objects that show in its first frame.

    Attributes:
      frames: frames of a clip, T.
      objects: objects of a clip, O; where it has fewer, the last ones are not valid.
      size: side of the square frames, S.
      longest_stride: frames of the video from one frame of the clip to the next, at most.
      crop: cut a square out of the shorter side at random; otherwise the frame is squashed.
      least_area: share of the frame that an object has to show in the first frame.
    """

    frames: int = 8
    objects: int = 2
    size: int = 128
    longest_stride: int = 2
    crop: bool = False
    least_area: float = 0.002

    def __call__(self, video: TrackingVideo, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A row; clips run backwards or are mirrored as often as not.

        Shapes: -> {"frames": uint8 [T, S, S, 3], "masks": bool [O, T, S, S], "valid": bool [O]}.

        Raises:
          InputError: for a video that hardly shows an object.
        """
        for _ in range(_DRAWS):
            clip = video.sample(self._places(len(video), rng))
            frames, masks = self._square(clip, rng)
            shown = np.flatnonzero(masks[:, 0].mean(axis=(1, 2)) >= self.least_area)
            if len(shown):
                break
        else:
            raise InputError(f"{clip.video} shows no object in the first frame of {_DRAWS} clips: leave it out")
        chosen = rng.permutation(shown)[: self.objects]
        kept = np.zeros((self.objects, *masks.shape[1:]), bool)
        kept[: len(chosen)] = masks[chosen]
        if rng.random() < 0.5:
            frames, kept = frames[:, :, ::-1], kept[..., ::-1]
        return {
            "frames": np.ascontiguousarray(frames),
            "masks": np.ascontiguousarray(kept),
            "valid": np.arange(self.objects) < len(chosen),
        }

    def _places(self, length: int, rng: np.random.Generator) -> list[int]:
        """Frames of the clip; the last one is repeated where the video is too short."""
        longest = max(1, min(self.longest_stride, (length - 1) // max(self.frames - 1, 1)))
        stride = int(rng.integers(1, longest + 1))
        span = (self.frames - 1) * stride
        start = int(rng.integers(max(length - span, 1)))
        places = [min(start + stride * step, length - 1) for step in range(self.frames)]
        return places[::-1] if rng.random() < 0.5 else places

    def _square(self, clip: TrackingSample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        frames, masks = clip.frames, clip.masks
        if self.crop:
            height, width = frames.shape[1:3]
            side = min(height, width)
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            window = (slice(top, top + side), slice(left, left + side))
            frames, masks = frames[(slice(None), *window)], masks[(slice(None), slice(None), *window)]
        if frames.shape[1:3] == (self.size, self.size):
            return frames, masks
        resized = [Image.fromarray(frame).resize((self.size,) * 2, Image.Resampling.BICUBIC) for frame in frames]
        rows, columns = (
            np.minimum(((np.arange(self.size) + 0.5) * length / self.size).astype(int), length - 1)
            for length in frames.shape[1:3]
        )
        return np.stack([np.asarray(frame) for frame in resized]), masks[:, :, rows[:, None], columns]
