"""Parameters of models as nested plain dicts: initialised, read from earlier work, placed."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvseg_jax.core import tree_paths
from rvseg_jax.core.errors import InputError
from rvseg_jax.core.precision import Precision
from rvseg_jax.parts import bundle
from rvseg_jax.zoo import resolve

Params = dict[str, Any]


def initialised(model: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """Parameters of a new model."""
    return nnx.to_pure_dict(nnx.state(model(nnx.Rngs(params=key))))


def graph_of(model: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """What `nnx.merge` needs to make the model of its parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: model(nnx.Rngs(params=0))))


def assembled(model: Callable[[nnx.Rngs], nnx.Module], params: Params) -> nnx.Module:
    """The model with these parameters.

    Raises:
      InputError: if some are missing, as the frozen ones are in a checkpoint of the trained ones.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(params=0))))
    missing = tree_paths.flatten(nnx.to_pure_dict(state)).keys() - tree_paths.flatten(params).keys()
    if missing:
        raise InputError(
            f"{len(missing)} parameters are missing, {min(missing)} among them: train with checkpoint.save_frozen=true"
        )
    return nnx.merge(graph, params)


def read(folder: str | Path, part: str, precision: Precision, target: Params | None = None) -> Params:
    """Parameters of a part, from the export of an earlier stage or from a converted checkpoint.

    Args:
      folder: a folder of `bundle.save` ("zoo/..." is bundled), or one of `rvseg convert`.
      part: its name, such as "wan_dit".
      precision: number formats of the parameters.
      target: `jax.ShapeDtypeStruct` leaves; a converted checkpoint is read straight onto their shardings.

    Raises:
      InputError: if the folder is neither, or lacks the part.
    """
    folder = resolve(folder)
    if bundle.is_bundle(folder):
        return nnx.to_pure_dict(nnx.state(bundle.load_part(folder, part, precision)))
    from rvseg_jax.convert.manifest import NAME
    from rvseg_jax.convert.store import load_part

    if not (folder / NAME).is_file():
        raise InputError(f"{folder} holds neither an export of a training stage nor a converted checkpoint")
    if target is None:
        return nnx.to_pure_dict(nnx.state(load_part(folder, part, precision=precision)))
    # Leaves that are not wanted, such as a decoder to be trained anew, go to the first device and are dropped.
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places: dict[str, Any] = defaultdict(lambda: first)
    places |= {path: leaf.sharding for path, leaf in tree_paths.flatten(target).items()}
    return nnx.to_pure_dict(nnx.state(load_part(folder, part, precision=precision, shardings=places)))


def fingerprint(folder: str | Path, part: str) -> str:
    """What tells the weights of a part from others: a hash of the file, or of the manifest's record of it."""
    folder = resolve(folder)
    if bundle.is_bundle(folder):
        return bundle.fingerprint(folder, part)
    from rvseg_jax.convert import store
    from rvseg_jax.convert.manifest import read_manifest

    record = store.part_record(folder, read_manifest(folder), part)
    return hashlib.sha256(repr(record).encode()).hexdigest()


def on_one_device(shapes: Params) -> Params:
    """Shapes of parameters with the first device as their place, as `place_matching` wants its target."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first), shapes)


def filled(given: Params, target: Params) -> Params:
    """`given` with zeros for what it lacks of `target`, whose leaves are `jax.ShapeDtypeStruct`."""
    return {
        key: filled(given.get(key, {}), leaf)
        if isinstance(leaf, dict)
        else given.get(key, jnp.zeros(leaf.shape, leaf.dtype))
        for key, leaf in target.items()
    }


def place_matching(given: Params, target: Params, *, but: str = "(?!)", path: str = "") -> Params:
    """`given` leaf by leaf in the dtype and on the sharding of `target`; keys keep their types.

    Args:
      given, target: nested dicts; `target` holds `jax.ShapeDtypeStruct`, for the leaves that are wanted.
      but: path regex of leaves that are left out.
      path: where these dicts lie in the whole tree, with a final "/".

    Raises:
      ValueError: if a leaf of `given` has another shape than its counterpart.
    """
    placed: Params = {}
    for key, value in given.items():
        where, wanted = f"{path}{key}", target.get(key)
        if wanted is None or re.search(but, where):
            continue
        if isinstance(value, Mapping):
            if branch := place_matching(value, wanted, but=but, path=f"{where}/"):  # type: ignore[arg-type]
                placed[key] = branch
            continue
        if wanted.shape != value.shape:
            raise ValueError(
                f"pretrained {where} has shape {value.shape}, the recipe's model {wanted.shape}: use its config"
            )
        placed[key] = jax.device_put(jnp.asarray(value, wanted.dtype), wanted.sharding)
    return placed
