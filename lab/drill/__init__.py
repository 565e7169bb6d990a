"""`make drill`: break running servers in every known way, and print a table of the results.

Six beds, each freshly created: a server with the real engine; one with the engine's light stand-in, for runs that are
interrupted again and again; a fleet of five; a lost machine and its replacement; a server and its monitoring server; a
virtual machine with its own kernel.
`make drill-quick` is the part that takes eight minutes, on one server with the light engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import textwrap
import time
from collections.abc import Callable
from typing import Any

from lab import host, qemu, services
from lab.bed import Bed
from lab.drill import cases, watched
from lab.drill.cases import Row, Stage
from lab.host import ROOT, STATE, Problem

PAGE = ROOT / "docs" / "drill.md"
KEPT = STATE / "drill.json"
Line = Callable[[Bed, Stage], Row]

CORRUPT = cases.broken_download("checksum", "a release with another checksum", "node_exporter")
TRUNCATED = cases.broken_download("truncated", "a release cut off on its way", "node_exporter")
ERROR_500 = cases.broken_download("500", "a mirror that answers 500", "500")
STALLED = cases.broken_download("stall", "a download that stalls", "node_exporter")
KILLS = (cases.killed("vllm"), cases.killed("vllm", child=True), *map(cases.killed, cases.UNITS[1:]))
HANGS = (cases.hung(), cases.hung(child=True))

SERVER: tuple[Line, ...] = (
    cases.fresh_with_apt_locked, cases.nothing_to_do, cases.bad_argument, cases.bad_adapter, cases.too_large,
    cases.port_taken, cases.wrong_vault_password, CORRUPT, TRUNCATED, ERROR_500, STALLED, cases.start_fails,
    cases.never_ready, cases.dies_at_first_completion, *KILLS, *HANGS, cases.busy, cases.budget, cases.incident,
    cases.full_disk, cases.loki_away, cases.canaries,
)  # fmt: skip
INTERRUPTED: tuple[Line, ...] = (
    cases.controller_killed, cases.connection_cut, cases.rebooted, cases.two_controllers, cases.lost_notes,
    cases.memory_short, cases.far_away,
)  # fmt: skip
FLEET: tuple[Line, ...] = (cases.one_bad_host, cases.unreachable_host)
MOVED: tuple[Line, ...] = (cases.restored_elsewhere,)
WATCHED: tuple[Line, ...] = (watched.engine_stopped, watched.stores_away, watched.host_gone)
VIRTUAL: tuple[Line, ...] = (cases.new_virtual_machine, cases.clock_jumps, cases.virtual_reboot)
QUICK: tuple[Line, ...] = (
    cases.fresh_with_apt_locked, cases.nothing_to_do, cases.far_away, cases.bad_argument, cases.too_large,
    cases.port_taken, cases.wrong_vault_password, CORRUPT, cases.never_ready, cases.dies_at_first_completion,
    *KILLS, HANGS[0], cases.busy, cases.incident, cases.full_disk, cases.memory_short, cases.canaries,
    cases.controller_killed,
)  # fmt: skip


def light(offered: dict[str, Any], build: str = "0.32.0") -> dict[str, Any]:
    """Return the variables that select a build of the engine's light stand-in."""
    return {
        "vllm_package": "vllm-light",
        "vllm_version": "0.32.0",
        "vllm_lock": "",
        "vllm_overrides": [],
        "vllm_build_mib": 200,
        "vllm_extra_packages": [offered["light_engine"][build]],
    }


