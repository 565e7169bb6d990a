"""What is said of a role's variables: their types, and what kind of value they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.role_variables import KINDS, kind_problems, typed, without_credentials

ROLES = Path(__file__).resolve().parents[2] / "roles"
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
        ("account", ["root", "_apt", "a-1"], ["1a", "A", "a b", "", "a" * 33, "a\n", "../x"]),
        ("service_user", ["vllm", "ai-server"], ["root", "vllm user", ""]),
        ("served_name", ["lab/tiny-llama", "easy", "a:v1.2"], ["../x", "a b", "a/../b", "", "-a", "a\n", "a;b"]),
        ("model_source", ["owner/name-1.1", "/srv/adapters/a"], ["name", "a/b/c", "./a", "a b/c", "", "owner/../x"]),
        ("secret", ["k", "sk-1234$'\""], ["", "a b", "a\n", "a\r", "schlüssel", "a${b}"]),
        ("positive", [1, 0.5], [0, -1, -0.5]),
    ],
)  # fmt: skip
def test_kinds(kind, good, bad):
    for value in good:
        assert kind_problems("x", value, kind) == [], value
    for value in bad:
        (said,) = kind_problems("x", value, kind)
        assert said.startswith("x ") and said.endswith(".") and not said.endswith(".."), said


def test_a_list_is_told_by_its_element_and_empty_may_be_optional():
    (said,) = kind_problems("groups", ["adm", "a b"], "account")
    assert said.startswith('groups[1] is "a b"; it must be')
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
    said = kind_problems("x_url", value, "url")
    assert len(said) == 1 and not re.search("canary|ary|can", said[0]), said
    rule = f"x_url is {value}; it must end in /v1, such as http://localhost:8001/v1."
    if " " not in value:
        assert "canary" not in without_credentials(rule) and "ary@" not in without_credentials(rule)
        assert without_credentials(rule).endswith(" it must end in /v1, such as http://localhost:8001/v1.")


def test_a_secret_is_never_shown():
    assert "hunter2" not in kind_problems("x_token", "hunter2 ", "secret")[0]


@pytest.mark.parametrize(
    "spec, value, said",
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
def test_wrong_types(spec, value, said):
    assert typed("x", spec, value)[1] == [said]


def test_right_types_are_converted():
    assert typed("x", {"type": "int"}, "8001") == (8001, [])
    assert typed("x", {"type": "str"}, 0.23) == ("0.23", [])
    assert typed("x", {"type": "bool"}, "no") == (False, [])
    assert typed("x", ADAPTERS, [{"name": 1}]) == ([{"name": "1"}], [])
    assert typed("x", {"type": "dict"}, {"a": None}) == ({"a": None}, [])


def test_the_roles_use_only_what_is_looked_at():
    """A key of a spec, a variable or a kind that nobody reads would promise a check that does not happen."""
    seen = 0
    for home in sorted(ROLES.iterdir()):
        options = yaml.safe_load((home / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        for spec in options.values():
            assert set(spec) <= {"type", "description", "required", "default", "choices", "elements", "options"}
        private = home / "vars/main.yml"
        rules = yaml.safe_load(private.read_text()).get(f"__{home.name}_rules", []) if private.exists() else []
        for rule in rules:
            seen += 1
            assert rule["variable"] in options, rule
            if "kind" in rule:
                assert rule["kind"] in KINDS and set(rule) <= {"variable", "kind", "each", "optional"}, rule
                assert "each" not in rule or rule["each"] in options[rule["variable"]]["options"], rule
            else:
                assert set(rule) - {"to_deploy"} == {"variable", "that", "fail_msg"}, rule
    assert seen > 50


def test_the_plan_looks_at_every_variable_that_it_reads():
    text = (ROLES.parent / "playbooks/plan.yml").read_text()
    looked_at = yaml.safe_load(text)[0]["tasks"][0]["validate_variables"]["only"]
    read = set(re.findall(r"\bvllm_\w+(?= [|] default)", text))
    assert read == {*looked_at, "vllm_huggingface_token"}  # a secret that only a model behind a gate needs
