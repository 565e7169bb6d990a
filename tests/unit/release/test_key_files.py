"""The readers of an engine's key: probes, and the programs of watchdog and idle_stop, which cannot import them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

from plugins.module_utils.release import probes

ROLES = Path(__file__).resolve().parents[3] / "roles"


def program(role: str):
    spec = importlib.util.spec_from_file_location(f"{role}_keys", ROLES / role / "files" / f"{role}.py")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.key_in


KEY_IN = [program(role) for role in ("watchdog", "idle_stop")]


# Source of what systemd makes of them: systemd.exec(5), "EnvironmentFile=".
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("API_KEY=k\n", "k"),
        ("API_KEY='k'\n", "k"),
        ('API_KEY=" k "', " k "),
        ("API_KEY=a=b==\n", "a=b=="),
        (" API_KEY = k \n", "k"),
        ("LLAMA_API_KEY=a,a\r\nAPI_KEY=k\r\n", "k"),
        ("# API_KEY=no\n\nAPI_KEY=k #1\n", "k #1"),
        ("API_KEY=old\nAPI_KEY=k\nexport API_KEY=no\n", "k"),
        ("API_KEY=a\u2028b\n", "a\u2028b"),
        ("API_KEY='\n", "'"),
        ("API_KEY=\n", ""),
        ("API_KEY\n", None),
        ("", None),
    ],
)
def test_all_read_the_same_key(tmp_path, text, key):
    file = tmp_path / "secrets.env"
    file.write_text(text, newline="")
    assert [read(file) for read in KEY_IN] == [key or ""] * 2
    if key is None:
        with pytest.raises(OSError, match="has no API_KEY"):
            probes.secret(str(file), "API_KEY")
    else:
        assert probes.secret(str(file), "API_KEY") == key


def test_the_programs_have_the_same_text():
    first, second = map(inspect.getsource, KEY_IN)
    assert first == second
