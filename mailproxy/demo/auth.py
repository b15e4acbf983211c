"""The auth_http server of the demo: is this login good, and where is its mailbox?"""

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from mailproxy.demo.mailbox import PASSWORD, USER
from mailproxy.net.lines import LineStream


async def auth_session(client: LineStream, backends: Mapping[str, int | None]) -> None:
    """Answer the requests of one connection until it is closed.

    See https://nginx.org/en/docs/mail/ngx_mail_auth_http_module.html#protocol.

    Args:
      client: the proxy.
      backends: the port of the mail server for each protocol; None: the proxy knows it.
    """
    while True:
        request = await client.read_line()
        headers: dict[str, str] = {}
        while line := (await client.read_line()).rstrip(b"\r\n"):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        stays = "keep-alive" in headers.get("connection", "").lower()
        answer = {
            **decide(headers, backends),
            "Content-Length": "0",
            "Connection": "keep-alive" if stays else "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
        version = request.split()[-1]
        await client.send(version + b" 200 OK\r\n" + lines.encode() + b"\r\n")
        if not stays:
            return


def decide(
    headers: Mapping[str, str], backends: Mapping[str, int | None]
) -> dict[str, str]:
    """The headers of the answer for one login."""
    user, password = (
        unquote_to_bytes(headers.get(name, "")) for name in ("auth-user", "auth-pass")
    )
    protocol = headers.get("auth-protocol", "")
    if (user, password) != (USER, PASSWORD) or protocol not in backends:
        return {
            "Auth-Status": "Invalid login or password",
            "Auth-Wait": "1",
            "Auth-Error-Code": "535 5.7.8",
        }
    port = backends[protocol]
    if port is None:
        return {"Auth-Status": "OK"}
    return {
        "Auth-Status": "OK",
        "Auth-Server": "127.0.0.1",
        "Auth-Port": str(port),
    }
