"""The errors about a role's variables: their types, and their kinds of value."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.engines import engines
from plugins.module_utils.quiet_module import without_credentials
from plugins.module_utils.role_variables import KINDS, MAPPINGS, RENAMED, kind_problems, typed

ROLES = Path(__file__).resolve().parents[3] / "roles"
ADAPTERS = {
    "type": "list",
    "elements": "dict",
    "options": {"name": {"type": "str", "required": True}, "revision": {"type": "str"}},
}


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        ("absolute_path", ["/swapfile", "/srv/a-b/", "/log/*.log"], ["swapfile", "/", "", "/a/../b", "/a b", "/a\n"]),
        ("url", ["http://a_b:3100", "https://[::1]:8/v1"], ["loki:3100", "ftp://x", "http://", "http://x:y", "http://a\n"]),
        ("listen_address", ["127.0.0.1", "::1", "localhost"], ["999.1.1.1", "banana", "", "-a", "a\n", "http://a"]),
        ("ip_address", ["0.0.0.0", "::"], ["localhost", "1.2.3", "127.0.0.1:80", ""]),
        ("interface_or_address", ["eth0", "ens4", "10.0.0.1", "::1"], ["1.2.3", "eth0 ", "", "a" * 16, ":9100"]),
        ("host_name", ["images.example", "10.0.0.1"], ["Images.example", "http://a", "a:80", "", "*.example", "a/b"]),
        ("account", ["root", "_apt", "a-1"], ["1a", "A", "a b", "", "a" * 33, "a\n", "../x"]),
        ("service_user", ["vllm", "ai-server"], ["root", "vllm user", ""]),
        ("served_name", ["lab/tiny-llama", "easy", "a:v1.2"], ["../x", "a b", "a/../b", "", "-a", "a\n", "a;b"]),
        ("model_source", ["owner/name-1.1", "/srv/adapters/a"], ["name", "a/b/c", "./a", "a b/c", "", "owner/../x"]),
        ("secret", ["k", "sk-1234$'\"", "a${b}"], ["", "a b", "a\n", "a\r", "schlüssel"]),
        ("positive", [1, 0.5], [0, -1, -0.5]),
        ("oom_score", [-999, 0, 1000], [-1000, 1001]),
        ("memory_max", ["infinity", "1", "256M", "10%", "100%"], ["", "0", "-1", "2GB", "1.5G", "2 M", "101%", "1G\n"]),
    ],
)  # fmt: skip
def test_kinds(kind, good, bad):
    for value in good:
        assert kind_problems("x", value, kind) == [], value
    for value in bad:
        (message,) = kind_problems("x", value, kind)
        assert message.startswith("x ") and message.endswith(".") and not message.endswith(".."), message


def test_a_list_is_described_by_its_element_and_empty_may_be_optional():
    (message,) = kind_problems("groups", ["adm", "a b"], "account")
    assert message.startswith('groups[1] is "a b"; it must be')
    assert kind_problems("x", "", "url", optional=True) == []
    assert kind_problems("x", " ", "url", optional=True)


def test_a_file_of_json_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1]")
    assert kind_problems("x", str(tmp_path / "config.json"), "json_file") == []
    for bad in (tmp_path / "list.json", tmp_path / "nowhere.json", tmp_path, Path("config.json")):
        assert "a file on the controller that holds a JSON mapping" in kind_problems("x", str(bad), "json_file")[0]


@pytest.mark.parametrize(
    "value",
    [
        "htp://user:canary@host",
        "https://canary@ho st",
        "https://user:can/ary@host:x",
        "https://user:can ary@host",
        'https://us"er:canary"@host:x',
        "https://host:x/?token=canary",
        "https://host:x/a b?token=canary&x=can ary",
    ],
)
def test_no_credentials_of_an_address_are_shown(value):
    result = kind_problems("x_url", value, "url")
    assert len(result) == 1 and not re.search("canary|ary|can", result[0]), result
    rule = f"x_url is {value}; it must end in /v1, such as http://localhost:8001/v1."
    if " " not in value:
        assert "canary" not in without_credentials(rule) and "ary@" not in without_credentials(rule)
        assert without_credentials(rule).endswith(" it must end in /v1, such as http://localhost:8001/v1.")


def test_a_secret_is_never_shown():
    assert "hunter2" not in kind_problems("x_token", "hunter2 ", "secret")[0]


@pytest.mark.parametrize(
    "spec, value, message",
    [
        ({"type": "int"}, "eight", 'x is "eight"; it must be a whole number.'),
        ({"type": "int"}, True, "x is true; it must be a whole number."),
        ({"type": "int"}, 1.5, "x is 1.5; it must be a whole number."),
        ({"type": "float"}, "nan", 'x is "nan"; it must be a number.'),
        ({"type": "float"}, [1], "x is a list; it must be a number."),
        ({"type": "bool"}, "perhaps", 'x is "perhaps"; it must be true or false.'),
        ({"type": "str"}, None, "x has no value (null); give it one, or take it out."),
        ({"type": "str"}, {"a": 1}, "x is a mapping; it must be text."),
        ({"type": "str", "choices": ["a", "off"]}, False, "x is false without quotes; it must be text, one of a, off."),
        ({"type": "str", "choices": ["a", "b"]}, "c", 'x is "c"; it must be one of a, b.'),
        ({"type": "list", "elements": "str"}, "word", "x is text; it must be a list."),
        ({"type": "list", "elements": "str"}, ["a", None], "x[1] has no value (null); give it one, or take it out."),
        ({"type": "dict"}, "word", "x is text; it must be a mapping."),
        (ADAPTERS, "word", "x is text; it must be a list of mappings, each with name, revision."),
        (ADAPTERS, ["word"], "x[0] is text; it must be a mapping with name, revision."),
        (ADAPTERS, 7, "x is 7; it must be a list of mappings, each with name, revision."),
        (ADAPTERS, [None], "x[0] has no value (null); give it one, or take it out."),
        (ADAPTERS, [{}], "x[0] lacks name; give it one."),
        (ADAPTERS, [{"name": "a", "revison": "b"}], "x[0] has revison, which is not known; it takes name, revision."),
        (ADAPTERS, [{"name": ["a"]}], "x[0].name is a list; it must be text."),
    ],
)  # fmt: skip
def test_wrong_types(spec, value, message):
    assert typed("x", spec, value)[1] == [message]


def test_right_types_are_converted():
    assert typed("x", {"type": "int"}, "8001") == (8001, [])
    assert typed("x", {"type": "str"}, 0.23) == ("0.23", [])
    assert typed("x", {"type": "bool"}, "no") == (False, [])
    assert typed("x", ADAPTERS, [{"name": 1}]) == ([{"name": "1"}], [])
    assert typed("x", {"type": "dict"}, {"a": None}) == ({"a": None}, [])


SECRETS = """
hexadecimal: 0x123456789abcdef0
octal: 0123456701234567
number: 12345678901234567890
float: 1.0e+10
date: 2026-11-25
time: 2026-11-25T10:00:00Z
word: yes
bytes: !!binary c2VjcmV0LXNlY3JldA==
"""


@pytest.mark.parametrize("name, value", yaml.safe_load(SECRETS).items())
def test_a_secret_that_yaml_converted_is_refused_and_not_shown(name, value):
    for spec, given in (
        ({"type": "str", "no_log": True}, value),
        ({"type": "list", "elements": "str", "no_log": True}, [value]),
        ({"type": "list", "elements": "dict", "options": {"key": {"type": "str", "no_log": True}}}, [{"key": value}]),
    ):
        _, (said,) = typed("x", spec, given)
        assert re.fullmatch(r"x\S* is [a-z ]+ and not text; write it in quotes\.", said), said
    _, (said,) = typed("x", {"type": "list", "elements": "str", "no_log": True}, value)
    assert re.fullmatch(r"x is [a-z ]+; it must be a list\.", said), said
    assert str(value) not in said or name == "word"
    for kind in ("environment", "settings"):
        assert kind_problems("x", {"API_KEY": value}, kind) == [typed("x.API_KEY", {"no_log": True}, value)[1][0]]


def test_every_secret_of_a_role_must_be_text_and_is_never_shown():
    marked, kept = set(), set()
    for home in sorted(ROLES.iterdir()):
        options = yaml.safe_load((home / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        marked |= {name for name, spec in options.items() if "no_log" in yaml.safe_dump(spec)}
        private = home / "vars/main.yml"
        rules = yaml.safe_load(private.read_text()).get(f"__{home.name}_rules", []) if private.exists() else []
        kept |= {rule["variable"] for rule in rules if rule.get("kind") == "secret"}
    assert marked >= kept | {"vllm_api_key", "backup_password"}


@pytest.mark.parametrize(
    "value, message",
    [
        ({"OMP_NUM_THREADS": 2, "A": "x y%", "B": 0.5, "TOKENIZERS_PARALLELISM": "false"}, ""),
        ({"X": True}, "v.X is true or false and not text; write what the program is to read, in quotes."),
        ({"Y": ["a"]}, "v.Y is a list and not text; write what the program is to read, in quotes."),
        ({"Y": {}}, "v.Y is a mapping and not text; write what the program is to read, in quotes."),
        ({"MY VAR": "x"}, 'v has "MY VAR"; the name of a variable has letters, digits and underscores.'),
        ({"1A": "x"}, 'v has "1A"; the name of a variable has letters, digits and underscores.'),
        ({7: "x"}, "v has 7; the name of a variable has letters, digits and underscores."),
        ({"A": None}, "v.A has no value (null); give it one, or take it out."),
        ({"A": "a\0b"}, "v.A has a control character, which no variable can carry; take it out."),
        ({"TOKEN": "a\nb"}, "v.TOKEN has a line break, which a file of secrets cannot carry; write it on one line."),
        ({"HOME": "/srv"}, "v has HOME, whose place is vllm_root; set that, and take it out here."),
        ({"HOME": None}, "v has HOME, whose place is vllm_root; set that, and take it out here."),
    ],
)
def test_environments(value, message):
    assert kind_problems("v", value, "environment", places={"HOME": "vllm_root"}) == ([message] if message else [])


PLACES = {
    "port": "vllm_port",
    "served-model-name": "vllm_model",
    "dtype": "vllm_dtype",
    "enable-lora": "vllm_lora",
    "max-lora": "vllm_lora",
}


@pytest.mark.parametrize(
    "value, message",
    [
        ({"seed": 1, "max_num_seqs": 2, "disable-x": True, "overrides": {"a": [1]}, "dtype": None}, ""),
        ({"port": 9000}, "v has port, whose place is vllm_port; set that, and take it out here."),
        ({"--port": 9000}, "v has --port, whose place is vllm_port; set that, and take it out here."),
        ({"port": None}, "v has port, whose place is vllm_port; set that, and take it out here."),
        ({"max_lora": 1}, "v has max_lora, whose place is vllm_lora; set that, and take it out here."),
        ({"no-enable-lora": True}, "v has no-enable-lora, whose place is vllm_lora; set that, and take it out here."),
        ({"a-b": 1, "a_b": 2}, "v has a-b and a_b, which are the same argument; leave one of them."),
        ({"two words": 1}, 'v has "two words", which is no name of an argument; write it without blanks.'),
        ({"seed": None}, "v.seed has no value (null); give it one, or take it out."),
        ({"a": date(2026, 11, 25)}, "v.a has what is no text, such as a date without quotes; write it in quotes."),
    ],
)  # fmt: skip
def test_arguments(value, message):
    assert kind_problems("v", value, "arguments", ["dtype"], PLACES) == ([message] if message else [])


def test_settings_have_one_place_whatever_their_case():
    places = {"VLLM_API_KEY": "ai_server_vllm_api_key"}
    for name in ("VLLM_API_KEY", "vllm_api_key"):
        (message,) = kind_problems("v", {name: "canary", "RATE_LIMIT_PER_MINUTE": 7}, "settings", True, places)
        assert message == f"v has {name}, whose place is ai_server_vllm_api_key; set that, and take it out here."


def test_what_is_shown_has_no_password():
    (message,) = kind_problems("x", "ftp://user:canary@host/a?key=canary", "url")
    assert (
        message
        == 'x is "ftp://********@host/a?********"; it must be an http(s) address, such as http://host.example:3100.'
    )


def test_the_roles_use_only_checked_variables():
    """A spec's key, a variable or a kind that nobody reads would promise a check that does not happen."""
    seen = 0
    for home in sorted(ROLES.iterdir()):
        options = yaml.safe_load((home / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        for spec in options.values():
            assert set(spec) <= {
                "description",
                "default",
                "type",
                "required",
                "choices",
                "elements",
                "options",
                "no_log",
            }
        private = home / "vars/main.yml"
        rules = yaml.safe_load(private.read_text()).get(f"__{home.name}_rules", []) if private.exists() else []
        for rule in rules:
            seen += 1
            assert rule["variable"] in options, rule
            if "kind" in rule:
                assert rule["kind"] in {*KINDS, *MAPPINGS}, rule
                assert set(rule) <= {"variable", "kind", "each", "optional", "places"}, rule
                assert "each" not in rule or rule["each"] in options[rule["variable"]]["options"], rule
            else:
                assert set(rule) - {"to_deploy"} == {"variable", "that", "fail_msg"}, rule
    assert seen > 50


def test_the_plan_checks_every_variable_that_it_reads():
    """It validates what `planned` puts into its question, and the hub's address."""
    text = (ROLES.parent / "playbooks/plan.yml").read_text()
    looked_at = yaml.safe_load(text)[0]["tasks"][0]["llm.server.validate_variables"]["only"]
    for kind, role in engines.ROLES.items():
        assert f"('{kind}' | llm.server.planned_variables)" in looked_at
        options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
            "options"
        ]
        assert set(engines.planned_variables(kind)) <= set(options)
    read = set(re.findall(r"\b(?:vllm|llama_cpp)_\w+(?= [|] default)", text))
    assert read - {"vllm_huggingface_token"} <= set(re.findall(r"'(\w+)'", looked_at))  # a secret is not validated


def test_a_renamed_variable_has_a_role_or_a_playbook_under_its_new_name_alone():
    specs = "".join(path.read_text() for path in ROLES.glob("*/meta/argument_specs.yml"))
    playbooks = "".join(path.read_text() for path in (ROLES.parent / "playbooks").rglob("*.yml"))
    for old, new in RENAMED.items():
        assert f"      {new}:\n" in specs or new in playbooks, new
        assert not re.search(rf"\b{old}\b", specs + playbooks), old
