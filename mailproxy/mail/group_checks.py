"""What a health check does not say itself: it follows from the servers of the group.

Sessions of several servers may lead to one group. Those whose `proxy_pass` names it come
first, and of them the first one that speaks the protocol; without any, an auth source
names the group, and all servers may be meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.conf.tree import ConfigError
from mailproxy.mail.load_state import load_state
from mailproxy.mail.probing import GroupCheck, ProbeType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mailproxy.conf.directive import Reading
    from mailproxy.mail.group import Group
    from mailproxy.mail.load_state import LoadState
    from mailproxy.mail.probing import HealthCheck, Match
    from mailproxy.mail.server import Server


def complete_checks(
    servers: Sequence[Server], reading: Reading
) -> Iterator[ConfigError]:
    """Complete the health checks of all groups, which are in the `LoadState` then.

    Args:
      servers: all servers; at least one.
    """
    state = load_state(reading)
    for name, group in state.groups.items():
        found = []
        for check in group.health_checks:
            try:
                found.append(_complete(check, group, servers, state))
            except ConfigError as error:
                yield error
        if found:
            state.group_checks[name] = tuple(found)


def _complete(
    check: HealthCheck, group: Group, servers: Sequence[Server], state: LoadState
) -> GroupCheck:
    """Complete one health check.

    Raises:
      ConfigError: its protocol is not known, or its `match` block, or it would send a
        password in clear text.
    """
    ours = [each for each in servers if _leads_to(each, group)]
    protocol = _protocol_of(check, group, ours)
    among = ours or servers
    server = next((each for each in among if each.protocol.name == protocol), among[0])
    match = _find_match(check, state)
    found = GroupCheck(check=check, protocol=protocol, server=server, match=match)
    _check_secrecy(found, group)
    return found


def _check_secrecy(found: GroupCheck, group: Group) -> None:
    """Check that a password goes nowhere in clear text.

    Raises:
      ConfigError: it would.
    """
    if found.check.type is not ProbeType.LOGIN:
        return
    for member in group.members:
        elsewhere = [each.text for each in member.addresses if not each.is_local]
        if member.resolve:  # to whatever name servers say
            elsewhere = [member.server]
        if found.mode(member.ssl) == "off" and elsewhere:
            raise ConfigError(
                f'"type=login" sends the password to "{elsewhere[0]}" in clear text',
                found.check.position,
                "add: ssl=starttls or ssl=on",
            )


def _protocol_of(check: HealthCheck, group: Group, servers: Sequence[Server]) -> str:
    """The protocol of a health check.

    Args:
      servers: those whose `proxy_pass` names the group.

    Raises:
      ConfigError: it does not say, and they do not tell.
    """
    if check.type is ProbeType.CONNECT:
        return ""
    if check.protocol:
        return check.protocol
    spoken = {each.protocol.name for each in servers}
    if len(spoken) == 1:
        return spoken.pop()
    reason = f'no server has "proxy_pass {group.name};", which would tell'
    raise ConfigError(
        f'"health_check" of upstream "{group.name}" needs "protocol="',
        check.position,
        "its servers speak several" if spoken else reason,
    )


def _leads_to(server: Server, group: Group) -> bool:
    target = server.proxy.proxy_pass
    return target is not None and target.group is group


def _find_match(check: HealthCheck, state: LoadState) -> Match | None:
    if not check.match:
        return None
    if check.match not in state.matches:
        raise ConfigError(
            f'match "{check.match}" is not found',
            check.position,
            f"add to mail {{}}: match {check.match} {{ … }}",
        )
    return state.matches[check.match]
