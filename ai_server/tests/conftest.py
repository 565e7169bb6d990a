"""Fixtures: a real ai-server in a separate process, and stand-ins for its three partners, all on loopback."""

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from standins import StandIns, wait_for

ROOT = Path(__file__).parents[1]
CALLER, OTHER_CALLER, VLLM_KEY, TOKEN, OCR_KEY = (
    "caller-key-0123456",
    "other-key-01234567",
    "engine-key",
    "tok",
    "ocr-key",
)


def fill_disk(pid: int = 0) -> None:
    """Simulate a full disk: stop a process (by default this one) from writing to files."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def empty_disk(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Server:
    """`uvicorn app.main:app` on a socket that the test opens, so that it keeps its address after a restart."""

    def __init__(self, directory: Path, standins: StandIns, **settings: str | None) -> None:
        self.directory = directory
        for name in ("resources/s3", "state", "log"):
            (directory / name).mkdir(parents=True)
        self.settings = {
            "APP_ENV": "test",
            "VLLM_BASE_URL": f"{standins.url}/v1",
            "VLLM_API_KEY": VLLM_KEY,
            "VLLM_MODEL": "base",
            "VLLM_LORA_ADAPTER_EASYCONTRACT": "easycontract-adapter",
            "VLLM_LORA_ADAPTER_CHECKLIST": "checklist-adapter",
            "BACKEND_CALLBACK_BASE_URL": f"{standins.url}/api",
            "BACKEND_INTERNAL_TOKEN": TOKEN,
            "HTTP_TIMEOUT_SEC": "20",
            "OCR_API": OCR_KEY,
            "OCR_URL": f"{standins.url}/ocr",
            "AI_SERVER_API_KEYS": f"{CALLER},{OTHER_CALLER}",
            "RATE_LIMIT_PER_MINUTE": "10000",
            "JOB_BACKOFF_SEC": "0.05",
            "STATE_DIRECTORY": "state",
            "LOG_DIRECTORY": "log",
            **settings,
        }
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.process: subprocess.Popen | None = None

    def environment(self) -> dict[str, str]:
        given = {name: value for name, value in self.settings.items() if value is not None}
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **given}

    def start(self, full_disk: bool = False) -> "Server":
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--fd", str(self._socket.fileno())]
        self.process = subprocess.Popen(
            [*command, "--timeout-graceful-shutdown", "1"],
            cwd=self.directory,
            env=self.environment(),
            pass_fds=[self._socket.fileno()],
            stdout=(self.directory / "stdout").open("ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=fill_disk if full_disk else None,
        )
        httpx.get(f"{self.url}/metrics", timeout=20)  # the socket already listens, so this waits for the process
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop the process; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(10)

    def close(self) -> None:
        if self.process:
            self.stop(signal.SIGKILL)
        self._socket.close()

    def client(self, key: str = CALLER) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=10)

    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    def job(self, ident: str, *states: str) -> dict:
        """Wait until the job is in one of the states; return the job."""
        with self.client() as client:

            def there() -> dict | None:
                job = client.get(f"/v1/jobs/{ident}").json()
                return job if job["state"] in states else None

            return wait_for(there)


@pytest.fixture(scope="session")
def running_standins():
    with StandIns() as standins:
        yield standins


@pytest.fixture
def standins(running_standins):
    """Yield the stand-ins for vLLM, the backend and the OCR service, reset to normal behaviour."""
    running_standins.reset()
    yield running_standins
    running_standins.go_on.set()


@pytest.fixture(scope="session")
def shared(tmp_path_factory, running_standins):
    server = Server(tmp_path_factory.mktemp("shared"), running_standins)
    yield server.start()
    server.close()


@pytest.fixture
def server(shared, standins):
    """Return the running server that the tests share."""
    return shared


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def new_server(tmp_path, standins):
    """Return a function that makes a new server, not started: new_server(NAME="value", OTHER=None)."""
    servers = []

    def make(**settings: str | None) -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}", standins, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
