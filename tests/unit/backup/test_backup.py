"""What is backed up, how restic's errors become sentences, and how data is replaced and restored."""

import contextlib
import importlib.util
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from plugins.module_utils import backup as restoring
from plugins.module_utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("llm_backup", ROOT / "roles/backup/files/backup.py")
program = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(program)

PASSWORD = "a password of the repository"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A host's directories; restic is not called."""
    for name, place in (("HOME", "home"), ("STORE", "store"), ("UNITS", "units")):
        (tmp_path / place).mkdir()
        monkeypatch.setattr(program, name, tmp_path / place)
    monkeypatch.setattr(program, "SECRETS", tmp_path / "secrets.env")
    (tmp_path / "secrets.env").write_text(
        f"RESTIC_REPOSITORY=rest:https://me:word@host/x\nRESTIC_PASSWORD={PASSWORD}\n"
    )
    return tmp_path


@pytest.fixture
def restic(monkeypatch):
    """Fake restic: returns answers or raises exceptions by subcommand; ``asked`` records the command lines."""
    answers, asked = {"cat": json.dumps({"id": "0" * 64})}, []

    def run(*words, **_):
        asked.append(words)
        answer = answers.get(words[0], "")
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return (*answer, "")[:3] if isinstance(answer, tuple) else (0, answer, "")

    monkeypatch.setattr(program, "restic", run)
    monkeypatch.setattr(program, "PAUSE", 0)
    run.answers, run.asked = answers, asked
    return run


SUMMARY = json.dumps({"message_type": "summary", "snapshot_id": "ab12cd34ef", "total_files_processed": 3,
                      "total_bytes_processed": 4000, "data_added": 900})  # fmt: skip


def database(path: Path, rows: int = 10) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE rows (text TEXT)")
    connection.executemany("INSERT INTO rows VALUES (?)", [("x" * 100,)] * rows)
    return connection


def settings(home: Path, **more) -> dict:
    data = [{"name": "jobs", "path": str(home / "app/state"), "service": "ai-server"},
            {"name": "uploads", "path": str(home / "app/up[1]"), "service": "ai-server"}]  # fmt: skip
    return {"host": "one", "data": data, "settings": [], "keep": {"daily": 7, "weekly": 5, "monthly": 3},
            "check_days": 7, **more}  # fmt: skip


KNOWN = {"RESTIC_REPOSITORY": "rest:https://me:word@host/x", "RESTIC_PASSWORD": PASSWORD}


class TestSentences:
    @pytest.mark.parametrize(
        ("said", "kind", "sentence"),
        [
            ("Fatal: wrong password or no key found\n", program.Refused, "the password does not open the repository"),
            (
                "unable to create lock in backend: repository is already locked exclusively by PID 4 on b by root\n",
                program.Locked,
                "is locked by another run (already locked exclusively by PID 4 on b by root)",
            ),
            (
                "Fatal: unable to open config file: stat /srv/x/config: no such file or directory\n"
                "Is there a repository at the following location?\n/srv/x\n",
                program.Missing,
                "there is no repository at rest:https://host/x",
            ),
            (
                'Fatal: unable to open config file: Head "https://me:word@host/config": dial tcp: connection refused\n'
                "Is there a repository at the following location?\nrest:https://me:word@host/x\n",
                program.Refused,
                'cannot be used: Fatal: unable to open config file: Head "https://host/config": dial tcp: connection',
            ),
        ],
    )
    def test_restics_words_become_one_sentence(self, said, kind, sentence):
        refused = program.refusal(said, KNOWN)
        assert type(refused) is kind and sentence in str(refused) and "word@" not in str(refused)

    def test_no_secret_is_told(self):
        assert PASSWORD not in str(program.refusal(f"Fatal: it is {PASSWORD}", KNOWN))

    def test_who_waits_for_a_lock_tries_again(self, restic):
        restic.answers["snapshots"] = [program.Locked("busy"), program.Locked("busy"), "[]"]
        assert program.retry_while_locked(program.snapshots, 60) == []
        restic.answers["snapshots"] = [program.Locked("busy"), "[]"]
        with pytest.raises(program.Locked):
            program.retry_while_locked(program.snapshots, 0)


