"""Test immediate answers of the adapters' endpoints: text, PDFs, scans."""

import hashlib
import shutil

import pytest

from conftest import OCR_KEY
from pdfs import encrypted, inflating, pdf, without_end


@pytest.mark.parametrize(
    "path, adapter", [("/v1/easy-contract", "easycontract-adapter"), ("/v1/checklist", "checklist-adapter")]
)
def test_text(client, standins, path, adapter):
    answer = client.post(path, json={"text": "rent is due monthly", "max_tokens": 9})
    assert answer.status_code == 200
    assert answer.json() == {
        "model": adapter,
        "result": f"{adapter} on rent is due monthly",
        "finish_reason": "stop",
        "usage": {"total_tokens": 7},
    }
    request = standins.asked[0]["body"]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (adapter, 0, 9)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]


def test_text_pdf_is_read_as_it_is(client, server, standins):
    document = pdf("The first page.", "The second page.")
    answer = client.post("/v1/easy-contract", files={"file": ("../../etc/passwd", document, "application/pdf")})
    assert answer.json()["result"] == "easycontract-adapter on The first page.\n\nThe second page."
    assert [request["path"] for request in standins.asked] == ["/v1/chat/completions"]
    kept = server.directory / "resources/s3" / f"{hashlib.sha256(document).hexdigest()}.pdf"
    assert kept.read_bytes() == document
    assert not list(kept.parent.glob(".*"))


@pytest.mark.parametrize("a_means, read", [(b"D83D", "\ufffd"), (b"D83DDE00", "\U0001f600"), (b"DE00", "\ufffd")])
def test_a_font_with_half_characters(client, a_means, read):
    answer = client.post("/v1/easy-contract", files={"file": pdf("x A x", a_means=a_means)})
    assert answer.json()["result"] == f"easycontract-adapter on x {read} x"


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256"])
def test_a_pdf_that_everyone_may_read_and_nobody_change(client, algorithm):
    answer = client.post("/v1/easy-contract", files={"file": encrypted(pdf("A contract."), "", algorithm)})
    assert answer.json()["result"] == "easycontract-adapter on A contract."


@pytest.mark.parametrize("kind", ["Multipart/Form-Data", "MULTIPART/FORM-DATA"])
def test_a_media_type_has_no_case(client, kind):
    request = client.build_request("POST", "/v1/easy-contract", files={"file": pdf("A contract.")})
    request.headers["content-type"] = request.headers["content-type"].replace("multipart/form-data", kind)
    assert client.send(request).json()["result"] == "easycontract-adapter on A contract."


def test_a_pdf_larger_than_a_form_field(client):
    document = pdf("A contract.") + b"%" + b"x" * 3_000_000 + b"\n"
    answer = client.post("/v1/easy-contract", files={"file": document})
    assert answer.json()["result"] == "easycontract-adapter on A contract."


def test_scanned_pages_go_to_the_ocr_service(client, standins):
    standins.ocr_answer = {"pages": [{"text": "not asked for"}, {"text": "words of a scan"}]}
    answer = client.post("/v1/easy-contract", files={"file": pdf("A cover with text.", None)})
    assert answer.json()["result"] == "easycontract-adapter on A cover with text.\n\nwords of a scan"
    request = standins.asked[0]
    assert (request["path"], request["headers"]["authorization"]) == ("/ocr", f"Bearer {OCR_KEY}")
    assert b'name="document"' in request["body"] and b"%PDF-" in request["body"]


@pytest.mark.parametrize(
    "ocr_answer, message",
    [
        ({"pages": []}, "read 0 pages of a document of 1"),
        ({"text": "?"}, "sent an answer without pages"),
        ([], "sent an answer without pages"),
        ({"pages": [{"text": 5}]}, "sent an answer without pages"),
    ],
)
def test_nonsense_from_the_ocr_service(client, standins, ocr_answer, message):
    standins.ocr_answer = ocr_answer
    answer = client.post("/v1/easy-contract", files={"file": pdf(None)})
    assert answer.status_code == 502
    assert message in answer.json()["error"]["message"]


