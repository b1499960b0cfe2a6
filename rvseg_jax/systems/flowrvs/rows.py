"""Training rows of FlowRVS, made in data workers: numpy only, so that no worker starts a JAX backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rvseg_jax.input_pipeline.datasets.moving_shapes import MovingShapes, MovingShapesConfig
from rvseg_jax.processing.text import Tokenizer, clean_text

PIXELS = 8  # of a latent along each side
Row = dict[str, np.ndarray]


def clips_of(config: MovingShapesConfig, split: str) -> MovingShapes:
    """The clips of a split of training, "train" or "validation"."""
    streams: dict[str, Literal["train", "valid"]] = {"train": "train", "validation": "valid"}
    return MovingShapes(replace(config, split=streams[split]))


def mask_frames(masks: np.ndarray) -> np.ndarray:
    """A mask as a grey clip, which is how the autoencoder sees it.

    Shapes: masks bool [T, H, W] -> uint8 0 or 255, [T, H, W, 3].
    """
    return np.repeat(masks[..., None].astype(np.uint8) * 255, 3, axis=-1)


def latent_validity(sample: Any) -> np.ndarray | None:
    """Which latents of a padded clip are no padding, None of a clip without. Shapes: -> bool [H / 8, W / 8]."""
    valid = getattr(sample, "valid", None)
    return None if valid is None else valid[::PIXELS, ::PIXELS]


@dataclass(frozen=True)
class CropRow:
    """A random crop of a clip, or of its mask as a grey clip: a row of the autoencoder stages.

    Attributes:
      size: side of the crop in pixels; 0 takes the whole frame.
      frames: frames of the crop; 0 takes all.
      mask_share: probability of a mask clip.
    """

    size: int = 48
    frames: int = 5
    mask_share: float = 0.5

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """Shapes: -> {"video": uint8 [t, h, w, 3]}."""
        if rng.random() < self.mask_share:
            # One object, or what the sentence names: masks of every extent.
            objects = getattr(sample, "object_masks", ())
            pick = rng.integers(len(objects) + 1)
            video = mask_frames(sample.masks if pick == len(objects) else objects[pick])
        else:
            video = sample.frames
        total, height, width = video.shape[:3]
        frames, size = self.frames or total, self.size or min(height, width)
        t, y, x = (int(rng.integers(n - m + 1)) for n, m in ((total, frames), (height, size), (width, size)))
        return {"video": np.ascontiguousarray(video[t : t + frames, y : y + size, x : x + size])}


@dataclass
class CachedText:
    """Encoded sentences by their text; the file is opened in each process for itself.

    Attributes:
      path: the ArrayRecord file.
      rows: row of each sentence.
      text_length: tokens to which a sentence is padded.
      width: of an encoded token.
    """

    path: str
    rows: Mapping[str, int] = field(repr=False)
    text_length: int
    width: int
    _records: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None}

    def __call__(self, text: str) -> np.ndarray:
        """The bits of a sentence's bfloat16 states, zero behind its end. Shapes: -> uint16 [L, D].

        Raises:
          KeyError: for a sentence that the cache was not made for.
        """
        from rvseg_jax.input_pipeline.records import Records

        if self._records is None:
            self._records = Records(self.path)
        states = self._records[self.rows[clean_text(text)]]["states"]
        padded = np.zeros((self.text_length, self.width), np.uint16)
        padded[: len(states)] = states
        return padded


@dataclass
class SentenceRow:
    """A clip, a sentence and the mask of what that one names: a row of the DiT stage.

    From `moving_shapes` it is {"frames", "masks", ...}, from a latent cache {"video_mean", "video_std",
    "mask_latents", ...}; with either come "ids" int32 [L] and "text_mask" bool [L].

    Attributes:
      tokenizer: path of the tokenizer.json, opened in the worker.
      text_length: L, tokens to which a sentence is padded.
      encoded: encoded sentences; rows then hold "text_states" uint16 [L, D] instead of "ids" and "text_mask".
      any_sentence: draws one of all the clip's sentences (`referrals`); otherwise it is the clip's own `text`.
      longest: most words of a sentence that is drawn, where the clip has such a one; 0 draws any.
    """

    tokenizer: Path
    text_length: int
    any_sentence: bool = True
    longest: int = 0
    encoded: CachedText | None = None
    _loaded: Tokenizer | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, sample: Any, rng: np.random.Generator) -> Row:
        """Shapes: frames uint8 [T, H, W, 3], masks bool [T, H, W]; or latents float16 [t, h, w, Z]."""
        if isinstance(sample, Mapping):
            pick = self._pick(sample["texts"], sample["weights"], rng) if self.any_sentence else 0
            row = {
                "video_mean": sample["video_mean"],
                "video_std": sample["video_std"],
                "mask_latents": sample["mask_latents"][sample["mask_of"][pick]],
            }
            if "valid" in sample:
                row["valid"] = sample["valid"]
            text = str(sample["texts"][pick])
        elif self.any_sentence:
            referrals = sample.referrals()
            texts, weights = zip(*((referral.text, referral.weight) for referral in referrals), strict=True)
            referral = referrals[self._pick(texts, weights, rng)]
            row, text = {"frames": sample.frames, "masks": sample.masks_of(referral.ids)}, referral.text
        else:
            row, text = {"frames": sample.frames, "masks": sample.masks}, sample.text
            if (valid := latent_validity(sample)) is not None:
                row["valid"] = valid
        if self.encoded is not None:
            return row | {"text_states": self.encoded(text)}
        if self._loaded is None:
            self._loaded = Tokenizer.from_file(self.tokenizer)
        tokens = self._loaded.encode([clean_text(text)], self.text_length)
        return row | {"ids": tokens.ids[0], "text_mask": tokens.mask[0]}

    def _pick(self, texts: Sequence[str], weights: Sequence[float], rng: np.random.Generator) -> int:
        """A sentence drawn in proportion to its weight."""
        short = np.array([not self.longest or len(str(text).split()) <= self.longest for text in texts])
        allowed = np.asarray(weights, np.float64) * (short if short.any() else 1)
        return int(np.searchsorted(np.cumsum(allowed), rng.random() * allowed.sum(), side="right"))
