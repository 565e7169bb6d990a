"""The diagnosis: its readers, its table, and its results for journals of real starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.diagnosis import causes, failures, judge, lines, render

ROOT = Path(__file__).resolve().parents[3]
TABLE = causes.load()
STARTS = yaml.safe_load((ROOT / "tests/data/diagnosis/starts.yml").read_text())
HEALTHY = yaml.safe_load((ROOT / "tests/data/diagnosis/healthy.yml").read_text())
WORDS = yaml.safe_load((ROOT / "tests/data/diagnosis/words.yml").read_text())
CASES = [
    json.loads(line)
    for path in sorted((ROOT / "tests/data/diagnosis").glob("*.jsonl"))
    for line in path.read_text().splitlines()
]
PHASES = yaml.safe_load((ROOT / "data/diagnosis/phases.yml").read_text())
ROLES = {path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
VARIABLES = {
    name
    for role in ROLES
    for name in yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
}
PREFIXES = {f"{role}_" for role in ROLES}
# Variables of the inventory that belong to no role.
INVENTORY = {"proxy_environment"}


def cause_of(text, service=None, **options):
    """Return the id of the cause of a log, or None."""
    verdict = judge.judge(lines.read(text), TABLE, service, **options)
    return verdict.cause.cause.id if verdict.cause else None


# -- lines --


@pytest.mark.parametrize(
    ("raw", "text", "level", "speaker"),
    [
        (
            "Feb 26 17:41:22 host vllm[40]: (EngineCore_DP0 pid=40) ERROR 02-26 17:41:39 [core.py:946] bad",
            "bad",
            "error",
            "vllm",
        ),
        ("9:Feb 26 17:41:24 host systemd[1]: a.service: Failed", "a.service: Failed", None, "systemd"),
        ("nov 19 14:33:05 box systemd[94221]: x", "x", None, "systemd"),
        ("Aug 20 13:37:51 systemd[1]: x", "x", None, "systemd"),
        ("2026-09-21T10:02:23+0000 host kernel: Out of memory", "Out of memory", None, "kernel"),
        ("[  176.010840] NVRM: API mismatch", "NVRM: API mismatch", None, ""),
        ("[rank0]:W0521 21:08:35.966000 199 torch/utils.py:17] Not enough", "Not enough", "warning", ""),
        ("name-1  | WARNING 06-01 21:35:33 [envs.py:2060] Unknown", "Unknown", "warning", ""),
        ("INFO:     Application startup complete.", "Application startup complete.", "info", ""),
        ("  [2025-01-30 23:43:08.909] INFO  (uvicorn.error) :: Waiting", None, "info", ""),
        ('level=warn ts=2021 caller=c.go:3 msg="x"', 'level=warn ts=2021 caller=c.go:3 msg="x"', "warning", ""),
        ('{"MESSAGE": "x: bad", "PRIORITY": "3", "_SYSTEMD_UNIT": "a.service"}', "x: bad", "error", ""),
        ("0.00.123.456 E gguf_init_from_file: bad", "gguf_init_from_file: bad", "error", ""),
        ("1.12.001.002 I srv  llama_server: model loaded", "srv  llama_server: model loaded", "info", ""),
        ('{"log": "ERROR 02-26 17:41:39 [core.py:9] bad\\n", "stream": "stderr"}', "bad", "error", ""),
        ("E1024 11:12:13.000000 12 server.go:33] bad", "bad", "error", ""),
        ("12:30:00 is a time", "12:30:00 is a time", None, ""),
    ],
)
def test_a_line_is_its_message(raw, text, level, speaker):
    (line,) = lines.read(raw)
    assert (line.level, line.speaker) == (level, speaker)
    assert text is None or line.text == text


def test_a_journal_of_bytes_and_unusual_records_can_be_read():
    text = '{"MESSAGE": [80, 111, 255]}\n{"a": 1}\n{broken\n\x1b[31mred\x1b[0m\n\n'
    assert [line.text for line in lines.read(text)] == ["Po\ufffd", '{"a": 1}', "{broken", "red", ""]


# -- failures --


def test_the_deepest_exception_is_the_first_that_passes_on_no_other():
    journal = [
        "(Worker_TP0 pid=1) ERROR 05-22 10:26:17 [multiproc_executor.py:870] RuntimeError: no such head at 0x7f01",
        "(Worker_TP1 pid=2) ERROR 05-22 10:26:17 [multiproc_executor.py:870] RuntimeError: no such head at 0x7f02",
        "(EngineCore pid=3) ERROR 05-22 10:26:18 [core.py:1] Exception: WorkerProc initialization failed",
        "(APIServer pid=4) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    read = lines.read(journal)
    assert [each.wrapper for each in failures.exceptions(read)] == [False, True, True]
    assert failures.deepest(read).text == "RuntimeError: no such head at 0x7f01"


def test_an_exception_over_lines_is_put_together():
    read = lines.read("pydantic_core.ValidationError: 1 validation error for Settings\napi_key\n  Field required\n")
    assert failures.deepest(read).text.endswith("Settings api_key Field required")


def test_how_a_unit_ended():
    read = lines.read(
        "a.service: Main process exited, code=killed, status=9/KILL\na.service: Failed with result 'oom-kill'.\n"
        "a.service: Scheduled restart job, restart counter is at 4."
    )
    assert failures.ends(read) == {
        "a.service": {"code": "killed", "status": "9/KILL", "result": "oom-kill", "restarts": 4}
    }


# -- judge --


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start["name"])
def test_a_start_is_explained(start):
    verdict = judge.judge(lines.read(start["journal"]), TABLE, start["service"], stopping=True)
    assert (verdict.cause and verdict.cause.cause.id) == start["cause"]
    if start["cause"]:
        assert start["says"] in verdict.cause.says
        assert "\\" not in verdict.cause.says + verdict.cause.cure


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_is_right(case):
    found = judge.judge(lines.read(case["log"]), TABLE).cause
    named = {found.cause.id, found.cause.kind_of} if found else {"none"}
    assert named & {case["cause"], *(case.get("accept") or ())}


@pytest.mark.parametrize(("cause", "log"), WORDS, ids=[f"{number}-{cause}" for number, (cause, _) in enumerate(WORDS)])
def test_the_words_of_a_program_name_its_cause(cause, log):
    assert cause_of(log) == cause


@pytest.mark.parametrize("log", HEALTHY, ids=lambda log: log["name"])
def test_a_healthy_log_raises_no_alarm(log):
    verdict = judge.judge(lines.read(log["log"]), TABLE)
    assert verdict.cause is None
    assert verdict.failed is log.get("failed", False)


@pytest.mark.parametrize("start", [start for start in STARTS if "phase" in start], ids=lambda start: start["name"])
def test_a_start_is_described_by_its_last_phase(start):
    assert start["phase"] in causes.phase(start["journal"])


def test_an_engine_that_died_before_the_stop_is_reported():
    """The server's errors about the engine are dropped after a requested stop, never before."""
    death = [
        "(APIServer pid=3) ERROR 11-26 17:14:12 [v1/engine/async_llm.py:704] AsyncLLM output_handler failed.",
        "(APIServer pid=3) ERROR 11-26 17:14:12 [v1/engine/async_llm.py:704] EngineDeadError: EngineCore encountered "
        "an issue. See stack trace (above) for the root cause.",
    ]
    stop = [
        "(APIServer pid=3) INFO 11-26 17:14:12 [entrypoints/launcher.py:100] [shutdown] API server: shutdown triggered"
    ]
    more = [
        "(EngineCore pid=4) ERROR 11-26 17:14:12 [v1/engine/core.py:1200] torch.OutOfMemoryError: CUDA out of memory."
    ]
    assert cause_of(death + stop) == "engine_core_died"
    assert cause_of(stop + death) is None
    assert cause_of(stop + death + more).startswith("cuda_oom")


