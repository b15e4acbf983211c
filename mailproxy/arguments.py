"""Parsing the command line: a command and its words, or nginx's options in clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mailproxy.conf.hints import nearest
from mailproxy.frozen import Frozen
from mailproxy.process.control import SIGNALS

_USAGE = """\
Usage: {name} [-?hvVtTq] [-s signal] [-p prefix]
             [-e filename] [-c filename] [-g directives]

Options:
  -?,-h         : this help
  -v            : show version and exit
  -V            : show version and configure options then exit
  -t            : test configuration and exit
  -T            : test configuration, dump it and exit
  -q            : suppress non-error messages during configuration testing
  -s signal     : send signal to a master process: stop, quit, reopen, reload
  -p prefix     : set prefix path (default: {prefix})
  -e filename   : set error log file (default: stderr)
  -c filename   : set configuration file (default: {conf})
  -g directives : set global directives out of configuration file

"""
_OWN_USAGE = """\
Of mailproxy alone:
  --dump-json       : test configuration, show the values in effect as JSON and exit
  --list-directives : show all directives as Markdown and exit
  --help            : this help, on standard output
  --version         : show version on standard output and exit

Commands:
{commands}

Without /etc/mailproxy/mailproxy.conf, the default is /etc/nginx/nginx.conf.
Called nginx or angie, the program has their names and default files.

"""
COMMANDS = {
    "certificates": "show certificates, when they end, and who gets which",
    "demo": "run a whole mail site on this machine, to try things out",
    "help": "show this help, or that of a command",
    "version": "show version and exit",
}
"""The commands, which may stand first, and their purpose."""


def usage(name: str, prefix: str, conf: str) -> str:
    """Format the text of the help.

    Args:
      name: what the program is called; nginx and angie show nginx's help.
      prefix, conf: the defaults of -p and -c.
    """
    text = _USAGE.format(name=name, prefix=prefix, conf=conf)
    if name != "mailproxy":
        return text
    commands = "\n".join(
        f"  {command:<18}: {purpose}" for command, purpose in COMMANDS.items()
    )
    return text + _OWN_USAGE.format(commands=commands)


class UsageError(Frozen, Exception):
    """The command line is wrong; the text says why, without the program's name.

    Attributes:
      remedy: what to write instead, for people; empty to refer to the help.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass
class Arguments:
    """The parsed command line."""

    command: str = ""
    """A command of `COMMANDS` that parses `rest` itself; empty if there is none."""
    rest: tuple[str, ...] = ()
    """The words after the command."""
    on_stdout: bool = False
    """Write help and version to standard output; nginx writes them to standard error."""
    show_help: bool = False
    show_version: bool = False
    show_configure: bool = False
    test: bool = False
    dump: bool = False
    dump_json: bool = False
    list_directives: bool = False
    quiet: bool = False
    values: dict[str, str] = field(default_factory=dict)
    """The arguments of -p, -c, -e, -g, -s, by letter."""


_LETTERS = {
    "?": ("show_help", "show_version"),
    "h": ("show_help", "show_version"),
    "v": ("show_version",),
    "V": ("show_configure", "show_version"),
    "t": ("test",),
    "T": ("test", "dump"),
    "q": ("quiet",),
}
_OWN = {
    "--dump-json": ("test", "quiet", "dump_json"),
    "--list-directives": ("list_directives",),
    "--help": ("show_help", "show_version", "on_stdout"),
    "--version": ("show_version", "on_stdout"),
}
_WANTS = {
    "p": "directory name",
    "c": "file name",
    "e": "file name",
    "g": "parameter",
    "s": "parameter",
}


def parse(words: Sequence[str]) -> Arguments:
    """Parse the command line as nginx does; a command may stand first.

    Raises:
      UsageError: the command line is wrong.
    """
    if any("\0" in word for word in words):
        raise UsageError("there is a NUL in an argument")
    if words and words[0] in COMMANDS:
        return _command(words[0], tuple(words[1:]))
    found = Arguments()
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            raise UsageError(
                f'invalid option: "{word}"',
                f'"{word}" must be the first word'
                if word in COMMANDS
                else _near(word, COMMANDS),
            )
        for name in _OWN.get(word) or _cluster(word, rest, found):
            setattr(found, name, True)
    signal = found.values.get("s")
    if signal is not None and signal not in SIGNALS:
        known = f"signals are {', '.join(SIGNALS)}"
        raise UsageError(f'invalid option: "-s {signal}"', known)
    return found


def _command(command: str, rest: tuple[str, ...]) -> Arguments:
    """Parse a command and its words; `help` and `version` are other names of options."""
    if command == "help" and rest[:1] and rest[0] in COMMANDS:
        command, rest = rest[0], ("--help",)
    if command not in ("help", "version"):
        return Arguments(command=command, rest=rest)
    if rest not in ((), ("--help",)):
        raise UsageError(f'invalid option: "{rest[0]}"', _near(rest[0], COMMANDS))
    return parse(["--help" if rest else f"--{command}"])


def _cluster(word: str, rest: Iterator[str], found: Arguments) -> Iterator[str]:
    """Yield the fields that a cluster of letters sets; arguments go into `found`.

    As in nginx, the second dash of an unknown long option counts as a wrong letter.
    """
    letters = word[1:]
    for at, letter in enumerate(letters):
        if letter in _LETTERS:
            yield from _LETTERS[letter]
        elif letter in _WANTS:
            value = letters[at + 1 :] or next(rest, None)
            if value is None:
                raise UsageError(f'option "-{letter}" requires {_WANTS[letter]}')
            found.values[letter] = value
            return
        else:
            raise UsageError(f'invalid option: "{letter}"', _near(word, _OWN))


def _near(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f'did you mean "{near}"?' if near else ""
