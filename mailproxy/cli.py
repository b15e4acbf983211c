"""The program's entry: turns the command line into one call."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from mailproxy import __version__, compiled
from mailproxy.arguments import Arguments, UsageError, parse, usage
from mailproxy.conf.report import explanation, headline, printable
from mailproxy.conf.tree import COMMAND_LINE, ConfigError, SourceText, decode, encode
from mailproxy.frozen import Frozen
from mailproxy.log import INFO, LEVELS, NOTICE, Logs, Record, open_startup_log
from mailproxy.process import control, generation
from mailproxy.process.configuration import ConfigErrors, Configuration, make_loader
from mailproxy.process.generation import GenerationError
from mailproxy.process.options import Options

if TYPE_CHECKING:
    from mailproxy.log import Logger

CONF_FILES = {
    "nginx": "/etc/nginx/nginx.conf",
    "angie": "/etc/angie/angie.conf",
    "mailproxy": "/etc/mailproxy/mailproxy.conf",
}
"""The main file if -c names none, by the name that the program was called by."""
CONFIGURE_ARGUMENTS = "--with-mail --with-mail_ssl_module"
"""What scripts look for in the output of -V."""

_TO_HELP = '"{name} --help" lists what there is'


class _OutputError(Frozen, Exception):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


def _options(found: Arguments, name: str, argv: Sequence[str]) -> Options:
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


def _output(text: str | bytes) -> None:
    """Write to standard output.

    Raises:
      _OutputError: it is closed, or its disk is full.
    """
    try:
        _write(1, text)
    except OSError as error:
        raise _OutputError(error) from error


def _tell(text: str) -> None:
    """Write to standard error; if that fails, there is nowhere left to report it."""
    with contextlib.suppress(OSError):
        _write(2, text)


class _Voice:
    """Reports errors of a configuration in the start-up log and to the user."""

    def __init__(self, options: Options, *, to_stderr: bool) -> None:
        """Open the start-up log.

        Args:
          options: of which `error_log` is the file of -e.
          to_stderr: -e names stderr, so messages go there once, in the log's format.
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
        self, messages: Iterable[ConfigError], sources: Mapping[str, SourceText]
    ) -> None:
        """Write nginx's line for each message and, for people, an explanation below it."""
        startup = self.startup
        for message in messages:
            copy, startup.copy_as = startup.copy_as, None
            startup.write(Record(LEVELS.index(message.level), message.text))
            startup.copy_as = copy
            if copy is not None:
                _tell(headline(message, self._name, colours=self._colours) + "\n")
            if not message.is_warning or message.remedy:
                _tell(explanation(message, sources, colours=self._colours))

    def line(self, text: str) -> None:
        """Write a line for people and scripts that goes to no log."""
        _tell(f"{self._name}: {text}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
      words: the command line without the program's name; None: that of the process.

    Returns:
      The exit code.
    """
    argv = [decode(os.fsencode(word)) for word in sys.argv]
    words = argv[1:] if words is None else list(words)
    name = os.path.basename(argv[0])
    name = name if name in CONF_FILES else "mailproxy"
    try:
        return _run(parse(words), name, argv)
    except UsageError as error:
        remedy = error.remedy or _TO_HELP.format(name=name)
        _tell(f"{name}: {error}\n  = {printable(remedy)}\n")
    except _OutputError as failure:
        # A reader that closes the pipe has read enough: `mailproxy -T | head`.
        if failure.error.errno != errno.EPIPE:
            reason = f"({failure.error.errno}: {failure.error.strerror})"
            _tell(f"{name}: cannot write to standard output {reason}\n")
    except KeyboardInterrupt:  # while names are looked up, for example
        _tell(f"{name}: interrupted\n")
    return 1


def _run(found: Arguments, name: str, argv: Sequence[str]) -> int:
    if found.command == "demo":
        from mailproxy import demo  # imports servers that only the demo needs

        gc.enable()
        return demo.main(found.rest)
    if found.command == "certificates":
        return _certificates(found.rest, name, argv)
    if found.show_version:
        _show(found, name)
        if not found.test:
            return 0
    if found.list_directives:
        from mailproxy import inspection  # only this option and --dump-json need it

        _output(inspection.list_directives())
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


def _show(found: Arguments, name: str) -> None:
    show = _output if found.on_stdout else _tell
    product = "Angie" if name == "angie" else name
    show(f"{product} version: mailproxy/{__version__}\n")
    if found.show_help:
        default = _default_file(name)
        show(usage(name, os.path.dirname(default) + "/", default))
    if found.show_configure:
        import platform  # these take longer to import than everything else
        import ssl

        from mailproxy.mail.ssl_context import not_available

        python = f"{platform.python_implementation()} {platform.python_version()}"
        show(
            f"built by {python} ({compiled.form()})\n"
            f"built with {ssl.OPENSSL_VERSION}\n"
            "TLS SNI support enabled\n"
            f"configure arguments: {CONFIGURE_ARGUMENTS}\n"
        )
        for trouble in (not_available(), compiled.problem()):
            if trouble is not None:
                _tell(f"{trouble}\n")


def _test(found: Arguments, options: Options, voice: _Voice) -> int:
    """Test the configuration: -t, -T, --dump-json."""
    loader = make_loader(options)
    sources = loader.interpreter.files
    configuration: Configuration | None = None
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
    # With -s as well, nginx does not try to open logs and ports.
    if configuration is None or (
        "s" not in found.values
        and not generation.test(configuration, options, voice.startup)
    ):
        voice.line(f"{file} test failed")
        return 1
    if not found.quiet:
        voice.line(f"{file} test is successful")
    if found.dump:
        for name, source in sources.items():
            if name != COMMAND_LINE:
                _output(f"# configuration file {name}:\n{source.text}\n")
    if found.dump_json:
        from mailproxy import inspection  # only this and --list-directives need it

        _output(inspection.dump_json(configuration, loader))
    return 0


def _certificates(words: Sequence[str], name: str, argv: Sequence[str]) -> int:
    """Show the certificates of a configuration; returns the exit code."""
    from mailproxy import certificates  # imports OpenSSL

    try:
        wanted = certificates.parse(words)
        found = parse(wanted.options)
        if found.test or found.show_version or {"s", "e"} & found.values.keys():
            raise UsageError("this command has no such option")
    except UsageError as error:
        remedy = error.remedy or f'"{name} help certificates" lists what there is'
        _tell(f"{name}: {error}\n  = {printable(remedy)}\n")
        return 2
    if wanted.help:
        _output(certificates.USAGE.format(name=name))
        return 0
    options = _options(found, name, argv)
    voice = _Voice(options, to_stderr=True)
    loader = make_loader(options)
    try:
        configuration = loader.load(options.globals_text)
    except ConfigErrors as errors:
        voice.say(errors.messages, loader.interpreter.files)
        return 2
    finally:
        voice.startup.close()
    text, code = certificates.show(
        configuration.servers, wanted, loader.reading.directory, datetime.now(UTC)
    )
    _output(text)
    return code


def _load(options: Options, voice: _Voice, log: Logger) -> Configuration:
    """Read the configuration, and log its errors and warnings.

    Raises:
      GenerationError: it cannot be used.
    """
    loader = make_loader(options)
    failure: ConfigErrors | None = None
    try:
        configuration = loader.load(options.globals_text)
        messages = configuration.messages
    except ConfigErrors as errors:
        failure, messages = errors, errors.messages
    if log is voice.startup.main:
        voice.say(messages, loader.interpreter.files)
    else:
        for message in messages:
            log.log(message.level, message.text)
            if message.unnamed is not None:
                log.log(message.level, f"the line before is about {message.unnamed}")
    if failure is not None:
        raise GenerationError from failure
    return configuration


def _signal(order: str, options: Options, voice: _Voice) -> int:
    """Send a signal to the running master: -s."""
    log = voice.startup.main
    try:
        configuration = _load(options, voice, log)
    except GenerationError:
        return 1
    return control.send(order, configuration.main.pid, log)


def _start(options: Options, voice: _Voice) -> int:
    from mailproxy.process import start  # imports the event loop

    return start.run(options, partial(_load, options, voice), voice.startup)
