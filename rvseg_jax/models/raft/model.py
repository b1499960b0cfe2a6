"""RAFT: the flow between two images (Teed and Deng 2020, arXiv 2003.12039).

Source: torchvision's `models/optical_flow/raft.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.raft.config import STRIDE, RaftConfig
from rvseg_jax.models.raft.encoder import FeatureEncoder
from rvseg_jax.models.raft.update import MaskPredictor, Prepared, UpdateBlock, upsampled
from rvseg_jax.ops.correlation import Correlation, correlate, read_windows
from rvseg_jax.parallel import constrain, platform


class Start(NamedTuple):
    """What the updates of a pair of images begin with.

    Attributes:
      correlation: of both images, to be read from.
      hidden: the hidden state, [B, h, w, N].
      prepared: what the recurrent units make of the context.
    """

    correlation: Correlation
    hidden: jax.Array
    prepared: tuple[Prepared, ...]


class RAFT(nnx.Module):
    """Optical flow of pairs of images."""

    def __init__(self, cfg: RaftConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.feature_encoder = FeatureEncoder(cfg.feature_encoder_layers, norm="instance", **options)
        self.context_encoder = FeatureEncoder(cfg.context_encoder_layers, norm="batch", **options)
        self.update_block = UpdateBlock(cfg, rngs=rngs)
        self.mask_predictor = MaskPredictor(cfg, stride=STRIDE, rngs=rngs)
        self.cfg = cfg

    def __call__(
        self,
        image1: jax.Array,
        image2: jax.Array,
        *,
        num_flow_updates: int | None = None,
        unroll: bool | None = None,
    ) -> jax.Array:
        """Where each pixel of the first image is in the second, less where it is in the first.

        Only the last update is brought to the size of the images.

        Shapes: image1, image2 [B, H, W, 3] in -1..1, H and W multiples of 8 -> float32 [B, H, W, 2], (x, y) in pixels.

        Args:
          num_flow_updates: how often the flow is updated; that of the config if absent.
          unroll: lay the updates out one after the other instead of in a loop, which takes longer to compile. None
            does so on CPU, where XLA's convolutions are 30 to 50 times slower inside a loop.

        Raises:
          InputError: for images of different shapes, with sides that are no multiples of 8, or too small.
        """
        start = self.begin(*self.encode_pairs(image1, image2))
        return self.last_flow(start, num_flow_updates=num_flow_updates, unroll=unroll)

    def predictions(
        self,
        image1: jax.Array,
        image2: jax.Array,
        *,
        num_flow_updates: int | None = None,
        remat: bool = False,
        unroll: bool | None = None,
    ) -> jax.Array:
        """The flow after every update, as training needs it. Arguments and errors as `__call__`.

        Shapes: -> float32 [U, B, H, W, 2].

        Args:
          remat: whether the backward pass computes each update again in place of keeping its activations.
        """
        start = self.begin(*self.encode_pairs(image1, image2))
        _, _, every = self._updated(start, num_flow_updates, unroll, remat=remat, every=True)
        return every

    def encode_features(self, images: jax.Array) -> jax.Array:
        """Features that are correlated. Shapes: images [B, H, W, 3] in -1..1 -> [B, h, w, C]."""
        self._check(images)
        return self.feature_encoder(_batched(images))

    def encode_context(self, images: jax.Array) -> jax.Array:
        """Hidden state and context of first images, before their nonlinearities. Shapes: as `encode_features`."""
        self._check(images)
        return self.context_encoder(_batched(images))

    def encode_pairs(self, image1: jax.Array, image2: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Features of both images and the context of the first. Shapes and errors as `__call__`."""
        if image1.shape != image2.shape:
            raise InputError(f"images of shapes {image1.shape} and {image2.shape}: give two of the same shape")
        # Pairs stay together on an axis inside of the batch, so that a batch cut over devices needs no exchange.
        both = jnp.stack([_batched(image1), _batched(image2)], axis=1)
        features = self.encode_features(both.reshape(-1, *image1.shape[1:]))
        features = features.reshape(-1, 2, *features.shape[1:])
        return features[:, 0], features[:, 1], self.encode_context(image1)

    def begin(self, features1: jax.Array, features2: jax.Array, context: jax.Array) -> Start:
        """What the updates need of encoded images. Shapes: all [B, h, w, C]."""
        cfg = self.cfg
        features1, features2, context = (_batched(x) for x in (features1, features2, context))
        correlation = correlate(
            features1,
            features2,
            levels=cfg.corr_block_num_levels,
            lookup=cfg.corr_lookup,
            max_bytes=cfg.corr_max_bytes,
            precision=cfg.precision.matmul,
        )
        hidden, context = jnp.split(context, [cfg.recurrent_block_hidden_state_size], axis=-1)
        prepared = self.update_block.recurrent_block.prepare(jax.nn.relu(context))
        return Start(correlation, jnp.tanh(hidden), prepared)

    def last_flow(self, start: Start, *, num_flow_updates: int | None = None, unroll: bool | None = None) -> jax.Array:
        """The flow after all updates. Shapes: -> float32 [B, H, W, 2]."""
        hidden, flow, _ = self._updated(start, num_flow_updates, unroll)
        return upsampled(flow, self.mask_predictor(hidden), STRIDE)

    def _updated(
        self,
        start: Start,
        num_flow_updates: int | None,
        unroll: bool | None,
        *,
        remat: bool = False,
        every: bool = False,
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Hidden state and flow [B, h, w, 2] after all updates, and if `every` the flows [U, B, H, W, 2]."""
        updates = self.cfg.num_flow_updates if num_flow_updates is None else num_flow_updates
        if updates < 1:
            raise InputError(f"num_flow_updates is {updates}: it must be at least 1")
        batch, height, width, _ = start.hidden.shape
        grid = pixel_grid(height, width)
        graph, weights = nnx.split((self.update_block, self.mask_predictor))

        def update(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
            block, mask_predictor = nnx.merge(graph, weights)
            hidden, flow = carry
            flow = jax.lax.stop_gradient(flow)  # gradients reach earlier updates through the hidden state only
            seen = read_windows(start.correlation, grid + flow, radius=self.cfg.corr_block_radius)
            hidden, change = block(hidden, start.prepared, seen, flow)
            flow = flow + change
            return (hidden, flow), upsampled(flow, mask_predictor(hidden), STRIDE) if every else None

        body: Any = jax.checkpoint(update) if remat else update
        first = (start.hidden, _batched(jnp.zeros((batch, height, width, 2))))
        unroll = platform() == "cpu" if unroll is None else unroll
        (hidden, flow), found = jax.lax.scan(body, first, None, length=updates, unroll=unroll)
        return hidden, flow, found

    def _check(self, images: jax.Array) -> None:
        least = self.cfg.min_size
        height, width = images.shape[1:3]
        if height % STRIDE or width % STRIDE or min(height, width) < least:
            raise InputError(
                f"images of {height}x{width} pixels: both sides must be multiples of {STRIDE} and at least {least}"
            )


def pixel_grid(height: int, width: int) -> jax.Array:
    """The position (x, y) of every pixel. Shapes: -> float32 [height, width, 2]."""
    columns, rows = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    return jnp.stack([columns, rows], axis=-1).astype(jnp.float32)


def _batched(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


# Logical axes of the variables; the first pattern that is found in a path counts.
SHARDING: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"/kernel$", (None, None, "conv_in", "conv_out")),
    (r"/(scale|bias|mean|var)$", (None,)),
)
