"""Bundled tiny weights: safetensors under upstream's keys, loaded through the conversion tables."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def resolve(path: str | Path) -> Path:
    """`path`, or the bundled file that "zoo/..." names."""
    parts = Path(path).parts
    return FOLDER.joinpath(*parts[1:]) if parts and parts[0] == "zoo" else Path(path)
