"""What a part's golden cases may contain and who runs them: kinds, their config fields, and the registry."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rvseg_jax.core.errors import InputError, NotAvailable
from rvseg_jax.parity.compare import Produced
from rvseg_jax.parity.golden import Case

_PARTS = {
    "flowrvs": "rvseg_jax.parity.flowrvs",
    "geomotion": "rvseg_jax.parity.geomotion",
    "losses": "rvseg_jax.parity.losses",
    "metrics_davis": "rvseg_jax.parity.metrics_davis",
    "mllmseg": "rvseg_jax.parity.mllmseg",
    "pi3": "rvseg_jax.parity.pi3",
    "raft_large": "rvseg_jax.parity.raft",
    "sam2": "rvseg_jax.parity.sam2",
    "xmem": "rvseg_jax.parity.xmem",
}


@dataclass(frozen=True)
class Fields:
    """Config fields that a kind knows.

    Attributes:
      build: fields that build the model.
      call: fields that belong to the call.
      ignored: fields that say nothing new, such as the shapes of inputs.
      nested: fields that are objects, with the fields that these may have.
    """

    build: frozenset[str] = frozenset()
    call: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    nested: Mapping[str, "Fields"] = field(default_factory=dict)

    def check(self, config: Mapping[str, Any], where: str = "config") -> None:
        """Raise InputError for a field that this kind does not know, or an object that is none."""
        known = self.build | self.call | self.ignored | self.nested.keys()
        unknown = sorted(set(config) - known)
        if unknown:
            raise InputError(
                f"{where} has the field {unknown[0]!r}, which this kind does not know; it knows: "
                + ", ".join(sorted(known))
            )
        for name, fields in self.nested.items():
            if name in config:
                if not isinstance(config[name], Mapping):
                    raise InputError(f"{where}.{name} must be an object, not {config[name]!r}")
                fields.check(config[name], f"{where}.{name}")


@dataclass(frozen=True)
class TorchSide:
    """How a torch model of a kind is run and watched when a case is recorded.

    Attributes:
      call: (model, {input: tensor}, watch) -> {output: tensor}, with the arguments of the original; modules that run
        under `watch.paused()` give no taps.
      taps: pattern of a torch module's path -> tap name that its output is kept under; groups as in `re.sub`.
        The output of a module that runs several times is joined along axis 2, time in the original's layout.
      inputs: inputs that `call` takes.
    """

    call: Callable[[Any, Mapping[str, Any], Any], Mapping[str, Any]]
    inputs: tuple[str, ...]
    taps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One sort of golden case of a part: how it is run here, and how it is recorded from torch (None: it is not)."""

    run: Callable[[Case], Produced]
    fields: Fields
    torch: TorchSide | None = None


def parts() -> list[str]:
    """Parts whose golden cases this library can run."""
    return sorted(_PARTS)


def kinds(part: str) -> Mapping[str, Kind]:
    """The kinds of a part by name.

    Raises:
      NotAvailable: if the library does not have the part.
    """
    if part not in _PARTS:
        raise NotAvailable(f"this library has no part {part!r} yet; it has {', '.join(parts())}")
    return importlib.import_module(_PARTS[part]).KINDS


def kind_of(part: str, kind: str) -> Kind:
    """The kind of a part.

    Raises:
      NotAvailable: if the library does not have the part or the kind.
    """
    known = kinds(part)
    if kind not in known:
        raise NotAvailable(f"part {part!r} has no kind {kind!r} in this library; it has {', '.join(known)}")
    return known[kind]


def run(case: Case) -> Produced:
    """Compute what `case` asks for with this library's code.

    Raises:
      NotAvailable: if the library does not have the part or the kind.
      InputError: for a config field that the kind does not know or lacks, or a case that it cannot build.
    """
    kind = kind_of(case.part, case.kind)
    try:
        kind.fields.check(case.config)
        return kind.run(case)
    except (ValueError, KeyError) as error:
        raise InputError(f"{case.path} cannot be run: {error}") from error
