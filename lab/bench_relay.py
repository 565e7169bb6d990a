"""Measure the cost of ai-server: the same requests directly to a stand-in for vLLM, by nginx, and by ai-server.

All three are measured in turn within the same minute, because a busy machine slows them alike. The stand-in and the
load are raw protocols on sockets, each in its own process, so that only the relay between them is measured. Each chunk
carries the time at which it was sent. Both sides use the machine's clock, so the receiver computes the delay from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.host import ROOT, Problem, say

PAGE = ROOT / "docs" / "benchmarks.md"
MARK = "## What ai-server costs"
KEY = "bench-key-0123456789"
TOKENS, PACE = 8, 0.05  # per answer; seconds between the chunks of a paced stream
SEQUENTIAL, CONCURRENT, STREAMS, CHUNKS = 300, 16, 200, 60
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
    access_log {folder}/access.log;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            if ($http_authorization != "Bearer {key}") {{ return 401; }}
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class Engine(asyncio.Protocol):
    """The stand-in for vLLM: it answers at once in one piece or as a stream, or sends one chunk every PACE seconds."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.read = transport, b""

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, end, body = self.read.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        if end and len(body) >= length:
            self.read = b""
            self.answer(json.loads(body) if length else {})

    def answer(self, request: dict) -> None:
        if not request.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "word " * TOKENS},
                "finish_reason": "stop",
            }
            usage = {"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": 9 + TOKENS}
            completion = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "base"}
            body = json.dumps({**completion, "choices": [choice], "usage": usage}).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % len(body) + body)
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        if request["messages"][-1]["content"] == "paced":
            self.transport.write(head)
            self.pacing = asyncio.ensure_future(self.pace())
        else:
            events = b"".join(chunked(event("word ")) for _ in range(TOKENS))
            self.transport.write(head + events + chunked(event("", "stop")) + chunked(USAGE + DONE) + b"0\r\n\r\n")

    async def pace(self) -> None:
        for _ in range(CHUNKS):
            self.transport.write(chunked(event(f"{time.monotonic():.6f} ")))
            await asyncio.sleep(PACE)
        self.transport.write(chunked(event("", "stop")) + chunked(DONE) + b"0\r\n\r\n")


def event(text: str, finish_reason: str | None = None) -> bytes:
    """Return one event of a chat completion's stream, as vLLM writes it."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish_reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "base", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    """Return the data as one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


USAGE = (
    b'data: {"id": "chatcmpl-1", "model": "base", "choices": [], "usage": {"prompt_tokens": 9, "total_tokens": 17}}\n\n'
)
DONE = b"data: [DONE]\n\n"


class Client(asyncio.Protocol):
    """One connection of the load. `ask` waits for the complete response; `arrived` has (time, bytes) of its pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.over = transport, None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.over and not self.over.done():
            self.over.set_exception(Problem("the connection was closed before the response was complete"))

    async def ask(self, text: str, stream: bool = False) -> None:
        body = json.dumps({"model": "base", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
        self.arrived: list[tuple[float, bytes]] = []
        self.tail, self.length, self.got, self.over = b"", None, 0, asyncio.get_running_loop().create_future()
        self.asked = time.monotonic()
        self.transport.write(HEAD % len(body) + body)
        await self.over

    def data_received(self, data: bytes) -> None:
        self.arrived.append((time.monotonic(), data))
        self.tail, self.got = self.tail[-4096:] + data, self.got + len(data)
        if self.length is None and b"\r\n\r\n" in self.tail:
            head, _, rest = self.tail.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                self.over.set_exception(Problem(f"it answered {self.tail[:200]!r}"))
                return
            lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self.length, self.got = int(lines[0][15:]) if lines else -1, len(rest)
        done = self.tail.endswith(b"0\r\n\r\n") if self.length == -1 else self.got == self.length
        if self.length is not None and done and not self.over.done():
            self.over.set_result(None)


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


async def load(port: int, seconds: float) -> dict[str, float]:
    """Send requests to a port; return the four figures of the table: ms, requests/s, ms, ms."""

    async def connect(number: int) -> list[Client]:
        made = [asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port) for _ in range(number)]
        return [client for _, client in await asyncio.gather(*made)]

    (one,) = await connect(1)
    took = []
    for _ in range(SEQUENTIAL):
        await one.ask("hello")
        took.append(time.monotonic() - one.asked)

    end, answered = time.monotonic() + seconds, 0

    async def repeat(client: Client) -> None:
        nonlocal answered
        while time.monotonic() < end:
            await client.ask("hello")
            answered += 1

    began = time.monotonic()
    await asyncio.gather(*map(repeat, await connect(CONCURRENT)))
    rate = answered / (time.monotonic() - began)

    clients = await connect(STREAMS)
    await asyncio.gather(*(client.ask("paced", stream=True) for client in clients))
    first, lags = [], []
    for client in clients:
        pieces = [(at, sent) for at, data in client.arrived for sent in times(data)]
        first.append(pieces[0][0] - client.asked)
        lags += [at - sent for at, sent in pieces]
    return {
        "p50_ms": statistics.median(took) * 1000,
        "rate": rate,
        "first_ms": statistics.median(first) * 1000,
        "lag_ms": statistics.median(lags) * 1000,
        "lag_p99_ms": statistics.quantiles(lags, n=100)[98] * 1000,
    }


def times(data: bytes) -> Iterator[float]:
    """Yield the times at which the events in the data were sent."""
    for part in data.split(b'"content": "')[1:]:
        with contextlib.suppress(ValueError):
            yield float(part.split(b'"')[0])


@dataclass
class Candidate:
    """A server under test: its port, and the processes whose memory counts."""

    port: int
    pids: Callable[[], list[int]] = list

    def mib(self) -> float:
        """Return the processes' proportional set size (own memory and their share of shared memory) in MiB."""
        pages = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.pids()]
        return sum(int(page.partition("\nPss:")[2].split()[0]) for page in pages) / 1024


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return there.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int, **how) -> Iterator[subprocess.Popen]:
    """Start a process, wait until it listens, and end it by its process ID; raise Problem with its last output."""
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, **how)
        try:
            end = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    told.seek(0)
                    words = told.read().decode(errors="replace").strip().splitlines() or ["no output"]
                    raise Problem(f"{Path(command[0]).name} does not listen: {words[-1]}")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def candidates(application: Path, nginx: str, folder: Path) -> Iterator[dict[str, Candidate]]:
    """Start the stand-in, nginx and ai-server; stop them at the end."""
    upstream, proxy, port = free_port(), free_port(), free_port()
    with contextlib.ExitStack() as stack:
        here = [sys.executable, "-m", "lab.bench_relay"]
        stack.enter_context(running([*here, "engine", str(upstream)], upstream, cwd=ROOT))
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, upstream=upstream, port=proxy, key=KEY))
        master = stack.enter_context(running([nginx, "-p", str(folder), "-c", str(config)], proxy))
        for name in ("resources/s3", "state", "log"):
            (folder / name).mkdir(parents=True)
        server = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(port)]
        there = stack.enter_context(running(server, port, cwd=folder, env=settings(upstream, application)))

        def workers() -> list[int]:
            children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
            return [master.pid, *map(int, children)]

        yield {
            "direct": Candidate(upstream),
            "nginx": Candidate(proxy, workers),
            "ai-server": Candidate(port, lambda: [there.pid]),
        }


