"""Test the traces that a receiver gets, from the caller to the engine, and the behaviour without a receiver."""

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from standins import wait_for
from test_chat import body

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
SERVER, CLIENT = 2, 3  # SpanKind of the protocol
FAILED = 2


class Receiver:
    """An OTLP receiver over HTTP. spans: those received; headers: those of requests; answers: returns the status."""

    def __init__(self) -> None:
        self.spans, self.headers, self.services, self.answers = [], [], set(), lambda: 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                status = receiver.answers()
                if status == 200:
                    receiver.headers.append((self.path, self.headers))
                    for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                        about = {each.key: each.value.string_value for each in resource.resource.attributes}
                        receiver.services.add(about["service.name"])
                        receiver.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, *names: str):
        """Wait until there is a span of each name; return the last one of each."""
        wait_for(lambda: set(names) <= {span.name for span in self.spans})
        return [next(span for span in reversed(self.spans) if span.name == name) for name in names]

    def pair(self):
        """Wait for the span of a request and the span of the request to the engine; return both."""
        wait_for(lambda: {span.kind for span in self.spans} == {SERVER, CLIENT})
        return [next(span for span in self.spans if span.kind == kind) for kind in (SERVER, CLIENT)]


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def traced(new_server, receiver):
    """Yield a client of a server that sends its traces to the receiver."""
    server = new_server(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20canary-of-traces",
        OTEL_BSP_SCHEDULE_DELAY="50",
    ).start()
    with server.client() as client:
        client.server = server
        yield client


def attributes(span) -> dict:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def parent_sent(standins) -> list[str]:
    """Return version, trace, parent and flags of the engine's last request."""
    return standins.asked[-1]["headers"]["traceparent"].split("-")


def logged(server) -> list[dict]:
    """Return the log's lines about chat requests."""
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["message"] == "request" and line["path"] == CHAT]


def test_one_trace_from_the_caller_to_the_engine(traced, standins, receiver):
    answer = traced.post(CHAT, json=body("hello"), headers={**GIVEN, "X-Request-ID": "case-1"})
    assert answer.status_code == 200
    ours, asked = receiver.pair()
    assert ours.trace_id.hex() == asked.trace_id.hex() == TRACE
    assert ours.parent_span_id.hex() == PARENT
    assert asked.parent_span_id == ours.span_id
    assert parent_sent(standins) == ["00", TRACE, asked.span_id.hex(), "01"]
    assert standins.asked[-1]["headers"]["tracestate"] == "a=1"
    about = attributes(ours)
    assert about["http.response.status_code"] == 200 and about["request_id"] == "case-1"
    assert about["gen_ai.request.model"] == "base"
    assert receiver.services == {"ai-server"}
    path, headers = receiver.headers[0]
    assert (path, headers["Authorization"]) == ("/v1/traces", "Bearer canary-of-traces")


def test_the_log_shows_the_trace_and_no_secret(traced, receiver):
    traced.post(CHAT, json=body("hello"), headers=GIVEN)
    (ours,) = receiver.named(f"POST {CHAT}")
    wait_for(lambda: logged(traced.server))
    line = logged(traced.server)[0]
    assert line["trace_id"] == TRACE and len(line["span_id"]) == 16
    assert line["span_id"] in {span.span_id.hex() for span in receiver.spans if span.kind == SERVER}
    assert ours and "canary" not in traced.server.output()


def test_without_a_caller_s_trace_one_begins_here(traced, standins, receiver):
    traced.post(CHAT, json=body("hello"))
    ours, asked = receiver.pair()
    assert not ours.parent_span_id and asked.parent_span_id == ours.span_id
    assert parent_sent(standins)[1] == ours.trace_id.hex()


