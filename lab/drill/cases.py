"""What is done to a server, what must happen, and what was measured: one function per line of the table."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import builds, machine, playbook
from lab.bed import CALLER, ENGINE_KEY, HOME, Bed, Host
from lab.host import ROOT, Problem
from lab.latency import Link
from lab.playbook import Outcome

BASE = "lab/tiny-llama"
OLDER = builds.older("node_exporter")  # the release of the broken downloads
WORDS = "/var/log/drill"  # of the virtual machine: log files here show whether a line is sent twice
COUNT_REQUESTS = (
    f"import glob, json; print(sum(json.load(open(path))['asked'] for path in glob.glob('{HOME}/caller-*.json')))"
)
UNITS = ("vllm", "ai-server", "node_exporter", "promtail")
JUMP = 540  # seconds; Loki and its stand-in refuse lines that are ten minutes ahead
BACK_WITHIN = 30  # seconds until a killed service answers again; a real engine loads its model in that time
ENGINE_BACK_WITHIN = 180
HUNG = 15  # seconds until a bed's watchdog considers the engine hung
HEALED_WITHIN = 60  # seconds after that limit
CALLERS = 16
INCIDENT = "playbooks/incident.yml"
HOUSEKEEPING = "playbooks/housekeeping.yml"
ROOM_MIB = 32  # free space of the disk before it is filled
MEMORY_MIB = 700  # of a machine with the light engine while a program exhausts its memory
ALL_MEMORY_MIB = 1 << 30  # more than any host has
WATCHDOG = {
    "watchdog_services": [
        {
            "unit": "vllm.service",
            "health": "http://127.0.0.1:8001/health",
            "metrics": "http://127.0.0.1:8001/metrics",
            "silent_after": HUNG,
            "stalled_after": HUNG,
        }
    ],
    "watchdog_interval": 2,
    "watchdog_restart_pause": 5,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; `silent` is the seconds without an answer from the server, None if nobody asked it."""

    done: str
    expected: str
    seen: str
    good: bool
    silent: float | None = None


@dataclass(frozen=True)
class Stage:
    """What all lines share: the laboratory's services, the random generator, and whether it is the quick drill."""

    offered: dict[str, Any]
    random: random.Random
    quick: bool

    @property
    def mirror(self) -> str:
        """Return the URL of the laboratory's mirror."""
        return self.offered["mirror"]


def sentence(outcome: Outcome, length: int = 160) -> str:
    """Return a run's last message, on one line."""
    text = " ".join(outcome.message.split()) or f"exit code {outcome.code}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


class Silence:
    """Measure how long a machine's server does not answer while something is done to it."""

    def __init__(self, there: Host) -> None:
        self.there = there
        self.before = there.watched()["silent"]

    def seconds(self) -> float:
        """Return the seconds without an answer since the beginning."""
        return round(self.there.watched()["silent"] - self.before, 1)


def refused(bed: Bed, done: str, change: dict[str, Any], message: str) -> Row:
    """A change that cannot work: it is refused with an error, and the same processes go on serving."""
    before, silence = bed.one.services(), Silence(bed.one)
    outcome = bed.converge(change)
    after, silent = bed.one.services(), silence.seconds()
    untouched = before == after
    good = outcome.code != 0 and message in outcome.message and untouched and silent == 0
    seen = sentence(outcome) if untouched else f"services changed; {sentence(outcome)}"
    return Row(done, "refused with the cause; no process is touched", seen, good, silent)


def rolls_back(bed: Bed, done: str, change: dict[str, Any], message: str) -> Row:
    """A start that fails: the previous release serves again, and the failed one is kept for inspection."""
    before, silence = bed.one.services()["vllm"], Silence(bed.one)
    outcome = bed.converge(change)
    after = bed.one.services()["vllm"]
    kept = after["failed"] is not None
    back = after["written"] == before["written"] == after["running"]
    good = outcome.code != 0 and message in outcome.message and "serves again" in outcome.message and back and kept
    expected = "the previous release serves again, the cause is named, the failed one is kept"
    answers = bed.one.watched()["now"]
    return Row(done, expected, sentence(outcome), good and answers, silence.seconds())


# -- a single run ----------------------------------------------------------------------------------------------------


def fresh_with_apt_locked(bed: Bed, stage: Stage) -> Row:
    """The first run on a new machine while unattended-upgrades holds apt's lock for minutes."""
    seconds = 20 if stage.quick else 300
    program = (
        "import fcntl, time\\nh = open('/var/lib/dpkg/lock-frontend', 'w')\\n"
        f"fcntl.lockf(h, fcntl.LOCK_EX)\\ntime.sleep({seconds})"
    ).replace("\\n", "\n")
    bed.one.put(program, "/run/drill/lock.py")
    bed.one.sh("systemd-run --quiet --unit drill-lock python3 /run/drill/lock.py")
    begin = time.monotonic()
    outcome = bed.converge()
    took = time.monotonic() - begin
    good = outcome.code == 0 and took > seconds and not bed.one.astray()
    seen = f"serving after {took:.0f} s" if outcome.code == 0 else sentence(outcome)
    return Row(f"a new machine, apt's lock held for {seconds} s", "waits, then serves", seen, good)


def nothing_to_do(bed: Bed, stage: Stage) -> Row:
    """A run without changes."""
    before, silence = bed.one.services(), Silence(bed.one)
    forget_requests(stage)
    begin = time.monotonic()
    outcome = bed.converge()
    took, asked = time.monotonic() - begin, len(requests(stage, bed.one))
    good = outcome.code == 0 and not outcome.changed and not asked and bed.one.services() == before
    seen = f"changed={len(outcome.changed)}, {asked} requests, {took:.0f} s"
    return Row("a run without a change", "changed=0, no request, no restart", seen, good, silence.seconds())


