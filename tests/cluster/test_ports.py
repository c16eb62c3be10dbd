"""Ports for servers that are told theirs before they start."""

import socket
from pathlib import Path

import pytest

from cluster import ports
from cluster.ports import free_ports


def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    setting = tmp_path / "range"
    setting.write_text(text)
    monkeypatch.setattr(ports, "_RANGE", setting)


def test_they_are_different_free_and_outside_what_the_system_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served(monkeypatch, tmp_path, "32768\t60999\n")
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(20000 <= port < 32768 or 60999 < port < 65536 for port in found)
    for port in found:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_what_is_listened_on_or_excluded_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = free_ports()[0]
    served(monkeypatch, tmp_path, f"20000 {here - 1}")
    monkeypatch.setattr(ports.random, "sample", lambda ports, _: list(ports))
    assert free_ports()[0] == here
    assert here not in free_ports(but=[here])
    with socket.create_server(("127.0.0.1", here)):
        assert here not in free_ports()


@pytest.mark.parametrize("text", ["1024 65535", "20000 65535"])
def test_where_the_system_serves_every_port_any_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    served(monkeypatch, tmp_path, text)
    assert all(20000 <= port < 65536 for port in free_ports(3))


def test_where_the_system_does_not_say_the_standard_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "absent")
    assert all(20000 <= port < 49152 for port in free_ports(20))


def test_too_many_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        free_ports(0)
    monkeypatch.setattr(ports, "_candidates", lambda _: iter([]))
    with pytest.raises(OSError, match="2 free ports are asked for, 0 are free"):
        free_ports(2)
