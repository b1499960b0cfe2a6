"""Attention: every back end against the reference, and the reference against torch, forward and gradients."""

import dataclasses
import functools
import logging
import re
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.ops.attention import (
    BACKENDS,
    Causal,
    Dense,
    Full,
    Lengths,
    Mask,
    Problem,
    Segments,
    Window,
    attention,
    chosen_backend,
)
from rvseg_jax.ops.attention.chunked import chunked
from rvseg_jax.ops.attention.cudnn import cudnn
from rvseg_jax.ops.attention.forms import form_of
from rvseg_jax.ops.attention.masks import Span
from rvseg_jax.ops.attention.reference import reference
from rvseg_jax.ops.attention.splash import SplashBlocks, splash

# The package shows the function of the same name.
cudnn_module = sys.modules["rvseg_jax.ops.attention.cudnn"]

BATCH, HEADS, WIDTH, V_WIDTH, SCALE = 2, 4, 8, 6, 0.4
# Small blocks, so that 37 queries and 53 keys make several of them and the last ones are not full.
# The TPU kernel's own program runs as plain JAX here, and the GPU back end's masks go through another kernel of JAX.
COMPARED = {
    "chunked": functools.partial(chunked, block_q=16, block_k=16),
    "splash": functools.partial(splash, interpret=True),
    "cudnn": functools.partial(cudnn, implementation="xla"),
}
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
# A ring needs a mesh: tests/sharding/test_attention_ring.py.
ELSEWHERE = {"ring"}
RUNNABLE = ("reference", "chunked")


@dataclass(frozen=True)
class Case:
    mask: str
    bias: tuple[int, ...] | None = None
    kv_heads: int = 4
    q_len: int = 37
    kv_len: int = 53

    def __str__(self) -> str:
        bias = "no bias" if self.bias is None else f"bias {self.bias}"
        return f"{self.mask}, {bias}, {self.kv_heads} kv heads, {self.q_len} x {self.kv_len}"


