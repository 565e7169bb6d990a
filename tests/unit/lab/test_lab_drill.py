"""Reading and interrupting a run, measuring silence, and the table; the drill itself needs machines."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from lab import drill, playbook
from lab.drill import cases, watch
from lab.drill.cases import Row


def event(kind: str, task: str = "a task", **result) -> str:
    hosts = {"host": result} if result else {}
    return json.dumps({"_event": kind, "task": {"name": task}, "hosts": hosts})


class TestOutcome:
    def test_changes_warnings_and_the_failure_are_read(self):
        text = "\n".join(
            [
                event("v2_runner_on_ok", "first", changed=True, warnings=["beware"]),
                event("v2_runner_on_ok", "second", changed=False),
                event("v2_runner_on_failed", "third", msg="no such port"),
            ]
        )
        outcome = playbook.read(2, text)
        assert (outcome.changed, outcome.warnings, outcome.message) == (["first"], ["beware"], "no such port")

    def test_a_host_that_does_not_answer_is_a_failure(self):
        assert playbook.read(4, event("v2_runner_on_unreachable", msg="no route")).message == "no route"

    def test_a_run_that_never_began_has_its_last_words(self):
        assert playbook.read(1, "first\n\n[ERROR]: Decryption failed\n").message == "[ERROR]: Decryption failed"

    def test_a_good_run_is_silent(self):
        assert playbook.read(0, "a notice\n").message == ""


def test_a_run_is_killed_in_the_requested_task(tmp_path):
    script = tmp_path / "ansible-playbook"
    script.write_text(
        textwrap.dedent(f"""
            import json, pathlib, time
            for number in range(1, 6):
                task = {{"name": f"task {{number}}"}}
                print(json.dumps({{"_event": "{playbook.TASK_BEGINS}", "task": task, "hosts": {{}}}}), flush=True)
                pathlib.Path({str(tmp_path / "reached")!r}).write_text(str(number))
                time.sleep(0.4)
        """)
    )
    argv = [sys.executable, str(script)]
    assert playbook.interrupted(argv, tmp_path, 2, 0.1, {}) == "task 2"
    assert (tmp_path / "reached").read_text() == "2"
    assert playbook.interrupted(argv, tmp_path, 9, 0, {}) == ""
    assert (tmp_path / "reached").read_text() == "5"


class TestWatch:
    @pytest.fixture
    def server(self):
        """A server that answers with `status` and checks the key."""
        state = SimpleNamespace(status=200, keys=[])

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                state.keys.append(self.headers["Authorization"])
                body = json.dumps({"choices": [{"text": "x"}]}).encode()
                self.send_response(state.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            state.url = f"http://127.0.0.1:{http.server_port}/v1/chat/completions"
            yield state
            http.shutdown()

    def test_only_a_token_is_an_answer(self, server):
        assert watch.answers(server.url, "key", "model") is True
        assert server.keys == ["Bearer key"]
        server.status = 503
        assert watch.answers(server.url, "key", "model") is False
        assert watch.answers("http://127.0.0.1:9/", "key", "model") is False

    def test_silence_is_the_time_between_two_answers(self, tmp_path, monkeypatch):
        clock = SimpleNamespace(now=0.0)
        script = [True, False, False, True, True, KeyboardInterrupt]

        def answers(**_):
            clock.now += 1
            word = script.pop(0)
            if word is KeyboardInterrupt:
                raise KeyboardInterrupt
            return word

        monkeypatch.setattr(watch, "answers", answers)
        monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
        monkeypatch.setattr(watch.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
        (tmp_path / "question").write_text(json.dumps({"url": "u", "key": "k", "model": "m"}))
        with pytest.raises(KeyboardInterrupt):
            watch.main(tmp_path / "question", tmp_path / "state")
        # From the first failed request to the end of the next successful one.
        expected = {"asked": 5, "refused": 2, "silent": 3 + 2 * watch.EVERY, "now": True}
        assert json.loads((tmp_path / "state").read_text()) == expected


class TestTable:
    ROWS = (Row("kill -9", "back", "after 5 s", True, 5.25), Row("a | b", "refused", "word " * 40, False))

    def test_it_reports_duration_and_result(self):
        lines = drill.table(list(self.ROWS)).splitlines()
        (killed,) = [line for line in lines if line.startswith("kill -9")]
        assert killed.split()[-3:] == ["5.2", "s", "ok"] or killed.split()[-3:] == ["5.3", "s", "ok"]
        assert sum("FAILED" in line for line in lines) == 1
        assert max(map(len, lines)) < 160

    def test_the_page_is_a_table_that_repeats_the_seed(self):
        rows = [{"seed": 7, "minutes": 2, "rows": {"line": dataclasses.asdict(row)}} for row in self.ROWS]
        text = drill.page(dict(zip(("server", "fleet"), rows, strict=True)), ["server", "fleet", "virtual"])
        assert "was not drilled on that machine: virtual." in text
        assert "`SEED=7`" in text and "a \\| b" in text and "**failed**" in text and "4 minutes" in text

    def test_a_line_that_was_drilled_again_takes_its_place(self, tmp_path, monkeypatch):
        monkeypatch.setattr(drill, "KEPT", tmp_path / "drill.json")
        lines = drill.FLEET
        drill.keep("fleet", lines, {lines[0]: self.ROWS[0]}, 7, 60)
        assert not drill.KEPT.exists()  # a part of a bed that was never drilled completely
        drill.keep("fleet", lines, dict(zip(lines, self.ROWS, strict=True)), 7, 120)
        drill.keep("fleet", lines, {lines[1]: self.ROWS[0]}, 8, 60)
        kept = json.loads(drill.KEPT.read_text())["fleet"]
        assert kept["minutes"] == 2 and [row["done"] for row in kept["rows"].values()] == ["kill -9", "kill -9"]

    def test_a_long_sentence_is_cut(self):
        outcome = playbook.Outcome(2, [], "word " * 100, [], "")
        assert len(cases.sentence(outcome)) == 160 and cases.sentence(outcome).endswith("…")


def test_every_case_has_a_unique_name_and_is_in_the_full_drill():
    cases = [*drill.SERVER, *drill.INTERRUPTED, *drill.FLEET, *drill.MOVED, *drill.VIRTUAL]
    names = [line.__name__ for line in cases]
    assert len(names) == len(set(names))
    assert set(drill.QUICK) <= set(cases)
    assert all(line.__doc__ or "download" in line.__name__ or "killed" in line.__name__ for line in cases)