def beds(offered: dict[str, Any], quick: bool) -> list[tuple[Bed, tuple[Line, ...], bool]]:
    """Return each bed with its lines, and whether the bed is converged before the first line."""
    often = {"ai_server_environment": {"RATE_LIMIT_PER_MINUTE": "60000"}, **cases.WATCHDOG}
    everything = ["vllm", "ai_server", "monitoring", "watchdog"]
    if quick:
        return [(Bed("quick", ["drill"], everything, {**light(offered), **often}), QUICK, False)]
    logs = {"promtail_journal_jobs": [{"job": "vllm", "unit": "vllm.service"}], "promtail_file_jobs": []}
    own = {**logs, "build_environment": {}, "vllm_start_timeout": 300, "swap_size_mib": 256}
    own["promtail_file_jobs"] = [{"job": "words", "path": f"{cases.WORDS}/*.log"}]
    fleet = [f"drill-{number}" for number in range(1, 6)]
    return [
        (Bed("server", ["drill"], everything, often), SERVER, False),
        (Bed("interrupted", ["drill"], everything, {**light(offered), **often}), INTERRUPTED, True),
        (Bed("fleet", fleet, ["vllm", "monitoring"], {**light(offered), **logs}), FLEET, True),
        (Bed("moved", ["drill-lost", "drill-new"], [*everything, "backup"], {**light(offered), **often}), MOVED, False),
        (
            Bed(
                "watched",
                [watched.SERVED, watched.WATCHING],
                ["monitoring"],
                {**light(offered), **watched.VARIABLES},
                members={"vllm": [watched.SERVED], "watch": [watched.WATCHING]},
            ),
            WATCHED,
            True,
        ),
        (
            Bed(
                "virtual",
                ["drill-virtual"],
                ["vllm", "monitoring", "swap"],
                {**light(offered), **own},
                kind=qemu,
            ),
            VIRTUAL,
            False,
        ),
    ]


def run(quick: bool, seed: int | None, on: list[str], only: list[str]) -> int:
    """Drill, print the table, and write the page once every bed has been drilled; return the exit code.

    ``on`` lists the beds (empty: all), ``only`` the lines. The results of complete beds are kept beside the machines'
    keys, so that the page stays complete when one bed is drilled again.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    host.say(f"Seed {seed}: SEED={seed} repeats the random choices.")
    offered = services.up()
    stage = Stage({**offered, "light_engine": {part: light(offered, f"0.32.0+{part}") for part in ("hangs", "dies")}},
                  random.Random(seed), quick)  # fmt: skip
    begin, rows = time.monotonic(), []
    every = beds(offered, quick)
    for bed, lines, converged in every:
        wanted = [line for line in lines if not only or line.__name__ in only]
        if wanted and (not on or bed.name in on):
            since = time.monotonic()
            found = drill(bed, wanted, converged or wanted[0] is not lines[0], stage)
            rows += found
            if not quick:
                keep(bed.name, lines, dict(zip(wanted, found, strict=True)), seed, time.monotonic() - since)
    took = time.monotonic() - begin
    print(table(rows))
    failed = sum(not row.good for row in rows)
    print(f"Seed {seed}, {took / 60:.0f} min.")
    print(f"{len(rows) - failed} passed, {failed} failed")
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    # A bed that was drilled alone, without stored results of the others, makes no page.
    if not quick and known and (not on or known.keys() >= {bed.name for bed, *_ in every}):
        PAGE.write_text(page(known, [bed.name for bed, *_ in every]))
    return int(failed > 0)


def keep(name: str, lines: tuple[Line, ...], found: dict[Line, Row], seed: int, took: float) -> None:
    """Store a bed's results; a line that was drilled again replaces its earlier result."""
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    before = known.get(name, {"rows": {}, "minutes": 0})
    rows = before["rows"] | {line.__name__: dataclasses.asdict(row) for line, row in found.items()}
    if rows.keys() != {line.__name__ for line in lines}:
        return
    minutes = round(took / 60) if len(found) == len(lines) else before["minutes"]
    rows = {line.__name__: rows[line.__name__] for line in lines}
    KEPT.write_text(json.dumps({**known, name: {"seed": seed, "minutes": minutes, "rows": rows}}, indent=1))


