"""Every example of conf.d is explained, and passes `mailproxy -t`; so does what is installed."""

import grp
import os
import pwd
import re
from pathlib import Path

import pytest
import trustme

from mailproxy.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "conf.d").glob("*.conf"))
INSTALLED = ROOT / "system" / "mailproxy.conf"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificates and passwords that the examples name."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "clients-ca.pem")
    for kind in trustme.KeyType:
        name = f"mail.example.com-{kind.name.lower()}"
        leaf = authority.issue_cert("mail.example.com", key_type=kind)
        leaf.private_key_pem.write_to_path(directory / f"{name}.key")
        for part in leaf.cert_chain_pems:
            part.write_to_path(directory / f"{name}.pem", append=True)
    domains = directory / "certificates"
    domains.mkdir()
    for name in ("mail.example.org", "mail.example.net"):
        leaf = authority.issue_cert(name)
        leaf.private_key_pem.write_to_path(domains / f"{name}.key")
        (domains / f"{name}.key").chmod(0o600)
        leaf.cert_chain_pems[0].write_to_path(domains / f"{name}.crt")
    password = directory / "master-password"
    password.write_text("secret\n")
    password.chmod(0o600)
    return directory


def at_home(text: str, directory: Path) -> str:
    """The example as somebody may test it who is not root and has other servers running."""
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    text = text.replace("user mailproxy;", f"user {user} {group};")
    text = re.sub(r"/run/|/var/log/mailproxy/", f"{directory}/", text)
    return re.sub(
        r"listen (?:([\d.]+):)?(\d+)\b",
        lambda match: f"listen {match[1] or '127.0.0.1'}:{int(match[2]) + 20000}",
        text,
    )


@pytest.mark.parametrize("example", [*EXAMPLES, INSTALLED], ids=lambda path: path.stem)
def test_example_passes_the_configuration_test(
    example: Path,
    certificates: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for certificate in certificates.iterdir():
        (tmp_path / certificate.name).symlink_to(certificate)
    (tmp_path / "mime.types").write_text("types {}\n")
    (tmp_path / example.name).write_text(at_home(example.read_text(), tmp_path))
    words = ["-p", str(tmp_path), "-c", example.name, "-e", "error.log", "-t"]
    if "pid " not in example.read_text():
        words += ["-g", "pid test.pid;"]
    status = main(words)
    said = capfd.readouterr().err
    assert status == 0, said
    expected = {"http"} if example.stem == "with-a-web-server" else set()
    if os.getuid() != 0 and "user " in example.read_text():
        expected.add("user")
    assert set(re.findall(r'\[warn\] [^"]*"(\w+)"', said)) == expected
    # What is installed serves nothing before an administrator writes a server.
    idle = example == INSTALLED
    assert ("there is no mail server, nothing will be served" in said) == idle
    assert len(re.findall(r"\[\w+\]", said)) == len(expected) + idle, said


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_when_to_use_it(example: Path) -> None:
    assert re.match(r"# [A-Z].*\.\n#\n# When: ", example.read_text())
