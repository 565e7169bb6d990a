"""Upgrades, downgrades and failures of engines, by the laboratory's light stand-in: the same role, with fast starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine import BASE, KEY, LOAD_TARGET, ask, pid, say

pytestmark = pytest.mark.full

BUILD, RUN = "vllm : Build the engine's environment beside the running one", "vllm : Run vLLM"
STORE = "/var/lib/llm-server/services/vllm"
STAND_IN = Path(__file__).resolve().parents[3] / "lab/stand_ins/nvidia-smi"
LARGE = "/srv/large"
# A copy of the tiny model with this many words: its weights would have 29 GiB, of which only the header is on disk.
ENLARGE = """
import json, pathlib, shutil, sys
source, target, words = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 60_000_000
shutil.copytree(source, target)
config = json.loads((target / "config.json").read_text())
(target / "config.json").write_text(json.dumps({**config, "vocab_size": words}))
with (source / "model.safetensors").open("rb") as handle:
    header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
end = 0
for name in header.keys() - {"__metadata__"}:
    rows, *columns = header[name]["shape"]
    rows = words if rows == config["vocab_size"] else rows
    begin, end = end, end + 4 * rows * (columns or [1])[0]
    header[name].update(shape=[rows, *columns], data_offsets=[begin, end])
text = json.dumps(header).encode()
with (target / "model.safetensors").open("wb") as handle:
    handle.write(len(text).to_bytes(8, "little") + text)
    handle.truncate(8 + len(text) + end)
