"""The command line: nginx's options, and a few of our own, become one call."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from mailproxy import __version__
from mailproxy.conf.report import explanation, headline
from mailproxy.conf.syntax import COMMAND_LINE, ConfigError, Source, decode, encode
from mailproxy.log import INFO, NOTICE, Logger, Logs, open_startup_log
from mailproxy.mail.modules import ConfigErrors
from mailproxy.process import control, core, generation
from mailproxy.process.generation import GenerationError, Whole
from mailproxy.process.options import Options

CONF_FILES = {
    "nginx": "/etc/nginx/nginx.conf",
    "angie": "/etc/angie/angie.conf",
    "mailproxy": "/etc/mailproxy/mailproxy.conf",
}
"""By the name that the program is called by, the main file if -c names none."""
CONFIGURE_ARGUMENTS = "--with-mail --with-mail_ssl_module"
"""What scripts look for in the output of -V."""

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
  demo [--help]     : run a whole mail site on this machine, to try things out

Without /etc/mailproxy/mailproxy.conf, the default is /etc/nginx/nginx.conf.
Called nginx or angie, the program has their names and default files.

"""


class _UsageError(Exception):
    """The command line is wrong; the text says how, without the program's name."""


@dataclass
class _Arguments:
    """What is on the command line."""

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
}
_WANTS = {
    "p": "directory name",
    "c": "file name",
    "e": "file name",
    "g": "parameter",
    "s": "parameter",
}


def _parse(words: Sequence[str]) -> _Arguments:
    """Take the command line apart as nginx does: letters in clusters.

    Raises:
      _UsageError: something is wrong with it.
    """
    found = _Arguments()
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            raise _UsageError(f'invalid option: "{word}"')
        for name in _OWN.get(word) or _cluster(word[1:], rest, found):
            setattr(found, name, True)
    signal = found.values.get("s")
    if signal is not None and signal not in control.SIGNALS:
        raise _UsageError(f'invalid option: "-s {signal}"')
    return found


def _cluster(letters: str, rest: Iterator[str], found: _Arguments) -> Iterator[str]:
    for at, letter in enumerate(letters):
        if letter in _LETTERS:
            yield from _LETTERS[letter]
        elif letter in _WANTS:
            value = letters[at + 1 :] or next(rest, None)
            if value is None:
                raise _UsageError(f'option "-{letter}" requires {_WANTS[letter]}')
            found.values[letter] = value
            return
        else:
            raise _UsageError(f'invalid option: "{letter}"')


def _options(found: _Arguments, name: str, argv: Sequence[str]) -> Options:
    default = _default_file(name)
    prefix = found.values.get("p", os.path.dirname(default))
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    path = found.values.get("c", default)
    log = found.values.get("e", "")
    return Options(
        argv=tuple(argv),
        name=name,
        prefix=prefix,
        conf_file=path if path.startswith("/") else prefix + path,
        globals_text=found.values.get("g", ""),
        error_log="" if log in ("", "stderr") else _below(prefix, log),
        test=found.test,
    )


def _below(prefix: str, path: str) -> str:
    return path if path.startswith("/") else prefix + path


def _default_file(name: str) -> str:
    path = CONF_FILES[name]
    if name == "mailproxy" and not os.path.exists(path):
        nginx = CONF_FILES["nginx"]
        if os.path.exists(nginx):
            return nginx
    return path


def _write(descriptor: int, text: str | bytes) -> None:
    left = memoryview(encode(text) if isinstance(text, str) else text)
    while left:
        left = left[os.write(descriptor, left) :]


def _tell(text: str) -> None:
    _write(2, text)


