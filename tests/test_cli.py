"""The command line, through the front door: arguments in, output and exit code out."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mailproxy import __version__, cli
from mailproxy.arguments import COMMANDS


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Calls the program; P in its output is the directory it has to itself."""

    def call(*words: str, name: str = "mailproxy") -> Ran:
        monkeypatch.setattr(sys, "argv", [f"/usr/sbin/{name}", *words])
        code = cli.main()
        out, err = (text.replace(str(tmp_path), "P") for text in capfd.readouterr())
        return Ran(code, out, err)

    return call


GOOD = "pid mail.pid; error_log mail.log; events {}"
SERVING = f"{GOOD} mail {{ auth_http 127.0.0.1; server {{ listen 127.0.0.1:143; }} }}"


@pytest.fixture
def check(tmp_path: Path, run: Run) -> Run:
    """The same for a configuration: its text first."""

    def call(text: str, *words: str, name: str = "mailproxy") -> Ran:
        path = tmp_path / "mail.conf"
        path.write_text(text)
        return run("-p", str(tmp_path), "-c", str(path), *words, name=name)

    return call


# -- arguments ---------------------------------------------------------------------


HELP = '"mailproxy --help" lists what there is'


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (["x"], 'invalid option: "x"', HELP),
        (["hlep"], 'invalid option: "hlep"', 'did you mean "help"?'),
        (["-t", "demo"], 'invalid option: "demo"', '"demo" must be the first word'),
        (["-x"], 'invalid option: "x"', HELP),
        (["-tx"], 'invalid option: "x"', HELP),
        (["--hepl"], 'invalid option: "-"', 'did you mean "--help"?'),
        (["--test"], 'invalid option: "-"', HELP),
        (["version", "x"], 'invalid option: "x"', HELP),
        (["help", "deno"], 'invalid option: "deno"', 'did you mean "demo"?'),
        (["-s", "foo"], 'invalid option: "-s foo"', "signals are stop, quit, reopen, reload"),
        (["-sfoo"], 'invalid option: "-s foo"', "signals are stop, quit, reopen, reload"),
        (["-p"], 'option "-p" requires directory name', HELP),
        (["-tc"], 'option "-c" requires file name', HELP),
        (["-e"], 'option "-e" requires file name', HELP),
        (["-g"], 'option "-g" requires parameter', HELP),
        (["-s"], 'option "-s" requires parameter', HELP),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(
    run: Run, words: list[str], message: str, remedy: str
) -> None:
    assert run(*words) == Ran(1, "", f"mailproxy: {message}\n  = {remedy}\n")


@pytest.mark.parametrize("name", ["mailproxy", "nginx", "angie"])
def test_help_and_version_are_asked_for_in_many_ways(run: Run, name: str) -> None:
    for words in (["--help"], ["help"], ["help", "help"], ["version", "--help"]):
        assert run(*words, name=name) == Ran(0, run("-h", name=name).err, "")
    for words in (["--version"], ["version"]):
        assert run(*words, name=name) == Ran(0, run("-v", name=name).err, "")
    assert run("-h", name=name) == run("-?", name=name)


def test_the_help_lists_the_commands(run: Run) -> None:
    out = run("--help").out
    listed = re.findall(
        r"^  (\w+) +: (.*)$", out.partition("Commands:")[2], re.MULTILINE
    )
    assert dict(listed) == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_a_help(
    command: str, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["help", command], [command, "--help"]):
        if command == "demo":
            with pytest.raises(SystemExit, match=r"^0$"):
                run(*words)
            out, err = capfd.readouterr()
        else:
            _, out, err = run(*words)
        assert err == ""
        assert f"sage: mailproxy {command if command == 'demo' else ''}" in out