def test_the_last_start_counts():
    journal = [
        "systemd[1]: Started vllm.service",
        "ValueError: LoRA rank 256 is greater than max_lora_rank 16",
        "vllm.service: Scheduled restart job, restart counter is at 1.",
        "ValueError: No available memory for the cache blocks.",
    ]
    assert cause_of(journal) == "no_cache_blocks"


def test_invocations_distinguish_starts():
    first, second = (
        {"_SYSTEMD_INVOCATION_ID": name, "MESSAGE": text}
        for name, text in (
            ("aa", "ValueError: LoRA rank 256 is greater than max_lora_rank 16"),
            ("bb", "ValueError: No available memory for the cache blocks."),
        )
    )
    assert cause_of([json.dumps(first), json.dumps(second)]) == "no_cache_blocks"


def test_what_a_start_recovered_from_is_not_the_cause():
    journal = ["ConnectionRefusedError: [Errno 111] Connection refused", "OSError: [Errno 98] Address already in use"]
    assert cause_of(journal) == "port_in_use"
    assert cause_of([journal[1], "INFO:     Application startup complete."]) is None


def test_what_was_corrected_later_is_not_the_cause():
    short = "Warning  FailedScheduling  default-scheduler  0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    placed = "Normal  Scheduled  default-scheduler  Successfully assigned default/vllm-0 to node-1"
    assert cause_of(f"{short}\n{placed}") is None
    assert cause_of(f"{placed}\n{short}") == "k8s_insufficient_gpu"


