"""What the command line shows of directives and of a configuration.

`--list-directives`   all directives, from their declarations, as Markdown
`--dump-json`         the values that each server uses, and where they are set
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from mailproxy.auth.source import Chain
from mailproxy.conf.directive import (
    Block,
    Declaration,
    Settings,
    declarations,
    documented,
)
from mailproxy.conf.tree import Position, encode
from mailproxy.mail.modules import MODULES, OF_BLOCKS
from mailproxy.mail.server import Server
from mailproxy.mail.upstream import UpstreamSettings
from mailproxy.process.configuration import Configuration, Loader
from mailproxy.process.settings import EventsSettings, MainSettings


def dump_json(configuration: Configuration, loader: Loader) -> bytes:
    """Format the values in effect, inherited ones and defaults included, as JSON.

    For each directive ``{"value": …, "set": CONTEXT or "default", "where": FILE:LINE}``.
    "manager" lists what the manager process is needed for; without it there is none.
    """
    top = loader.interpreter.main
    events = next(block for block in top.blocks if block.context == "events")
    servers = {block.position: block for block in loader.assembly.blocks}
    tree = {
        "file": loader.path,
        "main": _explain(configuration.main, top),
        "manager": [str(reason) for reason in configuration.manager],
        "events": _explain(configuration.events, events),
        "upstreams": list(_upstreams(top)),
        "servers": [
            _server(server, servers[server.position])
            for server in configuration.servers
        ],
        "warnings": [str(message) for message in configuration.messages],
    }
    return encode(json.dumps(tree, indent=2, ensure_ascii=False)) + b"\n"


def _upstreams(top: Block) -> Iterator[dict[str, object]]:
    """Explain the groups, in the order of the file."""
    for mail in top.blocks:
        for block in mail.blocks:
            if block.context == "upstream" and block.directive is not None:
                values = block.values(UpstreamSettings)
                settings = UpstreamSettings(**values)  # type: ignore[arg-type] # its fields
                yield {
                    "name": block.directive.values[1],
                    "where": str(block.position),
                    **_explain(settings, block),
                }


def _server(server: Server, block: Block) -> dict[str, object]:
    explained: dict[str, object] = {"where": str(server.position)}
    for field in dataclasses.fields(server):
        settings = getattr(server, field.name)
        if isinstance(settings, Chain):
            explained[field.name] = {
                name: value
                for source in settings.sources
                if isinstance(source, Settings)
                for name, value in _explain(source, block).items()
            }
        if isinstance(settings, Settings):
            name = getattr(settings, "name", field.name)
            explained[str(name)] = _explain(settings, block)
    return explained


def _explain(settings: Settings, block: Block) -> dict[str, object]:
    explained: dict[str, object] = {}
    for name in declarations(type(settings)):
        value: dict[str, object] = {"value": _plain(getattr(settings, name))}
        setter = next((each for each in block.around() if name in each.given), None)
        if setter is None:
            value["set"] = "default"
        else:
            value["set"] = setter.context
            value["where"] = str(setter.given[name].position)
        explained[name] = value
    return explained


def _plain(value: object) -> object:
    """Convert a value to one that JSON has a form for."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Position):
        return str(value)
    if isinstance(value, frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__:
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.repr
        }
    return str(value)


def list_directives() -> str:
    """Format the table of all directives, in Markdown."""
    return "\n".join(_list())


def _list() -> Iterator[str]:
    yield "# Directives"
    yield ""
    yield "Made from the declarations by `mailproxy --list-directives`."
    yield ""
    yield (
        "A block directive is `events`, `mail`, `upstream NAME` or `server`; `include` "
        "may stand everywhere; `load_module` is accepted before the first block. `http` and "
        "`stream` blocks are skipped with a warning."
    )
    for settings in (MainSettings, EventsSettings, *MODULES, *OF_BLOCKS):
        module = settings.__module__.removeprefix("mailproxy.").replace(".", "/")
        purpose = (settings.__doc__ or "").partition("\n")[0].rstrip(".")
        yield ""
        yield f"## {purpose}"
        yield ""
        yield f"Declared in `mailproxy/{module}.py`."
        yield ""
        yield "| directive | arguments | default | contexts | meaning | known to |"
        yield "|---|---|---|---|---|---|"
        texts = documented(settings)
        for name, declaration in declarations(settings).items():
            yield _row(declaration, " ".join(texts.get(name, "").split()))
    yield ""


def _row(declaration: Declaration, meaning: str) -> str:
    notes = [meaning]
    if declaration.obsolete:
        notes.append("Deprecated.")
    cells = [
        f"`{declaration.name}`",
        f"`{declaration.value.usage}`",
        f"`{declaration.default}`" if declaration.default else "none",
        ", ".join(declaration.contexts),
        " ".join(notes),
        declaration.origin,
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