class TestWhatIsBackedUp:
    def test_a_database_is_copied_while_it_is_open_and_left_out_itself(self, home):
        open_one = database(home / "app/state/jobs.sqlite3")
        (home / "app/state/worker.lock").touch()
        problems = []
        paths, excluded = program.stage(settings(home), problems)
        copy = sqlite3.connect(f"{program.HOME}/staging{home}/app/state/jobs.sqlite3")
        assert copy.execute("SELECT count(*) FROM rows").fetchone() == (10,)
        own = f"{home}/app/state/jobs.sqlite3"
        assert excluded == [program.AREA, own, f"{own}-wal", f"{own}-shm", f"{own}-journal"]
        assert f"{home}/app/state" in paths and problems == []
        open_one.close()

    def test_the_manifest_names_sets_and_owners(self, home):
        database(home / "app/state/jobs.sqlite3").close()
        program.stage(settings(home), [])
        told = json.loads((program.HOME / "staging/manifest.json").read_text())
        assert [(one["name"], one["files"]) for one in told["sets"]] == [("jobs", 1)]
        assert told["users"][str(os.getuid())] and told["host"] == "one"

    def test_a_directory_that_is_a_link_is_backed_up_where_it_leads(self, home):
        database(home / "disk/state/jobs.sqlite3").close()
        (home / "disk/state/a").touch()
        (home / "app").mkdir()
        (home / "app/state").symlink_to(home / "disk/state")
        paths, excluded = program.stage(settings(home), [])
        assert f"{home}/disk/state" in paths and f"{home}/app/state" not in paths
        assert f"{home}/disk/state/jobs.sqlite3" in excluded
        (one,) = json.loads((program.HOME / "staging/manifest.json").read_text())["sets"]
        assert (one["name"], one["path"], one["files"]) == ("jobs", f"{home}/disk/state", 2)

    def test_a_damaged_database_is_backed_up_as_it_is_and_that_is_told(self, home):
        database(home / "app/state/jobs.sqlite3", rows=500).close()
        path = home / "app/state/jobs.sqlite3"
        path.write_bytes(path.read_bytes()[:9000] + b"\xff" * 20000)
        problems = []
        _, excluded = program.stage(settings(home), problems)
        assert len(problems) == 1 and "cannot be copied as a database" in problems[0]
        assert str(path) not in excluded

    def test_the_files_of_the_current_release_and_its_notes_are_kept(self, home):
        (home / "store/vllm/releases").mkdir(parents=True)
        (home / "store/vllm/state.json").write_text(json.dumps({"current": "aa"}))
        release = {"files": [{"path": str(home / "config")}], "secrets": [{"path": str(home / "key")}]}
        (home / "store/vllm/releases/aa.json").write_text(json.dumps(release))
        (home / "store/torn").mkdir()
        (home / "store/torn/state.json").write_text("{")
        for name in ("config", "key", "callers"):
            (home / name).touch()
        found = program.kept_settings(settings(home, settings=[f"{home}/callers", f"{home}/nothing"]))
        assert found == [program.STORE, home / "callers", home / "config", home / "key"]

    def test_the_password_of_the_repository_is_not_in_the_repository(self, home):
        (home / "store/llm-backup/releases").mkdir(parents=True)
        (home / "store/llm-backup/state.json").write_text(json.dumps({"current": "aa"}))
        release = {"files": [{"path": str(home / "config")}], "secrets": [{"path": str(program.SECRETS)}]}
        (home / "store/llm-backup/releases/aa.json").write_text(json.dumps(release))
        (home / "config").touch()
        assert program.kept_settings(settings(home)) == [program.STORE, home / "config"]

    def test_a_path_with_marks_is_matched_by_itself_alone(self):
        assert program.pattern("/a/up[1]*?\\") == "/a/up\\[1\\]\\*\\?\\\\"


