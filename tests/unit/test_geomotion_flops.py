"""Operations of Pi3 and GeoMotion: as XLA counts them, and as they follow from the published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rvseg_jax.models.geomotion.config import GeoMotionConfig
from rvseg_jax.models.geomotion.flops import flops, fusion_flops
from rvseg_jax.models.geomotion.model import GeoMotion
from rvseg_jax.models.pi3 import flops as pi3
from rvseg_jax.models.pi3.config import Pi3Config

GRID = (37, 37)


def test_published_sizes_on_32_frames():
    """In 10^12: encoder 32.5, decoder 39.8 + 4.5 within frames + 142.5 across, three decoders 20.9, fusion 1.22.

    The flow's convolutions take 1.59 on whole frames and 0.053 in windows.
    """
    cfg = Pi3Config.published()
    assert pi3.encoder_flops(cfg, 32, GRID) == pytest.approx(32.5e12, rel=0.01)
    assert pi3.decoder_flops(cfg, 32, GRID) == pytest.approx((39.8 + 4.5 + 142.5) * 1e12, rel=0.01)
    widths = (cfg.point_width, cfg.conf_width, cfg.camera_width)
    heads = sum(pi3.head_decoder_flops(cfg, 2 * cfg.width, width, 32, GRID) for width in widths)
    assert heads == pytest.approx(20.9e12, rel=0.01)
    windows, frames = (GeoMotionConfig(flow_windows=flag) for flag in (True, False))
    assert fusion_flops(windows, 32, GRID) == pytest.approx(1.272e12, rel=0.002)
    assert fusion_flops(frames, 32, GRID) == pytest.approx(2.806e12, rel=0.002)


@pytest.mark.parametrize("windows", [True, False])
def test_operations_as_xla_counts_them(windows):
    cfg = GeoMotionConfig.tiny()
    wide = {"encoder": dataclasses.replace(cfg.pi3.encoder, embed_dim=256), "head_width": 256, "depth": 2}
    narrow = {"heads_from": (0, 1), "head_depth": 1, "point_width": 256, "conf_width": 256, "camera_width": 128}
    cfg = dataclasses.replace(cfg, pi3=dataclasses.replace(cfg.pi3, **wide, **narrow), low_blocks=(0, 1))
    cfg = dataclasses.replace(cfg, feature_width=512, flow_windows=windows, flow_channels=(32, 64, 128))
    graph, state = nnx.split(nnx.eval_shape(lambda: GeoMotion(cfg, rngs=nnx.Rngs(0))))
    video, flow = (jax.ShapeDtypeStruct((1, 2, 112, 112, *more), jnp.float32) for more in ((3,), ()))

    @jax.jit
    def forward(state, video, flow):
        return nnx.merge(graph, state)(video, flow, mode="unroll").logits

    counted = forward.lower(state, video, flow).cost_analysis()["flops"]
    assert flops(cfg, 2, 112, 112) == pytest.approx(counted, rel=0.05)
