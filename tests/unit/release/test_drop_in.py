"""A drop-in file, and whether a service has read it."""

from __future__ import annotations

import time

import pytest

from plugins.module_utils import host_text
from plugins.module_utils.release.drop_in import carry_out, change

PATH, UNIT, TEXT = "/etc/systemd/journald.conf.d/x.conf", "systemd-journald.service", "[Journal]\n"


class Machine(host_text.Tree):
    def __init__(self, root):
        super().__init__(root)
        self.said: list[str] = []
        self.begun = time.monotonic() - 100

    def show(self, unit):
        return {"ExecMainStartTimestampMonotonic": str(int(self.begun * 1e6))}

    def run(self, *argv):
        self.said.append(" ".join(argv))
        if argv[1] == "restart":
            self.begun = time.monotonic() + 1

    def converge(self, text=TEXT, unit=UNIT):
        planned = change(self, PATH, text, unit, self.show)
        carry_out(self, planned, ["journalctl", "--rotate"], self.run)
        return planned.needed


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_it_is_written_read_and_put_into_effect_once(machine):
    assert machine.converge()
    assert machine.read(PATH) == TEXT
    assert machine.said == [f"systemctl restart {UNIT}", "journalctl --rotate"]
    assert not machine.converge()
    assert len(machine.said) == 2


def test_a_service_that_has_not_read_it_is_restarted(machine):
    machine.write(PATH, TEXT)
    assert machine.converge()
    assert not machine.converge()


def test_it_goes(machine):
    assert not machine.converge("")
    machine.converge()
    assert machine.converge("")
    assert not machine.at(PATH).exists()
    assert not machine.converge("")


def test_without_a_service_only_the_file_counts(machine):
    assert machine.converge(unit="")
    assert not machine.converge(unit="")
