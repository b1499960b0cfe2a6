"""From the words of a command line to the sources of each part."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvseg_jax.convert import registry, tokenizer_files
from rvseg_jax.convert.converter import Source
from rvseg_jax.convert.manifest import config_from
from rvseg_jax.convert.plan import ConversionError
from rvseg_jax.convert.sources import read_json
from rvseg_jax.core.precision import FLOAT32

WEIGHTS = ("auto", "ema", "model")


@dataclass(frozen=True)
class Request:
    """What is to be converted.

    Attributes:
      sources: {part name: source}.
      system: the system that the parts make up, or None.
      tokenizer: what `tokenizer_files.read` reads, if something was found or given.
    """

    sources: Mapping[str, Source]
    system: str | None
    tokenizer: Path | None


def request(
    name: str,
    words: Sequence[str],
    *,
    weights: Sequence[str] = (),
    configs: Sequence[str] = (),
    tokenizer: Path | None = None,
) -> Request:
    """The sources of a part or a system.

    Args:
      name: a part or a system.
      words: for a part its files; for a system `PART=PATH` for single parts, and folders of a whole
        diffusers pipeline (`transformer/`, `vae/`, `text_encoder/`, `tokenizer/`) for the others.
      weights: "auto", "ema" or "model", for all parts or as `PART=...`.
      configs: JSON files with a configuration, for the one part or as `PART=...`.
      tokenizer: in place of the one that the folders hold.

    Raises:
      ConversionError: if a part has no source, or a word fits no part.
    """
    system = name if name in registry.SYSTEMS else None
    needed = registry.SYSTEMS[name] if system else (registry.part(name).name,)
    names = needed + registry.OPTIONAL.get(name, ())
    sources = gather(names, words)
    if not system:
        sources = {name: sources.get(name, ())}
    absent = [part for part in needed if not sources.get(part)]
    if absent:
        raise ConversionError(
            f"{name} has no weights for {', '.join(absent)}: give {absent[0]}=PATH, or a folder of the whole pipeline"
        )
    names = tuple(part for part in names if sources.get(part))
    chosen, given = _by_part(weights, names), _by_part(configs, names)
    for choice in chosen.values():
        if choice not in WEIGHTS:
            raise ConversionError(f"weights {choice!r}: choose one of {', '.join(WEIGHTS)}")
    made = {part: Source(sources[part], chosen.get(part, "auto"), _config(part, given.get(part))) for part in names}
    readers = [part for part in names if registry.part(part).reads_text]
    places = [Path(word) for word in _plain(words)] + [path for part in readers for path in sources[part]]
    found = tokenizer or next(filter(None, map(tokenizer_files.find, places)), None)
    if system and found is None and readers:
        raise ConversionError(f"{name}: no {tokenizer_files.TOKENIZER} lies beside {readers[0]}; give --tokenizer PATH")
    return Request(made, system, found)


def gather(names: Sequence[str], words: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """{part name: paths} of those parts that the words name, or that lie in the pipeline folders given.

    Raises:
      ConversionError: if a plain path can belong to several parts.
    """
    words = list(words)
    named: dict[str, list[Path]] = {}
    for part, path in _marked(words):
        if part not in names:
            raise ConversionError(f"{part}={path}: {part} is not one of {', '.join(names)}")
        named.setdefault(part, []).append(Path(path))
    lying: dict[str, list[Path]] = {}
    for word in _plain(words):
        folder = Path(word)
        inside = {part: folder / registry.part(part).folder for part in names if registry.part(part).folder}
        inside = {part: place for part, place in inside.items() if place.is_dir()}
        if not inside and len(names) > 1:
            raise ConversionError(f"{word}: which part is it? Write {names[0]}={word}, or {' or '.join(names[1:])}")
        for part, place in (inside or {names[0]: folder}).items():
            lying.setdefault(part, []).append(place)
    return {part: tuple(paths) for part, paths in {**lying, **named}.items()}


def _marked(words: Iterable[str]) -> list[tuple[str, str]]:
    """(part, path) of the words `PART=PATH`."""
    pairs = (word.split("=", 1) for word in words if "=" in word)
    return [(part, path) for part, path in pairs if part in registry.PARTS]


def _plain(words: Iterable[str]) -> list[str]:
    """The words that name no part."""
    return [word for word in words if not _marked([word])]


def _by_part(values: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    made: dict[str, str] = {}
    for value in _plain(values):
        made |= {name: value for name in names}
    return made | dict(_marked(values))


def _config(name: str, path: str | None) -> Any:
    if path is None:
        return None
    part, content = registry.part(name), read_json(Path(path))
    try:
        if "_class_name" in content or "architectures" in content:
            return part.config_class().from_upstream(content)
        return config_from(part.config_class(), content, FLOAT32)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path}: {error}") from None
