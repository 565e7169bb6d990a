"""The addresses that a unit listens on, compared with the declared ones, and who can reach them."""

from __future__ import annotations

import os
import socket

import pytest

from plugins.filter.systemd import peers
from plugins.module_utils.release import checklist, systemd_unit

FILTERED = {"allowed": ["127.0.0.0/8", "::1/128"], "in_force": True}
OPEN = {"allowed": None, "in_force": True}
POWERLESS = {**FILTERED, "in_force": False}


def at(address, port, protocol="tcp"):
    return {"protocol": protocol, "address": address, "port": port}


@pytest.fixture
def unit(monkeypatch):
    """Return a function for the row of a unit with these sockets and filter; none of its sockets answers by default."""

    def row(seen, declared, told, answers=()):
        monkeypatch.setattr(systemd_unit, "listening", lambda _: seen)
        monkeypatch.setattr(systemd_unit, "address_filter", lambda _: told)
        monkeypatch.setattr(checklist, "_answers", lambda each: each["port"] in answers)
        return checklist.sockets("app.service", declared)

    return row


@pytest.mark.parametrize(
    "seen, declared",
    [
        ([at("127.0.0.1", 80), at("::1", 5000), at("127.0.0.53", 53, "udp")], ["127.0.0.1:80"]),
        ([at("10.0.0.4", 80)], ["10.0.0.4:80"]),
        ([at("0.0.0.0", 80)], ["0.0.0.0:80"]),
        ([at("::", 80)], ["0.0.0.0:80"]),
        ([at("2001:db8::4", 80)], ["[2001:db8::4]:80"]),
        ([at("127.0.0.1", 80)], ["localhost:80"]),
    ],
)
def test_what_is_declared_and_what_is_on_loopback_is_good_without_any_filter(unit, seen, declared):
    assert unit(seen, declared, OPEN)[1] is True


@pytest.mark.parametrize(
    "seen, declared",
    [
        (at("0.0.0.0", 80), "127.0.0.1:80"),
        (at("10.0.0.4", 81), "10.0.0.4:80"),
        (at("10.0.0.5", 80), "10.0.0.4:80"),
        (at("::", 4242), "127.0.0.1:80"),
        (at("0.0.0.0", 4242, "udp"), "127.0.0.1:80"),
    ],
)
def test_more_is_red_unless_the_filter_closes_it(unit, seen, declared):
    measured, good = unit([seen], [declared], OPEN)
    assert good is False
    assert f"reachable from outside: {seen['protocol']} " in measured
    assert unit([seen], [declared], FILTERED) == ("1 socket; 1 closed by the unit's filter", True)


def test_a_filter_that_lets_a_socket_through_after_all_does_not_close_it(unit):
    assert unit([at("10.0.0.4", 81)], ["127.0.0.1:80"], FILTERED, answers=[81])[1] is False


def test_one_that_lets_others_in_does_not_close_anything(unit):
    told = {**FILTERED, "allowed": ["127.0.0.0/8", "10.0.0.0/8"]}
    assert unit([at("10.0.0.4", 81)], ["127.0.0.1:80"], told)[1] is False


def test_without_a_filter_of_systemd_nothing_passes(unit):
    measured, good = unit([at("127.0.0.1", 80)], ["127.0.0.1:80"], POWERLESS)
    assert (good, "systemd cannot filter addresses on this machine" in measured) == (None, True)
    measured, good = unit([at("10.0.0.4", 81)], ["127.0.0.1:80"], POWERLESS)
    assert good is False and "reachable from outside: tcp 10.0.0.4:81" in measured


@pytest.mark.parametrize(
    "family, address, seen",
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "0.0.0.0"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("kind, protocol", [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_the_sockets_of_a_units_process_are_seen(monkeypatch, family, address, seen, kind, protocol):
    """This test process is the unit's process."""
    monkeypatch.setattr(systemd_unit, "_is_of", lambda process, _: process.name == str(os.getpid()))
    with socket.socket(family, kind) as waiting:
        waiting.bind((address, 0))
        if protocol == "tcp":
            waiting.listen()
        assert at(seen, waiting.getsockname()[1], protocol) in systemd_unit.listening("app.service")


@pytest.mark.parametrize(
    "told, expected",
    [
        ("IPAddressAllow=127.0.0.0/8 ::1/128\nIPAddressDeny=0.0.0.0/0 ::/0\nIPIngressBytes=0\n", FILTERED),
        ("IPAddressAllow=127.0.0.0/8 ::1/128\nIPAddressDeny=::/0 0.0.0.0/0\nIPIngressBytes=[no data]\n", POWERLESS),
        ("IPAddressAllow=\nIPAddressDeny=\nIPIngressBytes=[no data]\n", {"allowed": None, "in_force": False}),
    ],
)
def test_the_filter_is_read_from_systemd(monkeypatch, told, expected):
    class Done:
        stdout = told

    monkeypatch.setattr(systemd_unit, "run", lambda *_, **__: Done)
    assert systemd_unit.address_filter("app.service") == expected


@pytest.mark.parametrize(
    "address, clients, expected",
    [
        ("127.0.0.1", [], ["localhost"]),
        ("localhost", ["10.0.0.0/8"], ["localhost"]),
        ("::1", [], ["localhost"]),
        ("0.0.0.0", [], []),
        ("0.0.0.0", ["10.0.0.0/8"], ["localhost", "10.0.0.0/8"]),
        ("10.0.0.4", ["10.0.0.0/8"], ["localhost", "10.0.0.4", "10.0.0.0/8"]),
    ],
)
def test_whom_a_service_exchanges_packets_with(address, clients, expected):
    assert peers(address, clients) == expected


@pytest.mark.parametrize("address, seen", [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("127.0.0.1", "127.0.0.1")])
def test_a_socket_is_tried_by_the_outer_address(monkeypatch, address, seen):
    monkeypatch.setattr(checklist, "_outer", lambda version: {4: "127.0.0.1", 6: "::1"}[version])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as waiting:
        port = waiting.getsockname()[1]
        assert checklist._answers(at(seen, port))
        assert not checklist._answers(at(seen, port, "udp"))
    assert not checklist._answers(at(seen, port))
