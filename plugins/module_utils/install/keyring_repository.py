"""An apt repository with a keyring package: verified before anything changes, registered once, removed completely.

apt stops at a repository that is registered twice with different Signed-By, so entries of the same origin in other
files are commented out and can be restored. Plain Python; commands are run by a function that is passed in.
Sources: sources.list(5), apt.conf(5), deb(5).
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

from .. import atomic_file, host_text
from ..errors import UserError
from . import apt

ENTRY = re.compile(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s+)?(\S+)\s")


@dataclass(frozen=True)
class Repository:
    """The wanted repository. ``uri`` is where it is fetched from, ``origin`` is part of all its addresses.

    ``ca_path`` names certificate authorities that apt trusts for its host; the system's if empty.
    """

    package: str
    version: str
    keyring: str
    source: str
    uri: str
    origin: str
    ca_path: str = ""

    @property
    def trust(self) -> str:
        """Return the option with which apt trusts ``ca_path`` for this host, empty if none is needed."""
        parts = urlsplit(self.uri)
        return f"Acquire::https::{parts.hostname}::CAInfo" if self.ca_path and parts.scheme == "https" else ""

    @property
    def settings(self) -> str:
        """Return the path of our settings file for apt."""
        return f"/etc/apt/apt.conf.d/80{self.package}"

    @property
    def line(self) -> str:
        return f"deb [signed-by={self.keyring}] {self.uri} /\n"

    @property
    def mark(self) -> str:
        return f"# set aside for {self.package}: "


def set_aside(text: str, repository: Repository) -> str:
    """Return a .list file's text with the entries of this origin as marked comments."""
    lines = []
    for line in host_text.lines(text):
        entry = ENTRY.match(line)
        lines.append(repository.mark + line if entry and repository.origin in entry[1] else line)
    return "".join(lines)


def set_aside_deb822(text: str, repository: Repository) -> str:
    """Return a .sources file's text with the stanzas of this origin as marked comments."""
    stanzas = re.split(r"(\n[ \t\r]*\n)", text)
    for number, stanza in enumerate(stanzas):
        lines = host_text.lines(stanza)
        plain = "".join(line for line in lines if not line.startswith("#"))
        uris = re.search(r"^URIs:((?:.*\n?)(?:[ \t]+.*\n?)*)", plain, re.MULTILINE | re.IGNORECASE)
        off = re.search(r"^Enabled:\s*(?:no|false|0|off|without)\s*$", plain, re.MULTILINE | re.IGNORECASE)
        if uris and repository.origin in uris[1] and not off:
            stanzas[number] = "".join(repository.mark + line for line in lines)
    return "".join(stanzas)


def without_marks(text: str, repository: Repository) -> str:
    """Return a file's text without the marks, so that its entries are active again."""
    return re.sub(f"^{re.escape(repository.mark)}", "", text, flags=re.MULTILINE)


def own_text(before: str, repository: Repository) -> str:
    """Return the text of the repository's own file; earlier entries of others in it are commented out."""
    aside = set_aside("".join(_foreign_lines(before, repository)), repository)
    return aside + ("\n" if aside and not aside.endswith("\n") else "") + repository.line


def foreign_text(before: str, repository: Repository) -> str:
    """Return the restored entries of others in the repository's own file; empty if there are none."""
    return without_marks("".join(_foreign_lines(before, repository)), repository)


def _foreign_lines(text: str, repository: Repository) -> list[str]:
    return [line for line in host_text.lines(text) if f"signed-by={repository.keyring}]" not in line]


def list_name(uri: str) -> str:
    """Return the common prefix of apt's index files of a flat repository."""
    parts = urlsplit(uri)
    place = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/"
    return re.sub(r"[\\|{}\[\]<>\"^~_=!@#$%&*]", lambda match: f"%{ord(match[0]):02x}", place).replace("/", "_")


