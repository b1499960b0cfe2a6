"""How much memory is free for arrays on the first device of this process, and how much the process has taken."""

import os
import resource
import sys
from pathlib import Path


def free_bytes() -> int:
    """Free bytes of the first device; on CPU those of the host, within the limit of its container."""
    import jax

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform != "cpu" and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    free = _host_available()
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def peak_resident_bytes() -> int:
    """The most host memory that this process has held at once."""
    # Not `ru_maxrss` on Linux: a process inherits that of the one that started it.
    peak = _field("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _host_available() -> int:
    available = _field("/proc/meminfo", "MemAvailable")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if available is None else available


def _field(path: str, name: str) -> int | None:
    """Bytes of a field of a file of Linux's /proc; None on other systems."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _number(path: str) -> int | None:
    """The number in a file; None where there is no such file or it says "max"."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
