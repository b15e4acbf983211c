"""How scripts write bytes: text with visible signs for what cannot be seen.

`␍ ␊ ␀ ␉ ␠ ␡` and their likes stand for one byte, `⏎` for CR LF, `⟨ff⟩` for any
byte, `⟨x*80⟩` for a repetition (`⟨NOOP⏎*21⟩` too). A line ends in CR LF unless it
says otherwise: with `␊` at its end nothing is added, `…` at the end stands for
no line end at all.
"""

import re

_CONTROL = {chr(0x2400 + code): bytes([code]) for code in range(0x21)} | {"␡": b"\x7f"}
_SIGNS = _CONTROL | {"⏎": b"\r\n"}
_SIGN_OF = {sign[0]: text for text, sign in _CONTROL.items()} | {0x20: " "}
_REPEATED = re.compile(r"⟨([^⟨⟩]+)\*(\d+)⟩")
_BYTE = re.compile(r"⟨([0-9a-f]{2})⟩|(.)", re.DOTALL)


def line_bytes(text: str) -> bytes:
    """The bytes of one line of a script."""
    if text.endswith("…"):
        return to_bytes(text[:-1])
    return to_bytes(text) + (b"" if text.endswith(("␊", "⏎")) else b"\r\n")


def to_bytes(text: str) -> bytes:
    """The bytes of a text with signs; no line end is added."""
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    return b"".join(
        bytes.fromhex(found[1])
        if found[1]
        else _SIGNS.get(found[2]) or found[2].encode()
        for found in _BYTE.finditer(text)
    )


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their ends, which are LF; the last may have none."""
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", data)


def line_text(line: bytes) -> str:
    """How a script writes a received line; the reverse of `line_bytes`."""
    if line.endswith(b"\r\n"):
        text, end = to_text(line[:-2]), ""
    else:
        text, end = to_text(line), "" if line.endswith(b"\n") else "…"
    if text.endswith(" ") and not end:
        text = text[:-1] + "␠"
    return text + end


def to_text(data: bytes) -> str:
    """How a script writes bytes; long runs of one byte are counted."""
    text = "".join(
        _SIGN_OF[code]
        if code in _SIGN_OF
        else chr(code)
        if code < 0x7F
        else f"⟨{code:02x}⟩"
        for code in data
    )
    return re.sub(r"([^⟨⟩ ])\1{15,}", lambda run: f"⟨{run[1]}*{len(run[0])}⟩", text)
