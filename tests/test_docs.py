"""What is made from the code is as current as the code, and nothing is without proof."""

import runpy
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
Generate = dict[str, Callable[[], Iterable[object]]]


@pytest.fixture(scope="module")
def generate() -> Generate:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_documentation_is_current(generate: Generate) -> None:
    assert list(generate["stale"]()) == [], "run: make docs"


def test_the_effect_of_every_directive_is_proved(generate: Generate) -> None:
    assert generate["unproved"]() == [], "mark a test: @pytest.mark.proves(...)"


def test_what_is_proved_is_declared(generate: Generate) -> None:
    assert generate["pointless"]() == []
