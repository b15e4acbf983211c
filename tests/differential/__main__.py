"""Plays scripts by hand, and writes what nginx does into them.

    python -m tests.differential play nginx|ours [WORDS...]
    python -m tests.differential regenerate [--new] [WORDS...]

WORDS choose scripts: all of them must be in "FILE: TITLE". `regenerate` replaces
the `S: P: Q: L:` lines of the scripts by what nginx says; blocks with lines of
only one proxy are left alone, and told where they are wrong. A new script needs
nothing but what is sent, and `--new`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.differential.player import Playback, Player
from tests.differential.recorder import Recorder, rewrite
from tests.differential.script import NGINX, OURS, Script, read_all
from tests.differential.stages import play_all, staged


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    commands = parser.add_subparsers(dest="command", required=True)
    play = commands.add_parser("play", help="play scripts and show how they went")
    play.add_argument("proxy", choices=[NGINX, OURS])
    play.add_argument("--bytewise", action="store_true", help="send every byte alone")
    play.add_argument("--all", action="store_true", help="show those without fault too")
    regenerate = commands.add_parser(
        "regenerate", help="write nginx's words into scripts"
    )
    regenerate.add_argument("--new", action="store_true", help="scripts may lack steps")
    for command in (play, regenerate):
        command.add_argument("words", nargs="*")
    options = parser.parse_args()
    chosen = [
        script
        for script in read_all()
        if all(word in script.name for word in options.words)
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.command == "regenerate":
            _regenerate(chosen, Path(folder), new=options.new)
            return 0
        return _play(chosen, Path(folder), options)


def _regenerate(chosen: list[Script], folder: Path, *, new: bool) -> None:
    scripts = [script for script in chosen if script.only in {"", NGINX}]
    with staged(NGINX, scripts, folder) as stages:
        recorders = [
            Recorder(*both, new=new) for both in zip(scripts, stages, strict=True)
        ]
        play_all(recorders)
    rewrite(recorders)


def _play(chosen: list[Script], folder: Path, options: argparse.Namespace) -> int:
    scripts = [
        script
        for script in chosen
        if script.only in {"", options.proxy}
        and not (options.bytewise and script.bytewise != "yes")
    ]
    with staged(options.proxy, scripts, folder) as stages:
        both = zip(scripts, stages, strict=True)
        players = [Player(*each, bytewise=options.bytewise) for each in both]
        play_all(players)
    for player in players:
        if player.playback.fault or options.all:
            sys.stdout.write(report(player.script, player.playback) + "\n\n")
    faults = sum(bool(player.playback.fault) for player in players)
    sys.stdout.write(f"{len(scripts)} scripts, {faults} with a fault\n")
    return 1 if faults else 0


def report(script: Script, playback: Playback) -> str:
    """What a person needs to see of a play."""
    title = f"== {script.name} ({script.file.name}:{script.number + 1})"
    return "\n".join([title, *playback.lines, f"--> {playback.fault}"])


if __name__ == "__main__":
    sys.exit(main())