@pytest.mark.parametrize(
    "words", [["--list-directives"], ["--version"], ["--help"], ["-T"], ["--dump-json"]]
)
def test_output_that_cannot_be_written_is_one_sentence(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mail.conf").write_text(SERVING)
    place = ["-q", "-p", str(tmp_path), "-c", "mail.conf"]
    command = [sys.executable, "-m", "mailproxy", *words]
    if words[0] in ("-T", "--dump-json"):
        command += place
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        b"mailproxy: cannot write to standard output (28: No space left on device)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_without_standard_error_the_exit_code_still_tells(tmp_path: Path) -> None:
    (tmp_path / "mail.conf").write_text("events {} foo;")
    command = [sys.executable, "-m", "mailproxy", "-t", "-p", str(tmp_path)]
    with Path("/dev/full").open("wb") as full:
        bad = subprocess.run([*command, "-c", "mail.conf"], stderr=full, check=False)
        (tmp_path / "mail.conf").write_text(SERVING)
        good = subprocess.run([*command, "-c", "mail.conf"], stderr=full, check=False)
    assert (bad.returncode, good.returncode) == (1, 0)


def test_the_name_of_the_program_is_in_front_of_messages(run: Run) -> None:
    assert run("x", name="nginx").err.startswith("nginx: ")
    assert run("x", name="angie").err.startswith("angie: ")
    assert run("x", name="other").err.startswith("mailproxy: ")


def test_a_value_is_the_rest_of_its_word_or_the_next_word(run: Run) -> None:
    missing = "failed (2: No such file or directory)"
    assert f'open() "/none/x" {missing}' in run("-tqp/none", "-cx").err
    assert f'open() "/none/-q" {missing}' in run("-t", "-p", "/none/", "-c", "-q").err


def test_a_dash_alone_is_no_option(check: Run) -> None:
    assert check(GOOD, "-", "-t").code == 0


def test_the_version(run: Run) -> None:
    assert run("-v") == Ran(0, "", f"mailproxy version: mailproxy/{__version__}\n")
    assert run("-v", name="nginx").err == f"nginx version: mailproxy/{__version__}\n"
    assert run("-v", name="angie").err == f"Angie version: mailproxy/{__version__}\n"


def test_what_it_was_built_with_is_what_scripts_look_for(run: Run) -> None:
    code, out, err = run("-V")
    assert (code, out) == (0, "")
    version, python, library, sni, arguments = err.splitlines()
    assert version == f"mailproxy version: mailproxy/{__version__}"
    assert re.fullmatch(r"built by CPython 3\.\d+\.\d+\S* \((.*)\)", python)
    assert library == f"built with {ssl.OPENSSL_VERSION}"
    assert sni == "TLS SNI support enabled"
    assert arguments == "configure arguments: --with-mail --with-mail_ssl_module"


def test_the_help_is_nginx_s_and_names_the_defaults(run: Run) -> None:
    code, out, err = run("-?", name="nginx")
    assert (code, out) == (0, "")
    assert err == (
        f"""nginx version: mailproxy/{__version__}
Usage: nginx [-?hvVtTq] [-s signal] [-p prefix]
             [-e filename] [-c filename] [-g directives]

Options:
  -?,-h         : this help
  -v            : show version and exit
  -V            : show version and configure options then exit
  -t            : test configuration and exit
  -T            : test configuration, dump it and exit
  -q            : suppress non-error messages during configuration testing
  -s signal     : send signal to a master process: stop, quit, reopen, reload
  -p prefix     : set prefix path (default: /etc/nginx/)
  -e filename   : set error log file (default: stderr)
  -c filename   : set configuration file (default: /etc/nginx/nginx.conf)
  -g directives : set global directives out of configuration file

"""
    )
    assert "--dump-json" in run("-h").err


def test_with_a_version_the_configuration_is_tested_all_the_same(check: Run) -> None:
    ran = check(GOOD, "-vt")
    assert ran.code == 0
    assert "version" in ran.err
    assert "test is successful" in ran.err


# -- testing a configuration -------------------------------------------------------


def test_a_good_configuration(check: Run) -> None:
    assert check(SERVING, "-t") == Ran(
        0,
        "",
        "mailproxy: the configuration file P/mail.conf syntax is ok\n"
        "mailproxy: configuration file P/mail.conf test is successful\n",
    )
    assert check(SERVING, "-tq") == Ran(0, "", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            GOOD,
            """\
mailproxy: [warn] there is no "mail" block, nothing will be served
  = write one: mail { server { listen 143; protocol imap; auth_http URL; } }
""",
        ),
        (
            f"{GOOD}\nmail {{ }}",
            """\
mailproxy: [warn] there is no mail server, nothing will be served in P/mail.conf:2
    2 | mail { }
      | ^^^^ write one: mail { server { listen 143; protocol imap; auth_http URL; } }
""",
        ),
    ],
)
def test_a_configuration_that_serves_nothing_is_told(
    check: Run, text: str, said: str
) -> None:
    assert check(text, "-tq") == Ran(0, "", said)


