"""The toy part under a name of its own in the registry."""

import sys
from pathlib import Path

import pytest

from rvseg_jax.convert import registry

sys.path.insert(0, str(Path(__file__).parent))

import toy as toy_module


@pytest.fixture
def toy(monkeypatch):
    """The module with the toy model, registered as part "toy" and as system "toys"."""
    monkeypatch.setattr(registry, "PARTS", {**registry.PARTS, "toy": toy_module.PART})
    monkeypatch.setattr(registry, "SYSTEMS", {**registry.SYSTEMS, "toys": ("toy",)})
    return toy_module
