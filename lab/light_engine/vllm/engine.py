"""The engine process, a child of the server: it loads for a moment, then answers with words."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from pathlib import Path

from vllm import __version__

FAULT = __version__.partition("+")[2]
LOADING = 0.3
WORDS = ("tenant", "landlord", "rent", "deposit", "contract", "month", "house", "owner", "address", "date", "copy")


class EngineDeadError(Exception):
    """The engine process has exited."""


class Engine:
    """Starts the engine process and sends it one request at a time."""

    def __init__(self) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipe, other = fork.Pipe()
        self.process = fork.Process(target=work, args=(self.pipe, other), name="EngineCore")
        self.process.start()
        other.close()
        self.ready = False
        self.lock = threading.Lock()

    def wait_until_ready(self) -> None:
        """Return when the process has loaded; raise EngineDeadError if it exits before."""
        try:
            self.pipe.recv()
        except EOFError:
            raise EngineDeadError from None
        self.ready = True

    def complete(self, model: str, prompt: str, count: int) -> list[str]:
        """Return `count` words: the same for the same model and prompt."""
        try:
            with self.lock:
                self.pipe.send((model, prompt, count))
                return self.pipe.recv()
        except (EOFError, OSError):
            raise EngineDeadError from None


def work(parents_end, pipe) -> None:
    """Answer requests until the server exits."""
    parents_end.close()
    Path("/proc/self/comm").write_text("VLLM::EngineCore")
    time.sleep(LOADING)
    if FAULT != "hangs":
        pipe.send("ready")
    while True:
        try:
            model, prompt, count = pipe.recv()
        except EOFError:
            return
        if FAULT == "dies":
            raise RuntimeError("the stand-in of the engine dies at its first request")
        pipe.send([word(f"{model}\n{prompt}\n{number}") for number in range(count)])


def word(seed: str) -> str:
    """Return a word that depends only on the text."""
    return WORDS[hashlib.sha256(seed.encode()).digest()[0] % len(WORDS)]
