"""What is checked before a release is written: its unit, ports, memory, files, and trials in its sandbox."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from .. import unprivileged
from . import account, store, systemd_unit
from .description import Refused
from .store import Service, write

RUNTIME_UNITS = Path("/run/systemd/system")
TRIAL_TIMEOUT = 900  # seconds: the longest trial compiles for minutes


def altered(service: Service, release: dict) -> tuple[list[str], list[str]]:
    """Return how others changed the unit of ``release``: (changes that must be refused, mere additions)."""
    faults, besides = [], []
    places = systemd_unit.unit_places()
    above = places[: places.index(str(store.UNITS))] if str(store.UNITS) in places else []
    for path in [service.unit_path, *(Path(place) / service.unit for place in above)]:
        if path.is_symlink() and str(path.readlink()) == "/dev/null":
            faults.append(f"{path} masks the unit, so somebody keeps it from starting; systemctl unmask {service.unit}")
        elif path.is_symlink():
            faults.append(f"{path} is a link to {path.readlink()}, a unit of somebody else; remove the link")
        elif path != service.unit_path and path.exists():
            faults.append(f"{path} takes the place of the unit; remove it")
    for path in systemd_unit.drop_ins(service.unit):
        changed = systemd_unit.changed_directives(release["unit"], path.read_text(errors="replace"))
        if changed:
            faults.append(f"{path} changes {', '.join(changed)} of {service.unit}; take that out of it")
        else:
            besides.append(f"{path} adds to {service.unit}")
    return faults, besides


def check_unit(service: Service, release: dict, check_mode: bool) -> list[str]:
    """Raise `Refused` if others changed what the unit of ``release`` says; return what they only added."""
    faults, besides = altered(service, release)
    if faults:
        if service.state()["current"] and not check_mode and _began_altered(service):
            service.note(altered=True)
        raise Refused(
            f"{service.name}: what is written here is not what would run: {'; '.join(faults)}, then run again"
        )
    return besides


def _began_altered(service: Service) -> bool:
    """Return whether the running process was started after others had changed its unit."""
    begun = int(systemd_unit.show(service.unit).get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    begun += time.time() - time.monotonic()
    files = [path for path in [service.unit_path, *systemd_unit.drop_ins(service.unit)] if path.exists()]
    return any(path.lstat().st_ctime <= begun for path in files if path.is_symlink() or path != service.unit_path)


def reread(service: Service) -> bool:
    """Make systemd reload its unit files if they changed since it read them; return whether it did.

    The process may have been started with a drop-in that was removed since.
    """
    live = systemd_unit.show(service.unit)
    if live.get("NeedDaemonReload") != "yes":
        return False
    if not all(Path(path).exists() for path in (live.get("DropInPaths") or "").split()):
        service.note(altered=True)
    systemd_unit.run("systemctl", "daemon-reload")
    return True


def outdated(service: Service) -> bool:
    """Return whether the unit's files changed since systemd read them."""
    return systemd_unit.show(service.unit).get("NeedDaemonReload") == "yes"


def check_conflicts(conflicts: list[dict]) -> None:
    """Raise `Refused` if one of the services ``conflicts`` runs; each has a name and a reason."""
    for other in conflicts:
        if systemd_unit.show(f"{other['name']}.service").get("ActiveState") == "active":
            raise Refused(f"{other['name']} runs on this host, and {other['reason']}")


def check_ports(service: Service, ports: list[int]) -> None:
    """Raise `Refused` if a process outside this service listens on one of ``ports``."""
    for port in ports:
        if not 0 < port < 65536:
            raise Refused(f"{service.name}: {port} is no TCP port; choose one from 1 to 65535")
        holder = systemd_unit.port_holder(port, service.unit)
        if holder:
            raise Refused(f"{service.name}: port {port} is taken by {holder}; stop it or choose another port")


def check_memory(service: Service, limits: dict) -> None:
    """Raise `Refused` if the service uses more memory than its new limit: the kernel would kill it."""
    if not limits:
        return
    used, allowed = systemd_unit.memory_used(service.unit), systemd_unit.memory_mib(limits["memory_max"])
    if used > allowed:
        variable = f"{service.name.replace('-', '_')}_memory_max"
        raise Refused(
            f"{service.name}: {variable} is {limits['memory_max']} ({allowed:.0f} MiB on this host), but the service "
            f"now uses {used} MiB; raise it, or find out why the service needs so much"
        )


