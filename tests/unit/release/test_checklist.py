"""The rows of the checklist: what is measured, and when it is red."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from plugins.module_utils.release import checklist, systemd_unit


@pytest.fixture
def systemd(monkeypatch):
    """systemctl's answer about a unit, and the number of its restarts in the journal of the last minutes."""
    said = {"live": {"ActiveState": "active", "UnitFileState": "enabled", "NRestarts": "0"}, "lately": 0}

    def run(*argv, **_):
        if argv[0] == "systemctl":
            text = "".join(f"{name}={value}\n" for name, value in said["live"].items())
        else:
            assert {f"MESSAGE_ID={systemd_unit.RESTART_SCHEDULED}", "UNIT=vllm.service", "-10min"} <= set(argv)
            text = "vllm.service: Scheduled restart job\n" * said["lately"]
        return subprocess.CompletedProcess(argv, 0, text, "")

    monkeypatch.setattr(systemd_unit, "run", run)
    return said


@pytest.mark.parametrize(
    "live, lately, measured, ok",
    [
        ({}, 0, "active, enabled, 0 restarts", True),
        # The journal also has restarts before the last manual start.
        ({}, 9, "active, enabled, 0 restarts", True),
        ({"NRestarts": "1"}, 1, "active, enabled, 1 restarts, 1 in 10 min", True),
        ({"NRestarts": "40"}, 0, "active, enabled, 40 restarts, 0 in 10 min", True),
        ({"NRestarts": "40"}, 3, "active, enabled, 40 restarts, 3 in 10 min", False),
        ({"NRestarts": "2"}, 9, "active, enabled, 2 restarts, 2 in 10 min", True),
        ({"ActiveState": "activating", "NRestarts": "1"}, 1, "activating, enabled, 1 restarts, 1 in 10 min", False),
        ({"UnitFileState": "disabled"}, 0, "active, disabled, 0 restarts", False),
        ({"ActiveState": "inactive", "UnitFileState": ""}, 0, "inactive, not there, 0 restarts", False),
    ],
)
def test_a_unit(systemd, live, lately, measured, ok):
    systemd["live"].update(live)
    systemd["lately"] = lately
    assert checklist.unit("vllm.service") == (measured, ok)


@pytest.mark.parametrize(
    "page, measured, ok",
    [
        ("sent_entries_total{host='a'} 3\npromtail_sent_entries_total{host='b'} 4\n", "7 lines sent, 0", True),
        ("sent_entries_total 0\n", "0 lines sent, 0", False),
        # Lost in the past: reported, but not red, because no cure exists.
        ("sent_entries_total 9\npromtail_dropped_entries_total{reason='x'} 2\n", "9 lines sent, 2", True),
        ("sent_entries_totally 9\n", "0 lines sent, 0", False),
        ("sent_entries_total{a='b\u2028\x85} c'} 3 1700000000000\n", "3 lines sent, 0", True),
    ],
)
def test_pushes(server, page, measured, ok):
    server.pages["/metrics"] = (200, f"promtail_{page}")
    assert checklist.pushes(f"{server.url}/metrics", watched=0) == (f"{measured} dropped", ok)


def test_pushes_that_lose_lines_now(server, monkeypatch):
    page = "promtail_sent_entries_total 9\npromtail_dropped_entries_total {}\n"
    server.pages["/metrics"] = (200, page.format(2))
    monkeypatch.setattr(checklist.time, "sleep", lambda _: server.pages.update({"/metrics": (200, page.format(5))}))
    assert checklist.pushes(f"{server.url}/metrics") == ("9 lines sent, 5 dropped", False)


AGENT = """vmagent_remotewrite_blocks_sent_total{{url="1:secret-url"}} {sent}
vmagent_remotewrite_pending_data_bytes{{path="/q",url="1:secret-url"}} {waiting}
vmagent_remotewrite_packets_dropped_total{{url="1:secret-url"}} {dropped}
"""


def agent(server, sent=0, waiting=0, dropped=0, **health):
    """Set up an agent with scrape jobs by health, and its counters."""
    active = [{"labels": {"job": job}, "health": state} for job, state in health.items()]
    server.pages["/api/v1/targets"] = (200, json.dumps({"data": {"activeTargets": active}}))
    server.pages["/metrics"] = (200, AGENT.format(sent=sent, waiting=waiting, dropped=dropped))


