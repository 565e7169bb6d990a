"""Jobs: accepted, answered, told to the backend, whatever stops in between."""

import signal
import sqlite3

import pytest

from app.errors import Problem
from app.jobs import Store
from conftest import OTHER_CALLER, TOKEN
from pdfs import pdf
from standins import wait_for


def test_callback(client, server, standins):
    accepted = client.post("/v1/easy-contract", json={"text": "rent", "callback": True})
    assert accepted.status_code == 202
    ident = accepted.json()["job_id"]
    assert accepted.headers["location"] == f"/v1/jobs/{ident}"

    done = server.job(ident, "delivered")
    (callback,) = standins.callbacks()
    assert callback["path"] == "/api/internal/callbacks/easy-contract"
    assert callback["headers"]["x-internal-token"] == TOKEN
    assert callback["headers"]["idempotency-key"] == ident
    outcome = {"status": "completed", "model": "easycontract-adapter", "result": "easycontract-adapter on rent"}
    outcome |= {"finish_reason": "stop", "usage": {"total_tokens": 7}}
    assert callback["body"] == {"job_id": ident, "kind": "easy-contract", **outcome}
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


def test_a_job_is_its_callers_alone(client, server):
    client.post("/v1/checklist", json={"text": "a", "job_id": "mine"})
    server.job("mine", "delivered")
    with server.client(OTHER_CALLER) as other:
        assert other.get("/v1/jobs/mine").status_code == 404
        assert other.post("/v1/checklist", json={"text": "a", "job_id": "mine"}).status_code == 409
    assert client.get("/v1/jobs/none").status_code == 404


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
    assert {callback["headers"]["idempotency-key"] for callback in standins.callbacks()} == {ident}
    assert len(standins.callbacks()) == 4
    assert "elsewhere" not in str(standins.callbacks())  # where the redirect leads: the token goes nowhere else


def test_callback_that_nobody_takes_is_given_up(new_server, standins):
    standins.callback_status = [401]
    server = new_server(JOB_ATTEMPTS="3").start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "a", "job_id": "lost"})
        job = server.job("lost", "undelivered")
        assert client.get("/health").json()["jobs"]["undelivered"] == 1
    assert job["last_error"] == "the backend answered 401: is BACKEND_INTERNAL_TOKEN the backend's?"
    assert (job["attempts"], len(standins.callbacks())) == (3, 3)
    assert job["outcome"]["status"] == "completed"


def test_a_hopeless_request_is_told_at_once(client, server, standins):
    client.post("/v1/checklist", json={"text": "too long", "job_id": "hopeless"})
    server.job("hopeless", "delivered")
    (callback,) = standins.callbacks()
    assert callback["body"]["status"] == "failed"
    assert callback["body"]["error"]["message"] == "the context is 8192 tokens"


def test_vllm_away_for_good_is_told_too(new_server, standins):
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
    assert len(standins.callbacks()) >= before - 1  # a try is counted before it is made

    standins.callback_status = [200]
    server.start()
    assert server.job("survivor", "delivered")["attempts"] > before
    asked = [asked["path"] for asked in standins.asked]
    assert asked.count("/v1/chat/completions") == 1  # the answer was kept: only the callback is made again


def test_unanswered_jobs_survive_a_killed_server(new_server, standins):
    server = new_server().start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "hold", "job_id": "held"})
    wait_for(lambda: standins.asked)
    server.stop(signal.SIGKILL)
    standins.go_on.set()
    server.start()
    assert server.job("held", "delivered")["outcome"]["result"] == "checklist-adapter on hold"


def test_a_job_that_kills_the_server_is_not_tried_for_ever(new_server, standins):
    server = new_server(JOB_ATTEMPTS="2", JOB_BACKOFF_SEC="0.001")
    store = Store(server.directory / "state")
    store.add("deadly", "caller", "checklist", {"text": "a"})
    while store.get("deadly").attempts < 2:  # two servers took it, and neither wrote how it ended
        store.claim(set(), 0.001)
    store.close()
    server.start()
    (callback,) = wait_for(standins.callbacks)
    assert callback["body"]["error"]["message"] == "The server stopped during every try."
    assert [asked["path"] for asked in standins.asked] == [callback["path"]]


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


class TestStore:
    @pytest.fixture
    def store(self, tmp_path):
        self.now = 1000.0
        store = Store(tmp_path, clock=lambda: self.now)
        yield store
        store.close()

    def test_waits_double_and_are_bounded(self, store):
        store.add("a", "caller", "checklist", {"text": "x"})
        waits = []
        for _ in range(12):
            job = store.claim(set(), first_backoff=2)
            waits.append(job.due - self.now)
            assert store.claim(set(), first_backoff=2) is None
            self.now = job.due
        assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]

    def test_what_is_due_longest_comes_first_but_never_twice_at_once(self, store):
        for ident in ("a", "b"):
            store.add(ident, "caller", "checklist", {"text": ident})
            self.now += 1
        assert store.claim(set(), 0.01).id == "a"
        self.now += 1
        assert store.claim({"a"}, 0.01).id == "b"
        self.now += 1
        assert store.claim({"a", "b"}, 0.01) is None

    def test_an_answered_job_forgets_its_request(self, store, tmp_path):
        store.add("a", "caller", "checklist", {"text": "a private contract"})
        store.claim(set(), 2)
        store.answered("a", {"status": "completed", "result": "r"})
        job = store.get("a")
        assert (job.state, job.work, job.attempts, job.due) == ("delivering", None, 0, self.now)
        assert store.add("a", "caller", "checklist", {"text": "a private contract"}) == job
        with pytest.raises(Problem, match="another job"):
            store.add("a", "caller", "easy-contract", {"text": "a private contract"})

    def test_only_ended_jobs_are_forgotten(self, store):
        for ident in ("ended", "open"):
            store.add(ident, "caller", "checklist", {"text": ident})
        store.ended("ended", "delivered")
        assert store.forget(older_than=self.now) == 0
        assert store.forget(older_than=self.now + 1) == 1
        assert (store.get("ended"), store.counts()["queued"]) == (None, 1)

    def test_every_change_is_on_disk(self, store, tmp_path):
        store.add("a", "caller", "checklist", {"text": "x"})
        store.claim(set(), 2)
        with sqlite3.connect(tmp_path / "jobs.sqlite3") as another:
            assert another.execute("SELECT state, attempts FROM jobs").fetchall() == [("queued", 1)]