def forget_requests(stage: Stage) -> None:
    """Clear the mirror's record of requests."""
    urllib.request.urlopen(urllib.request.Request(f"{stage.mirror}/requests", method="DELETE"), timeout=10).close()


def requests(stage: Stage, there: Host) -> list[str]:
    """Return the requests that a machine sent to the mirror."""
    with urllib.request.urlopen(f"{stage.mirror}/requests", timeout=10) as answer:
        entries = json.load(answer)["requests"]
    return [entry["path"] for entry in entries if entry["client"] == there.reached["address"]]


# -- changes that cannot work ----------------------------------------------------------------------------------------


def bad_argument(bed: Bed, stage: Stage) -> Row:
    """An engine argument that the installed engine does not know."""
    change = {"vllm_engine_arguments": {"no-such-argument": 1}}
    return refused(bed, "an argument that the engine does not know", change, "unrecognized arguments")


def bad_adapter(bed: Bed, stage: Stage) -> Row:
    """An adapter that was trained on another base model."""
    change = {"vllm_lora_adapters": [{"name": "misfit", "source": "/srv/models/misfits/shape"}]}
    change |= {"ai_server_lora_adapter_easycontract": "misfit", "ai_server_lora_adapter_checklist": "misfit"}
    return refused(bed, "an adapter of another model", change, "adapter misfit:")


def port_taken(bed: Bed, stage: Stage) -> Row:
    """A port that another program uses."""
    return refused(bed, "a port that is taken", {"vllm_port": 22}, "port 22 is taken by sshd")


LARGE = r"""
import json, pathlib
folder = pathlib.Path("/srv/large")
folder.mkdir(exist_ok=True)
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 8192, "vocab_size": 128256, "torch_dtype": "bfloat16",
}
(folder / "config.json").write_text(json.dumps(config))
for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).write_bytes(pathlib.Path("/srv/models/tiny", name).read_bytes())
size = 130 << 30
header = json.dumps({"model.w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
with (folder / "model.safetensors").open("wb") as handle:
    handle.write(len(header).to_bytes(8, "little") + header)
    handle.truncate(8 + len(header) + size)
"""


def too_large(bed: Bed, stage: Stage) -> Row:
    """A model whose weights are larger than the GPU; its files are complete, and sparse. The GPU is a stand-in."""
    bed.one.put(LARGE, "/run/drill/large.py")
    bed.one.put((ROOT / "lab/stand_ins/nvidia-smi").read_text(), "/usr/bin/nvidia-smi")
    bed.one.sh("python3 /run/drill/large.py; chmod 755 /usr/bin/nvidia-smi; chmod -R a+rX /srv/large")
    change = {"vllm_model_path": "/srv/large", "vllm_memory_plan": "refuse", "vllm_lora_adapters": []}
    change |= {"ai_server_lora_adapter_easycontract": BASE, "ai_server_lora_adapter_checklist": BASE}
    change |= {"vllm_engine_arguments": {}, "vllm_dtype": "bfloat16"}
    row = refused(bed, "a model too large for the GPU (an L4's stand-in)", change, "GPU")
    bed.one.sh("rm -rf /srv/large /usr/bin/nvidia-smi")
    return row


def wrong_vault_password(bed: Bed, stage: Stage) -> Row:
    """Secrets that cannot be decrypted."""
    folder = bed.folder
    for name in ("right", "wrong"):
        (folder / f"{name}.txt").write_text(f"{name} password\n")
    (folder / "vault.yml").write_text(f"vllm_api_key: {ENGINE_KEY}-other\n")
    vault = Path(playbook.command(folder, "", {})[0]).with_name("ansible-vault")
    subprocess.run(
        [str(vault), "encrypt", "--vault-password-file", str(folder / "right.txt"), str(folder / "vault.yml")],
        check=True, capture_output=True,
    )  # fmt: skip
    before, silence = bed.one.services(), Silence(bed.one)
    outcome = bed.converge(
        {}, "--extra-vars", f"@{folder / 'vault.yml'}", "--vault-password-file", str(folder / "wrong.txt")
    )
    errors = [line for line in outcome.text.splitlines() if "Decryption failed" in line]
    good = outcome.code != 0 and bool(errors) and bed.one.services() == before
    expected = "refused before anything; no process is touched"
    seen = errors[0] if errors else sentence(outcome)
    return Row("a wrong vault password", expected, seen, good, silence.seconds())


def broken_download(kind: str, done: str, message: str) -> Callable[[Bed, Stage], Row]:
    """Return the line for the download of a release that fails or arrives damaged."""

    def line(bed: Bed, stage: Stage) -> Row:
        (release,) = builds.ensure([f"node_exporter@{OLDER}"])
        checksum = "sha256:" + "0" * 64 if kind == "checksum" else release["checksum"]
        mirror = stage.mirror if kind == "checksum" else f"{stage.mirror}/faults/{kind}"
        change = {"node_exporter_version": OLDER, "node_exporter_mirror": mirror}
        change["node_exporter_checksums"] = {OLDER: {"amd64": checksum}}
        return refused(bed, done, change, message)

    line.__name__ = f"download_{kind}"
    return line


# -- failures that only occur at run time ----------------------------------------------------------------------------


def never_ready(bed: Bed, stage: Stage) -> Row:
    """A new engine that starts and never becomes ready."""
    change = {**other_engine(stage, "hangs"), "vllm_start_timeout": 20}
    return rolls_back(bed, "a new engine that never gets ready (20 s given)", change, "not ready after 20 s")


def dies_at_first_completion(bed: Bed, stage: Stage) -> Row:
    """A new engine that is ready, lists its models, and dies at its first completion request."""
    return rolls_back(
        bed, "a new engine that dies at its first completion", other_engine(stage, "dies"), "vllm: release"
    )


