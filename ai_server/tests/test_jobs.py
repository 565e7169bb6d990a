"""Test jobs: accepted, answered and delivered to the backend, even if parts of the system stop in between."""

import hashlib
import signal
import sqlite3
import time

import pytest

from app.errors import Problem
from app.jobs import Phase, Store
from conftest import CALLER, OTHER_CALLER, TOKEN, empty_disk, fill_disk
from pdfs import pdf
from standins import wait_for


def name(key: str) -> str:
    """Return the name of the caller with this key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def test_callback(client, server, standins):
    accepted = client.post("/v1/easy-contract", json={"text": "rent", "callback": True})
    assert accepted.status_code == 202
    ident = accepted.json()["job_id"]
    assert accepted.headers["location"] == f"/v1/jobs/{ident}"

    done = server.job(ident, "delivered")
    (callback,) = standins.callbacks()
    assert callback["path"] == "/api/internal/callbacks/easy-contract"
    assert callback["headers"]["x-internal-token"] == TOKEN
    outcome = {"status": "completed", "model": "easycontract-adapter", "result": "easycontract-adapter on rent"}
    outcome |= {"finish_reason": "stop", "usage": {"total_tokens": 7}}
    assert callback["body"] == {"job_id": ident, "caller": name(CALLER), "kind": "easy-contract", **outcome}
    assert done["outcome"] == outcome


def test_upload_as_a_job(client, server, standins):
    sent = {"files": {"file": pdf(None)}, "data": {"job_id": "scan-1"}}
    assert client.post("/v1/checklist", **sent).json()["job_id"] == "scan-1"
    assert server.job("scan-1", "delivered")["outcome"]["result"] == "checklist-adapter on words of a scan"
    assert standins.callbacks()[0]["path"] == "/api/internal/callbacks/checklist"


def test_the_same_job_again_is_the_same_job(client, server, standins):
    for sent in ({"json": {"text": "a", "job_id": "j-1"}}, {"files": {"file": pdf("a")}, "data": {"job_id": "j-2"}}):
        first, second = (client.post("/v1/checklist", **sent) for _ in range(2))
        assert first.status_code == second.status_code == 202
    other = client.post("/v1/checklist", json={"text": "b", "job_id": "j-1"})
    assert (other.status_code, "j-1" in other.json()["error"]["message"]) == (409, True)
    assert server.job("j-1", "delivered") and server.job("j-2", "delivered")
    assert len(standins.callbacks()) == 2


def test_a_job_belongs_to_its_caller(client, server, standins):
    client.post("/v1/checklist", json={"text": "a", "job_id": "mine"})
    server.job("mine", "delivered")
    with server.client(OTHER_CALLER) as other:
        assert other.get("/v1/jobs/mine").status_code == other.delete("/v1/jobs/mine").status_code == 404
        assert other.get("/v1/jobs").json()["data"] == []
        assert other.post("/v1/easy-contract", json={"text": "b", "job_id": "mine"}).status_code == 202
        theirs = wait_for(lambda: standins.callbacks()[1:])[0]
        assert other.get("/v1/jobs/mine").json()["kind"] == "easy-contract"
    assert client.get("/v1/jobs/mine").json()["kind"] == "checklist"
    assert client.get("/v1/jobs/none").status_code == 404
    ours = standins.callbacks()[0]
    assert [message["body"]["caller"] for message in (ours, theirs)] == [name(CALLER), name(OTHER_CALLER)]
    assert ours["headers"]["idempotency-key"] != theirs["headers"]["idempotency-key"]


def test_no_token_no_jobs(new_server):
    with new_server(BACKEND_INTERNAL_TOKEN=None).start().client() as client:
        refused = client.post("/v1/checklist", json={"text": "a", "callback": True})
        assert client.post("/v1/checklist", json={"text": "a"}).status_code == 200
        assert "BACKEND_INTERNAL_TOKEN" in client.get("/health").json()["callbacks"]
    assert refused.status_code == 503
    assert "BACKEND_INTERNAL_TOKEN" in refused.json()["error"]["message"]


def test_callback_is_tried_until_it_is_taken(client, server, standins):
    standins.callback_status = [500, 401, 307, 204]
    ident = client.post("/v1/checklist", json={"text": "a", "callback": True}).json()["job_id"]
    assert server.job(ident, "delivered")["attempts"] == 4
    assert len({callback["headers"]["idempotency-key"] for callback in standins.callbacks()}) == 1
    assert len(standins.callbacks()) == 4
    assert "elsewhere" not in str(standins.callbacks())  # the redirect's target must not get the token


def test_callback_that_nobody_takes_is_given_up(new_server, standins):
    standins.callback_status = [401]
    server = new_server(JOB_ATTEMPTS="3").start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "a", "job_id": "lost"})
        job = server.job("lost", "undelivered")
        assert client.get("/health").json()["jobs"]["undelivered"] == 1
    hint = "check that BACKEND_INTERNAL_TOKEN matches the backend's token"
    assert job["last_error"] == f"the backend answered 401: {hint}"
    assert (job["attempts"], len(standins.callbacks())) == (3, 3)
    assert job["outcome"]["status"] == "completed"


def test_a_hopeless_request_is_reported_at_once(client, server, standins):
    client.post("/v1/checklist", json={"text": "too long", "job_id": "hopeless"})
    server.job("hopeless", "delivered")
    (callback,) = standins.callbacks()
    assert callback["body"]["status"] == "failed"
    assert callback["body"]["error"]["message"] == "the context is 8192 tokens"


def test_a_permanent_outage_of_vllm_is_reported(new_server, standins):
    server = new_server(VLLM_BASE_URL="http://127.0.0.1:9/v1", JOB_ATTEMPTS="2").start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "a", "job_id": "away"})
    assert server.job("away", "delivered")["outcome"]["error"]["code"] == 503


def test_callbacks_survive_a_killed_server(new_server, standins):
    standins.callback_status = [500]
    server = new_server(JOB_ATTEMPTS="1000").start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "a", "job_id": "survivor"})
    before = server.job("survivor", "delivering")["attempts"]
    server.stop(signal.SIGKILL)
    assert len(standins.callbacks()) >= before - 1  # an attempt is counted before it starts

    standins.callback_status = [200]
    server.start()
    assert server.job("survivor", "delivered")["attempts"] > before
    requests = [request["path"] for request in standins.asked]
    assert requests.count("/v1/chat/completions") == 1  # the answer was stored: only the callback repeats


def test_unanswered_jobs_survive_a_killed_server(new_server, standins):
    server = new_server().start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "hold", "job_id": "held"})
    wait_for(lambda: standins.asked)
    server.stop(signal.SIGKILL)
    standins.go_on.set()
    server.start()
    assert server.job("held", "delivered")["outcome"]["result"] == "checklist-adapter on hold"


def test_a_job_that_kills_the_server_is_retried_a_limited_number_of_times(new_server, standins):
    server = new_server(JOB_ATTEMPTS="2", JOB_BACKOFF_SEC="0.001")
    store = Store(server.directory / "state")
    add(store, "deadly")
    while store.get("caller", "deadly").attempts < 2:  # two servers claimed it and stored no outcome
        store.claim("queued", "caller", set(), 0.001)
    store.close()
    server.start()
    (callback,) = wait_for(standins.callbacks)
    assert callback["body"]["error"]["message"] == "The server stopped during every attempt."
    assert [request["path"] for request in standins.asked] == [callback["path"]]


def test_of_two_processes_one_works(new_server, standins):
    first, second = new_server(), new_server()
    second.settings["STATE_DIRECTORY"] = str(first.directory / "state")
    first.start(), second.start()
    with second.client() as client:
        for number in range(5):
            client.post("/v1/checklist", json={"text": "a", "job_id": f"job-{number}"})
    for number in range(5):
        first.job(f"job-{number}", "delivered")
    assert len(standins.callbacks()) == 5
    assert '"job tried: ok"' in first.output() and '"job tried: ok"' not in second.output()
    with second.client() as client:
        client.post("/v1/checklist", json={"text": "hold", "job_id": "unwanted"})
        wait_for(lambda: "hold" in str(standins.asked))
        assert client.delete("/v1/jobs/unwanted").json()["state"] == "cancelled"
    wait_for(lambda: standins.left, 2)


def test_list(client, server):
    for ident in ("list-1", "list-2", "list-3"):
        client.post("/v1/checklist", json={"text": "a", "job_id": ident})
        server.job(ident, "delivered")
    listed = client.get("/v1/jobs", params={"limit": 2}).json()["data"]
    assert [job["job_id"] for job in listed] == ["list-3", "list-2"]
    assert "outcome" not in listed[0]
    assert client.get("/v1/jobs?state=delivered&limit=1").json()["data"] == listed[:1]
    assert client.get("/v1/jobs?state=queued").json() == {"object": "list", "data": []}
    for query in ("limit=0", "limit=101", "limit=x", "state=none", "page=2"):
        refused = client.get(f"/v1/jobs?{query}")
        assert (refused.status_code, query.partition("=")[0] in refused.json()["error"]["message"]) == (400, True)


def test_cancel(client, server, standins):
    client.post("/v1/checklist", json={"text": "hold", "job_id": "unwanted"})
    wait_for(lambda: standins.asked)
    cancelled = client.delete("/v1/jobs/unwanted")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert wait_for(lambda: standins.left, 2) == ["hold"]  # its request to vLLM was cancelled
    assert client.delete("/v1/jobs/unwanted").json() == cancelled.json()
    client.post("/v1/checklist", json={"text": "a", "job_id": "wanted"})
    server.job("wanted", "delivered")
    assert (client.delete("/v1/jobs/wanted").status_code, client.delete("/v1/jobs/none").status_code) == (409, 404)
    assert [callback["body"]["job_id"] for callback in standins.callbacks()] == ["wanted"]


def test_cancel_a_callback_that_nobody_takes(client, server, standins):
    standins.backend_holds = True
    client.post("/v1/checklist", json={"text": "a", "job_id": "answered"})
    wait_for(standins.callbacks)
    assert client.delete("/v1/jobs/answered").json()["state"] == "cancelled"
    wait_for(lambda: standins.left, 2)
    standins.go_on.set()
    assert client.get("/v1/jobs/answered").json()["outcome"]["status"] == "completed"
    assert len(standins.callbacks()) == 1


def test_a_caller_may_have_so_many_open_jobs(new_server, standins):
    server = new_server(JOB_LIMIT_PER_CALLER="2").start()
    with server.client() as client, server.client(OTHER_CALLER) as other:
        taken = [client.post("/v1/checklist", json={"text": "hold", "job_id": f"{n}"}) for n in (1, 2, 3, 2)]
        assert [answer.status_code for answer in taken] == [202, 202, 429, 202]
        assert "You have 2 open jobs" in taken[2].json()["error"]["message"] and int(taken[2].headers["retry-after"])
        assert other.post("/v1/checklist", json={"text": "a", "job_id": "1"}).status_code == 202
        standins.go_on.set()
        server.job("1", "delivered")
        assert client.post("/v1/checklist", json={"text": "a", "job_id": "3"}).status_code == 202


def test_neither_callers_nor_callbacks_wait_for_each_other(new_server, standins):
    server = new_server(JOB_CONCURRENCY="2", JOB_CALLBACK_CONCURRENCY="1").start()
    with server.client() as client, server.client(OTHER_CALLER) as other:
        standins.callback_status = [500, 500, 500, 200]
        other.post("/v1/checklist", json={"text": "early", "job_id": "early"})
        for number in range(20):
            client.post("/v1/checklist", json={"text": f"hold {number}", "job_id": f"many-{number}"})
        other.post("/v1/checklist", json={"text": "late", "job_id": "late"})
        for ident in ("early", "late"):  # although the other caller's jobs use all places that they may
            wait_for(lambda ident=ident: other.get(f"/v1/jobs/{ident}").json()["state"] == "delivered")
        assert len(standins.callbacks()) == 5
        standins.backend_holds = True
        other.post("/v1/checklist", json={"text": "held by the backend", "job_id": "held"})
        wait_for(lambda: standins.callbacks()[5:])
        other.post("/v1/checklist", json={"text": "answered meanwhile", "job_id": "meanwhile"})
        wait_for(lambda: other.get("/v1/jobs/meanwhile").json()["state"] == "delivering")
    standins.go_on.set()
    server.job("many-19", "delivered")


def test_a_scan_without_an_ocr_service_is_reported_at_once(new_server, standins):
    server = new_server(OCR_URL=None).start()
    with server.client() as client:
        client.post("/v1/checklist", files={"file": pdf(None)}, data={"job_id": "scan"})
    error = server.job("scan", "delivered")["outcome"]["error"]
    assert (error["code"], "OCR_URL is not set" in error["message"]) == (503, True)
    assert server.output().count('"job tried: failed"') == 1


def test_a_full_disk_is_reported_and_survived(new_server, standins):
    server = new_server().start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "hold", "job_id": "answered-meanwhile"})
        wait_for(lambda: standins.asked)
        fill_disk(server.process.pid)

        refused = client.post("/v1/checklist", json={"text": "a", "job_id": "refused"})
        assert (refused.status_code, "STATE_DIRECTORY" in refused.json()["error"]["message"]) == (503, True)
        assert client.delete("/v1/jobs/answered-meanwhile").status_code == 503
        upload = client.post("/v1/checklist", files={"file": pdf("a")})
        assert (upload.status_code, "RESOURCES_DIRECTORY" in upload.json()["error"]["message"]) == (503, True)
        large = client.post("/v1/checklist", files={"file": pdf("a") + b"x" * 3_000_000})
        assert (large.status_code, "cannot be received" in large.json()["error"]["message"]) == (503, True)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        for part in ("store", "uploads"):
            assert "cannot be written" in health.json()[part]
        assert client.post("/v1/checklist", json={"text": "at once"}).status_code == 200
        standins.go_on.set()
        time.sleep(0.5)
        assert standins.callbacks() == []

        empty_disk(server.process.pid)
        server.job("answered-meanwhile", "delivered")
        assert [request["body"]["messages"][-1]["content"] for request in standins.asked[:-1]] == ["hold", "at once"]
        assert client.post("/v1/checklist", json={"text": "a", "job_id": "refused"}).status_code == 202
        wait_for(lambda: client.get("/health").json()["status"] == "ok")


@pytest.mark.parametrize("before", [True, False], ids=["with-jobs", "the-first"])
def test_a_start_on_a_full_disk_serves_what_needs_none_and_the_rest_later(new_server, standins, before):
    server = new_server()
    if before:
        server.start()
        with server.client() as client:
            client.post("/v1/checklist", json={"text": "hold", "job_id": "of-before"})
            wait_for(lambda: standins.asked)
        server.stop(signal.SIGKILL)
        standins.go_on.set()
    server.start(full_disk=True)
    with server.client() as client:
        assert client.post("/v1/checklist", json={"text": "at once"}).status_code == 200
        refused = client.post("/v1/checklist", json={"text": "a", "job_id": "a"})
        assert (refused.status_code, "STATE_DIRECTORY" in refused.json()["error"]["message"]) == (503, True)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert "cannot be written" in health.json()["store"]
        empty_disk(server.process.pid)
        wait_for(lambda: client.get("/health").json()["status"] == "ok")
        assert client.post("/v1/checklist", json={"text": "a", "job_id": "a"}).status_code == 202
        server.job("a", "delivered")
        assert sum(row["requests"] for row in client.get("/v1/usage").json()["data"]) >= 2
    if before:
        server.job("of-before", "delivered")


def test_a_file_that_is_not_a_database_is_not_reported_as_a_full_disk(tmp_path):
    (tmp_path / "jobs.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        Store(tmp_path)


def test_no_proxy_without_a_setting(new_server, standins):
    server = new_server(HTTP_PROXY="http://127.0.0.1:9", ALL_PROXY="http://127.0.0.1:9").start()
    with server.client() as client:
        client.post("/v1/checklist", files={"file": pdf(None)}, data={"job_id": "direct"})
    assert server.job("direct", "delivered")["attempts"] == 1

    unreachable = {"OCR_URL": "http://ocr.invalid/", "BACKEND_CALLBACK_BASE_URL": "http://backend.invalid/"}
    server = new_server(
        HTTP_PROXY=standins.url, BACKEND_USES_PROXY="true", OCR_USES_PROXY="true", **unreachable
    ).start()
    with server.client() as client:
        client.post("/v1/checklist", files={"file": pdf(None)})
        client.post("/v1/checklist", json={"text": "a", "job_id": "proxied"})

        def hosts() -> set[str]:  # the hosts that clients asked the stand-in for, as a proxy
            return {request["headers"]["host"] for request in standins.asked}

        wait_for(lambda: {"ocr.invalid", "backend.invalid"} <= hosts())


def test_kills_lose_nothing_and_change_no_result(new_server, standins):
    server = new_server().start()
    jobs = [(key, f"kill-{number}") for number in range(25) for key in (CALLER, OTHER_CALLER)]
    with server.client() as client, server.client(OTHER_CALLER) as other:
        for number, (key, ident) in enumerate(jobs):
            sent = {"text": f"{key} {ident}", "job_id": ident}
            (client if key == CALLER else other).post("/v1/checklist", json=sent)
            if number % 12 == 11:
                server.stop(signal.SIGKILL)
                server.start()
        wait_for(lambda: client.get("/health").json()["jobs"]["delivered"] == len(jobs), 30)
    received = {}
    for callback in standins.callbacks():
        body, key = callback["body"], callback["headers"]["idempotency-key"]
        assert received.setdefault(key, body) == body
    results = {(body["caller"], body["job_id"]): body["result"] for body in received.values()}
    assert results == {(name(key), ident): f"checklist-adapter on {key} {ident}" for key, ident in jobs}
    assert len(received) == len(jobs)


VERSION_0 = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, caller TEXT NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL, work TEXT,
    state TEXT NOT NULL DEFAULT 'queued', outcome TEXT, last_error TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, created REAL NOT NULL, updated REAL NOT NULL
);
CREATE INDEX jobs_due ON jobs (state, due);
"""


