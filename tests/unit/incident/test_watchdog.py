"""When the watchdog restarts a service, when it leaves it alone, and when it gives up."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("watchdog", ROOT / "roles/watchdog/files/watchdog.py")
watchdog = importlib.util.module_from_spec(SPEC)
sys.modules["watchdog"] = watchdog  # dataclasses look their module up
SPEC.loader.exec_module(watchdog)

BUDGET = {"restarts": 3, "window": 7200, "pause": 30}


def service(**known):
    return watchdog.Service("vllm.service", silent_after=60, stalled_after=120, ready_within=1800, **known)


def seen(**found):
    return watchdog.Seen(**{"process": "one", "answers": True, "pending": 0.0, "progress": 100.0, **found})


def faults(one, *rounds):
    """Return the result of each look; a look is ``(time, Seen)``."""
    return [one.fault(found, now) for now, found in rounds]


class TestFault:
    def test_a_service_that_answers_is_well(self):
        assert faults(service(), (0, seen()), (100, seen()), (10000, seen())) == [None, None, None]

    def test_silence_is_a_fault_after_its_time(self):
        silent = seen(answers=False, pending=None, progress=None)
        result = faults(service(), (0, seen()), (59, silent), (60, silent))
        assert result == [None, None, "its health route has not answered for 60 s"]

    def test_pending_requests_without_a_token_are_a_fault_after_their_time(self):
        stuck = seen(pending=3.0)
        result = faults(service(), (0, seen()), (10, stuck), (119, stuck), (120, stuck))
        assert result == [None, None, None, "3 requests are pending and no token was produced for 120 s"]

    def test_a_server_that_is_too_busy_to_answer_but_produces_tokens_is_left_alone(self):
        rounds = [(now, seen(answers=False, pending=200.0, progress=float(now))) for now in range(10, 2000, 10)]
        assert set(faults(service(), (0, seen()), *rounds)) == {None}

    def test_a_long_prefill_within_the_time_is_left_alone(self):
        prefill = [(now, seen(pending=1.0)) for now in range(10, 120, 10)]
        done = [(120, seen(pending=1.0, progress=101.0)), (230, seen(pending=1.0, progress=101.0))]
        assert set(faults(service(), (0, seen()), *prefill, *done)) == {None}

    def test_an_idle_server_produces_nothing_and_is_well(self):
        assert set(faults(service(), *[(now, seen()) for now in range(0, 5000, 100)])) == {None}

    def test_unreadable_metrics_count_as_no_evidence(self):
        blind = seen(pending=None, progress=None)
        assert set(faults(service(), (0, seen(pending=2.0)), *[(now, blind) for now in range(10, 1000, 10)])) == {None}

    def test_a_start_is_waited_for_and_one_without_end_is_a_fault(self):
        loading = seen(answers=False, pending=None, progress=None)
        result = faults(service(known=True), (0, loading), (1799, loading), (1800, loading))
        assert result == [None, None, "it has not served since its start 1800 s ago"]

    def test_where_nothing_has_ever_served_the_address_may_be_wrong(self):
        loading = seen(answers=False, pending=None, progress=None)
        assert set(faults(service(), (0, loading), (1800, loading), (90000, loading))) == {None}

    def test_a_new_process_begins_with_a_clean_sheet(self):
        loading = seen(process="two", answers=False, pending=None, progress=None)
        assert faults(service(), (0, seen()), (55, seen(answers=False)), (300, loading)) == [None, None, None]

    def test_a_unit_that_does_not_run_is_systemds(self):
        assert set(faults(service(), (0, seen()), (500, seen(process=None)), (900, seen(process=None)))) == {None}

    @pytest.mark.parametrize("why", ["its host is out of rotation", "an Ansible run is changing it"])
    def test_what_others_work_on_is_not_touched_and_the_time_begins_after_it(self, why):
        silent = seen(answers=False, pending=None, progress=None)
        held = seen(answers=False, pending=None, progress=None, hands_off=why)
        result = faults(service(), (0, seen()), (100, held), (150, silent), (161, silent))
        assert result == [None, None, None, "its health route has not answered for 61 s"]


class TestBudget:
    def test_three_restarts_with_a_pause_between_them_and_then_no_more(self):
        one = service()
        allowed = []
        for now in range(0, 300, 10):
            if one.may_restart(now, **BUDGET):
                one.attempts.append(now)
                allowed.append(now)
        assert allowed == [0, 30, 60]
        assert one.given_up

    def test_old_restarts_do_not_count(self):
        one = service(attempts=[0, 100, 200])
        assert one.may_restart(7250, **BUDGET)
        assert one.attempts == [100, 200]

    def test_given_up_stays_even_when_the_restarts_are_long_ago(self):
        one = service(attempts=[0, 1, 2], given_up=True)
        assert not one.may_restart(100000, **BUDGET)

    def test_it_ends_when_the_service_serves_again(self):
        one = service(process="one", ready=True, attempts=[1, 2, 3], given_up=True)
        one.fault(seen(), 10)
        assert not one.given_up
        assert one.attempts == [1, 2, 3]

    def test_a_person_who_restarts_it_gives_a_new_budget(self):
        one = service(process="one", ready=True, attempts=[1, 2, 3], given_up=True)
        faults(one, (10, seen(process=None)), (20, seen(process="two", answers=False)))
        assert (one.attempts, one.given_up) == ([], False)

    def test_a_restart_by_the_watchdog_or_by_systemd_does_not(self):
        one = service(process="one", ready=True, attempts=[1, 2, 3], given_up=True)
        one.begin("two", 10)  # started by the watchdog
        one.fault(seen(process="two", answers=False), 20)
        one.fault(seen(process="three", answers=False, by_systemd=True), 30)
        assert (one.attempts, one.given_up) == ([1, 2, 3], True)


class TestSharedBudget:
    """Restarts by other programs use the same budget."""

    @pytest.fixture
    def settings(self, tmp_path, monkeypatch):
        monkeypatch.setattr(watchdog, "keep_evidence", lambda *_: tmp_path / "folder")
        monkeypatch.setattr(watchdog, "look", lambda _: seen(process=self.process, answers=self.answers))
        monkeypatch.setattr(watchdog, "memory_warning", lambda *_: None)
        monkeypatch.setattr(watchdog, "available_mib", lambda: 1)
        self.process, self.answers = "one", True
        entry = {"unit": "vllm.service", "silent_after": 60, "stalled_after": 120, "ready_within": 1800}
        own = {"state": str(tmp_path / "state.json"), "textfile": str(tmp_path / "page"), "evidence": "", "restarts": 3}
        return {"services": [entry], "window": 7200, "pause": 0, "memory_mib": 0, "gpu_memory_mib": 0, **own,
                "evidence_mib": 1}  # fmt: skip

    def test_three_in_all_and_then_no_more(self, settings, tmp_path):
        one = watchdog.Watchdog(settings)
        one.round()
        result = watchdog.spend(settings, "vllm.service")
        assert result == {"granted": True, "counted": True, "left": 2, "evidence": str(tmp_path / "folder")}
        one.services[0].attempts.append(watchdog.time.monotonic())  # a restart by the watchdog itself
        one.note()
        assert len(one.services[0].attempts) == 2
        assert watchdog.spend(settings, "vllm.service")["left"] == 0
        assert watchdog.spend(settings, "vllm.service") == {"granted": False, "why": "3 restarts did not help"}
        one.round()
        assert not one.services[0].may_restart(watchdog.time.monotonic(), 3, 7200, 0)
        assert one.services[0].restarted == 2

    def test_the_process_that_it_brings_is_not_a_persons_and_the_next_one_is(self, settings):
        one = watchdog.Watchdog(settings)
        one.round()
        watchdog.spend(settings, "vllm.service")
        self.process = "two"
        one.round()
        assert len(one.services[0].attempts) == 1
        self.process = "three"
        one.round()
        assert one.services[0].attempts == []

    def test_it_is_counted_while_no_watchdog_runs_and_by_the_one_that_comes(self, settings):
        watchdog.spend(settings, "vllm.service")
        watchdog.spend(settings, "vllm.service")
        one = watchdog.Watchdog(settings)
        one.round()
        assert len(one.services[0].attempts) == 2
        again = watchdog.Watchdog(settings)
        assert len(again.services[0].attempts) == 2

    def test_the_pause_between_two_is_reported(self, settings):
        watchdog.spend(settings, "vllm.service")
        result = watchdog.spend({**settings, "pause": 30}, "vllm.service")
        assert result == {"granted": False, "wait": 30}

    def test_a_unit_that_is_not_watched_has_no_budget(self, settings):
        assert watchdog.spend(settings, "other.service") == {"granted": True, "counted": False}


class Clock:
    """The watchdog's clock: waiting takes no time."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class TestNight:
    ENGINE, SERVER = "vllm.service", "ai-server.service"

    @pytest.fixture
    def host(self, tmp_path, monkeypatch):
        """Two fake services: ``found`` has the samples by time, ``did`` records the actions."""
        host = SimpleNamespace(found={}, did=[], said=[], clock=Clock(), out=None, free=True, health=200)
        monkeypatch.setattr(watchdog, "time", host.clock)
        monkeypatch.setattr(watchdog, "LOCKS", tmp_path)
        monkeypatch.setattr(watchdog, "say", lambda priority, text: host.said.append((priority, text)))
        monkeypatch.setattr(watchdog, "out_of_rotation", lambda unit: host.out)
        monkeypatch.setattr(watchdog, "fetch", lambda url: (host.health, ""))
        monkeypatch.setattr(watchdog, "unit_state", lambda unit: {"ActiveState": "active"})
        monkeypatch.setattr(
            watchdog, "look", lambda entry: host.found.get(entry["unit"], lambda now: seen())(host.clock.now)
        )
        monkeypatch.setattr(watchdog, "run", lambda *argv, timeout=0: host.did.append((host.clock.now, *argv[1:])))
        monkeypatch.setattr(watchdog, "command", lambda argv: host.did.append((host.clock.now, *argv)) or host.problem)
        host.problem = None
        entries = [
            {"unit": unit, "health": "x", "metrics": "y", "ready_within": 100} for unit in (self.ENGINE, self.SERVER)
        ]
        plan = {"units": [self.ENGINE], "patience": 1000, "quiet": 60, "drain_command": [], "restore_command": []}
        host.settings = {"services": entries, "interval": 10, "state": str(tmp_path / "state.json"), "night": plan}
        host.plan, host.known = plan, lambda: json.loads((tmp_path / "state.json").read_text())["services"]
        host.night = lambda: watchdog.Night(host.settings).run()
        return host

    def test_a_quiet_service_is_restarted_once_it_was_quiet_long_enough(self, host):
        assert host.night()
        assert host.did == [(60, "restart", self.ENGINE)]
        assert host.known()[self.ENGINE]["coming"] == 1
        assert [priority for priority, _ in host.said] == [5, 5]
        assert host.said[-1][1] == "vllm.service serves again, 0 s after its planned restart."

    def test_a_busy_one_is_waited_for(self, host):
        host.found[self.ENGINE] = lambda now: seen(pending=2.0 if now < 300 else 0.0)
        assert host.night()
        assert host.did == [(350, "restart", self.ENGINE)]

    def test_a_moment_between_two_requests_is_not_quiet(self, host):
        host.found[self.ENGINE] = lambda now: seen(progress=now // 50)
        assert host.night()
        assert host.did == []
        assert host.said == [(4, "vllm.service: no restart tonight: the services were never idle for 60 s.")]

    @pytest.mark.parametrize(
        ("found", "why"),
        [
            ({"pending": 3.0}, "3 requests are running or waiting"),
            ({"pending": None}, "its metrics cannot be read, so it may be busy"),
            ({"answers": False}, "it does not answer"),
            ({"process": None}, "it is not running"),
            ({"hands_off": "an Ansible run is changing it"}, "an Ansible run is changing it"),
        ],
    )
    def test_without_a_quiet_moment_the_reason_is_given(self, host, found, why):
        host.found[self.ENGINE] = lambda now: seen(**found)
        assert host.night()
        assert host.did == [] and host.clock.now >= 1000
        assert host.said == [(4, f"vllm.service: no restart tonight: vllm.service: {why}.")]

    def test_one_that_needs_a_person_is_left(self, host):
        watchdog.replace(
            Path(host.settings["state"]),
            json.dumps({"boot": watchdog.boot(), "services": {self.ENGINE: {"given_up": True}}}),
        )
        assert host.night()
        assert host.did == [] and host.said[0][1].endswith("a person is needed for it.")

    def test_a_lock_that_comes_at_the_last_moment_is_waited_for(self, host):
        held = []

        def found(now):
            if now == 60:
                held.append(watchdog.held("vllm"))
                assert held[0].__enter__()
            if now == 120:
                held[0].__exit__()
            return seen()

        host.found[self.ENGINE] = found
        assert host.night()
        assert host.did == [(120, "restart", self.ENGINE)]

    def test_the_next_one_follows_when_the_one_before_serves_again(self, host):
        host.plan["units"] = [self.ENGINE, self.SERVER]
        assert host.night()
        assert host.did == [(60, "restart", self.ENGINE), (120, "restart", self.SERVER)]

    def test_the_first_waits_for_the_next_to_be_quiet_too(self, host):
        host.plan["units"] = [self.ENGINE, self.SERVER]
        host.found[self.SERVER] = lambda now: seen(pending=1.0 if now < 200 else 0.0)
        assert host.night()
        assert host.did[0] == (250, "restart", self.ENGINE)

    def test_one_without_metrics_waits_for_the_quiet_of_those_before_it_too(self, host):
        host.plan["units"] = [self.ENGINE, self.SERVER]
        host.settings["services"][1]["metrics"] = ""
        host.found[self.SERVER] = lambda now: seen(pending=None)
        host.found[self.ENGINE] = lambda now: seen(pending=1.0 if now > 60 else 0.0)
        assert host.night()
        assert [did[1:] for did in host.did] == [("restart", self.ENGINE)]
        assert (
            host.said[-1][1]
            == "ai-server.service: no restart tonight: vllm.service: 1 requests are running or waiting."
        )

    def test_after_one_that_had_no_quiet_moment_nothing_follows(self, host):
        host.plan["units"] = [self.ENGINE, self.SERVER]
        host.found[self.ENGINE] = lambda now: seen(pending=1.0)
        assert host.night()
        assert host.did == [] and len(host.said) == 1

    def test_after_one_that_does_not_serve_again_nothing_follows(self, host):
        host.plan["units"] = [self.ENGINE, self.SERVER]
        host.health = 503
        assert not host.night()
        assert len(host.did) == 1
        assert host.said[-1] == (3, "vllm.service has not served since its planned restart 100 s ago.")

    def test_the_host_leaves_rotation_before_it_waits_and_comes_back_in_any_case(self, host):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}
        host.found[self.ENGINE] = lambda now: seen(pending=1.0)
        assert host.night()
        assert [did for _, did in host.did] == ["drain", "restore"]
        host.found.clear()
        host.did.clear()
        assert host.night()
        assert [did[1] for did in host.did] == ["drain", "restart", "restore"]

    def test_one_that_cannot_leave_rotation_is_not_restarted(self, host):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}
        host.problem = "no such host"
        assert not host.night()
        assert (3, "no restart tonight: the host could not be taken out of rotation: no such host.") in host.said
        assert "restart" not in [did[1] for did in host.did]

    def test_one_that_is_stopped_while_it_leaves_rotation_comes_back(self, host, monkeypatch):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}

        def command(argv):
            host.did.append(argv[0])
            if argv == ["drain"]:
                raise SystemExit("stopped before its end")

        monkeypatch.setattr(watchdog, "command", command)
        with pytest.raises(SystemExit):
            host.night()
        assert host.did == ["drain", "restore"]

    def test_a_host_that_stays_out_is_a_failure(self, host, monkeypatch):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}
        monkeypatch.setattr(watchdog, "command", lambda argv: "no such pool" if argv == ["restore"] else None)
        assert not host.night()
        assert host.said[-1] == (3, "the host could not be put back into rotation: no such pool.")

    def test_a_host_that_ansible_has_taken_out_is_left_there(self, host):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}
        host.out = "its host is out of rotation"
        assert host.night()
        assert host.did == []
        host.out = None

        def found(now):
            host.out = "its host is out of rotation"  # an incident at the same time
            return seen(hands_off=host.out)

        host.found[self.ENGINE] = found
        assert host.night()
        assert [did for _, did in host.did] == ["drain"]

    def test_a_host_that_went_down_meanwhile_is_put_back_by_the_next_watchdog(self, host):
        host.plan |= {"drain_command": ["drain"], "restore_command": ["restore"]}
        night = watchdog.Night(host.settings)
        assert night.leave()
        with watchdog.held("night"):
            watchdog.end_of_night(host.settings)  # the night is still running
        assert [did for _, did in host.did] == ["drain"]
        watchdog.end_of_night(host.settings)
        watchdog.end_of_night(host.settings)
        assert [did for _, did in host.did] == ["drain", "restore"]

    def test_a_host_left_out_is_reported_when_no_nights_are_left(self, host):
        host.settings["night"] = None
        watchdog.end_of_night(host.settings)
        assert host.said == []
        Path(host.settings["state"]).with_name("night-out").touch()
        watchdog.end_of_night(host.settings)
        assert host.said[0][0] == 3 and "put the host back, then rm" in host.said[0][1]


