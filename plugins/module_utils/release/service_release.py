"""Releases of a service: check, write, start, verify and roll back.

A *release* is everything that a process is started with: its files, its unit and the links that select its program.
Its digest is in the process's environment, so the process itself shows which release it was started with. A release is
prepared and checked next to the running one, started once, and *verified* when its probes answer. Earlier verified
releases are kept. A release that never becomes ready is replaced by the last of them.

Memory limits belong to the host, not to a release: they are written to the unit and take effect without a restart, and
a rollback keeps the current ones.

A file may be *live*: the process reads it again while it runs. It is not part of the release either. Changing, adding
or removing a live file restarts nothing, and a rollback keeps the current one.

A secret is stored only in its own file. A release has a keyed digest of it, which is enough to see that the process was
started with another value. So a rollback uses the current secrets.

Plain Python. Raises `Refused` with one sentence before anything was changed, and `OSError` or
`systemd_unit.SystemdError` if the machine itself fails.
"""

from __future__ import annotations

import fcntl
import grp
import hashlib
import hmac
import json
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from .. import atomic_file, unprivileged
from ..errors import UserError
from ..install import application_source, python_environment, released_program
from . import probes, systemd_unit

STORE = Path("/var/lib/llm-server/services")
UNITS = Path("/etc/systemd/system")
RUNTIME_UNITS = Path("/run/systemd/system")
LOCKS = Path("/run")
TRIAL_TIMEOUT = 900  # seconds: the longest trial compiles for minutes
# Seconds: a module whose controller was killed still runs to its end, which takes as long as the service's stop.
LOCK_TIMEOUT = 60
AT_BOOT = " at boot"
KEPT = 3  # the current release and two before it
BEFORE_START_TIMEOUT = 60  # seconds: what the old process held is free soon after its end, or stuck
SHOWN_LINES = 400  # of the journal while a service starts
END_LINES = 4000  # of a service that failed to start: eight workers of an engine write 2000
PLACES = ("files", "secrets", "links")
BUILT = (application_source.MARKER, python_environment.MARKER)  # every build for a service has one of these


class Refused(UserError):
    """The release cannot be right. The text names the cause; the service was not touched."""