@pytest.mark.parametrize(
    "figures, measured, ok",
    [
        ({"sent": 9, "vllm": "up"}, "1 targets, 9 blocks sent, 0 KiB wait, 0 dropped", True),
        ({"sent": 9, "waiting": 4096, "vllm": "up"}, "1 targets, 9 blocks sent, 4 KiB wait, 0 dropped", False),
        ({"vllm": "up"}, "1 targets, 0 blocks sent, 0 KiB wait, 0 dropped", False),
        # Lost in the past: reported, but not red, because no cure exists.
        ({"sent": 9, "dropped": 2, "vllm": "up"}, "1 targets, 9 blocks sent, 0 KiB wait, 2 dropped", True),
        (
            {"sent": 9, "vllm": "down", "promtail": "up"},
            "2 targets, 9 blocks sent, 0 KiB wait, 0 dropped; not scraped: vllm",
            False,
        ),
    ],
)
def test_an_agent_that_pushes(server, figures, measured, ok):
    agent(server, **figures)
    assert checklist.remote_write(server.url, watched=0) == (measured, ok)


def test_an_engine_that_is_off_on_purpose_is_not_a_lost_target(server, monkeypatch):
    target = {"labels": {"job": "vllm", "service": "feedback"}, "health": "down"}
    agent(server, sent=9)
    server.pages["/api/v1/targets"] = (200, json.dumps({"data": {"activeTargets": [target]}}))
    monkeypatch.setattr(checklist.engine_states, "away", lambda: ["feedback"])
    assert checklist.remote_write(server.url, watched=0)[1] is True
    monkeypatch.setattr(checklist.engine_states, "away", list)
    assert checklist.remote_write(server.url, watched=0)[1] is False


def test_an_agent_is_given_a_moment_to_send(server, monkeypatch):
    agent(server, sent=9, waiting=4096, vllm="up")
    monkeypatch.setattr(checklist.time, "sleep", lambda _: agent(server, sent=10, vllm="up"))
    agent(server, sent=9, waiting=4096, vllm="unknown")
    assert checklist.remote_write(server.url) == ("1 targets, 10 blocks sent, 0 KiB wait, 0 dropped", True)


UP = {"name": "up", "state": "firing", "lastError": ""}
BROKEN = {"name": "Bad", "state": "inactive", "lastError": "connection refused"}


@pytest.mark.parametrize(
    "read, rules, measured, ok",
    [
        (1, [UP, {"name": "recorded", "lastError": ""}], "2 rules, 1 alerts fire", True),
        (1, [], "0 rules, 0 alerts fire", False),
        (1, [UP, BROKEN], "2 rules, 1 alerts fire; 1 fail, such as Bad: connection refused", False),
        (
            0,
            [UP],
            "1 rules, 1 alerts fire; the file that is there could not be read, those of before are in force",
            False,
        ),
    ],
)
def test_rules_are_read_and_answered(server, read, rules, measured, ok):
    server.pages["/metrics"] = (200, f"vmalert_config_last_reload_successful {read}\n")
    server.pages["/api/v1/rules"] = (200, json.dumps({"data": {"groups": [{"rules": rules}]}}))
    assert checklist.rules(server.url, wait=0) == (measured, ok)


def test_a_rule_that_fails_is_given_its_next_turn(server, monkeypatch):
    def answer(rule):
        server.pages["/api/v1/rules"] = (200, json.dumps({"data": {"groups": [{"rules": [rule]}]}}))

    server.pages["/metrics"] = (200, "vmalert_config_last_reload_successful 1\n")
    answer(BROKEN)
    monkeypatch.setattr(checklist.time, "sleep", lambda _: answer(UP))
    assert checklist.rules(server.url) == ("1 rules, 1 alerts fire", True)
    assert checklist.rules(f"{server.url}/nowhere") == ("404: no such page", False)


NOTICES = """alertmanager_alerts{{state="active"}} 2
alertmanager_notifications_total{{integration="slack"}} 7
alertmanager_notifications_failed_total{{integration="slack",reason="other"}} {failed}
"""