class _Voice:
    """Says what is wrong with a configuration: in the start-up log, and to a person."""

    def __init__(self, options: Options, *, to_stderr: bool) -> None:
        """Open the start-up log.

        Args:
          options: with the file of -e.
          to_stderr: -e names stderr: messages go there once, in the log's format.
        """
        self._name = options.name
        # Without -e, messages go to stderr in nginx's short form, and to no file.
        path = options.error_log or ("" if to_stderr else os.devnull)
        level = INFO if options.test else NOTICE
        self.startup: Logs = open_startup_log(path, options.name, level)
        self._colours = (
            os.isatty(2)
            and "NO_COLOR" not in os.environ
            and os.environ.get("TERM") != "dumb"
        )

    def say(
        self, messages: Iterable[ConfigError], sources: Mapping[str, Source]
    ) -> None:
        """Say what nginx says; under an error, for people, what helps them."""
        startup = self.startup
        for message in messages:
            copy, startup.copy_as = startup.copy_as, None
            startup.main.log(message.level, message.text)
            startup.copy_as = copy
            if copy is not None:
                _tell(headline(message, self._name, colours=self._colours) + "\n")
            if message.level != "warn" or message.remedy:
                _tell(explanation(message, sources, colours=self._colours))

    def line(self, text: str) -> None:
        """A line for people and scripts, which is in no log."""
        _tell(f"{self._name}: {text}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
      words: the command line without the program's name; that of the process if None.

    Returns:
      The exit code.
    """
    argv = [decode(os.fsencode(word)) for word in sys.argv]
    words = argv[1:] if words is None else list(words)
    name = os.path.basename(argv[0])
    name = name if name in CONF_FILES else "mailproxy"
    if words[:1] == ["demo"]:
        from mailproxy import demo  # it brings servers, which nobody else needs

        return demo.main(words[1:])
    try:
        found = _parse(words)
    except _UsageError as error:
        _tell(f"{name}: {error}\n")
        return 1
    if found.show_version:
        _show(found, name)
        if not found.test:
            return 0
    if found.list_directives:
        from mailproxy import inspection  # it reads sources, which nobody else needs

        _write(1, inspection.list_directives())
        return 0
    options = _options(found, name, argv)
    voice = _Voice(options, to_stderr=found.values.get("e") in ("", "stderr"))
    if not found.test and "s" not in found.values:
        return _start(options, voice)
    try:
        if found.test:
            return _test(found, options, voice)
        return _signal(found.values["s"], options, voice)
    finally:
        voice.startup.close()


def _show(found: _Arguments, name: str) -> None:
    product = "Angie" if name == "angie" else name
    _tell(f"{product} version: mailproxy/{__version__}\n")
    if found.show_help:
        default = _default_file(name)
        prefix = os.path.dirname(default) + "/"
        _tell(_USAGE.format(name=name, prefix=prefix, conf=default))
        if name == "mailproxy":
            _tell(_OWN_USAGE)
    if found.show_configure:
        import ssl  # takes longer than all the rest

        from mailproxy.mail.ssl_context import not_available

        python = f"{platform.python_implementation()} {platform.python_version()}"
        _tell(
            f"built by {python}\n"
            f"built with {ssl.OPENSSL_VERSION}\n"
            "TLS SNI support enabled\n"
            f"configure arguments: {CONFIGURE_ARGUMENTS}\n"
        )
        lacking = not_available()
        if lacking is not None:
            _tell(f"{lacking}\n")


def _test(found: _Arguments, options: Options, voice: _Voice) -> int:
    """-t, -T, --dump-json."""
    loader = core.loader(options)
    sources = loader.reader.files
    configuration: Whole | None = None
    try:
        configuration = loader.load(options.globals_text)
        messages, parsed = configuration.messages, True
    except ConfigErrors as errors:
        messages, parsed = errors.messages, errors.parsed
    file = f"configuration file {options.conf_file}"
    voice.say(messages.reading, sources)
    if parsed and not found.quiet:
        voice.line(f"the {file} syntax is ok")
    voice.say(messages.starting, sources)
    # With -s as well, nginx stops before it would try logs and ports.
    if configuration is None or (
        "s" not in found.values
        and not generation.test(configuration, options, voice.startup.main)
    ):
        voice.line(f"{file} test failed")
        return 1
    if not found.quiet:
        voice.line(f"{file} test is successful")
    if found.dump:
        for name, source in sources.items():
            if name != COMMAND_LINE:
                _write(1, f"# configuration file {name}:\n{source.text}\n")
    if found.dump_json:
        from mailproxy import inspection  # nobody else needs it

        _write(1, inspection.dump_json(configuration, loader))
    return 0


def _load(options: Options, voice: _Voice, log: Logger) -> Whole:
    """Read the configuration, and log what there is to say about it.

    Raises:
      GenerationError: it cannot be used.
    """
    loader = core.loader(options)
    failure: ConfigErrors | None = None
    try:
        configuration = loader.load(options.globals_text)
        messages = configuration.messages
    except ConfigErrors as errors:
        failure, messages = errors, errors.messages
    if log is voice.startup.main:
        voice.say(messages, loader.reader.files)
    else:
        for message in messages:
            log.log(message.level, message.text)
            if message.position is None and message.cause is not None:
                log.log(message.level, f"the line before is about {message.cause}")
    if failure is not None:
        raise GenerationError from failure
    return configuration


def _signal(order: str, options: Options, voice: _Voice) -> int:
    """-s."""
    log = voice.startup.main
    try:
        configuration = _load(options, voice, log)
    except GenerationError:
        return 1
    return control.send(order, configuration.main.pid, log)


def _start(options: Options, voice: _Voice) -> int:
    from mailproxy.process import start  # it brings the event loop

    return start.run(options, partial(_load, options, voice), voice.startup)
