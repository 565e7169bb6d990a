"""Filter for a .env file."""

from __future__ import annotations

import re

from ansible.errors import AnsibleFilterError

PLAIN = re.compile(r"[A-Za-z0-9._~+/=:@,-]*")


def dotenv(settings: dict) -> str:
    """Return ``{NAME: value}`` as the text of a .env file; None and "" leave a setting out, a list is joined by commas.

    Errors: a name that is none, and a value that the file cannot carry (a line break, or ``${``, which readers expand).
    """
    lines = []
    for name, value in settings.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise AnsibleFilterError(f"{name!r} is no name of a setting: it needs letters, digits and underscores")
        text = _text(value)
        if "${" in text or not text.isprintable():
            raise AnsibleFilterError(f"{name} cannot stand in a .env file: it has a line break or ${{")
        if text:
            lines.append(f"{name}={_quoted(text)}\n")
    return "".join(lines)


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _quoted(text: str) -> str:
    """Quote what has other characters than the plain ones; within single quotes only ``\\`` and ``'`` are special."""
    if PLAIN.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class FilterModule:
    def filters(self):
        return {"dotenv": dotenv}