class TestTake:
    def test_a_good_one_is_noted_and_told_as_metrics(self, home, restic):
        restic.answers["backup"] = SUMMARY
        told = program.take(settings(home), "by-hand")
        assert told["ok"] and (told["snapshot"], told["files"], told["added"]) == ("ab12cd34", 3, 900)
        words = next(words for words in restic.asked if words[0] == "backup")
        assert words[2:6] == ("--host", "one", "--tag", "llm-server,by-hand")
        page = (program.HOME / "metrics/backup.prom").read_text()
        assert "llm_backup_last_run_ok 1\n" in page and f"llm_backup_last_success_seconds {told['at']}\n" in page
        assert not (program.HOME / "staging").exists()

    def test_one_that_fails_leaves_what_is_known_of_the_good_one(self, home, restic):
        restic.answers["backup"] = SUMMARY
        good = program.take(settings(home), "by-hand")
        restic.answers["cat"] = program.Refused("the repository is away")
        told = program.take(settings(home), "nightly")
        assert not told["ok"] and told["why"] == "the repository is away"
        assert program.read_state()["good"]["at"] == good["at"]
        assert "llm_backup_last_run_ok 0\n" in (program.HOME / "metrics/backup.prom").read_text()

    def test_files_that_went_meanwhile_are_no_fault_and_unread_ones_are(self, home, restic):
        gone, unread = "error: lstat /a: no such file or directory", "error: open /b: input/output error"
        restic.answers["backup"] = [(3, SUMMARY, gone), (3, SUMMARY, f"{gone}\n{unread}")]
        assert program.take(settings(home), "by-hand")["ok"]
        told = program.take(settings(home), "by-hand")
        assert not told["ok"] and "input/output error" in told["why"] and "/a" not in told["why"]

    def test_the_night_forgets_and_checks_in_time(self, home, restic):
        restic.answers["backup"] = SUMMARY
        for _ in range(2):
            assert program.take(settings(home), "nightly")["ok"]
        asked = [words[0] for words in restic.asked]
        assert asked.count("forget") == 2 and asked.count("check") == 1
        known = program.read_state()["check"]
        program.save_state(check={**known, "at": time.time() - 7 * 86400})
        program.take(settings(home), "nightly")
        assert [words[0] for words in restic.asked].count("check") == 2

    def test_a_snapshot_is_good_though_old_ones_cannot_be_forgotten(self, home, restic):
        restic.answers |= {"backup": SUMMARY, "forget": program.Refused("no right to delete")}
        told = program.take(settings(home), "nightly")
        assert not told["ok"] and told["why"] == "no right to delete"
        assert program.read_state()["good"]["snapshot"] == "ab12cd34"

    def test_restic_is_told_what_to_leave_out_and_how_much_to_keep(self, home, restic):
        database(home / "app/state/jobs.sqlite3").close()
        restic.answers["backup"] = SUMMARY
        program.take(settings(home), "nightly")
        words = {asked[0]: " ".join(asked) for asked in restic.asked}
        for left in (program.AREA, f"{home}/app/state/jobs.sqlite3", f"{home}/app/state/jobs.sqlite3-wal"):
            assert f"--exclude {left} " in words["backup"]
        assert "--keep-daily 7 --keep-weekly 5 --keep-monthly 3" in words["forget"]

    def test_databases_that_have_no_room_for_their_copies_are_refused(self, home, restic, monkeypatch):
        database(home / "app/state/jobs.sqlite3").close()
        monkeypatch.setattr(program.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
        told = program.take(settings(home), "by-hand")
        assert not told["ok"] and "1 MiB" in told["why"]
        assert "backup" not in [words[0] for words in restic.asked]


class TestPrepare:
    def test_a_repository_is_made_once_and_never_in_the_place_of_one_that_is_away(self, home, restic):
        restic.answers |= {"cat": [program.Missing("none"), json.dumps({"id": "11"})], "snapshots": "[]"}
        assert program.prepare(settings(home))["made"]
        restic.answers["cat"] = program.Missing("none at /x")
        with pytest.raises(program.Refused, match="is its disk mounted"):
            program.prepare(settings(home))
        assert [words[0] for words in restic.asked].count("init") == 1

    def test_a_machine_that_was_built_anew_takes_no_first_snapshot(self, home, restic):
        restic.answers["snapshots"] = json.dumps([{"id": "aa", "time": "2026-01-01T00:00:00Z", "hostname": "one"}])
        assert program.prepare(settings(home))["taken"]
        restic.answers["snapshots"] = "[]"
        assert not program.prepare(settings(home))["taken"]


NEWER, OLDER, OTHER = (
    {"id": f"{n}{n}ff", "time": f"2026-01-0{n}T00:00:00Z", "hostname": host}
    for n, host in ((2, "one"), (1, "one"), (3, "two"))
)


class TestFind:
    @pytest.fixture(autouse=True)
    def known(self, restic):
        restic.answers |= {
            "snapshots": json.dumps([NEWER, OLDER, OTHER]),
            "dump": json.dumps({"sets": [], "host": "one"}),
        }

    def test_the_newest_and_one_by_its_beginning(self):
        assert program.find("one", "latest")["id"] == "22ff"
        assert program.find("one", "11")["id"] == "11ff"

    @pytest.mark.parametrize(
        ("host", "which", "sentence"),
        [
            ("three", "latest", "no snapshot of three; set backup_of to one of: one, two"),
            (
                "one",
                "33",
                "backup_snapshot 33 matches no snapshot of one; the latest are: 22ff (2026-01-02 00:00:00 UTC), 11ff",
            ),
            ("one", "", "matches several snapshots of one"),
        ],
    )
    def test_what_is_not_there_is_refused(self, host, which, sentence):
        with pytest.raises(program.Refused) as refused:
            program.find(host, which)
        assert sentence in str(refused.value)

    def test_the_newest_is_so_in_every_time_zone(self, restic):
        times = ("2026-10-25T02:40:00.5+02:00", "2026-10-25T02:20:00.123456789+01:00", "2026-10-25T01:00:00Z")
        restic.answers["snapshots"] = json.dumps([{**NEWER, "id": f"{n}", "time": at} for n, at in enumerate(times)])
        assert [one["id"] for one in program.snapshots()] == ["0", "2", "1"]
        found = program.find("one", "latest")
        assert (found["id"], found["at"]) == ("1", "2026-10-25 01:20:00 UTC")


class TestFetch:
    def test_a_snapshot_that_gives_nothing_of_its_files_is_refused(self, home, restic, monkeypatch):
        one = {"name": "jobs", "path": f"{home}/live", "files": 2, "databases": []}
        restic.answers["dump"] = json.dumps({"sets": [one], "users": {}, "groups": {}})
        (home / "live").mkdir()
        (home / "live/precious").touch()

        def link():  # as in a snapshot of a link
            (home / "area/raw" / str(home).lstrip("/")).mkdir(parents=True)
            (home / "area/raw" / f"{home}/live".lstrip("/")).symlink_to(home / "live")
            return ""

        run = program.restic
        monkeypatch.setattr(
            program, "restic", lambda *words, **more: (link() if words[0] == "restore" else None) or run(*words, **more)
        )
        with pytest.raises(program.Refused, match="jobs came without any of its 2 files"):
            program.fetch("aa", "jobs", home / "area")
        assert (home / "live/precious").exists()

    def test_owners_are_those_of_the_names_here(self, home, monkeypatch):
        tree = home / "tree"
        tree.mkdir()
        (tree / "a").touch(mode=0o640)
        (tree / "a").chmod(0o640)
        number, given = (tree / "a").stat().st_uid, []
        monkeypatch.setattr(program.pwd, "getpwnam", {"ai-server": ("", "", 4711)}.__getitem__)
        monkeypatch.setattr(program.grp, "getgrnam", {}.__getitem__)
        monkeypatch.setattr(program.os, "chown", lambda path, uid, gid, **_: given.append((path.name, uid, gid)))
        program.set_owners(tree, {"users": {str(number): "ai-server"}, "groups": {}}, home.stat())
        assert given == [("a", 4711, home.stat().st_gid)]
        assert (tree / "a").stat().st_mode & 0o777 == 0o640

    def test_a_database_that_is_damaged_or_absent_is_refused(self, home):
        database(home / "good.sqlite3").close()
        program.check_database(home / "good.sqlite3", "/x")
        (home / "bad.sqlite3").write_bytes(program.MAGIC + b"no database")
        for name in ("bad.sqlite3", "absent.sqlite3"):
            with pytest.raises(program.Refused, match="choose an earlier snapshot"):
                program.check_database(home / name, "/x")

    def test_two_trees_become_one(self, home):
        for path in ("one/a/x", "two/a/y", "two/b"):
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).touch()
        (home / "new").mkdir()
        for name in ("one", "two", "absent"):
            program.merge(home / name, home / "new")
        assert sorted(str(path.relative_to(home / "new")) for path in (home / "new").rglob("*")) == [
            "a",
            "a/x",
            "a/y",
            "b",
        ]


