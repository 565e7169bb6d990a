"""How the client of the Compute API interprets responses, without any request."""

import datetime

import pytest
import requests

from plugins.module_utils.cloud import gcp_client

PAGE = b"""<!DOCTYPE html><html><head><title>502 Server Error</title><style>body { color: red }</style></head>
<body><h1>Error: Server Error</h1><p>Please try again in 30 seconds.</p></body></html>"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (PAGE, "GET x: 502 502 Server Error Error: Server Error Please try again in 30 seconds."),
        (b"upstream is away", "GET x: 502 upstream is away."),
        (b"", "GET x: 502 Bad Gateway."),
        (b'{"error": "away"}', 'GET x: 502 {"error": "away"}.'),
    ],
)
def test_a_foreign_answer_is_quoted_without_markup(body, message):
    answer = requests.Response()
    answer.status_code, answer.reason, answer._content = 502, "Bad Gateway", body
    assert str(gcp_client.answer_error(answer, "GET x")) == message


def test_a_request_is_sent_at_least_once():
    client = gcp_client.Client("p", gcp_client.credentials_for(environ={"GCP_ACCESS_TOKEN": "t"}), tries=0)
    assert client.tries == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("Thu, 26 Nov 2026 10:00:30 GMT", 30),
        ("Thu, 26 Nov 2026 09:00:00 GMT", 0),
        ("soon", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_what_retry_after_asks_for(monkeypatch, text, seconds):
    now = datetime.datetime(2026, 11, 26, 10, 0, tzinfo=datetime.timezone.utc).timestamp()
    monkeypatch.setattr("time.time", lambda: now)
    assert gcp_client.seconds_asked(text) == seconds


@pytest.mark.parametrize(("requested", "least"), [(0, 1), (7, 7), (120, 120)])
def test_a_pause_is_at_least_as_long_as_requested(monkeypatch, requested, least):
    slept = []
    monkeypatch.setattr(gcp_client.time, "sleep", slept.append)
    client = gcp_client.Client("p", gcp_client.credentials_for(environ={"GCP_ACCESS_TOKEN": "t"}), pause=1)
    for _ in range(50):
        client._sleep(1, requested)
    assert min(slept) >= least
    assert max(slept) <= least * (1 + gcp_client.JITTER)
    assert len(set(slept)) > 1


@pytest.mark.parametrize("token", ["ya29.first\nsecond", "ya29.a b", "ya29.\r\nX-Other: 1", "ya29.\u00e9"])
def test_a_token_of_several_words_is_refused_without_being_shown(token):
    with pytest.raises(gcp_client.GcpError) as caught:
        gcp_client.credentials_for(environ={"GCP_ACCESS_TOKEN": token})
    assert "GCP_ACCESS_TOKEN is not one word" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("ya29", "second", "X-Other"))


def test_an_operation_that_failed_in_an_unknown_form():
    for error in ({}, {"errors": None}, {"errors": ["x"]}, "gone", {"errors": [{"code": None, "message": None}]}):
        assert str(gcp_client.operation_error({"error": error}, "POST x")).startswith("POST x failed: ")
