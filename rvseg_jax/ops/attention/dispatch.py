"""The one attention call of the library, and the back ends it chooses from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rvseg_jax.core import logging
from rvseg_jax.ops.attention import cudnn as cudnn_attention
from rvseg_jax.ops.attention.chunked import chunked
from rvseg_jax.ops.attention.forms import Form, form_of
from rvseg_jax.ops.attention.masks import Full, Mask, check_broadcast
from rvseg_jax.ops.attention.reference import reference
from rvseg_jax.ops.attention.ring import ring
from rvseg_jax.ops.attention.shards import seq_axis
from rvseg_jax.parallel.mesh import platform

_FULL = Full()
# On CPU the plain form wins while its scores are small enough to be cheap.
_REFERENCE_KEYS = 1024
_REFERENCE_BYTES = 256 * 2**20
# Below one tile of the TPU kernel most of its work would be padding.
_SPLASH_TOKENS = 128

_logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Problem:
    """The shapes and formats of one attention call, without its values.

    Attributes:
      q, k, v: shapes [B, Tq, N, H], [B, Tk, K, H], [B, Tk, K, Hv].
      dtype: format of q.
      form: what the mask is made of.
      bias: whether there is an additive bias.
      platform: "cpu", "gpu" or "tpu".
      precision: asked of the matrix products, None for the platform's own.
      seq: parts into which the mesh in use cuts the tokens.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: Any
    form: Form
    bias: bool
    platform: str
    precision: str | None = None
    seq: int = 1

    @property
    def self_attention(self) -> bool:
        """Whether queries and keys are equally many, and so probably of the same tokens."""
        return self.q[1] == self.k[1]


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Attributes:
      name: as in `attention(backend=name)`.
      run: (q, k, v, mask, bias, scale, precision) -> output.
      supports: None where it can compute the problem, else why not.
      prefers: for `backend="auto"`: why it is the best choice for the problem, or None where it is not.
    """

    name: str
    run: Callable[..., jax.Array]
    supports: Callable[[Problem], str | None]
    prefers: Callable[[Problem], str | None]


def _prefers_reference(problem: Problem) -> str | None:
    (batch, q_len, heads, _), kv_len = problem.q, problem.k[1]
    size = 4 * batch * heads * q_len * kv_len
    if problem.platform == "cpu" and kv_len < _REFERENCE_KEYS and size <= _REFERENCE_BYTES:
        return f"{kv_len} keys on CPU, fewer than {_REFERENCE_KEYS}, and {size / 2**20:.1f} MiB of scores"
    return None


def _ring_cannot(problem: Problem) -> str | None:
    if problem.seq == 1:
        return "the mesh in use has no seq axis of two or more parts"
    for name, length in (("queries", problem.q[1]), ("keys", problem.k[1])):
        if length % problem.seq:
            return f"{length} {name} do not divide by seq={problem.seq}"
    if problem.bias:
        return "an additive bias"
    return problem.form.others("Causal", "Causal with an array", "Lengths")


def _prefers_ring(problem: Problem) -> str | None:
    # The keys of another sequence (a text) are short and whole on every device.
    return f"tokens cut into {problem.seq} by the mesh" if problem.self_attention else None


def _splash(*arguments: Any) -> jax.Array:
    # Pallas takes half a second to import, and only TPUs need it.
    from rvseg_jax.ops.attention.splash import splash

    return splash(*arguments)


def _splash_cannot(problem: Problem) -> str | None:
    if problem.platform != "tpu":
        return f"it runs on TPU, not on {problem.platform}"
    from rvseg_jax.ops.attention import splash

    return splash.cannot(problem)


def _prefers_splash(problem: Problem) -> str | None:
    long = min(problem.q[1], problem.k[1]) >= _SPLASH_TOKENS
    return "TPU kernel without scores in memory" if long else None


# In the order in which "auto" asks them; the last one takes everything.
BACKENDS: dict[str, Backend] = {
    "ring": Backend("ring", ring, _ring_cannot, _prefers_ring),
    "splash": Backend("splash", _splash, _splash_cannot, _prefers_splash),
    "cudnn": Backend("cudnn", cudnn_attention.cudnn, cudnn_attention.cannot, lambda problem: "works on this GPU"),
    "reference": Backend("reference", reference, lambda problem: None, _prefers_reference),
    "chunked": Backend("chunked", chunked, lambda problem: None, lambda problem: "bounded memory on any platform"),
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask = _FULL,
    bias: jax.Array | None = None,
    scale: float | None = None,
    backend: str = "auto",
    precision: str | None = None,
) -> jax.Array:
    """Softmax attention with grouped heads, a structured mask and an additive bias.

    Scores and softmax are float32 whatever the format of q; the weights are rounded to the format of v for
    the second product, as in PyTorch's flash kernels. A query that sees no key gives zeros and no gradient.

    Shapes:
      q [B, Tq, N, H], k [B, Tk, K, H], v [B, Tk, K, Hv] with N a multiple of K: query head n reads key
      head n // (N / K) -> [B, Tq, N, Hv] in the format of q.

    Args:
      mask: `Full()`, `Causal()`, `Window(left, right)`, `Lengths(n)`, `Segments(q, kv)`, `Dense(array)`, or
        several joined by `&`.
      bias: added to the scaled scores; its axes broadcast to [B, N, Tq, Tk] from the right. It has a
        gradient. A key that stands for n equal keys gets a bias of log(n).
      scale: factor of the scores, H ** -0.5 where None.
      backend: "auto", which is ring where the mesh in use cuts the tokens, else splash on TPU, cudnn on GPU,
        reference for short sequences on CPU and chunked everywhere else; or a name in `BACKENDS`;
        `chosen_backend` says what "auto" takes and why.
      precision: of the matrix products, as in `jax.lax.Precision`.

    Raises:
      ValueError: for shapes that do not fit each other, an unknown back end, or one that cannot compute this.
    """
    _check(q, k, v, mask)
    if bias is not None:
        bias = jnp.reshape(bias, (1,) * (4 - jnp.ndim(bias)) + jnp.shape(bias))
        check_broadcast("bias", bias.shape, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    name, _ = chosen_backend(q, k, v, mask=mask, bias=bias, backend=backend, precision=precision)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return BACKENDS[name].run(q, k, v, mask, bias, scale, precision)


def chosen_backend(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Mask = _FULL,
    bias: Any = None,
    backend: str = "auto",
    precision: str | None = None,
) -> tuple[str, str]:
    """(name, reason) of the back end that `attention` runs for these arguments.

    What "auto" chooses is logged once for each distinct problem, and a warning says why tokens that the mesh
    cuts are not attended to in a ring.

    Args:
      q, k, v, mask, bias, backend, precision: as for `attention`; `jax.ShapeDtypeStruct` will do for the arrays.

    Raises:
      ValueError: if `backend` is unknown or cannot compute this.
    """
    form, biased = form_of(mask), bias is not None
    problem = Problem(q.shape, k.shape, v.shape, q.dtype, form, biased, platform(), precision, seq_axis()[1])
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention back end {backend!r}: choose auto or one of {', '.join(BACKENDS)}")
        if reason := BACKENDS[backend].supports(problem):
            raise ValueError(f"attention back end {backend!r} cannot compute this: {reason}; use backend='auto'")
        return backend, "asked for"
    return _automatic(problem)


@functools.cache
def _automatic(problem: Problem) -> tuple[str, str]:
    """The first back end that can and would compute the problem, with its reason; logged."""
    name, reason = next(
        (name, reason)
        for name, candidate in BACKENDS.items()
        if candidate.supports(problem) is None and (reason := candidate.prefers(problem))
    )
    shapes = " x ".join(str(list(shape)) for shape in (problem.q, problem.k))
    mask = " & ".join(problem.form.names) or "Full"
    described = f"attention of {shapes}, {jnp.dtype(problem.dtype).name}, {mask}{', bias' if problem.bias else ''}"
    if problem.seq > 1 and problem.self_attention and (cause := BACKENDS["ring"].supports(problem)):
        _logger.warning(
            "%s: not a ring over seq=%d (%s), so every device holds all keys", described, problem.seq, cause
        )
    _logger.info("%s: %s (%s)", described, name, reason)
    return name, reason


def _check(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> None:
    for name, array in (("q", q), ("k", k), ("v", v)):
        if array.ndim != 4:
            raise ValueError(f"{name} has shape {array.shape}: give [B, T, heads, head width]")
    (batch, q_len, heads, width), (kv_batch, kv_len, kv_heads, kv_width) = q.shape, k.shape
    if kv_batch != batch or kv_width != width:
        raise ValueError(f"q {q.shape} and k {k.shape} differ in batch or head width: make both equal")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"k {k.shape} and v {v.shape} differ in batch, length or heads: make them equal")
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads and k {kv_heads}: the first must be a multiple of the second")
    mask.check(batch, heads, q_len, kv_len)
