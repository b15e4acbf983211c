"""Exceptions carry facts that do not change; to change one, make a new exception."""

from __future__ import annotations

_OF_PYTHON = frozenset({"args", "errno", "filename", "filename2", "strerror"})
"""Attributes that Python keeps outside an exception's dictionary."""


class Frozen:
    """A base class of exceptions whose attributes are set once, when they are made.

    What Python itself notes on an exception (``__traceback__``, ``__context__``) can
    still be set.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute that the exception does not have yet.

        Raises:
          AttributeError: it has that attribute already.
        """
        self._check(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse to delete an attribute.

        Raises:
          AttributeError: the exception has it.
        """
        self._check(name)
        super().__delattr__(name)

    def __setstate__(self, state: dict[str, object] | None) -> None:
        """Take over the attributes of the exception that this one is a copy of."""
        vars(self).update(state or {})

    def _check(self, name: str) -> None:
        if name in vars(self) or name in _OF_PYTHON:
            raise AttributeError(f"{type(self).__name__}.{name} does not change")
