"""How a Python signature becomes a C function.

A prototype is written as a function without a body, with the types of types.py:

    @prototype
    def SSL_CTX_set_verify_depth(ctx: SSL_CTX, depth: Int) -> None: ...

The name then is OpenSSL's function itself: a call passes through no layer of Python,
and mypy checks the arguments. A `NewType` is a pointer to the structure of that name,
with 0 for NULL; other types are `Annotated` with their ctypes. So modules with
prototypes cannot have ``from __future__ import annotations``.
"""

import _ssl  # CPython's half of `ssl`: which library it is linked with
import ctypes
import ssl
from collections.abc import Callable
from typing import Any, NewType, ParamSpec, TypeVar, cast

from mailproxy.net.openssl.exceptions import OpenSSLError

P = ParamSpec("P")
R = TypeVar("R")

# Where `_ssl` is built into the interpreter, so is OpenSSL.
_library = ctypes.PyDLL(getattr(_ssl, "__file__", None))


class Absent:
    """A function that this OpenSSL lacks, or that this Python does not export."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: object) -> Any:
        """Report that the function is missing.

        Raises:
          OpenSSLError: always.
        """
        raise OpenSSLError(f"{self._name}() is not available in {ssl.OPENSSL_VERSION}")


def prototype(declared: Callable[P, R]) -> Callable[P, R]:
    """Return OpenSSL's function with this name and signature, or an `Absent` one."""
    function = getattr(_library, declared.__name__, None)
    if function is None:
        return cast("Callable[P, R]", Absent(declared.__name__))
    function.restype, function.argtypes = _signature(declared)
    return cast("Callable[P, R]", function)


def callback(function: Callable[..., int | None]) -> object:
    """Turn a Python function into one that OpenSSL can call.

    Its signature is written as in a prototype, with `Pointer` for any pointer. The
    caller keeps the result for as long as OpenSSL may call it.
    """
    result, arguments = _signature(function)
    return ctypes.CFUNCTYPE(result, *arguments)(function)


def has(function: Callable[..., object]) -> bool:
    """Return whether the function of a prototype can be called."""
    return not isinstance(function, Absent)


def _signature(declared: Callable[..., object]) -> tuple[Any, list[Any]]:
    types = {name: _c_type(kind) for name, kind in declared.__annotations__.items()}
    result = types.pop("return")
    return result, list(types.values())


def _c_type(annotation: Any) -> Any:
    if annotation is None:
        return None
    if isinstance(annotation, NewType):
        return ctypes.c_size_t
    return annotation.__metadata__[0]
