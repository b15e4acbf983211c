"""Every case of the corpus, asked of mailproxy and of nginx."""

from __future__ import annotations

import re
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy import cli
from tests.corpus.cases import Case, load
from tests.corpus.run import (
    Answer,
    ask_here,
    ask_nginx,
    ask_process,
    lacks,
    nginx_differs,
    nginx_missing,
    prepare,
)
from tests.processes import require_peers

CASES = load()
CHOSEN = [case for case in CASES if case.headers.get("also") == "process"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a unix domain socket must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="corpus") as path:
        yield Path(path)


def expected(case: Case) -> str:
    """The stored answer."""
    assert case.exit is not None, "python -m tests.corpus.regenerate writes the answer"
    leaves = case.headers.get("leaves")
    return shown(Answer(case.exit, case.stderr, case.stdout, leaves))


def shown(answer: Answer) -> str:
    """What to compare; the reasons that OpenSSL gives are those of version 3.0."""
    if ssl.OPENSSL_VERSION_INFO[:2] == (3, 0):
        return answer.text
    return re.sub(r"\(SSL: .*\)", "(SSL: ...)", answer.text)


def skip_if_impossible(case: Case) -> None:
    """Skip a case that this machine cannot run."""
    missing = lacks(case)
    if missing:
        pytest.skip(f"needs: {missing}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_mailproxy_gives_the_answer(
    case: Case, directory: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    skip_if_impossible(case)
    prepare(case, directory)
    answer = ask_here(case, directory, cli.main, capfdbinary.readouterr)
    assert shown(answer) == expected(case)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.id)
def test_a_process_of_mailproxy_gives_the_answer(case: Case, directory: Path) -> None:
    skip_if_impossible(case)
    prepare(case, directory)
    assert shown(ask_process(case, directory)) == expected(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_nginx_gives_the_answer_unless_there_is_a_reason(
    case: Case, directory: Path
) -> None:
    if nginx_missing() and require_peers():
        pytest.fail(nginx_missing())
    if nginx_missing() or nginx_differs():
        pytest.skip(nginx_missing() or nginx_differs())
    skip_if_impossible(case)
    prepare(case, directory)
    answer = ask_nginx(case, directory)
    if case.why:
        assert shown(answer) != expected(case), "nginx agrees: the case needs no `why`"
    else:
        assert shown(answer) == expected(case)


def test_cases_have_different_names() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
