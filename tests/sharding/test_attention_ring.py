"""Attention over a mesh that cuts tokens: the ring, and kernels on each device's own part."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rvseg_jax.ops.attention import Causal, Full, Lengths, Segments, Window, attention, chosen_backend
from rvseg_jax.ops.attention.cudnn import cudnn
from rvseg_jax.ops.attention.reference import reference
from rvseg_jax.ops.attention.ring import ring
from rvseg_jax.ops.attention.splash import splash
from rvseg_jax.parallel import make_mesh, pjit

BATCH, TOKENS, HEADS, WIDTH = 4, 48, 4, 8
MASKS = {
    "full": Full(),
    "lengths": Lengths(jnp.array([48, 5, 0, 30])),
    "causal": Causal(),
    "causal and lengths": Causal(jnp.array([0, 3, -2, 7])) & Lengths(jnp.array([48, 5, 20, 30])),
}
# Not names of `SEGMENTS`: positions matter to a ring by number only, and an array of them is whole everywhere.
SEGMENTS = Segments(*[jnp.arange(TOKENS)[None].repeat(BATCH, 0) // 20] * 2)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def inputs(kv_heads: int, tokens: int = TOKENS, dtype=np.float32) -> list:
    kv = draw(BATCH, tokens, kv_heads, WIDTH).astype(dtype)
    q = draw(BATCH, TOKENS, HEADS, WIDTH).astype(dtype)
    return [q, kv, kv[..., ::-1] + dtype(1), draw(BATCH, TOKENS, HEADS, WIDTH).astype(dtype) * dtype(2)]


def outcome(run, mask, q, k, v, cotangent):
    """[output, dq, dk, dv]."""
    out, pull = jax.vjp(lambda q, k, v: run(q, k, v, mask, None, 0.4, None), q, k, v)
    return [out, *pull(cotangent)]


def on_mesh(run, mask, sizes, arrays, seq="seq"):
    """The same, jitted with inputs and results laid out over a mesh."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "seq", "tensor"), sizes, strict=True)))
    cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), seq))
    with jax.set_mesh(mesh):
        step = pjit(functools.partial(outcome, run, mask), in_shardings=(cut,) * 4, out_shardings=[cut] * 4)
        return jax.device_get(step(*arrays))


def close(ours, theirs, bound=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=bound * np.abs(b).max(), rtol=0)


# 48 tokens in 2, 4 or 8 parts of blocks of at most 7: parts and blocks of several sizes, the last ones not full.
@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (2, 1, 4, 1), (1, 1, 8, 1)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_the_ring_equals_the_reference(name, sizes):
    arrays = inputs(kv_heads=2)
    run = functools.partial(ring, block_q=7, block_k=8)
    close(on_mesh(run, MASKS[name], sizes, arrays), outcome(reference, MASKS[name], *arrays))


def test_the_ring_takes_keys_of_another_length_and_bfloat16():
    arrays = inputs(kv_heads=4, tokens=72)
    close(on_mesh(ring, Causal(24), (1, 2, 2, 2), arrays), outcome(reference, Causal(24), *arrays))
    exact = outcome(reference, Full(), *inputs(kv_heads=2))
    half = inputs(kv_heads=2, dtype=jnp.bfloat16)
    close(on_mesh(ring, Full(), (1, 2, 4, 1), half), [x.astype(jnp.bfloat16) for x in exact], bound=0.03)


def test_the_ring_under_scan_and_checkpoint_and_chosen_by_itself(caplog):
    q, k, v, _ = inputs(kv_heads=4)

    def loss(backend, q):
        layer = jax.checkpoint(lambda x: attention(x, k, v, mask=Causal(), backend=backend))
        x, _ = jax.lax.scan(lambda x, _: (x + layer(x), None), q, length=2)
        return jnp.sum(x**2)

    expected = jax.grad(functools.partial(loss, "reference"))(q)
    mesh = make_mesh({"fsdp": 2, "seq": 4})
    cut = NamedSharding(mesh, PartitionSpec("fsdp", "seq"))
    with jax.set_mesh(mesh), caplog.at_level(logging.INFO, logger="rvseg_jax.ops.attention.dispatch"):
        step = pjit(jax.grad(functools.partial(loss, "auto")), in_shardings=(cut,), out_shardings=cut)
        close([step(q)], [expected])
        # Only neighbours exchange keys: the whole of them is nowhere.
        text = step.lower(q).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text
    assert "ring (tokens cut into 4 by the mesh)" in caplog.text


def test_why_there_is_no_ring_is_logged(caplog):
    def choice(length, kv_length, **options):
        q, k = (jax.ShapeDtypeStruct((1, n, 12, 64), jnp.float32) for n in (length, kv_length))
        return chosen_backend(q, k, k, **options)[0]

    with jax.set_mesh(make_mesh({"seq": 8})), caplog.at_level(logging.WARNING, "rvseg_jax.ops.attention.dispatch"):
        assert choice(7800, 7800) == "ring"
        assert choice(7800, 512) == "reference" and not caplog.records  # a text: nothing to say
        assert choice(7540, 7540) == "chunked"
        assert "not a ring over seq=8 (7540 queries do not divide by seq=8)" in caplog.text
        assert choice(7800, 7800, mask=Window(1, 1)) == "chunked"
        assert "it knows Full, Causal, Causal with an array and Lengths masks, not Window" in caplog.text
    with pytest.raises(ValueError, match="'ring' cannot compute this: the mesh in use has no seq axis"):
        choice(16, 16, backend="ring")


@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    ("run", "mask", "kv_heads"),
    [
        (functools.partial(splash, interpret=True), SEGMENTS, 2),
        (functools.partial(splash, interpret=True), Causal(), 1),
        (functools.partial(cudnn, implementation="xla"), MASKS["lengths"], 2),
    ],
    ids=["splash, segments", "splash, causal, one key head", "cudnn, lengths"],
)
def test_kernels_run_on_each_devices_part(run, mask, kv_heads, sizes):
    arrays = inputs(kv_heads)
    close(on_mesh(run, mask, sizes, arrays), outcome(reference, mask, *arrays))
