"""Settings shared by all tests: CPU, a persistent compile cache, one torch thread a worker."""

import os
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import pytest  # noqa: E402
from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with outputs of the original implementations."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with real clips beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real clips are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def torch():
    """PyTorch with one thread, so that two pytest workers do not fight for the cores."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def write_clip():
    """A function that writes a small H.264 clip: a bright square that moves over a dark ground."""
    import av
    import numpy as np

    def write(path, *, times=range(8), time_base=Fraction(1, 25), size=(48, 64), audio=None, options=None):
        height, width = size
        with av.open(str(path), "w", options=options or {}) as container:
            video = container.add_stream("libx264", rate=1 / time_base, options={"bf": "0", "crf": "12"})
            video.height, video.width, video.pix_fmt = height, width, "yuv420p"
            video.time_base = video.codec_context.time_base = time_base
            if audio:
                sound = container.add_stream(audio, rate=16000)
                sound.layout = "mono"
            for index, time in enumerate(times):
                image = np.full((height, width, 3), 30, np.uint8)
                image[8:24, 4 + 2 * index : 20 + 2 * index] = (220, 40, 40)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = time, time_base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if audio:
                samples = np.sin(np.arange(int(16000 * (max(times) + 1) * time_base)) / 20)
                wave = av.AudioFrame.from_ndarray((samples * 8000).astype(np.int16)[None], format="s16", layout="mono")
                wave.sample_rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
                context = sound.codec_context
                resampler = av.AudioResampler(
                    format=context.format, layout="mono", rate=16000, frame_size=context.frame_size or 1024
                )
                for piece in [*resampler.resample(wave), *resampler.resample(None)]:
                    container.mux(sound.encode(piece))
                container.mux(sound.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def random_leaves():
    """A function that fills a tree of shapes with random numbers, matrices scaled by their inputs.

    Leaves called `var` are variances and come out positive. Running a model's own initialisers makes XLA compile a
    program for every shape.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    def fill(abstract, seed=0):
        rng = np.random.default_rng(seed)

        def values(path, leaf):
            inputs = np.prod(leaf.shape[-4:-1]) if len(leaf.shape) > 1 else 100
            drawn = rng.standard_normal(leaf.shape) / np.sqrt(inputs)
            if "['var']" in jax.tree_util.keystr(path):
                drawn = 0.5 + np.abs(drawn)
            return jnp.asarray(drawn, leaf.dtype)

        return jax.tree_util.tree_map_with_path(values, abstract)

    return fill