CASES = [
    Case("full"),
    Case("full", bias=(1, 4, 37, 53), kv_heads=2),
    Case("full", bias=(2, 1, 1, 64), q_len=32, kv_len=64),
    Case("full", kv_heads=1, q_len=1, kv_len=16),
    Case("full", bias=(1, 4, 5, 1), q_len=5, kv_len=1),
    Case("causal", bias=(2, 4, 37, 53)),
    Case("causal after a cache", kv_heads=2),
    Case("causal after a cache", q_len=1, kv_len=20),
    Case("window", bias=(1, 4, 1, 53), kv_heads=2),
    Case("window open to the left"),
    Case("window of one key", q_len=24, kv_len=24),
    Case("lengths", bias=(1, 4, 37, 53)),
    Case("lengths", kv_heads=1, q_len=20, kv_len=20),
    Case("segments", kv_heads=2),
    Case("segments", bias=(2, 1, 37, 53)),
    Case("dense", bias=(1, 1, 37, 53)),
    Case("dense of a head", kv_heads=2),
    Case("dense of keys"),
    Case("causal and lengths", bias=(1, 4, 37, 53), kv_heads=2),
    Case("window and segments"),
    Case("nothing", bias=(1, 4, 37, 53)),
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def make_mask(case: Case) -> Mask:
    rng = np.random.default_rng(7)
    q_len, kv_len = case.q_len, case.kv_len
    # Segment -1 belongs to no one, and one length is 0: some queries see nothing.
    segments = Segments(rng.integers(-1, 3, (BATCH, q_len)), rng.integers(-1, 3, (BATCH, kv_len)))
    lengths = Lengths(jnp.array([kv_len // 2 + 1, 0]))
    return {
        "full": lambda: Full(),
        "causal": lambda: Causal(),
        "causal after a cache": lambda: Causal(jnp.array([kv_len - q_len, 3])),
        "window": lambda: Window(5, 2),
        "window open to the left": lambda: Window(None, 0),
        "window of one key": lambda: Window(0, 0),
        "lengths": lambda: lengths,
        "segments": lambda: segments,
        "dense": lambda: Dense(jnp.asarray(rng.random((BATCH, 1, q_len, kv_len)) < 0.1)),
        "dense of a head": lambda: Dense(jnp.asarray(rng.random((1, HEADS, q_len, kv_len)) < 0.5)),
        "dense of keys": lambda: Dense(jnp.asarray(rng.random((BATCH, 1, 1, kv_len)) < 0.5)),
        "causal and lengths": lambda: Causal() & Lengths(jnp.array([9, 40])),
        "window and segments": lambda: Window(8, 8) & segments,
        "window and lengths": lambda: Window(30, 5) & lengths,
        "causal and window": lambda: Causal() & Window(7, None),
        "nothing": lambda: Dense(jnp.zeros((1, 1, 1, 1), bool)),
    }[case.mask]()


def arrays(case: Case) -> tuple:
    """q, k, v, bias and the cotangent of the output."""
    q, k = draw(BATCH, case.q_len, HEADS, WIDTH), draw(BATCH, case.kv_len, case.kv_heads, WIDTH)
    v = draw(BATCH, case.kv_len, case.kv_heads, V_WIDTH)
    bias = None if case.bias is None else draw(*case.bias)
    return q, k, v, bias, draw(BATCH, case.q_len, HEADS, V_WIDTH)


# Half of this file's time is compilation, and its arrays are too small for the optimiser to matter.
@functools.partial(jax.jit, static_argnames="run", compiler_options={"xla_backend_optimization_level": 0})
def value_and_gradients(run, mask, q, k, v, bias, cotangent):
    """[output, dq, dk, dv] and, with a bias, its gradient."""
    given = [x for x in (q, k, v, bias) if x is not None]
    out, pull = jax.vjp(lambda q, k, v, bias=None: run(q, k, v, mask, bias, SCALE, "highest"), *given)
    return [out, *pull(cotangent.astype(out.dtype))]


def fixed(run, mask: Mask):
    """`run` with a mask that is known when it is traced: kernels need the offset of a `Causal` as a number."""
    return lambda q, k, v, _, *rest: run(q, k, v, mask, *rest)


def with_torch(torch, mask: Mask, q, k, v, bias, cotangent) -> list[np.ndarray]:
    """The same from torch.nn.functional.scaled_dot_product_attention."""
    shape = (BATCH, HEADS, q.shape[1], k.shape[1])
    keep = mask.keep(Span(0, shape[2]), Span(0, shape[3]))
    keep = (
        torch.ones(shape, dtype=torch.bool)
        if keep is None
        else torch.from_numpy(np.array(jnp.broadcast_to(keep, shape)))
    )
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in (q, k, v, bias) if x is not None]
    additive = torch.zeros(shape).masked_fill(~keep, -torch.inf)
    if bias is not None:
        additive = additive + leaves[3]
    heads_first = [x.transpose(1, 2) for x in leaves[:3]]
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=additive, scale=SCALE, enable_gqa=k.shape[2] != HEADS
    )
    # torch's answer for a row that sees nothing depends on its version; ours is zero.
    out = out.transpose(1, 2).masked_fill(~keep.any(-1).transpose(1, 2)[..., None], 0)
    (out * torch.from_numpy(cotangent)).sum().backward()
    return [out.detach().numpy(), *(leaf.grad.nan_to_num(0).numpy() for leaf in leaves)]


def close(ours, theirs) -> None:
    # Sums of up to 53 float32 products in another order: 53 * 6e-8 of the largest value, and some reserve.
    for a, b in zip(ours, theirs, strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_every_back_end_is_in_the_matrix():
    assert set(BACKENDS) == {"reference", *COMPARED, *ELSEWHERE}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_back_ends_agree_with_the_reference_and_it_with_torch(torch, case):
    mask, values = make_mask(case), arrays(case)
    expected = value_and_gradients(reference, mask, *values)
    close(expected, with_torch(torch, mask, *values))
    close(value_and_gradients(COMPARED["chunked"], mask, *values), expected)


def refusal(name: str, case: Case, mask: Mask, **changes) -> str | None:
    """Why a back end could not compute a case on the platform that it is for."""
    shapes = [(BATCH, case.q_len, HEADS, 64), *[(BATCH, case.kv_len, case.kv_heads, 64)] * 2]
    problem = Problem(*shapes, jnp.bfloat16, form_of(mask), case.bias is not None, PLATFORMS[name])
    return BACKENDS[name].supports(dataclasses.replace(problem, **changes))


# What each kernel refuses of CASES, by mask.
REFUSED = {
    "splash": {"causal after a cache", "dense", "dense of a head", "dense of keys", "window and segments", "nothing"},
    "cudnn": {
        *("causal", "causal after a cache", "window", "window open to the left", "segments", "dense"),
        *("dense of a head", "dense of keys", "causal and lengths", "window and segments", "nothing"),
    },
}
SQUARE = [
    Case("causal", kv_heads=2, q_len=40, kv_len=40),
    Case("causal and lengths", q_len=40, kv_len=40),
    Case("causal and window", q_len=40, kv_len=40),
    Case("window of one key", q_len=24, kv_len=24),
]
# Several tiles of the TPU kernel, the last ones not full, and rows of tiles that see nothing.
TILED = [
    Case("full", kv_heads=2, q_len=150, kv_len=290),
    Case("causal", q_len=290, kv_len=150),
    Case("window", q_len=290, kv_len=130),
    Case("segments", q_len=150, kv_len=290),
    Case("lengths", kv_heads=1, q_len=256, kv_len=256),
    Case("window and lengths", q_len=200, kv_len=300),
]


@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("case", [*CASES, *SQUARE, *TILED], ids=str)
def test_kernels_agree_with_the_reference_or_say_why_not(name, case, monkeypatch):
    monkeypatch.setattr(cudnn_module, "probe", lambda: None)
    mask, (q, k, v, _, cotangent) = make_mask(case), arrays(case)
    if reason := refusal(name, case, mask):
        assert case.bias is not None or case.mask in REFUSED[name] or (case in TILED and name == "cudnn"), reason
        return
    if name == "cudnn":  # its heads of q and v are of one width
        v, cotangent = draw(*k.shape) + 1, draw(*q.shape)
    run = COMPARED[name]
    if case in TILED and name == "splash":
        run = functools.partial(run, sizes=SplashBlocks(256, 128, 128, 128))
    close(
        value_and_gradients(fixed(run, mask), mask, q, k, v, None, cotangent),
        value_and_gradients(reference, mask, q, k, v, None, cotangent),
    )


@pytest.mark.parametrize(
    ("name", "changes", "mask", "message"),
    [
        ("splash", {"platform": "gpu"}, Full(), "runs on TPU, not on gpu"),
        ("splash", {"bias": True}, Full(), "no additive bias"),
        ("splash", {"dtype": np.dtype("float16")}, Full(), "not float16"),
        ("splash", {"precision": "highest"}, Full(), "precision 'highest'"),
        ("splash", {}, Dense(np.ones((1, 1, 1, 1), bool)), "not Dense"),
        ("splash", {}, Causal(jnp.array([1, 2])), "not Causal with an array"),
        ("splash", {}, Lengths(np.ones(2, int)) & Lengths(np.ones(2, int)), "two Lengths masks"),
        ("cudnn", {"platform": "cpu"}, Full(), "NVIDIA GPUs, not on cpu"),
        ("cudnn", {"dtype": np.dtype("float32")}, Full(), "bfloat16 and float16, not float32"),
        ("cudnn", {"q": (1, 8, 2, 384), "v": (1, 8, 2, 384)}, Full(), "width 384: .* up to 128"),
        ("cudnn", {"v": (1, 8, 2, 32)}, Full(), "differ in width, 64 and 32"),
        ("cudnn", {"bias": True}, Full(), "additive bias"),
        ("cudnn", {}, Window(3, 1), "window of keys i-3..i\\+1"),
        ("cudnn", {}, Causal(), "37 queries and 53 keys"),
        ("cudnn", {}, Full(), "no cuDNN here"),
    ],
)
def test_kernels_name_the_cause(name, changes, mask, message, monkeypatch):
    monkeypatch.setattr(cudnn_module, "probe", lambda: "no cuDNN here")
    assert re.search(message, refusal(name, Case("full"), mask, **changes))


def test_cudnn_is_probed_by_what_it_computes():
    assert cudnn_module._tried("xla") is None
    assert "cudnn" in cudnn_module._tried("cudnn").lower()  # JAX says what it lacks on CPU
    assert cudnn_module.probe() == "the default device is no GPU"


@pytest.mark.parametrize(
    ("limits", "lengths", "tiles"),
    [
        ((512, 512, 512, 512), (7540, 7540), (512, 512, 512, 512, 7680, 7680)),
        ((512, 1024, 512, 512), (32760, 512), (512, 512, 512, 512, 32768, 512)),
        ((512, 512, 256, 384), (600, 77), (384, 128, 256, 128, 768, 128)),
    ],
)
def test_tiles_of_the_tpu_kernel_divide_the_padded_lengths(limits, lengths, tiles):
    sizes, q_padded, kv_padded = SplashBlocks(*limits).sizes(*lengths)
    found = (sizes.block_q, sizes.block_kv, sizes.block_q_dkv, sizes.block_kv_dkv, q_padded, kv_padded)
    assert found == tiles
    with pytest.raises(ValueError, match="SplashBlocks.kv is 100"):
        SplashBlocks(kv=100)


@pytest.mark.parametrize("name", ["chunked", "splash"])
@pytest.mark.parametrize(
    "case", [CASES[1], Case("causal and lengths", bias=(1, 4, 37, 53), kv_heads=2), Case("segments")], ids=str
)
def test_bfloat16_is_as_near_to_float32_as_the_reference_is(case, name):
    mask, (q, k, v, bias, cotangent) = make_mask(case), arrays(case)
    if name == "splash":
        bias = None
    exact = value_and_gradients(reference, mask, q, k, v, bias, cotangent)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    theirs = value_and_gradients(reference, mask, *half, bias, cotangent)
    ours = value_and_gradients(fixed(COMPARED[name], mask), mask, *half, bias, cotangent)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        error, allowed = (float(jnp.mean(jnp.abs(x.astype(jnp.float32) - c))) for x in (a, b))
        assert error <= 1.25 * allowed + 1e-6


EXACT = {"reference": reference, **{name: COMPARED[name] for name in ("chunked", "splash")}}


@pytest.mark.parametrize("run", EXACT.values(), ids=EXACT)
def test_queries_that_see_nothing_give_zeros(run):
    case = Case("lengths", kv_heads=2)
    out, dq, dk, dv = value_and_gradients(run, make_mask(case), *arrays(case))
    np.testing.assert_array_equal(out[1], 0)
    for gradient in (dq, dk, dv):
        np.testing.assert_array_equal(gradient[1], 0)
    assert np.all(np.any(np.asarray(out[0]) != 0, axis=-1))


@pytest.mark.parametrize("run", EXACT.values(), ids=EXACT)
def test_a_query_with_one_key_gives_its_value(run):
    case = Case("window of one key", q_len=24, kv_len=24)
    q, k, v, _, cotangent = arrays(case)
    out, dq, dk, dv = value_and_gradients(run, make_mask(case), q, k, v, None, cotangent)
    np.testing.assert_allclose(out, v, rtol=1e-6)
    np.testing.assert_allclose(dv, cotangent, rtol=1e-6)
    # The one weight is 1 whatever the score; what <d_out, v> - <d_out, out> leaves is rounding.
    np.testing.assert_allclose(dq, 0, atol=5e-6)
    np.testing.assert_allclose(dk, 0, atol=5e-6)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_bias_of_log_n_stands_for_n_equal_keys(backend):
    q, k, v = draw(1, 6, 4, 8), draw(1, 9, 4, 8), draw(1, 9, 4, 8)
    padded_k, padded_v = (np.concatenate([x, np.repeat(x[:, -1:], 20, axis=1)], axis=1) for x in (k, v))
    bias = np.zeros((1, 1, 1, 9), np.float32)
    bias[..., -1] = np.log(21)
    np.testing.assert_allclose(
        attention(q, k, v, bias=bias, backend=backend),
        attention(q, padded_k, padded_v, backend=backend),
        rtol=2e-5,
        atol=2e-6,
    )


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_bias_of_minus_infinity_masks(backend):
    q, k, v = draw(1, 6, 4, 8), draw(1, 9, 4, 8), draw(1, 9, 4, 8)
    bias = jnp.where(np.arange(9) < 5, 0.0, -jnp.inf)
    masked = jax.grad(lambda q: jnp.sum(attention(q, k, v, mask=Lengths(jnp.array([5])), backend=backend) ** 2))(q)
    biased = jax.grad(lambda q: jnp.sum(attention(q, k, v, bias=bias, backend=backend) ** 2))(q)
    np.testing.assert_allclose(biased, masked, rtol=1e-6, atol=1e-7)


def test_chunked_differentiates_under_vmap_scan_and_checkpoint():
    q, k, v = draw(3, 1, 20, 2, 4), draw(3, 1, 20, 2, 4), draw(3, 1, 20, 2, 4)

    def loss(backend, q):
        layer = jax.checkpoint(lambda x: attention(x, k[0], v[0], mask=Causal(), backend=backend))
        x, _ = jax.lax.scan(lambda x, _: (x + layer(x), None), q, length=2)
        return jnp.sum(x**2)

    ours, theirs = (jax.jit(jax.vmap(jax.grad(functools.partial(loss, name))))(q) for name in ("chunked", "reference"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [Full(), Causal(), Window(100, 100)], ids=lambda mask: type(mask).__name__)
def test_chunked_memory_grows_with_tokens_and_not_with_their_square(mask):
    tokens, heads = 8192, 2
    array = jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.float32)

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, mask=mask, backend="chunked") ** 2)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(array, array, array).compile()
    # 512 MiB of scores; the temporaries are a few copies of 4 MiB arrays and of 2 MiB blocks.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * heads * tokens**2 / 10


@pytest.mark.parametrize(
    "mask", [Causal(), Causal(jnp.array([5, -4])), Window(3, 1), Window(None, 2), Window(0, 0) & Causal()], ids=str
)
def test_a_block_that_is_skipped_is_empty_and_most_empty_ones_are_skipped(mask):
    skipped = 0
    for rows in range(0, 48, 8):
        for columns in range(0, 48, 8):
            spans = Span(rows, 8), Span(columns, 8)
            if not mask.touches(*spans):
                skipped += 1
                assert not np.any(mask.keep(*spans))
    assert skipped >= 10  # of 36


def test_auto_takes_the_reference_for_short_and_chunked_for_long():
    def choice(q_len, kv_len, batch=1):
        q, k = (jax.ShapeDtypeStruct((batch, length, 12, 64), jnp.float32) for length in (q_len, kv_len))
        return chosen_backend(q, k, k)

    assert choice(512, 512)[0] == "reference"
    assert choice(512, 1024)[0] == "chunked"
    # Few keys, but 32,760 video tokens that look at them: 750 MiB of scores.
    assert choice(32760, 512)[0] == "chunked"
    name, reason = chosen_backend(*[jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.float32)] * 3, backend="chunked")
    assert (name, reason) == ("chunked", "asked for")


