"""What planning knows of GeoMotion: a batch of its motion stage, and what a step of it does."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rvseg_jax.core.config import ConfigError
from rvseg_jax.layers.stack import Remat
from rvseg_jax.models.geomotion.flops import flops, fusion_flops
from rvseg_jax.models.pi3 import flops as pi3
from rvseg_jax.models.raft.config import STRIDE
from rvseg_jax.models.raft.flops import clip_flops
from rvseg_jax.ops.correlation import pair_bytes
from rvseg_jax.planning.step import PlannedStep
from rvseg_jax.planning.systems import Cuts, Sample, trained_part
from rvseg_jax.planning.work import KERNEL_PRODUCTS, Blocks, Work, kernel_of, samples_of, whole_bytes
from rvseg_jax.systems.geomotion import motion_cache
from rvseg_jax.systems.geomotion.training import MotionTrainingConfig

TASK = "geomotion.motion"
RECIPE = "geomotion"
# Arrays of a block at once for a token: residual, normalised, queries, keys, values and the output, in units of the
# width; both sides of the activation in units of the feed-forward.
_WIDTHS, _FEEDFORWARDS = 6, 2


def resize(config: ConfigDict, *, size: str | None, frames: int | None) -> None:
    """Sets the frames of a recipe's clips."""
    if size is not None:
        raise ConfigError(f"size {size!r}: GeoMotion has one published size, leave the option out")
    if frames is not None:
        config.frames = frames


def sample(own: MotionTrainingConfig) -> Sample:
    """A clip."""
    return Sample("clips", f"clips of {own.frames} frames at {own.size}x{own.size}")


