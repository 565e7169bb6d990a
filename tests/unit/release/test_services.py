"""The services of a host, as other modules query them."""

from __future__ import annotations

import json

import pytest

from plugins.module_utils.release import services
from plugins.module_utils.release import store as release_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    for module in (release_store, services):
        monkeypatch.setattr(module, "STORE", tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(text)

    return write


def test_a_host_without_services(store):
    assert services.listed() == []


def test_services_are_listed_with_their_releases_and_environments(store, tmp_path):
    made = {"user": None, "directories": [{"path": "/opt/vllm/environments"}, {"path": "/opt/vllm"}]}
    used = {"user": None, "directories": ["/opt/vllm/environments", "/srv/other/environments"]}
    store("vllm", json.dumps({"current": "72", "verified": ["71", "72"], "created": made, "needs": used}))
    store("node_exporter", json.dumps({"current": "5", "verified": ["5"], "created": {"directories": []}}))
    first, second = services.listed()
    assert (first["name"], first["environments"]) == ("node_exporter", [])
    assert second == {
        "name": "vllm",
        "unit": "vllm.service",
        "current": "72",
        "verified": ["71", "72"],
        "environments": ["/opt/vllm/environments", "/srv/other/environments"],
    }


@pytest.mark.parametrize("text", ["{", None])
def test_a_service_without_a_readable_record_is_still_listed(store, tmp_path, text):
    store("vllm", text or "")
    if text is None:
        (tmp_path / "vllm/state.json").unlink()
    (only,) = services.listed()
    assert (only["name"], only["current"], only["verified"], only["environments"]) == ("vllm", None, [], [])