@pytest.fixture
def place(tmp_path):
    """A directory with old data, and new data next to it."""
    found = restoring.Place(tmp_path / "data")
    found.path.mkdir()
    (found.path / "old").touch()
    (found.path / "both").write_text("old")
    found.make_ready()
    found.new.mkdir()
    (found.new / "both").write_text("new")
    return found


@contextlib.contextmanager
def killed_at_rename(number, monkeypatch):
    """Kill the process at one of its renames; the first is 0."""
    renames, rename = [], Path.rename

    def killed(path, target):
        if len(renames) == number:
            raise KeyboardInterrupt
        renames.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        yield


def names(place) -> list[str]:
    return sorted(path.name for path in place.path.iterdir())


class TestPlace:
    def test_the_new_takes_the_place_of_the_old(self, place):
        place.swap()
        assert (place.path / "both").read_text() == "new"
        place.clear()
        assert names(place) == ["both"]

    def test_it_is_put_back(self, place):
        place.swap()
        (place.path / "written since").touch()
        place.put_back()
        assert names(place) == ["both", "old"] and (place.path / "both").read_text() == "old"

    @pytest.mark.parametrize("at", range(5))
    def test_a_run_that_was_killed_in_between_is_undone(self, place, monkeypatch, at):
        with killed_at_rename(at, monkeypatch):
            place.swap()
        restoring.Place(place.path).make_ready()
        place.area.rmdir()
        assert names(place) == ["both", "old"] and (place.path / "both").read_text() == "old"

    @pytest.mark.parametrize("at", range(4))
    def test_one_that_was_killed_while_it_put_things_back_is_undone_too(self, place, monkeypatch, at):
        place.swap()
        with killed_at_rename(at, monkeypatch):
            place.put_back()
        restoring.Place(place.path).make_ready()
        place.area.rmdir()
        assert names(place) == ["both", "old"] and (place.path / "both").read_text() == "old"

    def test_what_a_service_made_meanwhile_is_not_in_the_way_and_no_journal_of_it_stays(self, place, monkeypatch):
        (place.path / "dir").mkdir()
        place.before.mkdir()
        place.mark("moving")
        for name in ("both", "dir"):
            (place.path / name).rename(place.before / name)
        # Somebody starts the service: it creates its own database and files.
        (place.path / "dir/2026").mkdir(parents=True)
        for name in ("both", "both-wal", "both-shm"):
            (place.path / name).write_text("of another database")
        restoring.Place(place.path).make_ready()
        place.area.rmdir()
        assert names(place) == ["both", "dir", "old"] and (place.path / "both").read_text() == "old"
        assert list((place.path / "dir").iterdir()) == []

    def test_a_machine_that_went_down_while_it_was_noted_how_far_it_went_loses_nothing(self, place, monkeypatch):
        def down(number):
            raise KeyboardInterrupt

        place.before.mkdir()
        place.mark("moving")
        place._move(place.path, place.before)
        monkeypatch.setattr(restoring.os, "fsync", down)
        with pytest.raises(KeyboardInterrupt):
            place.mark("placing")
        monkeypatch.undo()
        restoring.Place(place.path).make_ready()
        place.area.rmdir()
        assert names(place) == ["both", "old"]


