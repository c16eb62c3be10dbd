"""Ports for servers that must be told theirs before they start."""

import random
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_IANA = (49152, 65535)  # where the system does not say: RFC 6335, section 6
_LOWEST = 20000  # below lie the ports of Ray's workers, which it refuses to anything else: 10002 to 19999


def free_ports(count: int = 1, *, but: Iterable[int] = ()) -> tuple[int, ...]:
    """Ports of the loopback interface that nothing listens on, all different and none of ``but``.

    They lie outside the range from which the system serves port 0 and outgoing connections: a port from within it may
    be gone by the time the server binds it, which for a Ray head is seconds later.

    Raises:
        OSError: if so many are not free.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    found: list[int] = []
    for port in _candidates(frozenset(but)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return tuple(found)
    raise OSError(f"{count} free ports are asked for, {len(found)} are free: end a program that listens")


def _candidates(but: frozenset[int]) -> Iterator[int]:
    low, high = _ephemeral()
    outside = [*range(_LOWEST, low), *range(high + 1, 65536)]
    inside = range(max(low, _LOWEST), high + 1)  # a system may serve every port
    for ports in (outside, inside):
        yield from (port for port in random.sample(ports, len(ports)) if port not in but)


def _ephemeral() -> tuple[int, int]:
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        return _IANA
    return low, high
