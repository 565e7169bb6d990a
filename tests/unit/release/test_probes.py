"""Probes against a server on loopback with configured responses (conftest.py)."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plugins.module_utils.gpu import nvidia_smi
from plugins.module_utils.release import probes

METRICS = '# TYPE up gauge\nup 1\nDCGM_FI_DEV_GPU_TEMP{gpu="0"} 41\n'
CARDS = [{"id": "base", "max_model_len": 8192}, {"id": "easycontract", "parent": "base"}]
MODELS = json.dumps({"data": CARDS})
COMPLETION = json.dumps({"choices": [{"text": " a"}], "usage": {"completion_tokens": 8}})


@pytest.mark.parametrize(
    "probe, page, failure",
    [
        ({"http": {}}, (200, "OK"), None),
        ({"http": {}}, (503, "KO"), "answered 503 instead of 200: KO"),
        ({"http": {"status": 401}}, (401, "no"), None),
        ({"http": {"status": 401}}, (200, "open"), "answered 200 instead of 401: open"),
        ({"http": {"contains": "OK"}}, (200, "all OK"), None),
        ({"http": {"contains": "OK"}}, (200, ""), "answered 200 without 'OK': (empty body)"),
        ({"http": {}}, (200, ""), None),
        ({"metric": {"series": ["up", "DCGM_FI_DEV_GPU_TEMP"]}}, (200, METRICS), None),
        ({"metric": {"series": ["up", "down"]}}, (200, METRICS), "has no series down yet"),
        ({"metric": {"series": ["TYPE"]}}, (200, METRICS), "has no series TYPE yet"),
        ({"metric": {"series": ["up"]}}, (200, ""), "has no series up yet"),
        ({"metric": {"series": ["up"]}}, (500, "x" * 900), "answered 500 instead of 200: " + "x" * 199 + "…"),
    ],
)
def test_a_page(server, probe, page, failure):
    server.pages["/page"] = page
    ((kind, options),) = probe.items()
    said = probes.first_failure([{kind: {**options, "url": f"{server.url}/page"}}])
    assert said == (failure and f"{server.url}/page {failure}")


@pytest.mark.parametrize(
    "expected, page, failure",
    [
        (["base", "easycontract"], (200, MODELS), None),
        (
            ["base", "checklist"],
            (200, MODELS),
            ": missing: checklist; unexpected: easycontract (served: base, easycontract)",
        ),
        (["base"], (200, MODELS), ": unexpected: easycontract (served: base, easycontract)"),
        (["base"], (200, "<html>"), " answered something that is not JSON: another program has this port"),
        (
            ["base"],
            (401, "{}"),
            " answered 401: the key is not the server's, give the key the server was started with",
        ),
    ],
)
def test_models(server, expected, page, failure):
    server.pages["/v1/models"] = page
    said = probes.first_failure([{"models": {"url": f"{server.url}/v1", "expected": expected, "bearer": "key"}}])
    assert said == (failure and f"{server.url}/v1/models{failure}")
    assert server.asked[0][1] == "Bearer key"


@pytest.mark.parametrize(("length", "failure"), [(8192, None), (4096, "base has max_model_len 8192, wanted 4096")])
def test_the_base_model_has_the_length_that_it_was_given(server, length, failure):
    server.pages["/v1/models"] = (200, MODELS)
    options = {"url": f"{server.url}/v1", "expected": ["base", "easycontract"], "max_model_len": length}
    said = probes.first_failure([{"models": options}])
    assert said == (failure and f"{server.url}/v1/models: {failure} (served: base, easycontract)")


def test_a_key_is_read_when_the_question_is_asked(server, tmp_path):
    server.pages["/"] = (200, "OK")
    file = tmp_path / "secrets.env"
    question = [{"http": {"url": f"{server.url}/", "bearer_file": str(file), "bearer_variable": "KEY"}}]
    assert "No such file" in probes.first_failure(question)
    file.write_text("OTHER=no\n")
    assert probes.first_failure(question) == f"{server.url}/: {file} has no KEY"
    for key in ("old=1", "new"):
        file.write_text(f"OTHER=no\nKEY={key}\n")
        assert probes.first_failure(question) is None
    assert [bearer for _, bearer, _ in server.asked] == ["Bearer old=1", "Bearer new"]


GPU = {
    "index": 0, "name": "NVIDIA L4", "total_mib": 23034, "mig": False, "lost": False,
    "processes": [{"pid": 47, "name": "VLLM::EngineCore", "used_mib": 18000, "unit": "vllm.service"}],
}  # fmt: skip


class TestGpuMemory:
    def see(self, monkeypatch, *free):
        """Make nvidia-smi return these values of free memory in order, then repeat the last one."""
        left = list(free)

        def read(timeout):
            mib = left.pop(0) if len(left) > 1 else left[0]
            return {"gpus": [{**GPU, "free_mib": mib, "used_mib": 23034 - mib}, {**GPU, "free_mib": 0, "used_mib": 0}]}

        monkeypatch.setattr(nvidia_smi, "read", read)
        monkeypatch.setattr(probes.time, "sleep", lambda _: None)

    def test_who_holds_it_is_named_with_its_unit(self, monkeypatch):
        self.see(monkeypatch, 4000)
        assert probes.awaited([{"gpu_free": {"mib": 20000}}], 0) == (
            "GPU 0 has 4000 MiB free, wanted at least 20000 MiB "
            "(held by VLLM::EngineCore (pid 47, vllm.service, 18000 MiB)) after 0 s"
        )

    def test_it_is_waited_for(self, monkeypatch):
        self.see(monkeypatch, 4000, 12000, 22000)
        assert probes.awaited([{"gpu_free": {"mib": 20000}}], 60) is None

    def test_as_many_gpus_as_the_engine_takes(self, monkeypatch):
        self.see(monkeypatch, 22000)
        assert "GPU 0 has 0 MiB free" in probes.awaited([{"gpu_free": {"mib": 20000, "gpus": 2}}], 0)

    def test_a_driver_that_does_not_answer_is_reported(self, monkeypatch):
        def read(timeout):
            raise nvidia_smi.GpuError("no_driver", "The NVIDIA driver is not running.")

        monkeypatch.setattr(nvidia_smi, "read", read)
        assert probes.awaited([{"gpu_free": {"mib": 1}}], 0) == "The NVIDIA driver is not running after 0 s"


@pytest.mark.parametrize(
    "page, failure",
    [
        ((200, COMPLETION), None),
        ((500, "worker died"), "a completion by base at {url} answered 500 instead of 200: worker died"),
        ((200, '{"usage": {"completion_tokens": 0}}'), "a completion by base at {url} produced no token"),
        ((200, "{}"), "a completion by base at {url} answered no completion: {{}}"),
    ],
)
def test_a_completion(server, page, failure):
    server.pages["/v1/completions"] = page
    url = f"{server.url}/v1"
    said = probes.first_failure([{"completion": {"url": url, "model": "base", "bearer": "key", "prompt": "Hi"}}])
    assert said == (failure and failure.format(url=url))
    path, bearer, body = server.asked[0]
    assert (path, bearer) == ("/v1/completions", "Bearer key")
    assert json.loads(body) == {"model": "base", "prompt": "Hi", "max_tokens": 8, "temperature": 0}


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    assert probes.first_failure([{"http": {"url": url}}]) == f"{url}: connection refused"


def test_an_answer_that_is_not_http(not_http):
    url = f"{not_http}/"
    assert probes.first_failure([{"http": {"url": url}}]).startswith(f"{url}: no answer in HTTP")


def test_silence_ends_when_the_start_has_to_be_over(server):
    server.pages["/"] = (0, "")
    start = time.monotonic()
    said = probes.first_failure([{"http": {"url": f"{server.url}/", "timeout": 60}}], within=0.3)
    assert said == f"{server.url}/: no answer in time"
    assert time.monotonic() - start < 1.5


def test_the_first_failure_ends_the_round(server):
    server.pages["/a"], server.pages["/b"] = (500, "a"), (500, "b")
    urls = [f"{server.url}/{name}" for name in "ab"]
    assert probes.first_failure([{"http": {"url": url}} for url in urls]).startswith(urls[0])
    assert len(server.asked) == 1


def test_options_that_were_left_out_count_as_their_defaults(server):
    server.pages["/"] = (200, "OK")
    options = {"url": f"{server.url}/", "status": None, "contains": None, "bearer": None, "timeout": None}
    assert probes.first_failure([{"http": options, "metric": None, "models": None, "completion": None}]) is None


def test_a_proxy_is_never_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.pages["/"] = (200, "OK")
    assert probes.first_failure([{"http": {"url": f"{server.url}/"}}]) is None


def test_a_password_is_read_from_its_file_when_the_question_is_asked(server, tmp_path):
    file = tmp_path / "password"
    file.write_text("open:sesame")
    server.pages["/page"] = (200, "OK")
    probe = {"http": {"url": f"{server.url}/page", "user": "reader", "password_file": str(file)}}
    assert probes.first_failure([probe]) is None
    assert server.asked[-1][1] == "Basic cmVhZGVyOm9wZW46c2VzYW1l"
    file.unlink()
    assert "No such file" in probes.first_failure([probe])


def test_an_authority_of_ones_own_is_trusted_where_it_is_named(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=here"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/"
    try:
        assert probes.ask(url, authorities=str(certificate))[0] == 200
        with pytest.raises(OSError, match="certificate"):
            probes.ask(url)
    finally:
        server.shutdown()
        server.server_close()


def test_a_probes_parameters_are_its_options():
    options = {kind: of_kind["options"] for kind, of_kind in probes.options().items()}
    assert options.keys() == probes.KINDS.keys()
    assert options["metric"] == {
        "url": {"type": "str", "required": True},
        "series": {"type": "list", "elements": "str", "required": True},
        "timeout": {"type": "float"},
    }
    assert options["completion"]["max_tokens"] == {"type": "int", "no_log": False}


def test_no_probe_takes_a_secret_itself():
    given = {name for of_kind in probes.options().values() for name in of_kind["options"]}
    assert not given & {"bearer", "password"}
    assert {"bearer_file", "bearer_variable", "password_file"} <= given