@pytest.mark.parametrize(
    "before, after, measured, ok",
    [
        (0, 0, "2 alerts held, 7 notices delivered, 0 failed", True),
        (3, 3, "2 alerts held, 4 notices delivered, 3 failed", True),
        (3, 4, "2 alerts held, 3 notices delivered, 4 failed", False),
    ],
)
def test_notices_that_fail_now_are_red(server, monkeypatch, before, after, measured, ok):
    server.pages["/metrics"] = (200, NOTICES.format(failed=before))
    later = {"/metrics": (200, NOTICES.format(failed=after))}
    monkeypatch.setattr(checklist.time, "sleep", lambda _: server.pages.update(later))
    assert checklist.notices(server.url) == (measured, ok)


def test_a_page_must_contain_the_expected_words(server):
    server.pages["/query"] = (200, '{"status":"error"}')
    assert checklist.http(f"{server.url}/query") == ("200", True)
    assert checklist.http(f"{server.url}/query", contains='"success"') == ('200: {"status":"error"}', False)


@pytest.mark.parametrize("driver, ok", [("", True), ("580", True), ("58", False), ("570", False), ("580.95.05", True)])
def test_the_driver_of_a_gpu(monkeypatch, driver, ok):
    found = {"driver_version": "580.95.05", "gpus": [{"name": "NVIDIA L4", "total_mib": 23034}]}
    monkeypatch.setattr(checklist.nvidia_smi, "read", lambda: found)
    assert checklist.gpu("L4", driver) == ("NVIDIA L4, 23034 MiB, driver 580.95.05", ok)


def pieces(*texts, end=True, ascii=True):
    """Return a streamed chat completion."""
    events = [json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=ascii) for text in texts] + [
        "[DONE]"
    ] * end
    return "".join(f"data: {event}\n\n" for event in events)


