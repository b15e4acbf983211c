"""Log files whose names others than root can lead elsewhere."""

import contextlib
import errno
import os
import select
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy.log import ERROR, ErrorLog, Logs, WorkerAccount, open_logs
from mailproxy.log import files as under_test
from mailproxy.log.directive import File
from mailproxy.log.files import Opened, RefusedError, open_for_appending

UID = 33
WORKERS = WorkerAccount(UID, frozenset({33, 4}))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be tricked")


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory of root's that everybody can look into."""
    directory = Path(tempfile.mkdtemp(prefix="mailproxy-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def logs(root: Path) -> Path:
    """The log directory: it is the workers' user's."""
    directory = root / "logs"
    directory.mkdir()
    os.chown(directory, UID, UID)
    return directory


@pytest.fixture
def precious(root: Path) -> Path:
    """A file of root's that has to stay as it is."""
    path = root / "precious"
    path.write_text("root's alone")
    path.chmod(0o600)
    return path


def is_untouched(precious: Path) -> bool:
    found = precious.stat()
    return (
        precious.read_text() == "root's alone"
        and found.st_uid == 0
        and stat.S_IMODE(found.st_mode) == 0o600
    )


def by_attacker(code: str, *arguments: Path) -> None:
    """Run a line of Python as the workers' user."""
    subprocess.run(
        [sys.executable, "-c", f"import os, sys; a, b = sys.argv[1:3]; {code}"]
        + [str(argument) for argument in arguments],
        user=UID,
        group=UID,
        extra_groups=[],
        check=True,
        cwd="/",
    )


def symbolic_link(path: Path, precious: Path) -> None:
    by_attacker("os.symlink(b, a)", path, precious)


def dangling_link(path: Path, precious: Path) -> None:
    by_attacker("os.symlink(b, a)", path, precious.with_name("not-there"))


def relative_link(path: Path, precious: Path) -> None:
    by_attacker("os.symlink('../precious', a)", path, precious)


def link_to_link(path: Path, precious: Path) -> None:
    """The second link is root's, and in a place that only root can change."""
    second = precious.with_name("link")
    second.symlink_to(precious)
    by_attacker("os.symlink(b, a)", path, second)


def hard_link(path: Path, precious: Path) -> None:
    """Made by root: it depends on fs.protected_hardlinks who else could make it."""
    os.link(precious, path)


def fifo(path: Path, _precious: Path) -> None:
    by_attacker("os.mkfifo(a)", path, path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    _open_ends.append(reader)


_open_ends: list[int] = []
TRICKS = pytest.mark.parametrize(
    "trick",
    [symbolic_link, dangling_link, relative_link, link_to_link, hard_link, fifo],
)
Trick = Callable[[Path, Path], None]


@pytest.fixture(autouse=True)
def no_open_ends() -> Iterator[None]:
    yield
    while _open_ends:
        os.close(_open_ends.pop())


def open_log(path: Path, workers: WorkerAccount | None = WORKERS) -> Logs:
    return open_logs([ErrorLog(File(str(path)), ERROR)], default="", workers=workers)


def opened(path: Path, workers: WorkerAccount | None = WORKERS) -> Opened:
    found = open_for_appending(str(path), workers)
    os.close(found.fd)
    return found


class TestTricks:
    @TRICKS
    def test_at_the_start_end_it(
        self, logs: Path, precious: Path, trick: Trick
    ) -> None:
        trick(logs / "a", precious)
        with pytest.raises(RefusedError) as caught:
            open_log(logs / "a")
        assert caught.value.filename == str(logs / "a")
        assert f'others than root can change "{logs}", where ' in caught.value.reason
        assert is_untouched(precious)
        assert not precious.with_name("not-there").exists()

    @TRICKS
    def test_at_a_reopen_leave_the_old_file_in_use(
        self, logs: Path, precious: Path, trick: Trick
    ) -> None:
        path, old = logs / "a", logs / "a.1"
        log = open_log(path)
        path.rename(old)
        trick(path, precious)
        log.reopen(give=True)
        log.main.error("still here")
        log.close()
        first, second = old.read_text().splitlines()
        assert f'[emerg] {os.getpid()}#{os.getpid()}: open() "{path}" failed (' in first
        assert f'others than root can change "{logs}", where ' in first
        assert second.endswith("still here")
        assert is_untouched(precious)
        assert not precious.with_name("not-there").exists()

    @TRICKS
    def test_are_refused_by_workers_too(
        self, logs: Path, precious: Path, trick: Trick
    ) -> None:
        path, old = logs / "a", logs / "a.1"
        log = open_log(path)
        path.rename(old)
        trick(path, precious)
        log.reopen()
        log.close()
        assert "[emerg]" in old.read_text()

    def test_with_directories_are_refused(self, logs: Path, precious: Path) -> None:
        secret = logs.with_name("secret")
        secret.mkdir()
        by_attacker("os.symlink(b, a)", logs / "d", secret)
        with pytest.raises(RefusedError):
            open_log(logs / "d" / "new")
        assert list(secret.iterdir()) == []

    def test_below_a_directory_of_roots_are_refused(self, logs: Path) -> None:
        """Who has the directory above can exchange it for one of their own."""
        below = logs / "roots"
        below.mkdir()
        (below / "a").symlink_to("/etc/passwd")
        with pytest.raises(RefusedError):
            open_log(below / "a")

    def test_before_a_configuration_is_read_are_refused(
        self, logs: Path, precious: Path
    ) -> None:
        symbolic_link(logs / "a", precious)
        with pytest.raises(RefusedError):
            opened(logs / "a", under_test.unknown_workers())


def exchanges(path: Path, precious: Path) -> list[Callable[[], None]]:
    """What may happen at any moment to the name of a log."""
    spare = path.with_name("spare")

    def put(make: Callable[[], None]) -> Callable[[], None]:
        def exchange() -> None:
            with contextlib.suppress(FileNotFoundError):
                spare.unlink()
            make()
            os.rename(spare, path)

        return exchange

    return [
        put(lambda: spare.symlink_to(precious)),
        put(lambda: os.link(precious, spare)),
        put(lambda: os.mkfifo(spare)),
        put(spare.touch),
        path.unlink,
    ]


CALLS = ("open", "fstat", "stat", "readlink", "fchown", "fchmod", "set_blocking")


def at_call(
    number: int, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]
) -> list[str]:
    """Have something happen just before a system call of the opener's.

    Returns the calls so far, which grows.
    """
    made: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object, **more: object) -> object:
            made.append(name)
            if len(made) == number + 1:
                with monkeypatch.context() as unwatched:
                    for each, original in originals.items():
                        unwatched.setattr(os, each, original)
                    with contextlib.suppress(FileNotFoundError, FileExistsError):
                        happen()
            return real(*arguments, **more)

        return call

    originals = {name: getattr(os, name) for name in CALLS}
    for name in CALLS:
        monkeypatch.setattr(os, name, watched(name))
    return made


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("then", range(5))
def test_name_that_changes_between_any_two_calls_leads_nowhere_else(
    logs: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    then: int,
) -> None:
    path = logs / "a"
    number = 0
    while True:
        path.unlink(missing_ok=True)
        log = open_log(path)
        changes = exchanges(path, precious)
        changes[first]()
        with monkeypatch.context() as watching:
            made = at_call(number, watching, changes[then])
            log.reopen(give=True)
        log.main.error("line")
        log.close()
        assert is_untouched(precious), made
        if len(made) <= number:
            break
        number += 1
    assert number > 8, "it was looked at every call"


def test_file_that_has_lost_its_name_meanwhile_is_not_the_log(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotation may come between open(2) and the look at what was opened."""
    path = logs / "a"
    path.touch()
    real = os.fstat

    def rotate(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if stat.S_ISREG(found.st_mode) and not (logs / "a.1").exists():
            path.rename(logs / "a.1")
            path.touch()  # as logrotate does it
        return found

    monkeypatch.setattr(os, "fstat", rotate)
    log = open_log(path)
    log.main.error("line")
    log.close()
    assert path.read_text().endswith("line\n")
    assert (logs / "a.1").read_text() == ""


def test_directory_that_becomes_a_link_is_not_followed(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, target = logs / "d", logs.with_name("target")
    target.mkdir()
    number = 0
    while True:
        inner.mkdir()
        moved = logs / "moved"

        def exchange(moved: Path = moved) -> None:
            inner.rename(moved)
            inner.symlink_to(target)

        with monkeypatch.context() as watching:
            made = at_call(number, watching, exchange)
            with contextlib.suppress(RefusedError):
                opened(inner / "a")
        assert list(target.iterdir()) == [], made
        for each in inner, moved:
            if each.is_symlink():
                each.unlink()
            elif each.is_dir():
                shutil.rmtree(each)
        if len(made) <= number:
            break
        number += 1
    assert number > 8


class TestGiving:
    def test_own_new_file(self, logs: Path) -> None:
        path = logs / "a"
        log = open_log(path)
        path.rename(logs / "a.1")
        log.reopen(give=True)
        log.close()
        assert path.stat().st_uid == UID
        assert (logs / "a.1").stat().st_uid == 0

    def test_file_that_everybody_can_read(self, logs: Path) -> None:
        path = logs / "a"
        path.touch(0o644)
        log = open_log(path)
        log.reopen(give=True)
        log.close()
        assert path.stat().st_uid == UID

    def test_not_a_secret_that_was_renamed_to_it(self, logs: Path) -> None:
        """Root left it in a directory of the workers' user."""
        path, secret = logs / "a", logs / "secret"
        secret.write_text("root's alone")
        secret.chmod(0o600)
        by_attacker("os.rename(b, a)", path, secret)
        log = open_log(path)
        log.reopen(give=True)
        log.close()
        assert path.stat().st_uid == 0
        assert f'chown("{path}", {UID}) failed (1: ' in path.read_text()

    def test_not_what_stdout_is(self, root: Path, logs: Path) -> None:
        """A link to it is followed, whoever has made it, but gains nothing."""
        by_attacker("os.symlink('/dev/stdout', a)", logs / "a", logs)
        with (root / "out").open("wb") as output:
            saved = os.dup(1)
            os.dup2(output.fileno(), 1)
            try:
                log = open_log(logs / "a")
                log.reopen(give=True)
            finally:
                os.dup2(saved, 1)
                os.close(saved)
        log.main.error("line")
        log.close()
        text = (root / "out").read_text()
        assert "chown(" in text
        assert text.endswith("line\n")
        assert (root / "out").stat().st_uid == 0

    def test_not_devices(self, root: Path) -> None:
        (root / "a").symlink_to("/dev/null")
        log = open_log(root / "a")
        log.reopen(give=True)
        log.close()
        assert os.stat("/dev/null").st_uid == 0


class TestRootsOwn:
    """What only root can have put there is as for open(2)."""

    def test_link_to_a_file(self, root: Path) -> None:
        (root / "there").touch()
        (root / "a").symlink_to("there")
        assert opened(root / "a").may_be_given

    def test_link_to_a_file_that_is_not_there_yet(self, root: Path) -> None:
        (root / "a").symlink_to(root / "there")
        opened(root / "a")
        assert (root / "there").is_file()

    def test_link_to_a_directory(self, root: Path) -> None:
        (root / "there").mkdir()
        (root / "d").symlink_to("./there/../there/")
        opened(root / "d" / "a")
        assert (root / "there" / "a").is_file()

    def test_link_into_a_directory_of_the_workers(
        self, root: Path, logs: Path, precious: Path
    ) -> None:
        (root / "d").symlink_to("logs")
        opened(root / "d" / "a")
        assert (logs / "a").is_file()
        symbolic_link(logs / "b", precious)
        with pytest.raises(RefusedError):
            opened(root / "d" / "b")

    def test_hard_link(self, root: Path, precious: Path) -> None:
        os.link(precious, root / "a")
        assert opened(root / "a").may_be_given

    def test_fifo(self, root: Path) -> None:
        os.mkfifo(root / "a")
        with pytest.raises(OSError, match="No such device or address") as caught:
            opened(root / "a")  # and does not wait for a reader
        assert caught.value.errno == errno.ENXIO
        reader = os.open(root / "a", os.O_RDONLY | os.O_NONBLOCK)
        found = open_for_appending(str(root / "a"), WORKERS)
        assert os.get_blocking(found.fd)
        os.write(found.fd, b"x")
        assert select.select([reader], [], [], 0)[0]
        os.close(found.fd)
        os.close(reader)

    @pytest.mark.parametrize("mode", [0o1777, 0o777])
    def test_link_where_everybody_may_write_is_not(self, root: Path, mode: int) -> None:
        root.chmod(mode)
        (root / "a").symlink_to("there")
        with pytest.raises(RefusedError):
            opened(root / "a")

    @pytest.mark.parametrize(("mode", "good"), [(0o1777, True), (0o777, False)])
    def test_directory_in_a_sticky_one_cannot_be_exchanged(
        self, root: Path, mode: int, good: bool
    ) -> None:
        (root / "d").mkdir(0o755)
        (root / "d" / "a").symlink_to("there")
        root.chmod(mode)
        with contextlib.nullcontext() if good else pytest.raises(RefusedError):
            opened(root / "d" / "a")

    @pytest.mark.parametrize(
        ("group", "workers", "good"),
        [
            (5, WORKERS, True),
            (4, WORKERS, False),
            (5, WorkerAccount(), False),
            (0, WorkerAccount(), True),
        ],
    )
    def test_group_matters_if_it_may_be_the_workers(
        self, root: Path, group: int, workers: WorkerAccount, good: bool
    ) -> None:
        os.chown(root, 0, group)
        root.chmod(0o775)
        (root / "a").symlink_to("there")
        with contextlib.nullcontext() if good else pytest.raises(RefusedError):
            opened(root / "a", workers)

    def test_acl_that_lets_others_write_counts(self, root: Path) -> None:
        user_of = [(0x01, 7, 0xFFFFFFFF), (0x02, 7, UID), (0x04, 5, 0xFFFFFFFF)]
        entries = [*user_of, (0x10, 7, 0xFFFFFFFF), (0x20, 5, 0xFFFFFFFF)]
        acl = (2).to_bytes(4, "little") + b"".join(
            tag.to_bytes(2, "little")
            + mode.to_bytes(2, "little")
            + owner.to_bytes(4, "little")
            for tag, mode, owner in entries
        )
        try:
            os.setxattr(root, "system.posix_acl_access", acl)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                pytest.skip("the file system has no ACLs")
            raise
        (root / "a").symlink_to("there")
        with pytest.raises(RefusedError):
            opened(root / "a")

    def test_endless_links_are_too_many(self, root: Path) -> None:
        (root / "a").symlink_to("a")
        with pytest.raises(OSError, match="Too many levels") as caught:
            opened(root / "a")
        assert not isinstance(caught.value, RefusedError)

    @pytest.mark.parametrize("name", ["a/", "a/b"])
    def test_file_is_no_directory(self, root: Path, name: str) -> None:
        (root / "a").touch()
        with pytest.raises(NotADirectoryError) as caught:
            open_for_appending(f"{root}/{name}", WORKERS)
        assert caught.value.filename == f"{root}/{name}"

    def test_directory_is_no_file(self, root: Path) -> None:
        with pytest.raises(IsADirectoryError):
            opened(root)

    def test_name_below_the_current_directory(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        opened(Path("a"))
        assert (root / "a").is_file()


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
@pytest.mark.parametrize("owner", [0, UID])
def test_link_to_stderr_is_followed(
    logs: Path, capfd: pytest.CaptureFixture[str], name: str, owner: int
) -> None:
    """As in images of containers; one of the workers' user is of no use to them."""
    path = logs / "a"
    path.symlink_to(name)
    os.chown(path, owner, owner, follow_symlinks=False)
    log = open_log(path)
    log.reopen()
    log.main.error("hello")
    log.close()
    assert capfd.readouterr().err.endswith("hello\n")


def test_link_to_a_pipe_is_followed(root: Path) -> None:
    """What a container's stderr often is; its name in /proc is no path."""
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    try:
        (root / "a").symlink_to("/dev/stderr")
        log = open_log(root / "a")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(write)
    log.main.error("hello")
    log.close()
    assert os.read(read, 1000).endswith(b"hello\n")
    os.close(read)


def test_nobody_is_kept_from_anything_where_there_is_no_root(
    logs: Path, precious: Path
) -> None:
    symbolic_link(logs / "a", precious)
    assert opened(logs / "a", None).may_be_given


def test_descriptors_are_closed_whatever_happens(logs: Path, precious: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for trick in (symbolic_link, hard_link, dangling_link):
        path = logs / trick.__name__
        trick(path, precious)
        with pytest.raises(RefusedError):
            opened(path)
    opened(logs / "good")
    with pytest.raises(NotADirectoryError):
        open_for_appending(f"{logs}/good/", WORKERS)
    assert set(os.listdir("/proc/self/fd")) == before
