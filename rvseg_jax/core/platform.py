"""The kind of device that a program is being traced for."""

from typing import Literal

import jax

Platform = Literal["cpu", "gpu", "tpu"]


def target_platform() -> Platform:
    """ "cpu", "gpu" or "tpu": that of the mesh in use, else that of the default device.

    A mesh may be of devices that are not here (a pod that is only compiled for), so it is asked first.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform
