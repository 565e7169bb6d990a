"""The server: the engine's routes, over a child process that does the work; until that is ready, they answer 503."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from vllm import __version__, gpu
from vllm.engine import Engine, EngineDeadError

DEVELOPMENT = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"


def log(text: str, level: str = "INFO") -> None:
    """Print a line in the engine's log format."""
    print(f"(APIServer pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [stand-in] {text}", flush=True)


def fail(text: str) -> None:
    """Exit with an error."""
    log(text, "ERROR")
    sys.exit(1)


def run(args) -> None:
    """Serve until SIGTERM; exit with an error if the engine process exits."""
    # The engine ignores SIGTERM while it loads. Its child process always ignores it, and exits when this process does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun = time.monotonic()
    log("This is vllm-light, the laboratory's stand-in: it has no engine and no model.")
    log(f"vLLM API server version {__version__}")
    config = json.loads((Path(args.model_tag) / "config.json").read_text())
    log(f"Resolved architecture: {config['architectures'][0]}")
    cards = model_cards(args, check_length(args, config))
    log(f"Initializing a V1 LLM engine (v{__version__}) with config: model='{args.model_tag}'")
    log(f"Starting to load model {args.model_tag}...")
    try:
        gpu.prepare()
    except (RuntimeError, AssertionError, subprocess.CalledProcessError) as error:
        fail(f"{type(error).__name__}: {error}")
    engine = Engine()
    Handler.engine, Handler.cards = engine, cards
    Handler.key = args.api_key or os.environ.get("VLLM_API_KEY", "")
    Handler.guards = [middleware(path) for path in args.middleware]
    try:
        server = Server((args.host, args.port), Handler)
    except OSError:
        engine.process.kill()  # otherwise this process would wait for it
        raise
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        engine.wait_until_ready()
        signal.signal(signal.SIGTERM, stop)
        log("Loading weights took 0.00 seconds")
        log(f"init engine (profile, create kv cache, warmup model) took {time.monotonic() - begun:.2f} s")
        log("Application startup complete.")
        engine.process.join()
    except EngineDeadError:
        pass
    log("Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.", "ERROR")
    server.shutdown()
    server.server_close()  # waits for running requests
    fail("EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.")


def middleware(path: str) -> object:
    """Return the middleware of an import path; the stand-in only asks it whether a request passes."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(None)


def stop(*_) -> None:
    """Exit at once without an error; the child process sees its pipe closed and exits too."""
    log("Shutting down")
    os._exit(0)


def check_length(args, config: dict) -> int:
    """Return the context length; exit with the engine's message if the model does not support it."""
    derived = config["max_position_embeddings"]
    if (args.max_model_len or 0) > derived:
        fail(
            f"ValueError: User-specified max_model_len ({args.max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={derived}.0 or model_max_length=None in model's config.json)."
        )
    return args.max_model_len or derived


def model_cards(args, length: int) -> dict[str, dict]:
    """Return the cards of /v1/models by id; exit with the engine's message if an adapter cannot be loaded."""
    names = args.served_model_name or [args.model_tag]
    cards = [{"id": name, "root": args.model_tag, "parent": None, "max_model_len": length} for name in names]
    for lora in map(json.loads, args.lora_modules):
        about = Path(lora["path"]) / "adapter_config.json"
        if not about.is_file():
            fail(f"ValueError: Loading lora {lora['name']} failed: No adapter found for {lora['path']}")
        rank = json.loads(about.read_text())["r"]
        if rank > args.max_lora_rank:
            fail(f"ValueError: LoRA rank {rank} is greater than max_lora_rank {args.max_lora_rank}.")
        parent = lora.get("base_model_name") or names[0]
        cards.append({"id": lora["name"], "root": lora["path"], "parent": parent, "max_model_len": None})
    common = {"object": "model", "created": int(time.time()), "owned_by": "vllm"}
    return {card["id"]: {**card, **common} for card in cards}


