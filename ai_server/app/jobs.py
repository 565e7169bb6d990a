"""Jobs: accepted at once, answered in the background, delivered to the backend; they survive restarts.

A job is a row in SQLite; its key is the caller and the caller's id for it. Its states: `queued` -> `delivering` (it has
an outcome: a result or an error) -> `delivered`, or `undelivered` if JOB_ATTEMPTS callbacks failed. Before that, the
caller can cancel it (`cancelled`). Each attempt is stored, with the time of the next one, before it starts: a process
that dies in between neither loses a job nor repeats it endlessly. The backend is called at least once; it detects
duplicates by the `Idempotency-Key` (Job.key). The wait doubles with each attempt. Permanent errors (a rejected request,
an unreadable answer) are not retried.
"""

import asyncio
import fcntl
import hashlib
import itertools
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from prometheus_client import Counter

from app import tracing
from app.database import Database, transaction
from app.errors import Permanent, Problem
from app.logs import request_id
from app.settings import Settings
from app.uploads import Uploads

POLL_SEC = 0.2
STORE_PAUSE_SEC = 1  # before the next try to write the store
DAY_SEC, FORGET_EVERY_SEC = 86_400, 3600
MAX_BACKOFF_SEC = 600
STATES = ("queued", "delivering", "delivered", "undelivered", "cancelled")
RETRY_LATER = {"Retry-After": "60"}
# No job waits longer than MAX_BACKOFF_SEC; a later due time was stored before the clock was set back.
DUE = f"NOT (due > ? AND due <= ? + {MAX_BACKOFF_SEC})"
OPEN, ENDED = "('queued', 'delivering')", "('delivered', 'undelivered', 'cancelled')"

VERSION = 2  # PRAGMA user_version; version 0 had the same columns, but ids were unique across callers
# The columns and their order stay those of version 0, so that the previous release can still read the jobs.
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS jobs ("
    " id TEXT NOT NULL, caller TEXT NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL, work TEXT,"
    " state TEXT NOT NULL DEFAULT 'queued', outcome TEXT, last_error TEXT,"
    " attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,"
    " PRIMARY KEY (caller, id))",
    "CREATE INDEX IF NOT EXISTS jobs_turn ON jobs (state, caller, due)",
    "CREATE INDEX IF NOT EXISTS jobs_newest ON jobs (caller, created)",
    "CREATE TABLE IF NOT EXISTS told_by_id (caller TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (caller, id))",
)
MIGRATION = (
    "ALTER TABLE jobs RENAME TO jobs_0",
    *SCHEMA,
    "INSERT INTO jobs SELECT * FROM jobs_0",
    # Version 0 may have called the backend for these; its Idempotency-Key was only the id.
    "INSERT INTO told_by_id SELECT caller, id FROM jobs WHERE state = 'delivering'",
    "DROP TABLE jobs_0",
)
SELECT = (
    "SELECT jobs.*, EXISTS (SELECT 1 FROM told_by_id AS told WHERE (told.caller, told.id) = (jobs.caller, jobs.id))"
    " FROM jobs"
)

logger = logging.getLogger(__name__)
tries = Counter("ai_server_job_tries", "Attempts to answer a job or deliver its callback", ["kind", "phase", "outcome"])


@dataclass(frozen=True)
class Job:
    """One row. work: the request as JSON, or None after its answer; outcome: what the backend gets, as JSON."""

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
    told_by_id: int

    @property
    def name(self) -> tuple[str, str]:
        """The job's key: ids are unique per caller."""
        return self.caller, self.id

    @property
    def key(self) -> str:
        """The Idempotency-Key: unique, also across callers and if a deleted job's id is used again."""
        if self.told_by_id:
            return self.id
        return hashlib.sha256(f"{self.caller}\n{self.id}\n{self.created!r}".encode()).hexdigest()[:32]

    def summary(self) -> dict:
        """Return the fields that a list of jobs shows to the caller."""
        shown = {"job_id": self.id, "kind": self.kind, "state": self.state, "attempts": self.attempts}
        return shown | {"last_error": self.last_error, "created": round(self.created), "updated": round(self.updated)}

    def public(self) -> dict:
        """Return all fields that the caller may see."""
        return self.summary() | {"outcome": json.loads(self.outcome) if self.outcome else None}


