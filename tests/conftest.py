"""What concerns all tests."""

import hypothesis
import pytest

# How long an example takes says something about the machine, and nothing about us.
hypothesis.settings.register_profile("mailproxy", deadline=None)
hypothesis.settings.load_profile("mailproxy")

FORK = (
    "test_children.py",
    "test_control.py",
    "test_signals.py",
    "test_engine.py",
    "test_driven.py",
    "test_watched.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first what forks, and waits for signals, in this very process.

    A master has no threads. Here other tests leave some, for a while, and the kernel
    gives a signal that the main thread has blocked to a thread that has not, which
    ends the process.
    """
    order = {name: place for place, name in enumerate(FORK)}
    items.sort(key=lambda item: order.get(item.path.name, len(FORK)))
