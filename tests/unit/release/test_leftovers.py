"""What no release refers to is found on a tree that imitates a host, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from plugins.module_utils.release import checklist, leftovers, rollback, store
from plugins.module_utils.release.leftovers import A_DAY, clean

OLD = time.time()
RELEASED = OLD + 5 * A_DAY
LATER = OLD + 10 * A_DAY


class Machine:
    """A host with the service `engine`: one release, with an environment and a model."""

    def __init__(self, root: Path):
        self.root = root
        self.store = root / "store/engine"
        self.environments, self.home = root / "opt/environments", root / "opt/.cache/home"
        self.hub = root / "opt/.cache/huggingface/hub"
        self.changed: dict[str, float] = {}
        directories = [self.environments, self.home, self.hub.parent, self.hub]
        created = [{"path": str(path), "keep": False, "declared": True} for path in directories]
        for path in (*directories, root / "proc", root / "units", root / "run"):
            path.mkdir(parents=True)
        self.note = {"current": "r1", "verified": ["r1"], "created": {"user": None, "directories": created}}
        self.environment("a" * 12)
        self.release("r1", "a" * 12, f"model: {self.hub}/models--o--m/snapshots/{'1' * 40}\n")

    def file(self, path: Path, size: int = 4096, when: float = OLD) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (when, when))
        return path

    def environment(self, name: str, whole: bool = True) -> Path:
        path = self.environments / name
        self.file(path / "bin/python")
        if whole:
            self.file(path / rollback.BUILT[1])
        return path

    def release(self, name: str, environment: str, config: str = "") -> None:
        link = {"path": "/opt/venv", "target": str(self.environments / environment), "archive": None}
        file = {"path": "/etc/engine.yaml", "content": config, "mode": "0644", "owner": "root", "group": "root"}
        text = json.dumps({"files": [file], "links": [link], "secrets": [], "inputs": {}, "unit": ""})
        path = self.store / f"releases/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (RELEASED, RELEASED))
        (self.store / "state.json").write_text(json.dumps(self.note))

    def revision(self, revision: str, *names: str) -> None:
        repository = self.hub / "models--o--m"
        (repository / "snapshots" / revision).mkdir(parents=True)
        for name in names:
            blob = repository / "blobs" / name
            if not blob.exists():
                self.file(blob)
            (repository / "snapshots" / revision / f"{name}.bin").symlink_to(f"../../blobs/{name}")
        self.file(self.hub / f".whole/o--m@{revision}", 0)

    def process(self, pid: str, **files: bytes) -> None:
        folder = self.root / "proc" / pid
        (folder / "fd").mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_bytes(text)

    def removed(self, models: bool = False, check: bool = False) -> list[str]:
        told = clean(A_DAY, models, check)
        assert told["failures"] == []
        return [str(each.paths[0].relative_to(self.root / "opt")) for each in told["removed"]]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STORE", tmp_path / "store")
    monkeypatch.setattr(store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(store, "LOCKS", tmp_path / "run")
    monkeypatch.setattr(leftovers, "PROC", tmp_path / "proc")
    # A file's ctime cannot be set, so the test creates it now and looks at it from ten days later.
    monkeypatch.setattr(leftovers.time, "time", lambda: LATER)
    return Machine(tmp_path)


def test_a_host_on_which_everything_is_used(machine):
    machine.revision("1" * 40, "weights")
    machine.file(machine.home / ".cache/vllm/torch_compile_cache/k/x", when=RELEASED)
    assert machine.removed(models=True) == []


def test_without_a_service_there_is_nothing(machine):
    shutil.rmtree(machine.store)
    told = clean(A_DAY, True, False)
    assert (told["removed"], told["remarks"]) == ([], []) and next(iter(told["free"].values()))[0] > 0


def test_what_goes_and_what_it_holds(machine):
    gone = machine.environment("b" * 12)
    half = machine.environment("c" * 12, whole=False)
    stage = machine.environments / ".dddddddddddd-0a1b2c3d"
    machine.file(stage / "x")
    before = machine.environments / f".{'e' * 12}.before"
    machine.file(before / "x")
    foreign = machine.file(machine.environments / "notes/readme").parent
    part = machine.file(machine.hub / "models--o--m/blobs/abc.incomplete")
    chunks = machine.file(machine.hub.parent / "xet/chunks/1").parent
    compiled = machine.file(machine.home / ".triton/cache/old/x").parent
    expected = {
        str(path.relative_to(machine.root / "opt")) for path in (gone, half, stage, before, part, chunks, compiled)
    }
    assert set(machine.removed(check=True)) == expected
    assert all(path.exists() for path in (gone, half, stage, before, part, chunks, compiled))
    told = clean(A_DAY, False, True)
    assert {str(each).rpartition(": ")[2] for each in told["removed"]} >= {"built for no release that is kept, 1 MiB"}
    assert set(machine.removed()) == expected
    assert not any(path.exists() for path in (gone, half, stage, before, part, chunks, compiled))
    assert foreign.exists() and (machine.environments / ("a" * 12)).exists()
    assert machine.removed() == []


def test_what_is_younger_than_a_day_stays(machine):
    machine.environment("b" * 12)
    machine.file(machine.environments / ("b" * 12) / "late", when=LATER)
    machine.file(machine.hub / "models--o--m/blobs/abc.incomplete", when=LATER)
    assert machine.removed() == []


def test_what_was_read_since_the_oldest_release_stays(machine):
    path = machine.file(machine.home / ".cache/torchinductor/k/x")
    os.utime(path, (RELEASED - A_DAY, OLD))
    assert machine.removed() == []
    os.utime(path, (RELEASED - 2 * A_DAY, OLD))
    assert machine.removed() == [".cache/home/.cache/torchinductor/k"]


def test_where_the_disk_notes_no_reading_nothing_compiled_goes(machine, monkeypatch):
    machine.file(machine.home / ".triton/cache/old/x")
    monkeypatch.setattr(leftovers, "notes_reading", lambda path: False)
    assert machine.removed() == []


@pytest.mark.parametrize("how", ["maps", "cmdline", "environ"])
def test_what_a_process_uses_stays_and_is_reported(machine, how):
    gone = machine.environment("b" * 12)
    text = f"7f00-7f01 r-xp 00 08:01 7   {gone}/lib/x.so\n" if how == "maps" else f"{gone}/bin/python\0-m\0x"
    machine.process("4711", **{how: text.encode()})
    told = clean(A_DAY, False, False)
    assert told["removed"] == [] and told["remarks"] == [f"{gone} stays: a process uses it (pid 4711)"]


def test_an_open_file_stays(machine):
    part = machine.file(machine.hub / "models--o--m/blobs/abc.incomplete")
    machine.process("4711")
    (machine.root / "proc/4711/fd/3").symlink_to(part)
    assert machine.removed() == []


def test_what_another_unit_names_stays(machine):
    gone = machine.environment("b" * 12)
    (machine.root / "units/nightly.service").write_text(f"[Service]\nExecStart={gone}/bin/python -m x\n")
    told = clean(A_DAY, False, False)
    assert told["removed"] == [] and told["remarks"] == [f"{gone} stays: a unit of systemd names it"]


def test_a_service_that_another_run_changes_is_left_alone(machine):
    machine.environment("b" * 12)
    with (machine.root / "run/llm-server-engine.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        told = clean(A_DAY, False, False)
    assert told["removed"] == [] and "engine: another run is changing this service now" in told["remarks"][0]


def test_environments_of_another_service_in_the_same_place_stay(machine):
    machine.environment("b" * 12)
    other = machine.root / "store/other/releases/r9.json"
    other.parent.mkdir(parents=True)
    text = (machine.store / "releases/r1.json").read_text().replace("a" * 12, "b" * 12)
    other.write_text(text)
    (machine.root / "store/other/state.json").write_text(json.dumps({"current": "r9", "verified": ["r9"]}))
    assert machine.removed() == []


def test_revisions_are_removed_only_on_request_with_files_that_no_other_uses(machine):
    machine.revision("1" * 40, "weights", "tokenizer")
    machine.revision("2" * 40, "weights-of-before", "tokenizer")
    assert machine.removed() == []
    name = f".cache/huggingface/hub/models--o--m/snapshots/{'2' * 40}"
    assert machine.removed(models=True) == [name]
    blobs = machine.hub / "models--o--m/blobs"
    assert sorted(path.name for path in blobs.iterdir()) == ["tokenizer", "weights"]
    assert [path.name for path in (machine.hub / ".whole").iterdir()] == [f"o--m@{'1' * 40}"]
    assert machine.removed(models=True) == []


def test_a_model_without_revisions_is_removed_completely(machine):
    machine.revision("2" * 40, "weights")
    machine.file(machine.hub / "models--o--m/refs/main")
    assert machine.removed(models=True) == [".cache/huggingface/hub/models--o--m"]
    assert not (machine.hub / "models--o--m").exists()


def test_what_cannot_be_removed_is_reported(machine, monkeypatch):
    gone = machine.environment("b" * 12)

    def fail(path):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(leftovers.shutil, "rmtree", fail)
    assert clean(A_DAY, False, False)["failures"] == [f"{gone}: Operation not permitted"]


def test_the_checklist_shows_the_free_disk(machine):
    assert checklist.disk(0)[1] is True
    measured, ok = checklist.disk(1 << 40)
    assert ok is False and " MiB free on /" in measured


def test_only_services_with_a_release_count(machine):
    (machine.root / "store/kept-data").mkdir()
    assert [service.name for service in leftovers.services()] == ["engine"]