def test_a_store_of_the_version_before(new_server, standins):
    server, now = new_server(), time.time()
    outcome = '{"status": "completed", "result": "r"}'
    rows = [
        ("waits", '{"text": "old"}', "queued", None, 1),
        ("told", None, "delivering", outcome, 3),
        ("done", None, "delivered", outcome, 1),
    ]
    file = server.directory / "state/jobs.sqlite3"
    with sqlite3.connect(file) as old:
        old.executescript(VERSION_0)
        for ident, work, state, result, attempts in rows:
            values = (ident, name(CALLER), "checklist", "digest", work, state, result, None, attempts, now, now, now)
            old.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 12)})", values)
        columns = old.execute("SELECT name FROM pragma_table_info('jobs')").fetchall()
    server.start()
    for ident in ("waits", "told", "done"):
        server.job(ident, "delivered")
    callbacks = {callback["body"]["job_id"]: callback for callback in standins.callbacks()}
    assert set(callbacks) == {"waits", "told"}
    assert callbacks["told"]["headers"]["idempotency-key"] == "told"  # the backend may already have seen this key
    assert callbacks["waits"]["headers"]["idempotency-key"] != "waits"
    with server.client() as client, server.client(OTHER_CALLER) as other:
        assert [job["attempts"] for job in client.get("/v1/jobs").json()["data"]].count(1) == 2
        assert other.post("/v1/checklist", json={"text": "a", "job_id": "done"}).status_code == 202
    server.stop(signal.SIGKILL)
    server.start()  # the second start has nothing to migrate
    server.job("done", "delivered")
    with sqlite3.connect(file) as new:  # after a rollback, the previous version reads columns by order
        assert new.execute("SELECT name FROM pragma_table_info('jobs')").fetchall() == columns