class Store:
    """The jobs on disk. Every method commits before it returns; times are in seconds since the epoch.

    All methods raise sqlite3.Error; in a request, errors.store_unavailable answers it with 503.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._database = Database(directory / "jobs.sqlite3", _migrate)

    def close(self) -> None:
        self._database.close()

    @property
    def _db(self) -> sqlite3.Connection:
        return self._database.opened()

    def _transaction(self) -> AbstractContextManager[None]:
        return transaction(self._db)

    def _jobs(self, which: str, *values: object) -> list[Job]:
        return [Job(*row) for row in self._db.execute(f"{SELECT} {which}", values)]

    def add(self, ident: str, caller: str, kind: str, work: dict, limit: int) -> Job:
        """Store a job and return it; if the caller sent it before with this id and content, return the existing job.

        Raises Problem: 409 if the id belongs to other content, 429 if the caller has `limit` open jobs.
        """
        now, mark = self._clock(), _digest(kind, work)
        with self._transaction():
            job = self.get(caller, ident)
            if job is None:
                counting = f"SELECT count(*) FROM jobs WHERE state IN {OPEN} AND caller = ?"
                if self._db.execute(counting, (caller,)).fetchone()[0] >= limit:
                    why = f"You have {limit} open jobs, the maximum; wait until some have ended."
                    raise Problem(429, why, RETRY_LATER)
                self._db.execute(
                    "INSERT INTO jobs (id, caller, kind, digest, work, due, created, updated)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (ident, caller, kind, mark, json.dumps(work), now, now, now),
                )
                job = self.get(caller, ident)
        if (job.kind, job.digest) != (kind, mark):
            raise Problem(409, f"The job_id {ident!r} is already used by another of your jobs.")
        return job

    def get(self, caller: str, ident: str) -> Job | None:
        return next(iter(self._jobs("WHERE caller = ? AND id = ?", caller, ident)), None)

    def newest(self, caller: str, limit: int, state: str | None = None) -> list[Job]:
        """Return the caller's jobs, newest first; without `state`, those in all states."""
        chosen = "WHERE caller = ? AND ifnull(state = ?, TRUE) ORDER BY created DESC, rowid DESC LIMIT ?"
        return self._jobs(chosen, caller, state, limit)

    def cancel(self, caller: str, ident: str) -> Job | None:
        """Cancel a job if it is open and delete its request; return the job after that, or None if there is none."""
        self._db.execute(
            "UPDATE jobs SET state = 'cancelled', work = NULL, updated = ?"
            f" WHERE caller = ? AND id = ? AND state IN {OPEN}",
            (self._clock(), caller, ident),
        )
        return self.get(caller, ident)

    def callers(self, state: str, but: Sequence[str] = ()) -> list[str]:
        """Return the callers that have a due job in this state, ordered by the oldest due time.

        but: kinds of jobs to ignore.
        """
        due = f"SELECT caller FROM jobs WHERE state = ? AND {DUE} AND {_none_of(but)} GROUP BY caller ORDER BY min(due)"
        now = self._clock()
        return [caller for (caller,) in self._db.execute(due, (state, now, now, *but))]

    def claim(
        self, state: str, caller: str, busy: set[tuple[str, str]], first_backoff: float, but: Sequence[str] = ()
    ) -> Job | None:
        """Count a new attempt for the caller's oldest due job in this state that is not busy, and return that job.

        None if there is no such job. but: kinds of jobs to ignore.
        """
        now = self._clock()
        chosen = f"state = ? AND caller = ? AND {DUE} AND {_none_of(but)}"
        due = self._db.execute(
            f"SELECT id, attempts FROM jobs WHERE {chosen} ORDER BY due LIMIT ?",
            (state, caller, now, now, *but, len(busy) + 1),
        ).fetchall()
        ident, attempts = next((row for row in due if (caller, row[0]) not in busy), (None, 0))
        if ident is None:
            return None
        wait = min(first_backoff * 2 ** min(attempts, 32), MAX_BACKOFF_SEC)
        counted = self._db.execute(
            "UPDATE jobs SET attempts = attempts + 1, due = ? WHERE caller = ? AND id = ? AND state = ?",
            (now + wait, caller, ident, state),
        )
        return self.get(caller, ident) if counted.rowcount else None  # another process may have cancelled it

    def answered(self, job: Job, outcome: dict) -> None:
        """Store a job's outcome and delete its request; its callback is due at once, with attempts counted from 0."""
        self._db.execute(
            "UPDATE jobs SET state = 'delivering', outcome = ?, work = NULL, last_error = NULL, attempts = 0, due = ?,"
            " updated = ? WHERE caller = ? AND id = ? AND state = 'queued'",
            (json.dumps(outcome), self._clock(), self._clock(), *job.name),
        )

    def ended(self, job: Job, state: str, error: str | None = None) -> None:
        self._db.execute(
            "UPDATE jobs SET state = ?, last_error = ?, updated = ?"
            " WHERE caller = ? AND id = ? AND state = 'delivering'",
            (state, error, self._clock(), *job.name),
        )

    def failed(self, job: Job, error: str) -> None:
        """Store the error of a failed attempt; the time of the next one is already stored."""
        self._db.execute(
            "UPDATE jobs SET last_error = ?, updated = ? WHERE caller = ? AND id = ? AND state = ?",
            (error, self._clock(), *job.name, job.state),
        )

    def state(self, job: Job) -> str | None:
        """Return the job's current state; None if it was deleted."""
        chosen = "SELECT state FROM jobs WHERE caller = ? AND id = ?"
        return next((state for (state,) in self._db.execute(chosen, job.name)), None)

    def forget(self, older_than: float) -> int:
        """Delete the jobs that ended before this time; return their number."""
        ended = f"DELETE FROM jobs WHERE state IN {ENDED} AND updated < ?"
        deleted = self._db.execute(ended, (older_than,)).rowcount
        self._db.execute("DELETE FROM told_by_id WHERE (caller, id) NOT IN (SELECT caller, id FROM jobs)")
        return deleted

    def uploads(self) -> set[str]:
        """Return the names of the uploads that queued jobs still need."""
        waiting = self._db.execute("SELECT work FROM jobs WHERE state = 'queued' AND work LIKE '%\"upload\"%'")
        return {json.loads(work).get("upload") for (work,) in waiting}

    def counts(self) -> dict[str, int]:
        found = dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}