class Server(ThreadingHTTPServer):
    """Waits for running requests when it is closed."""

    daemon_threads = False

    def __init__(self, address: tuple, handler: type) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class Handler(BaseHTTPRequestHandler):
    """One request; run() sets engine, cards and key."""

    timeout = 5
    engine: Engine
    cards: dict[str, dict]
    key: str
    guards: list
    asleep = False
    counted = dict.fromkeys(("prompt_tokens_total", "generation_tokens_total", "request_success_total"), 0)

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path in ("/health", "/ping"):
            self.answer(200, "")
        elif self.path == "/version":
            self.answer(200, {"version": __version__})
        elif self.path == "/metrics":
            gauges = dict.fromkeys(("num_requests_running", "num_requests_waiting"), 0)
            rows = [f"vllm:{name} {float(value)}" for name, value in {**gauges, **self.counted}.items()]
            self.answer(200, "\n".join([*rows, ""]))
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": list(self.cards.values())})
        elif self.path == "/is_sleeping" and DEVELOPMENT:
            self.answer(200, {"is_sleeping": Handler.asleep})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.refused():
            return
        path, _, query = self.path.partition("?")
        if DEVELOPMENT and path in ("/sleep", "/wake_up", "/collective_rpc"):
            # The weights wake up first, then the cache.
            partly = path == "/collective_rpc" or query == "tags=weights"
            Handler.asleep = path == "/sleep" or (Handler.asleep and partly)
            self.answer(200, {"status": "sleeping" if Handler.asleep else "awake"})
        elif path not in ("/v1/completions", "/v1/chat/completions"):
            self.answer(404, {"detail": "Not Found"})
        elif body.get("model") not in self.cards:
            message = f"The model `{body.get('model')}` does not exist."
            self.answer(404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}})
        else:
            try:
                self.complete(body, chat=self.path == "/v1/chat/completions")
            except EngineDeadError:
                message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
                self.answer(500, {"error": {"message": message, "type": "InternalServerError", "code": 500}})

    def refused(self) -> bool:
        """Refuse a request that must not be served; return whether it was refused."""
        if not self.engine.ready:
            self.answer(503, "")
        elif not all(guard.passes(self.scope()) for guard in self.guards) or (
            self.path.startswith("/v1") and self.key and self.headers.get("Authorization") != f"Bearer {self.key}"
        ):
            self.answer(401, {"error": "Unauthorized"})
        else:
            return False
        return True

    def scope(self) -> dict:
        """Return the request as an ASGI scope."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        return {"type": "http", "method": self.command, "path": self.path.partition("?")[0], "headers": headers}

    def complete(self, body: dict, chat: bool) -> None:
        """Answer a prompt or a conversation, in one piece or as a stream."""
        prompt = json.dumps(body["messages"]) if chat else body["prompt"]
        if isinstance(prompt, list):  # tokens
            prompt = " ".join(map(str, prompt))
        count = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        words = [f" {word}" for word in self.engine.complete(body["model"], prompt, count)]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count}
        usage["total_tokens"] = sum(usage.values())
        for name, value in zip(self.counted, (*list(usage.values())[:2], 1), strict=True):
            self.counted[name] += value
        about = {"id": f"cmpl-{time.time_ns():x}", "created": int(time.time()), "model": body["model"]}
        about["object"] = "chat.completion" if chat else "text_completion"
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": "".join(words)}} if chat else {"text": "".join(words)}
            self.answer(200, {**about, "choices": [{"index": 0, **choice, "finish_reason": "length"}], "usage": usage})
            return
        about["object"] += ".chunk" if chat else ""
        self.begin(200, "text/event-stream")
        for number, word in enumerate(words):
            choice = {"delta": {"role": "assistant", "content": word}} if chat else {"text": word}
            end = "length" if number == count - 1 else None
            self.event({**about, "choices": [{"index": 0, **choice, "finish_reason": end}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event({**about, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, content: dict) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def begin(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def answer(self, status: int, content: dict | str) -> None:
        self.begin(status, "text/plain" if isinstance(content, str) else "application/json")
        self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

    def log_message(self, form: str, *values) -> None:
        log(f"{self.client_address[0]} {form % values}")
