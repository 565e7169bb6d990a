"""Jobs: accepted at once, answered in the background, told to the backend, through restarts.

A job is a row in SQLite. It goes `queued` -> `delivering` (it has an outcome: a result or an error) -> `delivered`, or
`undelivered` when the backend took none of JOB_ATTEMPTS tries. Each try is written down, with the time of the next
one, before it is made: a process that dies in the middle neither loses a job nor repeats one for ever. The backend is
called at least once; `Idempotency-Key` (the job's id) tells it what it has already seen. Waits double, and what the
next try would meet again (a request that is refused, an answer that cannot be read) is not tried again.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client import Counter

from app.errors import Permanent, Problem
from app.logs import request_id
from app.settings import Settings

POLL_SEC = 0.2
MAX_BACKOFF_SEC = 600
STATES = ("queued", "delivering", "delivered", "undelivered")
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, caller TEXT NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL, work TEXT,
    state TEXT NOT NULL DEFAULT 'queued', outcome TEXT, last_error TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, created REAL NOT NULL, updated REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (state, due);
"""

logger = logging.getLogger(__name__)
tries = Counter("ai_server_job_tries", "Tries of a job's answer or callback", ["kind", "phase", "outcome"])


@dataclass(frozen=True)
class Job:
    """One row. work: the request, JSON, or None once it is answered; outcome: what the backend is told, JSON."""

    id: str
    caller: str
    kind: str
    digest: str
    work: str | None
    state: str
    outcome: str | None
    last_error: str | None
    attempts: int
    due: float
    created: float
    updated: float

    def public(self) -> dict:
        """What its caller may see."""
        shown = {"job_id": self.id, "kind": self.kind, "state": self.state, "attempts": self.attempts}
        shown |= {"last_error": self.last_error, "created": round(self.created), "updated": round(self.updated)}
        return shown | {"outcome": json.loads(self.outcome) if self.outcome else None}


