"""The benchmark's own processes: fake servers, and clients.

They get orders and give answers in lines, and have nothing to put away at their end. They
are in process groups of their own: Ctrl-C is for the benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHECKOUT = Path(__file__).parent.parent
"""Where the modules of helpers are found."""


class HelperError(Exception):
    """A helper has ended before its time; what it had to say is on standard error."""


class Helper:
    """A process; a context that it lives in.

    Args:
      module: what it runs.
      arguments: its command line.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def read_line(self) -> str:
        """Wait for a line.

        Raises:
          HelperError: there is none any more.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HelperError(f"{self._module} has ended")
        return line

    def obey(self, do: str, **details: object) -> dict[str, Any]:
        """Give an order, and wait for the answer.

        Raises:
          HelperError: there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise HelperError(f"{self._module} has ended") from error
        answer: dict[str, Any] = json.loads(self.read_line())
        return answer
