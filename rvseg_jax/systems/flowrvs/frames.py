"""Frames on their way into FlowRVS: size, resampling, range and number."""

import numpy as np
from PIL import Image


def fitted_size(height: int, width: int, *, box: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Largest size of the source's shape inside `box`, each side floored to a multiple.

    Args:
      height, width: of the source, in pixels.
      box: (height, width) that the result must fit.
      multiple: of both sides of the result; 16 for inference.

    Raises:
      ValueError: if a side would vanish.
    """
    ratio = min(box[0] / height, box[1] / width)
    # The truncation of float products is part of the contract: width 720 gives int(720 * (832 / 720)) = 831.
    fitted = int(height * ratio) // multiple * multiple, int(width * ratio) // multiple * multiple
    if 0 in fitted:
        raise ValueError(
            f"frames of {width}x{height} are too elongated: inside {box[1]}x{box[0]} a side has less than "
            f"{multiple} pixels; crop them first"
        )
    return fitted


def resampled(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling with Pillow, whose antialiasing is what the weights have seen.

    Shapes: frame uint8 [H, W, 3] -> uint8 [*size, 3].
    """
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR))


def padded_length(frames: int, patch: int = 1) -> int:
    """Smallest 4n + 1 that is not below `frames` and whose n + 1 latent frames divide into patches.

    Args:
      patch: latent frames of one token of the DiT, `patch_size[0]`; 1 in the published model.
    """
    latents = (frames + 2) // 4 + 1
    return (-(-latents // patch) * patch - 1) * 4 + 1


def padded(frames: np.ndarray, patch: int = 1) -> np.ndarray:
    """`frames` with the last one repeated up to a length that the autoencoder and the DiT can take.

    Shapes: [T, ...] -> [padded_length(T, patch), ...].
    """
    extra = padded_length(len(frames), patch) - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], extra, axis=0)]) if extra else frames