def start_fails(bed: Bed, stage: Stage) -> Row:
    """A context length that the argument parser accepts and the model does not."""
    return rolls_back(bed, "a length that the model does not allow", {"vllm_max_model_len": 100000}, "is more than")


def other_engine(stage: Stage, build: str) -> dict[str, Any]:
    """Return the variables that select a broken build of the light engine."""
    return dict(stage.offered["light_engine"][build])


def killed(unit: str, child: bool = False) -> Callable[[Bed, Stage], Row]:
    """Return the line that kills a service or its child process."""
    request = {
        "node_exporter": "http://127.0.0.1:9100/metrics",
        "promtail": "http://127.0.0.1:9080/ready",
    }.get(unit)
    within = ENGINE_BACK_WITHIN if unit == "vllm" else BACK_WITHIN

    def line(bed: Bed, stage: Stage) -> Row:
        before, silence = bed.one.services()[unit]["pid"], Silence(bed.one)
        # The largest child: beside the engine itself there may be a small process that only cleans up.
        pid = bed.one.sh(f"ps --ppid {before} -o pid= --sort=-rss | head -1").strip() if child else str(before)
        begin = time.monotonic()
        bed.one.sh(f"kill -KILL {pid}")
        bed.one.until(lambda: bed.one.services()[unit]["pid"] not in (0, before), within, f"{unit} does not restart")
        if request:
            fetch = f"python3 -c \"import urllib.request as u; u.urlopen('{request}', timeout=5)\" && echo up"
            bed.one.until(lambda: "up" in bed.one.sh(fetch, check=False), within, f"{unit} does not answer")
        else:
            bed.one.until(lambda: bed.one.watched()["now"], within, f"{unit} does not answer")
        took = time.monotonic() - begin
        good = not bed.one.astray()
        who = f"{unit}'s child process" if child else unit
        return Row(
            f"kill -9 of {who}", f"answers again within {within} s", f"after {took:.0f} s", good, silence.seconds()
        )

    line.__name__ = f"killed_{unit}" + "_child" * child
    return line