def digest(release: dict) -> str:
    """Return 16 hexadecimal digits over everything that the process is started with."""
    # Empty parts are left out, so that a release from before such a part existed keeps its digest.
    parts = {key: release[key] for key in ("files", "secrets", "links", "inputs", "unit") if release.get(key)}
    parts = {"files": [], "links": [], **parts}
    parts["files"] = [file for file in parts["files"] if not file.get("live")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def but_secrets(release: dict) -> str:
    """Return the digest of a release that does not depend on its secrets; see `Service.renewed`."""

    def plain(lines: list) -> list:
        return [line if isinstance(line, str) else line[0] for line in lines]

    files = [{**secret, "lines": plain(secret["lines"])} for secret in release["secrets"]]
    return digest({**release, "secrets": files})


class Service:
    """The releases of one service on this machine."""

    def __init__(self, name: str):
        self.name = name
        self.unit = f"{name}.service"
        self.unit_path = UNITS / self.unit
        self.store = STORE / name
        self.environment = self.store / "environment"
        self.key = self.store / "key"
        # Programs and environments that other services are about to use.
        self.beside: list[str] = []

    # -- recorded state -----------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, patience: float | None = None):
        """Lock this service against other runs on the same machine; wait up to ``patience`` seconds for one.

        Raises `Refused` if the other run still holds the lock then.
        """
        end = time.monotonic() + (LOCK_TIMEOUT if patience is None else patience)
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
        """Return what earlier runs recorded.

        - ``current``, ``verified`` (newest last) and ``failed``: releases
        - ``created``: what was created for the service; ``needs``: what it uses, even if others made it
        - ``since``: when the wait for a start began, in seconds of the monotonic clock since boot
        - ``restarts``: systemd's restart count at that time
        - ``told_after``: place in the journal where the messages about this process begin
        - ``altered``: the process may have been started while others had changed its unit
        - ``blocked``: the condition that did not hold before its start
        - ``out``: a run took the host out of rotation and has not put it back yet
        """
        blank = {
            "current": None,
            "verified": [],
            "failed": None,
            "created": {"user": None, "directories": []},
            "needs": {"user": None, "directories": []},
            "since": 0,
            "restarts": 0,
            "told_after": 0,
            "blocked": None,
            "out": False,
            "altered": False,
        }
        try:
            return {**blank, **dict(json.loads((self.store / "state.json").read_text()))}
        except (FileNotFoundError, ValueError, TypeError):  # a damaged record counts as none: the next one is complete
            return blank

    def note(self, **changes) -> None:
        state = {**self.state(), **changes}
        write(self.store / "state.json", json.dumps(state, indent=1), 0o600)

    def release(self, name: str | None) -> dict:
        """Return a stored release, or {} if there is none of that name."""
        path = self.store / "releases" / f"{name}.json"
        return self._without_secrets(json.loads(path.read_text())) if path.exists() else {}

    def _without_secrets(self, release: dict, plain: dict | None = None) -> dict:
        """Return a release in the current form. Releases in the earlier form have secrets among their files.

        ``plain`` has, by the path of such a file, the names in it that are not secrets.
        """
        if "secrets" in release:
            return release
        held = [{**file, "plain": (plain or {}).get(file["path"])} for file in release["files"] if private(file)]
        return {
            **release,
            "files": [file for file in release["files"] if not private(file)],
            "secrets": [self._outlined(file) for file in held],
            "inputs": {},
        }

    # -- from the arguments to the files --------------------------------------------------------------------------

    def build(
        self, files: list[dict], links: list[dict], unit: dict, secret_files=(), inputs=None, groups=(), peers=(),
        limits=None,
    ) -> dict:  # fmt: skip
        """Return the release that the arguments describe."""
        sections = {key: dict(value or {}) for key, value in unit.items()}
        own = sections.setdefault("Service", {})
        if own.get("Group"):
            own["Group"] = unprivileged.group_of(own["Group"])
        if groups:
            own["SupplementaryGroups"] = " ".join(groups)
        if peers:
            # Accounting shows whether systemd can filter on this host; see `systemd_unit.address_filter`.
            own |= {"IPAccounting": "yes", "IPAddressDeny": "any", "IPAddressAllow": " ".join(peers)}
        given = own.get("EnvironmentFile") or []
        own["EnvironmentFile"] = [*(given if isinstance(given, list) else [given]), str(self.environment)]
        return {
            # Attributes that a file does not have are left out, so that a release from before they existed keeps its
            # digest.
            "files": [
                {**described(file), "content": file["content"], **({"live": True} if file.get("live") else {})}
                for file in files
            ],
            "secrets": [self._outlined(file) for file in secret_files],
            # The same version from another archive is a different program.
            "links": [
                {
                    "path": link["path"],
                    "target": link["target"],
                    "archive": released_program.installed_checksum(Path(link["target"])),
                }
                for link in links
            ],
            "inputs": {name: str(value) for name, value in (inputs or {}).items()},
            "unit": systemd_unit.render(sections),
            "limits": dict(limits or {}),
        }

    def _outlined(self, file: dict) -> dict:
        """Return what a release stores of a secret file. Raises `Refused` if a line is not ``NAME=value``."""
        plain = sorted(file["plain"] or [])
        # Left out unless set, so that a release from before this attribute existed keeps its digest.
        whole = {"whole": True} if file.get("whole") else {}
        outline = {**described(file), **whole, "plain": plain}
        return {**outline, "lines": self._outline(outline, file["content"])}

    def _outline(self, file: dict, text: str) -> list:
        """Return the lines of a secret file: plain lines unchanged, of the others name and digest of the value."""
        if file.get("whole"):
            return [["", self._keyed(text)]]
        path, plain, lines = file["path"], file["plain"], []
        for number, line in enumerate(lines_of(text), 1):
            name, found, value = line.partition("=")
            if not found:
                raise Refused(f"{self.name}: line {number} of {path} is not NAME=value, as a file of secrets needs it")
            # An address may contain a password.
            lines.append(line if name in plain and "@" not in value else [name, self._keyed(value)])
        return lines

    def _keyed(self, text: str) -> str:
        """Return a digest of a secret that reveals nothing without this host's key."""
        if not hasattr(self, "_own_key"):
            # Without a key file, as in check mode on a new host, there are no earlier digests to compare with.
            self._own_key = self.key.read_text() if self.key.is_file() else secrets.token_hex(32)
        return hmac.new(self._own_key.encode(), text.encode(), "sha256").hexdigest()

    def keep_key(self) -> None:
        """Write the key for the digests of secrets unless it exists."""
        self._keyed("")
        if not self.key.is_file():
            write(self.key, self._own_key, 0o600)

    def renewed(self, release: dict) -> dict:
        """Return ``release`` with the current secrets, live files and limits. Raises `Refused` if a secret is gone."""
        today = [self._outlined({**secret, "content": self._today(secret)}) for secret in release["secrets"]]
        current = self.release(self.state()["current"])
        live = [file for file in current.get("files", []) if file.get("live")]
        files = [file for file in release["files"] if file["path"] not in {file["path"] for file in live}] + live
        limits = current.get("limits", release.get("limits", {}))
        return {**release, "files": files, "secrets": today, "limits": limits}

    def _today(self, secret: dict) -> str:
        """Return the text of a release's secret file with the current values of its secrets.

        A secret that the current file does not have is left out: the inventory no longer has it, and its value is
        stored nowhere else.
        """
        try:
            now = Path(secret["path"]).read_text()
        except OSError:
            raise Refused(
                f"{self.name}: {secret['path']} is gone, and no release keeps a secret; run site.yml"
            ) from None
        if secret.get("whole"):
            return now
        values = {line.partition("=")[0]: line for line in lines_of(now)}
        lines = [line if isinstance(line, str) else values.get(line[0]) for line in secret["lines"]]
        return "".join(f"{line}\n" for line in lines if line is not None)

    def differences(self, release: dict) -> list[dict]:
        """Return where the disk differs from ``release``: what, before, after (None if there is nothing), secret."""
        found = []
        for file in [*release["files"], self._unit_file(release)]:
            path = Path(file["path"])
            before = path.read_text(errors="replace") if path.is_file() else None
            if before != file["content"] or attributes(path) != (file["mode"], file["owner"], file["group"]):
                found.append({"what": str(path), "before": before, "after": file["content"], "secret": private(file)})
        for secret in release["secrets"]:
            path = Path(secret["path"])
            if self._disk_outline(secret) != secret["lines"] or attributes(path) != (
                secret["mode"],
                secret["owner"],
                secret["group"],
            ):
                found.append({"what": str(path), "before": None, "after": None, "secret": True})
        for link in release["links"]:
            before = str(Path(link["path"]).readlink()) if Path(link["path"]).is_symlink() else None
            if before != link["target"]:
                found.append({"what": link["path"], "before": before, "after": link["target"], "secret": False})
        current = self.release(self.state()["current"])
        stay = {file["path"] for file in release["files"]}
        for file in current.get("files", []):
            if file.get("live") and file["path"] not in stay and Path(file["path"]).is_file():
                found.append({"what": file["path"], "before": file["content"], "after": None, "secret": False})
        before = current.get("inputs", release["inputs"])
        for name in sorted({*before, *release["inputs"]}):
            if before.get(name) != release["inputs"].get(name):
                values = {"before": before.get(name), "after": release["inputs"].get(name)}
                found.append({"what": f"input {name!r}", **values, "secret": False})
        text = environment_of(release)
        if not found and (not self.environment.is_file() or self.environment.read_text() != text):
            found.append({"what": str(self.environment), "before": None, "after": text, "secret": False})
        if release.get("limits") and systemd_unit.unscored(self.unit):
            found.append({"what": "OOM score", "before": None, "after": None, "secret": False})
        if systemd_unit.show(self.unit).get("UnitFileState") != "enabled":
            found.append({"what": f"{self.unit}{AT_BOOT}", "before": "off", "after": "on", "secret": False})
        return found

    def _disk_outline(self, secret: dict) -> list | None:
        try:
            return self._outline(secret, Path(secret["path"]).read_text(errors="replace"))
        except (OSError, Refused):
            return None

    def _unit_file(self, release: dict) -> dict:
        return {
            "path": str(self.unit_path), "content": unit_text(release),
            "mode": "0644", "owner": "root", "group": "root",
        }  # fmt: skip

    def restart_reason(self, release: dict, differences: list[dict], before: str = "") -> str | None:
        """Return why the process must be restarted, or None if it runs the release on disk.

        ``before`` is an alternative digest of the same release, with which the process may have been started; see
        `digest_before`.
        """
        live = systemd_unit.show(self.unit)
        pid = int(live.get("MainPID") or 0)
        if not pid:
            return f"it was not running ({live.get('ActiveState', 'unknown')}, {live.get('SubState', 'unknown')})"
        if self.state()["altered"]:
            return "it was started while others had changed its unit"
        running = systemd_unit.running_release(pid)
        if running in (digest(release), before):
            return None
        changed = [difference["what"] for difference in differences if not difference["what"].endswith(AT_BOOT)]
        if changed:
            return f"changed: {', '.join(changed)}"
        return "the running process was not started with what is written"

    def altered(self, release: dict) -> tuple[list[str], list[str]]:
        """Return how others changed the unit of ``release``: (changes that must be refused, mere additions)."""
        faults, besides = [], []
        places = systemd_unit.unit_places()
        above = places[: places.index(str(UNITS))] if str(UNITS) in places else []
        for path in [self.unit_path, *(Path(place) / self.unit for place in above)]:
            if path.is_symlink() and str(path.readlink()) == "/dev/null":
                faults.append(
                    f"{path} masks the unit, so somebody keeps it from starting; systemctl unmask {self.unit}"
                )
            elif path.is_symlink():
                faults.append(f"{path} is a link to {path.readlink()}, a unit of somebody else; remove the link")
            elif path != self.unit_path and path.exists():
                faults.append(f"{path} takes the place of the unit; remove it")
        for path in systemd_unit.drop_ins(self.unit):
            changed = systemd_unit.changed_directives(release["unit"], path.read_text(errors="replace"))
            if changed:
                faults.append(f"{path} changes {', '.join(changed)} of {self.unit}; take that out of it")
            else:
                besides.append(f"{path} adds to {self.unit}")
        return faults, besides

    def check_unit(self, release: dict, check_mode: bool) -> list[str]:
        """Raise `Refused` if others changed what the unit of ``release`` says; return what they only added."""
        faults, besides = self.altered(release)
        if faults:
            if self.state()["current"] and not check_mode and self._began_altered():
                self.note(altered=True)
            raise Refused(
                f"{self.name}: what is written here is not what would run: {'; '.join(faults)}, then run again"
            )
        return besides

    def _began_altered(self) -> bool:
        """Return whether the running process was started after others had changed its unit."""
        begun = int(systemd_unit.show(self.unit).get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        begun += time.time() - time.monotonic()
        files = [path for path in [self.unit_path, *systemd_unit.drop_ins(self.unit)] if path.exists()]
        return any(path.lstat().st_ctime <= begun for path in files if path.is_symlink() or path != self.unit_path)

    def reread(self) -> bool:
        """Make systemd reload its unit files if they changed since it read them; return whether it did.

        The process may have been started with a drop-in that was removed since.
        """
        live = systemd_unit.show(self.unit)
        if live.get("NeedDaemonReload") != "yes":
            return False
        if not all(Path(path).exists() for path in (live.get("DropInPaths") or "").split()):
            self.note(altered=True)
        systemd_unit.run("systemctl", "daemon-reload")
        return True

    def check_ports(self, ports: list[int]) -> None:
        """Raise `Refused` if a process outside this service listens on one of ``ports``."""
        for port in ports:
            if not 0 < port < 65536:
                raise Refused(f"{self.name}: {port} is no TCP port; choose one from 1 to 65535")
            holder = systemd_unit.port_holder(port, self.unit)
            if holder:
                raise Refused(f"{self.name}: port {port} is taken by {holder}; stop it or choose another port")

    def check_memory(self, limits: dict) -> None:
        """Raise `Refused` if the service uses more memory than its new limit: the kernel would kill it."""
        if not limits:
            return
        used, allowed = systemd_unit.memory_used(self.unit), systemd_unit.memory_mib(limits["memory_max"])
        if used > allowed:
            variable = f"{self.name.replace('-', '_')}_memory_max"
            raise Refused(
                f"{self.name}: {variable} is {limits['memory_max']} ({allowed:.0f} MiB on this host), but the service "
                f"now uses {used} MiB; raise it, or find out why the service needs so much"
            )

    def check(self, release: dict, files: list[dict], user: str | None, check_mode: bool) -> None:
        """Raise `Refused` if a program would reject one of ``files``, or systemd the unit of ``release``."""
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir="/run") as directory:
            stage = Path(directory)
            stage.chmod(0o755)
            for file in files:
                argv = file["validate"]
                if argv and not (check_mode and not all(Path(part).exists() for part in argv if part.startswith("/"))):
                    self._ask_program(argv, file, stage, user)
            text = systemd_unit.limited(self._on_new_program(release), release.get("limits", {}))
            complaint = systemd_unit.verify(self.unit, text, stage)
            # In check mode on a new host the program and the units of other roles do not exist yet.
            to_come = check_mode and complaint and re.search(r"is not executable|Unit \S+ not found", complaint)
            if complaint and not to_come:
                raise Refused(f"{self.name}: systemd refuses the unit: {complaint}")

    def try_out(self, release: dict, trials: list[dict]) -> None:
        """Run each trial in the sandbox of ``release``'s unit, as its user. Raises `Refused` with a trial's message.

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
        """Return the unit as if its links were switched already, so that systemd checks the new program."""
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
                capture_output=True, text=True, errors="replace", check=False, timeout=180, cwd="/",
                **unprivileged.identity(account),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(f"{self.name}: {argv[0]} could not check {file['path']}: {error}") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
            # An error of argparse comes after its usage, and after output of the program's imports.
            told = [line for line in said if re.match(r"[\w .-]+: error: ", line)]
            # amtool writes what is wrong to stdout, among what is right.
            failed = re.search(r" FAILED: (.+)", done.stdout, re.DOTALL)
            told = [line.strip() for line in failed[1].splitlines() if line.strip()] if failed else told
            said = [line.replace(str(staged), file["path"]) for line in told or said]
            raise Refused(f"{self.name}: {Path(argv[0]).name} refuses {file['path']}: {' | '.join(said[-3:])}")

    def put(self, release: dict, texts: dict | None = None) -> None:
        """Write every file, link and the unit of ``release``, each in one step.

        ``texts`` has the secrets by path. Without it the secrets on the disk stay, with the release's owner and mode.
        """
        self.keep(release)
        for file in [*release["files"], self._unit_file(release)]:
            write(Path(file["path"]), file["content"], int(file["mode"], 8), file["owner"], file["group"])
        for secret in release["secrets"]:
            text = self._today(secret) if texts is None else texts[secret["path"]]
            write(Path(secret["path"]), text, int(secret["mode"], 8), secret["owner"], secret["group"])
        for link in release["links"]:
            path = Path(link["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(link["target"])
            beside.replace(path)
        write(self.environment, environment_of(release), 0o600)
        # A reload applies the memory limit to running processes, but not the OOM score.
        systemd_unit.run("systemctl", "daemon-reload")
        if release.get("limits"):
            systemd_unit.score(self.unit)
        systemd_unit.run("systemctl", "enable", self.unit)

    def keep(self, release: dict) -> None:
        """Store ``release`` under its digest."""
        if release["secrets"]:
            self.keep_key()
        write(self.store / "releases" / f"{digest(release)}.json", json.dumps(release, indent=1), 0o600)

    def adopt(self, release: dict) -> None:
        """Record what runs as the current release: its record was lost, and nothing has to be written or restarted."""
        self.keep(release)
        self.note(current=digest(release))

    def take_away(self, release: dict, but: dict | None = None) -> None:
        """Remove the files and links of ``release`` that ``but`` does not have.

        A secret file stays as long as a kept release needs it, since its text is stored nowhere else; see `prune`.
        """
        stay = {entry["path"] for part in PLACES for entry in (but or {}).get(part, [])}
        for entry in [*release["files"], *release["links"]]:
            path = Path(entry["path"])
            if entry["path"] not in stay:
                if path.parent == UNITS and path.exists():  # such as a timer, which would keep running without its file
                    systemd_unit.run("systemctl", "stop", path.name, check=False, timeout=300)
                path.unlink(missing_ok=True)

    def store_proof(self, name: str, proof: dict) -> None:
        """Store the probes that verify a release, their time limit, and the conditions before its start.

        So a rollback to it can be verified too. A probe names the file of its secret, never the secret.
        """
        if self.proof_of(name) != proof:
            write(self.store / "probes" / f"{name}.json", json.dumps(proof), 0o600)

    def proof_of(self, name: str | None) -> dict:
        """Return ``{probes, before_start, start_timeout}`` of a release."""
        path = self.store / "probes" / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        return {"probes": [], "before_start": [], "start_timeout": None, **known}

    # -- stores in the earlier form -------------------------------------------------------------------------------

    def clean(self, plain: dict | None = None) -> None:
        """Remove secrets from releases and probes that were stored in the earlier form; see `_without_secrets`."""
        names = {}
        for path in sorted((self.store / "releases").glob("*.json")):
            old = json.loads(path.read_text())
            held = [file for file in old["files"] if private(file)]
            if "secrets" in old or not held:
                continue
            new = self._without_secrets(old, plain)
            proof = self.proof_of(path.stem)
            self.store_proof(digest(new), {**proof, "probes": [referring(probe, held) for probe in proof["probes"]]})
            self.keep(new)
            names[path.stem] = digest(new)
        if not names:
            return
        state = self.state()
        self.note(
            current=names.get(state["current"], state["current"]),
            failed=names.get(state["failed"], state["failed"]),
            verified=[names.get(name, name) for name in state["verified"]],
        )
        # Last: a run that is interrupted before this begins again with the same result.
        for old in names:
            for part in ("releases", "probes"):
                (self.store / part / f"{old}.json").unlink(missing_ok=True)

    def reload(self, release: dict, differences: list[dict]) -> bool:
        """Make the process read its live files again if one was written; return whether it was asked to.

        A program whose unit has no ExecReload notices changes itself.
        """
        written = {difference["what"] for difference in differences} - {str(self.unit_path), str(self.environment)}
        others = {entry["path"] for part in PLACES for entry in release[part] if not entry.get("live")}
        if "\nExecReload=" not in release["unit"] or not any(what.startswith("/") for what in written - others):
            return False
        systemd_unit.run("systemctl", "reload", self.unit)
        return True

    def stop(self) -> None:
        """Stop a release that never served and has no predecessor; its files stay for inspection."""
        systemd_unit.run("systemctl", "disable", "--now", self.unit, check=False)

    def start(self, conditions: list[dict] | None = None, regardless: bool = False) -> None:
        """Start the process with what is written; `look` reports whether it stays up.

        ``conditions`` are probes that must succeed after the old process has stopped and before the new one starts. If
        they do not in time, the process is started only with ``regardless``. If it does not serve then, the failed
        condition is the reason.
        """
        blocked = None
        if conditions:
            systemd_unit.run("systemctl", "stop", self.unit, check=False, timeout=300)
            blocked = probes.awaited(conditions, BEFORE_START_TIMEOUT)
        systemd_unit.run("systemctl", "reset-failed", self.unit, check=False)
        told_after = systemd_unit.journal_end()
        if regardless or not blocked:
            systemd_unit.run("systemctl", "restart", self.unit, check=False, timeout=300)
        # Read after the start, so that the stop and earlier restarts of the old process do not count against the new
        # one.
        self.note(
            since=time.monotonic(), told_after=told_after, restarts=self._restarts(), blocked=blocked, altered=False
        )

    def watch(self) -> None:
        """Wait for a process that this run did not start; earlier restarts do not count against it."""
        begun = int(systemd_unit.show(self.unit).get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        now = time.monotonic()
        told_after = time.time() - (now - begun if begun else 0)
        self.note(since=now, told_after=told_after, restarts=self._restarts(), blocked=None)

    def _restarts(self) -> int:
        return int(systemd_unit.show(self.unit).get("NRestarts") or 0)

    # -- from started to serving ----------------------------------------------------------------------------------

    def look(self, questions: list[dict], seconds: float, limit: float) -> dict:
        """Watch the service for up to ``seconds``, and at most until ``limit`` seconds after its start.

        Returns ready, dead, why, elapsed and, if it is not ready, its journal since the start.
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
            why = (dead or why) and (state["blocked"] or dead or why)
            elapsed = time.monotonic() - state["since"]
            if not why or dead or time.monotonic() >= end or elapsed >= limit:
                # If several workers report an end, its cause is far above the last line.
                count = END_LINES if dead or elapsed >= limit else SHOWN_LINES
                lines = systemd_unit.journal(self.unit, state["told_after"], count) if why else []
                return {
                    "ready": not why,
                    "dead": bool(dead),
                    "why": why,
                    "elapsed": round(elapsed, 1),
                    "journal": lines,
                }
            time.sleep(0.3)

    def _left(self, restarts: int) -> str | None:
        """Return how the process ended since ``restarts`` was counted, or None while it runs.

        An exit during the start is a verdict: waiting for systemd's next attempt would only hide it.
        """
        live = systemd_unit.show(self.unit)
        again = live.get("SubState") == "auto-restart" or int(live.get("NRestarts") or 0) > restarts
        if live.get("ActiveState") not in ("failed", "inactive") and not again:
            return None
        return f"its process left ({live.get('Result')}, status {live.get('ExecMainStatus')})"

    def confirm(self) -> None:
        """Record that the current release serves, and remove releases that are no longer needed."""
        state = self.state()
        verified = [*self._others(state), state["current"]]
        # A failed release is kept for inspection until a newer one serves.
        back = self._others(state) != state["verified"] and state["failed"] != state["current"]
        self.note(verified=verified[-KEPT:], failed=state["failed"] if back else None)
        self.prune()

    def _others(self, state: dict) -> list[str]:
        """Return the verified releases that differ from the current one in more than the values of its secrets."""
        return [name for name in state["verified"] if not self._same_but_secrets(name, state["current"])]

    def _same_but_secrets(self, one: str, other: str | None) -> bool:
        known = [self.release(name) for name in (one, other)]
        return one == other or (all(known) and but_secrets(known[0]) == but_secrets(known[1]))

    def served_last(self) -> bool:
        """Return whether the current release is the one that served last, whatever the values of its secrets are."""
        state = self.state()
        return bool(state["verified"]) and self._same_but_secrets(state["verified"][-1], state["current"])

    def prune(self) -> None:
        """Remove releases that are not kept, and builds that no kept release uses."""
        needed, gone = self._kept_and_gone()
        for directory in self.leftovers():
            shutil.rmtree(directory, ignore_errors=True)
        stay = {entry["path"] for release in needed.values() for part in PLACES for entry in release[part]}
        for secret in {secret["path"] for release in gone.values() for secret in release["secrets"]} - stay:
            Path(secret).unlink(missing_ok=True)
        for name in gone:
            (self.store / "releases" / f"{name}.json").unlink()
            (self.store / "probes" / f"{name}.json").unlink(missing_ok=True)

    def _kept_and_gone(self) -> tuple[dict, dict]:
        """Return the stored releases by name: (those that are kept, those that are no longer needed)."""
        state = self.state()
        kept = {*state["verified"], state["current"], state["failed"]}
        stored = {path.stem: self.release(path.stem) for path in (self.store / "releases").glob("*.json")}
        return {n: r for n, r in stored.items() if n in kept}, {n: r for n, r in stored.items() if n not in kept}

    def leftovers(self, wanted: list[dict] | None = None) -> list[Path]:
        """Return programs and environments to which neither a kept release nor one of ``wanted`` refers.

        They belong to releases that are not kept, or they were built for a release that was refused.
        """
        kept, gone = self._kept_and_gone()
        needed = [*kept.values(), *(wanted or [])]
        found = {Path(link["target"]) for release in gone.values() for link in release["links"]}
        targets = {Path(link["target"]) for release in needed for link in release["links"]} | set(
            map(Path, self.beside)
        )
        for parent in {target.parent for target in targets if target.parent.is_dir()}:
            found |= {place for place in parent.iterdir() if any((place / marker).is_file() for marker in BUILT)}
        # Services may share a build directory.
        targets |= linked(STORE.glob("*/releases/*.json"), but=self.store)
        return sorted(place for place in found - targets if place.is_dir() and not place.is_symlink())

    def earlier(self, to: str | None = None) -> str:
        """Return the verified release to go back to: ``to``, or the last one before the current.

        Raises `Refused` if there is none.
        """
        if not self.store.is_dir():
            present = sorted(path.name for path in self.store.parent.glob("*") if path.is_dir())
            raise Refused(f"there is no service {self.name} on this host; there are: {', '.join(present) or 'none'}")
        kept = self._others(self.state())
        if not kept:
            raise Refused(f"{self.name}: no earlier verified release is kept here, so there is nothing to go back to")
        if to and to not in kept:
            raise Refused(f"{self.name}: release {to} is not kept here; kept are: {', '.join(kept)}")
        return to or kept[-1]

    def back(self, to: str | None = None) -> str:
        """Restore the last verified release before the current one (or ``to``) and start it; return its name.

        If its secrets have changed since, its name changes too.
        """
        target, current = self.earlier(to), self.release(self.state()["current"])
        old, proof = self.renewed(self.release(target)), self.proof_of(target)
        self.put(old)
        self.store_proof(digest(old), proof)
        self.take_away(current, but=old)
        self.note(current=digest(old))
        # Starting is better than staying down: systemd retries, and what is missing may come back.
        self.start(proof["before_start"], regardless=True)
        return digest(old)

    def removable(self, purge: bool) -> bool:
        """Return whether `remove` would remove anything of the service."""
        return (
            self._own_unit()
            or any((self.store / "releases").glob("*.json"))
            or any(self._goes(entry, self._kept(purge)) for entry in self.state()["created"]["directories"])
        )

    def _own_unit(self) -> bool:
        return self.unit_path.exists() and not self.unit_path.is_symlink()

    def _kept(self, purge: bool) -> list[Path]:
        entries = self.state()["created"]["directories"]
        return [] if purge else [Path(entry["path"]) for entry in entries if entry["keep"]]

    @staticmethod
    def _goes(entry: dict, kept: list[Path]) -> bool:
        """Return whether a created directory is removed: a declared one without kept data, any other only if empty."""
        path = Path(entry["path"])
        if entry["declared"] and not any(data.is_relative_to(path) for data in kept):
            return path.exists()
        return path.is_dir() and not any(path.iterdir())

    def remove(self, purge: bool) -> bool:
        """Remove the service; return whether there was anything. Kept data stays unless ``purge``."""
        changed, kept, state = self.removable(purge), self._kept(purge), self.state()
        if self._own_unit():
            systemd_unit.run("systemctl", "disable", "--now", self.unit, check=False)
            systemd_unit.run("systemctl", "reset-failed", self.unit, check=False)
        elif state["current"]:
            # The link belongs to someone else, and disabling would remove it.
            systemd_unit.run("systemctl", "stop", self.unit, check=False, timeout=300)
        for path in (self.store / "releases").glob("*.json"):
            release = json.loads(path.read_text())
            self.take_away(release)
            for secret in release.get("secrets", []):
                Path(secret["path"]).unlink(missing_ok=True)
        if self._own_unit():
            self.unit_path.unlink()
            systemd_unit.run("systemctl", "daemon-reload")
        created = self._bequeath(state["created"])
        for entry in reversed(created["directories"]):
            if self._goes(entry, kept):
                shutil.rmtree(entry["path"], ignore_errors=True)
        left = [entry for entry in created["directories"] if Path(entry["path"]).exists()]
        data = any(entry["keep"] for entry in left)
        # Data without an owner would belong to the next user who gets the number.
        if created["user"] in accounts() and not data:
            if created.get("group", created["user"]) != created["user"]:
                # userdel also removes a user's own group of the same name, and this group existed before.
                systemd_unit.run("usermod", "--gid", "nogroup", created["user"], check=False)
            systemd_unit.run("userdel", created["user"], check=False)
        shutil.rmtree(self.store, ignore_errors=True)
        if data:
            # Kept data can still be purged later.
            self.note(created={**created, "directories": left})
        for path in (self.store.parent, self.store.parent.parent):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        return changed

    def _bequeath(self, created: dict) -> dict:
        """Pass what other services need on to the first of them; return what only this service uses."""
        own = {**created, "directories": list(created["directories"])}
        for path in sorted({*STORE.glob("*/state.json")} - {self.store / "state.json"}):
            heir = Service(path.parent.name)
            state = heir.state()
            user, needed = state["needs"]["user"], state["needs"]["directories"]
            heirs = {**state["created"], "directories": list(state["created"]["directories"])}
            left = [entry for entry in own["directories"] if _holds(entry["path"], needed)]
            heirs["directories"] = left + heirs["directories"]
            own["directories"] = [entry for entry in own["directories"] if entry not in left]
            if user and user == own["user"]:
                heirs |= {"user": user, "group": own.get("group", user)}
                own["user"] = None
            if heirs != state["created"]:
                heir.note(created=heirs)
        return own

    # -- user and directories of the service ----------------------------------------------------------------------

    def need(self, user: str | None, directories: list[dict]) -> None:
        """Record what the service uses, so that it stays when another service that created it is removed."""
        needs = {"user": user, "directories": sorted({entry["path"] for entry in directories})}
        if self.state()["needs"] != needs:
            self.note(needs=needs)

    def missing_user(self, user: str | None) -> bool:
        return bool(user) and user not in accounts()

    def check_accounts(self, entries: list[dict], user: str | None, groups: list[str]) -> None:
        """Raise `Refused` if the host lacks an owner or a group of ``entries``, or one of ``groups`` to join.

        ``user`` and the group of that name are created if they are missing, so they do not count.
        """
        for entry in entries:
            told = f"on this host, to which {entry['path']} is to belong; create it or name another"
            if entry["owner"] not in (user, "root") and entry["owner"] not in accounts():
                raise Refused(f"{self.name}: there is no user {entry['owner']} {told}")
            if entry["group"] not in (user, "root") and not has_group(entry["group"]):
                raise Refused(f"{self.name}: there is no group {entry['group']} {told}")
        missing = [name for name in groups if not has_group(name)]
        if missing:
            variable = f"{self.name.replace('-', '_')}_groups"
            raise Refused(
                f"{self.name}: there is no group {', '.join(missing)} on this host for the service to join; "
                f"create it, or take it out of {variable}"
            )

    def add_user(self, user: str, home: str) -> None:
        """Create the service's user in a group of the same name; an existing user is not recorded as created."""
        there = has_group(user)
        own = ["--gid", user] if there else ["--user-group"]
        systemd_unit.run(
            "useradd", "--system", *own, "--no-create-home", "--home-dir", home, "--shell", "/usr/sbin/nologin", user
        )
        self.note(created={**self.state()["created"], "user": user, "group": None if there else user})

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
        # Recorded first: an interrupted run must not leave a directory that is never removed.
        created = self.state()["created"]
        self.note(created={**created, "directories": created["directories"] + made})
        for parent in missing:
            parent.mkdir(mode=0o755)
        path.mkdir(exist_ok=True)
        path.chmod(int(entry["mode"], 8))
        shutil.chown(path, entry["owner"], entry["group"])


def _holds(path: str, needed: list[str]) -> bool:
    """Return whether a directory is one of ``needed`` or a parent of one."""
    return any(Path(one).is_relative_to(path) for one in needed)


def linked(releases: Iterable[Path], but: Path | None = None) -> set[Path]:
    """Return the directories to which the links of stored ``releases`` point, except those of the store ``but``."""
    files = [path for path in releases if but is None or path.parent.parent != but]
    return {Path(link["target"]) for path in files for link in json.loads(path.read_text())["links"]}


def in_use() -> set[Path]:
    """Return the directories to which stored releases of any service link, such as versions of a program."""
    return linked(STORE.glob("*/releases/*.json"))


def unit_text(release: dict) -> str:
    """Return the text of the unit file of a release."""
    return systemd_unit.limited(release["unit"], release.get("limits", {}))


def lines_of(text: str) -> list[str]:
    """Return the lines of a file of secrets; unlike `str.splitlines`, only newlines end a line."""
    return text.removesuffix("\n").split("\n") if text else []


def described(file: dict) -> dict:
    """Return path, owner, group and mode of a file."""
    return {key: file[key] for key in ("path", "mode", "owner", "group")}


def private(file: dict) -> bool:
    """Return whether only the owner can read a file: then it counts as a secret."""
    return not int(file["mode"], 8) & 0o077


def digest_before(files: list[dict], release: dict) -> str:
    """Return the earlier digest of ``release``, with secrets as ordinary ``files``; processes may still carry it."""
    return digest(
        {**release, "files": [{**described(file), "content": file["content"]} for file in files], "secrets": []}
    )


def referring(probe: dict, files: list[dict]) -> dict:
    """Return a probe of the earlier form with its key as a reference to the file in ``files``; {} if no file has it."""
    ((kind, options),) = ((kind, options) for kind, options in probe.items() if options)
    key = options.pop("bearer", None)
    for file in files if key else []:
        for line in file["content"].splitlines():
            name, _, value = line.partition("=")
            if value == key:
                return {kind: {**options, "bearer_file": file["path"], "bearer_variable": name}}
    return {} if key else {kind: options}


def environment_of(release: dict) -> str:
    """Return the text of the environment file that holds the release's digest."""
    return f"{systemd_unit.RELEASE_VARIABLE}={digest(release)}\n"


class Accounts:
    """The users that the host knows, from any source: a directory service does not list all of its users."""

    def __contains__(self, name: object) -> bool:
        try:
            return bool(name) and bool(pwd.getpwnam(str(name)))
        except KeyError:
            return False


def accounts() -> Accounts:
    return Accounts()


def has_group(name: str) -> bool:
    try:
        return bool(grp.getgrnam(name))
    except KeyError:
        return False


def attributes(path: Path) -> tuple[str, str, str] | None:
    """Return ``(mode, owner, group)`` as a playbook writes them, or None if the path does not exist."""
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
    """Write ``text`` to ``path`` in one step: a reader sees either the old file or the complete new one."""
    atomic_file.write(path, text, mode, owner, group)
