"""Measure a run of site.yml without changes against a pyinfra deploy that checks the same things.

One machine with the engine's light stand-in is converged. Each round then runs in turn: a bare SSH command (the floor),
site.yml, and pyinfra, and the same with a round-trip time of 20 ms. Then that machine goes, all machines are converged,
and site.yml and pyinfra run on them. The expected state for pyinfra is read from the finished machines: packages, the
services' users and directories, files with owner, mode and content, links, programs by checksum, units, and addresses
that answer.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import host, services
from lab.bed import Bed, Host
from lab.bench import PAGE
from lab.drill import light
from lab.host import CACHE, ROOT, Problem
from lab.latency import Link

MARK = "## A run without changes"
NEXT = "## What ai-server costs"
HERE = Path(__file__).parent / "pyinfra"
LOCK = HERE / "requirements.txt"
GROUPS = ["vllm", "ai_server", "monitoring"]
PACKAGES = ["ca-certificates", "logrotate", "python3-venv"]
ONE_WAY = 0.010  # seconds
NEAR, FAR = "0 ms", "20 ms"

# Measured once on a busy machine like this one; see the page.
MITOGEN = """
Mitogen 0.3.54 would halve the time: site.yml without changes took 28 s with `strategy: mitogen_linear` and 62 s without
it (one host, ansible-core 2.19, a busy machine, 2 runs each). It also runs with ansible-core 2.21. It is not an option
of this project:

- ansible-core deprecates every strategy that is not its own, and will remove them.
- Mitogen recognizes a module of Ansible's by the words `from ansible_collections.` or `from ansible.module_utils.` in
  its text. The modules here import relatively, so they fail (`/usr/bin/python: not found`); for the measurement a
  comment with these words was added to each.
- `engine_command` builds a tunnel from the options of Ansible's own SSH connection, which Mitogen replaces.
"""

# Runs on a machine and prints its actual state as JSON.
LOOK = r"""
import base64, glob, grp, hashlib, json, os, pathlib, pwd, re, stat
state = {"users": {}, "directories": {}, "files": [], "links": [], "programs": [], "units": [], "probes": []}
def about(path):
    seen = os.stat(path)
    mode = f"{stat.S_IMODE(seen.st_mode):o}"
    return {"path": path, "owner": pwd.getpwuid(seen.st_uid).pw_name, "group": grp.getgrgid(seen.st_gid).gr_name,
            "mode": mode}
for store in sorted(pathlib.Path("/var/lib/llm-server/services").iterdir()):
    current = json.loads((store / "state.json").read_text())["current"]
    release = json.loads((store / "releases" / f"{current}.json").read_text())
    name = re.search("^User=(.+)$", release["unit"], re.M)[1]
    user = pwd.getpwnam(name)
    state["users"][name] = {"name": name, "home": user.pw_dir, "shell": user.pw_shell}
    unit = f"/etc/systemd/system/{store.name}.service"
    paths = [unit, *(each["path"] for each in release["files"] + release["secrets"])]
    for path in paths:
        content = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
        state["files"].append({**about(path), "content": content})
    for path in map(os.path.dirname, paths + [each["path"] for each in release["links"]]):
        state["directories"][path] = about(path)
    for link in release["links"]:
        state["links"].append({"path": link["path"], "target": link["target"]})
    program = re.search("^ExecStart=(\S+)", release["unit"], re.M)[1]
    digest = hashlib.sha256(pathlib.Path(program).read_bytes()).hexdigest()
    state["programs"].append({"path": program, "sha256": digest})
    state["units"].append(store.name + ".service")
    probes = json.loads((store / "probes" / f"{current}.json").read_text())["probes"]
    state["probes"] += [each[kind]["url"] for each in probes for kind in ("http", "metric") if each.get(kind)]
for kind in ("users", "directories"):
    state[kind] = list(state[kind].values())
