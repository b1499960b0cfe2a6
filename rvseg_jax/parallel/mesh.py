"""Device meshes with the axes data, fsdp, seq and tensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import jax

AXES = ("data", "fsdp", "seq", "tensor")


@dataclass(frozen=True)
class MeshShape:
    """Number of devices along each mesh axis; -1, on one axis at most, takes all devices that are left.

    Attributes:
      data: copies of the whole model, each with its own part of the batch.
      fsdp: parts of the batch that also share out the parameters among them.
      seq: parts of a long token sequence.
      tensor: parts of each weight matrix.
    """

    data: int = 1
    fsdp: int = -1
    seq: int = 1
    tensor: int = 1

    def resolve(self, devices: int) -> "MeshShape":
        """The same shape with -1 replaced, for this number of devices.

        Raises:
          ValueError: if a size is neither -1 nor positive, if two are -1, or if the product is not `devices`.
        """
        sizes = asdict(self)
        written = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        if any(size < 1 and size != -1 for size in sizes.values()):
            raise ValueError(f"mesh {written}: sizes must be 1 or more, or -1 for the devices that are left")
        open_axes = [axis for axis, size in sizes.items() if size == -1]
        if len(open_axes) > 1:
            raise ValueError(f"mesh {written}: only one axis may be -1")
        known = math.prod(size for size in sizes.values() if size != -1)
        if open_axes and devices % known == 0:
            return replace(self, **{open_axes[0]: devices // known})
        if known != devices or open_axes:
            need = f"a multiple of {known}" if open_axes else str(known)
            raise ValueError(f"mesh {written} needs {need} devices but there are {devices}: change one axis")
        return self


def make_mesh(
    shape: MeshShape | Mapping[str, int] = MeshShape(),
    *,
    devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
    """Mesh of all devices, or of `devices`, with the axes data, fsdp, seq, tensor in this order.

    The axes are of type Auto: the compiler propagates shardings from parameters, batches and `constrain`.

    Args:
      shape: sizes of the axes; a mapping may leave out axes of size 1, and fsdp, which then takes the rest
        unless another axis is -1.

    Raises:
      ValueError: for an unknown axis, or sizes that do not fit the number of devices.
    """
    if not isinstance(shape, MeshShape):
        known = [field.name for field in fields(MeshShape)]
        if unknown := sorted(set(shape) - set(known)):
            raise ValueError(f"unknown mesh axis {unknown[0]!r}: the axes are {', '.join(known)}")
        fill = -1 if -1 not in shape.values() else 1
        shape = MeshShape(**{"fsdp": fill, **shape})
    devices = jax.devices() if devices is None else list(devices)
    sizes = tuple(asdict(shape.resolve(len(devices))).values())
    return jax.make_mesh(sizes, AXES, (jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)


def platform() -> str:
    """Platform ("cpu", "gpu", "tpu") of the mesh in use, whose devices may be elsewhere, else of the default device."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name
