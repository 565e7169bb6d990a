"""try_application.py: an engine that answers must accept the key and serve the models; one that is away is ignored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.filter import dotenv as plugin

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "roles/ai_server/files/try_application.py"
KEY = "it's-#a\\${key}'\\"
SERVED = json.dumps({"data": [{"id": "base"}, {"id": "easycontract"}]})


def tried(tmp_path, url, main="", engine="ask", **settings):
    """Run the script on a one-line application with the role's .env format; return (status, last line)."""
    app = tmp_path / "source/app"
    app.mkdir(parents=True)
    (app / "main.py").write_text(main)
    wanted = {"VLLM_BASE_URL": f"{url}/v1", "VLLM_API_KEY": KEY, "VLLM_MODEL": "base", **settings}
    (tmp_path / ".env").write_text(plugin.dotenv(wanted))
    argv = [sys.executable, str(SCRIPT), str(app.parent), str(tmp_path / ".env"), engine]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    "page, settings, says",
    [
        ((200, SERVED), {}, ""),
        ((200, SERVED), {"VLLM_LORA_ADAPTER_EASYCONTRACT": "easycontract"}, ""),
        ((200, SERVED), {"VLLM_MODEL": "other"}, "serves base, easycontract, but not what VLLM_MODEL names; correct"),
        ((200, SERVED), {"VLLM_LORA_ADAPTER_CHECKLIST": "b"}, "not what VLLM_LORA_ADAPTER_CHECKLIST names"),
        ((401, "no"), {}, "rejects the key; give ai_server_vllm_api_key"),
        ((503, "loading"), {}, ""),
        ((200, "<html>"), {}, ""),
        ((200, "[]"), {}, ""),
    ],
)
def test_the_engine_is_asked(server, tmp_path, page, settings, says):
    server.pages["/v1/models"] = page
    status, said = tried(tmp_path, server.url, **settings)
    assert (status == 0) == (not says) and says in said, said
    assert server.asked[0][1] == f"Bearer {KEY}"


def test_an_engine_on_ipv6_is_asked_and_other_settings_do_no_harm(server6, tmp_path):
    server6.pages["/v1/models"] = (401, "no")
    url = f"http://[::1]:{server6.server_port}"
    status, said = tried(tmp_path, url, CHECKLIST_PROMPT="two\nlines\u2028=\u3000 and\x85\tmore")
    assert status == 1 and f"the engine at {url}/v1 rejects the key" in said
    assert server6.asked[0][1] == f"Bearer {KEY}"


def test_an_engine_that_is_away_proves_nothing(tmp_path):
    assert tried(tmp_path, "http://127.0.0.1:9") == (0, "")


def test_a_port_that_is_not_http_proves_nothing(tmp_path, not_http):
    assert tried(tmp_path, not_http) == (0, "")


def test_in_check_mode_the_engine_is_still_what_it_was(server, tmp_path):
    server.pages["/v1/models"] = (401, "no")
    assert tried(tmp_path, server.url, engine="alone") == (0, "")
    assert server.asked == []


def test_in_check_mode_the_file_of_callers_need_not_be_there(tmp_path):
    reads = (
        "import json, os\ntext = open(os.environ['CALLERS_FILE']).read()\nassert json.loads(text) == {'callers': []}"
    )
    assert tried(tmp_path, "http://127.0.0.1:9", main=reads, engine="alone") == (0, "")
    status, said = tried(tmp_path / "really", "http://127.0.0.1:9", main=reads)
    assert status == 1 and "CALLERS_FILE" in said


def table(tmp_path, *engines):
    """Write ENGINES_FILE next to the .env; return its path."""
    file = tmp_path / "engines.json"
    file.write_text(json.dumps({"engines": engines}))
    return str(file)


@pytest.mark.parametrize(
    "page, models, says",
    [
        ((200, SERVED), ["base"], ""),
        (
            (200, SERVED),
            ["base", "other"],
            "the engine code at {} serves base, easycontract, but not other; correct its",
        ),
        ((401, "no"), ["base"], "the engine code at {} rejects the key; give its api_key in ai_server_engines"),
        ((503, "loading"), ["other"], ""),
    ],
)
def test_each_engine_of_a_table_is_asked_instead(server, tmp_path, page, models, says):
    server.pages["/v1/models"] = page
    away = {"name": "away", "url": "http://127.0.0.1:9/v1", "api_key": "x", "models": ["x"]}
    code = {"name": "code", "url": f"{server.url}/v1", "api_key": KEY, "models": models}
    file = table(tmp_path, away, code)
    status, said = tried(tmp_path, "http://127.0.0.1:9", ENGINES_FILE=file, VLLM_MODEL="not-asked-for")
    assert (status == 0) == (not says) and says.format(code["url"]) in said, said
    assert [asked[1] for asked in server.asked] == [f"Bearer {KEY}"]


def test_in_check_mode_the_file_of_engines_need_not_be_there(tmp_path):
    reads = "import json, os\nassert json.load(open(os.environ['ENGINES_FILE']))['engines'][0]['models'] == ['none']"
    file = str(tmp_path / "none.json")
    assert tried(tmp_path, "http://127.0.0.1:9", main=reads, engine="alone", ENGINES_FILE=file) == (0, "")


def test_an_application_that_cannot_be_imported_is_refused(tmp_path):
    status, said = tried(tmp_path, "http://127.0.0.1:9", main="import no_such_package")
    assert status == 1 and "No module named 'no_such_package'; declare what is missing" in said