def test_auto_takes_the_kernels_where_they_run_and_says_so_once(monkeypatch, caplog):
    arrays = [jax.ShapeDtypeStruct((1, 2000, 12, 128), jnp.bfloat16)] * 3
    few = jax.ShapeDtypeStruct((1, 64, 12, 128), jnp.bfloat16)
    monkeypatch.setattr(cudnn_module, "probe", lambda: None)
    dispatch = sys.modules["rvseg_jax.ops.attention.dispatch"]
    logger = "rvseg_jax.ops.attention.dispatch"
    for platform, expected in (("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "chunked")):
        monkeypatch.setattr(dispatch, "platform", lambda platform=platform: platform)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=logger):
            assert [chosen_backend(*arrays)[0] for _ in range(2)] == [expected] * 2
        assert len(caplog.records) == 1 and f"bfloat16, Full: {expected} (" in caplog.text
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    assert chosen_backend(arrays[0], few, few)[0] == "chunked"
    assert chosen_backend(*arrays, bias=jnp.zeros(1))[0] == "chunked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((2, 5, 3, 8))}, "q has 3 heads and k 2"),
        ({"q": np.zeros((2, 5, 8))}, r"q has shape \(2, 5, 8\)"),
        ({"q": np.zeros((1, 5, 4, 8))}, "differ in batch or head width"),
        ({"v": np.zeros((2, 6, 2, 8))}, "differ in batch, length or heads"),
        ({"bias": np.zeros((3, 7))}, r"bias has shape \(1, 1, 3, 7\)"),
        ({"mask": Lengths(np.zeros(3, int))}, r"one length a sample, \[2\]"),
        ({"mask": Dense(np.zeros((2, 1, 5, 7)))}, "give bool"),
        ({"mask": Dense(np.zeros((5, 7), bool))}, r"Dense.array has shape \(5, 7\)"),
        ({"mask": Causal() & Segments(np.zeros((2, 5), int), np.zeros((2, 5), int))}, r"Segments.kv .* give \[2, 7\]"),
        ({"mask": Window(-1, 0)}, "Window.left is -1"),
        ({"backend": "flash"}, "unknown attention back end 'flash'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"q": np.zeros((2, 5, 4, 8)), "k": np.zeros((2, 7, 2, 8)), "v": np.zeros((2, 7, 2, 8)), **change}
    with pytest.raises(ValueError, match=message):
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
