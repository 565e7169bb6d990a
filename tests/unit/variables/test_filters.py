"""Filters of the roles, by table."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from jinja2 import UndefinedError

from plugins.module_utils.release import checklist, probes

PLUGINS = Path(__file__).resolve().parents[3] / "plugins" / "filter"


def load(name):
    module = importlib.import_module(f"plugins.filter.{name}")
    return module.FilterModule().filters()


SETTINGS = load("settings")["setting_problems"]
CALLERS, ENGINES = load("callers"), load("ai_server_engines")
RELEASES, SYSTEMD, VLLM = load("releases"), load("systemd"), load("vllm")
URL = "https://github.com/grafana/loki/releases/download/v3.4.2/promtail-linux-amd64.zip"
TABLE = {"3.4.2": {"amd64": "sha256:aa"}, "3.4.1": {"amd64": "sha256:bb", "arm64": "sha256:cc"}}
FACTS = {
    "interfaces": ["lo", "eth0", "br_lan", "wg0"],
    "eth0": {"ipv4": {"address": "10.0.0.5"}},
    "br_lan": {"ipv4": {"address": "10.1.0.1"}},
    "wg0": {},
}


@pytest.mark.parametrize(
    "base, expected",
    [
        (None, URL),
        ("", URL),
        ("http://mirror", URL.replace("https://", "http://mirror/")),
        ("http://mirror:8080/files/", URL.replace("https://", "http://mirror:8080/files/")),
    ],
)
def test_mirrored(base, expected):
    assert RELEASES["mirrored"](URL, base) == expected


@pytest.mark.parametrize("version, architecture, expected", [("3.4.2", "amd64", "aa"), ("3.4.1", "arm64", "cc")])
def test_a_checksum(version, architecture, expected):
    assert RELEASES["checksum_of"](TABLE, version, architecture, "promtail_version") == f"sha256:{expected}"


@pytest.mark.parametrize(
    "table, version, architecture, sentence",
    [
        (TABLE, "3.4", "amd64", "promtail_version: version 3.4 has no checksum (known: 3.4.1, 3.4.2); choose one of"),
        (TABLE, "3.4.2", "arm64", "promtail_version: version 3.4.2 has no checksum for arm64 (known: amd64)"),
        ({}, "3.4.2", "amd64", "(known: none)"),
    ],
)
def test_an_unknown_version_names_the_known_ones(table, version, architecture, sentence):
    with pytest.raises(AnsibleFilterError) as failure:
        RELEASES["checksum_of"](table, version, architecture, "promtail_version")
    assert sentence in str(failure.value)


@pytest.mark.parametrize(
    "argv, line",
    [
        (["/bin/a", "--x=1"], "/bin/a --x=1"),
        (["/bin/a", 9100, ""], '/bin/a 9100 ""'),
        (["/bin/a", "two words"], '/bin/a "two words"'),
        (["/bin/a", "50%", "$HOME"], "/bin/a 50% $$HOME"),
        (["/bin/a", 'say "hi"'], '/bin/a "say \\"hi\\""'),
        (["/bin/a", "a\\b"], '/bin/a "a\\\\b"'),
        (["/bin/a", "it's;"], '/bin/a "it\'s;"'),
        (["/bin/a", "two\nlines"], '/bin/a "two\\nlines"'),
        (["/bin/a", "two\rlines"], '/bin/a "two\\rlines"'),
    ],
)
def test_a_command_line_for_systemd(argv, line):
    assert SYSTEMD["exec_line"](argv) == line


@pytest.mark.parametrize(
    "value, address",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("eth0", "10.0.0.5"),
        ("br-lan", "10.1.0.1"),
    ],
)
def test_a_listen_address(value, address):
    assert SYSTEMD["listen_address"](value, FACTS, "x_listen_address") == address


@pytest.mark.parametrize("value", ["wlan0", "wg0", "10.0.0", "localhost", ""])
def test_a_listen_address_that_is_none_is_refused_by_name(value):
    with pytest.raises(AnsibleFilterError) as failure:
        SYSTEMD["listen_address"](value, FACTS, "x_listen_address")
    assert f"x_listen_address: {value!r} is neither an IP address nor an interface" in str(failure.value)
    assert "lo, eth0" in str(failure.value)


@pytest.mark.parametrize(
    "address, port, expected",
    [("127.0.0.1", 9100, "127.0.0.1:9100"), ("::1", "9100", "[::1]:9100"), ("fe80::1", 80, "[fe80::1]:80")],
)
def test_an_address_with_a_port(address, port, expected):
    assert SYSTEMD["host_port"](address, port) == expected


@pytest.mark.parametrize(
    "address, port, expected",
    [
        ("127.0.0.1", 8001, "http://127.0.0.1:8001"),
        ("0.0.0.0", 8001, "http://127.0.0.1:8001"),
        ("::1", "8001", "http://[::1]:8001"),
        ("::", 8001, "http://[::1]:8001"),
        ("0:0:0:0:0:0:0:1", 8001, "http://[::1]:8001"),
        ("fd00::8", 80, "http://[fd00::8]:80"),
        ("localhost", 8001, "http://localhost:8001"),
        ("gpu.example", 8000, "http://gpu.example:8000"),
    ],
)
def test_the_url_of_a_service_of_this_host(address, port, expected):
    assert SYSTEMD["local_url"](address, port) == expected


@pytest.mark.parametrize("address", ["::1", "::"])
def test_a_service_on_ipv6_is_queried_from_probe_to_checklist(server6, address):
    url = SYSTEMD["local_url"](address, server6.server_port)
    answer = {"choices": [{"text": " a"}], "usage": {"completion_tokens": 8}}
    server6.pages.update(
        {
            "/health": (200, "OK"),
            "/metrics": (200, "up 1\n"),
            "/v1/models": (200, json.dumps({"data": [{"id": "base"}]})),
            "/v1/completions": (200, json.dumps(answer)),
        }
    )
    questions = [
        {"http": {"url": f"{url}/health"}},
        {"metric": {"url": f"{url}/metrics", "series": ["up"]}},
        {"models": {"url": f"{url}/v1", "expected": ["base"]}},
        {"completion": {"url": f"{url}/v1", "model": "base"}},
    ]
    assert [probes.first_failure([probe]) for probe in questions] == [None] * 4
    questions[-1]["completion"]["prompt"] = "a"
    checks = [{"what": url, "kind": kind, "options": options} for each in questions for kind, options in each.items()]
    assert [checklist.run(check)["ok"] for check in checks] == [True] * 4


@pytest.mark.parametrize(
    "url, address, reached",
    [
        ("http://127.0.0.1:8001/v1", "127.0.0.1", True),
        ("http://127.0.0.1:8001/v1", "0.0.0.0", True),
        ("http://127.0.0.1:8001/v1", "::1", False),
        ("http://[::1]:8001/v1", "::1", True),
        ("http://[::1]:8001/v1", "127.0.0.1", False),
        ("http://localhost:8001/v1", "::1", True),
        ("http://127.0.0.1:9000/v1", "127.0.0.1", False),
        ("http://engine.example:9000/v1", "127.0.0.1", True),
    ],
)
def test_a_host_that_queries_itself_at_the_wrong_address(url, address, reached):
    assert SYSTEMD["astray"]([url], address, 8001) == ([] if reached else [url])


def test_own_addresses_are_distinguished_from_those_of_other_machines():
    own = ["http://127.0.0.1:8428", "http://[::1]:9093", "http://localhost", ""]
    assert SYSTEMD["elsewhere"]([*own, "http://10.0.0.5:9428", "https://watch.example"]) == [
        "http://10.0.0.5:9428",
        "https://watch.example",
    ]


def test_no_role_builds_a_url_from_an_address_by_itself():
    """An IPv6 address needs brackets, which `local_url` knows."""
    root = PLUGINS.parents[1]
    files = [path for folder in ("roles", "playbooks", "inventories") for path in (root / folder).rglob("*")]
    text = {str(path): path.read_text() for path in files if path.suffix in (".yml", ".j2", ".py")}
    assert [path for path, lines in text.items() if re.search(r"https?://(\{\{|' ~)", lines)] == []


PROXY = "http://user:p%40ss\\w@proxy.example:3128"


def test_the_environment_of_a_unit_is_what_was_written_and_its_secrets_stand_elsewhere():
    variables = {"B": "50% of $HOME", "a": 'say "hi"\n\tC:\\', "N": 2, "GONE": None}
    variables |= {"HTTPS_PROXY": PROXY, "X_TOKEN": "`t$"}
    assert SYSTEMD["environment_lines"](variables) == ['"a=say \\"hi\\"\\n\tC:\\\\"', '"B=50% of $HOME"', '"N=2"']
    assert SYSTEMD["secret_environment"](variables) == (
        'HTTPS_PROXY="http://user:p%40ss\\\\w@proxy.example:3128"\nX_TOKEN="\\`t\\$"\n'
    )
    assert SYSTEMD["secret_environment"]({"HTTPS_PROXY": "http://proxy.example:3128"}) == ""


LOCK = "a==1 \\\n    --hash=sha256:aa\ntransformers==4.57.6 \\\n    --hash=sha256:bb\ntransformers-extra==9\n"


@pytest.mark.parametrize(
    "texts, version",
    [
        ([LOCK], "4.57.6"),
        (["torch==2.9\ntransformers == 5.5.3 ; python_version > '3'", LOCK], "5.5.3"),
        (["", "Transformers==5.19.0"], "5.19.0"),
        (["transformers-extra==9", "transformers>=5", "x-transformers==1"], ""),
        ([], ""),
    ],
)
def test_the_version_that_is_pinned(texts, version):
    assert VLLM["pinned_version"](texts, "transformers") == version


@pytest.mark.parametrize(
    "length, arguments, expected",
    [
        (8192, {}, 8192),
        ("8192", {"dtype": "auto"}, 8192),
        (8192, {"max-model-len": 4096}, 4096),
        (8192, {"max_model_len": 4096}, 4096),
        (8192, {"--max-model-len": None}, None),
        (8192, {"max_model_len": None}, None),
        (8192, {"max-model-len": "8k"}, None),
        (8192, {"max-model-len": -1}, None),
    ],
)
def test_the_length_that_the_engine_gets(length, arguments, expected):
    assert VLLM["length_told"](length, arguments) == expected


def test_flags_as_the_program_takes_them():
    arguments = {
        "web.disable-exporter-metrics": True,
        "collector.cpu.info": False,
        "collector.textfile.directory": ["/a", "/b"],
        "runtime.gomaxprocs": 2,
        "log.level": "debug",
    }
    assert SYSTEMD["flags"](arguments) == [
        "--no-collector.cpu.info",
        "--collector.textfile.directory=/a",
        "--collector.textfile.directory=/b",
        "--log.level=debug",
        "--runtime.gomaxprocs=2",
        "--web.disable-exporter-metrics",
    ]
    assert SYSTEMD["flags"]({}) == []


def test_flags_as_go_takes_them():
    arguments = {"search.maxQueryLen": 9, "enableTCP6": True, "promscrape.discovery": False, "label": ["a=b", "c"]}
    assert SYSTEMD["go_flags"](arguments) == [
        "-enableTCP6=true",
        "-label=a=b",
        "-label=c",
        "-promscrape.discovery=false",
        "-search.maxQueryLen=9",
    ]


def test_flags_that_would_show_a_secret_are_named():
    shown = {"datasource.basicAuth.password": "x", "remoteWrite.bearerToken": "x", "remoteWrite.headers": "A: b"}
    fine = {
        "remoteWrite.basicAuth.passwordFile": "/etc/x",
        "httpAuth.password": "file:///etc/x",
        "search.maxTokens": 5,
        "remoteWrite.rateLimit": 9,
    }
    assert SYSTEMD["flag_secrets"]({**shown, **fine}) == sorted(shown)


def test_a_host_whose_address_is_built_on_another_one_pushes_elsewhere_than_to_itself():
    class Unresolved(dict):
        def __getitem__(self, name):
            raise UndefinedError("'hostvars' is undefined")

    variables = {
        "far": Unresolved(vmagent_url="http://{{ hostvars.here.address }}:8428"),
        "here": {"vmagent_url": "http://127.0.0.1:8428"},
        "scraped": {},
    }
    assert load("alert_rules")["pushing_hosts"](["far", "here", "scraped"], variables, "here") == ["far", "here"]


def test_json_files_of_the_controller_become_live_files(tmp_path):
    files = load("live_files")["json_files"]
    for name, text in (("b.json", "[]"), ("a.json", '{"title": "é"}'), ("c.txt", "no")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = files([f"{tmp_path}/*.json", f"{tmp_path}/none/*.json"], "/etc/x", "x", "x_files")
    common = {"group": "x", "mode": "0640", "live": True}
    assert found == [
        {"path": "/etc/x/a.json", "content": '{"title": "é"}', **common},
        {"path": "/etc/x/b.json", "content": "[]", **common},
    ]
    with pytest.raises(AnsibleFilterError, match=r"x_files: there is no file /nowhere/x\.json on the controller"):
        files(["/nowhere/x.json"], "/etc/x", "x", "x_files")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(AnsibleFilterError, match=r"x_files: .*/b\.json is no JSON: "):
        files([f"{tmp_path}/*.json"], "/etc/x", "x", "x_files")


def test_node_exporter_hands_its_arguments_to_that_filter():
    role = yaml.safe_load((PLUGINS.parents[1] / "roles/node_exporter/vars/main.yml").read_text())
    assert "node_exporter_arguments | llm.server.flags" in role["__node_exporter_argv"]


TABLE_OF_ENGINES = yaml.safe_load((PLUGINS.parents[1] / "data/vllm/versions.yml").read_text())


def needs(version="0.23.0", eager=True, environment=None, python="/usr/bin/python3"):
    return VLLM["runtime_needs"](version, TABLE_OF_ENGINES, {"enforce_eager": eager}, environment or {}, python)


def test_the_default_engine_compiles_tritons_helper_and_leaves_the_sampler_of_nvcc_out():
    found = needs()
    assert found["compiles"] == ["triton"]
    assert found["packages"] == ["gcc", "libc6-dev", "libpython3-dev"]
    assert found["environment"] == {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    assert len(found["advised"]) == 1 and "VLLM_USE_FLASHINFER_SAMPLER to 1" in found["advised"][0]


@pytest.mark.parametrize("one", ["1", 1])
def test_a_host_with_a_toolkit_may_choose_the_sampler_of_nvcc(one):
    found = needs(environment={"VLLM_USE_FLASHINFER_SAMPLER": one})
    assert found["compiles"] == ["triton", "flashinfer_sampler"]
    assert "g++" in found["packages"]
    assert found["advised"] == []


def test_a_sampler_that_is_switched_off_is_not_reported():
    found = needs(environment={"VLLM_USE_FLASHINFER_SAMPLER": "0"})
    assert (found["compiles"], found["advised"]) == (["triton"], [])


def test_an_engine_whose_sampler_is_opt_in_gets_no_variable():
    assert needs("0.15.1")["environment"] == {}


def test_compiled_graphs_need_a_compiler_for_cxx():
    found = needs(eager=False)
    assert found["compiles"] == ["triton", "inductor"]
    assert "g++" in found["packages"]


@pytest.mark.parametrize(
    ("python", "headers"),
    [("/usr/bin/python3", ["libpython3-dev"]), ("/usr/bin/python3.10", ["libpython3.10-dev"]),
     ("/opt/python3.12/bin/python3.12", [])],
)  # fmt: skip
def test_the_headers_are_those_of_the_very_interpreter(python, headers):
    assert [name for name in needs(python=python)["packages"] if "python" in name] == headers


EXAMPLE = (PLUGINS.parents[1] / "ai_server/.env.example").read_text()


@pytest.mark.parametrize(
    "added, expected",
    [
        ({}, ""),
        ({"RATE_LIMIT_PER_MINUTE": 5, "JOB_BACKOFF_SEC": 0.5, "OCR_URL": None, "CHECKLIST_PROMPT": "A list."}, ""),
        ({"RATE_LIMIT_PER_MINUTE": "5", "JOB_BACKOFF_SEC": "2", "MAX_PDF_PAGES": ""}, ""),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "b", "OTEL_SERVICE_NAME": "x", "LC_ALL": "C", "TZ": "UTC"}, ""),
        (
            {"RATE_LIMIT_PER_MIN": 5},
            "RATE_LIMIT_PER_MIN, which is not a setting of the application; did you mean RATE_LIMIT_",
        ),
        (
            {"rate_limit_per_minute": 5},
            "which is not a setting of the application; did you mean RATE_LIMIT_PER_MINUTE.",
        ),
        ({"HTTP_PROXI": "a"}, "did you mean HTTP_PROXY."),
        ({"COLOUR": "red"}, "which is not a setting of the application; its .env.example lists them all."),
        ({"RATE_LIMIT_PER_MINUTE": "canary"}, "RATE_LIMIT_PER_MINUTE, which must be a whole number above 0."),
        ({"RATE_LIMIT_PER_MINUTE": 0}, "must be a whole number above 0."),
        ({"RATE_LIMIT_PER_MINUTE": -1}, "must be a whole number above 0."),
        ({"RATE_LIMIT_PER_MINUTE": 2.5}, "must be a whole number above 0."),
        ({"RATE_LIMIT_PER_MINUTE": True}, "must be a whole number above 0."),
        ({"MAX_PDF_PAGES": [5]}, "must be a whole number above 0."),
        ({"JOB_BACKOFF_SEC": "soon"}, "must be a number above 0."),
        ({"JOB_BACKOFF_SEC": float("inf")}, "must be a number above 0."),
        ({"CHECKLIST_PROMPT": True}, "must be a text; quote it."),
        ({"CHECKLIST_PROMPT": ["canary"]}, "must be a text; quote it."),
        ({"HTTPS_PROXY": {"canary": 1}}, "must be a text; quote it."),
    ],
)
def test_what_is_added_to_the_settings(added, expected):
    problems = SETTINGS(added, EXAMPLE, "ai_server_environment")
    assert len(problems) == bool(expected)
    assert expected in "".join(problems) and "canary" not in "".join(problems)
    assert all(text.startswith("ai_server_environment has ") and text.endswith(".") for text in problems)


def test_an_application_without_an_example_judges_itself():
    assert SETTINGS({"COLOUR": "red", "SIZE": 5}, "", "x") == []


def test_every_setting_that_the_role_writes_is_one_of_the_application():
    role = yaml.safe_load((PLUGINS.parents[1] / "roles/ai_server/vars/main.yml").read_text())
    assert not SETTINGS(dict.fromkeys(role["__ai_server_settings"]), EXAMPLE, "x")


def test_every_setting_that_the_role_writes_has_its_place_named():
    role = yaml.safe_load((PLUGINS.parents[1] / "roles/ai_server/vars/main.yml").read_text())
    (rule,) = (rule for rule in role["__ai_server_rules"] if rule.get("kind") == "settings")
    assert set(rule["places"]) == set(role["__ai_server_settings"])
    assert set(role["__ai_server_secrets"]) <= set(rule["places"])


KEY, OTHER_KEY = "caller-key-0123456", "other-key-01234567"


def test_the_file_of_callers_has_digests_and_no_key():
    callers = [
        {"name": "backend", "keys": [{"key": KEY, "expires": "2027-01-31"}, {"sha256": "0" * 64}], "streams": 8},
        {"name": "batch", "keys": [{"key": OTHER_KEY, "expires": None}], "models": ["base"], "tokens_per_minute": None},
    ]
    assert CALLERS["caller_problems"](callers, ["a-third-key-012345"], "engine-key") == []
    text = CALLERS["callers_file"](callers)
    assert KEY not in text and OTHER_KEY not in text
    first, second = json.loads(text)["callers"]
    assert first["keys"][0]["expires"] == "2027-01-31"
    assert first["keys"][0]["sha256"] == hashlib.sha256(KEY.encode()).hexdigest()
    assert first["keys"][1] == {"sha256": "0" * 64} and first["streams"] == 8
    assert set(second) == {"name", "keys", "models"} and set(second["keys"][0]) == {"sha256"}


@pytest.mark.parametrize(
    ("callers", "message"),
    [
        ([{"name": "A", "keys": [{"key": KEY}]}], "ai_server_callers: A needs a name of small letters"),
        ([{"keys": [{"key": KEY}]}], "number 1 needs a name"),
        ([{"name": "a", "keys": []}], "a has no keys"),
        ([{"name": "a", "keys": [{"key": "short"}]}], "a has a key that is not of 16 visible characters"),
        ([{"name": "a", "keys": [{"key": KEY, "sha256": "0" * 64}]}], "needs either key or sha256"),
        ([{"name": "a", "keys": [{}]}], "needs either key or sha256"),
        ([{"name": "a", "keys": [{"sha256": "0" * 63}]}], "whose sha256 is not 64 hexadecimal digits"),
        ([{"name": "a", "keys": [{"key": "the-engines-own-key"}]}], "that is vLLM's own"),
        ([{"name": "a", "keys": [{"key": "a-listed-key-012345"}]}], "that another caller has, or it itself"),
        ([{"name": "a", "keys": [{"key": KEY}, {"key": KEY}]}], "that another caller has, or it itself"),
        ([{"name": "a", "keys": [{"key": KEY, "expires": "soon"}]}], "expires on soon, which is no day such as"),
        ([{"name": "a", "keys": [{"key": KEY}]}, {"name": "a", "keys": [{"key": OTHER_KEY}]}], "a occurs twice"),
    ],
)
def test_callers_that_cannot_be_used_are_named_and_their_keys_are_not(callers, message):
    (sentence,) = CALLERS["caller_problems"](callers, ["a-listed-key-012345"], "the-engines-own-key")
    assert message in sentence and KEY not in sentence and "engines-own" not in sentence


def engine(name, **fields):
    return {"name": name, "url": "http://127.0.0.1:8002/v1", "api_key": f"key-of-{name}", "models": [name], **fields}


def engine_problems(*engines, named=None):
    callers = [{"name": "a", "keys": [{"key": KEY}, {"sha256": hashlib.sha256(b"canary-key").hexdigest()}]}]
    problems = ENGINES["ai_server_engine_problems"](list(engines), ["a-listed-key-012345"], callers, named or {})
    assert "key-of" not in str(problems) and KEY not in str(problems) and "canary" not in str(problems)
    return problems


def test_the_file_of_engines_has_what_is_given():
    engines = [engine("chat", group="evaluation"), engine("code", group=None)]
    assert engine_problems(*engines, named={"ai_server_vllm_model": "chat"}) == []
    assert engine_problems(named={"ai_server_vllm_model": "chat"}) == []
    first, second = json.loads(ENGINES["ai_server_engines_file"](engines))["engines"]
    assert first == engines[0] and second == engine("code")


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ([engine("Chat")], "ai_server_engines: Chat needs a name of small letters"),
        ([engine(None)], "number 1 needs a name"),
        ([engine("a" * 32)], "at most 31 characters"),
        ([engine("a", url="http://127.0.0.1:8002")], "a needs a url that is an http(s) address and ends in /v1"),
        ([engine("a", url="127.0.0.1/v1")], "a needs a url"),
        ([engine("a", api_key="a b")], "a needs an api_key of visible characters"),
        ([engine("a", api_key="")], "a needs an api_key of visible characters"),
        *(([engine("a", api_key=key)], "a has a caller's key") for key in (KEY, "canary-key", "a-listed-key-012345")),
        ([engine("a", models=[])], "a has no models; name what it is asked for."),
        ([engine("a", group="A B")], "a has the group A B; use small letters"),
        ([engine("a"), engine("a", models=["b"])], "a occurs twice; give each engine a name of its own."),
        (
            [engine("a"), engine("b", models=["a"])],
            "the model a occurs twice; leave it at the engine that is to serve",
        ),
    ],
)
def test_engines_that_cannot_be_used_are_named_and_their_keys_are_not(engines, message):
    (sentence,) = engine_problems(*engines)
    assert message in sentence and sentence.endswith(".")


def test_a_model_that_no_engine_serves_is_named_by_its_variable():
    (sentence,) = engine_problems(engine("chat"), named={"ai_server_vllm_model": "base", "x": "chat"})
    assert sentence.startswith("ai_server_vllm_model is base, which no engine of ai_server_engines serves (chat); ")


def test_engines_of_a_group_are_not_started_with_the_application():
    units, engines = ENGINES["ai_server_engine_units"], [engine("chat", group="evaluation"), engine("code")]
    # The others start in their turn; ai-server does not wait for them.
    assert units(engines, "after") == ["chat.service"]
    assert units(engines, "wants") == ["code.service"]
    assert units([], "wants") == units([], "after") == ["vllm.service"]


def test_a_further_path_of_a_back_up_is_its_own_name():
    sets = load("backup")["backup_sets"]([{"name": "jobs", "path": "/a/state", "service": "a"}], [{"path": "/srv/b"}])
    assert sets == [
        {"name": "jobs", "path": "/a/state", "service": "a", "optional": False},
        {"name": "/srv/b", "path": "/srv/b", "service": "", "optional": True},
    ]


@pytest.mark.parametrize(
    ("repository", "around"),
    [
        ("/a/state/repository", ["/a/state"]),
        ("/a/state", ["/a/state"]),
        ("/srv/../a/state/x", ["/a/state"]),
        ("/a/states", []),
        ("s3:https://a/state", []),
    ],
)
def test_a_repository_in_what_is_backed_up_is_found(repository, around):
    assert load("backup")["holding"]([{"path": "/a/state"}, {"path": "/b"}], repository) == around


def test_a_part_of_the_night_says_what_is_wrong_with_it():
    slot = load("night")["night_slot"]
    assert slot(["a", "b"], "b", "02:00", 7200, 1) == {
        "number": 2, "parts": 2, "begin": "03:00:00", "patience": 3000, "problem": "",
    }  # fmt: skip
    assert "need 2400 s" in slot(["a", "b"], "a", "02:00", 1300, 1)["problem"]
    assert slot(["a"], "a", "02:00", 7200, 0)["problem"] == ""  # the rule about the batch reports it


def test_a_directory_in_another_that_is_backed_up_is_found():
    sets = [{"path": path} for path in ("/srv/a", "/srv/ab", "/srv/a/b/c", "/var/a")]
    assert load("backup")["nested"](sets) == ["/srv/a/b/c"]


def test_a_file_of_variables_has_values_as_they_stand():
    assert load("backup")["variable_lines"]({"A": 'x "y" $z', "B": None, "C": 1}) == 'A=x "y" $z\nC=1\n'


@pytest.mark.parametrize("rank", [1, 16, "512"])
def test_a_rank_of_adapters_that_the_engine_takes(rank):
    assert VLLM["lora_rank_problem"](rank) == ""


def test_an_unsupported_adapter_rank_is_reported_with_the_supported_ones():
    assert VLLM["lora_rank_problem"](9) == "9; the engine takes 1, 8, 16, 32, 64, 128, 256, 320 or 512"


VERSIONS = {
    "engines": {version: {"python": ">=3.10,<3.14", "transformers": ">=4.57.1,<5"} for version in ("0.15.2", "0.23.0")},
    "quirks": [{"engines": "<0.15.2", "when": {}, "refuse": True, "says": "It is old.", "cure": "Take a newer one."}],
    "advisories": [{"id": "CVE-1", "says": "a hole", "fixed": "0.15.2"}],
}


@pytest.mark.parametrize(
    ("version", "transformers", "python", "refused", "advised"),
    [
        ("0.23.0", "4.57.1", "3.12.3", [], 0),
        ("0.23.0", "4.57.*", "", ["needs transformers"], 0),
        ("0.23.0", "4.100.0", "3.14.0", ["runs on Python >=3.10,<3.14; this host has 3.14.0"], 0),
        # A pre-release precedes its release, and belongs to it at the end of a range (PEP 440).
        ("0.23.0", "5.0.0rc1", "3.14.0rc1", ["runs on Python", "needs transformers"], 0),
        ("0.23.0", "4.57.1rc1", "", ["needs transformers >=4.57.1,<5, not 4.57.1rc1"], 0),
        ("0.15.2rc1", "", "", ["is not in data/vllm/versions.yml"], 1),
        ("0.15.1", "", "", ["is not in data/vllm/versions.yml", "It is old."], 1),
        ("0.15.2.post1", "", "", ["is not in data/vllm/versions.yml"], 0),
        ("0.15.10", "", "", ["is not in data/vllm/versions.yml"], 0),
        ("0.15.2+cu129", "", "", ["is not in data/vllm/versions.yml"], 0),
        ("newest", "", "", ["is not in data/vllm/versions.yml"], 0),
    ],
)
def test_versions_are_compared_as_pip_compares_them(version, transformers, python, refused, advised):
    found = VLLM["known_problems"](version, VERSIONS, transformers, python, {})
    assert len(found["refused"]) == len(refused) and len(found["advised"]) == advised
    assert all(part in sentence for part, sentence in zip(refused, found["refused"], strict=True))


EXPORTER = "opentelemetry-exporter-otlp==1.38.0 --hash=sha256:00\n"


@pytest.mark.parametrize(
    ("texts", "version", "lock", "has"),
    [
        ([], "0.15.1", "", False),
        ([], "0.16.0rc1", "", False),
        ([], "0.16.0", "", True),
        ([], "0.23.0", "/lock.txt", False),
        (["vllm==0.15.1\n" + EXPORTER], "0.15.1", "", True),
        (["vllm==0.23.0\n", EXPORTER], "0.23.0", "/lock.txt", True),
        (["opentelemetry-exporter-otlp-proto-http==1.38.0\n"], "0.15.1", "", False),
    ],
)
def test_whether_an_environment_has_the_exporter_of_traces(texts, version, lock, has):
    assert VLLM["exports_traces"](texts, version, lock) is has


def test_the_origin_of_the_application_is_the_first_that_is_set():
    origin = load("application_source")["application_origin"]
    archive, repository, path = {"url": "https://a"}, {"repository": "https://b"}, {"path": "/c"}
    assert origin(archive, repository, path) == archive
    assert origin({"url": ""}, repository, path) == repository
    assert origin({"url": ""}, {"repository": ""}, path) == path


def test_a_go_build_behind_a_mirror():
    environment = load("dcgm")["go_build_environment"]
    assert environment("", "", {"GOFLAGS": "-p=1"}) == {"GOFLAGS": "-p=1"}
    assert environment("https://mirror", "/ca.pem", {"SSL_CERT_FILE": "/own.pem"}) == {
        "GOPROXY": "https://mirror/go-modules",
        "GIT_SSL_CAINFO": "/ca.pem",
        "SSL_CERT_FILE": "/own.pem",
    }


def test_a_load_watches_the_engines_and_the_application_before_them():
    units = load("load")["load_units"]
    targets = [{"unit": "vllm.service"}, {"unit": "vllm.service"}, {"unit": "code.service"}]
    assert units(targets, [{"name": "ai-server"}, {"name": "promtail"}]) == [
        "vllm.service", "code.service", "ai-server.service",
    ]  # fmt: skip
    assert units(targets[:1], []) == ["vllm.service"]


@pytest.mark.parametrize(
    ("clocks", "right"),
    [([], True), ([300, 1500], True), ([300, 300], True), ([1500, 300], False), ([0, 300], False), ([300], False)],
)
def test_a_range_of_clocks(clocks, right):
    assert load("host_tuning")["is_clock_range"](clocks) is right
