"""Training's forward pass over a clip: every frame after the first is segmented from a few frames before it.

As `XMemTrainer.do_pass` in upstream's `model/trainer.py`: there is no long-term memory and no top-k, and all frames
are encoded at once.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core.errors import InputError
from rvseg_jax.models.xmem.affinity import masked_softmax, similarity
from rvseg_jax.models.xmem.network import ImageFeatures, XMem, aggregate
from rvseg_jax.parallel import constrain, platform


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipChoices:
    """What chance decides about a clip of T frames.

    Attributes:
      references: int32 [B, T - 1, R], the frames that frame t + 1 reads from at [:, t]; of a clip's first frames, that
        have fewer before them, only as many entries count.
      deep: bool [T - 1], whether the sensory memory gets a deep update from frame t.
    """

    references: jax.Array
    deep: jax.Array


class ClipOutput(NamedTuple):
    """Predictions for the frames after the first.

    Attributes:
      logits: float32 [B, T - 1, O + 1, H, W], background first.
      masks: float32 [B, T - 1, O, H, W], probabilities of the objects.
    """

    logits: jax.Array
    masks: jax.Array


def draw_choices(
    key: jax.Array, *, clips: int, frames: int, num_ref_frames: int = 3, deep_update_prob: float = 0.2
) -> ClipChoices:
    """Draws the reference frames and the deep updates of a batch of clips.

    A frame reads from all frames before it if they are at most `num_ref_frames`, else from the first and from
    `num_ref_frames` - 1 others of each clip's own. After the first frame there always is a deep update, later ones
    are drawn once for the whole batch.

    Raises:
      InputError: for fewer than two frames or less than one reference.
    """
    if frames < 2 or num_ref_frames < 1:
        raise InputError(f"{frames} frames and {num_ref_frames} references: give at least two frames and one reference")
    count = min(num_ref_frames, frames - 1)
    ref_key, deep_key = jax.random.split(key)
    references = []
    for time in range(1, frames):
        if time <= count:
            rows = jnp.broadcast_to(jnp.minimum(jnp.arange(count), time - 1), (clips, count))
        else:
            keys = jax.random.split(jax.random.fold_in(ref_key, time), clips)
            others = jax.vmap(lambda one, time=time: jax.random.permutation(one, time - 1)[: count - 1] + 1)(keys)
            rows = jnp.concatenate([jnp.zeros((clips, 1), others.dtype), others], axis=1)
        references.append(rows)
    deep = jax.random.uniform(deep_key, (frames - 1,)) < deep_update_prob
    return ClipChoices(jnp.stack(references, 1).astype(jnp.int32), deep.at[0].set(True))


def segment_clip(
    model: XMem,
    frames: jax.Array,
    first_masks: jax.Array,
    selector: jax.Array,
    choices: ClipChoices,
    *,
    remat: bool = False,
    unroll: bool | None = None,
) -> ClipOutput:
    """Segments the frames of clips after the first, whose masks are given.

    Shapes: frames float32 [B, T, H, W, 3], normalised by ImageNet's mean and deviation, with H and W multiples of 16;
    first_masks float32 [B, O, H, W] in 0..1; selector float32 [B, O], 1 for objects that a clip has and 0 for others.

    Args:
      remat: whether the backward pass computes each frame again in place of keeping its activations.
      unroll: lay the frames out one after the other instead of in a loop, which takes longer to compile. None does so
        on CPU, where XLA's convolutions are 30 to 50 times slower inside a loop.
    """
    batch, length = frames.shape[:2]
    frames = constrain(frames, "batch", None, None, None, None)
    flat = model.encode_key(frames.reshape(-1, *frames.shape[2:]))
    features = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, length, *x.shape[1:]), 1, 0), flat)
    size = features.key.shape[2:4]
    objects, positions = first_masks.shape[1], size[0] * size[1]
    keys, shrinkage = (x.reshape(length, batch, positions, -1) for x in (features.key, features.shrinkage))
    graph, weights = nnx.split(model)

    def frame(carry: tuple[jax.Array, ...], inputs: tuple) -> tuple[tuple[jax.Array, ...], ClipOutput]:
        masks, hidden, values = carry
        time, image, before, now, references, deep = inputs
        network = nnx.merge(graph, weights)
        value, deeper = network.encode_value(image, before.f16, hidden, masks)
        hidden = jnp.where(deep, deeper, hidden)
        values = jax.lax.dynamic_update_index_in_dim(values, value.reshape(batch, objects, positions, -1), time, 0)
        readout = _read(keys, shrinkage, values, now, references, time + 1)
        logits, hidden = network.segment(now, readout.reshape(batch, objects, *size, -1), hidden)
        merged, every = aggregate(jax.nn.sigmoid(logits) * selector[..., None, None], axis=1)
        masks = every[:, 1:]
        return (masks, hidden, values), ClipOutput(merged, masks)

    def span(start: int) -> ImageFeatures:
        return jax.tree.map(lambda x: x[start : start + length - 1], features)

    hidden = jnp.zeros((batch, objects, *size, model.cfg.hidden_dim))
    values = jnp.zeros((length - 1, batch, objects, positions, model.cfg.value_dim), model.cfg.precision.compute_dtype)
    images = jnp.moveaxis(frames[:, :-1], 1, 0)
    inputs = (
        jnp.arange(length - 1),
        images,
        span(0),
        span(1),
        jnp.moveaxis(choices.references, 1, 0),
        choices.deep,
    )
    body: Any = jax.checkpoint(frame) if remat else frame
    start = (first_masks.astype(jnp.float32), hidden, values)
    _, found = jax.lax.scan(body, start, inputs, unroll=platform() == "cpu" if unroll is None else unroll)
    return ClipOutput(*(jnp.moveaxis(x, 0, 1) for x in found))


def _read(
    keys: jax.Array,
    shrinkage: jax.Array,
    values: jax.Array,
    query: ImageFeatures,
    references: jax.Array,
    available: jax.Array,
) -> jax.Array:
    """What the reference frames say at the positions of a frame.

    Shapes: keys [T, B, P, C], shrinkage [T, B, P, 1], values [T - 1, B, O, P, value_dim], references [B, R], of which
    the first `available` count -> float32 [B, O, P, value_dim].
    """
    batch, count = references.shape
    clip = jnp.arange(batch)[:, None]
    key, shrink, value = keys[references, clip], shrinkage[references, clip, :, 0], values[references, clip]
    positions = key.shape[2]
    scores = similarity(
        key.reshape(batch, -1, key.shape[-1]),
        shrink.reshape(batch, -1),
        query.key.reshape(batch, positions, -1),
        query.selection.reshape(batch, positions, -1),
    )
    valid = jnp.repeat(jnp.arange(count) < available, positions)
    weights = masked_softmax(scores, valid).reshape(batch, positions, count, positions)
    return jnp.einsum("bqrp,bropc->boqc", weights, value.astype(jnp.float32), precision="highest")