class Stub:
    """A service that gives one answer per start: None if it serves, or the error."""

    name = "ai-server"

    def __init__(self, *answers):
        self.answers, self.did = list(answers), []

    def stop(self):
        self.did.append("stop")

    def serve(self):
        self.did.append("start")
        return self.answers.pop(0)


class TestReplace:
    def test_what_stood_there_goes_once_the_service_serves(self, place):
        service = Stub(None)
        (told,) = restoring.replace([service], [place])
        assert "serves again" in told["measured"] and service.did == ["stop", "start"] and names(place) == ["both"]

    def test_what_stood_there_comes_back_where_it_does_not(self, place):
        with pytest.raises(UserError) as failed:
            restoring.replace([Stub("503", None)], [place])
        assert str(failed.value) == (
            "ai-server does not serve with the restored data: 503; the previous data is back and in use by ai-server"
        )
        assert names(place) == ["both", "old"]

    def test_what_stood_there_comes_back_whatever_went_wrong(self, place):
        class Odd(Stub):
            def serve(self):
                self.did.append("start")
                if len(self.did) == 2:
                    raise restoring.store.Refused("its note is gone")

        with pytest.raises(UserError, match="its note is gone; the previous data is back"):
            restoring.replace([Odd()], [place])
        assert names(place) == ["both", "old"]

    def test_where_it_cannot_come_back_now_it_is_told_where_it_is(self, place):
        class Stuck(Stub):
            def stop(self):
                self.did.append("stop")
                if len(self.did) > 2:
                    raise restoring.systemd_unit.SystemdError("no end after 300 s")

        with pytest.raises(UserError) as failed:
            restoring.replace([Stuck("503")], [place])
        assert f"is not back (no end after 300 s): it is in {place.before};" in str(failed.value)
        assert (place.before / "old").exists()

    def test_a_service_that_served_on_neither_is_told(self, place):
        with pytest.raises(UserError, match="does not serve with it either: 500"):
            restoring.replace([Stub("503", "500")], [place])


