"""Reading small configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy.process.configuration import ConfigErrors, Configuration
from mailproxy.process.configuration import load as load_options
from mailproxy.process.options import Options

Load = Callable[..., Configuration]
Complain = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Reads a configuration: the main file's text, the text of -g, other files by name."""
    monkeypatch.chdir(tmp_path)

    def read(text: str, globals_text: str = "", **files: str) -> Configuration:
        for name, content in {"main": text, **files}.items():
            Path(name).write_text(content)
        return load_options(
            Options(prefix="P/", conf_file="C/main", globals_text=globals_text)
        )

    Path("C").symlink_to(".")
    return read


@pytest.fixture
def complain(load: Load) -> Complain:
    """Reads a configuration and returns what there is to say: ``emerg TEXT in C/main:1``."""

    def read(text: str, globals_text: str = "", **files: str) -> list[str]:
        try:
            messages = load(text, globals_text, **files).messages
        except ConfigErrors as errors:
            messages = errors.messages
        return [f"{message.level} {message}" for message in messages]

    return read