def test_a_bad_configuration(check: Run) -> None:
    assert check("events {}\nmail { timeout x; }", "-tq") == Ran(
        1,
        "",
        """\
mailproxy: [emerg] "timeout" directive invalid value in P/mail.conf:2
    2 | mail { timeout x; }
      |                ^ a time is like 30s, 1h30m or 500ms; units are ms s m h d w, largest first
mailproxy: configuration file P/mail.conf test failed
""",
    )


def test_what_is_wrong_only_for_a_start_comes_after_the_syntax(check: Run) -> None:
    assert check("worker_processes 2; worker_cpu_affinity 1 1 1;", "-t").err == (
        """\
mailproxy: the configuration file P/mail.conf syntax is ok
mailproxy: [warn] the number of "worker_processes" is not equal to the number of \
"worker_cpu_affinity" masks, using last mask for remaining worker processes
mailproxy: [emerg] no "events" section in configuration
  = nginx wants one: events {}
mailproxy: configuration file P/mail.conf test failed
"""
    )


def test_mistakes_on_the_command_line_are_shown_too(check: Run) -> None:
    assert check("events {}", "-t", "-g", "foo 1;").err == (
        """\
mailproxy: [emerg] unknown directive "foo" in command line
    1 | foo 1;
      | ^^^
mailproxy: configuration file P/mail.conf test failed
"""
    )


def test_logs_and_ports_are_tried(check: Run, tmp_path: Path) -> None:
    assert check(f"{SERVING} mail {{ error_log none/x; }}", "-t") == Ran(
        1,
        "",
        "mailproxy: the configuration file P/mail.conf syntax is ok\n"
        'mailproxy: [emerg] open() "P/none/x" failed (2: No such file or directory)\n'
        "mailproxy: configuration file P/mail.conf test failed\n",
    )
    server = "listen unix:/none/x; protocol imap; auth_http 127.0.0.1;"
    assert "[emerg] bind() to unix:/none/x failed (2: No such file or directory)" in (
        check(f"{GOOD} mail {{ server {{ {server} }} }}", "-t").err
    )


def test_the_startup_log_has_nginx_s_lines_and_no_others(
    check: Run, tmp_path: Path
) -> None:
    err = check("events {}\nmail { timout 1; foo; }", "-t", "-e", "start.log").err
    assert err.startswith('mailproxy: [emerg] unknown directive "timout"')
    lines = (tmp_path / "start.log").read_text().splitlines()
    assert [re.sub(r"^[\d/]+ [\d:]+ |\d+#\d+: ", "", line) for line in lines] == [
        f'[emerg] unknown directive "timout" in {tmp_path}/mail.conf:2',
        f'[emerg] unknown directive "foo" in {tmp_path}/mail.conf:2',
    ]


def test_where_stderr_is_the_startup_log_messages_have_its_form(check: Run) -> None:
    err = check("events {}\nfoo;", "-t", "-e", "stderr").err
    assert re.match(
        r'[\d/]{10} [\d:]{8} \[emerg\] \d+#\d+: unknown directive "foo" in P/mail.conf:2\n'
        r"    2 \| foo;\n",
        err,
    )


def test_the_dump_has_every_file_once(check: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"# \xff\n")
    (tmp_path / "b").write_text("include a;\n")
    text = f"{GOOD}\ninclude a; include b;\nhttp {{ include c; }}\n"
    (tmp_path / "c").write_text("x y;")
    path = tmp_path / "mail.conf"
    path.write_text(text)
    command = [
        sys.executable,
        "-m",
        "mailproxy",
        "-Tq",
        "-c",
        str(path),
        "-p",
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, check=True)
    place = os.fsencode(tmp_path)
    assert ran.stdout == b"".join(
        b"# configuration file %s/%s:\n%s\n" % (place, name, content)
        for name, content in [
            (b"mail.conf", text.encode()),
            (b"a", b"# \xff\n"),
            (b"b", b"include a;\n"),
            (b"c", b"x y;"),
        ]
    )


def test_there_is_no_dump_of_what_is_wrong(check: Run) -> None:
    assert check("events {} x;", "-T").out == ""


