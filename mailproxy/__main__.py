"""The program: what `mailproxy` and `python -m mailproxy` run."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run the program with the command line of the process; returns the exit code.

    Until a configuration is loaded, next to nothing of what is made is garbage, and to
    look for it again and again takes a third of the time of a long configuration. So
    the collector is off until then; a program that goes on turns it on (see
    `process/start.py`). Of one that ends, it need not look through what is left.
    """
    gc.disable()
    from mailproxy import cli  # when the collector is off

    code = cli.main()
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(main())
