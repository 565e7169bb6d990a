"""One release of a service, from what is written to what runs.

A *release* is everything a process is started with: its files, its unit and the links that choose its program. Its
digest goes into the process's environment, so the process itself says what it was started with. A release is
prepared and checked beside the running one, started once, and *verified* when its probes answer. The verified ones
before it are kept, and one that never gets ready gives way to the last of them.

Plain Python; raises `Refused` with one sentence while nothing has been touched, `OSError` or
`systemd_unit.SystemdError` when the machine itself fails.
"""

from __future__ import annotations

import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from . import probes, released_program, systemd_unit, unprivileged

STORE = Path("/var/lib/llm-server/services")
UNITS = Path("/etc/systemd/system")
RUNTIME_UNITS = Path("/run/systemd/system")
LOCKS = Path("/run")
TRIAL_TIMEOUT = 900  # seconds: the longest compiles for minutes
# Seconds: a module whose controller was killed goes on to its end, as long as the service takes to stop.
LOCK_TIMEOUT = 60
KEPT = 3  # the release that runs and two before it


class Refused(Exception):
    """The release cannot be right; the text names the cause, and the service was not touched."""


def digest(release: dict) -> str:
    """Return 16 hexadecimal digits over all that the process is started with."""
    parts = {key: release[key] for key in ("files", "links", "unit")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Service:
    """The releases of one service on this machine."""

    def __init__(self, name: str):
        self.name = name
        self.unit = f"{name}.service"
        self.unit_path = UNITS / self.unit
        self.store = STORE / name
        self.environment = self.store / "environment"

    # -- what is known ------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self):
        """Hold this service against a second run on the same machine."""
        end = time.monotonic() + LOCK_TIMEOUT
        with (LOCKS / f"llm-server-{self.name}.lock").open("w") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise Refused(
                            f"{self.name}: another run is changing this service now; try again when it ends"
                        ) from None
                    time.sleep(0.2)
            yield

    def state(self) -> dict:
        """Return what earlier runs noted.

        ``current``, ``verified`` (newest last) and ``failed`` are releases; ``created`` is what was made for the
        service; ``since`` is when a start began to be awaited, in seconds of the clock since boot, which nobody sets;
        ``restarts`` is systemd's count at that time, ``told_after`` where the journal begins to be about this process;
        ``out`` says that a run took the host out of rotation and did not put it back yet.
        """
        blank = {
            "current": None,
            "verified": [],
            "failed": None,
            "created": {"user": None, "directories": []},
            "since": 0,
            "restarts": 0,
            "told_after": 0,
            "out": False,
        }
        try:
            return {**blank, **dict(json.loads((self.store / "state.json").read_text()))}
        except (FileNotFoundError, ValueError, TypeError):  # a damaged note is as good as none: the next one is whole
            return blank

    def note(self, **changes) -> None:
        state = {**self.state(), **changes}
        write(self.store / "state.json", json.dumps(state, indent=1), 0o600)

    def release(self, name: str) -> dict:
        return json.loads((self.store / "releases" / f"{name}.json").read_text())

    # -- from wanted to written -----------------------------------------------------------------------------------

    def build(self, files: list[dict], links: list[dict], unit: dict) -> dict:
        """Return the release that the arguments describe."""
        sections = {key: dict(value or {}) for key, value in unit.items()}
        own = sections.setdefault("Service", {})
        given = own.get("EnvironmentFile") or []
        own["EnvironmentFile"] = [*(given if isinstance(given, list) else [given]), str(self.environment)]
        return {
            "files": [{key: file[key] for key in ("path", "content", "mode", "owner", "group")} for file in files],
            # The same version from another archive is another program.
            "links": [
                {
                    "path": link["path"],
                    "target": link["target"],
                    "archive": released_program.installed_checksum(Path(link["target"])),
                }
                for link in links
            ],
            "unit": systemd_unit.render(sections),
        }

    def differences(self, release: dict) -> list[dict]:
        """Return where the disk differs from ``release``: what, before, after (None where there is nothing)."""
        found = []
        for file in [*release["files"], self._unit_file(release)]:
            path = Path(file["path"])
            before = path.read_text(errors="replace") if path.is_file() else None
            if before != file["content"] or attributes(path) != (file["mode"], file["owner"], file["group"]):
                found.append({"what": str(path), "before": before, "after": file["content"]})
        for link in release["links"]:
            before = str(Path(link["path"]).readlink()) if Path(link["path"]).is_symlink() else None
            if before != link["target"]:
                found.append({"what": link["path"], "before": before, "after": link["target"]})
        if not found and (not self.environment.is_file() or self.environment.read_text() != environment_of(release)):
            found.append({"what": str(self.environment), "before": None, "after": environment_of(release)})
        if systemd_unit.show(self.unit).get("UnitFileState") != "enabled":
            found.append({"what": f"{self.unit} at boot", "before": "off", "after": "on"})
        return found

    def _unit_file(self, release: dict) -> dict:
        return {
            "path": str(self.unit_path), "content": release["unit"], "mode": "0644", "owner": "root", "group": "root",
        }  # fmt: skip

    def restart_reason(self, release: dict, differences: list[dict]) -> str | None:
        """Say why the process must be started anew, or return None when it runs on what is written."""
        live = systemd_unit.show(self.unit)
        pid = int(live.get("MainPID") or 0)
        if not pid:
            return f"it was not running ({live.get('ActiveState', 'unknown')}, {live.get('SubState', 'unknown')})"
        running = systemd_unit.running_release(pid)
        if running == digest(release):
            return None
        changed = [difference["what"] for difference in differences if difference["what"].startswith("/")]
        if changed:
            return f"changed: {', '.join(changed)}"
        return "the running process was not started with what is written"

    def check_ports(self, ports: list[int]) -> None:
        """Raise `Refused` where a process outside this service listens on one of ``ports``."""
        for port in ports:
            if not 0 < port < 65536:
                raise Refused(f"{self.name}: {port} is no TCP port; choose one from 1 to 65535")
            holder = systemd_unit.port_holder(port, self.unit)
            if holder:
                raise Refused(f"{self.name}: port {port} is taken by {holder}; stop it or choose another port")

    def check(self, release: dict, validators: dict, user: str | None, check_mode: bool) -> None:
        """Raise `Refused` where a program or systemd would not accept ``release``."""
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir="/run") as directory:
            stage = Path(directory)
            stage.chmod(0o755)
            for file in release["files"]:
                argv = validators.get(file["path"])
                if argv and not (check_mode and not all(Path(part).exists() for part in argv if part.startswith("/"))):
                    self._ask_program(argv, file, stage, user)
            complaint = systemd_unit.verify(self.unit, self._on_new_program(release), stage)
            # In check mode on a fresh host the program and the units of other roles are still to come.
            to_come = check_mode and complaint and re.search(r"is not executable|Unit \S+ not found", complaint)
            if complaint and not to_come:
                raise Refused(f"{self.name}: systemd refuses the unit: {complaint}")

    def try_out(self, release: dict, trials: list[dict]) -> None:
        """Run each trial in the sandbox of ``release``'s unit, as its user; raise `Refused` with what one says.

        A trial has ``argv``, in which ``%s`` stands for a file with the text of its ``script``.
        """
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir="/run") as directory:
            stage = Path(directory)
            stage.chmod(0o755)
            for trial in trials:
                script, output = stage / "trial", stage / "output"
                write(script, trial["script"], 0o644)
                argv = [word.replace("%s", str(script)) for word in trial["argv"]]
                self._try(systemd_unit.in_sandbox(self._on_new_program(release), argv, output, TRIAL_TIMEOUT), output)

    def _try(self, text: str, output: Path) -> None:
        unit = f"{self.name}-trial.service"
        written = RUNTIME_UNITS / unit
        write(written, text, 0o644)
        try:
            systemd_unit.run("systemctl", "daemon-reload")
            done = systemd_unit.run("systemctl", "start", unit, check=False, timeout=TRIAL_TIMEOUT + 60)
        finally:
            written.unlink()
            systemd_unit.run("systemctl", "daemon-reload")
            systemd_unit.run("systemctl", "reset-failed", unit, check=False)
        if done.returncode:
            said = (output.read_text(errors="replace") if output.exists() else "") or done.stderr
            raise Refused(f"{self.name}: {said.strip().splitlines()[-1]}")

    @staticmethod
    def _on_new_program(release: dict) -> str:
        """Return the unit as if its links were switched already, so that systemd looks at the new program."""
        text = release["unit"]
        for link in release["links"]:
            text = text.replace(f"{link['path']}/", f"{link['target']}/")
        return text

    def _ask_program(self, argv: list[str], file: dict, stage: Path, user: str | None) -> None:
        account = user if user in accounts() else None
        staged = stage / Path(file["path"]).name
        staged.touch(mode=0o600)
        unprivileged.own(staged, account)
        staged.write_text(file["content"])
        try:
            done = subprocess.run(
                [part.replace("%s", str(staged)) for part in argv],
                capture_output=True, text=True, errors="replace", timeout=180, user=account, group=account,
                extra_groups=[], cwd="/",
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(f"{self.name}: {argv[0]} could not check {file['path']}: {error}") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
            # What argparse refuses stands behind its usage, and behind what the program's imports had to say.
            told = [line for line in said if re.match(r"[\w .-]+: error: ", line)]
            said = [line.replace(str(staged), file["path"]) for line in told or said]
            raise Refused(f"{self.name}: {Path(argv[0]).name} refuses {file['path']}: {' | '.join(said[-3:])}")

    def put(self, release: dict) -> None:
        """Write every file, link and the unit of ``release``, each in one step."""
        write(self.store / "releases" / f"{digest(release)}.json", json.dumps(release, indent=1), 0o600)
        for file in [*release["files"], self._unit_file(release)]:
            write(Path(file["path"]), file["content"], int(file["mode"], 8), file["owner"], file["group"])
        for link in release["links"]:
            path = Path(link["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(link["target"])
            beside.replace(path)
        write(self.environment, environment_of(release), 0o600)
        systemd_unit.run("systemctl", "daemon-reload")
        systemd_unit.run("systemctl", "enable", self.unit)

    def adopt(self, release: dict) -> None:
        """Note what runs as it is: the note of it was lost, and there is nothing to write or to restart."""
        write(self.store / "releases" / f"{digest(release)}.json", json.dumps(release, indent=1), 0o600)
        self.note(current=digest(release))

    def take_away(self, release: dict, but: dict | None = None) -> None:
        """Remove the files and links of ``release`` that ``but`` does not have."""
        stay = {entry["path"] for entry in [*(but or {}).get("files", []), *(but or {}).get("links", [])]}
        for entry in [*release["files"], *release["links"]]:
            if entry["path"] not in stay:
                Path(entry["path"]).unlink(missing_ok=True)

    def store_proof(self, name: str, questions: list[dict], limit: int) -> None:
        """Keep what proves the release and within how many seconds, so that going back to it can be proven too.

        The questions have their secrets: only root reads the file.
        """
        if self.proof_of(name) != (questions, limit):
            proof = {"probes": questions, "start_timeout": limit}
            write(self.store / "probes" / f"{name}.json", json.dumps(proof), 0o600)

    def proof_of(self, name: str | None) -> tuple[list[dict], int | None]:
        """Return a release's probes and the seconds that its start may take."""
        path = self.store / "probes" / f"{name}.json"
        proof = json.loads(path.read_text()) if path.exists() else {"probes": [], "start_timeout": None}
        return proof["probes"], proof["start_timeout"]

    def stop(self) -> None:
        """Stop a release that never served and had none before it; its files stay for inspection."""
        systemd_unit.run("systemctl", "disable", "--now", self.unit, check=False)

    def start(self) -> None:
        """Start the process on what is written; whether it lives is for `look` to say."""
        systemd_unit.run("systemctl", "reset-failed", self.unit, check=False)
        told_after = systemd_unit.journal_end()
        systemd_unit.run("systemctl", "restart", self.unit, check=False, timeout=300)
        # Counted after the start: how long the process before it took to stop, and how often systemd brought that one
        # back, is not held against this one.
        self.note(since=time.monotonic(), told_after=told_after, restarts=self._restarts())

    def watch(self) -> None:
        """Await a process that this run did not start: what went before is not held against it."""
        begun = int(systemd_unit.show(self.unit).get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        now = time.monotonic()
        told_after = time.time() - (now - begun if begun else 0)
        self.note(since=now, told_after=told_after, restarts=self._restarts())

    def _restarts(self) -> int:
        return int(systemd_unit.show(self.unit).get("NRestarts") or 0)

    # -- from started to serving ----------------------------------------------------------------------------------

    def look(self, questions: list[dict], seconds: float, limit: float) -> dict:
        """Watch the service for up to ``seconds``, and not past ``limit`` seconds after its start.

        Returns ready, dead, why, elapsed and, where it is not ready, its journal since the start.
        """
        state = self.state()
        end = time.monotonic() + seconds
        while True:
            why = None
            dead = self._left(state["restarts"])
            if not dead:
                within = limit - (time.monotonic() - state["since"])
                why = probes.first_failure(questions, max(within, 1))
                dead = self._left(state["restarts"])
            why = dead or why
            elapsed = time.monotonic() - state["since"]
            if not why or dead or time.monotonic() >= end or elapsed >= limit:
                lines = systemd_unit.journal(self.unit, state["told_after"]) if why else []
                return {
                    "ready": not why,
                    "dead": bool(dead),
                    "why": why,
                    "elapsed": round(elapsed, 1),
                    "journal": lines,
                }
            time.sleep(0.3)

    def _left(self, restarts: int) -> str | None:
        """Say how the process left since there were ``restarts`` of it, or return None while it runs.

        An exit during the start is a verdict: waiting for systemd's next try only hides it.
        """
        live = systemd_unit.show(self.unit)
        again = live.get("SubState") == "auto-restart" or int(live.get("NRestarts") or 0) > restarts
        if live.get("ActiveState") not in ("failed", "inactive") and not again:
            return None
        return f"its process left ({live.get('Result')}, status {live.get('ExecMainStatus')})"

    def confirm(self) -> None:
        """Note that the current release serves, and let go of releases that nothing needs any more."""
        state = self.state()
        verified = [name for name in state["verified"] if name != state["current"]] + [state["current"]]
        # One that failed is kept for inspection until something newer serves.
        back = state["current"] in state["verified"] and state["failed"] != state["current"]
        self.note(verified=verified[-KEPT:], failed=state["failed"] if back else None)
        self.prune()

    def prune(self) -> None:
        state = self.state()
        kept = {*state["verified"], state["current"], state["failed"]} - {None}
        releases = {path.stem: path for path in (self.store / "releases").glob("*.json")}
        needed = {link["target"] for name in kept & releases.keys() for link in self.release(name)["links"]}
        for name in releases.keys() - kept:
            for link in self.release(name)["links"]:
                if link["target"] not in needed:
                    shutil.rmtree(link["target"], ignore_errors=True)
            releases[name].unlink()
            (self.store / "probes" / f"{name}.json").unlink(missing_ok=True)

    def earlier(self, to: str | None = None) -> str:
        """Return the verified release to go back to: ``to``, or the last one before the current."""
        if not self.store.is_dir():
            present = sorted(path.name for path in self.store.parent.glob("*") if path.is_dir())
            raise Refused(f"there is no service {self.name} on this host; there are: {', '.join(present) or 'none'}")
        state = self.state()
        kept = [name for name in state["verified"] if name != state["current"]]
        if not kept:
            raise Refused(f"{self.name}: no earlier verified release is kept here, so there is nothing to go back to")
        if to and to not in kept:
            raise Refused(f"{self.name}: release {to} is not kept here; kept are: {', '.join(kept)}")
        return to or kept[-1]

    def back(self, to: str | None = None) -> str:
        """Put the last verified release before the current one (or ``to``) in place and start it; return its name."""
        target, state = self.earlier(to), self.state()
        old, new = self.release(target), self.release(state["current"])
        self.put(old)
        self.take_away(new, but=old)
        self.note(current=target)
        self.start()
        return target

    def removable(self, purge: bool) -> bool:
        """Say whether there is anything of the service that `remove` would take away."""
        return (
            self.unit_path.exists()
            or any((self.store / "releases").glob("*.json"))
            or any(self._goes(entry, self._kept(purge)) for entry in self.state()["created"]["directories"])
        )

    def _kept(self, purge: bool) -> list[Path]:
        entries = self.state()["created"]["directories"]
        return [] if purge else [Path(entry["path"]) for entry in entries if entry["keep"]]

    @staticmethod
    def _goes(entry: dict, kept: list[Path]) -> bool:
        """Say whether a directory that was created for the service goes with it: empty, or its own and without data."""
        path = Path(entry["path"])
        if entry["declared"] and not any(data.is_relative_to(path) for data in kept):
            return path.exists()
        return path.is_dir() and not any(path.iterdir())

    def remove(self, purge: bool) -> bool:
        """Take the service away; return whether there was anything. Kept data stays unless ``purge``."""
        changed, kept, state = self.removable(purge), self._kept(purge), self.state()
        if self.unit_path.exists():
            systemd_unit.run("systemctl", "disable", "--now", self.unit, check=False)
            systemd_unit.run("systemctl", "reset-failed", self.unit, check=False)
        for path in (self.store / "releases").glob("*.json"):
            self.take_away(json.loads(path.read_text()))
        if self.unit_path.exists():
            self.unit_path.unlink()
            systemd_unit.run("systemctl", "daemon-reload")
        created = state["created"]
        for entry in reversed(created["directories"]):
            if self._goes(entry, kept):
                shutil.rmtree(entry["path"], ignore_errors=True)
        left = [entry for entry in created["directories"] if Path(entry["path"]).exists()]
        data = any(entry["keep"] for entry in left)
        # Data without an owner would fall to the next user who gets the number.
        if created["user"] in accounts() and not data:
            systemd_unit.run("userdel", created["user"], check=False)
        shutil.rmtree(self.store, ignore_errors=True)
        if data:
            # What was kept can still be purged later, by name.
            self.note(created={**created, "directories": left})
        for path in (self.store.parent, self.store.parent.parent):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        return changed

    # -- what the process lives in --------------------------------------------------------------------------------

    def missing_user(self, user: str | None) -> bool:
        return bool(user) and user not in accounts()

    def add_user(self, user: str, home: str) -> None:
        systemd_unit.run(
            "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", home,
            "--shell", "/usr/sbin/nologin", user,
        )  # fmt: skip
        self.note(created={**self.state()["created"], "user": user})

    def wrong_directories(self, directories: list[dict]) -> list[dict]:
        return [
            entry
            for entry in directories
            if not Path(entry["path"]).is_dir()
            or attributes(Path(entry["path"])) != (entry["mode"], entry["owner"], entry["group"])
        ]

    def put_directory(self, entry: dict) -> None:
        path = Path(entry["path"])
        missing = [parent for parent in reversed(path.parents) if not parent.exists()]
        made = [{"path": str(parent), "keep": False, "declared": False} for parent in missing]
        if not path.exists():
            made.append({"path": str(path), "keep": entry["keep"], "declared": True})
        # Noted first: an interrupted run must not leave a directory that nobody takes away.
        created = self.state()["created"]
        self.note(created={**created, "directories": created["directories"] + made})
        for parent in missing:
            parent.mkdir(mode=0o755)
        path.mkdir(exist_ok=True)
        path.chmod(int(entry["mode"], 8))
        shutil.chown(path, entry["owner"], entry["group"])


def environment_of(release: dict) -> str:
    """Return the text of the file by which the process learns what it was started with."""
    return f"{systemd_unit.RELEASE_VARIABLE}={digest(release)}\n"


def accounts() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}


def attributes(path: Path) -> tuple[str, str, str] | None:
    """Return ``(mode, owner, group)`` as a playbook writes them, or None where there is no such path."""
    try:
        seen = path.stat()
    except OSError:
        return None
    try:
        owner, group = pwd.getpwuid(seen.st_uid).pw_name, grp.getgrgid(seen.st_gid).gr_name
    except KeyError:
        owner, group = str(seen.st_uid), str(seen.st_gid)
    return f"{seen.st_mode & 0o7777:04o}", owner, group


def write(path: Path, text: str, mode: int, owner: str = "root", group: str = "root") -> None:
    """Write ``text`` to ``path`` in one step: a reader sees the old file or the new one, whole."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, mode=0o755)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w") as handle:
        os.fchmod(handle.fileno(), mode)
        shutil.chown(beside, owner, group)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    Path(beside).replace(path)