def batch(own: MotionTrainingConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch as `MotionRow` or the cache makes them."""
    shape, cfg = (rows, own.frames, own.size, own.size), own.geomotion.pi3
    array = jax.ShapeDtypeStruct
    arrays = {"masks": array(shape, jnp.bool_), "valid": array(shape, jnp.bool_)}
    if own.cache:
        arrays["flow"] = array(shape, jnp.float16)
    if not (own.cache and own.cache_features):
        return arrays | {"frames": array((*shape, 3), jnp.uint8)}
    blocks = (len(cfg.heads_from) * cfg.width, len(own.geomotion.low_blocks) * cfg.width, cfg.camera_width)
    features = zip(motion_cache.FEATURES, blocks, strict=True)
    return arrays | {name: array((*shape[:2], _tokens(own), width), jnp.float16) for name, width in features}


def parts(step: PlannedStep) -> dict[str, str]:
    """Whether flow, geometry and motion are in the step and trained."""
    trained, frozen = step.target.params, step.target.frozen
    network, rest = trained.get("geomotion", {}), frozen.get("geomotion", {})
    found = {
        "raft": trained_part(trained.get("raft", {}), frozen.get("raft", {})),
        "pi3": trained_part(network.get("pi3", {}), rest.get("pi3", {})),
        "motion_aware_decoder": trained_part(
            network.get("motion_aware_decoder", {}), rest.get("motion_aware_decoder", {})
        ),
    }
    if "flow" in step.batch:
        found["raft"] = "not in the step: its flow is cached on disk"
    return found


def cuts(own: MotionTrainingConfig) -> Cuts:
    """Heads, and the frames, which lie on the devices along seq."""
    return Cuts(math.gcd(own.geomotion.pi3.num_heads, own.geomotion.pi3.head_heads), own.frames)


def work(step: PlannedStep, sizes: Mapping[str, int]) -> Work:
    """Flow and geometry forward; fusion and motion decoder forward and backward."""
    own: MotionTrainingConfig = step.own
    cfg, samples, itemsize = own.geomotion.pi3, samples_of(step, sizes), step.itemsize
    encoder, decoder, camera = (_blocks(step, sizes, depth) for depth in (cfg.encoder.depth, cfg.depth, cfg.head_depth))
    motion = _blocks(step, sizes, cfg.head_depth, remat=own.remat)
    # What the fusion reads: both of the pairs' buffers, and their outputs side by side.
    places = len({block // 2 for block in (*cfg.heads_from, *own.geomotion.low_blocks)})
    taps = (2 * places + len(cfg.heads_from) + len(own.geomotion.low_blocks)) * decoder.between
    pairs = 0
    if "flow" not in step.batch:
        pairs = 2 * samples * (own.frames - 1) * _pair_bytes(own)
    pixels = samples * own.frames * own.size * own.size * 4
    frozen = whole_bytes(step.target.frozen.get("geomotion", {}))
    flops = _flops(step, kernel_of(sizes))
    return Work(
        flops=flops,
        # Pairs of frames are cut over data and fsdp alone.
        repeated={"flow": "find the flow of the same clips"} if flops["flow"] else {},
        temporaries=pixels + max(taps + decoder.widest, taps + motion.kept + motion.widest, taps + pairs),
        runs=(encoder, decoder, camera, motion),
        gathers=2 + (own.remat == "full"),
        read=(frozen + whole_bytes(step.target.frozen.get("raft", {}))) / sizes["tensor"],
        gathered=frozen / sizes["tensor"],
        # Every update reads the correlations.
        traffic=2 * pairs * own.raft.num_flow_updates + 8 * pixels * itemsize,
    )


def _pair_bytes(own: MotionTrainingConfig) -> int:
    """Bytes of the correlations of a pair of frames, float32 in the chip's tiles of 8 by 128: three times the numbers.

    Those of one pair in excess of `corr_max_bytes` are found when they are read.
    """
    side, levels, lookup = math.ceil(own.size / STRIDE), own.raft.corr_block_num_levels, own.raft.corr_lookup
    if lookup == "on_demand" or (lookup == "auto" and pair_bytes(side, side, levels) > own.raft.corr_max_bytes):
        return 0
    sides = [side >> level for level in range(levels)]
    return 4 * side * side * sum(-(-one // 8) * 8 * -(-one // 128) * 128 for one in sides)


def _tokens(own: MotionTrainingConfig) -> int:
    """Tokens of a frame."""
    cfg = own.geomotion.pi3
    return (own.size // cfg.patch_size) ** 2 + cfg.register_tokens


def _blocks(step: PlannedStep, sizes: Mapping[str, int], layers: int, *, remat: Remat | None = None) -> Blocks:
    """A run of blocks over all frames; encoder, decoder and heads are of about one width."""
    own: MotionTrainingConfig = step.own
    cfg = own.geomotion.pi3
    hidden = int(cfg.width * cfg.mlp_ratio)
    return Blocks(
        layers=layers,
        tokens=samples_of(step, sizes) * own.frames * _tokens(own) // sizes["seq"],
        width=cfg.width,
        whole=_WIDTHS * cfg.width,
        cut=_FEEDFORWARDS * hidden,
        itemsize=step.itemsize,
        tensor=sizes["tensor"],
        largest=cfg.width * hidden,
        remat=remat,
    )


def _flops(step: PlannedStep, kernel: str) -> dict[str, int]:
    own: MotionTrainingConfig = step.own
    cfg, pi3_cfg, side = own.geomotion, own.geomotion.pi3, own.size // own.geomotion.pi3.patch_size
    grid = (side, side)
    fusion = fusion_flops(cfg, own.frames, grid)
    decoder = pi3.head_decoder_flops(pi3_cfg, cfg.feature_width, pi3_cfg.conf_width, own.frames, grid)
    head = 2 * own.frames * own.size * own.size * pi3_cfg.conf_width
    tokens = own.frames * _tokens(own)
    blocks = pi3_cfg.head_depth * pi3.block_flops(pi3_cfg.head_width, pi3_cfg.head_mlp_ratio, tokens, _tokens(own))
    product = 2 * pi3_cfg.head_depth * tokens * _tokens(own) * pi3_cfg.head_width
    again = {"none": 0, "full": blocks, "dots": 2 * product}[own.remat]
    motion = fusion + decoder + head
    of_one = {
        "flow": 0 if "flow" in step.batch else clip_flops(own.raft, own.frames, own.size, own.size),
        "geometry": flops(cfg, own.frames, own.size, own.size) - motion if "frames" in step.batch else 0,
        "motion_forward": motion,
        "motion_backward": 2 * motion,
        "recomputed": again + KERNEL_PRODUCTS[kernel] * product,
    }
    return {name: step.settings.batch_size * count for name, count in of_one.items()}
