"""Builds the compiled core, where Cython and a compiler are; see `mailproxy/compiled.py`.

Everything else stands in pyproject.toml. Without them, or if anything fails, what is
installed is the same program in pure Python.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

sys.path.insert(0, str(Path(__file__).parent))

from mailproxy import compiled

FLAGS = ("-O2", "-g0", "-fno-semantic-interposition", "-fvisibility=hidden")


class BuildCore(build_ext):
    """Builds one file with all modules, but not for an editable installation."""

    def build_extensions(self):
        if not self.editable_mode:
            super().build_extensions()

    def build_extension(self, ext):
        # What is left of a former build would be installed if this one fails.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        try:
            ext.sources = translated()
        except Exception as error:
            # `optional` is for this error: it becomes a warning.
            raise CCompilerError(f"no compiled core: {error}") from error
        self.force = True  # whatever the times of files say
        # distutils compiles one file after the other; these take half a minute.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(partial(self._compile, ext), ext.sources):
                ext.extra_objects += objects
        ext.sources = []
        super().build_extension(ext)

    def _compile(self, ext, source):
        return self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            extra_postargs=ext.extra_compile_args,
        )

    def get_source_files(self):
        return []  # MANIFEST.in names them

    def get_outputs(self):
        return [each for each in super().get_outputs() if os.path.exists(each)]


def translated():
    """Have Cython write the modules in C; returns the files."""
    from Cython import __version__ as version
    from Cython.Build import cythonize

    if int(version.partition(".")[0]) < 3:
        raise RuntimeError(f"Cython {version} is too old")
    names = {f"mailproxy.net.{name}": name for name in compiled.MODULES}
    modules = [Extension("mailproxy._core", ["mailproxy/_core.pyx"])]
    for full, name in names.items():
        suffix = "pyx" if name == "calls" else "py"
        modules.append(Extension(full, [f"mailproxy/net/{name}.{suffix}"]))
    written = cythonize(
        modules,
        build_dir="build/core",
        force=True,  # what it makes is stamped with the digest of these sources
        quiet=True,
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,  # the types stand in the .pxd files
            "binding": True,
            "boundscheck": True,
            "wraparound": False,
        },
    )
    return [source for each in written for source in each.sources]


core = Extension(
    "mailproxy._core",
    [],
    define_macros=[("MAILPROXY_SOURCES", f'"{compiled.digest()}"')],
    extra_compile_args=[*FLAGS, *os.environ.get("CORE_CFLAGS", "").split()],
    extra_link_args=os.environ.get("CORE_LDFLAGS", "").split(),
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("MAILPROXY_PURE") else [core],
    cmdclass={"build_ext": BuildCore},
)
