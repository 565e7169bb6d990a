"""The laboratory's commands: `python -m lab --help`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lab import (
    bench,
    bench_relay,
    bench_site,
    builds,
    demo,
    demo_gcp,
    drill,
    exporter_repository,
    host,
    image,
    llama_cpp,
    machine,
    model,
    nvidia_repository,
    pictures,
    qemu,
    services,
)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="boot a machine (or find it running) and print how it is reached, as JSON")
    up.add_argument("name")
    up.add_argument("--platform", default="debian12", help=f"{', '.join(image.PLATFORMS)} (default debian12)")
    up.add_argument("--shm", default="1g", help="size of /dev/shm; vLLM needs at least 160 MiB free (default 1g)")
    up.add_argument("--virtual", action="store_true", help="a virtual machine with its own kernel, slower")
    up.add_argument("--publish", action="append", default=[], metavar="ADDRESS:HOST_PORT:PORT")

    down = commands.add_parser("down", help="remove a machine and its disk")
    down.add_argument("name", nargs="?")
    down.add_argument("--all", action="store_true", help="every machine of this clone")

    restart = commands.add_parser("restart", help="reboot a machine")
    restart.add_argument("name")

    commands.add_parser("list", help="print this clone's machines, as JSON")

    ssh = commands.add_parser("ssh", help="run a command on a machine, or open a shell")
    ssh.add_argument("name")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")

    build = commands.add_parser("build", help="build released programs from their Go modules; prints them as JSON")
    build.add_argument("names", nargs="*", metavar="NAME[@VERSION]")

    bench = commands.add_parser("bench", help="time the roles beside the floor and write docs/benchmarks.md")
    bench.add_argument("--repeats", type=int, default=5)

    relay = commands.add_parser("bench-relay", help="time ai-server beside nginx, on this host (a minute)")
    relay.add_argument("--repeats", type=int, default=3)
    relay.add_argument("--application", type=Path, default=host.ROOT / "ai_server", help="default: this one's")
    relay.add_argument("--nginx", help="path of nginx if it is not in PATH")
    relay.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")

    bench_site = commands.add_parser("bench-site", help="time a run of site.yml without changes beside one of pyinfra")
    bench_site.add_argument("--repeats", type=int, default=3)
    bench_site.add_argument("--hosts", type=int, default=10)
    bench_site.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")

    drilled = commands.add_parser("drill", help="break servers in every known way and print the results")
    drilled.add_argument("--quick", action="store_true", help="what fits into eight minutes")
    drilled.add_argument("--seed", type=int, help="repeat the random choices of an earlier drill")
    drilled.add_argument(
        "--bed", nargs="*", default=[], help="these beds: server, interrupted, fleet, moved, watched, virtual"
    )
    drilled.add_argument("--only", nargs="*", default=[], metavar="LINE", help="these lines, by the names in lab/drill")

    seen = commands.add_parser("pictures", help="look at the dashboards with a headless browser; list the problems")
    seen.add_argument("url", nargs="?", help="of a VictoriaMetrics; without it, one with figures of a stand-in")
    seen.add_argument("--minutes", type=int, default=10, help="how far back to look (default 10)")
    seen.add_argument("--has", action="append", default=[], help="something that panels need, and that is there")
    seen.add_argument("--has-all", action="store_true", help="whatever panels need is there")
    seen.add_argument("--write", type=Path, metavar="FOLDER", help="keep the pictures there")

    shared = commands.add_parser(
        "services", help="the machine with the mirror and the stand-ins of Loki and the model hub"
    )
    shared.add_argument("action", choices=["up", "down", "show"])

    commands.add_parser("nvidia", help="make the stand-ins of NVIDIA's repositories in the mirror, and describe them")

    llama = commands.add_parser("llama-cpp", help="create the llama.cpp source archive in the mirror, and describe it")
    llama.add_argument("--program", action="store_true", help="also a release archive, built here (12 minutes of CPU)")

    tiny = commands.add_parser("model", help="make the tiny model and its adapters in a folder")
    tiny.add_argument("folder", type=Path)
    tiny.add_argument("--misfits", action="store_true", help="also adapters that the model must refuse")

    for name, description in {
        "demo": "boot a machine, converge it, show it serving",
        "demo-gcp": "provision on a loopback Compute API, serve, stop, start, decommission",
    }.items():
        shown = commands.add_parser(name, help=description)
        shown.add_argument("arguments", nargs=argparse.REMAINDER, help="further words for ansible-playbook")
    commands.add_parser("demo-down", help="remove what the demo made")
    commands.add_parser("clean", help="remove this clone's machines, and the cache of downloads, builds and images")
    return top


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code, 2 for a problem that the user can fix."""
    options = parser().parse_args(arguments)
    try:
        if options.command not in ("model", "bench-relay"):
            host.become_root(arguments)
        os.umask(0o022)  # the machines' users read the cache too
        result = act(options)
    except host.Problem as problem:
        host.say(f"error: {problem}")
        return 2
    if isinstance(result, int):
        return result
    if result is not None:
        print(json.dumps(result, indent=2))
    return 0


def kind_of(name: str) -> ModuleType:
    """Return the module that manages the machine of that name."""
    return qemu if name in qemu.names() else machine


def act(options: argparse.Namespace) -> Any:
    """Carry out one command; returns what to print as JSON, or an exit code."""
    match options.command:
        case "up":
            if options.virtual:
                return qemu.up(options.name, options.platform)
            return machine.up(options.name, options.platform, options.shm, options.publish)
        case "restart":
            return kind_of(options.name).restart(options.name)
        case "list":
            return [kind_of(name).describe(name) for name in machine.names() + qemu.names()]
        case "ssh":
            words = options.words[1:] if options.words[:1] == ["--"] else options.words
            return subprocess.run(kind_of(options.name).ssh_command(options.name, words), check=False).returncode
        case "down":
            if options.all == bool(options.name):
                raise host.Problem("Say which machine to remove: `python -m lab down NAME`, or `--all`.")
            for name in machine.names() + qemu.names() if options.all else [options.name]:
                kind_of(name).down(name)
            return None
        case "bench":
            print(bench.run(options.repeats))
            return 0
        case "bench-site":
            print(bench_site.run(options.repeats, options.hosts, options.write))
            return 0
        case "pictures":
            problems = pictures.check_and_draw(options)
            print("\n".join(problems) or "All panels show data.")
            return int(bool(problems))
        case "bench-relay":
            print(bench_relay.run(options.repeats, options.application, options.nginx, options.write))
            return 0
        case "drill":
            return drill.run(options.quick, options.seed, options.bed, options.only)
        case "build":
            return builds.ensure(options.names)
        case "model":
            return model.make(options.folder, options.misfits)
        case "nvidia":
            return {**nvidia_repository.ensure(), "exporter": exporter_repository.ensure()}
        case "llama-cpp":
            return llama_cpp.ensure(options.program)
        case "demo":
            return demo.up(options.arguments)
        case "demo-gcp":
            return demo_gcp.run(options.arguments)
        case "demo-down":
            return demo.down()
        case "clean":
            for name in machine.names() + qemu.names():
                kind_of(name).down(name)
            return image.clean()
        case "services":
            return {"up": services.up, "down": services.down, "show": services.describe}[options.action]()
        case unknown:
            raise AssertionError(unknown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