def settings(upstream: int, application: Path) -> dict[str, str]:
    """Return ai-server's environment variables."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(application),
        "APP_ENV": "bench",
        "VLLM_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "VLLM_API_KEY": "engine-key",
        "VLLM_MODEL": "base",
        "VLLM_LORA_ADAPTER_EASYCONTRACT": "easycontract",
        "VLLM_LORA_ADAPTER_CHECKLIST": "checklist",
        "BACKEND_CALLBACK_BASE_URL": f"http://127.0.0.1:{upstream}",
        "HTTP_TIMEOUT_SEC": "30",
        "OCR_API": "ocr-key",
        "AI_SERVER_API_KEYS": KEY,
        "RATE_LIMIT_PER_MINUTE": "1000000",
        "STATE_DIRECTORY": "state",
        "LOG_DIRECTORY": "log",
    }


def measure(port: int, seconds: float) -> dict[str, float]:
    """Run the load in its own process; return its figures."""
    argv = [sys.executable, "-m", "lab.bench_relay", "load", str(port), str(seconds)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"the load failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout)


def run(rounds: int, application: Path, nginx: str | None, page: bool = False, seconds: float = 3) -> str:
    """Measure `rounds` rounds; return the table. application: the folder of `app/`; page: also write the page."""
    nginx = nginx or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise Problem("nginx is needed for comparison: apt-get install nginx-light, or --nginx PATH")
    with (
        tempfile.TemporaryDirectory(prefix="bench-relay-") as folder,
        candidates(application, nginx, Path(folder)) as asked,
    ):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
        for number in range(rounds):
            say(f"Round {number + 1} of {rounds} …")
            for name, candidate in asked.items():
                found[name].append(measure(candidate.port, seconds))
        memory = {name: candidate.mib() for name, candidate in asked.items()}
    lines = table(found, memory)
    if page:
        write(section(lines, rounds))
    return lines


def table(found: dict[str, list[dict[str, float]]], memory: dict[str, float]) -> str:
    """Return the lines of the table; each cell is the median of the rounds."""
    rows = {
        "one after the other, p50": ("p50_ms", "{:.2f} ms"),
        f"{CONCURRENT} at once": ("rate", "{:,.0f} requests/s"),
        f"{STREAMS} streams, first chunk p50": ("first_ms", "{:.0f} ms"),
        f"{STREAMS} streams, lag of a chunk p50": ("lag_ms", "{:.1f} ms"),
        f"{STREAMS} streams, lag of a chunk p99": ("lag_p99_ms", "{:.1f} ms"),
    }
    lines = [f"| | {' | '.join(found)} |", f"|{' --- |' * (len(found) + 1)}"]
    for row, (figure, form) in rows.items():
        cells = [form.format(statistics.median(each[figure] for each in rounds)) for rounds in found.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append(f"| memory after it | {' | '.join(f'{mib:.0f} MiB' if mib else '' for mib in memory.values())} |")
    return "\n".join(lines)


def section(table: str, rounds: int) -> str:
    """Return the section of the page."""
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end"
    return (
        f"{MARK}\n\n"
        "Written by `make bench`; `python -m lab bench-relay --write` takes a minute. The same requests straight\n"
        "to a stand-in for vLLM, through nginx that checks one key, and through ai-server; all in turn, on loopback.\n"
        f"nginx has one worker, ai-server one process. An answer has {TOKENS} tokens; ai-server gets it as a stream.\n"
        f"A stream has {CHUNKS} chunks, one each {PACE * 1000:.0f} ms: {STREAMS} streams are "
        f"{STREAMS / PACE:,.0f} chunks/s. All begin at once.\n\n"
        f"Medians of {rounds} rounds on {load}.\n\n{table}\n"
    )


def write(text: str) -> None:
    """Replace the section at the end of the page."""
    PAGE.write_text(PAGE.read_text().partition(MARK)[0].rstrip("\n") + "\n\n" + text)


def main() -> None:
    """Run the engine or the load: the entry point of this module's processes."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    match sys.argv[1:]:
        case ["engine", port]:

            async def serve() -> None:
                server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", int(port), backlog=512)
                await server.serve_forever()

            asyncio.run(serve())
        case ["load", port, seconds]:
            print(json.dumps(asyncio.run(load(int(port), float(seconds)))))


if __name__ == "__main__":
    main()
