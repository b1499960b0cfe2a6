"""A system without a model: whatever is bright and red is the target, in windows of three frames."""

from types import SimpleNamespace

import numpy as np
import pytest

from rvseg_jax.core.errors import InputError
from rvseg_jax.systems import base


class RedThings:
    """Segments red pixels for any sentence, and nothing for sentences with "absent"."""

    name = "red_things"
    reads_text = True
    max_tokens = 16

    def token_count(self, text):
        return len(text.split()) + 1

    def segment(self, video, texts, *, options=None, progress=None):
        present = np.array(["absent" not in text for text in texts])[:, None, None, None]
        start, window = 0, []
        for image in video:
            if "fail" in texts[0] and start:
                raise {"interrupt": KeyboardInterrupt, "memory": MemoryError}[texts[0].split()[1]]
            window.append(image)
            if len(window) == 3:
                yield self._chunk(start, window, present)
                start, window = start + 3, []
                if progress:
                    progress("frames", start, video.expected_count)
        if window:
            yield self._chunk(start, window, present)
        return [base.Verdict("ok", 0.9) if here else base.Verdict("no_target", 0.1) for here in present]

    @staticmethod
    def _chunk(start, window, present):
        images = np.stack(window).astype(int)
        red = (images[..., 0] > 150) & (images[..., 1] < 110)
        return base.MaskChunk(start, red[None] & present)


class Module:
    """What `rvseg_jax.systems.red_things` would hold."""

    READS_TEXT = True
    FOR_IMAGES = False

    def __init__(self):
        self.loads = []

    def load(self, checkpoint, *, dtype=None, mesh=None, **options):
        self.loads.append({"checkpoint": checkpoint, "dtype": dtype, **options})
        if checkpoint is not None and not (checkpoint / "red.txt").exists():
            raise InputError(f"{checkpoint} is no checkpoint of red_things; convert one with `rvseg convert`")
        return RedThings()

    def describe(self):
        return {"name": "red_things", "parts": {"eye": {"parameters": 1234567, "licence": "MIT"}}}


@pytest.fixture
def red_things(monkeypatch):
    """The system, registered as "red_things"; `.loads` tells how often it was loaded."""
    module = Module()
    monkeypatch.setattr(base, "_MODULES", {**base._MODULES, "red_things": module})
    return module


@pytest.fixture
def rvseg(capsys, red_things):
    """Runs the command line in this process; gives exit code, output, errors."""
    from rvseg_jax.cli import main

    def run(*arguments, system=True):
        chosen = ["--system", "red_things"] if system and arguments[0] in ("predict", "demo") else []
        try:
            code = main([*map(str, arguments), *chosen])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run