def drill(bed: Bed, lines: list[Line], converged: bool, stage: Stage) -> list[Row]:
    """Recreate a bed, drill its lines, and remove the machines."""
    rows: list[Row] = []
    host.say(f"Bed {bed.name}: {', '.join(each.name for each in bed.hosts)}; {len(lines)} lines")
    try:
        bed.boot(stage.offered)
        bed.prepare()
        for each in bed.hosts:  # a job of the log shipper reads it
            each.sh(f"mkdir -p {cases.WORDS} && echo words >> {cases.WORDS}/words.log")
        if converged:
            outcome = bed.converge()
            if outcome.code:
                raise Problem(f"{bed.name} does not converge: {cases.sentence(outcome, 400)}")
            cases.watch(bed)
        for line in lines:
            begin = time.monotonic()
            try:
                row = line(bed, stage)
            except Problem as problem:
                row = Row(line.__doc__ or line.__name__, "the line to finish", str(problem), False)
            rows.append(row)
            verdict = "ok" if row.good else "FAILED"
            host.say(f"  {verdict:<7}{time.monotonic() - begin:4.0f} s  {row.done}: {row.seen}")
            if line in (cases.fresh_with_apt_locked, cases.new_virtual_machine):
                cases.watch(bed)
    finally:
        bed.down()
    return rows


def table(rows: list[Row]) -> str:
    """Return the table for a terminal."""
    widths = (34, 34, 60)
    lines = []
    for row in rows:
        cells = [textwrap.wrap(text, width) for text, width in zip(cells_of(row)[:3], widths, strict=True)]
        height = max(map(len, cells))
        silent = "" if row.silent is None else f"{row.silent:.1f} s"
        for number in range(height):
            parts = [
                (cell[number] if number < len(cell) else "").ljust(w) for cell, w in zip(cells, widths, strict=True)
            ]
            tail = f"{silent:>7}  {'ok' if row.good else 'FAILED'}" if number == 0 else ""
            lines.append("  ".join([*parts, tail]).rstrip())
    head = "  ".join(text.ljust(width) for text, width in zip(("done", "expected", "seen"), widths, strict=True))
    return "\n".join(["", f"{head}  silent", "-" * (sum(widths) + 22), *lines, ""])


def cells_of(row: Row) -> list[str]:
    """Return the cells of a line."""
    return [row.done, row.expected, row.seen, "" if row.silent is None else f"{row.silent:.1f} s"]


def page(known: dict[str, dict[str, Any]], beds: list[str]) -> str:
    """Return the text of docs/drill.md from the results of the beds that have been drilled."""
    found = [known[name] for name in beds if name in known]
    missing = [name for name in beds if name not in known]
    lines = ["| done | expected | seen | not answering | |", "| --- | --- | --- | --- | --- |"]
    for row in (Row(**row) for bed in found for row in bed["rows"].values()):
        cells = [cell.replace("|", "\\|") for cell in cells_of(row)]
        lines.append(f"| {' | '.join(cells)} | {'ok' if row.good else '**failed**'} |")
    seeds = sorted({bed["seed"] for bed in found})
    about = textwrap.fill(
        "Written by `make drill`, which does all this to machines of the laboratory: a server with the real engine on "
        "the processor; one with the engine's light stand-in, for runs that are interrupted again and again; a fleet "
        "of five; a lost machine and its replacement; a server and its monitoring server; and a virtual machine with "
        "its own kernel. "
        "Meanwhile the server gets four requests for one token per second; *not answering* is how long it answered "
        "none. `make drill-quick` is what fits into eight "
        f"minutes. `SEED={seeds[0]}` repeats the random choices of this page.",
        118,
    )
    minutes = sum(bed["minutes"] for bed in found)
    machine = f"{os.cpu_count()} processors, {minutes} minutes."
    if missing:
        machine += f" Not on this page, since it was not drilled on that machine: {', '.join(missing)}."
    return f"# The drill\n\n{about}\n\n{machine}\n\n" + "\n".join(lines) + "\n"
