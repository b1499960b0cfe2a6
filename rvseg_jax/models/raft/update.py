"""What changes the flow at each update, `UpdateBlock` in torchvision's `models/optical_flow/raft.py`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.precision import Precision
from rvseg_jax.layers.conv import Conv, convolve
from rvseg_jax.models.raft.config import RaftConfig
from rvseg_jax.models.raft.encoder import same_conv


class MotionEncoder(nnx.Module):
    """The correlations that were read and the flow, as one map whose last two channels are the flow itself."""

    def __init__(self, cfg: RaftConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        corr, flow = cfg.motion_encoder_corr_layers, cfg.motion_encoder_flow_layers
        self.convcorr1 = same_conv(cfg.corr_channels, corr[0], (1, 1), **options)
        self.convcorr2 = same_conv(corr[0], corr[1], (3, 3), **options) if len(corr) == 2 else None
        self.convflow1 = same_conv(2, flow[0], (7, 7), **options)
        self.convflow2 = same_conv(flow[0], flow[1], (3, 3), **options)
        self.conv = same_conv(corr[-1] + flow[-1], cfg.motion_encoder_out_channels - 2, (3, 3), **options)

    def __call__(self, flow: jax.Array, correlations: jax.Array) -> jax.Array:
        """Shapes: flow [B, h, w, 2], correlations [B, h, w, L * side**2] -> [B, h, w, C]."""
        corr = jax.nn.relu(self.convcorr1(correlations))
        if self.convcorr2 is not None:
            corr = jax.nn.relu(self.convcorr2(corr))
        moved = jax.nn.relu(self.convflow2(jax.nn.relu(self.convflow1(flow))))
        both = jax.nn.relu(self.conv(jnp.concatenate([corr, moved], axis=-1)))
        return jnp.concatenate([both, flow.astype(both.dtype)], axis=-1)


class Prepared(NamedTuple):
    """What a recurrent unit computes once for all updates, as its convolutions are linear.

    Attributes:
      gates, candidate: parts of the sums inside the nonlinearities that come from the context.
      gates_kernel, candidate_kernel: weights of the rest.
    """

    gates: jax.Array
    candidate: jax.Array
    gates_kernel: jax.Array
    candidate_kernel: jax.Array


class ConvGRU(nnx.Module):
    """A gated recurrent unit of convolutions over hidden state, context and motion, in this order."""

    def __init__(self, hidden: int, inputs: int, kernel_size: tuple[int, int], *, precision: Precision, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": precision, "rngs": rngs}
        self.convz = same_conv(hidden + inputs, hidden, kernel_size, **options)
        self.convr = same_conv(hidden + inputs, hidden, kernel_size, **options)
        self.convq = same_conv(hidden + inputs, hidden, kernel_size, **options)
        self.hidden = hidden

    def prepare(self, context: jax.Array) -> Prepared:
        """Shapes: context [B, h, w, C]."""
        gates, gates_kernel = self._of_context(context, (self.convz, self.convr))
        candidate, candidate_kernel = self._of_context(context, (self.convq,))
        return Prepared(gates, candidate, gates_kernel, candidate_kernel)

    def _of_context(self, context: jax.Array, convs: Sequence[Conv]) -> tuple[jax.Array, jax.Array]:
        compute = self.convz.precision.compute
        kernel = compute(jnp.concatenate([conv.kernel[...] for conv in convs], axis=-1))
        bias = compute(jnp.concatenate([conv.bias[...] for conv in convs if conv.bias is not None]))
        own, seen, motion = jnp.split(kernel, [self.hidden, self.hidden + context.shape[-1]], axis=-2)
        return self._convolved(context, seen) + bias, jnp.concatenate([own, motion], axis=-2)

    def __call__(self, hidden: jax.Array, motion: jax.Array, prepared: Prepared) -> jax.Array:
        """Shapes: hidden [B, h, w, N], motion [B, h, w, M] -> [B, h, w, N]."""
        both = jnp.concatenate([hidden, motion], axis=-1)
        gates = jax.nn.sigmoid(self._convolved(both, prepared.gates_kernel) + prepared.gates)
        update, reset = jnp.split(gates, 2, axis=-1)
        both = jnp.concatenate([reset * hidden, motion], axis=-1)
        candidate = jnp.tanh(self._convolved(both, prepared.candidate_kernel) + prepared.candidate)
        return (1 - update) * hidden + update * candidate

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        conv = self.convz
        return convolve(conv.precision.compute(x), kernel, conv.strides, conv.padding, conv.precision.matmul)


class RecurrentBlock(nnx.Module):
    """One or two recurrent units, one after the other; `raft_large` has one along rows and one along columns."""

    def __init__(self, cfg: RaftConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        hidden = cfg.recurrent_block_hidden_state_size
        inputs = cfg.context_channels + cfg.motion_encoder_out_channels
        kernels = cfg.recurrent_block_kernel_size
        self.convgru1 = ConvGRU(hidden, inputs, kernels[0], **options)
        self.convgru2 = ConvGRU(hidden, inputs, kernels[1], **options) if len(kernels) == 2 else None

    def _units(self) -> list[ConvGRU]:
        return [unit for unit in (self.convgru1, self.convgru2) if unit is not None]

    def prepare(self, context: jax.Array) -> tuple[Prepared, ...]:
        """What does not change from update to update. Shapes: context [B, h, w, C]."""
        return tuple(unit.prepare(context) for unit in self._units())

    def __call__(self, hidden: jax.Array, motion: jax.Array, prepared: tuple[Prepared, ...]) -> jax.Array:
        """Shapes: hidden [B, h, w, N], motion [B, h, w, M] -> [B, h, w, N]."""
        for unit, once in zip(self._units(), prepared, strict=True):
            hidden = unit(hidden, motion, once)
        return hidden


class FlowHead(nnx.Module):
    """The change of the flow from the hidden state."""

    def __init__(self, cfg: RaftConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        self.conv1 = same_conv(cfg.recurrent_block_hidden_state_size, cfg.flow_head_hidden_size, (3, 3), **options)
        self.conv2 = same_conv(cfg.flow_head_hidden_size, 2, (3, 3), **options)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Shapes: hidden [B, h, w, N] -> float32 [B, h, w, 2]."""
        return self.conv2(jax.nn.relu(self.conv1(hidden))).astype(jnp.float32)