def test_words_that_a_terminal_broke_are_read_as_one():
    message = (
        "ValueError: To serve at least one request with the model's max seq len (8192), 22.5 GiB KV cache is needed"
    )
    message += ", which is larger than the available KV cache memory (17.39 GiB)."
    broken = message.replace("larger", "lar\nger")
    assert cause_of(broken) == cause_of(message) == "kv_cache_too_small_for_max_len"


def test_an_unknown_exception_ranks_above_an_effect():
    journal = ["ValueError: the moon is full", "RuntimeError: Engine core initialization failed. See root cause above."]
    verdict = judge.judge(lines.read(journal), TABLE)
    assert (verdict.cause, verdict.failed, verdict.exception) == (None, True, "ValueError: the moon is full")
    assert [each.cause.id for each in verdict.others] == ["engine_core_died"]
    assert cause_of(journal[1:]) == "engine_core_died"


def test_the_host_comes_before_the_engine():
    journal = [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "kernel: NVRM: Xid (PCI:0000:00:04): 79, pid=1, GPU has fallen off the bus.",
    ]
    verdict = judge.judge(lines.read(journal), TABLE)
    assert verdict.cause.cause.id == "gpu_fallen_off_bus"
    assert [each.cause.id for each in verdict.others] == ["cuda_illegal_memory_access"]


def test_a_state_counts_only_where_a_line_agrees():
    full = judge.State("/ has 0 MiB free.", ("disk_full",))
    alone = judge.judge([], TABLE, states=(full,))
    assert (alone.cause, alone.failed, alone.seen) == (None, False, (full,))
    agreed = judge.judge(lines.read("OSError: [Errno 28] No space left on device"), TABLE, states=(full,))
    assert (agreed.agreeing, agreed.seen) == ((full,), ())


def test_memory_runs_out_at_a_moment():
    end = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 46.00 MiB."
    assert cause_of(["Starting to load model", end]) == "cuda_oom"
    assert cause_of(["GPU KV cache size: 45,968 tokens", end]) == "cuda_oom_warmup"
    assert (
        cause_of(["GPU KV cache size: 45,968 tokens", "INFO:     Application startup complete.", end])
        == "cuda_oom_runtime"
    )


def test_statistics_show_a_queue():
    line = (
        "INFO 01-01 00:00:00 [loggers.py:1] Engine 000: Running: 9 reqs, Waiting: {} reqs, GPU KV cache usage: {}%, x"
    )
    full = judge.load_of_engine(lines.read([line.format(4, 99.1)] * 3))
    assert "4 requests wait, and the KV cache is full" in full[0].says
    assert "more are sent" in judge.load_of_engine(lines.read([line.format(4, 20.0)] * 3))[0].says
    assert judge.load_of_engine(lines.read([line.format(4, 99.1)] * 2 + [line.format(0, 99.1)])) == []


# -- table --


def test_each_row_is_complete():
    groups = {row.id: row.kind_of for row in TABLE.causes}
    for row in TABLE.causes:
        assert row.rank in causes.RANKS and row.levels <= {"warning", "info"}, row.id
        assert row.says and row.cure, row.id
        assert not row.kind_of or row.kind_of in groups, row.id
        most = max(pattern.groups for pattern in row.matches)
        for text in (row.says, row.cure):
            assert all(int(number) <= most for number in re.findall(r"\\(\d)", text)), row.id
    for area in causes.AREAS:
        keys = [(row.id, row.services, row.after, row.matches) for row in TABLE.causes if row.area == area]
        assert len(set(keys)) == len(keys)
    assert len({row["id"] for row in PHASES}) == len(PHASES)


