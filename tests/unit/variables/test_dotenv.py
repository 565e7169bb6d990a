"""A .env is read back as it was written, or the value is refused."""

import io

import dotenv
import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import dotenv as plugin


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("http://localhost:8001/v1", "NAME=http://localhost:8001/v1\n"),
        (30, "NAME=30\n"),
        (True, "NAME=true\n"),
        (["a", "b"], "NAME=a,b\n"),
        ("two words", "NAME='two words'\n"),
        ("it's #1", "NAME='it\\'s #1'\n"),
        ("a\\b", "NAME='a\\\\b'\n"),
        ("two\nlines", 'NAME="two\\nlines"\n'),
        ("a${HOME}", "NAME='a${:-$}{HOME}'\n"),
        ("", ""),
        (None, ""),
    ],
)
def test_values(value, text):
    assert plugin.dotenv({"NAME": value}) == text


@pytest.mark.parametrize(
    "value",
    [
        *("it's", "a\\b", "a #b", " spaces ", "x$y", '"quoted"', "p%q", "k=v", "`ls`", "a\tb", "\t", "\u3000全\u3000"),
        *("two\nlines\n", "\r\n", "a\u2028b\x85c\x0bd", "ends\\", "\\'\\", 'it\'s "so"\n\\', "\ufeff", "\\n"),
        *("a${HOME}", "${HOME:-x}", "$${A}", "${:-$}", "${", "${A}\n'${B}\\"),
    ],
)
def test_the_reader_gets_what_was_given(value):
    """Each value is between others: an unclosed quote would include the next one."""
    settings = {"BEFORE": "it's", "NAME": value, "BEHIND": "'\n\""}
    text = plugin.dotenv(settings)
    assert text.count("\n") == 3, "one line a setting"
    assert dotenv.dotenv_values(stream=io.StringIO(text)) == settings


@pytest.mark.parametrize("settings", [{"NAME": "a\ud83d"}, {"NAME": {"a": 1}}, {"NAME": [{}]}, {"A NAME": "x"}])
def test_what_the_file_cannot_carry_is_refused(settings):
    with pytest.raises(AnsibleFilterError):
        plugin.dotenv(settings)