def test_a_scanned_page_without_words(client, standins):
    standins.ocr_answer = {"pages": [{"text": None}, {"text": "words"}]}
    answer = client.post("/v1/easy-contract", files={"file": pdf(None, None)})
    assert answer.json()["result"] == "easycontract-adapter on words"


def test_half_characters_from_the_ocr_service(client, standins):
    standins.ocr_answer = {"pages": [{"text": "a \ud83d b \ud83d\ude00"}]}
    answer = client.post("/v1/easy-contract", files={"file": pdf(None)})
    assert answer.json()["result"] == "easycontract-adapter on a \ufffd b \U0001f600"


@pytest.mark.parametrize("url, reason", [(None, "OCR_URL is not set"), ("http://127.0.0.1:9/", "is not reachable")])
def test_no_ocr_service(new_server, url, reason):
    with new_server(OCR_URL=url).start().client() as client:
        answer = client.post("/v1/easy-contract", files={"file": pdf(None)})
        assert (answer.status_code, client.post("/v1/checklist", json={"text": "a"}).status_code) == (503, 200)
    assert reason in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content, status, message",
    [
        (b"PK\x03\x04", 415, "not a PDF"),
        (b"%PDF-1.4 and then nothing of the kind", 422, "damaged"),
        (pdf(*["text"] * 51), 422, "51 pages; at most 50 are allowed"),
        (pdf(" "), 422, "has no text"),
        (encrypted(pdf("A contract."), "secret"), 422, "damaged or encrypted"),
        (inflating(1 << 28), 422, "cannot be read"),
        (without_end(), 422, "cannot be read"),
    ],
)
def test_unreadable_uploads(client, standins, content, status, message):
    answer = client.post("/v1/checklist", files={"file": content})
    assert (answer.status_code, standins.asked) == (status, [])
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent, message",
    [
        ({"json": {}}, "Send either"),
        ({"json": {"text": ""}}, "text: "),
        ({"json": {"text": "a", "max_tokens": 0}}, "max_tokens: "),
        ({"json": {"text": "a", "txet": "b"}}, "txet: "),
        ({"json": {"text": "a", "job_id": "../x"}}, "job_id: "),
        ({"files": {"other": b"x"}}, "other: "),
        ({"files": {"file": pdf("a")}, "data": {"text": "b"}}, "Send either"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "oundary"),
    ],
)
def test_unusable_requests(client, standins, sent, message):
    answer = client.post("/v1/checklist", **sent)
    assert (answer.status_code, standins.asked) == (400, [])
    assert message in answer.json()["error"]["message"]


def test_vllms_refusal_is_passed_on(client):
    answer = client.post("/v1/checklist", json={"text": "too long"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the context is 8192 tokens")


@pytest.mark.parametrize(
    "text, message", [("nonsense", "not a chat completion"), ("cut", "broke off"), ("break", "the connection was lost")]
)
def test_an_incomplete_answer_is_an_error(client, text, message):
    answer = client.post("/v1/checklist", json={"text": text})
    assert answer.status_code == 502
    assert message in answer.json()["error"]["message"]


def test_an_adapter_that_vllm_lacks(new_server):
    with new_server(VLLM_LORA_ADAPTER_CHECKLIST="not-loaded").start().client() as client:
        answer = client.post("/v1/checklist", json={"text": "a"})
    assert (answer.status_code, "'not-loaded'" in answer.json()["error"]["message"]) == (502, True)


def test_the_directory_of_uploads_is_missing(new_server):
    server = new_server().start()
    shutil.rmtree(server.directory / "resources")
    with server.client() as client:
        answer = client.post("/v1/checklist", files={"file": pdf("a")})
        assert "cannot be written" in client.get("/health").json()["uploads"]
    assert answer.status_code == 503
    assert "RESOURCES_DIRECTORY" in answer.json()["error"]["message"]
