#!/usr/bin/python3
"""Power off the machine if it got no request for some time. Does one look; a timer repeats it.

Settings (JSON file): minutes, interval, sources [{url, counters, gauges, bearer_file}], sessions, command. State: the
counters at the last look, the time of that look and the start of the idle time; both times are seconds of the
monotonic clock.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT = 5  # s for one source
LATE = 60  # s that a look may be late on a busy machine, in addition to three intervals


def read_metrics(text, names):
    """Return the sum of each named series over its labels; a missing series has no entry."""
    sums = {}
    # A label may contain characters that splitlines() splits at; the value is the first word after the labels.
    for line in text.split("\n"):
        name = line.split("{")[0].split(" ")[0]
        if name in names:
            try:
                sums[name] = sums.get(name, 0.0) + float(line.removeprefix(name).rpartition("}")[2].split()[0])
            except (ValueError, IndexError):
                continue
    return sums


def look(source, fetch):
    """Return (counters, busy) of one source; ({}, False) if it does not answer."""
    try:
        text = fetch(source["url"], *filter(None, [source.get("bearer_file")]))
    except (OSError, ValueError):
        return {}, False
    gauges = source.get("gauges") or []
    busy = any(value > 0 for value in read_metrics(text, gauges).values())
    return read_metrics(text, source.get("counters") or []), busy


def decide(settings, state, now, fetch, sessions):
    """Return (new state, idle seconds). `state`: the last one or None; `sessions`: number of login sessions."""
    seen = [look(source, fetch) for source in settings["sources"]]
    counters = [counted for counted, _ in seen]
    busy = any(flag for _, flag in seen) or (settings["sessions"] and sessions > 0)
    first = {"since": now, "looked": now, "counters": counters}
    if state is None or len(state["counters"]) != len(counters):
        return first, 0
    # After a gap, for example a removal and a new installation, it is unknown what happened: start again.
    if now - state.get("looked", float("-inf")) > 3 * settings["interval"] + LATE:
        return first, 0
    pairs = [(new, state["counters"][place]) for place, new in enumerate(counters)]
    # A service that does not answer counts as unused; if it returns with other numbers, it was used.
    moved = any(new and new != old for new, old in pairs)
    since = now if busy or moved else state["since"]
    return {"since": since, "looked": now, "counters": [new or old for new, old in pairs]}, now - since


def key_in(path):
    """Return the value of API_KEY in a file of lines NAME=value, as systemd reads it; "" if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    found = ""
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and name.strip() == "API_KEY":
            value = value.strip()
            quoted = len(value) > 1 and value[0] in "\"'" and value[0] == value[-1]
            found = value[1:-1] if quoted else value
    return found


def fetch(url, bearer_file=""):
    headers = {"Authorization": f"Bearer {key_in(bearer_file)}"} if bearer_file else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        return answer.read().decode("utf-8", "replace")


def logged_in():
    argv = ["loginctl", "list-sessions", "--no-legend"]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    # Newer systemd versions also list their user managers.
    return sum(" manager" not in line for line in done.stdout.splitlines())


def main():
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(os.environ.get("RUNTIME_DIRECTORY", "/run/idle-stop")) / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = None
    state, idle = decide(settings, state, time.monotonic(), fetch, logged_in())
    path.write_text(json.dumps(state), encoding="utf-8")
    if idle >= settings["minutes"] * 60:
        print(f"no request for {idle / 60:.0f} minutes: {' '.join(settings['command'])}")
        path.unlink()
        subprocess.run(settings["command"], check=True)


if __name__ == "__main__":
    main()
