"""Exceptions carry facts that do not change: who catches one, makes a new one of it."""

from __future__ import annotations

_OF_PYTHON = frozenset({"args", "errno", "filename", "filename2", "strerror"})
"""What Python keeps of an exception outside its dictionary."""


class Frozen:
    """A base class of exceptions: an attribute is set once, as the exception is made.

    What Python notes as an exception passes (``__traceback__``, ``__context__``) is no
    fact, and can be set.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute that the exception does not have yet.

        Raises:
          AttributeError: it has.
        """
        self._check(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse to forget a fact.

        Raises:
          AttributeError: it is one.
        """
        self._check(name)
        super().__delattr__(name)

    def __setstate__(self, state: dict[str, object] | None) -> None:
        """Take over the attributes of an exception that this one is a copy of."""
        vars(self).update(state or {})

    def _check(self, name: str) -> None:
        if name in vars(self) or name in _OF_PYTHON:
            raise AttributeError(f"{type(self).__name__}.{name} does not change")
