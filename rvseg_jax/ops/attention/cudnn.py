"""Attention by cuDNN's flash kernels through `jax.nn.dot_product_attention`."""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.core import logging
from rvseg_jax.ops.attention.forms import Form, arrays_of, form_of
from rvseg_jax.ops.attention.masks import Full, Mask
from rvseg_jax.ops.attention.reference import reference
from rvseg_jax.ops.attention.shards import KV, Q, layout, on_shards

MASKS = ("Causal", "Window", "Lengths")
# Beyond 128 it needs a Hopper GPU and a recent cuDNN.
MAX_WIDTH = 128

_logger = logging.get_logger(__name__)


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    precision: str | None,
    *,
    implementation: Any = "cudnn",
) -> jax.Array:
    """Attention by cuDNN, with its own backward kernels.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, H] -> [B, Tq, N, H]; bias must be None.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" runs anywhere, for tests.
    """
    del bias, precision
    form, lengths = form_of(mask), arrays_of(mask).lengths
    axes = layout(q, k, queries=form.right is None, keys=False)
    local = functools.partial(_local, form=form, scale=scale, implementation=implementation)
    arrays, names = (q, k, v), (Q, KV, KV)
    if lengths is None:
        return on_shards(local, arrays, names, Q, axes)
    return on_shards(local, (*arrays, lengths), (*names, ("batch",)), Q, axes)


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None = None,
    *,
    form: Form,
    scale: float,
    implementation: Any,
) -> jax.Array:
    """One device's part of a call."""
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=form.right == 0,
        local_window_size=None if form.left is None else (form.left, 0),
        # Without a key the kernel would divide by zero; such samples are set to zero below.
        key_value_seq_lengths=None if lengths is None else jnp.maximum(lengths, 1),
        implementation=implementation,
    )
    if lengths is None:
        return out
    first = 0 if form.left is None else np.maximum(np.arange(q.shape[1]) - form.left, 0)
    sees = jnp.broadcast_to(first < lengths[:, None], out.shape[:2])
    return jnp.where(sees[:, :, None, None], out, 0)


def cannot(problem: Any) -> str | None:
    """Why cuDNN cannot compute a `Problem`; None where it can."""
    if problem.platform != "gpu":
        return f"it runs on NVIDIA GPUs, not on {problem.platform}"
    if problem.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it knows bfloat16 and float16, not {jnp.dtype(problem.dtype).name}"
    width, v_width = problem.q[-1], problem.v[-1]
    if width != v_width:
        return f"heads of q and v differ in width, {width} and {v_width}"
    if width % 8 or width > MAX_WIDTH:
        return f"heads of width {width}: it needs a multiple of 8 up to {MAX_WIDTH}"
    if problem.bias:
        return "an additive bias, whose gradient it knows for some shapes only"
    form: Form = problem.form
    if reason := form.others(*MASKS):
        return reason
    if form.right not in (None, 0) or (form.left is not None and form.right is None):
        return f"a window of keys i-{form.left}..i+{form.right}: it knows windows that end at the query itself"
    if form.left is not None and "Lengths" in form.names:
        return "a window joined with lengths"
    if form.right == 0 and problem.q[1] != problem.k[1]:
        return f"a causal mask over {problem.q[1]} queries and {problem.k[1]} keys, which it aligns in its own way"
    return probe()


@functools.cache
def probe() -> str | None:
    """Why cuDNN attention does not work on this machine; None where it does. Tried once a process, and logged."""
    if jax.default_backend() != "gpu":
        return "the default device is no GPU"
    found: list[str | None] = []
    # A thread of its own has no trace and no mesh, whatever the caller is in the middle of.
    thread = threading.Thread(target=lambda: found.append(_tried()))
    thread.start()
    thread.join()
    if found[0] is None:
        _logger.info("cuDNN attention works here")
    else:
        _logger.warning("cuDNN attention does not work here, so attention is chunked: %s", found[0])
    return found[0]


def _tried(implementation: Any = "cudnn") -> str | None:
    """Runs forward and backward on a small problem; what went wrong, or None."""
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.standard_normal((1, 128, 2, 64)), jnp.bfloat16) for _ in range(4)]

    def outcome(run, *given):
        out, pull = jax.vjp(lambda q, k, v: run(q, k, v, Full(), None, 0.125, None), *given[:3])
        return [out, *pull(given[3])]

    try:
        run = functools.partial(cudnn, implementation=implementation)
        ours, theirs = (jax.jit(functools.partial(outcome, form))(*given) for form in (run, reference))
        error = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(ours, theirs, strict=True))
    except Exception as problem:  # whatever a driver or a library raises, attention must go on without it
        return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:300]
    return None if error < 0.1 else f"its results are wrong by {error:.3g} on a small problem"