"""


@pytest.fixture(scope="module")
def light(services, tmp_path_factory):
    """Return a function for the variables of one stand-in version, locked by its hash, and further variables."""
    locks = tmp_path_factory.mktemp("locks")
    for version, reference in services["light_engine"].items():
        (locks / version).write_text(f"{reference}\n")

    def variables(version, **others):
        return {
            "vllm_package": "vllm-light",
            "vllm_version": version.partition("+")[0],
            "vllm_lock": str(locks / version),
            "vllm_overrides": [],
            "vllm_extra_packages": [],
            "vllm_build_mib": 50,
            "vllm_start_timeout": 15,
            "vllm_stop_timeout": 5,
            **others,
        }

    return variables


@pytest.fixture(scope="module", autouse=True)
def stand_in_serves(converge, light):
    """Make the stand-in serve for these tests, and the real engine after them."""
    outcome = converge(light("0.32.0"))
    assert outcome.code == 0, outcome.message
    yield
    outcome = converge()
    assert outcome.code == 0, outcome.message


def environment(host):
    return host.file("/app/vllm-server/venv").linked_to


def version(host):
    return ask(host, "/version")[1]["version"]


def still_serves(host, before):
    """The engine from before serves, as the same process."""
    assert (pid(host), environment(host)) == before
    assert say(host, BASE)


def test_the_engine_goes_up_and_down_and_the_oldest_environment_goes(host, converge, light):
    def there(path):
        return host.file(f"{path}/bin/vllm").exists

    newer = environment(host)
    assert converge(light("0.23.0")).changed == [BUILD, RUN]
    older = environment(host)
    assert version(host) == "0.23.0"
    assert older != newer
    assert there(newer)

    assert converge(light("0.32.0")).changed == [RUN], "both environments are kept, so the way back builds nothing"
    assert (version(host), environment(host)) == ("0.32.0", newer)

    assert converge(light("0.23.0", vllm_installer="pip")).changed == [BUILD, RUN]
    by_pip = environment(host)
    assert version(host) == "0.23.0"
    assert by_pip not in (newer, older)
    assert host.file(f"{by_pip}/bin/pip").exists
    assert there(older) and there(newer)

    assert converge(light("0.32.0", vllm_installer="pip")).changed == [BUILD, RUN]
    assert version(host) == "0.32.0"
    assert there(newer) and there(by_pip)
    assert not there(older), "two releases before the one that runs are kept, not three"
    assert len(host.file("/app/vllm-server/environments").listdir()) == 3

    assert converge(light("0.32.0")).changed == [RUN]
    assert say(host, BASE)


@pytest.mark.parametrize(
    ("bad", "why"),
    [("0.32.0+hangs", "not ready after 15 s"), ("0.32.0+dies", "its process left (exit-code, status 1)")],
    ids=["never-ready", "dies-at-its-first-completion"],
)
def test_an_engine_that_does_not_serve_is_rolled_back_and_kept_for_inspection(host, converge, light, bad, why):
    before = environment(host)
    outcome = converge(light(bad))
    assert outcome.code != 0
    assert why in outcome.message, outcome.message
    assert "serves again" in outcome.message
    assert (version(host), environment(host)) == ("0.32.0", before)
    assert say(host, BASE)
    failed = json.loads(host.file(f"{STORE}/state.json").content_string)["failed"]
    (link,) = json.loads(host.file(f"{STORE}/releases/{failed}.json").content_string)["links"]
    assert link["target"] != before
    assert host.check_output("%s/bin/vllm --version", link["target"]) == bad
    assert converge(light("0.32.0")).changed == []


ROTATED = "canary-rotated-key-27182818"


def test_a_rotated_key_does_not_come_back_with_a_release_of_before(host, converge, light):
    def answers(key):
        return ask(host, "/v1/models", key=key)[0]

    assert converge(light("0.32.0")).code == 0
    assert converge(light("0.32.0", vllm_api_key=ROTATED)).changed == [RUN]
    assert (answers(ROTATED), answers(KEY)) == (200, 401)

    for good, bad in ((ROTATED, KEY), (KEY, ROTATED)):
        # In the first round the key changes before the failing run, in the second round in the failing run itself.
        outcome = converge(light("0.32.0+dies", vllm_api_key=good))
        assert outcome.code != 0 and "serves again" in outcome.message, outcome.message
        assert (version(host), answers(good), answers(bad)) == ("0.32.0", 200, 401)
        assert converge(light("0.32.0", vllm_api_key=good)).changed == []

    assert converge(light("0.23.0")).code == 0
    assert converge(light("0.23.0", vllm_api_key=ROTATED)).changed == [RUN]
    outcome = converge({"service": "vllm"}, playbook="../../playbooks/rollback.yml")
    assert outcome.code == 0, outcome.text
    assert (version(host), answers(ROTATED), answers(KEY)) == ("0.32.0", 200, 401)
    for key in (KEY, ROTATED):
        assert host.run("grep -rq %s /var/lib/llm-server", key).rc == 1, "no store has a key"
        assert key not in outcome.text
    assert converge(light("0.32.0")).changed == [RUN]
    assert (answers(KEY), answers(ROTATED)) == (200, 401)


def test_more_time_for_the_start_restarts_nothing(host, converge, light):
    before = pid(host), environment(host)
    assert converge(light("0.32.0", vllm_start_timeout=900)).changed == []
    still_serves(host, before)


def test_other_files_of_the_model_at_the_same_path_restart_it(host, converge, light):
    host.check_output("rm -rf /srv/local && cp -r /srv/models/tiny /srv/local && chmod -R a+rX /srv/local")
    local = light("0.32.0", vllm_model_path="/srv/local", vllm_lora_adapters=[])
    assert converge(local).changed == [RUN]
    assert converge(local).changed == []
    before = pid(host)
    host.check_output("touch /srv/local/config.json")
    assert converge(local).changed == [RUN]
    assert pid(host) != before
    assert converge(light("0.32.0")).changed == [RUN]
    host.check_output("rm -r /srv/local")


def test_an_environment_that_was_built_and_refused_goes_with_the_next_run_that_ends_well(host, converge, light):
    def there():
        return set(host.file("/app/vllm-server/environments").listdir())

    before = pid(host), environment(host)
    environments = there()
    refused = light("0.32.0", vllm_constraints=["refused==1"], vllm_engine_arguments={"no-such": 1})
    outcome = converge(refused)
    assert "unrecognized arguments: --no-such" in outcome.message, outcome.message
    (left,) = there() - environments
    assert "Build the engine's environment" not in "".join(converge(refused).changed), "it is there for who corrects"
    assert converge(light("0.32.0"), check=True).changed == [RUN]
    assert left in there()
    assert converge(light("0.32.0")).changed == [RUN]
    assert there() == environments
    assert converge(light("0.32.0")).changed == []
    still_serves(host, before)


@pytest.fixture
def gpu(host):
    """An idle L4 by the stand-in of nvidia-smi, and a model that is too large for it."""
    host.check_output("printf %%s %s > /usr/bin/nvidia-smi && chmod 755 /usr/bin/nvidia-smi", STAND_IN.read_text())
    host.check_output("rm -rf %s && python3 -c %s /srv/models/tiny %s", LARGE, ENLARGE, LARGE)
    yield
    host.check_output("rm -rf /usr/bin/nvidia-smi /var/lib/gpu_memory %s", LARGE)


def test_a_model_that_is_too_large_is_refused_and_passes_when_only_warned_of(host, converge, light, gpu):
    arguments = {"vllm_engine_arguments": {"disable-fastapi-docs": True}, "vllm_memory_plan": "refuse"}
    fits = light("0.32.0", **arguments)
    assert converge(fits).code == 0
    before = pid(host), environment(host)
    large = {**fits, "vllm_model_path": LARGE, "vllm_lora_adapters": []}
    for check in (True, False):
        outcome = converge(large, check=check)
        assert outcome.code != 0
        assert outcome.message.startswith("vllm would not start on NVIDIA L4: No available memory for the cache blocks")
        assert "Cure: a smaller or quantized model" in outcome.message
        assert outcome.changed == []
        still_serves(host, before)
    outcome = converge({**large, "vllm_memory_plan": "warn"})
    assert outcome.code == 0, outcome.message
    assert "verdict: refused" in outcome.text
    assert ask(host, "/v1/models")[1]["data"][0]["root"] == LARGE
    assert converge(light("0.32.0")).code == 0


def test_a_disk_that_is_too_small_is_named_before_anything_is_built(host, converge, light):
    before = pid(host), environment(host)
    there = host.file("/app/vllm-server/environments").listdir()
    outcome = converge(light("0.32.0", vllm_constraints=["absent==1"], vllm_build_mib=10**9))
    assert outcome.code != 0
    assert "MiB free, 1000000000 MiB are needed" in outcome.message
    assert outcome.message.startswith("/app/vllm-server/environments/")
    assert host.file("/app/vllm-server/environments").listdir() == there
    still_serves(host, before)


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_installer_goes_through_the_proxy_and_its_password_stays_secret(host, converge, light, installer):
    before = pid(host), environment(host)
    there = host.file("/app/vllm-server/environments").listdir()
    proxy = {"HTTP_PROXY": "http://someone:canary-password@127.0.0.1:9", "NO_PROXY": ""}
    constraint = [f"absent=={len(installer)}"]
    change = {"vllm_installer": installer, "vllm_build_environment": proxy, "vllm_constraints": constraint}
    outcome = converge(light("0.32.0", **change), verbose=True)
    assert outcome.code != 0
    assert "module_args" in outcome.text and "canary-password" not in outcome.text
    assert "(it was to go through HTTP_PROXY http://127.0.0.1:9)" in outcome.message
    assert "canary-password" not in outcome.message
    assert "canary-password" not in host.check_output("journalctl --no-pager")
    assert host.file("/app/vllm-server/environments").listdir() == there
    still_serves(host, before)


LOAD = "../../playbooks/load.yml"


@pytest.fixture
def load(converge, tmp_path):
    """Run a load check of a few seconds with other variables; return the outcome and the saved report."""
    modest = {"load_host": "machine", "load_targets": [LOAD_TARGET], "load_callers": 3, "load_minutes": 0.05}
    modest |= {"load_input_tokens": 20, "load_output_tokens": 5, "load_directory": str(tmp_path / "loads")}

    def run(**variables):
        outcome = converge({**modest, **variables}, playbook=LOAD)
        kept = sorted((tmp_path / "loads").glob("*.json"))
        return outcome, json.loads(kept[-1].read_text()) if kept else None

    return run


def nothing_stays(host) -> None:
    assert not host.file("/var/lib/llm-load").exists
    assert host.check_output("systemctl list-units 'llm-load-*' --all --no-legend") == ""


def test_a_load_check_reports_the_capacity_and_leaves_nothing(host, load, tmp_path):
    before = pid(host)
    outcome, report = load(load_limits={"ttft_p95_ms": 20_000, "error_share": 0})
    assert outcome.code == 0, outcome.message
    assert outcome.changed == []
    (run,) = report["runs"]
    assert run["requests"] > 3 and run["failed"] == 0 and run["ttft_ms"]["p95"] > 0
    assert run["seconds"] >= 2
    assert report["peaks"]["samples"] > 1 and report["failures"] == []
    assert "<svg" in next((tmp_path / "loads").glob("*.html")).read_text()
    assert KEY not in json.dumps(report) + outcome.text
    assert pid(host) == before
    nothing_stays(host)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"load_limits": {"ttft_p95_ms": 0.001}}, "machine: vllm lab/tiny-llama: ttft_p95_ms is "),
        ({"load_callers": 1000}, "load_callers is 1000; it must be above 0 and at most 256."),
        ({"load_host": "nobody"}, "load_host is nobody, which is not in the inventory"),
    ],
)
def test_a_load_check_is_red_or_refused(host, load, variables, message):
    outcome, _ = load(**variables)
    assert outcome.code != 0
    assert message in outcome.message
    nothing_stays(host)


def test_a_restart_under_load_is_red(host, load):
    host.run_test("systemd-run --unit breaker --on-active=12 systemctl restart vllm.service")
    outcome, report = load(load_minutes=1)
    assert outcome.code != 0
    assert "vllm.service restarted." in outcome.message
    assert {"kind": "restart", "what": "vllm.service restarted"} in report["events"]
    nothing_stays(host)


def test_the_largest_load_is_found_step_by_step(load):
    outcome, report = load(find="ttft_ms:20000", load_callers=4, load_minutes=0.03)
    assert outcome.code == 0, outcome.message
    assert [run["callers"] for run in report["runs"]] == [1, 2, 4]
    assert report["answer"].startswith(
        "vllm lab/tiny-llama: up to 4 callers at once keep the p95 time to first token within 20000 ms"
    )


def test_a_second_load_check_leaves_the_first_alone(host, load):
    host.run_test("systemd-run --unit llm-load-other sleep 600")
    outcome, _ = load()
    assert outcome.code != 0
    assert "a load check is already running (llm-load-other.service)" in outcome.message
    assert host.service("llm-load-other").is_running
    host.run_test("systemctl stop llm-load-other")
