"""The engine's light stand-in, installed from its unmodified wheel and started on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml

from lab import hub, model
from plugins.module_utils.load import tool

KEY = "key-of-the-tests"
CHECK = Path(__file__).resolve().parents[3] / "roles/vllm/files/check_arguments.py"
GUARD = CHECK.with_name("guard.py")
READY_WITHIN = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny model and its adapters."""
    folder = tmp_path_factory.mktemp("models")
    model.make(folder)
    return folder


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Each version's wheel, unpacked: {version: folder}."""
    folder = tmp_path_factory.mktemp("light")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "WHEELS", folder)
        wheels = hub.light_wheels()
    for version, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / version)
    return {version: folder / version for version in wheels}


@pytest.fixture
def config(models, tmp_path):
    """Write the role's configuration with changes; return the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def write(**changes):
        lora = {"base_model_name": "lab/tiny-llama", "name": "checklist", "path": str(models / "adapters/checklist")}
        content = {
            "model": str(models / "tiny"),
            "served-model-name": ["lab/tiny-llama"],
            "host": "127.0.0.1",
            "port": port,
            "max-model-len": 512,
            "enforce-eager": True,
            "enable-lora": True,
            "lora-modules": [json.dumps(lora)],
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, indent=2, sort_keys=False, default_flow_style=False))
        return path

    return write


def environment(site, **more):
    return {**os.environ, "PYTHONPATH": str(site), "VLLM_API_KEY": KEY, **more}


class Running:
    """A started engine and methods to query it."""

    def __init__(self, site, file, **variables):
        program = "from vllm.entrypoints.cli.main import main; main()"
        self.log = file.with_suffix(".log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--config", str(file)],
            env=environment(site, **variables), stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{yaml.safe_load(file.read_text())['port']}"

    def ask(self, path, body=None, key=KEY):
        data = json.dumps(body).encode() if body else None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self):
        try:
            return self.ask("/health")[0]
        except OSError:
            return 0

    def wait_for(self, status):
        end = time.monotonic() + READY_WITHIN
        while self.health() != status:
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        return self

    def child(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = map(int, children)
        return pid

    def text(self):
        self.log.flush()
        return Path(self.log.name).read_text()


@pytest.fixture
def start(sites):
    started = []

    def run(version, file, **variables):
        started.append(Running(sites[version], file, **variables))
        return started[-1]

    yield run
    for each in started:
        each.process.kill()
        each.process.wait()
        each.log.close()


def test_it_ends_where_its_port_is_taken(start, config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = start("0.32.0", config(port=taken.getsockname()[1]))
        assert engine.process.wait(READY_WITHIN) == 1
    assert "Address already in use" in engine.text()


def test_it_sleeps_and_wakes_and_the_guard_requires_the_key(start, config, sites, tmp_path):
    (tmp_path / "llm_server_guard.py").write_text(GUARD.read_text())
    given = {"enable-sleep-mode": True, "middleware": ["llm_server_guard.Guard"]}
    engine = start(
        "0.32.0", config(**given), VLLM_SERVER_DEV_MODE="1", LLM_SERVER_OPEN_ROUTES="/health",
        PYTHONPATH=f"{sites['0.32.0']}:{tmp_path}",
    ).wait_for(200)  # fmt: skip
    asleep = ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
    for path in (*asleep, "/sleep?level=1", "/wake_up"):
        assert engine.ask(path, {"method": "reload_weights"}, key="")[0] == 401
        assert engine.ask(path, {"method": "reload_weights"})[0] == 200
        expected = path in (*asleep[:-1], "/sleep?level=1")
        assert json.loads(engine.ask("/is_sleeping")[1]) == {"is_sleeping": expected}
    assert engine.ask("/is_sleeping", key="")[0] == 401


def test_without_its_development_routes_it_does_not_sleep(start, config):
    engine = start("0.32.0", config()).wait_for(200)
    assert engine.ask("/is_sleeping")[0] == 404
    assert engine.ask("/sleep", {"level": 1})[0] == 404


def test_it_serves_base_and_adapter_and_requires_its_key(start, config, models):
    engine = start("0.32.0", config()).wait_for(200)
    cards = {card["id"]: card for card in json.loads(engine.ask("/v1/models")[1])["data"]}
    base, lora = cards["lab/tiny-llama"], cards["checklist"]
    assert (base["root"], base["parent"], base["max_model_len"]) == (str(models / "tiny"), None, 512)
    assert (lora["root"], lora["parent"]) == (str(models / "adapters/checklist"), "lab/tiny-llama")
    assert engine.ask("/v1/models", key="")[0] == 401
    assert engine.ask("/v1/models", key="another")[0] == 401
    answers = [
        json.loads(engine.ask("/v1/completions", {"model": name, "prompt": "A home", "max_tokens": 8})[1])
        for name in (*cards, *cards)
    ]
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]
    assert answers[0]["usage"]["completion_tokens"] == 8
    assert engine.ask("/v1/completions", {"model": "absent", "prompt": "A home"})[0] == 404
    assert "vllm:generation_tokens_total 32.0\n" in engine.ask("/metrics", key="")[1]
    assert json.loads(engine.ask("/version", key="")[1]) == {"version": "0.32.0"}


def test_a_chat_is_the_same_complete_and_as_a_stream(start, config):
    engine = start("0.23.0", config()).wait_for(200)
    request = {"model": "checklist", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    complete = json.loads(engine.ask("/v1/chat/completions", request)[1])
    result = engine.ask("/v1/chat/completions", {**request, "stream": True, "stream_options": {"include_usage": True}})[
        1
    ]
    *events, done = [line.removeprefix("data: ") for line in result.splitlines() if line]
    assert done == "[DONE]"
    *chunks, last = map(json.loads, events)
    words = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert words == complete["choices"][0]["message"]["content"]
    assert last["usage"] == complete["usage"]


def test_it_stops_in_order_and_ends_with_an_error_when_its_child_is_killed(start, config):
    engine = start("0.32.0", config()).wait_for(200)
    assert Path(f"/proc/{engine.child()}/comm").read_text().startswith("VLLM::EngineCor")
    engine.process.terminate()
    assert engine.process.wait(10) == 0

    engine = start("0.32.0", config()).wait_for(200)
    os.kill(engine.child(), signal.SIGKILL)
    assert engine.process.wait(10) == 1
    assert "EngineCore_DP0 died unexpectedly" in engine.text()


def test_its_child_does_not_outlive_it(start, config):
    engine = start("0.32.0", config()).wait_for(200)
    child = Path(f"/proc/{engine.child()}")
    engine.process.kill()
    engine.process.wait()
    end = time.monotonic() + 10
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_one_that_hangs_never_gets_ready_and_ignores_sigterm(start, config):
    engine = start("0.32.0+hangs", config()).wait_for(503)
    assert engine.ask("/v1/models")[0] == 503
    engine.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        engine.process.wait(1)
    assert engine.health() == 503


def test_the_one_that_dies_is_ready_and_ends_at_its_first_request(start, config):
    engine = start("0.32.0+dies", config()).wait_for(200)
    assert engine.ask("/v1/models")[0] == 200
    assert engine.ask("/v1/completions", {"model": "checklist", "prompt": "Hello"})[0] == 500
    assert engine.process.wait(10) == 1
    assert "dies at its first request" in engine.text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no-such": 1}, "unrecognized arguments: --no-such"),
        ({"port": "many"}, "argument --port: invalid int value: 'many'"),
        ({"enable-lora": False}, "LoRA is not enabled"),
    ],
)
def test_the_role_learns_from_it_which_arguments_it_takes(sites, config, changes, message):
    def check(file):
        command = [sys.executable, CHECK, file]
        return subprocess.run(command, env=environment(sites["0.32.0"]), capture_output=True, text=True)

    assert check(config()).returncode == 0
    done = check(config(**changes))
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max-model-len": 100000}, r"User-specified max_model_len (100000) is greater than the derived max_model_len"),
        ({"lora-modules": ['{"name": "x", "path": "/srv/absent"}']}, "No adapter found for /srv/absent"),
        ({"max-lora-rank": 1}, "LoRA rank 8 is greater than max_lora_rank 1"),
    ],
)
def test_it_refuses_in_the_engines_words(start, config, changes, message):
    engine = start("0.32.0", config(**changes))
    assert engine.process.wait(10) == 1
    assert message in engine.text()


def test_its_wheels_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    made = []
    for name in ("one", "two"):
        monkeypatch.setattr(hub, "WHEELS", tmp_path / name)
        made.append({version: path.read_bytes() for version, path in hub.light_wheels().items()})
    assert made[0] == made[1]
    assert list(made[0]) == ["0.32.0", "0.23.0", "0.32.0+hangs", "0.32.0+dies"]


@pytest.mark.parametrize(("key", "failed"), [(KEY, 0), ("wrong", 9)])
def test_its_load_tool_accepts_the_arguments_of_the_load_check_and_writes_what_it_reads(
    start, config, sites, models, tmp_path, key, failed
):
    engine = start("0.32.0", config()).wait_for(200)
    plan = {"callers": 3, "input_tokens": 20, "output_tokens": 5}
    job = {"url": engine.url, "model": "lab/tiny-llama", "tokenizer": str(models / "tiny"), "seed": 1}
    words = tool.argv("vllm", job, plan, 9, f"{tmp_path}/result.json")
    program = "from vllm.entrypoints.cli.main import main; main()"
    variables = {**environment(sites["0.32.0"]), tool.KEY_VARIABLE: key}
    subprocess.run([sys.executable, "-c", program, *words[1:]], env=variables, check=True, timeout=30)
    figures = tool.summary([json.loads((tmp_path / "result.json").read_text())], 5)
    assert (figures["requests"], figures["failed"]) == (9, failed)
    assert figures["tokens"] == 5 * (9 - failed)
    assert figures["errors"] == ({"401 Unauthorized": 9} if failed else {})
