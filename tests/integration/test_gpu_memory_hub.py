"""The planner against a hub on loopback: range requests, redirects to a CDN, gated and missing models."""

import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plugins.module_utils.gpu.memory.errors import PlanError
from plugins.module_utils.gpu.memory.planner import plan

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit" / "gpu"))

import gpu_memory_samples as samples

TOKEN = "hub-token"


class Hub(BaseHTTPRequestHandler):
    """Serves `root`; redirects large files to the port `content`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        state = self.server.state
        token = self.headers.get("Authorization", "")
        parts = self.path.strip("/").split("/")
        if parts[0] == "content":
            state["content_tokens"].append(token)
            return self.send_file(Path(state["root"]) / Path(*parts[1:]))
        model, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        state["revisions"].add(revision)
        if model == "org/gated" and token != f"Bearer {TOKEN}":
            return self.short(401)
        file = Path(state["root"]) / model / name
        if not file.is_file():
            return self.short(404)
        if name.endswith((".safetensors", ".gguf")) and state["content"]:
            return self.short(302, {"Location": f"http://127.0.0.1:{state['content']}/content/{model}/{name}"})
        return self.send_file(file)

    def short(self, code, headers=None):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, file):
        size, byte_range = file.stat().st_size, self.headers.get("Range")
        start, end = 0, size - 1
        if byte_range and self.server.state["ranges"]:
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        with file.open("rb") as handle:
            handle.seek(start)
            left = end - start + 1
            while left > 0:
                piece = handle.read(min(left, 1 << 16))
                try:
                    self.wfile.write(piece)
                except OSError:
                    return None
                self.server.state["sent"] += len(piece)
                left -= len(piece)
        return None


@contextmanager
def hub(root, ranges=True, content=True):
    state = {"root": str(root), "ranges": ranges, "sent": 0, "content_tokens": [], "revisions": set(), "content": 0}
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Hub) for _ in range(2)]
    for server in servers:
        server.state = state
        threading.Thread(target=server.serve_forever, daemon=True).start()
    state["content"] = servers[1].server_port if content else 0
    try:
        yield f"http://127.0.0.1:{servers[0].server_port}", state
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def service(model, **changes):
    return {"name": "chat", "version": "0.15.1", "model": model, "max_model_len": 2048, **changes}


@pytest.fixture
def root(tmp_path):
    for name in ("plain", "gated"):
        samples.write_model(tmp_path / "org" / name, samples.MISTRAL, shards=3)
    samples.qwen_gguf(tmp_path / "org/plain/m.gguf", "3B")
    return tmp_path


def test_headers_alone_make_the_same_plan_as_the_local_files(root):
    with hub(root) as (url, state):
        remote = plan([service("org/plain", revision="abc")], samples.L4, hub_url=url)
    local = plan([service(str(root / "org/plain"))], samples.L4)
    assert remote["services"][0]["figures"] == local["services"][0]["figures"]
    assert state["revisions"] == {"abc"}
    assert state["sent"] < 200_000


def test_a_gguf_file_on_the_hub(root):
    with hub(root) as (url, state):
        request = {"name": "code", "engine": "llamacpp", "model": "org/plain/m.gguf", "context": 1024}
        remote = plan([request], samples.L4, hub_url=url)
    local = plan([{**request, "model": str(root / "org/plain/m.gguf")}], samples.L4)
    assert remote["services"][0]["figures"] == local["services"][0]["figures"]
    assert state["sent"] < 8_000_000


def test_a_hub_that_ignores_ranges_is_not_read_to_the_end(root):
    with hub(root, ranges=False, content=False) as (url, state):
        plan([service("org/plain")], samples.L4, hub_url=url)
    assert state["sent"] < 100_000_000


def test_the_token_opens_a_gated_model_and_does_not_travel_on(root):
    with hub(root) as (url, state):
        plan([service("org/gated")], samples.L4, hub_url=url, hub_token=TOKEN)
    assert state["content_tokens"]
    assert set(state["content_tokens"]) == {""}


@pytest.mark.parametrize(
    ("model", "words"),
    [("org/gated", "gated or private"), ("org/absent", "config.json of model org/absent at revision main is not on")],
)
def test_a_model_that_cannot_be_had(root, model, words):
    with hub(root) as (url, _), pytest.raises(PlanError) as caught:
        plan([service(model)], samples.L4, hub_url=url)
    assert words in str(caught.value)


def test_a_truncated_file_on_the_hub(root):
    file = next((root / "org/plain").glob("*.safetensors"))
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1)
    with hub(root) as (url, _), pytest.raises(PlanError, match="is truncated"):
        plan([service("org/plain")], samples.L4, hub_url=url)


def test_a_hub_that_is_not_there():
    with hub("/") as (url, _):
        pass
    with pytest.raises(PlanError, match="cannot be reached"):
        plan([service("org/plain")], samples.L4, hub_url=url)


def test_an_adapter_on_the_hub_is_checked_before_it_is_fetched(root):
    samples.write_adapter(root / "org/adapter", samples.MISTRAL, rank=16)
    requested = service("org/plain", adapters=[{"name": "a", "source": "org/adapter"}], max_lora_rank=16)
    with hub(root) as (url, state):
        fits = plan([requested], samples.L4, hub_url=url)
        assert state["sent"] < 400_000
        with pytest.raises(PlanError, match=r"adapter a: .*rank 16, max_lora_rank is 8"):
            plan([{**requested, "max_lora_rank": 8}], samples.L4, hub_url=url)
    assert fits["services"][0]["figures"]["lora"].value > 0
    assert fits["services"][0]["assumptions"] == []
