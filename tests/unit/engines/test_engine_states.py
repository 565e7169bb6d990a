"""Engines that are stopped, put to sleep and woken up, on a folder that imitates a machine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from plugins.module_utils.engines import engine_states
from plugins.module_utils.engines.engine_states import EngineStateError, Host, Wanted
from plugins.module_utils.release.systemd_unit import SystemdError
from plugins.modules import service_rollback

URL = "http://127.0.0.1:8001"


class Machine(Host):
    """Two engines of a group that run or not; ``sleepers`` sleep, ``held`` are MiB on the GPU by unit."""

    def __init__(self, root):
        super().__init__(root)
        self.said: list[str] = []
        self.active, self.enabled, self.sleepers = {"chat"}, {"chat", "feedback"}, set()
        self.held, self.other = {"chat": 18000}, 400
        self.leaves, self.falls_asleep, self.wakes, self.stops = True, True, True, True
        self.gpu, self.time = True, 0.0

    def show(self, unit):
        name = unit.removesuffix(".service")
        state = "active" if name in self.active else "inactive"
        return {"ActiveState": state, "UnitFileState": "enabled" if name in self.enabled else "disabled"}

    def run(self, *argv, timeout=0):
        self.said.append(" ".join(argv))
        name = argv[-1].removesuffix(".service")
        if not self.stops:
            raise SystemdError("no end after 120 s")
        if argv[1] == "disable":
            self.enabled.discard(name)
        if argv[1] == "stop" or "--now" in argv:
            self.active.discard(name)
            self.sleepers.discard(name)
            if self.leaves:
                self.held.pop(name, None)

    def gpus(self):
        processes = [
            {"pid": 100 + number, "name": "/x/python3", "used_mib": mib, "unit": f"{name}.service"}
            for number, (name, mib) in enumerate(sorted(self.held.items()))
        ]
        used = self.other + sum(self.held.values())
        return [{"index": 0, "name": "NVIDIA L4", "used_mib": used, "processes": processes}] if self.gpu else []

    def ask(self, url, key, body=None, post=True):
        path = url.removeprefix(URL)
        if path != "/is_sleeping":
            self.said.append(f"{'POST' if post else 'GET'} {path}" + (f" {json.dumps(body)}" if body else ""))
        assert key == "the-key"
        if path.startswith("/sleep") and self.falls_asleep:
            self.sleepers.add("chat")
            self.held["chat"] = 925
        if path.startswith("/wake_up"):
            if not self.wakes:
                return 500, "out of memory"
            self.sleepers.discard("chat")
        return 200, json.dumps({"is_sleeping": "chat" in self.sleepers})

    def secret(self, file, variable):
        assert (file, variable) == ("/etc/chat/secrets.env", "VLLM_API_KEY")
        return "the-key"

    def now(self):
        return "2026-11-27T02:00:00Z"

    def clock(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds

    def make(self, state, **options):
        """Bring chat into a state; return whether that changed anything."""
        wanted = Wanted("chat", state, instead="feedback", url=URL, **options)
        planned = engine_states.change(self, wanted)
        self.warning = engine_states.carry_out(self, wanted, planned)
        return planned.needed

    @property
    def note(self):
        return engine_states.noted(self)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


STOPPED = {"chat": {"state": "stopped", "instead": "feedback", "since": "2026-11-27T02:00:00Z"}}


class TestStopped:
    def test_it_is_noted_stopped_and_disabled_once(self, machine):
        assert machine.make("stopped")
        assert machine.note == STOPPED
        assert machine.said == ["systemctl disable --now chat.service"]
        assert not machine.make("stopped")
        assert len(machine.said) == 1

    def test_the_note_and_its_metrics_can_be_read_by_everyone(self, machine):
        machine.make("stopped")
        assert machine.at(engine_states.NOTE).stat().st_mode & 0o777 == 0o644
        page = machine.read(engine_states.METRICS)
        assert page.endswith('llm_engine_away{service="chat",state="stopped"} 1\n')

    @pytest.mark.parametrize("left", ["active", "enabled"])
    def test_a_run_that_was_cut_off_is_finished(self, machine, left):
        machine.make("stopped")
        getattr(machine, left).add("chat")
        assert machine.make("stopped")
        assert machine.said[1:] == ["systemctl disable --now chat.service"]
        assert machine.note == STOPPED

    def test_another_engine_in_its_place_is_noted(self, machine):
        machine.make("stopped")
        planned = engine_states.change(machine, Wanted("chat", "stopped", instead="code"))
        assert planned.steps == ("note",)
        assert planned.after["chat"]["instead"] == "code"

    def test_who_still_holds_the_memory_is_named(self, machine):
        machine.leaves = False
        with pytest.raises(EngineStateError) as error:
            machine.make("stopped")
        assert str(error.value) == (
            "chat.service: GPU 0 still has a process of it after 60 s "
            "(held by python3 (pid 100, chat.service, 18000 MiB)); "
            "end the process that still holds it, or restart the host, then run again"
        )

    def test_without_a_gpu_nothing_is_waited_for(self, machine):
        machine.gpu, machine.leaves = False, False
        assert machine.make("stopped")
        assert machine.time == 0

    def test_a_stop_that_does_not_end_is_reported(self, machine):
        machine.stops = False
        with pytest.raises(SystemdError):
            machine.make("stopped")
        # The next run stops it, although the note already says so.
        machine.stops = True
        assert machine.make("stopped")
        assert "chat" not in machine.active

    def test_one_that_sleeps_can_be_stopped(self, machine):
        machine.make("asleep")
        assert machine.make("stopped")
        assert machine.note == STOPPED
        assert not machine.make("stopped")


class TestAsleep:
    def test_it_sleeps_at_its_level_and_does_not_start_at_a_boot(self, machine):
        assert machine.make("asleep", level=2)
        assert machine.note == {"chat": {**STOPPED["chat"], "state": "asleep", "level": 2}}
        assert machine.said == ["POST /sleep?level=2", "systemctl disable chat.service"]
        assert machine.active == {"chat"}
        assert not machine.make("asleep", level=2)

    def test_what_does_not_run_is_noted_as_stopped(self, machine):
        machine.active.clear()
        assert machine.make("asleep")
        assert machine.note == STOPPED
        assert not machine.make("asleep")

    def test_after_a_boot_it_is_stopped(self, machine):
        machine.make("asleep")
        machine.active.clear()
        assert machine.make("asleep")
        assert machine.note == STOPPED

    def test_an_engine_that_does_not_fall_asleep_is_reported(self, machine):
        machine.falls_asleep = False
        with pytest.raises(EngineStateError, match="it does not sleep after"):
            machine.make("asleep")

    def test_without_sleep_mode_nothing_is_touched(self, machine):
        machine.ask = lambda *_: (404, "")
        with pytest.raises(EngineStateError, match="answered 404, so it runs without sleep mode; write sleep: 0"):
            machine.make("asleep")
        assert machine.note == {} and machine.said == []

    def test_what_it_keeps_is_limited(self, machine):
        original = machine.ask

        def greedy(url, *more):
            answer = original(url, *more)
            machine.held["chat"] = 9000
            return answer

        machine.ask = greedy
        with pytest.raises(EngineStateError, match="GPU 0 has 9400 MiB in use instead of at most 2704 after 60 s"):
            machine.make("asleep")


class TestServing:
    def test_the_note_goes_and_nothing_is_started(self, machine):
        machine.make("stopped")
        assert machine.make("serving")
        assert machine.note == {}
        assert not machine.at(engine_states.NOTE).exists()
        assert not machine.at(engine_states.METRICS).exists()
        assert machine.said == ["systemctl disable --now chat.service"]
        assert not machine.make("serving")

    @pytest.mark.parametrize(
        ("level", "expected"),
        [
            (1, ["POST /wake_up"]),
            (
                2,
                [
                    "POST /wake_up?tags=weights",
                    'POST /collective_rpc {"method": "reload_weights"}',
                    "POST /wake_up?tags=kv_cache",
                ],
            ),
        ],
    )
    def test_one_that_sleeps_is_woken_by_its_level(self, machine, level, expected):
        machine.make("asleep", level=level)
        machine.said.clear()
        assert machine.make("serving")
        assert machine.said == expected
        assert machine.note == {}

    def test_one_that_does_not_wake_is_stopped_to_be_started_anew(self, machine):
        machine.make("asleep")
        machine.wakes = False
        assert machine.make("serving")
        assert "answered 500 instead of 200: out of memory; it did not wake up and will be restarted" in machine.warning
        assert machine.active == set() and machine.note == {}


def test_a_damaged_note_is_reported(machine):
    machine.write(engine_states.NOTE, '{"chat": {"state": "gone"}}')
    with pytest.raises(EngineStateError, match=r"engines\.json is damaged; remove it"):
        machine.make("stopped")


BEFORE = [{"index": 0, "used_mib": 20000, "processes": [{"pid": 7, "unit": "a.service", "used_mib": 8000}]}]


class TestMemory:
    @pytest.mark.parametrize(
        ("used", "processes", "expected"),
        [
            (12000, [], ""),
            (12256, [], ""),
            (12257, [], "GPU 0 has 12257 MiB in use instead of at most 12256"),
            (12000, [{"pid": 7, "unit": "", "used_mib": 0}], "GPU 0 still has a process of it"),
            (None, [], ""),
        ],
    )
    def test_what_is_left_of_a_unit(self, used, processes, expected):
        now = [{"index": 0, "used_mib": used, "processes": processes}]
        assert engine_states.still_held("a.service", BEFORE, now) == expected

    def test_other_units_do_not_count(self):
        assert engine_states.still_held("b.service", BEFORE, BEFORE) == ""


def engine(name, group="evaluation", **settings):
    return {
        "name": name, "kind": "vllm", "group": group, "url": f"http://127.0.0.1/{name}", "plan": {"name": name},
        "settings": {"vllm_stop_timeout": 30, **settings},
    }  # fmt: skip


CODE, CHAT, FEEDBACK, JUDGE = engine("code", ""), engine("chat"), engine("feedback"), engine("judge")
ENGINES = [CODE, CHAT, FEEDBACK, JUDGE]


def switched(note=None, to="feedback", groups=None):
    return engine_states.switched(ENGINES, note or {}, groups or {}, to)


class TestGroup:
    def test_a_switch_touches_the_group_alone(self):
        found = switched()
        assert (found["to"], found["back"]) == (FEEDBACK, CHAT)
        assert [each["name"] for each in found["others"]] == ["chat", "judge"]
        assert found["members"] == ["chat", "feedback", "judge"]

    def test_who_makes_room_sleeps_if_the_group_says_so_and_keeps_no_secret(self):
        (other, _) = switched(groups={"evaluation": {"sleep": 2}})["others"]
        assert other == {"name": "chat", "url": "http://127.0.0.1/chat", "sleep": 2, "stop": 120}

    def test_a_switch_to_the_one_that_serves_has_nothing_to_go_back_to(self):
        assert switched(to="chat")["back"] is None
        assert switched({"chat": {}, "judge": {}})["back"] is None

    def test_each_idle_engine_is_reported_with_the_one_that_serves(self):
        found = engine_states.resting_instead(ENGINES, {"chat": {}})
        assert found == [{"name": "chat", "instead": "feedback"}, {"name": "judge", "instead": "feedback"}]

    @pytest.mark.parametrize(
        ("to", "expected"),
        [
            ("feedback", ""),
            ("", "to is missing; give one of chat (evaluation), feedback (evaluation), judge (evaluation), such as"),
            ("nobody", "to is nobody, which is no engine of this inventory; give one of chat (evaluation)"),
            ("code", "to is code, which has no group, so it always serves; give one of chat (evaluation)"),
        ],
    )
    def test_a_name_that_cannot_be_switched_to_is_refused(self, to, expected):
        found = engine_states.refused({"gpu1": ENGINES, "gpu2": [CODE]}, to)
        assert found.startswith(expected) and bool(found) == bool(expected)

    @pytest.mark.parametrize(
        ("group", "expected"),
        [
            ("evaluation", ""),
            ("", "group is missing; give one of evaluation, such as -e group=evaluation."),
            (
                "x",
                "group is x, which no engine of this inventory has; give one of evaluation, such as",
            ),
        ],
    )
    def test_an_unknown_group_is_refused(self, group, expected):
        found = engine_states.group_refused({"gpu1": ENGINES}, group)
        assert found.startswith(expected) and bool(found) == bool(expected)

    def test_without_a_group_there_is_nothing_to_switch(self):
        assert engine_states.refused({"gpu1": [CODE]}, "code").startswith("No engine of this inventory has a group;")
        assert engine_states.group_refused({"gpu1": [CODE]}, "x").startswith("No engine of this inventory has a group;")

    def test_the_table_shows_name_state_and_memory(self):
        note = {"chat": {**STOPPED["chat"], "state": "asleep", "level": 1}, "judge": STOPPED["chat"]}
        active = {"chat": True, "feedback": True, "judge": True}
        memory = {"chat": 925, "feedback": 7600, "judge": 5}
        result = engine_states.rows(["chat", "feedback", "judge"], note, active, memory)
        since = "since 2026-11-27T02:00:00Z, feedback serves instead"
        assert [(each["what"], each["measured"], each["ok"]) for each in result] == [
            ("chat", f"asleep {since}, 925 MiB on the GPU", None),
            ("feedback", "serves, 7600 MiB on the GPU", True),
            ("judge", f"stopped {since}; its unit runs, 5 MiB on the GPU", False),
        ]

    def test_one_that_is_to_serve_and_does_not_run_is_red(self):
        (row,) = engine_states.rows(["chat"], {}, {"chat": False}, {})
        assert row == {"what": "chat", "measured": "does not run", "ok": False}


def test_an_engine_that_is_off_is_not_rolled_back(monkeypatch):
    """A rollback would start it beside the one that serves."""
    monkeypatch.setattr(service_rollback.engine_states, "away", lambda: ["feedback"])
    service = SimpleNamespace(name="feedback")
    with pytest.raises(service_rollback.Refused, match="feedback is off because another engine of its group serves"):
        service_rollback.change(service, {"release": None})
