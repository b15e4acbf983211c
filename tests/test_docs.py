"""What is made from the code is as current as the code."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generated_documentation_is_current() -> None:
    stale = runpy.run_path(str(ROOT / "docs" / "generate.py"))["stale"]()
    assert list(stale) == [], "run: make docs"
