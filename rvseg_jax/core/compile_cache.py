"""The persistent compile cache, which command line tools and training switch on: a second run starts at once."""

import os
import sys
from pathlib import Path

ENVIRONMENT = "RVSEG_CACHE_DIR"


def folder() -> Path | None:
    """Where compiled programs are kept: `$RVSEG_CACHE_DIR`, JAX's own setting, else `~/.cache/rvseg_jax`.

    None if `RVSEG_CACHE_DIR` is "off".
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).expanduser() / "jax"
    if kept := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(kept)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "rvseg_jax" / "jax"


def enable() -> Path | None:
    """Switch the cache on for programs that take more than half a second to compile; return its folder.

    It works before and after JAX is imported, and does not import it.
    """
    path = folder()
    if path is None:
        return None
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    else:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    return path
