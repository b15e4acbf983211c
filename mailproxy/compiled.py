"""The compiled core: modules of `net` as machine code, where a build of them is there.

The modules are `net/*.py` with types beside them (`net/*.pxd`), compiled by Cython; only
`net/calls.py` has a twin in C's terms, `net/calls.pyx`. They run uncompiled as well, and do
the same. `setup.py` builds them into one file, `mailproxy/_core.*.so`, which is all or
nothing. It is refused if it was made from other sources than those that stand here: else a
change of a module would have no effect.

MAILPROXY_PURE in the environment, if it is not empty, refuses it, too; and nothing is built.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

MODULES = ("calls", "driven", "engine", "lines", "relay", "wire")
"""The compiled modules of `net`."""
_NAMES = frozenset(f"mailproxy.net.{name}" for name in MODULES)


def digest() -> str:
    """Return what a build is known by: a hash of all that it is made from."""
    found = hashlib.sha256()
    here = Path(__file__).parent
    # Some of them may be missing where others have packed them: then nothing fits.
    for path in sorted([*here.glob("_core.pyx"), *here.glob("net/*.p*")]):
        if path.stem in MODULES or path.suffix == ".pyx":
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@functools.cache
def _core() -> tuple[ModuleType | None, str | None]:
    """Return the build, if it can be used, and else what is wrong with it, if it is."""
    if os.environ.get("MAILPROXY_PURE"):
        return None, None
    # Not by an ordinary import: another checkout may be installed, with a build.
    spec = PathFinder.find_spec("mailproxy._core", [str(Path(__file__).parent)])
    if spec is None or spec.loader is None:
        return None, None
    try:
        core = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(core)
    except ImportError as error:
        return None, f"the compiled core cannot be loaded, Python runs instead: {error}"
    if digest() != core.SOURCES:
        return None, (
            "the compiled core is not used, as it was made from other sources than "
            f"those in {Path(__file__).parent}; build it again, or remove {core.__file__}"
        )
    return core, None


def form() -> str:
    """Return which form runs: "compiled core" or "pure Python"."""
    core, _ = _core()
    return "pure Python" if core is None else "compiled core"


def problem() -> str | None:
    """Return why a build that is there is not used, though nobody has refused it."""
    return _core()[1]


class _Finder:
    """Finds the modules in the build."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of the core is, and None for any other."""
        if name not in _NAMES:
            return None
        core, _ = _core()
        if core is None:
            return None
        assert core.__file__ is not None
        loader = ExtensionFileLoader(name, core.__file__)
        return importlib.util.spec_from_loader(name, loader)


def use() -> None:
    """Have the modules imported from the build, if there is one that can be used."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
