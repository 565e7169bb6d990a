"""Who gets a notice of an incident, once, never with the webhook's address; and how a host leaves rotation for good."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure

from plugins.action import service_drain
from plugins.module_utils.errors import UserError
from plugins.module_utils.incident import notice, summary
from plugins.plugin_utils import service

ROWS = [{"what": "vllm", "ok": False, "measured": "refused"}]


@pytest.mark.parametrize("url", ["https://hooks.example.com/services/canary", " http://127.0.0.1:1/canary\n"])
def test_an_address_is_taken_from_the_vault_or_a_file(tmp_path, url):
    place = tmp_path / "webhook"
    place.write_text(url)
    assert notice.address(url, None) == notice.address("", str(place)) == url.strip()


@pytest.mark.parametrize(
    ("url", "file", "message"),
    [
        ("", None, "neither incident_webhook_url nor incident_webhook_file is given; set incident_webhook_url"),
        ("", "/nonexistent/file", "incident_webhook_file is /nonexistent/file, which cannot be read"),
        ("canary", None, "incident_webhook_url has no http(s) address"),
        ("https://[canary", None, "incident_webhook_url has no http(s) address"),
        ("https://host/a canary", None, "incident_webhook_url has no http(s) address"),
    ],
)
def test_one_that_cannot_be_is_refused_by_name_and_never_shown(url, file, message):
    with pytest.raises(UserError) as refused:
        notice.address(url, file)
    assert message in str(refused.value) and "canary" not in str(refused.value)


def test_the_receiver_gets_the_text_as_it_is(server):
    server.pages["/hook"] = (200, "ok")
    notice.send(f"{server.url}/hook", "Incident on a <b> & ```c```")
    ((path, _, body),) = server.asked
    assert path == "/hook"
    assert json.loads(body) == {"text": "```\nIncident on a &lt;b&gt; &amp; '''c'''\n```"}


def test_a_long_text_is_cut():
    assert len(notice.message("x" * 9000)["text"]) < notice.LIMIT + 20


def test_what_the_receiver_refuses_is_reported_without_its_address(server):
    url = f"{server.url}/canary-hook"
    server.pages["/canary-hook"] = (403, f"invalid_token for {url}")
    with pytest.raises(UserError) as refused:
        notice.send(url, "a")
    assert str(refused.value).startswith("the receiver answered 403: invalid_token")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/canary", "http://canary.invalid:x/"])
def test_a_receiver_that_is_not_there(url):
    with pytest.raises(UserError) as refused:
        notice.send(url, "a")
    assert str(refused.value).startswith("the receiver cannot be reached: ") and "canary" not in str(refused.value)


def test_the_same_is_not_sent_twice_within_half_an_hour(tmp_path):
    note = tmp_path / "new" / "host1.sent"
    assert notice.sent_before(note, ROWS, 1000) is None
    notice.keep(note, ROWS, 1000)
    assert notice.sent_before(note, [{**ROWS[0], "measured": "refused again"}], 1060) == 60
    assert notice.sent_before(note, [{**ROWS[0], "ok": True}], 1060) is None
    assert notice.sent_before(note, ROWS, 1000 + notice.REPEAT) is None
    note.write_text("no JSON")
    assert notice.sent_before(note, ROWS, 1060) is None


# -- the rows --


@pytest.mark.parametrize(
    ("rotation", "ok", "message"),
    [
        ({"changed": True, "rotation": "out"}, True, "taken out"),
        ({"changed": False, "rotation": "out"}, True, "it was out already"),
        (
            {"changed": True, "rotation": "out", "unnoted": "nothing could be noted on the host: no route"},
            True,
            "taken out; nothing could",
        ),
        ({"skipped": True, "changed": False}, None, "rotation_drain_command is not set"),
        ({"failed": False, "msg": "drain_command failed: 503"}, False, "drain_command failed: 503"),
    ],
)
def test_what_became_of_the_rotation(rotation, ok, message):
    row = summary.escalated([], rotation, {"told": "sent to the receiver"})[0]
    assert (row["what"], row["ok"]) == ("rotation", ok) and message in row["measured"]


def test_a_failed_notification_is_red():
    row = summary.escalated([], {"changed": True}, {"failed": False, "msg": "the receiver answered 403."})[-1]
    assert (row["what"], row["ok"], row["measured"]) == ("receiver", False, "the receiver answered 403.")


# -- leaving the rotation --


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The action plugin service_drain; ``said`` has its steps, ``note`` the output of the command."""
    note = tmp_path / "note"
    hook = [sys.executable, "-c", f"open({str(note)!r}, 'a').write('OUT ')"]
    there = SimpleNamespace(said=[], answers={"drain": {"changed": True}}, note=note)

    def run(check_mode=False, **args):
        action = service_drain.ActionModule.__new__(service_drain.ActionModule)
        given = {"name": "vllm", "drain_command": hook, **args}
        action._task = SimpleNamespace(args=given, check_mode=check_mode)

        def step(name, *_, **__):
            there.said.append(name)
            answer = there.answers.get(name, {"changed": True})
            if isinstance(answer, Exception):
                raise answer
            return dict(answer)

        action.step = step
        action.apply = lambda _: step("drain")
        return action.run(task_vars={"inventory_hostname": "host1"})

    monkeypatch.setattr(service.ActionBase, "run", lambda *_: {})
    there.run = run
    return there


def test_a_host_leaves_once(task):
    assert task.run() == {"changed": True, "rotation": "out"}
    task.answers["drain"] = {"changed": False}
    assert task.run() == {"changed": False, "rotation": "out"}
    assert task.note.read_text() == "OUT "


@pytest.mark.parametrize("answer", [AnsibleConnectionFailure("no route"), {"failed": True, "msg": "no python"}])
def test_a_host_that_does_not_answer_leaves_too(task, answer):
    task.answers["drain"] = answer
    result = task.run()
    assert result["changed"] and "nothing could be noted on the host: no" in result["unnoted"]
    assert task.note.read_text() == "OUT "


def test_a_command_that_fails_is_taken_back_and_said(task):
    result = task.run(drain_command=[sys.executable, "-c", "raise SystemExit('503 from the balancer')"])
    assert result["failed"] and "drain_command failed: 503 from the balancer" in result["msg"]
    assert task.said == ["drain", "restore"]


def test_check_mode_and_a_missing_command(task):
    assert task.run(check_mode=True)["changed"] and not task.note.exists()
    assert "drain_command must be given" in task.run(drain_command=[])["msg"]