class TestPlannedRestart:
    def test_the_process_that_it_brings_costs_nothing_and_gives_nothing_back(self):
        one = service(process="one", ready=True, attempts=[1, 2], given_up=False)
        one.expect(1)
        one.fault(seen(process="two", answers=False), 20)
        assert (one.attempts, one.planned, one.restarted) == ([1, 2], 1, 0)
        one.expect(0)
        one.fault(seen(process="three"), 30)
        assert one.attempts == []  # a person's restart

    def test_it_is_counted_on_the_page(self):
        assert watchdog.SERIES["planned_restarts_total"][2](service(planned=3)) == 3

    def test_only_watched_services_can_be_restarted_at_night(self):
        entry = {"unit": "a.service", "metrics": "", "progress": []}
        assert watchdog.check({"services": [entry], "night": {"units": ["a.service"]}}) is None
        result = watchdog.check({"services": [entry], "night": {"units": ["b.service"]}})
        assert result == "b.service is in the night units but not among the services"


class TestPage:
    NAMES = ("vllm:a", "vllm:b")

    @pytest.mark.parametrize(
        ("page", "sum_"),
        [
            ('vllm:a{x="1"} 2.0\nvllm:b{x="1"} 3\n', 5),
            ('vllm:a{x="} 9 {"} 2.0\n', 2),
            ("vllm:a 2 1700000000\n", 2),
            ("vllm:ab 7\n# HELP vllm:a 3\n", None),
            ("vllm:a nonsense\n", None),
            ("", None),
        ],
    )
    def test_the_sum_of_the_named_series(self, page, sum_):
        assert watchdog.total(page, self.NAMES) == sum_