class Apt:
    """apt and dpkg of the machine, or in tests of a directory tree with a function that simulates them."""

    def __init__(
        self, repository: Repository, root: Path = Path("/"), run: apt.Command = apt.command, patience: int = 600
    ):
        self.repository = repository
        self.root = root
        self.run = run
        self.patience = patience

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def installed(self) -> str | None:
        """Return the installed version of the keyring package; None if it is not completely installed."""
        argv = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", self.repository.package]
        status, _, version = self.run(argv).stdout.partition(" ")
        return version if status == "installed" and self.at(self.repository.keyring).exists() else None

    def known(self) -> bool:
        """Return whether dpkg has anything of the package, including its configuration files."""
        argv = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", self.repository.package]
        return self.run(argv).stdout not in ("", "not-installed")

    def indexed(self) -> bool:
        """Return whether apt has an index of the repository."""
        return any(self.lists())

    def lists(self) -> list[Path]:
        return sorted(self.at("/var/lib/apt/lists").glob(list_name(self.repository.uri) + "*"))

    def sources(self) -> list[Path]:
        """Return all files with apt sources except the repository's own."""
        parts = self.at("/etc/apt/sources.list.d")
        files = [self.at("/etc/apt/sources.list"), *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
        return [file for file in files if file.is_file() and file != self.at(self.repository.source)]

    def differences(self, state: str) -> dict[str, tuple[str, str]]:
        """Return the files that must change as ``{path: (before, after)}``; an empty text means no file."""
        found = {}
        for file in self.sources():
            before = host_text.read(file)
            if state == "absent":
                after = without_marks(before, self.repository)
            else:
                aside = set_aside_deb822 if file.suffix == ".sources" else set_aside
                after = aside(before, self.repository)
            if before != after:
                found[f"/{file.relative_to(self.root)}"] = (before, after)
        own = self.at(self.repository.source)
        before = host_text.read(own) if own.exists() else ""
        after = own_text(before, self.repository) if state == "present" else foreign_text(before, self.repository)
        if before != after:
            found[self.repository.source] = (before, after)
        settings = self.at(self.repository.settings)
        before = host_text.read(settings) if settings.exists() else ""
        trust = self.repository.trust if state == "present" else ""
        after = f'{trust} "{self.repository.ca_path}";\n' if trust else ""
        if before != after:
            found[self.repository.settings] = (before, after)
        return found

    def try_out(self, keyring: Path) -> None:
        """Let apt read and verify the repository with separate files, before it is registered."""
        trust, path = self.repository.trust, self.repository.ca_path
        if trust and not (self.at(path).is_file() and self.at(path).stat().st_mode & 0o004):
            raise UserError(f"{path} must be a file that everyone can read: apt fetches as a user without rights")
        with tempfile.TemporaryDirectory(prefix="apt-") as work:
            folder = Path(work)
            folder.chmod(0o755)  # the index is fetched and verified by unprivileged users
            (folder / "lists" / "partial").mkdir(parents=True)
            trial = folder / "trial.list"
            trial.write_text(f"deb [signed-by={keyring}] {self.repository.uri} /\n")
            done = self.run(
                [
                    *("apt-get", "update", "-o", f"Dir::Etc::sourcelist={trial}", "-o", "Dir::Etc::sourceparts=-"),
                    *("-o", f"Dir::State::lists={folder / 'lists'}", "-o", "APT::Sandbox::User=root"),
                    *("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-o", "Acquire::Retries=2"),
                    *(("-o", f"{trust}={path}") if trust else ()),
                ]
            )
            if not list((folder / "lists").glob("*Packages*")):
                raise UserError(
                    f"apt cannot use {self.repository.uri}: {apt.reason(done)}; check the address, the mirror, and "
                    "that the keyring belongs to it"
                )

    def install(self, package: Path) -> None:
        """Install the keyring package; a configuration file with local changes stays."""
        self.patiently(["dpkg", "--force-confold", "--install", str(package)])

    def update(self) -> None:
        """Fetch only this repository's index."""
        source = self.at(self.repository.source)
        self.patiently(
            [
                *("apt-get", "update", "-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=-"),
                *("-o", "APT::Get::List-Cleanup=0", "-o", "Acquire::Retries=2"),
            ]
        )
        if not self.indexed():
            raise UserError(f"apt has no index of {self.repository.uri} after an update; run it again")

    def purge(self) -> None:
        """Remove the keyring package and the index."""
        if self.known():
            self.patiently(["dpkg", "--purge", self.repository.package])
        for file in self.lists():
            file.unlink()

    def write(self, texts: dict[str, tuple[str, str]]) -> None:
        """Write the files of `differences`, each in one step."""
        for path, (_, text) in texts.items():
            place = self.at(path)
            if not text and path in (self.repository.source, self.repository.settings):
                place.unlink(missing_ok=True)
                continue
            atomic_file.write(place, text)

    def patiently(self, argv: list[str]) -> None:
        """Run a command; wait while another program holds apt's lock. Raises UserError if it fails."""
        apt.run(argv, self.patience, self.run)


def keyring_of(package: bytes, path: str) -> bytes:
    """Return the file ``path`` from the unpacked tree (a tar archive) of a package."""
    with tarfile.open(fileobj=BytesIO(package)) as tree:
        for member in tree:
            if member.name.lstrip("./") == path.lstrip("/") and (file := tree.extractfile(member)):
                return file.read()
    raise UserError(f"the keyring package holds no {path}; choose another version of it")