class Backend:
    """The receiver of callbacks: POST <BACKEND_CALLBACK_BASE_URL>/internal/callbacks/<kind>."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.backend_callback_base_url}/internal/callbacks"
        token = settings.backend_internal_token
        self.enabled = token is not None
        self._http = httpx.AsyncClient(
            headers={"X-Internal-Token": token.get_secret_value()} if token else None,
            timeout=settings.http_timeout_sec,
            follow_redirects=False,  # would send the token to another host
            trust_env=settings.backend_uses_proxy,  # a proxy sees the token if the URL is http://
            verify=httpx.create_ssl_context(),  # uses SSL_CERT_FILE even without trust_env
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def deliver(self, job: Job) -> None:
        """Raise Problem 502 unless the backend answers 2xx."""
        body = {"job_id": job.id, "caller": job.caller, "kind": job.kind, **json.loads(job.outcome)}
        try:
            response = await self._http.post(f"{self._url}/{job.kind}", json=body, headers={"Idempotency-Key": job.key})
        except httpx.HTTPError as error:
            raise Problem(502, f"the backend is not reachable: {type(error).__name__}") from None
        if not response.is_success:
            status, hint = response.status_code, ""
            if status in (401, 403):
                hint = ": check that BACKEND_INTERNAL_TOKEN matches the backend's token"
            raise Problem(502, f"the backend answered {status}{hint}")


class Phase:
    """The running jobs of one state, at most `size`; callers take turns, except those that are not `ready`.

    waits: returns the kinds of jobs that must not start now; no attempt is counted for them. One caller gets at most
    `size - 1` places (at least one), so that another caller's job can start at once.
    """

    def __init__(
        self,
        store: Store,
        state: str,
        size: int,
        first_backoff: float,
        ready: Callable[[str], bool] = lambda _: True,
        waits: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._store, self._state, self._backoff, self._ready, self._waits = store, state, first_backoff, ready, waits
        self._most = max(1, size - 1)
        self._served: dict[str, int] = {}  # caller -> number of its last turn; never deleted, as callers are few
        self._numbers = itertools.count(1)
        self.size = size
        self.running: dict[Job, asyncio.Task] = {}

    def claim(self) -> Job | None:
        """Count a new attempt for the next job and return the job; None if there is none."""
        busy = {job.name for job in self.running}
        have = [caller for caller, _ in busy]
        waits = self._waits()
        callers = [caller for caller in self._store.callers(self._state, waits) if have.count(caller) < self._most]
        for caller in sorted(callers, key=lambda each: (have.count(each), self._served.get(each, 0))):
            if not self._ready(caller):  # waits; no attempt is counted
                continue
            job = self._store.claim(self._state, caller, busy, self._backoff, waits)
            if job:
                self._served[caller] = next(self._numbers)
                return job
        return None


class Worker:
    """Processes jobs from the store until it is cancelled; answers and callbacks do not wait for each other.

    perform: returns the result for a job's kind, work and caller; raises Problem. ready: returns whether this caller's
    jobs may be answered now. waits: returns the kinds of jobs that cannot be answered now. If several processes share
    a store, only the one that holds the lock processes jobs; the others only accept them.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        backend: Backend,
        uploads: Uploads,
        perform: Callable[[str, dict, str], Awaitable[dict]],
        ready: Callable[[str], bool],
        waits: Callable[[], Sequence[str]],
    ) -> None:
        self._settings, self._store, self._backend = settings, store, backend
        self._uploads, self._perform = uploads, perform
        self._phases = [
            Phase(store, "queued", settings.job_concurrency, settings.job_backoff_sec, ready, waits),
            Phase(store, "delivering", settings.job_callback_concurrency, settings.job_backoff_sec),
        ]
        self._lock = (settings.state_directory / "worker.lock").open("w")

    async def run(self) -> None:
        with self._lock:
            while not _locked(self._lock):
                await asyncio.sleep(POLL_SEC)
            steps = [partial(self._work, phase) for phase in self._phases for _ in range(phase.size)]
            await asyncio.gather(*(self._forever(step) for step in (self._forget, self._stop_cancelled, *steps)))

    async def _forever(self, step: Callable[[], Awaitable[float]]) -> None:
        """Repeat the step, pausing for the seconds it returns; a full disk must neither end nor spin the loop."""
        failing = False
        while True:
            try:
                pause = await step()
                failing = False
            except (sqlite3.Error, OSError) as error:
                if not failing:
                    logger.error("the job store failed", extra={"error": f"{type(error).__name__}: {error}"})
                failing, pause = True, STORE_PAUSE_SEC
            await asyncio.sleep(pause)

    async def _forget(self) -> float:
        now, days = time.time(), self._settings.upload_retention_days
        self._store.forget(now - self._settings.job_retention_days * DAY_SEC)
        older, needed = now - days * DAY_SEC if days else 0, self._store.uploads()
        try:
            removed = await asyncio.to_thread(self._uploads.remove, older, needed)  # a new job has a new PDF
            if removed:
                logger.info("uploads removed", extra={"count": removed, "days": days})
        except OSError as error:
            logger.error("uploads cannot be removed", extra={"error": f"{type(error).__name__}: {error}"})
        return FORGET_EVERY_SEC

    async def _stop_cancelled(self) -> float:
        """Stop the running jobs that any process cancelled; this also ends their requests in vLLM."""
        for phase in self._phases:
            for job, attempt in phase.running.items():
                if self._store.state(job) == "cancelled":
                    attempt.cancel()
        return POLL_SEC

    async def _work(self, phase: Phase) -> float:
        job = phase.claim()
        if job is None:
            return POLL_SEC
        attempt = phase.running[job] = asyncio.create_task(self._attempt(job))
        try:
            await asyncio.wait({attempt})
        finally:
            attempt.cancel()
            (failure,) = await asyncio.gather(attempt, return_exceptions=True)
            del phase.running[job]
        if isinstance(failure, Exception):
            raise failure
        return 0

    async def _attempt(self, job: Job) -> None:
        request_id.set(job.id)
        outcome, details = "interrupted", {"kind": job.kind, "state": job.state, "attempt": job.attempts}
        details["caller"] = job.caller
        try:
            if job.attempts > self._settings.job_attempts:
                raise Problem(500, "The server stopped during every attempt.")
            await (self._answer if job.state == "queued" else self._deliver)(job)
            outcome = "ok"
        except Exception as error:
            if not isinstance(error, Problem):  # a bug must not stop the other jobs
                logger.exception("a job failed with an internal error")
                passing = isinstance(error, (OSError, sqlite3.Error))  # such as a full disk
                kind = Problem if passing else Permanent
                error = kind(500, f"Internal error ({type(error).__name__}); see the server log.")
            outcome, details["error"] = "failed", error.detail
            if error.transient and job.attempts < self._settings.job_attempts:
                await self._write(self._store.failed, job, error.detail)
            else:
                await self._give_up(job, error)
        finally:
            tries.labels(job.kind, job.state, outcome).inc()
            logger.info("job tried: %s", outcome, extra=details)

    async def _answer(self, job: Job) -> None:
        work = json.loads(job.work)
        with tracing.job(job.kind, job.id, work.pop("trace", None)):
            result = await self._perform(job.kind, work, job.caller)
        await self._write(self._store.answered, job, {"status": "completed", **result})

    async def _deliver(self, job: Job) -> None:
        await self._backend.deliver(job)
        await self._write(self._store.ended, job, "delivered")

    async def _give_up(self, job: Job, problem: Problem) -> None:
        """Store the final failure: a failed answer is an outcome for the backend, a failed callback ends the job."""
        if job.state == "queued":
            await self._write(self._store.answered, job, {"status": "failed", "error": problem.body})
        else:
            await self._write(self._store.ended, job, "undelivered", problem.detail)

    async def _write(self, method: Callable[..., None], *values: object) -> None:
        """Store how an attempt ended; wait while the disk is full, so that no answer or callback is repeated for it."""
        while True:
            try:
                return method(*values)
            except sqlite3.OperationalError as error:
                logger.error("the job store cannot be written", extra={"error": str(error)})
                await asyncio.sleep(STORE_PAUSE_SEC)


def _migrate(db: sqlite3.Connection) -> None:
    with transaction(db):  # if several processes start, only one migrates
        (version,) = db.execute("PRAGMA user_version").fetchone()
        there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone()
        if version < VERSION:  # otherwise write nothing: the disk may be full
            for statement in MIGRATION if there else SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")


def _none_of(kinds: Sequence[str]) -> str:
    """Return the SQL condition that excludes these kinds, with one placeholder for each."""
    return f"kind NOT IN ({', '.join('?' * len(kinds))})"


def _digest(kind: str, work: dict) -> str:
    """Return the SHA-256 of a job's content as hex digits, to compare jobs."""
    request = {name: value for name, value in work.items() if name != "trace"}  # a repeated request has another trace
    return hashlib.sha256(json.dumps([kind, request], sort_keys=True).encode()).hexdigest()


def _locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
