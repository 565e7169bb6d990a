"""Filter for a .env file."""

from __future__ import annotations

import re

from ansible.errors import AnsibleFilterError

PLAIN = re.compile(r"[A-Za-z0-9._~+/=:@,-]*")


def dotenv(settings: dict) -> str:
    """Return ``{NAME: value}`` as the text of a .env file, one line each; python-dotenv reads exactly these values.

    None and "" leave a setting out, a list is joined by commas. Raises an error for an invalid name, a value that is
    neither text nor a number nor a list of these, and half of a surrogate pair, which cannot be written to a file.
    """
    lines = []
    for name, value in settings.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise AnsibleFilterError(f"{name!r} is no name of a setting: it needs letters, digits and underscores")
        text = _text(name, value)
        if text:
            lines.append(f"{name}={_quoted(text)}\n")
    return "".join(lines)


def _text(name: str, value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(_text(name, item) for item in value)
    if not isinstance(value, (str, int, float)):
        raise AnsibleFilterError(f"{name} is neither text nor a number nor a list of these; write it in quotes")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise AnsibleFilterError(f"{name} has half of a surrogate pair, which is no character; write it anew") from None
    return str(value)


def _quoted(text: str) -> str:
    """Quote a text with other characters than the plain ones.

    Within single quotes only ``\\`` and ``'`` are special; line ends are written as escapes, which double quotes have.
    Readers expand ``${name:-default}`` within both, and use a default literally: so ``${`` is written by one.
    """
    if PLAIN.fullmatch(text):
        return text
    text = text.replace("\\", "\\\\").replace("${", "${:-$}{")
    if text.endswith("\\"):  # readers before 1.2 take it as the escape of the closing quote
        text = text[:-2] + "${:-\\\\}"
    if "\n" in text or "\r" in text:
        return '"' + text.replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r") + '"'
    return "'" + text.replace("'", "\\'") + "'"


class FilterModule:
    def filters(self):
        return {"dotenv": dotenv}
