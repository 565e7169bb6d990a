"""The stand-in of Slack accepts what Slack accepts."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest

from lab.stand_ins import slack


@pytest.fixture
def base():
    slack.Webhooks.kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), slack.Webhooks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def post(url: str, message) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(message).encode()), timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_message_is_kept_with_its_channel(base):
    assert post(f"{base}/services/ops", {"text": "one"}) == (200, "ok")
    assert post(f"{base}/services/ops", {"attachments": [{"title": "[FIRING] two", "text": "a < b"}]}) == (200, "ok")
    with urllib.request.urlopen(f"{base}/messages", timeout=5) as reply:
        kept = json.load(reply)
    assert [(each["channel"], each["text"]) for each in kept] == [("ops", "one"), ("ops", "[FIRING] two\na < b")]
    with urllib.request.urlopen(base, timeout=5) as reply:
        assert "a &lt; b" in reply.read().decode()


@pytest.mark.parametrize("message", [{}, [], "text", {"attachments": "x"}, {"text": ""}])
def test_what_slack_does_not_take_is_refused(base, message):
    assert post(f"{base}/services/ops", message) == (400, "invalid_payload")


def test_only_webhooks_are_there(base):
    assert post(f"{base}/elsewhere", {"text": "one"})[0] == 404
