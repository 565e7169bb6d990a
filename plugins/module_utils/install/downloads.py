"""Download a file over a network that may disconnect, stall or answer with an error."""

from __future__ import annotations

import http.client
import shutil
import time
from pathlib import Path

from ansible.module_utils.urls import fetch_url

from ..errors import UserError

TRIES = 3
PATIENCE = (408, 425, 429)  # client errors after which a retry is allowed
SILENCE_LIMIT = 15  # seconds without a byte: a stalled mirror must not block the run


def download(module, url: str, target: Path, ca_path: str | None = None) -> None:
    """Fetch ``url`` into ``target``. Raises UserError with the last failure after three attempts.

    ``ca_path`` names certificate authorities to trust; the system's if None.
    """
    failure = "no answer"
    for attempt in range(TRIES):
        time.sleep(2 * attempt)
        answer, info = fetch_url(module, url, timeout=SILENCE_LIMIT, ca_path=ca_path)
        if info["status"] != 200:
            failure = f"it answered {info['status']}: {info['msg']}" if info["status"] > 0 else info["msg"]
            if 400 <= info["status"] < 500 and info["status"] not in PATIENCE:
                break
            continue
        length = int(info.get("content-length") or 0)
        free = shutil.disk_usage(target.parent).free
        if length * 4 > free:
            raise UserError(f"the disk of {target.parent} has {free >> 20} MiB free, {length * 4 >> 20} MiB are needed")
        try:
            with target.open("wb") as handle:
                shutil.copyfileobj(answer, handle)
        except (OSError, http.client.HTTPException) as error:
            failure = f"the download broke off: {error}"
            continue
        if not length or target.stat().st_size == length:
            return
        failure = f"the download broke off after {target.stat().st_size} of {length} bytes"
    raise UserError(failure)
