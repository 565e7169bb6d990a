"""The plan as users and roles run it: the playbook, and the module on a host with a canned nvidia-smi."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit" / "gpu"))

import gpu_memory_samples as samples

from plugins.module_utils.gpu import nvidia_smi
from plugins.modules import gpu_memory_plan, gpu_vram

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "unit" / "data" / "nvidia_smi"
ONE_L4 = (DATA / "l4_two.xml").read_text().split('<gpu id="00000000:C1')[0] + "</nvidia_smi_log>"


class Left(Exception):
    """The module has exited with this result."""


def run(monkeypatch, module, check=False, **arguments):
    def leave(self, **result):
        raise Left(basic.remove_values(result, self.no_log_values))

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", leave)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", lambda self, msg, **r: leave(self, failed=True, msg=msg, **r))
    with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(Left) as caught:
        module.main()
    json.dumps(caught.value.args[0])
    return caught.value.args[0]


@pytest.fixture
def one_l4(monkeypatch):
    """A host with one L4; return a function that sets the used memory and the unit that uses it."""

    def put(used=1, free=22601, unit=""):
        entry = (
            f"<process_info><pid>4711</pid><process_name>python3</process_name><used_memory>{used} MiB</used_memory>"
            "</process_info>"
        )
        text = ONE_L4.replace("<used>1 MiB", f"<used>{used} MiB").replace("<free>22601 MiB", f"<free>{free} MiB")
        text = text.replace("<processes>", f"<processes>{entry}" if unit is not None else "<processes>")
        monkeypatch.setattr(nvidia_smi, "query", lambda *arguments: text)
        monkeypatch.setattr(nvidia_smi, "unit_of", lambda pid, proc: unit or "")

    return put


def service(tmp_path, **changes):
    directory = tmp_path / "model"
    if not directory.exists():
        samples.write_model(directory, samples.EXAONE)
    return {
        "name": "vllm", "version": "0.15.1", "model": str(directory), "gpu_memory_utilization": 0.85,
        "max_model_len": 8192, "enforce_eager": True, "unit": "vllm.service", **changes,
    }  # fmt: skip


def test_what_the_own_unit_holds_counts_as_free(monkeypatch, tmp_path, one_l4):
    one_l4(used=19980, free=2622, unit="vllm.service")
    result = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path)], refuse=True)
    assert (result["verdict"], result["changed"]) == ("fits", False)


def test_what_others_hold_does_not(monkeypatch, tmp_path, one_l4):
    one_l4(used=19980, free=2622, unit="feedback.service")
    result = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path)], refuse=True)
    assert (result["failed"], result["kind"]) == (True, "refused")
    assert "vllm would not start on NVIDIA L4: Free memory on device" in result["msg"]
    assert "Cure: free" in result["msg"]
    assert result["plan"]["services"][0]["verdict"] == "refused"
    shown = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path)])
    assert (shown.get("failed"), shown["verdict"]) == (None, "refused")


def test_a_host_without_a_gpu_is_reported(monkeypatch, tmp_path):
    def absent(*arguments):
        raise nvidia_smi.failure((DATA / "no_driver.txt").read_text(), 9)

    monkeypatch.setattr(nvidia_smi, "query", absent)
    result = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path)])
    assert result["kind"] == "no_driver"
    assert result["msg"].endswith("Or give the GPU's figures by hand.")


def test_two_ranks_need_two_gpus(monkeypatch, tmp_path, one_l4):
    one_l4()
    result = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path, tensor_parallel_size=2)])
    assert "needs 2 GPUs, this host has 1" in result["msg"]


LOG = "Model loading took 4.55 GiB memory\nAvailable KV cache memory: 12.90 GiB\nGPU KV cache size: 180,320 tokens\n"


def test_a_start_is_compared_and_kept(monkeypatch, tmp_path, one_l4):
    one_l4(used=19980, free=2622, unit="vllm.service")
    monkeypatch.setattr(gpu_memory_plan, "unit_log", lambda unit: LOG if unit == "vllm.service" else "")
    history = tmp_path / "state" / "history.json"
    arguments = {"services": [service(tmp_path)], "compare": True, "history_path": str(history)}
    preview = run(monkeypatch, gpu_memory_plan, check=True, **arguments)
    assert preview["changed"]
    assert not history.exists()
    first = run(monkeypatch, gpu_memory_plan, **arguments)
    assert first["changed"]
    assert {row["figure"] for row in first["comparison"]["vllm"]} == {"weights", "kv_cache", "kv_tokens"}
    assert "planned" in first["rendered"]
    assert not run(monkeypatch, gpu_memory_plan, **arguments)["changed"]
    planned = run(monkeypatch, gpu_memory_plan, services=[service(tmp_path)], history_path=str(history))
    assert planned["plan"]["services"][0]["figures"]["kv_cache"]["value"] == pytest.approx(12.90 * 1024, abs=0.2)


def test_the_plan_is_exported_to_node_exporter_and_stays(monkeypatch, tmp_path, one_l4):
    one_l4(used=19980, free=2622, unit="vllm.service")
    monkeypatch.setattr(gpu_memory_plan, "unit_log", lambda unit: LOG)
    page = tmp_path / "metrics" / "gpu_memory.prom"
    arguments = {"services": [service(tmp_path)], "compare": True, "history_path": str(tmp_path / "history.json")}
    arguments["metrics_path"] = str(page)
    assert run(monkeypatch, gpu_memory_plan, check=True, **arguments)["changed"]
    assert not page.exists()
    assert run(monkeypatch, gpu_memory_plan, **arguments)["changed"]
    output = dict(line.rsplit(" ", 1) for line in page.read_text().splitlines() if not line.startswith("#"))
    labels = '{group="vllm", service="vllm"}'
    assert list(output) == [f"llm_gpu_planned_bytes{labels}", f"llm_gpu_planned_max_bytes{labels}"]
    planned, most = (int(value) for value in output.values())
    assert 19000 << 20 < planned <= most < 22569 << 20
    assert page.stat().st_mode & 0o777 == 0o644
    # The plan now includes this start's measurement, so the next run changes nothing.
    assert not run(monkeypatch, gpu_memory_plan, **arguments)["changed"]


def test_gpu_vram_waits_until_the_last_model_has_left(monkeypatch):
    answers = [19980, 19980, 3]

    def query(*arguments):
        used = answers.pop(0) if len(answers) > 1 else answers[0]
        return ONE_L4.replace("<used>1 MiB", f"<used>{used} MiB")

    monkeypatch.setattr(nvidia_smi, "query", query)
    result = run(monkeypatch, gpu_vram, maximum_used_mib=1024, wait_timeout=20, wait_interval=0)
    assert result["gpus"][0]["used_mib"] == 3
    assert answers == [3]


def test_gpu_vram_gives_up_and_names_the_holder(monkeypatch, one_l4):
    one_l4(used=19980, free=2622, unit="vllm.service")
    result = run(monkeypatch, gpu_vram, maximum_used_mib=1024, wait_timeout=1, wait_interval=1)
    assert "GPU 0 has 19980 MiB used, wanted at most 1024 MiB (held by python3 (pid 4711, vllm.service" in result["msg"]
    assert result["kind"] == "unmet"
    assert result["waited_s"] >= 1


def test_gpu_vram_does_not_wait_for_another_card(monkeypatch, one_l4):
    one_l4()
    assert run(monkeypatch, gpu_vram, name="H100", wait_timeout=60)["waited_s"] == 0


def playbook(tmp_path, *arguments):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "vllm: {hosts: {gpu-1: {ansible_host: 203.0.113.1, ansible_ssh_common_args: '-o ConnectTimeout=1'}}}\n"
    )
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "playbooks/plan.yml", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_SSH_RETRIES": "0"},
    )  # fmt: skip


L4_BY_HAND = '{"gpu_memory_plan_gpu": {"name": "L4", "total_mib": 23034}}'


def test_the_playbook_plans_without_asking_any_host(tmp_path):
    samples.write_model(tmp_path / "model", samples.EXAONE)
    output = tmp_path / "plan.json"
    model = f"vllm_model_path={tmp_path / 'model'}"
    done = playbook(tmp_path, "-e", L4_BY_HAND, "-e", model, "-e", f"gpu_memory_plan_output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    # The table is printed line by line, unquoted and once.
    assert "\n  in use after start" in done.stdout
    assert "\nverdict: fits\n" in done.stdout
    assert done.stdout.count("KV cache") == 1
    plan = json.loads(output.read_text())
    assert plan["verdict"] == "fits"
    assert plan["services"][0]["figures"]["weights"]["origin"] == "read"
    what_if = playbook(
        tmp_path, "-e", L4_BY_HAND, "-e", model, "-e", "vllm_gpu_memory_utilization=0.3", "-e",
        "vllm_max_model_len=32768", "-e", "gpu_memory_plan_refuse=true",
    )  # fmt: skip
    assert what_if.returncode != 0
    assert "vllm would not start on L4: To serve at least one request" in what_if.stdout


def test_the_playbook_prints_json_on_request(tmp_path):
    samples.write_model(tmp_path / "model", samples.EXAONE)
    model = f"vllm_model_path={tmp_path / 'model'}"
    done = playbook(tmp_path, "-e", L4_BY_HAND, "-e", model, "-e", "gpu_memory_plan_json=true")
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout[done.stdout.index("\n{\n") : done.stdout.index("\n}\n") + 3]
    assert json.loads(text)["start_order"] == ["vllm"]


COMMAND = (sys.executable, "-m", "plugins.module_utils.gpu.memory")


def command(*arguments):
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_line_answers_what_the_playbook_does(tmp_path):
    samples.write_model(tmp_path / "model", samples.EXAONE)
    output = tmp_path / "plan.json"
    model = str(tmp_path / "model")
    variables = {
        "vllm_model_path": model, "vllm_version": "0.23.0", "vllm_gpu_memory_utilization": 0.5,
        "vllm_max_model_len": 4096, "vllm_enforce_eager": False, "vllm_dtype": "auto", "vllm_lora_adapters": [],
        "vllm_engine_arguments": {"max-num-seqs": 32}, "gpu_memory_plan_output": str(output),
    }  # fmt: skip
    done = playbook(tmp_path, "-e", L4_BY_HAND, "-e", json.dumps(variables))
    assert done.returncode == 0, done.stdout + done.stderr
    result = command(
        "--gpu", "L4", "--model", model, "--version", "0.23.0", "--gpu-memory-utilization", "0.5", "--max-model-len",
        "4096", "--engine-arguments", '{"max-num-seqs": 32}', "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ours, theirs = json.loads(result.stdout), json.loads(output.read_text())
    assert ours["services"][0]["figures"] == theirs["services"][0]["figures"]
    assert ours["verdict"] == theirs["verdict"] == "fits"


def test_the_command_line_needs_no_ansible_and_little_time(tmp_path):
    samples.write_model(tmp_path / "model", samples.EXAONE)
    arguments = ("--gpu", "L4", "--model", str(tmp_path / "model"), "--version", "0.23.0", "--max-model-len", "4096")
    blocked = "import sys; sys.modules['ansible'] = None; sys.modules['yaml'] = None\n"
    script = blocked + "from plugins.module_utils.gpu.memory.__main__ import main; sys.exit(main(sys.argv[1:]))"
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "verdict: fits" in done.stdout
    # CPU time, not wall time: other tests run at the same time.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--gpu", "Unheard of", "--model", "m"), 2, "give its memory with --total-mib"),
        (("--gpu", "L4", "--model", "/nowhere", "--version", "0.23.0"), 2, "does not exist"),
        (("--gpu", "L4", "--services", "/nowhere.json"), 2, "is not readable JSON"),
        (("--gpu", "L4", "--engine", "reserved", "--memory-mib", "30000"), 1, "verdict: refused"),
    ],
)  # fmt: skip
def test_the_command_line_refuses_bad_input(arguments, code, message):
    done = command(*arguments)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_host_is_reported(tmp_path):
    done = playbook(tmp_path)
    assert done.returncode != 0
    assert "gpu-1 is not reachable: give its GPU by hand" in done.stdout


@pytest.mark.parametrize(
    "given, message",
    [
        ({"gpu_memory_plan_gpu": "L4"}, "gpu_memory_plan_gpu is text; it must be a mapping with name, total_mib"),
        ({"gpu_memory_plan_gpu": {"name": "L4"}}, "gpu_memory_plan_gpu lacks total_mib; give it one."),
        ({"gpu_memory_plan_gpu": {"total_mib": -1}}, "gpu: total_mib is -1: the total must be above 0"),
        ({"gpu_memory_plan_config": "/nowhere.json"}, 'gpu_memory_plan_config is "/nowhere.json"; it must be the'),
        ({"vllm_dtype": None}, "vllm_dtype has no value (null); give it one, or take it out."),
        ({"vllm_version": "latest"}, "Engine version 'latest' is not a version such as 0.23.0"),
        ({"vllm_gpu_memory_utilization": 0}, "vllm_gpu_memory_utilization is 0.0; it must be above 0 and at most 1."),
        ({"vllm_lora_adapters": [{"name": "a"}]}, "vllm_lora_adapters[0] lacks source; give it one."),
        ({"vllm_max_model_length": 8192}, "Unknown variable vllm_max_model_length; did you mean vllm_max_model_len?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, given, message):
    done = playbook(tmp_path, "-e", L4_BY_HAND, "-e", json.dumps(given))
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "caused by" not in done.stdout + done.stderr


def test_all_errors_in_the_plans_variables_are_reported_at_once(tmp_path):
    wrong = {"vllm_max_model_len": "long", "vllm_lora_adapters": "a", "gpu_memory_plan_gpu_index": "first"}
    done = playbook(tmp_path, "-e", L4_BY_HAND, "-e", json.dumps(wrong))
    assert done.returncode != 0
    output = " ".join(done.stdout.split())
    assert 'vllm_max_model_len is "long"; it must be a whole number.' in output
    assert "vllm_lora_adapters is text; it must be a list of mappings, each with name, source, revision." in output
    assert 'gpu_memory_plan_gpu_index is "first"; it must be a whole number.' in output
    assert "(3)" in output
    assert "(4)" not in output


def test_a_version_that_cannot_be_deployed_is_planned_and_named(tmp_path):
    samples.write_model(tmp_path / "model", samples.EXAONE)
    done = playbook(
        tmp_path, "-e", L4_BY_HAND, "-e", f"vllm_model_path={tmp_path / 'model'}", "-e", "vllm_version=0.28.0"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = " ".join((done.stdout + done.stderr).split())
    assert "vllm_version 0.28.0 is not in data/vllm/versions.yml" in output
    assert "vllm: vllm 0.28.0" in output


def test_the_production_example_is_planned_by_its_shape_alone(tmp_path):
    config = ROOT / "data" / "gpu_memory" / "exaone-3.5-2.4b-instruct.json"
    output = tmp_path / "plan.json"
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "inventories/production", "playbooks/plan.yml", "-e",
         L4_BY_HAND, "-e", f"gpu_memory_plan_config={config}", "-e", f"gpu_memory_plan_output={output}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    planned = json.loads(output.read_text())["services"][0]
    assert planned["verdict"] == "fits"
    # The engine gets one slot for each of the two adapters.
    assert planned["figures"]["lora"]["note"] == "2 adapter slots of rank 16"
