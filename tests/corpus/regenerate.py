"""Write nginx's answers into the case files: `python -m tests.corpus.regenerate [FILE…]`.

Cases with a `why` are left as they are, unless they have no answer yet: then nginx's is put
there, to be changed by hand.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.corpus.cases import HERE, Block, Case, blocks, expand, first_word, stripped
from tests.corpus.run import (
    Answer,
    ask_nginx,
    lacks,
    nginx_differs,
    nginx_missing,
    prepare,
)


def main(names: list[str]) -> int:
    """Rewrite the named case files, or all of them."""
    missing = nginx_missing() or nginx_differs()
    if missing:
        sys.stderr.write(f"cannot regenerate: {missing}\n")
        return 1
    complaints = []
    for path in [HERE / name for name in names] or sorted(HERE.glob("*.txt")):
        preface, found = blocks(path.read_text())
        text = list(preface)
        for block in found:
            try:
                answer = _renewed(block, path)
            except ValueError as error:
                complaints.append(str(error))
                answer = block.answer
            text += [f"=== {block.name}", *stripped(block.head), *stripped(answer), ""]
        path.write_text("\n".join(stripped(text)) + "\n")
    sys.stderr.writelines(complaints)
    return 1 if complaints else 0


def _renewed(block: Block, path: Path) -> list[str]:
    cases = list(expand(block, path))
    kept = cases[0].why and block.answer
    if kept or any(lacks(case) for case in cases):
        return block.answer
    answers = [list(_text(_answer(case))) for case in cases]
    for citation in ("", '"%s"', '"1"', '%s"', "%s"):
        shared = {
            tuple(_general(line, case.value, citation) for line in answer)
            for case, answer in zip(cases, answers, strict=True)
        }
        if len(shared) == 1:
            return list(shared.pop())
    general = [
        tuple(_general(line, case.value, '"%s"') for line in answer)
        for case, answer in zip(cases, answers, strict=True)
    ]
    usual, _ = Counter(general).most_common(1)[0]
    unusual = "".join(
        f"  {case.value}: {' / '.join(answer)}\n"
        for case, answer in zip(cases, general, strict=True)
        if answer != usual
    )
    raise ValueError(f"{path.name}:{block.line}: {' / '.join(usual)}, but\n{unusual}")


def _answer(case: Case) -> Answer:
    with tempfile.TemporaryDirectory(prefix="corpus") as directory:
        prepare(case, Path(directory))
        return ask_nginx(case, Path(directory))


def _general(line: str, value: str | None, citation: str) -> str:
    """Put @@ in place of the value, or @1@ for its first word, where a message cites it."""
    head, blank, message = line.partition(" ")
    if value is None or not citation or line.startswith("---"):
        return line
    if citation == '"1"':
        cited, general = f'"{first_word(value)}"', '"@1@"'
    else:
        cited, general = citation % value, citation % "@@"
    return head + blank + message.replace(cited, general, 1)


def _text(answer: Answer) -> Iterable[str]:
    yield f"--- exit {answer.exit}"
    yield from answer.stderr
    if answer.stdout:
        yield "--- stdout"
        yield from answer.stdout
        yield "--- end"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