@pytest.mark.parametrize("row", TABLE.causes, ids=lambda row: f"{row.area}-{row.id}")
def test_a_cure_names_variables_that_exist_and_only_of_its_services(row):
    named = {word for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", row.cure) if word.startswith(tuple(PREFIXES))}
    assert named <= VARIABLES
    if named - {"swap_size_mib"} and "roles" not in row.cure:
        assert row.services or named <= {"nvidia_driver_hold", "nvidia_driver_packages"}, row.id


@pytest.mark.parametrize(
    ("service", "variable"),
    [
        ("vllm", "vllm"),
        ("ai-server", "ai_server"),
        ("node_exporter", "node_exporter"),
        ("dcgm-exporter", "dcgm_exporter"),
    ],
)
def test_a_limit_of_memory_that_was_reached_names_its_variable(service, variable):
    log = (
        "kernel: oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
        f"oom_memcg=/system.slice/{service}.service,task_memcg=/system.slice/{service}.service,task=work,pid=7,uid=9\n"
        "kernel: Memory cgroup out of memory: Killed process 7 (work) total-vm:9kB\n"
    )
    found = judge.judge(lines.read(log), TABLE, service).cause
    assert found.cause.id == "unit_memory_limit"
    assert found.says == f"{service} reached its own memory limit, and the kernel killed it (work)."
    assert found.cure == f"Raise {variable}_memory_max, or make it need less."


def test_a_cure_names_the_service_that_it_is_of():
    dead = lines.read("EngineDeadError: EngineCore encountered an issue")
    assert "journalctl -u vllm)" in judge.judge(dead, TABLE).cause.cure
    assert "journalctl -u feedback)" in judge.judge(dead, TABLE, "vllm", name="feedback").cause.cure


def test_a_cure_names_the_variables_of_the_engines_entry():
    rank = lines.read("ValueError: LoRA rank 256 is greater than max_lora_rank 16")
    assert judge.judge(rank, TABLE, "vllm", name="vllm").cause.cure == "Raise vllm_max_lora_rank."
    said_to_feedback = judge.judge(rank, TABLE, "vllm", name="feedback").cause.cure
    assert (
        said_to_feedback == "Raise vllm_max_lora_rank. The entry feedback of engines has such variables without vllm_."
    )
    full = lines.read("srv    load_model: failed to load model, '/models/x.gguf'")
    result = judge.judge(full, TABLE, "llama_cpp", name="code").cause
    assert result.says == "the model cannot be loaded (/models/x.gguf)."
    assert result.cure.endswith("The entry code of engines has such variables without llama_cpp_.")
    # Another service's row names the engine's variables too, without the sentence about the entry.
    parsed = lines.read("python: can't open file '/usr/lib/python3.12/venv'\nNo module named ensurepip")
    assert "entry" not in getattr(judge.judge(parsed, TABLE, "ai-server", name="ai-server").cause, "cure", "")


def test_an_unknown_key_of_a_row_is_refused():
    with pytest.raises(ValueError, match="x: unknown keys servces"):
        causes.cause({"id": "x", "servces": "all", "services": "all", "matches": "x", "says": "x"}, "host", 0)


# -- what the user sees --


def test_a_table_shows_cause_proof_and_cure():
    read = lines.read("vllm: error: unrecognized arguments: --task embed\nOSError: [Errno 98] Address already in use")
    shown = render.table(judge.judge(read, TABLE), "vllm")
    assert shown[:4] == [
        "vllm: its port is taken.",
        "  cause  port_in_use (unit)",
        "  proof  OSError: [Errno 98] Address already in use",
        "  cure   Stop the other process (ss -ltnp names it) or choose another port.",
    ]
    assert shown[4] == "  also seen:"
    assert render.table(judge.judge([], TABLE)) == ["nothing here speaks of a failure."]


def test_the_program_reads_a_file_and_standard_input(tmp_path):
    command = [sys.executable, "-m", "plugins.module_utils.diagnosis"]
    log = tmp_path / "log"
    log.write_text("OSError: [Errno 98] Address already in use\n")
    done = subprocess.run([*command, str(log)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "its port is taken.")
    done = subprocess.run(
        [*command, "-", "--json"], cwd=ROOT, input="fine\n", capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (0, False)
    done = subprocess.run([*command, "/no/such"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "/no/such: No such file or directory\n")


def test_the_quick_check_leaves_nothing_out():
    for row in TABLE.causes:
        for words, pattern in zip(row.words, row.matches, strict=True):
            assert not words or all(len(word) >= 3 for word in words), pattern
    texts = [line for case in CASES for line in case["log"].splitlines()] + [log for _, log in WORDS]
    for row in TABLE.causes:
        for words, pattern in zip(row.words, row.matches, strict=True):
            missed = [text for text in texts if pattern.search(text) and words and not any(w in text for w in words)]
            assert not missed, (row.id, pattern.pattern)


def test_a_long_journal_takes_seconds():
    worst = next(case["log"] for case in CASES if case["id"] == "cuda-oom-run-01")
    begun = time.process_time()
    assert cause_of("\n".join([worst] * 700)) == "cuda_oom"  # 5000 lines
    assert time.process_time() - begun < 10
