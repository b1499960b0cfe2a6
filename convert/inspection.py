"""Describes weight files and converted folders, for people and for programs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from rvseg_jax.convert import manifest as manifests
from rvseg_jax.convert import registry
from rvseg_jax.convert.fit import fit
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import Checkpoint, open_checkpoint, strip_prefixes
from rvseg_jax.convert.tensors import Tensors


def is_converted(path: epath.PathLike) -> bool:
    """Whether a path is a folder that `rvseg convert` made."""
    return (epath.Path(path) / manifests.NAME).exists()


def describe_folder(folder: epath.PathLike) -> dict[str, Any]:
    """The manifest of a converted folder as JSON values."""
    return manifests.read_manifest(folder).to_json()


def describe_weights(path: str | Path) -> dict[str, Any]:
    """Keys, shapes and number formats of a torch checkpoint, and the parts that it fits, as JSON values.

    Raises:
      ConversionError: if it cannot be read.
    """
    checkpoint = open_checkpoint(path)
    return {
        "files": [str(file) for file in checkpoint.files],
        "prefix": checkpoint.prefix,
        "ema": None if checkpoint.shadow is None else len(checkpoint.shadow),
        "fits": [found for part in registry.PARTS.values() if (found := _fitting(part, checkpoint)) is not None],
        "tensors": {
            key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in checkpoint.tensors.items()
        },
    }


def _fitting(part: registry.Part, checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors, prefix = strip_prefixes(checkpoint.tensors, part.prefixes)
    stripped = Checkpoint(Tensors(tensors), checkpoint.shadow, checkpoint.files, checkpoint.upstream, prefix)
    try:
        found = fit(part, stripped)
    except ConversionError:
        return None
    return {"part": part.name, "config": manifests.config_fields(found.config), "licence": part.licence}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A description as lines of text."""
    if "parts" in found:
        yield f"converted checkpoint of {found['system'] or 'parts'}"
        for name, part in found["parts"].items():
            yield f"{name}: {len(part['leaves'])} leaves in {part['dtype']}; licence of the weights: {part['licence']}"
            for path, leaf in part["leaves"].items():
                yield f"  {path}  {_shape(leaf['shape'])}  {leaf['dtype']}"
        return
    for key, tensor in found["tensors"].items():
        yield f"{found['prefix']}{key}  {_shape(tensor['shape'])}  {tensor['dtype']}"
    if found["ema"] is not None:
        yield f"and an EMA list of {found['ema']} tensors without names"
    for fitting in found["fits"]:
        yield f"fits {fitting['part']}; licence of the published weights: {fitting['licence']}"
    if not found["fits"]:
        yield "fits no published size of " + ", ".join(registry.PARTS)


def _shape(shape: list[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
