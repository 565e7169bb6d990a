"""The callers' usage and remaining rates, stored across restarts in STATE_DIRECTORY/usage.sqlite3.

They are counted in memory, and a thread writes them every second: a killed process loses at most one second. Requests
do not wait for a full disk: what could not be written is written later.
"""

import asyncio
import datetime
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from app.database import Database, transaction

FLUSH_SEC = 1.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, caller TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (day, caller, model)
);
CREATE TABLE IF NOT EXISTS rates (name TEXT PRIMARY KEY, left REAL NOT NULL, at REAL NOT NULL);
"""
ADD = (
    "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,"
    " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
    " completion_tokens = completion_tokens + excluded.completion_tokens"
)

logger = logging.getLogger(__name__)

Counts = tuple[int, int, int]  # requests, prompt tokens, completion tokens


class Usage:
    """Tokens by day (in UTC), caller and model. rates: the buckets of `limits.Rate` by name: (left, at)."""

    def __init__(self, directory: Path, rates: dict[str, tuple[float, float]], clock: Callable[[], float] = time.time):
        self._rates, self._clock = rates, clock
        self._waiting: dict[tuple[str, str, str], Counts] = {}
        self._written: dict[str, tuple[float, float]] = {}
        self._counting = threading.Lock()  # only held briefly, since requests wait for it
        self._lock = threading.Lock()  # for the store, which may be slow
        self._failing = False
        self._database = Database(directory / "usage.sqlite3", self._prepare)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.executescript(SCHEMA)
        kept = {name: (left, at) for name, left, at in db.execute("SELECT name, left, at FROM rates")}
        self._rates.update({**kept, **self._rates})

    def add(self, caller: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request."""
        day = datetime.datetime.fromtimestamp(self._clock(), datetime.timezone.utc).date().isoformat()
        self._count((day, caller, model), (1, prompt_tokens, completion_tokens))

    def _count(self, key: tuple[str, str, str], counts: Counts) -> None:
        with self._counting:
            before = self._waiting.get(key, (0, 0, 0))
            self._waiting[key] = tuple(one + more for one, more in zip(before, counts, strict=True))

    def of(self, caller: str, days: int) -> list[dict]:
        """Return the caller's counts of the last ``days`` by day and model, newest first; keys: the table's columns."""
        self.flush()
        since = datetime.datetime.fromtimestamp(self._clock() - (days - 1) * 86400, datetime.timezone.utc).date()
        names = ("day", "model", "requests", "prompt_tokens", "completion_tokens")
        with self._lock:
            rows = (
                self._database.opened()
                .execute(
                    f"SELECT {', '.join(names)} FROM usage WHERE caller = ? AND day >= ? ORDER BY day DESC, model",
                    (caller, since.isoformat()),
                )
                .fetchall()
            )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def flush(self) -> None:
        """Write the waiting counts; if that fails, keep them for the next time and log the first failure."""
        with self._lock:
            with self._counting:
                waiting, self._waiting = self._waiting, {}
            rates = {name: rate for name, rate in list(self._rates.items()) if self._written.get(name) != rate}
            try:
                with transaction(self._database.opened()) as db:
                    db.executemany(ADD, [(*key, *counts) for key, counts in waiting.items()])
                    db.executemany(
                        "INSERT OR REPLACE INTO rates VALUES (?, ?, ?)", [(name, *rate) for name, rate in rates.items()]
                    )
            except (sqlite3.Error, OverflowError) as error:
                for key, counts in waiting.items():
                    self._count(key, counts)
                if not self._failing:
                    logger.error("usage cannot be written, and is kept in memory: %s", error)
                self._failing = True
            else:
                self._failing = False
                self._written.update(rates)

    async def run(self) -> None:
        """Write every second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SEC)
            if self._waiting or any(self._written.get(name) != rate for name, rate in list(self._rates.items())):
                await asyncio.to_thread(self.flush)

    def close(self) -> None:
        self.flush()
        self._database.close()
