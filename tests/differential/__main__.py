"""Plays scripts by hand, and writes what nginx does into them.

    python -m tests.differential play nginx|ours [WORDS...]
    python -m tests.differential regenerate [WORDS...]

WORDS choose scripts: all of them must be in "FILE: TITLE". `regenerate` replaces
the `S: P: Q: L:` lines of the scripts by what nginx says; blocks with lines of
only one proxy are left alone and reported where they are wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.differential.player import OPEN, Playback, Recording, by_side
from tests.differential.script import NGINX, OURS, Script, Step, groups, read_all
from tests.differential.stages import play_all, staged


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    commands = parser.add_subparsers(dest="command", required=True)
    play = commands.add_parser("play", help="play scripts and show how they went")
    play.add_argument("proxy", choices=[NGINX, OURS])
    play.add_argument("--bytewise", action="store_true", help="send every byte alone")
    play.add_argument("--all", action="store_true", help="show those without fault too")
    regenerate = commands.add_parser("regenerate", help="write nginx's words into scripts")
    regenerate.add_argument("--new", action="store_true", help="scripts lack steps yet")
    for command in (play, regenerate):
        command.add_argument("words", nargs="*")
    options = parser.parse_args()
    proxy = NGINX if options.command == "regenerate" else options.proxy
    scripts = [
        script
        for script in read_all()
        if all(word in script.name for word in options.words)
        and script.only in {"", proxy}
        and not (getattr(options, "bytewise", False) and script.bytewise != "yes")
    ]
    record = Recording.NO
    if options.command == "regenerate":
        record = Recording.NEW if options.new else Recording.AGAIN
    with tempfile.TemporaryDirectory() as folder:
        with staged(proxy, scripts, Path(folder)) as stages:
            bytewise = options.command == "play" and options.bytewise
            playbacks = play_all(scripts, stages, bytewise=bytewise, record=record)
    if record is not Recording.NO:
        rewrite(scripts, playbacks, new=options.new)
        return 0
    faults = 0
    for script, playback in zip(scripts, playbacks, strict=True):
        faults += bool(playback.fault)
        if playback.fault or options.all:
            print(report(script, playback), end="\n\n")  # noqa: T201  a program for people
    print(f"{len(scripts)} scripts, {faults} with a fault")  # noqa: T201
    return 1 if faults else 0


def report(script: Script, playback: Playback) -> str:
    """What a person needs to see of a play."""
    return "\n".join([f"== {script.name} ({script.file.name}:{script.number + 1})", *playback.lines, f"--> {playback.fault}"])


def rewrite(scripts: list[Script], playbacks: list[Playback], *, new: bool) -> None:
    """Put recordings into the files."""
    for file in dict.fromkeys(script.file for script in scripts):
        lines: list[list[str]] = [[line] for line in file.read_text(encoding="utf-8").split("\n")]
        for script, playback in zip(scripts, playbacks, strict=True):
            if script.file == file:
                _put(script, playback, lines, new=new)
        text = "\n".join(line for replaced in lines for line in replaced)
        file.write_text(text, encoding="utf-8")


def _put(script: Script, playback: Playback, lines: list[list[str]], *, new: bool) -> None:
    steps = script.steps_for(NGINX)
    blocks: list[list[Step]] = [[]]
    before: list[int] = [script.number]
    for group in groups(steps):
        if group[0].kind in "SPQ" and group[0].text != OPEN:
            blocks[-1] += group
        elif group[0].kind != "L" and (blocks[-1] or (new and group[0].kind != "pause")):
            blocks.append([])
            before.append(group[-1].number)
        else:
            before[-1] = group[-1].number
    for old, said, anchor in zip(blocks, playback.blocks, before, strict=False):
        _replace(script, old, said, anchor, lines)
    old = [step for step in steps if step.kind == "L"]
    last = max((step.number for step in script.steps), default=script.number)
    _replace(script, old, playback.log, last, lines)


def _replace(script: Script, old: list[Step], new: list[Step], anchor: int, lines: list[list[str]]) -> None:
    if by_side(old) == by_side(new):
        return
    if any(step.inserted or step.proxy for step in old):
        shown = "\n  ".join(map(str, new))
        sys.stderr.write(f"{script.name}: nginx says\n  {shown}\n")
        return
    for step in old:
        lines[step.number] = []
    if old:
        lines[old[0].number] = list(map(str, new))
    else:
        lines[anchor] += list(map(str, new))


if __name__ == "__main__":
    sys.exit(main())