class UpdateBlock(nnx.Module):
    """One update: what was read at the present flow changes the hidden state, and that the flow."""

    def __init__(self, cfg: RaftConfig, *, rngs: nnx.Rngs):
        self.motion_encoder = MotionEncoder(cfg, rngs=rngs)
        self.recurrent_block = RecurrentBlock(cfg, rngs=rngs)
        self.flow_head = FlowHead(cfg, rngs=rngs)

    def __call__(
        self, hidden: jax.Array, prepared: tuple[Prepared, ...], correlations: jax.Array, flow: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Shapes: hidden [B, h, w, N], correlations [B, h, w, L * side**2], flow float32 [B, h, w, 2] ->
        hidden, change of the flow float32 [B, h, w, 2]."""
        hidden = self.recurrent_block(hidden, self.motion_encoder(flow, correlations), prepared)
        return hidden, self.flow_head(hidden)


class MaskPredictor(nnx.Module):
    """Logits by which each pixel of the image weighs the nine flows around it; see `upsampled`."""

    def __init__(self, cfg: RaftConfig, *, stride: int, rngs: nnx.Rngs):
        options: dict[str, Any] = {"precision": cfg.precision, "rngs": rngs}
        hidden = cfg.mask_predictor_hidden_size
        self.convrelu = same_conv(cfg.recurrent_block_hidden_state_size, hidden, (3, 3), **options)
        self.conv = same_conv(hidden, 9 * stride**2, (1, 1), **options)
        self.multiplier = cfg.mask_predictor_multiplier

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Shapes: hidden [B, h, w, N] -> float32 [B, h, w, 9 * stride**2]."""
        return self.multiplier * self.conv(jax.nn.relu(self.convrelu(hidden))).astype(jnp.float32)


def upsampled(flow: jax.Array, logits: jax.Array, stride: int) -> jax.Array:
    """The flow at the size of the image: each pixel is a weighted mean of the nine flows around its own.

    Flows outside are zero.

    Shapes: flow float32 [B, h, w, 2] in pixels of the map, logits [B, h, w, 9 * stride**2] by neighbour, row and column
    -> float32 [B, h * stride, w * stride, 2] in pixels of the image.

    Source: Teed and Deng 2020, appendix B; `upsample_flow` in torchvision's `models/optical_flow/_utils.py`.
    """
    batch, height, width, _ = flow.shape
    weights = jax.nn.softmax(logits.astype(jnp.float32).reshape(batch, height, width, 9, stride, stride), axis=3)
    padded = jnp.pad(stride * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    fine: jax.Array | float = 0.0
    for index in range(9):
        row, column = divmod(index, 3)
        around = padded[:, row : row + height, column : column + width, None, None]
        fine = fine + weights[:, :, :, index, :, :, None] * around
    return jnp.moveaxis(jnp.asarray(fine), 3, 2).reshape(batch, height * stride, width * stride, 2)
