"""Arguments that the modules of a service share; they are documented in doc_fragments/service.py."""

from __future__ import annotations

from .probes import options as probe_options


def _file(mode: str, own: dict | None = None, secret: bool = False) -> dict:
    """Return the options of an entry of files or secrets; ``own``: those that only one of them has."""
    return {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True, "no_log": secret},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": mode},
        "validate": {"type": "list", "elements": "str"},
        "live": {"type": "bool", "default": False},
        **(own or {}),
    }


def _listed(options: dict) -> dict:
    return {"type": "list", "elements": "dict", "default": [], "options": options}


def _texts() -> dict:
    return {"type": "list", "elements": "str", "default": []}


NAME = {"name": {"type": "str", "required": True}}
START = {"kind": {"type": "str"}, "start_timeout": {"type": "int", "default": 60}}
ROTATION = {"drain_command": _texts(), "restore_command": _texts()}
ACCOUNT = {
    "user": {"type": "str"},
    "groups": _texts(),
    "home": {"type": "path", "default": "/nonexistent"},
    "directories": _listed(
        {
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0755"},
            "keep": {"type": "bool", "default": False},
        }
    ),
}
PROGRAM = {
    "program": {
        "type": "dict",
        "options": {
            "version": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "checksum": {"type": "str", "required": True},
            "member": {"type": "str"},
            "ca_path": {"type": "path"},
        },
    }
}
CONTENTS = {
    "conflicts": _listed({"name": {"type": "str", "required": True}, "reason": {"type": "str", "required": True}}),
    "peers": _texts(),
    "files": _listed(_file("0644")),
    "secrets": {
        **_listed(_file("0600", {"plain": _texts(), "whole": {"type": "bool", "default": False}}, secret=True)),
        "no_log": False,
    },
    "links": _listed({"path": {"type": "path", "required": True}, "target": {"type": "path", "required": True}}),
    "beside": {"type": "list", "elements": "path", "default": []},
    "inputs": {"type": "dict", "default": {}},
    "unit": {"type": "dict", "default": {}},
    "timer": {"type": "dict", "default": {}},
    "schedule_variable": {"type": "str"},
    "limits": {
        "type": "dict",
        "options": {
            "oom_score_adjust": {"type": "int", "required": True},
            "memory_max": {"type": "str", "default": "infinity"},
        },
    },
    "trials": _listed(
        {"script": {"type": "str", "required": True}, "argv": {"type": "list", "elements": "str", "required": True}}
    ),
    "listens": {"type": "list", "elements": "int", "default": []},
    "probes": _listed(probe_options()),
    "before_start": _listed(probe_options()),
}
