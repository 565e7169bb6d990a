"""Add a release to the checksum table of a program: `make bump PROGRAM=promtail VERSION=3.5.5`.

The checksums are those that the program's origin publishes (`__NAME_sums_url` in the role's vars/main.yml, next to the
table). Only the table is changed: nothing depends on this program, and a person reads the diff before the commit.
"""

from __future__ import annotations

import argparse
import difflib
import http.client
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lab import builds, host
from lab.host import Problem
from plugins.filter.releases import mirrored
from plugins.module_utils.install import release_table

ROLES = host.ROOT / "roles"
ARCHITECTURES = ("amd64", "arm64")
TIMEOUT = 20  # seconds without a byte
LARGEST = 1024 * 1024  # bytes; a checksum list has a few kilobytes
SHA256 = re.compile(r"[0-9a-f]{64}")
# A row of the table: the comments above it, its version and its checksums.
ROW = re.compile(r'(?:^  #.*\n)*^  "?([^\s":]+)"?:.*\n(?:^    .*\n)+', re.MULTILINE)


def variables_of(program: str, roles: Path = ROLES) -> dict[str, Any]:
    """Return the variables of a program's role. Raises Problem for a program without its own table."""
    known = sorted(path.parts[-3] for path in roles.glob("*/vars/main.yml") if "_sums_url:" in path.read_text())
    if program not in known:
        cure = "its table is that of vmagent, so bump vmagent" if program == "vmalert" else f"use {', '.join(known)}"
        raise Problem(f"PROGRAM {program} has no checksum table: {cure}.")
    return yaml.safe_load((roles / program / "vars/main.yml").read_text())


def address(variables: dict[str, Any], template: str, program: str, version: str, architecture: str) -> str:
    """Return a URL from a template in a role's variables, for one version and architecture."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["llm.server.goarch"] = str  # the architecture already has Go's name
    values = {**variables, f"{program}_version": version, "ansible_facts": {"architecture": architecture}}
    while "{{" in template:  # a template may contain another variable
        template = environment.from_string(template).render(values)
    return template.strip()


def fetched(url: str) -> str:
    """Return the text at a URL. Raises Problem if the download fails."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            content = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        cure = "correct VERSION, or wait until the release is complete" if error.code == 404 else "try again later"
        raise Problem(f"{url} answers {error.code}; {cure}.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Problem(f"{url} cannot be read ({reason}); try again, or name a mirror with MIRROR=URL.") from error
    if len(content) > LARGEST:
        raise Problem(f"{url} has more than 1 MiB, so it is not a checksum list; correct __NAME_sums_url of the role.")
    return content.decode(errors="replace")


def published_sum(text: str, name: str, url: str) -> str:
    """Return the SHA-256 of a file from a checksum list. Raises Problem if it is missing or not a SHA-256."""
    rows = (line.split() for line in text.splitlines())
    found = {row[0] for row in rows if len(row) == 2 and row[1].lstrip("*").rpartition("/")[2] == name}
    if not found:
        raise Problem(
            f"{url} has no line for {name}; take a version that is released for {' and '.join(ARCHITECTURES)}."
        )
    if len(found) > 1:
        raise Problem(f"{url} has several checksums for {name}; do not use it before you know why.")
    (value,) = found
    if not SHA256.fullmatch(value):
        raise Problem(
            f"{url} has {value[:80]!r} for {name}, which is not a SHA-256; do not use it before you know why."
        )
    return value


def sums(program: str, version: str, mirror: str = "", roles: Path = ROLES) -> dict[str, str]:
    """Return `{architecture: SHA-256}` of a program's release archives, from the list that its origin publishes."""
    variables = variables_of(program, roles)
    archive, listing = variables[f"__{program}_program"]["url"], variables[f"__{program}_sums_url"]
    found, texts = {}, {}
    for architecture in ARCHITECTURES:
        name = address(variables, archive, program, version, architecture).rpartition("/")[2]
        url = mirrored(address(variables, listing, program, version, architecture), mirror)
        if url not in texts:
            texts[url] = fetched(url)
        found[architecture] = published_sum(texts[url], name, url)
    if len(set(found.values())) < len(found):
        raise Problem(f"{url} has the same checksum for every architecture; do not use it before you know why.")
    return found


def with_row(text: str, program: str, version: str, found: dict[str, str]) -> str:
    """Return the role's variables with a new row in the table, before the first newer version; nothing else changes."""
    head = re.search(rf"^__{program}_checksums:\n", text, re.MULTILINE)
    if not head:
        raise Problem(f"roles/{program}/vars/main.yml has no table __{program}_checksums; add the row by hand.")
    place, number = head.end(), release_table.parsed(version)
    while row := ROW.match(text, place):
        if release_table.parsed(row[1]) > number:
            break
        place = row.end()
    row = f'  # From the checksum list of the release.\n  "{version}":\n'
    row += "".join(f"    {architecture}: sha256:{value}\n" for architecture, value in found.items())
    changed = text[:place] + row + text[place:]
    table, expected = (yaml.safe_load(each)[f"__{program}_checksums"] for each in (changed, text))
    expected[version] = {architecture: f"sha256:{value}" for architecture, value in found.items()}
    if table != expected:
        raise Problem(f"roles/{program}/vars/main.yml has a table in another form than usual; add the row by hand.")
    return changed


def bump(program: str, version: str, mirror: str = "", roles: Path = ROLES) -> str:
    """Add a version to a program's table and return the change as a diff. Raises Problem, with nothing written."""
    table = variables_of(program, roles)[f"__{program}_checksums"]
    try:
        release_table.parsed(version)
    except ValueError:
        raise Problem(f"VERSION {version} is not a version; write it like {release_table.newest(table)}.") from None
    if version in table:
        raise Problem(f"{program} {version} is already in the table of roles/{program}/vars/main.yml; nothing to do.")
    found = sums(program, version, mirror, roles)
    path = roles / program / "vars/main.yml"
    before = path.read_text()
    after = with_row(before, program, version, found)
    path.write_text(after)
    name = f"roles/{program}/vars/main.yml"
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, name))


def next_steps(program: str, version: str) -> list[str]:
    """Return the manual steps that remain after a version is in the table."""
    newest = builds.supported(program)[0]
    if newest != version:
        return [f"The default of {program}_version stays {newest}."]
    steps = [f"It is the default of {program}_version now. Compare the sums with a second record, if there is one."]
    for name, made in builds.PROGRAMS.items():
        if (made.role or name) != program or made.instead:
            continue
        if made.put_together:
            steps.append("Rebuild the laboratory's collector with it: lab/collector/README.md.")
        elif made.module:
            command = f"go mod download -json {made.module}@v{version}"
            steps.append(f"Add its module's digest to the versions in lab/builds.py: the Sum of `{command}`.")
    return steps


def main(arguments: list[str]) -> int:
    """Add one version; return the exit code, 2 for a problem that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m lab.bump", description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the role's name, such as promtail")
    parser.add_argument("version", help="such as 3.5.5")
    parser.add_argument("--mirror", default="", help="base URL of a mirror that has each file under host and path")
    options = parser.parse_args(arguments)
    try:
        print(bump(options.program, options.version, options.mirror), end="")
    except Problem as problem:
        host.say(f"error: {problem}")
        return 2
    for step in next_steps(options.program, options.version):
        host.say(step)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