class TestAUnitOfSomebodyElse:
    @pytest.fixture
    def unit(self, tmp_path, monkeypatch):
        """Prometheus, which no role here installs; ``shown`` is systemd's answer."""
        asked, shown = [], {"LoadState": "loaded", "ActiveState": "active"}
        monkeypatch.setattr(restoring.store, "STORE", tmp_path / "store")
        monkeypatch.setattr(restoring.systemd_unit, "run", lambda *words, **_: asked.append(words[1:]))
        monkeypatch.setattr(restoring.systemd_unit, "show", lambda unit: shown)
        monkeypatch.setattr(restoring.time, "sleep", asked.append)
        found = restoring.Running("prometheus")
        found.asked, found.shown = asked, shown
        return found

    def test_it_is_stopped_and_must_live_for_a_while_afterwards(self, unit):
        unit.stop()
        assert unit.there() and unit.serve() is None
        assert unit.asked == [("stop", "prometheus.service"), ("start", "prometheus.service"), restoring.SETTLED]
        unit.shown["ActiveState"] = "failed"
        assert unit.serve() == "its unit is failed"

    def test_one_that_is_not_there_is_refused(self, unit):
        unit.shown["LoadState"] = "not-found"
        with pytest.raises(UserError, match="not on this host yet: prometheus"):
            restoring.check_services(["prometheus"])