def test_the_spans_of_a_stream_end_with_the_stream(traced, standins, receiver):
    with traced.stream("POST", CHAT, json=body("hold", stream=True), headers=GIVEN) as answer:
        lines = answer.iter_lines()
        next(lines)
        time.sleep(0.5)  # ten times the delay of a batch
        assert receiver.spans == []
        standins.go_on.set()
        list(lines)
    for span in receiver.pair():
        assert span.end_time_unix_nano - span.start_time_unix_nano > 4e8


def test_a_caller_that_leaves_ends_the_spans(traced, receiver):
    with traced.stream("POST", CHAT, json=body("hold", stream=True)) as answer:
        next(answer.iter_lines())
    receiver.pair()


def test_an_adapter_is_in_the_trace(traced, standins, receiver):
    assert traced.post("/v1/easy-contract", json={"text": "a contract"}, headers=GIVEN).status_code == 200
    ours, asked = receiver.pair()
    assert ours.trace_id.hex() == TRACE and ours.name == "POST /v1/easy-contract"
    assert parent_sent(standins)[1:3] == [TRACE, asked.span_id.hex()]


def test_a_job_is_in_the_trace_of_its_request(traced, receiver):
    for _ in range(2):  # the repeated request has another trace but the same job
        answer = traced.post("/v1/easy-contract", json={"text": "x", "job_id": "job-1"}, headers=GIVEN)
        assert answer.status_code == 202
    traced.server.job("job-1", "delivered")
    request, work, asked = receiver.named("POST /v1/easy-contract", "job easy-contract", f"POST {CHAT}")
    assert {request.trace_id.hex(), work.trace_id.hex(), asked.trace_id.hex()} == {TRACE}
    assert asked.parent_span_id == work.span_id
    assert work.parent_span_id in {span.span_id for span in receiver.spans if span.kind == SERVER}
    assert attributes(work)["job.id"] == "job-1"


def test_a_failure_is_marked(traced, receiver):
    assert traced.post(CHAT, json=body("internal")).status_code == 500
    wait_for(lambda: any(span.kind == SERVER for span in receiver.spans))
    assert next(span for span in receiver.spans if span.kind == SERVER).status.code == FAILED


def test_health_is_not_traced(traced, receiver):
    traced.get("/health")
    traced.post(CHAT, json=body("hello"))
    wait_for(lambda: receiver.spans)
    assert all("health" not in str(attributes(span).get("url.path")) for span in receiver.spans)


@pytest.mark.parametrize("fault", ["away", "silent", "refuses"])
def test_a_receiver_that_does_not_take_them_neither_slows_nor_fails_a_request(new_server, receiver, fault):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        place = {"away": "http://127.0.0.1:9", "silent": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        receiver.answers = lambda: 503
        server = new_server(
            OTEL_EXPORTER_OTLP_ENDPOINT=place.get(fault, receiver.url),
            OTEL_BSP_SCHEDULE_DELAY="20",
            OTEL_BSP_MAX_QUEUE_SIZE="16",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="8",
        ).start()
        with server.client() as client:
            client.post(CHAT, json=body("hello"))
            slowest = 0.0
            for _ in range(60):  # more than the queue holds
                begin = time.monotonic()
                assert client.post(CHAT, json=body("hello")).status_code == 200
                slowest = max(slowest, time.monotonic() - begin)
            assert slowest < 1
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 6
        output = [line for line in server.output().splitlines() if "opentelemetry" in line]
        assert len(output) < 40, output[:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is 'collector:4318', which is not",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc': this server only supports http/protobuf",
        ),
    ],
)
def test_bad_settings_are_refused(new_server, settings, message):
    server = new_server(**settings)
    done = subprocess.run(
        [sys.executable, "-m", "app.check"],
        cwd=server.directory,
        env=server.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert message in done.stderr


@pytest.mark.parametrize(
    "settings", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}]
)
def test_off_nothing_of_it_is_imported(new_server, settings):
    server = new_server(**settings)
    code = (
        "import sys; from app import main, tracing; tracing.start(); "
        "parts = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests', 'google'); "
        "print([name for name in sys.modules if name.startswith(parts)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=server.directory, env=server.environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
