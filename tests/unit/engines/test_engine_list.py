"""The list of a host's engines: written before the first change of a run, and not if it is the same."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from plugins.module_utils.doors import engine_list

ENGINES = [{"name": "vllm", "kind": "vllm"}, {"name": "code", "kind": "llama_cpp"}]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs the module on a host without other engines; it returns the result."""
    monkeypatch.setattr(engine_list, "LIST", tmp_path / "engine_list.json")
    monkeypatch.setattr(engine_list, "STORE", tmp_path / "services")
    monkeypatch.setattr(engine_list.engine_states, "noted", lambda _: {})
    monkeypatch.setattr(engine_list.engine_states, "away", lambda *_: [])
    monkeypatch.setattr(engine_list, "write", lambda path, text, mode: path.write_text(text))

    def once(state: str, check_mode: bool = False) -> dict:
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", None)
        arguments = {"engines": ENGINES, "state": state, "_ansible_check_mode": check_mode}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            engine_list.main()
        return json.loads(capsys.readouterr().out)

    return once


def test_a_new_list_is_pending_in_check_mode_and_written_otherwise(run):
    found = run("begun", check_mode=True)
    assert (found["pending"], found["changed"], engine_list.LIST.exists()) == (True, False, False)
    written = run("begun")
    assert "pending" not in written and json.loads(engine_list.LIST.read_text()) == ENGINES


def test_a_list_without_differences_is_not_pending(run):
    run("begun")
    assert run("begun", check_mode=True)["pending"] is False
    assert run("noted", check_mode=True)["pending"] is False
