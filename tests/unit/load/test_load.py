"""The load check: parameters, the tool's results, monitoring, failures, table and page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.load import host, judge, page, search, tool, watch
from plugins.module_utils.load.plan import checked

# Written by vLLM 0.32.0 on a processor: 40 requests, 4 at a time, 16 tokens each; and 6 with a wrong key.
DATA = Path(__file__).parent.parent / "data" / "load"
SERVED = json.loads((DATA / "served.json").read_text())
UNAUTHORISED = json.loads((DATA / "unauthorised.json").read_text())
PLAN = {"callers": 4, "minutes": 1.0, "input_tokens": 64, "output_tokens": 16, "limits": {}, "find_ttft_ms": None}
PAGE = (
    'vllm:num_requests_running{engine="0",model_name="m"} 4.0\nvllm:num_requests_waiting{engine="0"} 2.0\n'
    'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0\nvllm:kv_cache_usage_perc{engine="0"} 0.5\n'
    'vllm:num_preemptions_total{engine="0"} 3.0\nvllm:generation_tokens_total{engine="0"} 640.0\n'
)


def run(result: dict = SERVED, **more) -> dict:
    return {"target": "vllm", "model": "m", "callers": 4, **tool.summary([result], 16), **more}


def sample(time: float, gpu: bool = True, **seen) -> dict:
    engine = {"running": 4, "waiting": 0, "kv_cache": 0.5, "preemptions": 3, "tokens": 640, **seen}
    gpus = {"gpu_mib": [20000], "gpu_total_mib": [23034]} if gpu else {}
    return {
        "time": time,
        "engines": {"vllm": engine},
        "memory_mib": 4000,
        "memory_total_mib": 16000,
        "swap_mib": 0,
        **gpus,
    }


def report(runs: list[dict], events: list[dict] | None = None, limits: dict | None = None, **more) -> dict:
    begin = SERVED["start_times"][0]
    samples = [sample(begin + number, waiting=number, preemptions=3 + number) for number in range(4)]
    values = {"host": "gpu1", "date": "2026-01-15", "through": "ai-server", "plan": {**PLAN, "limits": limits or {}}}
    values |= {"runs": runs, "samples": samples, "peaks": watch.peaks(samples), "events": events or [], "answer": ""}
    values |= more
    return {**values, "failures": judge.failures(values)}


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"callers": 0}, "load_callers is 0; it must be above 0 and at most 256."),
        ({"callers": 10_000}, "load_callers is 10000; it must be above 0 and at most 256."),
        ({"callers": "many"}, "load_callers is 'many'; give a whole number above 0."),
        ({"minutes": 1000}, "load_minutes is 1000.0; it must be above 0 and at most 120."),
        ({"limits": {"ttft": 1}}, "load_limits has ttft; it takes ttft_p95_ms, itl_p95_ms, error_share."),
        ({"limits": {"error_share": 5}}, "load_limits: error_share is 5; it must be from 0 to 1."),
        ({"limits": {"ttft_p95_ms": "fast"}}, "load_limits: ttft_p95_ms is 'fast'; give a number."),
        # A limit of nan would make every check green.
        ({"limits": {"ttft_p95_ms": "nan"}}, "load_limits: ttft_p95_ms is nan; it must be 0 or more."),
        ({"limits": {"itl_p95_ms": ".inf"}}, "load_limits: itl_p95_ms is '.inf'; give a number."),
        (
            {"find": "ttft_ms:nan"},
            "find is ttft_ms:nan; give a limit for the time to first token, such as ttft_ms:500.",
        ),
        ({"find": "tokens:5"}, "find is tokens:5; give a limit for the time to first token, such as ttft_ms:500."),
        ({"find": "ttft_ms:"}, "find is ttft_ms:; give a limit for the time to first token, such as ttft_ms:500."),
    ],
)
def test_invalid_or_excessive_input_is_refused(args, message):
    with pytest.raises(UserError) as error:
        checked(args)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "message"), [("canary", "ValueError: *** is no key"), ("", "ValueError: canary is no key")]
)
def test_the_tools_last_line_is_reported_without_the_key(tmp_path, key, message):
    (tmp_path / "log").write_text("Traceback\nValueError: canary is no key\n\n")
    assert host._why(tmp_path / "log", key).endswith(f"its last line: {message}")


def test_defaults_are_modest():
    plan = checked({})
    assert (plan.callers, plan.seconds, plan.find_ttft_ms) == (4, 60, None)
    assert checked({"find": "ttft_ms:500"}).callers == 64
    assert checked({"callers": "10", "minutes": "0.5"}).seconds == 30


@pytest.mark.parametrize("most", [1, 2, 7, 64, 100])
def test_a_search_finds_the_largest_number_that_holds_and_never_jumps(most):
    for truth in range(most + 1):
        steps, tried = search.largest(most), []
        callers = next(steps)
        while True:
            tried.append(callers)
            try:
                callers = steps.send(callers <= truth)
            except StopIteration as end:
                assert end.value == truth
                break
        assert len(tried) == len(set(tried)) <= 14
        assert all(callers <= max(1, 2 * truth) for callers in tried)


# -- the tool --------------------------------------------------------------------------------------------------------


def test_the_tool_never_gets_the_key():
    job = {"url": "http://127.0.0.1:8000", "model": "m", "tokenizer": "/srv/m", "seed": 1, "key": "canary-key"}
    words = tool.argv("/venv/bin/vllm", job, PLAN, 100, "/run/x/result.json")
    assert words[:3] == ["/venv/bin/vllm", "bench", "serve"]
    assert "canary-key" not in " ".join(words)
    assert words[words.index("--num-prompts") + 1] == "100"
    assert words[words.index("--prefix-repetition-suffix-len") + 1] == "63"
    assert words[words.index("--result-dir") + 1] == "/run/x"
    assert "--trust-remote-code" not in words
    assert tool.argv("vllm", {**job, "trust_remote_code": True}, PLAN, 1, "/x/y")[-1] == "--trust-remote-code"


def test_the_figures_are_the_tools_own():
    figures = tool.summary([SERVED], 16)
    assert (figures["requests"], figures["failed"], figures["errors"]) == (40, 0, {})
    assert figures["tokens_per_s"] == pytest.approx(SERVED["output_throughput"], abs=0.1)
    for what in ("ttft", "itl"):
        for share in tool.PERCENTILES:
            assert figures[f"{what}_ms"][f"p{share}"] == pytest.approx(SERVED[f"p{share}_{what}_ms"], abs=0.01)


def test_an_older_tool_reports_less_and_that_is_enough():
    result = {name: value for name, value in SERVED.items() if name not in ("latencies", "queue_times")}  # as in 0.23
    assert tool.summary([result], 16) == tool.summary([SERVED], 16)


def test_turns_count_together():
    figures = tool.summary([SERVED, UNAUTHORISED], 16)
    assert (figures["requests"], figures["failed"]) == (46, 6)
    assert figures["seconds"] == pytest.approx(SERVED["duration"] + UNAUTHORISED["duration"], abs=0.1)


def test_errors_are_reported_by_status():
    figures = tool.summary([UNAUTHORISED], 16)
    assert figures["errors"] == {"401 Unauthorized": 6}
    assert (figures["error_share"], figures["ttft_ms"]["p95"], figures["curve"]) == (1.0, None, [])


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("", 16, ""),
        ("", 3, "the answer broke off"),
        ("Too Many Requests", 0, "429 Too Many Requests"),
        (
            "Never received a valid chunk to calculate TTFT.This response will be marked as failed!",
            0,
            "no token received",
        ),
        (
            "Traceback (most recent call last):\n  File x\n"
            "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 127.0.0.1:8001",
            0,
            "ClientConnectorError",
        ),
        ("Traceback (most recent call last):\nTimeoutError", 0, "TimeoutError"),
    ],
)
def test_the_result_of_a_request_is_one_word(text, tokens, expected):
    assert tool.error(text, tokens, 16) == expected


def test_the_curve_has_every_token_once():
    points = tool.curve(tool._rows(SERVED, 16))
    assert [point["time"] for point in points] == sorted(point["time"] for point in points)
    assert sum(point["tokens_per_s"] for point in points) == pytest.approx(640, rel=0.25)


# -- monitoring ------------------------------------------------------------------------------------------------------


def test_an_engines_page_is_read_by_full_names(server):
    server.pages["/metrics"] = (200, PAGE)
    seen = watch.engine(f"{server.url}/metrics")
    assert seen == {"running": 4.0, "waiting": 2.0, "kv_cache": 0.5, "preemptions": 3.0, "tokens": 640.0}
    server.pages["/metrics"] = (503, "")
    assert watch.engine(f"{server.url}/metrics") is None


def test_memory_is_what_is_not_available():
    text = "MemTotal: 16384000 kB\nMemFree: 1 kB\nMemAvailable: 10240000 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n"
    assert watch.memory(text) == {"memory_mib": 6000, "memory_total_mib": 16000, "swap_mib": 1}


def test_peaks_are_the_most_and_counters_grow():
    samples = [
        sample(0, waiting=1),
        sample(1, waiting=7, preemptions=9),
        sample(2, preemptions=2),
        sample(3, gpu=False),
    ]
    samples[3]["engines"]["vllm"] = None
    seen = watch.peaks(samples)
    assert seen["engines"]["vllm"]["waiting"] == 7
    assert seen["engines"]["vllm"]["preemptions"] == 6 + 2  # the counter was reset in between
    assert seen["engines"]["vllm"]["unanswered"] == 1
    assert (seen["gpu_mib"], seen["memory_mib"]) == ([20000], 4000)


def test_a_restart_and_memory_that_ran_out_are_seen():
    before = {
        "vllm.service": {"pid": 10, "restarts": 0, "oom": 0},
        "ai-server.service": {"pid": 11, "restarts": 1, "oom": 0},
    }
    same = watch.events(before, before, {"kernel": ["eth0: link up"], "vllm.service": ["INFO: ready"]})
    assert same == []
    after = {
        "vllm.service": {"pid": 12, "restarts": 1, "oom": 1},
        "ai-server.service": {"pid": 0, "restarts": 1, "oom": 0},
    }
    logs = {
        "kernel": ["Memory cgroup out of memory: Killed process 10 (vllm)"],
        "vllm.service": ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.45 GiB"],
    }
    messages = [each["what"] for each in watch.events(before, after, logs)]
    assert messages == [
        "vllm.service restarted",
        "the OOM killer killed a process of vllm.service",
        "ai-server.service has stopped",
        "kernel: Memory cgroup out of memory: Killed process 10 (vllm)",
        "vllm.service: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.45 GiB",
    ]


# -- the host --------------------------------------------------------------------------------------------------------


def test_first_requests_stop_what_could_not_work(server):
    job = {"url": server.url, "model": "m", "key": "canary", "seed": 1}
    server.pages["/v1/completions"] = (401, '{"error": "Unauthorized"}')
    with pytest.raises(UserError) as error:
        host.rate(job, PLAN)
    assert str(error.value) == f'{server.url}: m: the first request failed: 401: {{"error": "Unauthorized"}}'
    server.pages["/v1/completions"] = (200, "{}")
    assert host.rate(job, PLAN) > 1
    path, key, body = server.asked[-1]
    assert (path, key) == ("/v1/completions", "Bearer canary")
    assert len(json.loads(body)["prompt"]) == 64


def test_a_key_with_a_low_rate_limit_is_refused_before_the_load(monkeypatch):
    monkeypatch.setattr(host, "running", list)
    monkeypatch.setattr(host, "engine", lambda unit: {})
    monkeypatch.setattr(host, "rate", lambda job, plan: 5.0)
    monkeypatch.setattr(host, "allowance", lambda job: 120)
    with pytest.raises(UserError) as error:
        host.start([{"name": "vllm", "unit": "vllm.service", "url": "http://x", "key": "k"}], PLAN, 60, 0)
    assert str(error.value) == (
        "http://x allows this key 120 requests a minute, but 4 callers would send 300; "
        "set load_api_key to the key of a caller with a higher limit (ai_server_callers)."
    )


def test_one_load_check_at_a_time(monkeypatch):
    monkeypatch.setattr(host, "running", lambda: ["llm-load-vllm.service"])
    with pytest.raises(
        UserError, match=r"a load check is already running \(llm-load-vllm\.service\); wait until it ends"
    ):
        host.begin(["vllm.service"])


def test_the_allowance_is_read_off_the_answer(server):
    server.pages["/v1/models"] = (200, "{}")
    job = {"url": server.url, "key": "canary"}
    assert host.allowance(job) is None
    assert server.asked == [("/v1/models", "Bearer canary", "")]


def test_a_value_is_written_as_systemd_reads_it():
    assert host._quoted('a"b\\c$d') == '"a\\"b\\\\c\\$d"'


# -- results ---------------------------------------------------------------------------------------------------------


def test_a_check_within_its_limits_is_green():
    assert report([run()], limits={"ttft_p95_ms": 500, "itl_p95_ms": 100, "error_share": 0})["failures"] == []


def test_red_names_limit_and_value():
    result = report([run()], limits={"ttft_p95_ms": 100, "itl_p95_ms": 100})["failures"]
    assert result == ["vllm m: ttft_p95_ms is 134.5, above the limit of 100."]
    mixed = run(**tool.summary([SERVED, UNAUTHORISED], 16))
    assert report([mixed], limits={"error_share": 0.1})["failures"] == [
        "vllm m: error_share is 0.1304, above the limit of 0.1."
    ]


def test_red_without_a_limit_is_what_must_never_happen():
    events = [{"kind": "restart", "what": "vllm.service restarted"}, {"kind": "oom", "what": "kernel: Killed process"}]
    assert report([run()], events)["failures"] == ["vllm.service restarted.", "kernel: Killed process."]
    assert report([run(UNAUTHORISED)])["failures"] == [
        "vllm m: none of 6 requests was answered: 6 x 401 Unauthorized; load_api_key is not a key of this server."
    ]
    lost = {"target": "vllm", "model": "m", "callers": 4, "problem": "the tool has left no result"}
    assert report([lost])["failures"] == ["vllm m: the tool has left no result."]


def test_a_step_holds_only_where_every_answer_came_in_time():
    assert judge.holds(run(), 500, {})
    assert not judge.holds(run(), 100, {})
    assert not judge.holds(run(**tool.summary([SERVED, UNAUTHORISED], 16)), 500, {})
    assert judge.holds(run(**tool.summary([SERVED, UNAUTHORISED], 16)), 500, {"error_share": 0.2})
    assert not judge.holds(run(UNAUTHORISED), 500, {"error_share": 1})


def test_the_table_is_read_on_a_terminal():
    result = report([run(), run(**tool.summary([SERVED, UNAUTHORISED], 16), model="other")])
    lines = judge.table(result)
    text = "\n".join(lines)
    assert lines[0] == "gpu1: 4 callers at once, 1 min each, prompts of 64 tokens, answers of 16, through ai-server"
    assert re.search(r"^vllm +m +4 +40 +0 +289.7 +37.4 / 134 / 136 +9.5 / 24.8 / 31.7$", text, re.MULTILINE)
    assert "errors of other: 6 x 401 Unauthorized; load_api_key is not a key of this server" in text
    assert "GPU 0:       20000 of 23034 MiB" in text
    assert "vllm:        4 running, 3 waiting, KV cache 50 %, 3 preemptions" in text
    assert "restarts:    none" in text
    assert "memory ran out: never" in text
    assert max(map(len, lines)) <= 120


def test_the_page_is_one_file_and_its_plot_is_an_svg():
    result = report([run(model="<script>")], limits={"ttft_p95_ms": 100})
    text = page.html(result)
    assert "<script" not in text
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    drawn = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    lines = [each for each in drawn.iter() if each.tag.endswith("polyline")]
    assert len(lines) >= 6
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert page.LEFT - 1 <= x <= page.WIDTH
            assert 0 <= y <= 5 * (page.HEIGHT + page.TOP + page.BOTTOM)
    assert "ttft_p95_ms is 134.5, above the limit of 100." in text


def test_a_page_without_an_answer_has_no_plot_of_requests():
    assert "<svg" in page.html(report([run(UNAUTHORISED)]))
    assert page.svg({**report([run(UNAUTHORISED)]), "samples": []}) == ""


def test_a_line_is_not_drawn_through_a_time_without_load():
    later = [(100.0 + second, 1.0) for second in range(5)]
    first = [(float(second), 1.0) for second in range(5)]
    assert page._unbroken(first + later) == [first, later]
    assert page._unbroken(first) == [first] and page._unbroken([]) == []
