"""What the laboratory needs from its host: programs, rights, disk space, and places for its files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".lab"
CACHE = Path(os.environ.get("LAB_CACHE") or "~/.cache/llm-server-lab").expanduser()
GIB = 1024**3
PAUSE = 5  # seconds before the network command is tried again


class Problem(Exception):
    """A problem that the user can fix; its text is one sentence with the cure. The command ends with exit code 2."""


def say(text: str) -> None:
    """Print progress to standard error: standard output is only for results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str, usually: str) -> Iterator[None]:
    """Print what is being done, how long that usually takes, and how long it took."""
    say(f"{what} (usually {usually}) …")
    start = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - start:.0f} s")


def run(
    argv: list[str], *, cure: str = "", env: dict[str, str] | None = None, cwd: Path | None = None, tries: int = 1
) -> str:
    """Run a command and return its standard output; `env` is added to the environment.

    Raises Problem with the last line of the command's error, and the caller's cure if given. `tries` above 1 is for
    commands that use the network and keep what they have downloaded.
    """
    variables = {**os.environ, **(env or {})}
    for left in reversed(range(tries)):
        done = subprocess.run(argv, capture_output=True, text=True, env=variables, cwd=cwd, check=False)
        if done.returncode == 0 or not left:
            break
        time.sleep(PAUSE)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise Problem(f"`{' '.join(argv[:3])} …` failed: {reason}" + (f"; {cure}" if cure else ""))
    return done.stdout


def digest(recipe: Any) -> str:
    """Return twelve hexadecimal digits that change when anything in the recipe (any JSON value) changes."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock, so that two commands, also of different clones, do not do the same work at once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def become_root(arguments: list[str]) -> None:
    """Continue as root, by sudo if the caller is not root: system containers need it."""
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise Problem("The laboratory needs root: run the same command as root, or install sudo.")
    kept = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(("LAB_", "DEMO_", "PATH", "LANG"))
    ]
    kept.append(f"LAB_CACHE={CACHE}")
    os.chdir(ROOT)
    os.execvp("sudo", ["sudo", *kept, sys.executable, "-m", "lab", *arguments])


def give_to_caller(path: Path) -> None:
    """Give a file of root to the user who called sudo, so that Ansible run by that user can read it."""
    if "SUDO_UID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def ssh_key() -> Path:
    """Return this clone's private key for all its machines; the first call creates it."""
    key = STATE / "ssh" / "id_ed25519"
    with lock("key"):
        if not key.exists():
            key.parent.mkdir(parents=True, exist_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laboratory", "-f", str(key)])
            for path in (STATE, key.parent, key, key.with_suffix(".pub")):
                give_to_caller(path)
    return key


def ensure_packages(programs: dict[str, str]) -> None:
    """Install the packages (values) whose programs (keys: a command or an absolute path) are missing."""
    missing = sorted(
        {pkg for name, pkg in programs.items() if not (Path(name).exists() if "/" in name else shutil.which(name))}
    )
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Problem(f"Missing here and not installable without apt: {', '.join(missing)}; install them by hand.")
    with lock("apt"), step(f"Installing {', '.join(missing)}", "30 s"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-q", "update"], env=quiet, cure="check the package sources and the network of this machine")
        run(
            ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", *missing],
            env=quiet,
            cure="repair apt on this machine and try again",
        )


def ensure_room(folder: Path, gib: float, purpose: str) -> None:
    """Fail early if less than `gib` GiB are free in a folder's file system."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        raise Problem(
            f"Not enough disk space for {purpose}: {folder} has {free:.1f} GiB free and {gib:g} GiB are needed; "
            f"free {gib - free:.1f} GiB there, or set LAB_CACHE to a larger disk."
        )


def ensure_port_free(address: str, port: int) -> None:
    """Fail if another program listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise Problem(
                f"Port {address}:{port} cannot be used here ({error.strerror}): "
                "stop the program that has it, or publish another port (the demo's: DEMO_PORT=8080 make demo)."
            ) from error