def add(store: Store, ident: str, caller: str = "caller", kind: str = "checklist", limit: int = 100):
    return store.add(ident, caller, kind, {"text": f"private {ident}"}, limit)


class TestStore:
    @pytest.fixture
    def store(self, tmp_path):
        self.now = 1000.0
        store = Store(tmp_path, clock=lambda: self.now)
        yield store
        store.close()

    def test_waits_double_and_are_bounded(self, store):
        add(store, "a")
        waits = []
        for _ in range(12):
            job = store.claim("queued", "caller", set(), first_backoff=2)
            waits.append(job.due - self.now)
            assert store.claim("queued", "caller", set(), first_backoff=2) is None
            self.now = job.due
        assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]

    def test_what_is_due_longest_comes_first_but_never_twice_at_once(self, store):
        for ident in ("a", "b"):
            add(store, ident)
            self.now += 1
        assert store.claim("queued", "caller", set(), 0.01).id == "a"
        self.now += 1
        assert store.claim("queued", "caller", {("caller", "a")}, 0.01).id == "b"
        self.now += 1
        assert store.claim("queued", "caller", {("caller", "a"), ("caller", "b")}, 0.01) is None

    def test_a_clock_that_was_set_back_holds_no_job_up(self, store):
        add(store, "new")
        add(store, "tried")
        store.claim("queued", "caller", {("caller", "new")}, 2)
        self.now -= 86_400
        phase = Phase(store, "queued", 3, 2)
        assert {phase.claim().id for _ in range(2)} == {"new", "tried"}
        assert phase.claim() is None

    def test_callers_take_turns(self, store):
        for ident in "abcdef":
            add(store, ident, "many")
        self.now += 1
        add(store, "a", "few"), add(store, "b", "few")
        one = Phase(store, "queued", 1, 60)
        assert [job.caller for job in iter(one.claim, None)] == ["many", "few", "many", "few", *["many"] * 4]

    def test_one_caller_never_has_all_hands(self, store):
        for ident in "abc":
            add(store, ident, "many")
        phase = Phase(store, "queued", 3, 60)
        for _ in range(2):
            phase.running[phase.claim()] = None
        assert phase.claim() is None
        add(store, "a", "few")
        assert phase.claim().caller == "few"

    def test_an_answered_job_forgets_its_request(self, store):
        add(store, "a")
        store.answered(store.claim("queued", "caller", set(), 2), {"status": "completed", "result": "r"})
        job = store.get("caller", "a")
        assert (job.state, job.work, job.attempts, job.due) == ("delivering", None, 0, self.now)
        assert add(store, "a") == job
        with pytest.raises(Problem, match="already used by another of your jobs"):
            add(store, "a", kind="easy-contract")

    def test_only_ended_jobs_are_forgotten(self, store):
        job = add(store, "ended")
        add(store, "cancelled"), add(store, "open")
        store.answered(job, {})
        store.ended(job, "delivered")
        store.cancel("caller", "cancelled")
        assert store.forget(older_than=self.now) == 0
        assert store.forget(older_than=self.now + 1) == 2
        assert (store.get("caller", "ended"), store.counts()["queued"]) == (None, 1)

    def test_no_two_jobs_have_a_key(self, store):
        first, another = add(store, "a"), add(store, "a", "another caller")
        assert first.key == store.get("caller", "a").key
        store.cancel("caller", "a")
        self.now += 1
        store.forget(older_than=self.now)  # makes the id available again
        assert len({first.key, another.key, add(store, "a").key}) == 3

    def test_a_cancelled_job_stays_cancelled(self, store):
        job = add(store, "a")
        assert store.cancel("caller", "a").state == "cancelled"
        store.answered(job, {"status": "completed"})
        store.ended(job, "delivered")
        store.failed(job, "away")
        assert store.get("caller", "a") == store.cancel("caller", "a")
        assert (store.get("caller", "a").outcome, store.get("caller", "a").work) == (None, None)

    def test_only_open_jobs_count_against_the_limit(self, store):
        for ident in "ab":
            add(store, ident, limit=2)
        with pytest.raises(Problem, match="You have 2 open jobs, the maximum; wait"):
            add(store, "c", limit=2)
        assert add(store, "b", limit=2) and add(store, "c", "another", limit=2)
        store.cancel("caller", "a")
        assert add(store, "c", limit=2)

    def test_every_change_is_on_disk(self, store, tmp_path):
        add(store, "a")
        store.claim("queued", "caller", set(), 2)
        with sqlite3.connect(tmp_path / "jobs.sqlite3") as another:
            assert another.execute("SELECT state, attempts FROM jobs").fetchall() == [("queued", 1)]