@pytest.mark.parametrize(
    "page, measured, ok",
    [
        ((200, pieces("Hel", "lo")), "'Hello' in 2 pieces", True),
        ((200, pieces("Hel", end=False)), "'Hel' in 1 pieces", False),
        ((200, ""), "'' in 0 pieces", False),
        ((200, pieces("a\u2028b\u2029c\x85d", ascii=False)), "'a b c d' in 1 pieces", True),
        (
            (200, ": ping\r\n\r\n" + pieces("Hi").replace("\n", "\r\n").replace("data: ", "data:")),
            "'Hi' in 1 pieces",
            True,
        ),
        ((200, 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'), "error in the stream: out of", False),
        ((503, "vLLM is away"), "503: vLLM is away", False),
    ],
)
def test_chat(server, page, measured, ok):
    server.pages["/v1/chat/completions"] = page
    row = checklist.chat(f"{server.url}/v1", "base", "Hi", "key")
    assert (row[0][: len(measured)], row[1]) == (measured, ok)


WATCHDOG = """\
# HELP llm_watchdog_last_look_seconds Unix time of the last look.
llm_watchdog_last_look_seconds {looked}
llm_watchdog_up{{unit="vllm.service"}} 1
llm_watchdog_up{{unit="ai-server.service"}} {up}
llm_watchdog_ready{{unit="vllm.service"}} 1
llm_watchdog_ready{{unit="ai-server.service"}} {ready}
llm_watchdog_restarts_total{{unit="vllm.service"}} 2
llm_watchdog_restarts_total{{unit="ai-server.service"}} 0
llm_watchdog_person_needed{{unit="vllm.service"}} {needed}
llm_watchdog_person_needed{{unit="ai-server.service"}} 0
"""


@pytest.mark.parametrize(
    ("ago", "up", "ready", "needed", "measured", "ok"),
    [
        (5, 1, 1, 0, "looked 5 s ago at 2 services, 2 run, 2 restarts since boot", True),
        (5, 0, 0, 0, "looked 5 s ago at 2 services, 1 run, 2 restarts since boot", True),
        (500, 1, 1, 0, "looked 500 s ago at 2 services, 2 run, 2 restarts since boot", False),
        (5, 1, 0, 0, "2 restarts since boot; not seen to serve: ai-server.service", False),
        (5, 1, 1, 1, "2 restarts since boot; a person is needed: vllm.service", False),
    ],
)
def test_the_watchdog(tmp_path, monkeypatch, ago, up, ready, needed, measured, ok):
    monkeypatch.setattr(checklist, "LATE", 0)
    monkeypatch.setattr(checklist.time, "time", lambda: 1_000_000.0)
    page = tmp_path / "watchdog.prom"
    page.write_text(WATCHDOG.format(looked=1_000_000 - ago, up=up, ready=ready, needed=needed))
    row = checklist.run({"what": "w", "kind": "watchdog", "options": {"path": str(page), "interval": 2.6}, "cure": "c"})
    assert row["measured"].endswith(measured)
    assert row["ok"] is ok


@pytest.mark.parametrize(
    ("said", "service", "measured", "ok"),
    [
        ("active", "inactive", "active, next at Thu 02:00", True),
        ("inactive", "inactive", "inactive, next at Thu 02:00", False),
        ("active", "failed", "active, next at Thu 02:00; a.service failed", False),
    ],
)
def test_a_timer(monkeypatch, said, service, measured, ok):
    out = f"ActiveState={said}\nNextElapseUSecRealtime=Thu 02:00\nUnit=a.service\nNeedDaemonReload=no\n"
    monkeypatch.setattr(checklist.systemd_unit, "run", lambda *_, **__: SimpleNamespace(stdout=out))
    monkeypatch.setattr(checklist.systemd_unit, "show", lambda unit: {"ActiveState": service})
    assert checklist.timer("a.timer") == (measured, ok)


HOUR = 3600
GOOD = {"ok": True, "why": "", "snapshot": "ab12cd34", "files": 12, "added": 3 << 20, "seconds": 2.2}


@pytest.mark.parametrize(
    ("noted", "timer", "measured", "ok"),
    [
        (
            {"good": {**GOOD, "at": 3 * HOUR}},
            "active",
            "3 h ago: snapshot ab12cd34, 12 files, 3.0 MiB added in 2 s",
            True,
        ),
        ({"good": {**GOOD, "at": 40 * HOUR}}, "active", "in 2 s; older than 36 h", False),
        ({"good": {**GOOD, "at": 60}}, "inactive", "in 2 s; llm-backup.timer does not run", False),
        (
            {"good": {**GOOD, "at": 60}, "run": {"ok": False, "at": 60, "why": "no room"}},
            "active",
            "; the last one, 1 min ago, failed: no room",
            False,
        ),
        (
            {"good": {**GOOD, "at": 60}, "check": {"ok": False, "at": 60, "why": "pack is damaged"}},
            "active",
            "; the check of the repository, 1 min ago, failed: pack is damaged",
            False,
        ),
        ({"repository": {"since": HOUR}}, "active", "none yet on this machine", True),
        ({"repository": {"since": 40 * HOUR}}, "active", "none yet on this machine; older than 36 h", False),
    ],
)
def test_the_last_back_up(tmp_path, monkeypatch, noted, timer, measured, ok):
    now = 1_000_000.0
    monkeypatch.setattr(checklist.time, "time", lambda: now)
    monkeypatch.setattr(systemd_unit, "show", lambda unit: {"ActiveState": timer})
    told = {
        name: {key: now - value if key in ("at", "since") else value for key, value in one.items()}
        for name, one in noted.items()
    }
    (tmp_path / "state.json").write_text(json.dumps(told))
    options = {"age_hours": 36, "state": str(tmp_path / "state.json")}
    row = checklist.run({"what": "last backup", "kind": "backup", "options": options})
    assert row["measured"].endswith(measured) and row["ok"] is ok


def test_a_check_that_cannot_be_made_is_a_red_row_with_its_cure(server):
    server.pages["/v1/completions"] = (200, "not JSON")
    options = {"url": f"{server.url}/v1", "model": "base", "prompt": "Hi"}
    row = checklist.run({"what": "answer", "kind": "completion", "options": options, "cure": "Look."})
    assert (row["what"], row["ok"], row["cure"]) == ("answer", False, "Look.")
    assert row["measured"].startswith(f"{server.url}/v1: ")


def test_swap_whatever_bytes_other_swap_has(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    rows = b"/srv/caf\xe9 file 2048 0 -2\n/swap\\040file file 4096 0 -3\n"
    (tmp_path / "proc/swaps").write_bytes(b"Filename Type Size Used Priority\n" + rows)
    host = checklist.swap_file.Host
    monkeypatch.setattr(checklist.swap_file, "Host", lambda: host(tmp_path))
    assert checklist.swap("/swap file", 4) == ("4 MiB", True)
    assert checklist.swap("/swapfile", 4) == ("/swapfile is not in use", False)


def test_engines_that_answer_at_the_same_time(server):
    server.pages["/v1/completions"] = (200, '{"usage": {"completion_tokens": 3}}')
    questions = [{"url": f"{server.url}/v1", "model": name} for name in ("chat", "code")]
    measured, ok = checklist.at_once(questions)
    assert ok
    assert measured.startswith("2 answered within ")
    measured, ok = checklist.at_once([*questions, {"url": "http://127.0.0.1:9/v1", "model": "gone"}])
    assert not ok
    assert measured == "http://127.0.0.1:9/v1: connection refused"


@pytest.mark.parametrize(
    ("used", "planned_mib", "measured", "ok"),
    [
        (8900, 3072, "others 900 MiB; vllm 5000 MiB; feedback 3000 MiB of at most 3072", True),
        (9000, 3072, "others 1000 MiB; vllm 5000 MiB; feedback 3000 MiB of at most 3072", False),
        (8900, 2048, "others 900 MiB; vllm 5000 MiB; feedback 3000 MiB of at most 2048", False),
    ],
)
def test_gpu_memory_of_the_engines_and_of_others(tmp_path, monkeypatch, used, planned_mib, measured, ok):
    processes = [{"unit": "vllm.service", "used_mib": 5000}, {"unit": "feedback.service", "used_mib": 3000}]
    monkeypatch.setattr(checklist.nvidia_smi, "read", lambda: {"gpus": [{"used_mib": used, "processes": processes}]})
    monkeypatch.setattr(checklist.planned_max_mib, "__defaults__", (tmp_path,))
    page = f'llm_gpu_planned_max_bytes{{service="feedback"}} {planned_mib << 20}\n'
    (tmp_path / "gpu_memory_feedback.prom").write_text(page)
    assert checklist.gpu_memory(["vllm.service", "feedback.service"], 1000) == (measured, ok)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A folder with apt's source file and its index of a repository."""
    lists = tmp_path / "lists"
    lists.mkdir()
    monkeypatch.setattr(checklist, "APT_LISTS", lists)
    (tmp_path / "cuda.list").write_text(
        "# by cuda-keyring\ndeb [signed-by=/k.gpg] https://mirror.test/debian12/x86_64/ /\n"
    )
    (lists / "mirror.test_debian12_x86%5f64_Packages").write_text("")
    return tmp_path


REPOSITORY = "https://mirror.test/debian12/x86_64/"


def test_a_repository_that_apt_knows(apt):
    assert checklist.apt_repository(str(apt / "cuda.list"), REPOSITORY) == ("registered, index of 0 min ago", True)


def test_a_repository_that_is_not_registered(apt):
    measured, ok = checklist.apt_repository(str(apt / "none.list"), REPOSITORY)
    assert not ok and measured == f"{apt}/none.list is not there"
    (apt / "cuda.list").write_text(f"# deb [signed-by=/k.gpg] {REPOSITORY} /\n")
    measured, ok = checklist.apt_repository(str(apt / "cuda.list"), REPOSITORY)
    assert not ok and measured == f"{REPOSITORY} is not in {apt}/cuda.list"


def test_a_repository_whose_index_never_came(apt):
    (checklist.APT_LISTS / "mirror.test_debian12_x86%5f64_Packages").rename(
        checklist.APT_LISTS / "mirror.test_debian12_x86%5f64_Release"
    )
    assert checklist.apt_repository(str(apt / "cuda.list"), REPOSITORY) == (f"apt has no index of {REPOSITORY}", False)


def test_a_repository_below_another_is_another_one(apt):
    (apt / "cuda.list").write_text(f"deb [signed-by=/k.gpg] {REPOSITORY}other/ /\n")
    assert not checklist.apt_repository(str(apt / "cuda.list"), REPOSITORY)[1]


def test_checks_that_wait_start_first_and_the_rows_keep_their_order(monkeypatch):
    """A log file is read before other checks add lines to it, which its shipper would have to read as well."""
    started = []

    def of_kind(kind):
        return lambda: (started.append(kind) or kind, True)

    kinds = ["http", "file_job", "unit", "journal_job"]
    monkeypatch.setattr(checklist, "KINDS", {kind: of_kind(kind) for kind in kinds})
    monkeypatch.setattr(checklist, "AT_ONCE", 1)
    rows = checklist.rows([{"what": kind, "kind": kind, "options": {}} for kind in kinds])
    assert started == ["file_job", "journal_job", "http", "unit"] and [row["what"] for row in rows] == kinds


def test_kinds_that_wait_are_kinds():
    assert set(checklist.KINDS) > checklist.WAITING
