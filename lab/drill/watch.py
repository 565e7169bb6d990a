"""Send completion requests of one token to a server and count the seconds without an answer.

One file without dependencies: `python3 watch.py QUESTION STATE` runs alone on a machine. QUESTION is a JSON file with
url, key and model that only root can read. STATE is written after each answer: asked, refused, silent in seconds, and
now (whether the server answers).
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path

EVERY = 0.25
PATIENCE = 10


def answers(url: str, key: str, model: str) -> bool:
    """Return whether the server returns a token now."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bool(json.load(answer)["choices"])
    except (OSError, ValueError, KeyError):
        return False


def main(question: Path, state: Path) -> None:
    """Send requests until the process is stopped."""
    wanted = json.loads(question.read_text())
    asked = refused = 0
    silent, since = 0.0, None
    while True:
        begin = time.monotonic()
        good = answers(**wanted)
        now = time.monotonic()
        asked, refused = asked + 1, refused + (not good)
        if not good and since is None:
            since = begin
        elif good and since is not None:
            silent, since = silent + now - since, None
        waited = now - since if since is not None else 0.0
        record = {"asked": asked, "refused": refused, "silent": round(silent + waited, 2), "now": good}
        beside = state.with_suffix(".new")
        beside.write_text(json.dumps(record))
        beside.replace(state)
        time.sleep(EVERY)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