class TestEvidence:
    def test_the_oldest_goes_first_and_the_newest_stays(self, tmp_path):
        for name in ("20260101T000000Z-a", "20260102T000000Z-a", "20260103T000000Z-a"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "journal.txt").write_bytes(b"x" * (1 << 20))
        watchdog.prune(tmp_path, 2)
        assert sorted(path.name[:8] for path in tmp_path.iterdir()) == ["20260102", "20260103"]
        watchdog.prune(tmp_path, 0)
        assert [path.name[:8] for path in tmp_path.iterdir()] == ["20260103"]


class TestHandsOff:
    @pytest.fixture(autouse=True)
    def places(self, tmp_path, monkeypatch):
        monkeypatch.setattr(watchdog, "STORE", tmp_path)
        monkeypatch.setattr(watchdog, "LOCKS", tmp_path)
        monkeypatch.setattr(watchdog, "AWAY", tmp_path / "engines.json")
        (tmp_path / "vllm").mkdir()

    def test_a_service_without_a_lock_may_be_restarted(self):
        assert watchdog.hands_off("vllm.service") is None

    def test_a_run_of_ansible_holds_the_lock(self):
        with watchdog.held("vllm") as free:
            assert free
            assert watchdog.hands_off("vllm.service") == "an Ansible run is changing it"
        assert watchdog.hands_off("vllm.service") is None

    def test_an_engine_that_another_one_serves_instead_of(self, tmp_path):
        (tmp_path / "engines.json").write_text(json.dumps({"vllm": {"state": "asleep", "instead": "feedback"}}))
        assert watchdog.hands_off("vllm.service") == "it is asleep, feedback serves instead"
        assert watchdog.hands_off("feedback.service") is None
        (tmp_path / "engines.json").write_text("not JSON")
        assert watchdog.hands_off("vllm.service") is None

    def test_a_host_that_is_out_of_rotation(self, tmp_path):
        (tmp_path / "vllm/state.json").write_text(json.dumps({"out": True}))
        assert watchdog.hands_off("vllm.service") == "its host is out of rotation"
        (tmp_path / "vllm/state.json").write_text("not JSON")
        assert watchdog.hands_off("vllm.service") is None


