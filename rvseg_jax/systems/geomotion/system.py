"""GeoMotion as the library offers it: a clip in, masks of what moves by itself out, window by window."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.core.logging import get_logger
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.models.raft.inference import FlowRunner
from rvseg_jax.models.raft.model import RAFT
from rvseg_jax.models.sam2.tracking_programs import TrackingPrograms
from rvseg_jax.ops.resize import resize
from rvseg_jax.processing.geomotion import handed_on, squashed
from rvseg_jax.processing.video import Video
from rvseg_jax.systems import windows
from rvseg_jax.systems.base import MaskChunk, Progress, SegmentOptions, Verdict
from rvseg_jax.systems.geomotion.config import GeoMotionSystemConfig
from rvseg_jax.systems.geomotion.cross_filling import cross_filled
from rvseg_jax.systems.geomotion.flow import magnitudes

logger = get_logger(__name__)

MASK_FRAMES = 8  # frames that are enlarged to the source's size at a time
# Arrays of a frame's tokens, of the width of the backbone, that are alive at once. XLA on CPU takes 19 of them at the
# published size (283 MiB for 2 frames of 518 pixels, 3,333 for 32) beside 85 MiB whatever their number.
_TOKEN_ARRAYS = 24


class GeoMotionSystem:
    """What moves by itself in a video (arXiv 2602.21810): one mask a frame, no sentence, no instances.

    Args:
      refiner: compiled programs of a SAM 2; None leaves masks as they are.
      mesh: devices over which pairs of frames are cut.
    """

    name = "geomotion"
    reads_text = False
    max_tokens = 0

    def __init__(
        self,
        config: GeoMotionSystemConfig,
        geomotion: GeoMotion,
        raft: RAFT,
        refiner: TrackingPrograms | None = None,
        *,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.config = config
        graph, self._weights = nnx.split(geomotion)
        self._flow = FlowRunner(raft, mesh=mesh)
        self._refiner = refiner if config.refine else None

        def moving(weights: nnx.State, frames: jax.Array, flow: jax.Array) -> jax.Array:
            network: Any = nnx.merge(graph, weights)
            return jax.nn.sigmoid(network(frames.astype(jnp.float32)[None] / 255, flow[None]).logits[0])

        self._moving = jax.jit(moving)
        self._enlarged = jax.jit(_enlarged, static_argnums=1)

    @property
    def refines(self) -> bool:
        """Whether SAM 2 sharpens the masks."""
        return self._refiner is not None

    def token_count(self, text: str) -> int:
        """No sentence is read."""
        return 0

    def segment(
        self,
        video: Video,
        texts: Sequence[str],
        *,
        options: SegmentOptions = SegmentOptions(),
        progress: Progress | None = None,
    ) -> Generator[MaskChunk, None, list[Verdict]]:
        """Yields masks in frame order, each frame once; `texts` is what the one mask is called.

        A clip longer than a window of `stride` times `group` frames, or than fits `options.max_memory`, runs in
        overlapping windows that fade into each other; the memory does not grow with its length.

        Returns:
          "ok" and the mean probability inside of the masks, or "no_target" and 0 if nothing moves.

        Raises:
          InputError: for more than one mask.
        """
        if len(texts) != 1:
            raise InputError(f"{self.name} gives one mask of all that moves, not {len(texts)}")
        size, length = (video.height, video.width), self.window(options)
        self._flow.max_bytes = options.max_memory
        overlap = 0 if length is None else min(round(length * self.config.overlap), length - 1)
        threshold = self.config.threshold if options.threshold is None else options.threshold
        pixels, total, done = 0, 0.0, 0
        for start, values in windows.run_windows(
            video, lambda window: self.probabilities(window)[None], length=length, overlap=overlap
        ):
            for first in range(0, values.shape[1], MASK_FRAMES):
                found = self._enlarged(jnp.asarray(values[0, first : first + MASK_FRAMES]), size)
                probabilities = np.asarray(found)
                masks = probabilities > threshold
                pixels += int(masks.sum())
                total += float(probabilities.sum(where=masks))
                yield MaskChunk(start + first, masks[None], probabilities[None] if options.scores else None)
            done = start + values.shape[1]
            if progress is not None:
                progress("masks", done, video.count or video.expected_count)
        return [Verdict("ok", total / pixels) if pixels else Verdict("no_target", 0.0)]

    def probabilities(self, frames: np.ndarray) -> np.ndarray:
        """Of a window: interleaved groups of frames, and what SAM 2 makes of the whole.

        Shapes: frames uint8 [T, H, W, 3] -> float32 [T, S, S].
        """
        found = np.zeros((len(frames), self.config.size, self.config.size), np.float32)
        for places in groups(len(frames), self.config.stride, self.config.group):
            found[places] = self.of_group(frames[places])
        return self.refined(frames, found)

    def of_group(self, frames: np.ndarray) -> np.ndarray:
        """Probabilities of frames that are seen at once. Shapes: uint8 [T, H, W, 3] -> float32 [T, S, S]."""
        clip = np.stack([squashed(frame, self.config.size) for frame in frames])
        return np.asarray(self._moving(self._weights, clip, magnitudes(self._flow, clip)))

    def window(self, options: SegmentOptions) -> int | None:
        """Frames of a window; None for the whole clip, as upstream does when it writes no groups."""
        if options.whole_clip:
            return None
        longest = self.config.stride * self.config.group
        if options.max_memory is None:
            return longest
        fitting = options.max_memory // self.frame_bytes()
        if fitting < 2:
            raise InputError(
                f"two frames need about {2 * self.frame_bytes() / 2**30:.1f} GiB: give more than "
                f"{options.max_memory / 2**30:.1f} GiB, or set a smaller size"
            )
        return min(longest, fitting)

    def frame_bytes(self) -> int:
        """About what a frame of a window takes."""
        pi3 = self.config.geomotion.pi3
        tokens = (self.config.size // pi3.patch_size) ** 2 + pi3.register_tokens
        width = jnp.dtype(pi3.precision.compute_dtype).itemsize * pi3.width
        return tokens * width * _TOKEN_ARRAYS

    def refined(self, frames: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """What SAM 2 makes of probabilities, where there is one; frames that it cannot be asked about stay as they are.

        Shapes: frames uint8 [T, H, W, 3], probabilities [T, S, S] -> float32 [T, S, S].
        """
        if self._refiner is None:
            return probabilities
        like_upstream, threshold = self.config.refine_like_upstream, self.config.prompt_threshold
        shown = [handed_on(frame, self.config.size) for frame in frames] if like_upstream else list(frames)
        logits, filled = cross_filled(self._refiner, shown, probabilities, threshold=threshold)
        if not filled.all():
            logger.info(
                "SAM 2 left %d of %d frames: nothing beside them is above %g", sum(~filled), len(filled), threshold
            )
        sharpened = (logits > 0).astype(np.float32) if like_upstream else np.asarray(jax.nn.sigmoid(logits))
        return np.where(filled[:, None, None], sharpened, probabilities)


def groups(frames: int, stride: int, longest: int) -> Iterator[np.ndarray]:
    """Places of the frames that are seen at once: every `stride`-th one, at most `longest` of them."""
    for first in range(min(stride, frames)):
        places = np.arange(first, frames, stride)
        for start in range(0, len(places), longest):
            yield places[start : start + longest]


def _enlarged(probabilities: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Probabilities in the source's size. Shapes: [T, S, S] -> float32 [T, H, W]."""
    return resize(probabilities[..., None], size, mode="bilinear")[..., 0]
