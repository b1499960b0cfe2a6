"""The Wan autoencoder against diffusers' and against recorded outputs of FlowRVS, in float32."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_models
from flax import nnx
from safetensors.numpy import load_file

from rvseg_jax.convert import from_torch, to_torch
from rvseg_jax.core.precision import BFLOAT16
from rvseg_jax.models.wan.vae import Posterior, WanVAE, WanVAEConfig, decode_flops, encode_flops
from rvseg_jax.models.wan.vae_stream import decode_stream, encode_stream

# Some 30 convolutions deep, float32 sums in another order differ by a few 1e-6 of the largest value.
RELATIVE = 1e-5
# A gradient sums over all positions and frames, up to 4,000 terms of both signs.
RELATIVE_GRADIENT = 1e-4


def close(ours, expected, relative: float, name: str = "") -> None:
    """max |a - b| <= relative * max |b|."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape, name
    assert np.abs(ours - expected).max() <= relative * np.abs(expected).max(), name


def channels_last(array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(torch, array):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def unclamped_decode(torch, model, latents):
    """diffusers' decode without its last line, the clamp."""
    model.clear_cache()
    latents, pieces = model.post_quant_conv(latents), []
    for frame in range(latents.shape[2]):
        piece = latents[:, :, frame : frame + 1]
        pieces.append(model.decoder(piece, feat_cache=model._feat_map, feat_idx=[0], first_chunk=frame == 0))
    model.clear_cache()
    return torch.cat(pieces, 2)


@pytest.fixture(scope="module")
def tiny(torch) -> SimpleNamespace:
    """The same random weights in torch and in JAX, and jitted methods."""
    cfg = WanVAEConfig.tiny()
    model = torch_models.wan_vae(torch, cfg)
    vae = from_torch("wan_vae", torch_models.tensors(model), cfg)
    graphdef, state = nnx.split(vae)
    return SimpleNamespace(
        cfg=cfg,
        torch=model,
        vae=vae,
        graphdef=graphdef,
        state=state,
        # One compiled program for each clip length, whatever the weights.
        encode=jax.jit(lambda video, state=state: nnx.merge(graphdef, state).encode(video)),
        decode=jax.jit(lambda latents: vae.decode(latents, clamp=False)),
    )


def inputs(frames: int, cfg: WanVAEConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Video and latents of two clips of 32x48 pixels."""
    rng = np.random.default_rng(seed)
    video = rng.uniform(-1, 1, (2, frames, 32, 48, 3)).astype(np.float32)
    latents = rng.standard_normal((2, (frames - 1) // 4 + 1, 4, 6, cfg.z_dim)).astype(np.float32)
    return video, latents


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_values(torch, tiny, frames):
    video, latents = inputs(frames, tiny.cfg)
    with torch.no_grad():
        expected = tiny.torch.encode(channels_first(torch, video)).latent_dist
        clamped = tiny.torch.decode(channels_first(torch, latents)).sample
        unclamped = unclamped_decode(torch, tiny.torch, channels_first(torch, latents))
    posterior = tiny.encode(video)
    close(posterior.mean, channels_last(expected.mean), RELATIVE, "mean")
    close(posterior.logvar, channels_last(expected.logvar), RELATIVE, "logvar")
    decoded = tiny.decode(latents)
    assert decoded.shape == (2, frames, 32, 48, 1)
    close(decoded, channels_last(unclamped), RELATIVE, "decode")
    assert np.abs(decoded).max() > 1.1
    close(jnp.clip(decoded, -1, 1), channels_last(clamped), RELATIVE, "clamped")


def test_clamp_is_the_default(tiny):
    _, latents = inputs(9, tiny.cfg)
    clamped = jax.jit(lambda z: tiny.vae.decode(z))(latents)
    close(clamped, jnp.clip(tiny.decode(latents), -1, 1), RELATIVE)
    assert float(jnp.abs(clamped).max()) == 1.0


def test_gradients(torch, tiny):
    """Of one scalar over mean, logvar and unclamped output, with respect to all parameters and both inputs."""
    video, latents = inputs(9, tiny.cfg)
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s).astype(np.float32) for s in (latents.shape, latents.shape, (2, 9, 32, 48, 1))]

    def loss(state, video, latents):
        vae = nnx.merge(tiny.graphdef, state)
        posterior = vae.encode(video)
        outputs = (posterior.mean, posterior.logvar, vae.decode(latents, clamp=False))
        return sum(jnp.vdot(output, weight) for output, weight in zip(outputs, weights, strict=True))

    value, ours = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(tiny.state, video, latents)
    theirs = [channels_first(torch, array).requires_grad_() for array in (video, latents)]
    tiny.torch.zero_grad()
    posterior = tiny.torch.encode(theirs[0]).latent_dist
    outputs = (posterior.mean, posterior.logvar, unclamped_decode(torch, tiny.torch, theirs[1]))
    total = sum((o * channels_first(torch, w)).sum() for o, w in zip(outputs, weights, strict=True))
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-3)
    for name, array, expected in zip(("video", "latents"), ours[1:], theirs, strict=True):
        close(array, channels_last(expected.grad), RELATIVE_GRADIENT, name)
    exported = to_torch("wan_vae", nnx.merge(tiny.graphdef, ours[0]), tiny.cfg)
    expected = {name: value.grad.numpy() for name, value in tiny.torch.named_parameters()}
    assert exported.keys() == expected.keys()
    for name, array in exported.items():
        close(array, expected[name], RELATIVE_GRADIENT, name)


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (13, 1), (13, 2)])
def test_chunks_equal_the_whole(tiny, frames, chunk):
    video, latents = inputs(frames, tiny.cfg)
    whole, posterior = tiny.decode(latents), tiny.encode(video)
    decoded = jax.jit(lambda z: tiny.vae.decode(z, clamp=False, chunk=chunk))(latents)
    encoded = jax.jit(lambda x: tiny.vae.encode(x, chunk=chunk))(video)
    close(decoded, whole, RELATIVE)
    close(encoded.mean, posterior.mean, RELATIVE)
    close(encoded.logvar, posterior.logvar, RELATIVE)


def test_memory_of_chunks_does_not_grow_with_the_clip(tiny):
    """Temporaries of decoding 17 and 33 latent frames differ by copies of input and output at most."""

    def temporaries(chunk: int | None, frames: int) -> int:
        latents = jax.ShapeDtypeStruct((1, frames, 4, 6, tiny.cfg.z_dim), jnp.float32)
        program = jax.jit(lambda z: tiny.vae.decode(z, chunk=chunk)).lower(latents).compile()
        return program.memory_analysis().temp_size_in_bytes

    clip = 4 * 32 * 48 * 16 * 4  # bytes of 16 more latent frames once decoded
    assert temporaries(1, 33) - temporaries(1, 17) <= 3 * clip
    assert temporaries(1, 33) < 0.2 * temporaries(None, 33)


@pytest.mark.parametrize("pieces", [(13,), (1, 1, 6, 5)])
def test_streams_equal_the_whole(tiny, pieces):
    video, latents = inputs(13, tiny.cfg)
    bounds = np.cumsum(pieces)[:-1]
    encoded = list(encode_stream(tiny.vae, np.split(video, bounds, axis=1), chunk=2))
    assert [posterior.mean.shape[1] for posterior in encoded] == [1, 2, 1]
    close(jnp.concatenate([posterior.mean for posterior in encoded], axis=1), tiny.encode(video).mean, RELATIVE)
    decoded = list(decode_stream(tiny.vae, iter([latents[:, :3], latents[:, 3:]]), chunk=1, clamp=False))
    assert [frames.shape[1] for frames in decoded] == [1, 4, 4, 4]
    close(jnp.concatenate(decoded, axis=1), tiny.decode(latents), RELATIVE)


def test_stream_yields_before_the_video_ends(tiny):
    video, _ = inputs(9, tiny.cfg)
    read = []

    def frames():
        for index in range(9):
            read.append(index)
            yield video[:, index : index + 1]

    stream = encode_stream(tiny.vae, frames())
    next(stream)
    assert read == [0]
    next(stream)
    assert read == [0, 1, 2, 3, 4]


def test_posterior(torch, tiny):
    diffusers = pytest.importorskip("diffusers.models.autoencoders.vae")
    moments = np.random.default_rng(0).standard_normal((2, 3, 4, 6, 8)).astype(np.float32) * 40
    theirs = diffusers.DiagonalGaussianDistribution(channels_first(torch, moments))
    mean, logvar = np.split(moments, 2, axis=-1)
    ours = Posterior(jnp.asarray(mean), jnp.clip(logvar, -30, 20))
    close(ours.std, channels_last(theirs.std), 1e-6)
    # diffusers sums over three axes, for images; the fourth is time.
    close(ours.kl(), theirs.kl().sum(-1) if theirs.kl().ndim > 1 else theirs.kl(), 1e-6)
    noise = np.random.default_rng(1).standard_normal(mean.shape).astype(np.float32)
    np.testing.assert_allclose(ours.sample(noise=noise), mean + np.asarray(ours.std) * noise, rtol=1e-6)
    drawn = ours.sample(jax.random.key(0))
    assert drawn.shape == mean.shape and not np.array_equal(drawn, ours.sample(jax.random.key(1)))
    with pytest.raises(ValueError, match="either"):
        ours.sample()


def test_logvar_is_clamped(tiny):
    bias = jnp.zeros(2 * tiny.cfg.z_dim).at[tiny.cfg.z_dim].set(100.0).at[tiny.cfg.z_dim + 1].set(-100.0)
    vae = nnx.merge(tiny.graphdef, tiny.state)
    vae.quant_conv.bias = nnx.Param(bias)
    logvar = tiny.encode(inputs(1, tiny.cfg)[0], nnx.state(vae)).logvar
    assert (logvar[..., 0] == 20).all() and (logvar[..., 1] == -30).all()


def test_normalisation():
    cfg = WanVAEConfig.wan2_1()
    vae = nnx.eval_shape(lambda: WanVAE(cfg, rngs=nnx.Rngs(0)))
    latents = np.random.default_rng(0).standard_normal((1, 2, 3, 3, 16)).astype(np.float32)
    mean, std = np.array(cfg.latents_mean, np.float32), np.array(cfg.latents_std, np.float32)
    np.testing.assert_allclose(vae.normalise(latents), (latents - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(vae.denormalise(vae.normalise(latents)), latents, rtol=1e-5, atol=1e-6)
    assert vae.normalise(latents.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("case", ["mask_vae", "wan_vae_rgb"])
def test_golden(golden, case):
    meta = json.loads((golden / "flowrvs" / f"{case}.json").read_text())
    data = load_file(golden / "flowrvs" / f"{case}.safetensors")
    config = dict(meta["config"])
    config["out_channels"] = config.pop("out_channels_decoder")
    cfg = WanVAEConfig.from_upstream(config)
    weights = {key[2:].removeprefix("vae."): value for key, value in data.items() if key.startswith("w/")}
    vae = from_torch("wan_vae", weights, cfg)
    encode, decode = jax.jit(lambda x: vae.encode(x)), jax.jit(lambda z: vae.decode(z, clamp=False))
    latent = channels_last(data["in/latent"])
    outputs = {"tap/decode_unclamped": decode(latent)}
    outputs["decode"] = jnp.clip(outputs["tap/decode_unclamped"], -1, 1)
    if case == "mask_vae":
        posterior = encode(channels_last(data["in/video"]))
        outputs |= {"mean": posterior.mean, "logvar": posterior.logvar}
        outputs["latent_norm"] = vae.normalise(posterior.mean)
        mask = np.repeat(np.moveaxis(data["in/mask"], 2, -1), 3, axis=-1)
        outputs["mask_mode"] = encode(2 * mask - 1).mean
        outputs["mask_recon"] = jnp.clip(decode(outputs["mask_mode"]), -1, 1)
    else:
        outputs["one_frame_mean"] = encode(channels_last(data["in/one_frame"])).mean
    assert {f"out/{name}" for name in outputs} == {name for name in data if name.startswith("out/")}
    for name, output in outputs.items():
        # The recorded bar is 1e-4; the port is as near to the original as float32 is to float64 (2.5e-6).
        close(output, channels_last(data[f"out/{name}"]), RELATIVE, name)


def test_bfloat16_is_no_worse_than_torch(torch, tiny):
    """Mean error against float32; torch rounds the same places except inside the norms."""
    video, latents = inputs(5, tiny.cfg)
    half = torch_models.wan_vae(torch, tiny.cfg).to(torch.bfloat16)
    ours = from_torch("wan_vae", torch_models.tensors(tiny.torch), tiny.cfg, precision=BFLOAT16)
    with torch.no_grad():
        expected = half.encode(channels_first(torch, video).bfloat16()).latent_dist.mean.float()
        decoded = unclamped_decode(torch, half, channels_first(torch, latents).bfloat16()).float()
    mean = jax.jit(lambda x: ours.encode(x).mean)(video)
    output = jax.jit(lambda z: ours.decode(z, clamp=False))(latents)
    assert mean.dtype == output.dtype == jnp.bfloat16
    for name, reference, array, other in (
        ("mean", tiny.encode(video).mean, mean, expected),
        ("decode", tiny.decode(latents), output, decoded),
    ):
        ours_error = np.abs(np.asarray(array, np.float32) - reference).mean()
        their_error = np.abs(channels_last(other) - reference).mean()
        assert ours_error <= 1.25 * their_error, (name, ours_error, their_error)


@pytest.mark.parametrize("frames", [1, 9])
def test_flops_equal_those_that_torch_counts(torch, tiny, frames):
    from torch.utils.flop_counter import FlopCounterMode

    video, latents = (channels_first(torch, array[:1]) for array in inputs(frames, tiny.cfg))
    for ours, run in (
        (encode_flops(tiny.cfg, frames, 32, 48), lambda: tiny.torch.encode(video)),
        (decode_flops(tiny.cfg, latents.shape[2], 4, 6), lambda: tiny.torch.decode(latents)),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        # torch counts no attention on CPU.
        width = tiny.cfg.base_dim * tiny.cfg.dim_mult[-1]
        attention = 4 * latents.shape[2] * 24**2 * width
        counted = counter.get_total_flops()
        assert ours in (counted, counted + attention)


def test_bad_shapes_name_the_cure(tiny):
    with pytest.raises(ValueError, match="4n \\+ 1"):
        tiny.vae.encode(np.zeros((1, 4, 32, 32, 3)))
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny.vae.encode(np.zeros((1, 1, 30, 32, 3)))
    with pytest.raises(ValueError, match=r"\[B, T, H, W, 3\]"):
        tiny.vae.encode(np.zeros((1, 3, 1, 32, 32)))
    with pytest.raises(ValueError, match=r"\[B, t, h, w, 4\]"):
        tiny.vae.decode(np.zeros((1, 1, 4, 4, 16)))
    with pytest.raises(ValueError, match="chunk is 0"):
        tiny.vae.decode(np.zeros((1, 1, 4, 4, 4)), chunk=0)
    with pytest.raises(ValueError, match="2 frames into"):
        list(encode_stream(tiny.vae, [inputs(5, tiny.cfg)[0][:, :3]]))


def test_configs():
    assert WanVAEConfig.from_upstream({"temperal_downsample": [False, True, True], "dim_mult": [1, 2, 4, 4]}) == (
        WanVAEConfig.wan2_1()
    )
    with pytest.raises(ValueError, match="Wan 2.1"):
        WanVAEConfig.from_upstream({"is_residual": True})
    with pytest.raises(ValueError, match="unknown field 'base_dimm'"):
        WanVAEConfig.from_upstream({"base_dimm": 96})
    with pytest.raises(ValueError, match="z_dim = 4"):
        WanVAEConfig(z_dim=4)


@pytest.mark.slow
def test_real_widths(torch):
    cfg = WanVAEConfig.flowrvs()
    model = torch_models.wan_vae(torch, cfg)
    vae = from_torch("wan_vae", torch_models.tensors(model), cfg)
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 5, 16, 24, 3)).astype(np.float32)
    latents = rng.standard_normal((1, 2, 2, 3, 16)).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(channels_first(torch, video)).latent_dist.mean
        decoded = unclamped_decode(torch, model, channels_first(torch, latents))
    close(jax.jit(lambda x: vae.encode(x).mean)(video), channels_last(mean), RELATIVE)
    close(jax.jit(lambda z: vae.decode(z, clamp=False))(latents), channels_last(decoded), RELATIVE)
