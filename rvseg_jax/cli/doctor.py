"""`rvseg doctor`: what this machine has and what runs on it, with a cure for what does not."""

import argparse
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "pillow"),
    *("tokenizers", "safetensors", "ml_collections", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch"),
)
ENVIRONMENT = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "prores")
ENCODERS = ("libx264", "aac")
# (tokens, heads, head width) of self-attention in the published FlowRVS on a 17-frame clip, and of its text.
ATTENTION_CASES = {"video, 7,540 tokens": (7540, 12, 128), "text, 256 tokens": (256, 64, 64)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `rvseg doctor`."""
    parser.description = "Say what this machine has and what runs on it. Exit code 1 if something does not work."
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run `rvseg doctor` and return its exit code: 1 if there is a problem."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for section, found in report.items():
            if section != "problems":
                print(f"{section}:")
                for key, value in found.items():
                    print(f"  {key}: {_text(value)}")
        for problem in report["problems"]:
            print(f"PROBLEM  {problem}")
        if not report["problems"]:
            print("no problems found")
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """All findings as JSON-able values: sections, and a list of problems, each with its cure."""
    problems: list[str] = []
    return {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(problems),
        "memory settings": _memory_settings(),
        "attention": _attention(),
        "video": _video(problems),
        "compile cache": _compile_cache(problems),
        "problems": problems,
    }


def _versions() -> dict[str, str]:
    import rvseg_jax

    found = {"rvseg_jax": rvseg_jax.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "host memory": _gib(pages * size),
    }


def _devices(problems: list[str]) -> dict[str, Any]:
    import jax

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        problems.append(f"JAX finds no device: {' '.join(str(error).split())}; unset JAX_PLATFORMS")
        return {}
    found: dict[str, Any] = {"back end": jax.default_backend(), "count": len(devices)}
    for device in devices:
        stats = device.memory_stats() or {}
        limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use")
        memory = f", {_gib(limit)} for arrays, {_gib(used)} in use" if limit and used is not None else ""
        found[f"device {device.id}"] = f"{device.device_kind}{memory}"
    if jax.default_backend() == "cpu" and Path("/dev/nvidiactl").exists():
        problems.append(
            'there is an NVIDIA GPU but JAX runs on CPU: pip install "rvseg_jax[cuda12]" (or cuda13), '
            "and check JAX_PLATFORMS"
        )
    return found


def _memory_settings() -> dict[str, Any]:
    preallocate = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() not in ("0", "false")
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    found: dict[str, Any] = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    found["on a GPU JAX takes"] = f"{fraction} of its memory " + ("at the start" if preallocate else "as it grows")
    return found


def _attention() -> dict[str, str]:
    import jax
    import jax.numpy as jnp

    from rvseg_jax.ops.attention import chosen_backend
    from rvseg_jax.ops.attention.cudnn import probe

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    found = {}
    for name, (tokens, heads, width) in ATTENTION_CASES.items():
        array = jax.ShapeDtypeStruct((1, tokens, heads, width), dtype)
        backend, reason = chosen_backend(array, array, array)
        found[name] = f"{backend} ({reason})"
    found["cuDNN"] = f"no ({cause})" if (cause := probe()) else "works (forward and backward tried)"
    return found


def _video(problems: list[str]) -> dict[str, Any]:
    import av

    decoders = [name for name in DECODERS if _has_codec(name, "r")]
    encoders = [name for name in ENCODERS if _has_codec(name, "w")]
    if "h264" not in decoders:
        problems.append("PyAV cannot decode H.264: pip install --force-reinstall --only-binary=:all: av")
    if len(encoders) < len(ENCODERS):
        problems.append(
            "PyAV cannot write H.264 with sound, so there are no overlay videos: "
            "pip install --force-reinstall --only-binary=:all: av, or give --no-overlay"
        )
    return {
        "PyAV": av.__version__,
        "FFmpeg libraries": ".".join(map(str, av.library_versions["libavformat"])),
        "decodes": decoders,
        "encodes": encoders,
    }


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av
    from av.codec.codec import UnknownCodecError

    try:
        av.Codec(name, mode)
    except UnknownCodecError:
        return False
    return True


def _compile_cache(problems: list[str]) -> dict[str, Any]:
    from rvseg_jax.core import compile_cache

    folder = compile_cache.folder()
    if folder is None:
        return {"folder": f"off ({compile_cache.ENVIRONMENT}=off)"}
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        problems.append(f"the compile cache {folder} cannot be written to: set {compile_cache.ENVIRONMENT}")
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {
        "folder": str(folder),
        "programs": sum(path.name.endswith("-cache") for path in files),
        "size": _gib(sum(path.stat().st_size for path in files)),
        "free on disk": _gib(shutil.disk_usage(existing).free),
    }


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
