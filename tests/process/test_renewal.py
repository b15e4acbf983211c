"""Certificates that change on disk come into use: on a made-up clock, with real files."""

from __future__ import annotations

import json
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trustme import KeyType

from mailproxy.log import INFO
from mailproxy.net.openssl import OpenSSLError
from mailproxy.process import certificate_orders
from mailproxy.process.certificate_orders import read_sheet, write_sheet
from mailproxy.process.configuration import Configuration
from mailproxy.process.renewal import SETTLING, Change, Renewal
from tests.captured_log import CapturedLog
from tests.named import Site, ask

DIRECTORY = "ssl_certificate_directory certs;"
DEFAULT = "ssl_certificate default.crt; ssl_certificate_key default.key;"
PERIOD = 60.0
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


class Watched:
    """A configuration that is watched, and a worker that has it, too.

    Attributes:
      configuration: the master's.
      worker: the same, as a worker has it by fork.
    """

    def __init__(self, site: Site, directives: str, *servers: str) -> None:
        self.site = site
        main = "ssl_certificate_watch 1m;"
        self.configuration = site.load(directives, *servers, main=main)
        self.worker = site.load(directives, *servers, main=main)
        self.changes: list[Change] = []
        self.time = 100.0
        self.today = NOW
        self._log = CapturedLog(INFO)
        self.renewal = Renewal(
            self.configuration,
            self._log.log,
            self._tell,
            clock=lambda: self.time,
            now=lambda: self.today,
        )

    def _tell(self, change: Change) -> None:
        """Tell the worker as the master does."""
        sheet = write_sheet(change)
        try:
            found = read_sheet(sheet)
        finally:
            os.close(sheet)
        certificate_orders.apply(found, self.worker, datetime.now(UTC))
        self.changes.append(change)

    def wait(self, seconds: float) -> None:
        """Let time pass, as the master does."""
        end = self.time + seconds
        self.today += timedelta(seconds=seconds)
        while (due := self.time + self.renewal.until_next()) <= end:
            self.time = max(due, self.time)
            self.renewal.catch_up()
            assert self.renewal.until_next() > 0
        self.time = end

    def log(self) -> list[str]:
        """What was logged since the last call, without the directory."""
        events = list(self._log.events)
        self._log.events.clear()
        return [
            f"[{level}] {text}".replace(f"{self.site.directory}/", "")
            for level, text in events
        ]

    def serial(self, name: str | None, where: Configuration | None = None) -> str:
        """Which certificate a client gets, from the worker if not said otherwise."""
        server = (self.worker if where is None else where).servers[0]
        assert server.ssl.context is not None
        return serial(server.ssl.context, name)

    def served(self, name: str | None) -> str:
        """The same, from both: they must agree."""
        found = {self.serial(name), self.serial(name, self.configuration)}
        (one,) = found
        return one


def serial(context: ssl.SSLContext, name: str | None) -> str:
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    der = ask(context, client, name).client.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


UNTIL = "3000-01-01"
"""When trustme's certificates end."""