def check_times(service: Service, timer: dict, variable: str | None) -> None:
    """Raise `Refused` if systemd does not understand an OnCalendar of ``timer``, which ``variable`` sets."""
    times = (timer.get("Timer") or {}).get("OnCalendar", [])
    for when in times if isinstance(times, list) else [times]:
        if systemd_unit.run("systemd-analyze", "calendar", "--", str(when), check=False).returncode:
            named = variable or f"{service.name}: OnCalendar of the timer"
            raise Refused(f'{named} is {when}; set a calendar expression of systemd, such as "*-*-* 03:30:00"')


def check(service: Service, release: dict, files: list[dict], user: str | None, check_mode: bool) -> None:
    """Raise `Refused` if a program would reject one of ``files``, or systemd the unit of ``release``."""
    with tempfile.TemporaryDirectory(prefix=f".{service.name}-", dir="/run") as directory:
        stage = Path(directory)
        stage.chmod(0o755)
        for file in files:
            if file.get("live"):  # a program that checks another file finds the new one next to it
                _stage(file, stage, user)
        for file in files:
            argv = [_on_new_program(release, part) for part in file["validate"] or []]
            if argv and not (check_mode and not all(Path(part).exists() for part in argv if part.startswith("/"))):
                _ask_program(service, argv, file, stage, user)
        text = systemd_unit.limited(_on_new_program(release, release["unit"]), release.get("limits", {}))
        complaint = systemd_unit.verify(service.unit, text, stage)
        if release.get("timer") and not complaint:
            (stage / service.unit).write_text(text)
            complaint = systemd_unit.verify(service.timer, release["timer"], stage)
        # In check mode on a new host the program and the units of other roles do not exist yet.
        to_come = check_mode and complaint and re.search(r"is not executable|Unit \S+ not found", complaint)
        if complaint and not to_come:
            raise Refused(f"{service.name}: systemd refuses the unit: {complaint}")


def try_out(service: Service, release: dict, trials: list[dict]) -> None:
    """Run each trial in the sandbox of ``release``'s unit, as its user. Raises `Refused` with a trial's message.

    A trial has ``argv``, in which ``%s`` stands for a file with the text of its ``script``.
    """
    with tempfile.TemporaryDirectory(prefix=f".{service.name}-", dir="/run") as directory:
        stage = Path(directory)
        stage.chmod(0o755)
        for trial in trials:
            script, output = stage / "trial", stage / "output"
            write(script, trial["script"], 0o644)
            argv = [_on_new_program(release, word).replace("%s", str(script)) for word in trial["argv"]]
            unit = _on_new_program(release, release["unit"])
            _try(service, systemd_unit.in_sandbox(unit, argv, output, TRIAL_TIMEOUT), output)


def _try(service: Service, text: str, output: Path) -> None:
    unit = f"{service.name}-trial.service"
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
        raise Refused(f"{service.name}: {said.strip().splitlines()[-1]}")


def _on_new_program(release: dict, text: str) -> str:
    """Return ``text`` as if the links of ``release`` were switched already, so that the new program is meant."""
    for link in release["links"]:
        text = text.replace(f"{link['path']}/", f"{link['target']}/")
    return text


def _stage(file: dict, stage: Path, user: str | None) -> Path:
    """Write a file below ``stage`` so that only ``user`` can read it; return its path."""
    staged = stage / Path(file["path"]).name
    staged.touch(mode=0o600)
    unprivileged.own(staged, _account(user))
    staged.write_text(file["content"])
    return staged


def _account(user: str | None) -> str | None:
    """Return ``user`` if the account exists; in check mode on a new host it does not."""
    return user if user in account.accounts() else None


def _ask_program(service: Service, argv: list[str], file: dict, stage: Path, user: str | None) -> None:
    staged = _stage(file, stage, user)
    try:
        done = subprocess.run(
            [part.replace("%s", str(staged)) for part in argv],
            capture_output=True, text=True, errors="replace", check=False, timeout=180, cwd="/",
            **unprivileged.identity(_account(user)),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{service.name}: {argv[0]} could not check {file['path']}: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        # An error of argparse comes after its usage, and after output of the program's imports.
        told = [line for line in said if re.match(r"[\w .-]+: error: ", line)]
        # amtool writes what is wrong to stdout, among what is right.
        failed = re.search(r" FAILED: (.+)", done.stdout, re.DOTALL)
        told = [line.strip() for line in failed[1].splitlines() if line.strip()] if failed else told
        said = [line.replace(str(staged), file["path"]) for line in told or said]
        raise Refused(f"{service.name}: {Path(argv[0]).name} refuses {file['path']}: {' | '.join(said[-3:])}")
