"""FlowRVS as the library offers it: a clip and sentences in, masks out window by window."""

from collections.abc import Generator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.umt5.encoder import UMT5Encoder
from rvseg_jax.models.wan.transformer import WanTransformer
from rvseg_jax.models.wan.vae import WanVAE
from rvseg_jax.processing.text import Tokenizer, clean_text
from rvseg_jax.processing.video import Video
from rvseg_jax.systems import windows
from rvseg_jax.systems.base import MaskChunk, Progress, SegmentOptions, Verdict
from rvseg_jax.systems.flowrvs import frames, memory
from rvseg_jax.systems.flowrvs.config import FlowRVSConfig
from rvseg_jax.systems.flowrvs.inference import Inference, TextFeatures, kept_rows, text_features
from rvseg_jax.systems.flowrvs.rows import mask_frames

MASK_FRAMES = 8  # frames that are enlarged to the source's size at a time


class Parts(Protocol):
    """Where the weights come from."""

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
        """Output of the text encoder, which need not stay in memory. Shapes: [N, S] -> [N, S, D]."""

    def networks(self) -> tuple[WanTransformer, WanVAE]:
        """The transformer and the autoencoder."""


class LoadedParts:
    """Parts that are in memory."""

    def __init__(self, dit: WanTransformer, vae: WanVAE, text: UMT5Encoder):
        self._networks = dit, vae
        self._text = text

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
        """See `Parts`."""
        return self._text(jnp.asarray(ids), jnp.asarray(mask), mode="host_loop")

    def networks(self) -> tuple[WanTransformer, WanVAE]:
        """See `Parts`."""
        return self._networks


class FlowRVS:
    """Flow matching from video latents to mask latents (arXiv 2510.06139), one sentence or several at once.

    The latent of a window is computed once for all sentences and each sentence is encoded once for all windows.
    """

    name = "flowrvs"
    reads_text = True

    def __init__(self, config: FlowRVSConfig, parts: Parts, tokenizer: Tokenizer):
        self.config = config
        self._parts = parts
        self._tokenizer = tokenizer
        self._inference: Inference | None = None
        self._encoded: dict[tuple[str, ...], TextFeatures] = {}

    @property
    def max_tokens(self) -> int:
        """Longest sentence in tokens, with the end token, that is read whole."""
        return self.config.text_length

    def token_count(self, text: str) -> int:
        """Number of tokens of a sentence, with the end token."""
        # Room for any sentence: a token stands for at least one character of the text.
        return int(self._tokenizer.encode([clean_text(text)], len(text) + 2).lengths[0])

    def segment(
        self,
        video: Video,
        texts: Sequence[str],
        *,
        options: SegmentOptions = SegmentOptions(),
        progress: Progress | None = None,
    ) -> Generator[MaskChunk, None, list[Verdict]]:
        """Yields the masks of all sentences in frame order, each frame once.

        A clip runs whole where that fits `options.max_memory` and the reach of the DiT's rotary tables, as upstream
        always does; otherwise in overlapping windows whose logits fade into each other (see `windows`).

        Returns:
          For each sentence "ok" and the mean probability inside its mask, or "no_target" and 0 if no pixel of
          any frame is above the threshold.

        Raises:
          InputError: if the frames are too elongated, or not even five of them fit the memory.
        """
        report = progress or (lambda stage, done, total: None)
        size = video.height, video.width
        try:
            fitted = frames.fitted_size(*size, box=self.config.box, multiple=self.config.size_multiple)
        except ValueError as error:
            raise InputError(f"{video.name}: {error}") from None
        report("text", 0, 1)
        text = self._encode_text(texts)
        report("text", 1, 1)
        length, batch = self._window(fitted, len(texts), options)
        inference = self._networks()

        def logits(window: np.ndarray) -> np.ndarray:
            latents = inference.video_latents(frames.padded(window, self.config.dit.patch_size[0]))
            pieces = [
                inference.logits(inference.mask_latents(latents, text[start : start + batch]))
                for start in range(0, len(texts), batch)
            ]
            return np.concatenate([np.asarray(piece) for piece in pieces])[:, : len(window)]

        stream = (frames.resampled(frame, fitted) for frame in video)
        overlap = windows.sharing_frames(length) if length else 0
        tally = _Tally(len(texts))
        threshold = self.config.threshold if options.threshold is None else options.threshold
        done = 0
        for start, values in windows.run_windows(stream, logits, length=length, overlap=overlap):
            for first in range(0, values.shape[1], MASK_FRAMES):
                probabilities = inference.probabilities(jnp.asarray(values[:, first : first + MASK_FRAMES]), size)
                masks = probabilities > threshold
                tally.add(probabilities, masks)
                scores = np.asarray(probabilities, np.float32) if options.scores else None
                yield MaskChunk(start + first, np.asarray(masks), scores)
            done = start + values.shape[1]
            report("masks", done, video.count or video.expected_count)
        return tally.verdicts()

    def reconstruct(self, masks: np.ndarray) -> np.ndarray:
        """Masks encoded and decoded by the autoencoder alone: what a perfect transformer would reach.

        Shapes: bool [T, H, W] -> bool [T, H, W].
        """
        size = masks.shape[1], masks.shape[2]
        fitted = frames.fitted_size(*size, box=self.config.box, multiple=self.config.size_multiple)
        clip = np.stack([frames.resampled(frame, fitted) for frame in mask_frames(masks)])
        inference = self._networks()
        logits = inference.logits(inference.true_mask_latents(frames.padded(clip)))[:, : len(masks)]
        return np.asarray(inference.probabilities(logits, size)[0] > self.config.threshold)

    def _networks(self) -> Inference:
        if self._inference is None:
            self._inference = Inference.of(self.config, *self._parts.networks())
        return self._inference

    def _encode_text(self, texts: Sequence[str]) -> TextFeatures:
        key = tuple(clean_text(text) for text in texts)
        if key not in self._encoded:
            tokens = self._tokenizer.encode(list(key), self.config.text_length)
            kept = kept_rows(tokens)
            encoded = self._parts.encode(tokens.ids[:, :kept], tokens.mask[:, :kept])
            self._encoded = {key: text_features(encoded, tokens.mask[:, :kept], self.config.text_length)}
        return self._encoded[key]

    def _window(self, size: tuple[int, int], sentences: int, options: SegmentOptions) -> tuple[int | None, int]:
        """Frames of a window (None: the whole clip) and sentences of a batch."""
        if options.whole_clip:
            return None, sentences
        if options.max_memory is None:
            return memory.longest_window(self.config), sentences
        return memory.fitting_window(self.config, size, sentences, options.max_memory)


class _Tally:
    """Foreground of each sentence over all frames."""

    def __init__(self, sentences: int):
        self.pixels = np.zeros(sentences, np.int64)
        self.sums = np.zeros(sentences)

    def add(self, probabilities: jax.Array, masks: jax.Array) -> None:
        """Shapes: both [N, t, H, W]."""
        self.pixels += np.asarray(masks.sum(axis=(1, 2, 3)), np.int64)
        self.sums += np.asarray(jnp.sum(probabilities.astype(jnp.float32), axis=(1, 2, 3), where=masks), float)

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict("ok", float(total / count)) if count else Verdict("no_target", 0.0)
            for total, count in zip(self.sums, self.pixels, strict=True)
        ]