def hung(child: bool = False) -> Callable[[Bed, Stage], Row]:
    """Return the line for an engine, or its worker process, that is running but does nothing."""

    def line(bed: Bed, stage: Stage) -> Row:
        """The process is running but does nothing."""
        before, silence = bed.one.services()["vllm"]["pid"], Silence(bed.one)
        stop(bed.one, before, child)
        took = bed.one.until(
            lambda: bed.one.services()["vllm"]["pid"] not in (0, before), HUNG + HEALED_WITHIN, "the engine still hangs"
        )
        back = bed.one.until(lambda: bed.one.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
        who = "the engine's child, whose /health answers," if child else "the engine"
        seen = f"restarted after {took:.0f} s, answers after {took + back:.0f} s"
        expected = f"the watchdog restarts it within {HEALED_WITHIN} s of its limit, {HUNG} s"
        return Row(f"{who} hangs", expected, seen, not bed.one.astray(), silence.seconds())

    line.__name__ = "hung" + "_child" * child
    return line


def stop(there: Host, pid: int, child: bool = False) -> None:
    """Suspend a process, or its largest child, so that it exists but does nothing."""
    there.sh(f"kill -STOP $(ps --ppid {pid} -o pid= --sort=-rss | head -1)" if child else f"kill -STOP {pid}")


def busy(bed: Bed, stage: Stage) -> Row:
    """Many concurrent requests, for longer than the watchdog's limit."""
    before, silence = bed.one.services()["vllm"]["pid"], Silence(bed.one)
    for number in range(CALLERS):
        bed.one.sh(
            f"systemd-run --quiet --unit drill-caller-{number} python3 {HOME}/watch.py {HOME}/question.json "
            f"{HOME}/caller-{number}.json"
        )
    time.sleep(2 * HUNG)
    bed.one.sh("systemctl stop 'drill-caller-*'")
    after = bed.one.services()["vllm"]["pid"]
    requests_sent = int(bed.one.sh(f'python3 -c "{COUNT_REQUESTS}"'))
    good = after == before and requests_sent > CALLERS and not bed.one.astray()
    seen = f"{requests_sent} requests, the same process" if after == before else "it was restarted"
    return Row(
        f"{CALLERS} callers at once for {2 * HUNG} s", "the watchdog leaves it alone", seen, good, silence.seconds()
    )


def budget(bed: Bed, stage: Stage) -> Row:
    """An engine that hangs after every restart."""
    silence, allowed = Silence(bed.one), 3
    for _ in range(allowed):
        before = bed.one.services()["vllm"]["pid"]
        stop(bed.one, before)
        bed.one.until(lambda: bed.one.services()["vllm"]["pid"] not in (0, before), HUNG + HEALED_WITHIN, "no restart")  # noqa: B023
        bed.one.until(lambda: bed.one.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
        time.sleep(3 * WATCHDOG["watchdog_interval"])  # until the watchdog has seen that it serves
    last = bed.one.services()["vllm"]["pid"]
    stop(bed.one, last)
    needed = 'llm_watchdog_person_needed{unit="vllm.service"} 1'
    page = "cat /var/lib/llm-watchdog/metrics/watchdog.prom"
    bed.one.until(lambda: needed in bed.one.sh(page), HUNG + HEALED_WITHIN, "no person is called")
    time.sleep(HUNG)
    left = bed.one.services()["vllm"]["pid"] == last
    bed.one.sh("systemctl restart vllm.service")
    bed.one.until(lambda: bed.one.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
    seen = "three restarts, then asked for a person; serves after a restart by hand" if left else "a fourth restart"
    expected = "three restarts, then the watchdog asks for a person"
    good = left and not bed.one.astray()
    return Row("the engine hangs after every restart", expected, seen, good, silence.seconds())


def incident(bed: Bed, stage: Stage) -> Row:
    """An engine that somebody stopped, and incident.yml."""
    silence = Silence(bed.one)
    bed.one.sh("systemctl stop vllm.service")
    with tempfile.TemporaryDirectory() as place:
        given = {"incident_directory": place}
        begin = time.monotonic()
        collected = bed.converge({**given, "step": "look"}, run=INCIDENT)
        collect_seconds = time.monotonic() - begin
        texts = [text for path in Path(place).glob("*.tar.gz") for text in contents(path)]
    secrets = (ENGINE_KEY, CALLER)
    leaked = [text for text in (*texts, collected.text) if any(secret in text for secret in secrets)]
    outcome = bed.converge({**given, "step": "recover"}, run=INCIDENT)
    bed.one.until(lambda: bed.one.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
    silent, before = silence.seconds(), bed.one.services()
    again = bed.converge({**given, "step": "recover"}, run=INCIDENT)
    left = {name: seen["pid"] for name, seen in before.items()} == {
        name: seen["pid"] for name, seen in bed.one.services().items()
    }
    codes = (collected.code, outcome.code, again.code)
    good = not any(codes) and len(texts) > 20 and not leaked and collect_seconds < 60 and left and not bed.one.astray()
    seen = f"{len(texts)} files in {collect_seconds:.0f} s, {len(leaked)} with a secret; then it serves"
    seen += "" if left else "; a second run restarted something"
    seen += f"; {sentence(outcome)}" if outcome.code else ""
    expected = (
        "look keeps an archive without a secret within 60 s, recover brings the engine back, and again does nothing"
    )
    return Row("the engine is stopped by hand; incident.yml look, recover, recover", expected, seen, good, silent)


def contents(path: Path) -> list[str]:
    """Return the texts in an archive."""
    with tarfile.open(path) as archive:
        return [archive.extractfile(entry).read().decode(errors="replace") for entry in archive]


# Move the services' data to a small disk in memory, so that filling it affects no other disk.
SMALL_DISK = f"""
set -e
systemctl stop ai-server vllm promtail
mkdir /run/drill/disk
mount -t tmpfs -o mode=755 tmpfs /run/drill/disk
cp -a /app /run/drill/disk/app
cp -a /var/log/dojangkok /run/drill/disk/log
used=$(df --output=used -k /run/drill/disk | tail -n 1)
mount -o remount,size=$((used + {ROOM_MIB} * 1024))k /run/drill/disk
mount --bind /run/drill/disk/app /app
mount --bind /run/drill/disk/log /var/log/dojangkok
systemctl start vllm ai-server promtail
"""
# Fill it with something that housekeeping removes: a ten-day-old environment without a release. cat fails when the
# disk is full, which is intended; the line itself checks that no byte is free.
FILL = """
set -e
folder=/app/vllm-server/environments/bbbbbbbbbbbb
mkdir $folder
echo '{}' > $folder/.environment.json
cat /dev/zero > $folder/wheel 2>/dev/null || true
find $folder -depth -exec touch --date '10 days ago' {} +
df --output=avail -k /app | tail -n 1
"""
LARGE_DISK = """
set -e
systemctl stop ai-server vllm promtail
umount --lazy /var/log/dojangkok /app /run/drill/disk
rmdir /run/drill/disk
systemctl start vllm ai-server promtail
"""
HEALTH = """
python3 - <<'END'
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5).read().decode())
END
"""


def full_disk(bed: Bed, stage: Stage) -> Row:
    """The disk of the services is full; housekeeping.yml frees space."""
    there = bed.one
    there.sh(SMALL_DISK)
    there.until(lambda: there.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
    before, silence = there.services(), Silence(there)
    left = int(there.sh(FILL))
    asked_before = there.watched()["asked"]
    time.sleep(5)
    served = there.watched()["asked"] - asked_before
    health = json.loads(there.sh(HEALTH))
    here = bed.folder / "housekeeping.yml"
    here.write_text(yaml.safe_dump({"housekeeping": {"hosts": {there.name: {}}}}))
    outcome = bed.converge({}, "--inventory", str(here), run=HOUSEKEEPING)
    freed = int(there.sh("df --output=avail -k /app | tail -n 1")) >> 10
    there.until(lambda: json.loads(there.sh(HEALTH))["status"] == "ok", BACK_WITHIN, "ai-server is not healthy")
    verified = outcome if stage.quick else bed.converge(run="playbooks/verify.yml")
    silent, untouched = silence.seconds(), there.services() == before
    there.sh(LARGE_DISK)
    there.until(lambda: there.watched()["now"], ENGINE_BACK_WITHIN, "the engine does not answer")
    good = left == outcome.code == verified.code == 0 and untouched and freed >= ROOM_MIB - 1 and silent == 0
    good = good and served > 5 and health["store"] != "ok" and health["uploads"] != "ok" and not there.astray()
    seen = f"{left} KiB free: {served} answers in 5 s, jobs: {health['store'][:60]}; then {freed} MiB free"
    seen += "" if untouched else "; services were restarted"
    seen += "".join(f"; {sentence(each, 90)}" for each in (outcome, verified) if each.code)
    expected = "requests are served meanwhile; housekeeping.yml makes room, and all is green again"
    return Row("a disk without a free byte", expected, seen, good, silent)


HOG = """
held = []
while True:
    held.append(bytearray(b"x" * (8 << 20)))
"""


def memory_short(bed: Bed, stage: Stage) -> Row:
    """A program exhausts the memory of a small machine: the kernel kills services in the order that their units set."""
    there, began = bed.one, bed.one.sh("date +%s").strip()
    there.put(HOG, "/run/drill/hog.py")
    before, silence = there.services()["vllm"]["pid"], Silence(there)
    give_memory(there, MEMORY_MIB)
    try:
        there.sh("systemd-run --quiet --unit drill-hog python3 /run/drill/hog.py")
        dead = "systemctl is-active --quiet drill-hog || echo gone"
        there.until(lambda: there.sh(dead), 120, "nothing kills what uses it")
    finally:
        give_memory(there, ALL_MEMORY_MIB)
    there.until(lambda: not there.astray(), BACK_WITHIN, "not all services are back")
    there.until(lambda: there.watched()["now"], BACK_WITHIN, "ai-server does not answer")
    kills = there.sh(f"journalctl --quiet --output cat _PID=1 --since @{began} --grep 'code=killed'")
    killed = list(dict.fromkeys(re.findall(r"^([\w-]+)\.service: Main process exited", kills, re.MULTILINE)))
    survived = there.services()["vllm"]["pid"] == before
    good = survived and set(killed[:2]) == {"node_exporter", "promtail"} and killed[2:] == ["ai-server", "drill-hog"]
    seen = f"killed in this order: {', '.join(killed)}; the engine {'still runs' if survived else 'was killed'}"
    expected = "exporter and log shipper die first, then ai-server, then what uses it; the engine still runs"
    return Row("the machine's memory is used up", expected, seen, good, silence.seconds())


def give_memory(there: Host, mib: int) -> None:
    """Limit the memory of a machine to ``mib``."""
    words = ["podman", "update", "--memory", f"{mib}m", machine.container(there.name)]
    subprocess.run(words, check=True, capture_output=True)


# Submit jobs through the API and list all jobs.
HAND_IN = r"""
import json, sys, urllib.request
first, count, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for number in range(first, first + count):
    parts = [("job_id", None, f"drill-{number}"), ("file", "contract.pdf", f"%PDF-1.4 {number} " + "x" * 50000)]
    body = ""
    for name, file, text in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--drill\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n{text}\r\n'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "multipart/form-data; boundary=drill"}
    data = (body + "--drill--\r\n").encode()
    urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000/v1/checklist", data, headers), timeout=20)
request = urllib.request.Request("http://127.0.0.1:8000/v1/jobs?limit=100", headers={"Authorization": f"Bearer {key}"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


def jobs(there: Host, first: int = 0, count: int = 0) -> set[str]:
    """Submit some jobs; return the IDs of all jobs that the application lists."""
    jobs_sent = json.loads(there.sh(f"python3 - {first} {count} {CALLER} <<'END-OF-FILE'\n{HAND_IN}\nEND-OF-FILE\n"))
    return {each["job_id"] for each in jobs_sent["data"]}


def restored_elsewhere(bed: Bed, stage: Stage) -> Row:
    """The machine is lost; a new one with another name restores the last backup."""
    old, new = bed.hosts
    done = "the machine lost; a new one of another name: site.yml, restore.yml, site.yml"
    expected = "all jobs and uploads of the backup are there, the second site.yml changes nothing"
    first = bed.converge({}, "--limit", old.name)
    if first.code:
        return Row(done, expected, sentence(first), False)
    had = jobs(old, 0, 20)
    uploads = old.sh(LIST_UPLOADS)
    taken = bed.converge({}, "--limit", old.name, run="playbooks/backup.yml")
    jobs(old, 20, 5)  # jobs after the backup are lost
    carry(old, new, "/srv/backup")
    begin = time.monotonic()
    old.kind.down(old.name)
    built = bed.converge({}, "--limit", new.name)
    outage = time.monotonic() - begin
    new.watch("http://127.0.0.1:8000/v1/chat/completions", CALLER, BASE)
    silence = Silence(new)
    restored = bed.converge({"backup_of": old.name}, "--limit", new.name, run="playbooks/restore.yml")
    silent, took = silence.seconds(), time.monotonic() - begin
    again = bed.converge({}, "--limit", new.name)
    runs = {"backup": taken, "site.yml": built, "restore": restored, "site.yml again": again}
    failed = [f"{name}: {sentence(outcome)}" for name, outcome in runs.items() if outcome.code]
    if failed:
        return Row(done, expected, "; ".join(failed), False)
    found, same = jobs(new), new.sh(LIST_UPLOADS) == uploads
    good = found == had and len(had) == 20 and same and uploads and not again.changed and not bed.hosts[1].astray()
    seen = f"{len(found & had)} of {len(had)} jobs, uploads {'the same' if same else 'others'}, serving with them "
    seen += f"{took:.0f} s after the loss ({outage:.0f} s to build the machine), then changed={len(again.changed)}"
    return Row(done, expected, seen, bool(good), silent)


LIST_UPLOADS = "cd /app/ai-server/resources/s3 && sha256sum *.pdf && stat -c '%U %G %a' *.pdf | sort -u"


def carry(source: Host, target: Host, path: str) -> None:
    """Copy a directory from one machine to another, as if its disk had been attached there."""
    packed = subprocess.run(
        source.kind.ssh_command(source.name, ["sudo", "tar", "-c", "-C", path, "."]), capture_output=True, check=True
    ).stdout
    unpack = target.kind.ssh_command(target.name, ["sudo", "sh", "-c", f"'mkdir -p {path} && tar -x -C {path}'"])
    subprocess.run(unpack, input=packed, capture_output=True, check=True)


def loki_away(bed: Bed, stage: Stage) -> Row:
    """Loki accepts no logs: the server still serves, and the run fails."""
    silence, address = Silence(bed.one), "http://127.0.0.1:3999"
    outcome = bed.converge({"promtail_loki_url": address})
    up = not bed.one.astray()
    bed.converge()
    good = up and outcome.code != 0 and address in outcome.message
    expected = "services up; the checklist's red row names the address and the cure; the run fails"
    return Row("Loki does not answer", expected, sentence(outcome, 240), good, silence.seconds())


# -- runs that are interrupted, and concurrent runs ------------------------------------------------------------------

CHANGES = (
    {"vllm_max_model_len": 256, "ai_server_http_timeout_sec": 20, "node_exporter_port": 9101, "promtail_port": 9081},
    {},
)


def controller_killed(bed: Bed, stage: Stage) -> Row:
    """The controller is killed in random tasks of runs that change every service; one more run must repair each."""
    times = 3 if stage.quick else 20
    silence, healed, wrong, places = Silence(bed.one), 0, [], []
    for number in range(times):
        change = CHANGES[number % 2]
        starts = {name: seen["starts"] for name, seen in bed.one.services().items()}
        at, after = stage.random.randrange(2, 60), round(stage.random.uniform(0, 2), 1)
        name = playbook.interrupted(bed.command(change), ROOT, at, after, bed.environment())
        places.append(name or "the end")
        outcome = bed.converge(change)
        services = bed.one.services()
        twice = [unit for unit, seen in services.items() if seen["starts"] - starts[unit] > 1]
        astray = bed.one.astray()
        if outcome.code == 0 and not astray and not twice:
            healed += 1
        else:
            problem = sentence(outcome) if outcome.code else f"not as written: {astray}, restarted twice: {twice}"
            wrong.append(f"killed {after} s into task {at} ({name}): {problem}")
    last = bed.converge(CHANGES[(times - 1) % 2])
    good = healed == times and not last.changed
    seen = f"{healed} of {times} healed, then changed={len(last.changed)}" + "".join(f"; {each}" for each in wrong)
    done = f"the controller killed in {times} random tasks (such as {places[0]!r}, {places[-1]!r})"
    return Row(done, "one more run converges, no service is restarted twice", seen, good, silence.seconds())


def connection_cut(bed: Bed, stage: Stage) -> Row:
    """Every SSH connection of a run is cut while the engine restarts; the next run converges."""
    change, silence = CHANGES[0], Silence(bed.one)
    before = bed.one.services()["vllm"]["starts"]
    found: list[Outcome] = []
    run = threading.Thread(target=lambda: found.append(bed.converge(change)))
    run.start()
    bed.one.until(lambda: bed.one.services()["vllm"]["starts"] > before, 120, "the engine is not restarted")
    # This command's own session must end last, so systemd runs the kill.
    cut = "pkill -KILL -e -f 'sshd.*@' > /run/drill/cut"
    timer = "systemd-run --quiet --on-active=0.3 --timer-property=AccuracySec=50ms"
    bed.one.sh(f'{timer} sh -c "{cut}"', check=False)
    run.join()
    time.sleep(2)
    outcome = bed.converge(change)
    cuts = len(bed.one.sh("cat /run/drill/cut").splitlines())
    good = outcome.code == 0 and not bed.one.astray() and bed.one.services()["vllm"]["starts"] == before + 1
    good = good and cuts > 0
    then = "converged" if outcome.code == 0 else sentence(outcome)
    seen = f"{cuts} cut, that run: {sentence(found[0], 70)}; next run: {then}"
    done = "the connection cut while the engine restarts"
    return Row(done, "one more run converges, the engine is restarted once", seen, good, silence.seconds())


def two_controllers(bed: Bed, stage: Stage) -> Row:
    """Two controllers with different variables on one host at the same time."""
    silence = Silence(bed.one)
    both = playbook.together(*(lambda change=change: bed.converge(change) for change in CHANGES))
    ended = ["converged" if each.code == 0 else sentence(each, 60) for each in both]
    astray = bed.one.astray()
    last = bed.converge()
    good = not astray and last.code == 0 and not bed.one.astray() and bed.one.watched()["now"]
    explained = all(each.code == 0 or "another run" in each.message or "taken by" in each.message for each in both)
    seen = (
        f"not as written: {astray}" if astray else f"{ended[0]}; {ended[1]}; then the running state is the written one"
    )
    expected = "each succeeds or reports the other run; the running state is the written one"
    return Row(
        "two controllers at once with different variables", expected, seen, good and explained, silence.seconds()
    )


def rebooted(bed: Bed, stage: Stage) -> Row:
    """The machine reboots while a run restarts the engine."""
    change, before = CHANGES[1], bed.one.services()["vllm"]["starts"]
    run = threading.Thread(target=lambda: bed.converge(change))
    run.start()
    bed.one.until(lambda: bed.one.services()["vllm"]["starts"] > before, 120, "the engine is not restarted")
    bed.one.kind.restart(bed.one.name)
    run.join()
    outcome = bed.converge(change)
    good = outcome.code == 0 and not bed.one.astray()
    seen = "converged" if outcome.code == 0 else sentence(outcome)
    watch(bed)
    return Row("the machine rebooted while the engine restarts", "all up; one more run converges", seen, good)


def lost_notes(bed: Bed, stage: Stage) -> Row:
    """The state files of earlier runs are missing or truncated, and all services run as written."""
    bed.converge()
    before, silence = {unit: seen["pid"] for unit, seen in bed.one.services().items()}, Silence(bed.one)
    bed.one.sh(
        'cd /var/lib/llm-server/services && rm vllm/state.json && echo \'{"current": "72\' > ai-server/state.json'
    )
    outcome, again = bed.converge(), bed.converge()
    after = {unit: seen["pid"] for unit, seen in bed.one.services().items()}
    good = outcome.code == again.code == 0 and not again.changed and before == after and not bed.one.astray()
    seen = "adopted" if before == after else "restarted"
    seen = f"{seen}, then changed={len(again.changed)}" if outcome.code == 0 else sentence(outcome)
    expected = "the running services are adopted unchanged"
    return Row("the state files of two services lost", expected, seen, good, silence.seconds())


# -- secrets ----------------------------------------------------------------------------------------------------------

# Everything that an unprivileged user of the machine can read.
PROBE = r"""
id drill-probe >/dev/null 2>&1 || useradd --system drill-probe
runuser -u drill-probe -- sh -c '
ps axeww -o args; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline
systemctl show "*"; systemctl cat "*.service"; journalctl --no-pager
find / -xdev -type f -size -2M -not -path "/proc/*" -not -path "/sys/*" -not -path "*/site-packages/*" \
  -not -path "/usr/*" -readable -exec cat {} +' 2>/dev/null
# And what even root finds in the journal and in systemd.
journalctl --no-pager; systemctl show vllm ai-server node_exporter promtail; systemctl cat vllm ai-server
"""


def canaries(bed: Bed, stage: Stage) -> Row:
    """Secrets with known values are searched in all places to which they could have leaked.

    The values occur nowhere else: the application's own tests, which are copied to the machine, contain other canaries.
    """
    secrets = {
        "vllm_api_key": "canary-drill-engine-key-2718281828",
        "ai_server_api_keys": ["canary-drill-caller-key-16180339887498948482"],
        "ai_server_backend_internal_token": "canary-drill-backend-token-57721566490",
        "ai_server_ocr_api": "canary-drill-ocr-key-14142135623",
        "vllm_huggingface_token": "canary-drill-hub-token-17320508075",
    }
    watch(bed, "canary-drill-caller-key-16180339887498948482")
    silence = Silence(bed.one)
    outcome = bed.converge(secrets, "--diff", "-vvv")
    # The controller's own command line has them, because this drill passes them as extra variables.
    printed = [line for line in outcome.text.splitlines() if "canary-drill" in line and "--extra-vars" not in line]
    # A planted canary that everybody can read: if the search does not find it, the search proves nothing.
    bed.one.sh("echo canary-drill-planted > /etc/drill-planted; chmod 644 /etc/drill-planted")
    found = [line for line in bed.one.sh(PROBE, check=False).splitlines() if "canary-drill" in line]
    bed.one.sh("rm /etc/drill-planted")
    planted = "canary-drill-planted" in found
    found = [line for line in found if line != "canary-drill-planted"]
    pid = bed.one.services()["vllm"]["pid"]
    own = "canary-drill-engine-key" in bed.one.sh(f"tr '\\0' '\\n' < /proc/{pid}/environ")
    silent = silence.seconds()
    bed.converge()
    watch(bed)
    good = outcome.code == 0 and not printed and not found and own and planted
    seen = f"{len(printed)} in the output, {len(found)} on the machine, {'one' if own else 'none'} in the environment"
    seen += f"; {sentence(outcome)}" if outcome.code else ""
    seen += f"; first: {(printed + found)[0][:80]!r}" if printed or found else ""
    expected = "found only in the engine's own environment"
    return Row("five secrets searched as an unprivileged user and in -vvv --diff", expected, seen, good, silent)


def watch(bed: Bed, key: str = CALLER) -> None:
    """Send requests to the application on every machine of a bed, or to the engine if there is no application."""
    through = "ai_server" in bed.groups
    for each in bed.hosts:
        if each.name not in bed.members.get("vllm", [each.name]):
            continue
        port, own = (8000, key) if through else (8001, ENGINE_KEY)
        each.watch(f"http://127.0.0.1:{port}/v1/chat/completions", own, BASE)


# -- fleets -----------------------------------------------------------------------------------------------------------


def one_bad_host(bed: Bed, stage: Stage) -> Row:
    """On one of five hosts, another program uses the port that the change needs."""
    bad = bed.hosts[2]
    bad.sh("systemd-run --quiet --unit squatter python3 -m http.server 8010 --bind 127.0.0.1")
    bad.until(lambda: ":8010" in bad.sh("ss -Hltn"), 30, "the port stays free")
    rotation = bed.folder / "rotation.txt"
    rotation.unlink(missing_ok=True)
    hook = ["sh", "-c", f'echo "$0 $1" >> {rotation}', "{{ inventory_hostname }}"]
    change = {
        "vllm_port": 8010,
        "rollout_batch": 1,
        "vllm_drain_command": [*hook, "out"],
        "vllm_restore_command": [*hook, "in"],
    }
    before = [each.services()["vllm"] for each in bed.hosts]
    silences = [Silence(each) for each in bed.hosts]
    outcome = bed.converge(change)
    moved = [each.services()["vllm"] != then for each, then in zip(bed.hosts, before, strict=True)]
    calls = rotation.read_text().split("\n")[:-1] if rotation.exists() else []
    first, second = (each.name for each in bed.hosts[:2])
    right = calls == [f"{first} out", f"{first} in", f"{second} out", f"{second} in"]
    good = outcome.code != 0 and moved == [True, True, False, False, False] and right
    good = good and "port 8010 is taken" in outcome.message
    silent = sum(silence.seconds() for silence in silences[2:])
    seen = f"changed: {moved}; rotation: {', '.join(calls)}; {sentence(outcome, 90)}"
    bad.sh("systemctl stop squatter")
    expected = "two changed, each out of rotation meanwhile; the bad one and those after it untouched"
    return Row(
        "a fleet of five, one at a time, the third has the port taken", expected, seen, good and silent == 0, silent
    )


def unreachable_host(bed: Bed, stage: Stage) -> Row:
    """One of five hosts does not answer SSH."""
    unreachable = bed.hosts[4]
    before = [each.services() for each in bed.hosts[:4]]
    subprocess.run(
        ["podman", "stop", "--time", "5", machine.container(unreachable.name)], check=True, capture_output=True
    )
    outcome = bed.converge({"vllm_max_model_len": 128}, "--timeout", "5")
    untouched = [each.services() for each in bed.hosts[:4]] == before
    good = outcome.code != 0 and untouched and unreachable.name in outcome.text
    seen = f"{'nothing' if untouched else 'something'} changed; {sentence(outcome)}"
    return Row("a fleet of five, one does not answer", "reported before anything is changed anywhere", seen, good)


# -- a virtual machine ------------------------------------------------------------------------------------------------


def new_virtual_machine(bed: Bed, stage: Stage) -> Row:
    """A machine with its own kernel, from a fresh image."""
    begin = time.monotonic()
    outcome = bed.converge()
    again = bed.converge() if outcome.code == 0 else outcome
    good = outcome.code == 0 and again.code == 0 and not again.changed and not bed.one.astray()
    seen = f"converged, then changed={len(again.changed)}, {time.monotonic() - begin:.0f} s in all"
    done = "a new virtual machine: swap, engine's stand-in, node_exporter, promtail"
    return Row(done, "converges; again changes nothing", seen if outcome.code == 0 else sentence(outcome), good)


def clock_jumps(bed: Bed, stage: Stage) -> Row:
    """The clock jumps forward and back by more than the start timeout while the engine starts."""
    ended = []
    for seconds, change in ((JUMP, {"vllm_max_model_len": 256}), (-JUMP, {})):
        starts = bed.one.services()["vllm"]["starts"]
        jump = f"until [ $(journalctl -q -o cat _PID=1 UNIT=vllm.service | grep -c ^Started) -gt {starts} ]; do :; done"
        jump = f"{jump}; date -s @$(($(date +%s) + {seconds}))"
        bed.one.put(jump, "/run/drill/jump.sh")
        bed.one.sh("systemd-run --quiet --collect --unit drill-jump sh /run/drill/jump.sh")
        outcome = bed.converge(change)
        ended.append("converged" if outcome.code == 0 and not bed.one.astray() else sentence(outcome, 70))
    good = ended == ["converged", "converged"]
    done = f"the clock jumps {JUMP // 60} minutes, forward and back, during starts that may take 5"
    return Row(done, "no wrong result", "; ".join(ended), good)


def virtual_reboot(bed: Bed, stage: Stage) -> Row:
    """A real reboot: all services are running, swap is on, and no log line is sent twice."""
    there, mark = bed.one, f"drill-{stage.random.randrange(10**9)}"
    write_lines = f"mkdir -p {WORDS}; for n in $(seq {{}} {{}}); do echo {mark} $n >> {WORDS}/words.log; done"
    there.sh(write_lines.format(1, 20))
    there.until(lambda: len(logged(stage, mark)) == 20, 60, "the lines do not arrive")
    there.kind.restart(there.name)
    begin = time.monotonic()
    there.until(lambda: all(seen["active"] == "active" for seen in there.services().values()), 120, "not all are up")
    there.sh(write_lines.format(21, 40))
    request = (
        "python3 -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=5)\" && echo up"
    )
    there.until(lambda: "up" in there.sh(request, check=False), 120, "the engine does not answer")
    took = time.monotonic() - begin
    swap = "swapfile" in there.sh("cat /proc/swaps")
    there.until(lambda: len(set(logged(stage, mark))) == 40, 60, "the lines do not arrive")
    time.sleep(5)  # for duplicates that arrive later
    lines = logged(stage, mark)
    outcome = bed.converge()
    good = swap and len(lines) == len(set(lines)) == 40 and outcome.code == 0 and not outcome.changed
    seen = f"all up, swap {'on' if swap else 'off'}, {len(lines)} lines of 40 ({len(set(lines))} different), "
    seen += f"then changed={len(outcome.changed)}; engine answers {took:.0f} s after SSH"
    return Row("the virtual machine rebooted", "all up, swap on, each line sent once, changed=0", seen, good)


def logged(stage: Stage, mark: str) -> list[str]:
    """Return the lines in Loki that contain a mark."""
    query = urllib.parse.quote(f'{{job=~".+"}} |= "{mark}"')
    url = f"{stage.offered['loki']}/loki/api/v1/query_range?limit=1000&since=3h&query={query}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        streams = json.load(answer)["data"]["result"]
    return [line for stream in streams for _, line in stream["values"]]


# -- the time of a run without changes -------------------------------------------------------------------------------


def far_away(bed: Bed, stage: Stage) -> Row:
    """A run without a change with a round-trip time of 20 ms."""
    there = bed.one
    with Link((there.reached["address"], there.reached["port"]), 0.010) as port:
        options = ["HostName=127.0.0.1", f"HostKeyAlias={there.reached['address']}", "StrictHostKeyChecking=yes"]
        options += [f"UserKnownHostsFile={there.reached['known_hosts']}"]
        words = [word for option in options for word in ("-o", option)]
        bare = min(timed(ssh(there, port, words)) for _ in range(3))
        begin = time.monotonic()
        outcome = bed.converge({"ansible_port": port, "ansible_ssh_common_args": " ".join(words)})
        took = time.monotonic() - begin
    good = outcome.code == 0 and not outcome.changed
    seen = f"{took:.1f} s = {took / bare:.0f} times one bare SSH command ({bare:.2f} s)"
    return Row("a run without a change at 20 ms a round trip", "changed=0; reported as a ratio", seen, good)


def ssh(there: Host, port: int, options: list[str]) -> list[str]:
    """Return the bare SSH command: one connection that runs `true`."""
    reached = there.reached
    batch = ["-q", "-i", reached["key"], "-p", str(port), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    return ["ssh", *batch, *options, f"{reached['user']}@{reached['address']}", "true"]


def timed(command: list[str]) -> float:
    """Return the seconds that a command takes; raise Problem if it fails."""
    begin = time.monotonic()
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise Problem(f"`{' '.join(command)}` failed")
    return time.monotonic() - begin
