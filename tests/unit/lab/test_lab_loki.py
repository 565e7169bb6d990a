"""The stand-in of Loki over a real loopback connection."""

import gzip
import http.client
import json
import threading
import time
from urllib.parse import urlencode

import pytest

from lab.stand_ins import loki

NOW = time.time_ns()
PUSH = "/loki/api/v1/push"


@pytest.fixture
def running(tmp_path):
    """Start the stand-in any number of times; each one replaces the one before."""
    servers = []

    def stop():
        for server in servers:
            server.shutdown()
            server.server_close()
        servers.clear()

    def start():
        stop()
        servers.append(loki.serve(tmp_path, ("127.0.0.1", 0)))
        threading.Thread(target=servers[0].serve_forever, args=[0.02], daemon=True).start()
        return servers[0].server_port

    yield start
    stop()


def ask(port, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST" if body is not None else "GET", path, body, names)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def push(port, labels, *values):
    body = json.dumps({"streams": [{"stream": labels, "values": [[str(when), line] for when, line in values]}]})
    return ask(port, PUSH, gzip.compress(body.encode()), Content_Type="application/json", Content_Encoding="gzip")


def found(port, query, **parameters):
    status, text = ask(port, f"/loki/api/v1/query_range?{urlencode({'query': query, **parameters})}")
    assert status == 200, text
    return [(each["stream"], value[1]) for each in json.loads(text)["data"]["result"] for value in each["values"]]


def lines(port, query, **parameters):
    return [line for _, line in found(port, query, **parameters)]


def number(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(which, value):
    if isinstance(value, int):
        return number(which << 3) + number(value)
    return number(which << 3 | 2) + number(len(value)) + value


def test_lines_come_back_with_their_labels(running):
    port = running()
    assert ask(port, "/ready") == (200, "ready\n")
    labels = {"host": "a", "job": "vllm"}
    assert push(port, labels, (NOW - 2, "first"), (NOW - 1, "second"))[0] == 204
    assert found(port, '{host="a"}') == [(labels, "second"), (labels, "first")]
    assert lines(port, '{host="a"}', direction="forward", limit=1) == ["first"]
    assert json.loads(ask(port, "/loki/api/v1/labels")[1])["data"] == ["host", "job"]
    assert json.loads(ask(port, "/loki/api/v1/label/job/values")[1])["data"] == ["vllm"]


def test_what_promtail_itself_sends_is_taken(running):
    port = running()
    at = field(1, NOW // 10**9) + field(2, NOW % 10**9)
    entry = field(1, at) + field(2, b"abcabcabcabc")
    message = field(1, field(1, b'{host="a", said="a \\"word\\""}') + field(2, entry))
    # The line's text is a literal of three bytes and an overlapping copy of nine.
    head = message[:-9]
    snappy = number(len(message)) + bytes([60 << 2, len(head) - 1]) + head + bytes([(9 - 4) << 2 | 1, 3])
    assert ask(port, PUSH, snappy, Content_Type="application/x-protobuf") == (204, "")
    assert found(port, '{host="a"}') == [({"host": "a", "said": 'a "word"'}, "abcabcabcabc")]
    for broken in (snappy[:-2], b"", b"\x05hello"):
        assert ask(port, PUSH, broken, Content_Type="application/x-protobuf")[0] == 400


@pytest.mark.parametrize(
    "query, expected",
    [
        ('{job=~".+"} |= "mark"', ["b mark", "a mark"]),
        ('{job=~"a|b"} |= "mark" != "a m"', ["b mark"]),
        ('{host="h", job!="a"}', ["b mark"]),
        ('{host="h"} |~ "^a"', ["a mark"]),
        ('{host=~"h", job=~"[a-z]"} |= `"`', []),
    ],
)
def test_selectors_and_filters(running, query, expected):
    port = running()
    push(port, {"host": "h", "job": "a"}, (NOW - 2, "a mark"))
    push(port, {"host": "h", "job": "b"}, (NOW - 1, "b mark"))
    assert lines(port, query) == expected


def test_a_query_has_its_time(running):
    port, hour = running(), 3600 * 10**9
    push(port, {"host": "h"}, (NOW - 2 * hour, "old"), (NOW - 1, "new"))
    assert lines(port, '{host="h"}') == ["new"]
    assert lines(port, '{host="h"}', since="3h") == ["new", "old"]
    assert lines(port, '{host="h"}', start=NOW - 3 * hour, end=NOW - hour) == ["old"]


@pytest.mark.parametrize(
    "query, message",
    [
        ("{}", "at least one"),
        ('rate({a="b"}[1m])', "only supports log queries"),
        ('{a="b"} | json', "does not know"),
        ("", ""),
    ],
)
def test_what_it_does_not_know_it_refuses(running, query, message):
    status, text = ask(running(), f"/loki/api/v1/query_range?{urlencode({'query': query})}")
    assert status == 400
    assert message in text


def test_a_push_with_one_bad_line_is_refused_completely(running):
    port, labels = running(), {"host": "h"}
    assert push(port, labels, (NOW + 540 * 10**9, "nine minutes ahead"))[0] == 204
    for values, message in {
        ((NOW, "good"), (NOW + 30 * 60 * 10**9, "x")): "too new",
        ((1, "x"),): "too old",
        (): "no",
    }.items():
        status, text = push(port, labels, *values)
        assert status == 400
        assert message in text
    assert push(port, {}, (NOW, "x"))[0] == 400
    assert ask(port, PUSH, b"[]", Content_Type="application/json")[0] == 400
    assert lines(port, '{host="h"}', end=NOW + 10**12) == ["nine minutes ahead"]


def test_a_line_that_is_sent_again_is_kept_once_also_after_a_restart(running, tmp_path):
    port = running()
    for _ in range(2):
        assert push(port, {"host": "h"}, (NOW - 1, "once"), (NOW - 1, "another"))[0] == 204
    with (tmp_path / "lines.jsonl").open("a") as handle:
        handle.write('[{"host": "h"}, [[17')
    port = running()
    assert push(port, {"host": "h"}, (NOW - 1, "once"))[0] == 204
    assert sorted(lines(port, '{host="h"}')) == ["another", "once"]
    assert sorted(lines(running(), '{host="h"}')) == ["another", "once"]