print(json.dumps(state))
"""


def pyinfra() -> Path:
    """Return the path of pyinfra, installed in its own environment in the cache."""
    folder = CACHE / "pyinfra" / host.digest([LOCK.read_text(), sys.version])
    with host.lock("pyinfra"):
        if not (folder / ".complete").exists():
            uv = str(Path(sys.executable).with_name("uv"))
            host.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode"]
            host.run([*sync, "--python", str(folder / "bin/python"), str(LOCK)], cure="check the network", tries=3)
            (folder / ".complete").touch()
    return folder / "bin/pyinfra"


class Site:
    """The finished machines, and the commands that are timed on them."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder, self.program = folder, pyinfra()
        offered = services.up()
        names = [f"bench-site-{number}" for number in range(1, hosts + 1)]
        self.bed = Bed("bench-site", names, GROUPS, light(offered))
        try:
            self._converge(offered, hosts)
        except BaseException:
            self.bed.down()
            raise

    def _converge(self, offered: dict, hosts: int) -> None:
        """Boot and converge the machines, and write what they have for the deploy of pyinfra."""
        self.bed.boot(offered)
        host.say(f"Converging {hosts} machines (usually {2 + hosts // 2} min) …")
        outcome = self.bed.converge({"rollout_batch": hosts})
        if outcome.code:
            raise Problem(f"The machines were not converged: {outcome.message}")
        for each in self.bed.hosts:
            (self.folder / f"{each.name}.json").write_text(json.dumps(self.state(each)))

    def state(self, there: Host) -> dict[str, Any]:
        """Return a machine's actual state, with each file's content in a file on this host."""
        state = json.loads(there.sh(f"python3 - <<'END-OF-FILE'\n{LOOK}\nEND-OF-FILE\n"))
        place = self.folder / there.name
        place.mkdir()
        for number, each in enumerate(state["files"]):
            source = place / str(number)
            source.write_bytes(base64.b64decode(each.pop("content")))
            each["source"] = str(source)
        return {**state, "packages": PACKAGES}

    def ask(self, hosts: int, ports: dict[str, int]) -> list[str]:
        """Write pyinfra's inventory of the first machines (their addresses or local `ports`); return the command."""
        lines = []
        for there in self.bed.hosts[:hosts]:
            reached, port = there.reached, ports.get(there.name)
            known = self.folder / f"{there.name}.known"
            key = Path(reached["known_hosts"]).read_text()
            known.write_text(key.replace(reached["address"], f"[127.0.0.1]:{port}") if port else key)
            lines.append(
                {
                    "name": there.name,
                    "ssh_hostname": "127.0.0.1" if port else reached["address"],
                    "ssh_port": port or reached["port"],
                    "ssh_user": reached["user"],
                    "ssh_key": reached["key"],
                    "ssh_known_hosts_file": str(known),
                    "ssh_strict_host_key_checking": "yes",
                    "state": json.loads((self.folder / f"{there.name}.json").read_text()),
                }
            )
        (self.folder / "machines.json").write_text(json.dumps(lines))
        return [str(self.program), "-y", "--sudo", str(HERE / "inventory.py"), str(HERE / "deploy.py")]

    def options(self, there: Host, port: int | None) -> list[str]:
        """Return ssh's options that check a machine's host key, also behind a port of this host."""
        options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={there.reached['known_hosts']}"]
        options += ["HostName=127.0.0.1", f"HostKeyAlias={there.reached['address']}"] if port else []
        return [word for option in options for word in ("-o", option)]

    def floor(self, port: int | None) -> list[str]:
        """Return a bare SSH command to the first machine."""
        there = self.bed.one
        reached = there.reached
        batch = ["-q", "-i", reached["key"], "-p", str(port or reached["port"]), "-o", "BatchMode=yes"]
        words = ["-o", "IdentitiesOnly=yes", *self.options(there, port)]
        return ["ssh", *batch, *words, f"{reached['user']}@{reached['address']}", "true"]

    def ansible(self, hosts: int, port: int | None) -> list[str]:
        """Return a command that runs site.yml on the first machines, all at once."""
        change: dict[str, Any] = {"rollout_batch": hosts}
        if port:
            change["ansible_port"] = port
            change["ansible_ssh_common_args"] = " ".join(self.options(self.bed.one, port))
        limit = ",".join(there.name for there in self.bed.hosts[:hosts])
        return self.bed.command(change, "--limit", limit)

    @contextlib.contextmanager
    def far(self) -> Iterator[int]:
        """Open a local port to the first machine with a round-trip time of 20 ms."""
        reached = self.bed.one.reached
        with Link((reached["address"], reached["port"]), ONE_WAY) as port:
            yield port