class Store:
    """The jobs on disk. Every method commits before it returns; times are seconds since the epoch."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._db = sqlite3.connect(directory / "jobs.sqlite3", isolation_level=None, timeout=10)
        self._db.row_factory = lambda _, row: Job(*row)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def add(self, ident: str, caller: str, kind: str, work: dict) -> Job:
        """Store a job; the same job sent again under its id is the same job. Raises Problem 409 for another one."""
        now, mark = self._clock(), _digest(kind, work)
        self._db.execute(
            "INSERT INTO jobs (id, caller, kind, digest, work, due, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (ident, caller, kind, mark, json.dumps(work), now, now, now),
        )
        job = self.get(ident)
        if (job.caller, job.kind, job.digest) != (caller, kind, mark):
            raise Problem(409, f"The job_id {ident!r} belongs to another job.")
        return job

    def get(self, ident: str) -> Job | None:
        return self._db.execute("SELECT * FROM jobs WHERE id = ?", (ident,)).fetchone()

    def claim(self, busy: set[str], first_backoff: float) -> Job | None:
        """Return the job that is due for longest and not busy, its new attempt counted; None when nothing is due."""
        now = self._clock()
        due = self._db.execute(
            "SELECT * FROM jobs WHERE state IN ('queued', 'delivering') AND due <= ? ORDER BY due LIMIT ?",
            (now, len(busy) + 1),
        )
        job = next((job for job in due.fetchall() if job.id not in busy), None)
        if job is None:
            return None
        wait = min(first_backoff * 2 ** min(job.attempts, 32), MAX_BACKOFF_SEC)
        self._db.execute("UPDATE jobs SET attempts = attempts + 1, due = ? WHERE id = ?", (now + wait, job.id))
        return self.get(job.id)

    def answered(self, ident: str, outcome: dict) -> None:
        """The job has its outcome; its callback is due at once, with attempts of its own. The request is forgotten."""
        self._db.execute(
            "UPDATE jobs SET state = 'delivering', outcome = ?, work = NULL, last_error = NULL, attempts = 0, due = ?,"
            " updated = ? WHERE id = ?",
            (json.dumps(outcome), self._clock(), self._clock(), ident),
        )

    def ended(self, ident: str, state: str, error: str | None = None) -> None:
        self._db.execute(
            "UPDATE jobs SET state = ?, last_error = ?, updated = ? WHERE id = ?", (state, error, self._clock(), ident)
        )

    def failed(self, ident: str, error: str) -> None:
        """This try came to nothing; the next one is already due at its time."""
        self._db.execute("UPDATE jobs SET last_error = ?, updated = ? WHERE id = ?", (error, self._clock(), ident))

    def forget(self, older_than: float) -> int:
        """Delete the jobs that ended before that time; return how many."""
        ended = "DELETE FROM jobs WHERE state IN ('delivered', 'undelivered') AND updated < ?"
        return self._db.execute(ended, (older_than,)).rowcount

    def counts(self) -> dict[str, int]:
        rows = self._db.cursor()
        rows.row_factory = None
        found = dict(rows.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}


class Backend:
    """The one who is called back: POST <BACKEND_CALLBACK_BASE_URL>/internal/callbacks/<kind>."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.backend_callback_base_url}/internal/callbacks"
        token = settings.backend_internal_token
        self.enabled = token is not None
        self._http = httpx.AsyncClient(
            headers={"X-Internal-Token": token.get_secret_value()} if token else None,
            timeout=settings.http_timeout_sec,
            follow_redirects=False,  # the token goes nowhere else
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def deliver(self, job: Job) -> None:
        """Raise Problem 502 unless the backend answers 2xx."""
        body = {"job_id": job.id, "kind": job.kind, **json.loads(job.outcome)}
        try:
            response = await self._http.post(f"{self._url}/{job.kind}", json=body, headers={"Idempotency-Key": job.id})
        except httpx.HTTPError as error:
            raise Problem(502, f"the backend is not reachable: {type(error).__name__}") from None
        if not response.is_success:
            hint = ": is BACKEND_INTERNAL_TOKEN the backend's?" if response.status_code in (401, 403) else ""
            raise Problem(502, f"the backend answered {response.status_code}{hint}")


class Worker:
    """Takes jobs from the store until it is cancelled.

    perform: a job's kind and work -> its result; raises Problem. Of several processes on one store, the one that
    holds the lock works; the others only accept.
    """

    def __init__(
        self, settings: Settings, store: Store, backend: Backend, perform: Callable[[str, dict], Awaitable[dict]]
    ) -> None:
        self._settings, self._store, self._backend, self._perform = settings, store, backend, perform
        self._busy: set[str] = set()
        self._lock = (settings.state_directory / "worker.lock").open("w")

    async def run(self) -> None:
        with self._lock:
            while not _locked(self._lock):
                await asyncio.sleep(POLL_SEC)
            hands = [self._forever(self._work) for _ in range(self._settings.job_concurrency)]
            await asyncio.gather(self._forever(self._forget), *hands)

    async def _forever(self, step: Callable[[], Awaitable[float]]) -> None:
        """Take the step, then pause for the seconds it returns; a full disk must neither end this nor make it spin."""
        while True:
            try:
                pause = await step()
            except (sqlite3.Error, OSError):
                logger.exception("the job store failed")
                pause = 1
            await asyncio.sleep(pause)

    async def _forget(self) -> float:
        self._store.forget(time.time() - self._settings.job_retention_days * 86400)
        return 3600

    async def _work(self) -> float:
        job = self._store.claim(self._busy, self._settings.job_backoff_sec)
        if job is None:
            return POLL_SEC
        await self._attempt(job)
        return 0

    async def _attempt(self, job: Job) -> None:
        self._busy.add(job.id)
        token = request_id.set(job.id)
        outcome, details = "interrupted", {"kind": job.kind, "state": job.state, "attempt": job.attempts}
        try:
            if job.attempts > self._settings.job_attempts:
                raise Problem(500, "The server stopped during every try.")
            await (self._answer if job.state == "queued" else self._deliver)(job)
            outcome = "ok"
        except Exception as error:
            if not isinstance(error, Problem):  # a fault of ours, which must not stop the other jobs
                logger.exception("a job met a fault")
                passing = isinstance(error, (OSError, sqlite3.Error))  # such as a full disk
                kind = Problem if passing else Permanent
                error = kind(500, f"The server met a fault: {type(error).__name__}.")
            outcome, details["error"] = "failed", error.detail
            if error.transient and job.attempts < self._settings.job_attempts:
                self._store.failed(job.id, error.detail)
            else:
                self._give_up(job, error)
        finally:
            tries.labels(job.kind, job.state, outcome).inc()
            logger.info("job tried: %s", outcome, extra=details)
            request_id.reset(token)
            self._busy.discard(job.id)

    async def _answer(self, job: Job) -> None:
        result = await self._perform(job.kind, json.loads(job.work))
        self._store.answered(job.id, {"status": "completed", **result})

    async def _deliver(self, job: Job) -> None:
        await self._backend.deliver(job)
        self._store.ended(job.id, "delivered")

    def _give_up(self, job: Job, problem: Problem) -> None:
        """No answer is an outcome too, which the backend is told; a callback that nobody takes is the end."""
        if job.state == "queued":
            self._store.answered(job.id, {"status": "failed", "error": problem.body})
        else:
            self._store.ended(job.id, "undelivered", problem.detail)


def _digest(kind: str, work: dict) -> str:
    """Tell one job's content from another's: hex SHA-256."""
    return hashlib.sha256(json.dumps([kind, work], sort_keys=True).encode()).hexdigest()


def _locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