def test_values_in_effect_are_dumped_with_their_origin(check: Run) -> None:
    ran = check(
        f"""{GOOD}
        mail {{
            auth_http 127.0.0.1/auth; timeout 5s; imap_auth login;
            server {{ listen 127.0.0.1:10143; protocol imap; timeout 9s; }}
            server {{ listen 127.0.0.1:10110; protocol pop3; }}
        }}""",
        "--dump-json",
        "-t",
    )
    assert (ran.code, ran.err) == (0, "")
    tree = json.loads(ran.out)
    first, second = tree["servers"]
    assert first["where"] == "P/mail.conf:4"
    assert first["core"]["timeout"] == {
        "value": 9.0,
        "set": "server",
        "where": "P/mail.conf:4",
    }
    assert second["core"]["timeout"] == {
        "value": 5.0,
        "set": "mail",
        "where": "P/mail.conf:3",
    }
    assert first["imap"]["imap_auth"]["value"] == ["login"]
    assert second["pop3"]["pop3_auth"] == {
        "value": ["login", "plain"],
        "set": "default",
    }
    assert second["auth"]["auth_http"]["value"]["uri"] == "/auth"
    assert tree["main"]["pid"]["value"] == "P/mail.pid"
    assert tree["events"]["worker_connections"] == {"value": 512, "set": "default"}


def test_groups_of_backends_are_dumped(check: Run) -> None:
    ran = check(
        f"""{GOOD}
        mail {{
            auth_http 127.0.0.1/auth;
            upstream a {{
                server 127.0.0.1:143 weight=2;
                server 127.0.0.2:143 down;
                hash x$auth_user consistent;
            }}
            server {{ listen 127.0.0.1:10143; protocol imap; proxy_pass a; }}
        }}""",
        "--dump-json",
    )
    tree = json.loads(ran.out)
    (group,) = tree["upstreams"]
    assert (group["name"], group["where"]) == ("a", "P/mail.conf:4")
    first, second = group["server"]["value"]
    assert (first["server"], first["weight"], second["down"]) == (
        "127.0.0.1:143",
        2,
        True,
    )
    assert group["server"]["where"] == "P/mail.conf:6"
    assert group["hash"]["value"]["key"] == ["x", {"name": "auth_user"}]
    assert group["least_conn"] == {"value": False, "set": "default"}
    assert tree["servers"][0]["proxy"]["proxy_pass"]["value"] == "a"


def test_all_directives_are_listed(run: Run) -> None:
    code, out, err = run("--list-directives")
    assert (code, err) == (0, "")
    assert (
        "| `proxy_timeout` | `time` | `24h` | mail, server | Idle time after which "
        "a relayed session is closed, in seconds. | nginx |\n"
    ) in out


def test_a_signal_needs_a_good_configuration_and_a_pid_file(check: Run) -> None:
    assert check("x;", "-s", "reload").code == 1
    assert check(SERVING, "-sreload") == Ran(
        1,
        "",
        'mailproxy: [error] open() "P/mail.pid" failed (2: No such file or directory)\n',
    )
    assert check(GOOD, "-ts", "stop").code == 0


# -- speed -------------------------------------------------------------------------


def test_a_thousand_servers_are_tested_in_a_second_of_work(tmp_path: Path) -> None:
    servers = "".join(
        f"""    server {{
        listen 127.1.{i // 200}.{1 + i % 200}:20030;
        server_name host{i}.example.com;
        protocol imap;
        auth_http 127.0.0.1:9000/auth/{i};
        auth_http_header X-Server host{i};
        timeout 90s;
        proxy_timeout 1h;
        proxy_pass_error_message on;
        imap_capabilities IMAP4rev1 UIDPLUS IDLE LITERAL+;
    }}
"""
        for i in range(1000)
    )
    path = tmp_path / "mail.conf"
    path.write_text(
        f"{GOOD.replace('{}', '{ worker_connections 9999; }')} mail {{ {servers} }}"
    )
    command = [
        sys.executable,
        "-m",
        "mailproxy",
        "-t",
        "-p",
        str(tmp_path),
        "-c",
        str(path),
    ]
    before = os.times()
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    used = after.children_user - before.children_user
    used += after.children_system - before.children_system
    # A tenth as much again for machines that are slower than those we have.
    assert used < 2, f"{used} s of work in {time.monotonic() - started} s"