@pytest.mark.proves("ssl_certificate_watch")
def test_new_files_come_into_use(site: Site) -> None:
    first = site.issuer.put("a.example.org", "b.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    before = watched.served("a.example.org")
    assert first.cert_chain_pems[0].bytes().decode() == before
    watched.wait(10 * PERIOD)
    assert watched.log() == []
    second = site.issuer.put("a.example.org", "b.example.org")
    watched.wait(PERIOD)
    assert watched.served("a.example.org") == before
    watched.wait(SETTLING)
    assert watched.served("b.example.org") == second.cert_chain_pems[0].bytes().decode()
    assert watched.log() == [
        '[notice] certificate "certs/a.example.org.crt" was renewed:'
        f" a.example.org, b.example.org, until {UNTIL}"
    ]
    assert len(watched.changes) == 1
    watched.wait(10 * PERIOD)
    assert len(watched.changes) == 1


def test_a_new_one_and_one_that_is_gone(site: Site) -> None:
    site.issuer.put("a.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    default = watched.served(None)
    site.issuer.put("b.example.org")
    for end in ("crt", "key"):
        (site.directory / "certs" / f"a.example.org.{end}").unlink()
    watched.wait(PERIOD + SETTLING)
    assert watched.served("a.example.org") == default
    assert watched.served("b.example.org") != default
    assert sorted(watched.log()) == [
        '[notice] certificate "certs/a.example.org.crt" is gone',
        '[notice] certificate "certs/b.example.org.crt" is new',
    ]


def test_links_that_are_swapped_one_by_one(site: Site) -> None:
    """certbot renames fullchain.pem and privkey.pem one after the other."""
    site.issuer.write(site.issuer.issue("a.example.org"), "a/1.crt", "a/1.key")
    site.issuer.write(site.issuer.issue("a.example.org"), ".b/2.crt", ".b/2.key")
    live = site.directory / "certs" / "live"
    live.mkdir()
    (live / "fullchain.pem").symlink_to("../.a/1.crt")
    (live / "privkey.pem").symlink_to("../.a/1.key")
    (site.directory / "certs" / "a").rename(site.directory / "certs" / ".a")
    watched = Watched(site, DEFAULT + DIRECTORY)
    before = watched.served("a.example.org")
    swap(live / "fullchain.pem", "../.b/2.crt")
    watched.wait(PERIOD + 1)
    swap(live / "privkey.pem", "../.b/2.key")
    watched.wait(1)
    assert watched.served("a.example.org") == before
    assert watched.log() == []
    watched.wait(SETTLING)
    assert watched.served("a.example.org") != before
    assert watched.log() == [
        '[notice] certificate "certs/live/fullchain.pem" was renewed:'
        f" a.example.org, until {UNTIL}"
    ]


def swap(link: Path, target: str) -> None:
    new = link.with_name("new")
    new.symlink_to(target)
    new.rename(link)


def test_what_does_not_fit_leaves_its_predecessor(site: Site) -> None:
    good = site.issuer.put("a.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    before = watched.served("a.example.org")
    path = site.directory / "certs" / "a.example.org.crt"
    path.write_bytes(site.issuer.issue("a.example.org").cert_chain_pems[0].bytes())
    watched.wait(2 * PERIOD)
    assert watched.served("a.example.org") == before
    error = (
        '[error] certificate "certs/a.example.org.crt" was changed, but is not used: %s'
    )
    assert watched.log() == [error % "key does not match"]
    site.issuer.put("b.example.org")  # something else happens
    watched.wait(2 * PERIOD)
    assert watched.log() == ['[notice] certificate "certs/b.example.org.crt" is new']
    path.write_bytes(path.read_bytes()[:-40])  # half written
    watched.wait(2 * PERIOD)
    assert watched.log() == [error % "cannot be parsed"]
    assert watched.served("a.example.org") == before
    site.issuer.write(good, path.name, "a.example.org.key")  # back again
    watched.wait(2 * PERIOD)
    assert watched.log() == []
    assert watched.served("a.example.org") == before
    site.issuer.put("a.example.org")
    watched.wait(2 * PERIOD)
    assert watched.served("a.example.org") != before


def test_a_file_that_is_written_slowly_is_not_read_too_early(site: Site) -> None:
    site.issuer.put("a.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    new = site.issuer.issue("a.example.org")
    path = site.directory / "certs" / "a.example.org.crt"
    content = new.cert_chain_pems[0].bytes()
    (site.directory / "certs" / "a.example.org.key").write_bytes(
        new.private_key_pem.bytes()
    )
    watched.wait(PERIOD - 1)
    for size in range(100, len(content), 100):
        path.write_bytes(content[:size])
        watched.wait(1.9)
    path.write_bytes(content)
    watched.wait(2 * SETTLING)
    assert watched.served("a.example.org") == content.decode()
    assert len(watched.log()) == 1


def test_a_directory_that_is_gone_for_a_while(site: Site) -> None:
    site.issuer.put("a.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    before = watched.served("a.example.org")
    directory = site.directory / "certs"
    directory.rename(site.directory / "away")
    watched.wait(10 * PERIOD)
    assert watched.served("a.example.org") == before
    assert watched.log() == [
        '[error] open() "certs" failed (2: No such file or directory)'
    ]
    (site.directory / "away").rename(directory)
    watched.wait(PERIOD + SETTLING)
    assert watched.served("a.example.org") == before
    assert watched.log() == []


def test_the_default_is_renewed_and_tickets_go_on(site: Site) -> None:
    watched = Watched(site, DEFAULT)
    context = watched.worker.servers[0].ssl.context
    assert context is not None
    before = watched.served(None)
    client = site.issuer.client()
    session = ask(context, client, None).session
    leaf = site.issuer.issue("default.example.org", "new.example.org")
    site.issuer.write(leaf, "../default.crt", "../default.key")
    watched.wait(PERIOD + SETTLING)
    assert watched.served(None) != before
    assert watched.log() == [
        '[notice] certificate "default.crt" was renewed:'
        f" default.example.org, new.example.org, until {UNTIL}"
    ]
    assert ask(context, client, None, session).resumed
    own = watched.configuration.servers[0].ssl.own
    assert own is not None
    assert own.defaults[0].leaf.names == ("default.example.org", "new.example.org")


def test_a_default_that_does_not_fit(site: Site) -> None:
    watched = Watched(site, DEFAULT)
    before = watched.served(None)
    error = '[error] certificate "default.crt" was changed, but is not used: '
    leaf = site.issuer.issue("default.example.org")
    (site.directory / "default.crt").write_bytes(leaf.cert_chain_pems[0].bytes())
    watched.wait(2 * PERIOD)
    assert watched.log() == [error + "key does not match"]
    (site.directory / "default.crt").unlink()
    watched.wait(2 * PERIOD)
    assert watched.log() == [error + "open() failed (2: No such file or directory)"]
    rsa = site.issuer.issue("default.example.org", kind=KeyType.RSA)
    site.issuer.write(rsa, "../default.crt", "../default.key")
    watched.wait(2 * PERIOD)
    assert watched.log() == [error + "its key is of another kind, which needs a reload"]
    assert watched.served(None) == before
    assert watched.changes == []


def test_servers_that_share_a_file_are_all_renewed(site: Site) -> None:
    directives = DEFAULT + "ssl_prefer_server_ciphers on;"
    watched = Watched(site, DEFAULT, directives)
    site.issuer.write(
        site.issuer.issue("new.example.org"), "../default.crt", "../default.key"
    )
    watched.wait(PERIOD + SETTLING)
    (change,) = watched.changes
    assert [each.own for each in change.defaults] == [0, 1]
    assert len(watched.log()) == 1
    contexts = [server.ssl.context for server in watched.worker.servers]
    assert None not in contexts
    assert len({serial(each, None) for each in contexts if each is not None}) == 1


def test_without_the_directive_nothing_is_looked_at(site: Site) -> None:
    site.issuer.put("a.example.org")
    configuration = site.load(DEFAULT + DIRECTORY)
    log = CapturedLog(INFO)
    renewal = Renewal(configuration, log.log, lambda _: None, clock=lambda: 0.0)
    assert renewal.until_next() == DAY.total_seconds()


def test_without_tls_there_is_nothing_to_do(site: Site) -> None:
    configuration = site.load()
    renewal = Renewal(
        configuration, CapturedLog(INFO).log, lambda _: None, clock=lambda: 0.0
    )
    assert renewal.until_next() == float("inf")


@pytest.mark.proves("ssl_certificate_warning")
def test_expiry_is_said_day_by_day(site: Site) -> None:
    ends = NOW + 8 * DAY
    site.issuer.put("a.example.org", begins=NOW - 90 * DAY, ends=ends)
    main = "ssl_certificate_warning 7d 1d;"
    configuration = site.load(DEFAULT + DIRECTORY, main=main)
    assert site.messages == []
    log = CapturedLog(INFO)
    today, time = NOW, 0.0
    renewal = Renewal(
        configuration,
        log.log,
        lambda _: None,
        clock=lambda: time,
        now=lambda: today,
    )
    for _ in range(10):
        time += renewal.until_next()
        today = NOW + timedelta(seconds=time)
        renewal.catch_up()
    path = site.directory / "certs" / "a.example.org.crt"
    on = f'certificate "{path}" (a.example.org) expires in %s, on {ends.date()}'
    assert list(log.events) == [
        ("warn", on % "7 days"),
        ("error", on % "24 hours"),
        ("error", f'certificate "{path}" has expired on {ends.date()}'),
        ("error", f'certificate "{path}" has expired on {ends.date()}'),
    ]


@pytest.mark.proves("ssl_certificate_warning", "off")
def test_the_configuration_test_warns_unless_told_not_to(site: Site) -> None:
    ends = NOW + 5 * DAY
    site.issuer.put("a.example.org", begins=NOW - 90 * DAY, ends=ends)
    site.load(DEFAULT + DIRECTORY)
    (warning,) = site.messages
    assert warning.startswith(
        '[warn] certificate "certs/a.example.org.crt" (a.example.org) expires in '
    )
    site.load(DEFAULT + DIRECTORY, main="ssl_certificate_warning off;")
    assert site.messages == []


# -- the sheet ---------------------------------------------------------------------


def test_the_sheet_cannot_be_changed(site: Site) -> None:
    sheet = write_sheet(Change())
    try:
        with pytest.raises(PermissionError):
            os.pwrite(sheet, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(sheet, 0)
        assert stat.S_ISREG(os.fstat(sheet).st_mode)
        assert json.loads(os.pread(sheet, 1000, 0)) == {"shelves": [], "defaults": []}
        assert read_sheet(sheet) == read_sheet(sheet) == Change()
    finally:
        os.close(sheet)


def test_a_worker_takes_all_or_nothing(site: Site) -> None:
    site.issuer.put("a.example.org")
    watched = Watched(site, DEFAULT + DIRECTORY)
    before = watched.serial("a.example.org"), watched.serial(None)
    site.issuer.put("a.example.org")
    leaf = site.issuer.issue("default.example.org", kind=KeyType.RSA)
    watched.wait(PERIOD + SETTLING)
    (change,) = watched.changes
    broken = change.shelves[0].pairs[0]
    bad = type(broken)(
        broken.file,
        broken.key_file,
        broken.leaf,
        leaf.cert_chain_pems[0].bytes(),
        (),
        b"",
    )
    after = watched.serial("a.example.org"), watched.serial(None)
    assert after[0] != before[0]
    change.shelves[0] = type(change.shelves[0])(0, (bad,), ())
    with pytest.raises(OpenSSLError):
        certificate_orders.apply(change, watched.worker, datetime.now(UTC))
    assert (watched.serial("a.example.org"), watched.serial(None)) == after
