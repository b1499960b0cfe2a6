"""What a mask is made of, for back ends that know some masks by name and cannot ask block by block."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from rvseg_jax.ops.attention.masks import Both, Causal, Full, Lengths, Mask, Segments, Window


@dataclass(frozen=True)
class Form:
    """A mask without its arrays.

    Attributes:
      names: of the masks that are joined, without `Full`; a `Causal` whose offset is an array counts as
        "Causal with an array".
      left, right: query i sees keys i-left..i+right at most, None without a bound; of all joined masks whose
        bounds are known when the call is traced.
    """

    names: tuple[str, ...] = ()
    left: int | None = None
    right: int | None = None

    def others(self, *known: str) -> str | None:
        """Why a back end that knows only the masks `known` cannot take this one; None where it can."""
        for name in self.names:
            if name not in known:
                return f"it knows {_listed(('Full', *known))} masks, not {name}"
            if self.names.count(name) > 1 and name not in ("Causal", "Window"):
                return f"two {name} masks are joined"
        return None

    def sees(self, q_len: int, kv_len: int) -> np.ndarray:
        """Bool [Tq], whether a query has any key within its bounds."""
        rows = np.arange(q_len)
        first = 0 if self.left is None else np.maximum(rows - self.left, 0)
        last = kv_len - 1 if self.right is None else np.minimum(rows + self.right, kv_len - 1)
        return np.broadcast_to(first <= last, (q_len,))


@dataclass(frozen=True)
class Arrays:
    """The arrays of a mask whose form has at most one of each; None where it has none."""

    lengths: jax.Array | None = None
    segments: Segments | None = None


def form_of(mask: Mask) -> Form:
    """The form of a mask."""
    names, left, right = [], None, None
    for part in _parts(mask):
        if isinstance(part, Full):
            continue
        band: tuple[int | None, int | None] = (None, None)
        if isinstance(part, Causal):
            known = isinstance(part.offset, (int, np.integer))
            names.append("Causal" if known else "Causal with an array")
            band = (None, int(part.offset) if known else None)
        else:
            names.append(type(part).__name__)
        if isinstance(part, Window):
            band = (part.left, part.right)
        left, right = _smaller(left, band[0]), _smaller(right, band[1])
    return Form(tuple(names), left, right)


def arrays_of(mask: Mask) -> Arrays:
    """The arrays of a mask; `Form.others` has said that there is at most one of each kind."""
    parts = _parts(mask)
    lengths = next((jnp.asarray(part.lengths, jnp.int32) for part in parts if isinstance(part, Lengths)), None)
    return Arrays(lengths, next((part for part in parts if isinstance(part, Segments)), None))


def _parts(mask: Mask) -> tuple[Mask, ...]:
    return (*_parts(mask.first), *_parts(mask.second)) if isinstance(mask, Both) else (mask,)


def _smaller(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else min(a, b)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