class TestAfterAKilledRun:
    """When the next restore begins, a person has started the services again."""

    @pytest.fixture
    def services(self, place, monkeypatch):
        """One service, which records the content of the place at each stop and start; the fetch fails."""

        class Told(Stub):
            @contextlib.contextmanager
            def lock(self):
                self.did.append("lock")
                yield
                self.did.append("free")

            def stop(self):
                self.did.append(("stop", names(place)))

            def serve(self):
                self.did.append(("start", names(place)))

        service = Told()
        monkeypatch.setattr(restoring, "check_services", lambda names: [service])
        monkeypatch.setattr(restoring, "LOCK", program.HOME / "lock")

        def ask(*words):
            raise UserError("the repository is away")

        monkeypatch.setattr(restoring, "ask", ask)
        return service

    def again(self, place):
        here = {"data": [{"name": "jobs", "path": str(place.path), "service": "ai-server"}]}
        with pytest.raises(UserError, match="the repository is away"):
            restoring.restore({**SNAPSHOT, "at": ""}, here)

    def test_nothing_is_touched_while_a_back_up_is_taken(self, place, services):
        place.swap()
        here = {"data": [{"name": "jobs", "path": str(place.path), "service": "ai-server"}]}
        with program.alone(0), pytest.raises(UserError, match="a backup of this host is running"):
            restoring.restore({**SNAPSHOT, "at": ""}, here)
        assert services.did == [] and place.reached() == "placing"

    def test_what_it_left_half_done_is_undone_while_the_service_is_stopped(self, place, services):
        place.swap()
        self.again(place)
        area = restoring.AREA
        assert services.did[1:3] == [("stop", [area, "both"]), ("start", ["both", "old"])]
        assert services.did[0] == "lock"  # so that neither the watchdog nor another run interferes
        assert names(place) == ["both", "old"]

    def test_what_was_all_in_its_place_stays_with_what_was_written_since(self, place, services):
        place.swap()
        place.mark("placed")
        (place.path / "written since").touch()
        self.again(place)
        assert ("stop", [restoring.AREA, "both", "written since"]) not in services.did
        assert names(place) == ["both", "written since"] and (place.path / "both").read_text() == "new"
        assert ("start", ["both", "written since"]) in services.did  # the killed run had stopped it

    def test_a_whole_restore_leaves_the_new_alone(self, place, services, monkeypatch):
        place.clear()
        rooms = []

        def fetched(*words):
            assert words == ("fetch", SNAPSHOT["id"], "jobs", str(place.area)) and rooms
            place.new.mkdir()
            (place.new / "both").write_text("new")
            return {"files": 1}

        services.serve = lambda: services.did.append(("start", place.reached()))
        monkeypatch.setattr(restoring, "ask", fetched)
        monkeypatch.setattr(restoring, "check_room", rooms.append)
        here = {"data": [{"name": "jobs", "path": str(place.path), "service": "ai-server"}]}
        rows = restoring.restore({**SNAPSHOT, "at": "now"}, here)
        assert [one["what"] for one in rows] == ["snapshot", "jobs", "ai-server"]
        assert rows[1]["measured"] == f"1 files in {place.path}"
        # During its start the process may be killed, and the service may write.
        assert services.did[-2:] == [("start", "placed"), "free"]
        assert names(place) == ["both"] and (place.path / "both").read_text() == "new"


SNAPSHOT = {"id": "aabbccddee", "host": "old",
                "sets": [{"name": "jobs", "path": "/old/state", "files": 1, "bytes": 5}]}  # fmt: skip


class TestWanted:
    def test_data_goes_where_this_host_has_it(self, tmp_path):
        here = {"data": [{"name": "jobs", "path": str(tmp_path), "service": "ai-server"}]}
        (one,), rows = restoring.wanted(SNAPSHOT, here)
        assert one["path"] == str(tmp_path) and rows == []

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            ([], "snapshot aabbccdd of old contains no data for this host"),
            (
                [{"name": "jobs", "path": "/nowhere", "service": "s"}],
                "/nowhere does not exist on this host yet; run site.yml",
            ),
            (
                [{"name": "jobs", "path": "/nowhere", "service": "", "optional": True}],
                "contains no data for this host",
            ),
        ],
    )
    def test_what_cannot_be_placed_is_refused(self, data, sentence):
        with pytest.raises(UserError) as refused:
            restoring.wanted(SNAPSHOT, {"data": data})
        assert sentence in str(refused.value)

    def test_sets_of_one_disk_need_room_together(self):
        sets = [{"path": path, "bytes": 40 << 20} for path in ("/a", "/b")]
        usage = type("Usage", (), {"free": 120 << 20})
        restoring.check_room(sets, lambda path: usage, {"/a": 1, "/b": 2}.get)
        with pytest.raises(UserError, match="the disk of /b needs 144 MiB free"):
            restoring.check_room(sets, lambda path: usage, {"/a": 1, "/b": 1}.get)
