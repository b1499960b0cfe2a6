"""Parameter paths: nested dicts as flat dicts under names like `blocks/attn1/to_q/kernel`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

SEPARATOR = "/"


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flat view of a nested mapping.

    Args:
      tree: nested mappings; every value that is no mapping is a leaf.
      prefix: path that stands in front of all others.

    Returns:
      {path: leaf}, paths joined by "/", in the order of the tree.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{SEPARATOR}{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict of a flat one; the inverse of `flatten` for string keys.

    Raises:
      ValueError: if one path is the beginning of another, so that a name would be leaf and branch at once.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, name = path.split(SEPARATOR)
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} runs through a leaf at {branch!r}")
        if name in node:
            raise ValueError(f"path {path!r} is there twice, or is also a branch")
        node[name] = leaf
    return tree


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any of the regular expressions is found in `path`."""
    return any(re.search(pattern, path) for pattern in patterns)