def timed(name: str, command: list[str], folder: Path) -> float:
    """Return the seconds that a command takes with its own SSH connections; raise Problem if it fails or changes
    something.
    """
    with tempfile.TemporaryDirectory(prefix="cp-") as sockets:
        own = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
            "BENCH_MACHINES": str(folder / "machines.json"),
        }
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        for socket in Path(sockets).iterdir():
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "machine"], capture_output=True)
    output = done.stdout + done.stderr
    if done.returncode or not unchanged(output):
        raise Problem(f"{name} failed or changed something: {' '.join(output.split())[-600:]}")
    host.say(f"  {name}: {seconds:.1f} s")
    return seconds


def unchanged(output: str) -> bool:
    """Return whether the output of Ansible or pyinfra reports no changes; True for ssh, which reports nothing."""
    recap = output.partition("PLAY RECAP")[2]
    if recap:
        return all("changed=0 " in line for line in recap.splitlines() if "ok=" in line)
    return "] Success" not in output.partition("--> Beginning operation run")[2].partition("--> Results")[0]


def run(repeats: int, hosts: int, writes: bool) -> str:
    """Measure `repeats` rounds and return the table; `writes` also puts it into the page.

    One machine is measured while no other one runs here.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    for count in (1, hosts) if hosts > 1 else (1,):
        with tempfile.TemporaryDirectory(prefix="bench-site-") as folder:
            site = Site(Path(folder), count)
            try:
                for number in range(repeats):
                    host.say(f"Round {number + 1} of {repeats}, {count} machine{'s' * (count > 1)} …")
                    measure(site, seconds, count)
            finally:
                site.bed.down()
    table = "\n".join(rows(seconds, hosts))
    if writes:
        write(part(table, repeats))
    return table


def measure(site: Site, seconds: dict[tuple[str, str], list[float]], hosts: int) -> None:
    """Run everything once and append the seconds by command and place."""

    def one(what: str, where: str, command: list[str]) -> None:
        seconds.setdefault((what, where), []).append(timed(f"{what}, {where}", command, site.folder))

    def both(where: str, count: int, port: int | None) -> None:
        one("site.yml", where, site.ansible(count, port))
        one("pyinfra", where, site.ask(count, {site.bed.one.name: port} if port else {}))

    if hosts > 1:
        both(f"{hosts} hosts", hosts, None)
        return
    one("one bare SSH command", NEAR, site.floor(None))
    both(NEAR, 1, None)
    with site.far() as port:
        one("one bare SSH command", FAR, site.floor(port))
        both(FAR, 1, port)


def rows(seconds: dict[tuple[str, str], list[float]], hosts: int) -> list[str]:
    """Return the lines of the table: medians, one column per place."""
    places = [NEAR, FAR, *([f"{hosts} hosts"] if hosts > 1 else [])]
    heads = [f"1 host, {NEAR}", f"1 host, {FAR}", *([f"{hosts} hosts, {NEAR}"] if hosts > 1 else [])]
    lines = [f"| {' | '.join(['what', *heads])} |", f"|{' --- |' * (1 + len(heads))}"]
    for what in dict.fromkeys(what for what, _ in seconds):
        found = [seconds.get((what, where), []) for where in places]
        cells = [f"{statistics.median(each):.1f} s" if each else "" for each in found]
        lines.append(f"| {' | '.join([what, *cells])} |")
    return lines


def part(table: str, repeats: int) -> str:
    """Return the section of the page."""
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[2]:.1f} at the end"
    version = LOCK.read_text().partition("pyinfra==")[2].split()[0]
    return (
        f"{MARK}\n\n"
        "Written by `make bench-site`. All of site.yml on finished machines with a light stand-in for the engine, and\n"
        f"a deploy of pyinfra {version} (`lab/pyinfra`) that finds the same packages, users, directories, files,\n"
        "links, programs, units and answers over HTTP as they are wanted. It does less: no validation of variables,\n"
        "no plan, no preflights, no completions by the models, no checklist measured from outside. 20 ms is the round\n"
        "trip of a link with that delay. All machines are on this host, which they share; one is measured alone.\n\n"
        f"{f'Medians of {repeats} rounds' if repeats > 1 else '1 round'} on {load}.\n\n{table}\n{MITOGEN}"
    )


def write(text: str) -> None:
    """Replace the section in the page; it stands before ai-server's."""
    before, _, rest = PAGE.read_text().partition(NEXT)
    kept = before.partition(MARK)[0].rstrip("\n")
    PAGE.write_text(f"{kept}\n\n{text}\n{NEXT}{rest}" if rest else f"{kept}\n\n{text}")
