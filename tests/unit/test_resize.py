"""`resize` against torch.nn.functional.interpolate, for every flag that the systems use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvseg_jax.ops.resize import nearest_index, resize

# (input, output): the same, up and down by whole and broken factors, one axis up and the other down, a single
# row or column. An axis over 256 pixels takes the gathering path, a shorter one the matrix product.
SIZES = [
    ((7, 9), (7, 9)),
    ((6, 5), (12, 15)),
    ((12, 15), (6, 5)),
    ((7, 9), (11, 4)),
    ((5, 8), (13, 21)),
    ((37, 37), (12, 17)),
    ((1, 6), (4, 1)),
    ((3, 300), (5, 333)),
    ((2, 300), (3, 111)),
]
FLAGS = [
    ("nearest", {}),
    ("nearest-exact", {}),
    ("area", {}),
    *(
        (mode, {"align_corners": corners, "antialias": antialias})
        for mode in ("bilinear", "bicubic")
        for corners in (False, True)
        for antialias in (False, True)
    ),
]
SYSTEM_CALLS = {
    "FlowRVS logits to the source frame": ((48, 83), (54, 96), "bilinear", {}),
    "SAM2 logits to the frame": ((64, 64), (120, 214), "bilinear", {}),
    "SAM2 mask prompt": ((90, 120), (64, 64), "bilinear", {"antialias": True}),
    "Pi3 positions": ((37, 37), (24, 32), "bicubic", {"antialias": True}),
    "RAFT frame to a multiple of 8": ((129, 129), (136, 136), "bilinear", {}),
    "CoTracker3 features": ((32, 24), (48, 64), "bilinear", {"align_corners": True}),
    "XMem hidden update": ((32, 24), (8, 6), "area", {}),
    "SAM2 position embedding": ((7, 7), (64, 64), "bicubic", {}),
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def with_torch(torch, x: np.ndarray, cotangent=None, **options):
    """torch's result for x [B, H, W, C], and the gradient of sum(result * cotangent)."""
    leaf = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    out = torch.nn.functional.interpolate(leaf, **options).permute(0, 2, 3, 1)
    if cotangent is not None:
        (out * torch.from_numpy(cotangent)).sum().backward()
    gradient = leaf.grad.permute(0, 2, 3, 1).numpy() if cotangent is not None else None
    return out.detach().numpy(), gradient


def close(ours, theirs) -> None:
    # Ten or so float32 products a value, and positions that torch rounds to float32 too: 300 pixels times
    # float32's 6e-8 is 2e-5.
    np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "flags"), FLAGS, ids=lambda v: "-".join(k for k in v if v[k]) if isinstance(v, dict) else v
)
def test_values_and_gradients_are_torchs(torch, mode, flags):
    # torch 2.13 reads wrong strides for an antialiased image of one column.
    sizes = [(before, after) for before, after in SIZES if not (flags.get("antialias") and 1 in after)]
    images = [noise(2, *before, 3) for before, _ in sizes]
    cotangents = [noise(2, *after, 3) for _, after in sizes]

    @jax.jit
    def all_sizes(images, cotangents):
        out, pull = jax.vjp(
            lambda images: [resize(x, after, mode=mode, **flags) for x, (_, after) in zip(images, sizes, strict=True)],
            images,
        )
        return out, pull(cotangents)[0]

    for x, cotangent, (_, after), ours, gradient in zip(
        images, cotangents, sizes, *all_sizes(images, cotangents), strict=True
    ):
        expected, expected_gradient = with_torch(torch, x, cotangent, size=after, mode=mode, **flags)
        close(ours, expected)
        close(gradient, expected_gradient)


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_calls_of_the_systems(torch, name):
    before, after, mode, flags = SYSTEM_CALLS[name]
    x = noise(1, *before, 2)
    close(resize(x, after, mode=mode, **flags), with_torch(torch, x, size=after, mode=mode, **flags)[0])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_picks_torchs_pixel_for_every_pair_of_sizes(torch, mode):
    # Ties depend on float32 rounding of the step, so all small pairs are tried; values are the pixel's index.
    for before in range(1, 100):
        pixels = torch.arange(before, dtype=torch.float32)[None, None, :, None]
        for after in range(1, 100):
            expected = torch.nn.functional.interpolate(pixels, size=(after, 1), mode=mode).flatten().numpy()
            ours = nearest_index(before, after, mode == "nearest-exact", None)
            np.testing.assert_array_equal(ours, expected, err_msg=f"{before} to {after}")


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.3, (0.7, 2.6)])
def test_scale_factor_moves_positions_by_the_factor(torch, mode, factor):
    # 3 * 1.3 rounds down to 3: torch then copies the axis in some modes and not in others.
    x = noise(1, 3, 7, 2)
    expected, _ = with_torch(torch, x, scale_factor=factor, mode=mode)
    close(resize(x, mode=mode, scale_factor=factor), expected)
    if mode in ("bilinear", "bicubic"):
        wide, _ = with_torch(torch, x, scale_factor=factor, mode=mode, antialias=True)
        close(resize(x, mode=mode, scale_factor=factor, antialias=True), wide)


def test_any_leading_axes_and_formats():
    x = noise(2, 3, 4, 5, 2)
    flat = resize(x.reshape(6, 4, 5, 2), (8, 3), mode="bilinear")
    np.testing.assert_allclose(resize(x, (8, 3), mode="bilinear"), flat.reshape(2, 3, 8, 3, 2), atol=1e-6)
    half = resize(jnp.asarray(x, jnp.bfloat16), (8, 3), mode="bicubic")
    assert half.dtype == jnp.bfloat16
    exact = resize(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), (8, 3), mode="bicubic")
    np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))  # float32 inside, rounded once
    assert resize(np.ones((4, 4, 1), bool), (2, 8), mode="nearest").dtype == jnp.bool_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (4, 4), "mode": "cubic"}, "unknown resize mode 'cubic'"),
        ({"size": (4, 4), "mode": "nearest", "align_corners": True}, "align_corners has no meaning"),
        ({"size": (4, 4), "mode": "area", "antialias": True}, "antialias has no meaning"),
        ({"size": (0, 4), "mode": "nearest"}, r"cannot resize \(3, 3\) to \(0, 4\)"),
        ({"mode": "nearest"}, "exactly one"),
        ({"size": (4, 4), "scale_factor": 2.0, "mode": "nearest"}, "exactly one"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resize(noise(3, 3, 1), **arguments)


def test_integers_are_not_averaged():
    with pytest.raises(ValueError, match="uint8"):
        resize(np.zeros((3, 3, 1), np.uint8), (2, 2), mode="bilinear")