class TestMemory:
    def test_a_warning_names_the_largest_processes(self):
        assert watchdog.memory_warning(0, 0) is None
        result = watchdog.memory_warning(1 << 40, 0)
        assert f"less than {1 << 40}; the largest processes: " in result
        assert result.count("(pid ") == watchdog.PROCESSES


class TestWhatIsHere:
    def test_each_release_is_reported_with_the_program_that_it_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(watchdog, "STORE", tmp_path)
        for name, links, inputs in (
            ("node_exporter", ["/opt/node_exporter/1.9.0"], {}),
            ("vllm", ["/app/vllm-server/environments/0f3c"], {"local files of the model": "c0ffee" * 4}),
            ("llm-watchdog", [], {}),
        ):
            (tmp_path / name / "releases").mkdir(parents=True)
            (tmp_path / name / "state.json").write_text(json.dumps({"current": "abc"}))
            release = {"links": [{"path": "/x", "target": target} for target in links], "inputs": inputs}
            (tmp_path / name / "releases" / "abc.json").write_text(json.dumps(release))
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "state.json").write_text(json.dumps({"current": None}))
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "state.json").write_text("{")
        assert watchdog.releases() == [
            ("node_exporter", "abc", "1.9.0"),
            ("vllm", "abc", "0f3c c0ffeec0ffee"),
        ]

    def test_a_label_is_written_as_prometheus_reads_it(self):
        assert watchdog.labels(path='/a "b"\\c\n') == '{path="/a \\"b\\"\\\\c\\n"}'

    def test_the_page_has_both(self, tmp_path, monkeypatch):
        monkeypatch.setattr(watchdog, "releases", lambda: [("vllm", "abc", "0f3c")])
        monkeypatch.setattr(watchdog, "certificate_end", lambda path: 1800000000)
        own = {"state": str(tmp_path / "state.json"), "textfile": str(tmp_path / "page"), "services": []}
        watchdog.Watchdog({**own, "certificates": ["/etc/a.pem"]}).tell()
        page = (tmp_path / "page").read_text()
        assert 'llm_release_info{unit="vllm.service",release="abc",program="0f3c"} 1\n' in page
        assert 'llm_certificate_end_seconds{path="/etc/a.pem"} 1800000000\n' in page
        watchdog.Watchdog(own).tell()
        assert "llm_certificate" not in (tmp_path / "page").read_text()


def test_metrics_that_require_a_key_get_it(monkeypatch, tmp_path):
    (tmp_path / "secrets.env").write_text("LLAMA_API_KEY=a,a\nAPI_KEY='the-key'\n")
    assert watchdog.key_in(tmp_path / "secrets.env") == "the-key"
    sent = []

    class Opener:
        def open(self, request, timeout):
            sent.append((request.full_url, request.get_header("Authorization")))
            raise OSError

    monkeypatch.setattr(watchdog, "_DIRECT", Opener())
    url = "http://127.0.0.1:8004/metrics"
    assert watchdog.metrics_of({"metrics": url, "bearer_file": str(tmp_path / "secrets.env")}) == (0, "")
    assert watchdog.metrics_of({"metrics": url}) == (0, "")
    assert sent == [(url, "Bearer the-key"), (url, None)]
