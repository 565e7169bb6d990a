"""Check that a log shipper can read its sources: run this in the sandbox of its unit, as its user, with its groups.

    read_sources.py '{"role": ROLE, "journal": DIRECTORY or null, "files": [GLOB, …]}'

Writes a line to the journal and reads it back from the directory; opens each glob's directory and files. If something
cannot be read, the last line names all of it and the exit code is 1. A glob without files is accepted if its directory
is readable.
"""

import grp
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROLE = "promtail"  # the service, and the prefix of its variables
JOURNAL, VOLATILE = "/run/systemd/journal/socket", "/run/log/journal"
PATIENCE = 5  # s to wait until a line sent to the journal is in its files
# ProtectHome and PrivateTmp hide these from the service.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
SHOWN = 3  # files of a glob that an error names


def journal_problem(directory, patience=PATIENCE):
    """Return the error if new lines of the journal cannot be read in ``directory``, or None."""
    variable = f"{ROLE}_journal_path: {directory}"
    try:
        list(Path(directory).iterdir())
    except FileNotFoundError:
        return f"{variable} does not exist; {cure_of_storage(directory)}"
    except OSError:
        what = described(Path(directory))
        return f"{variable} cannot be read by {ROLE} ({what}); add systemd-journal to {ROLE}_groups"
    if found_again(directory, patience):
        return None
    closed = [file for file in Path(directory).glob("*/system*.journal") if not readable(file)]
    if closed:
        what = f"{closed[0]} ({described(closed[0])})"
        return f"{variable}: {ROLE} cannot read {what}; add systemd-journal to {ROLE}_groups"
    return f"{variable} gets no new lines; {cure_of_storage(directory)}"


def found_again(directory, patience):
    """Write a line to the journal; return whether it can be read from the files in ``directory`` in time."""
    word = uuid.uuid4().hex
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect(JOURNAL)
        journal.send(f"MESSAGE={ROLE} reads the journal\nPRIORITY=7\nSHIPPER_TRIAL={word}\n".encode())
    argv = ["journalctl", "--directory", directory, "--quiet", "--output=cat", f"SHIPPER_TRIAL={word}"]
    end = time.monotonic() + patience
    while not (found := subprocess.run(argv, capture_output=True, check=False).stdout) and time.monotonic() < end:
        time.sleep(0.3)
    return bool(found)


def cure_of_storage(directory):
    """Return the cure if journald does not write to ``directory``."""
    if directory.rstrip("/") != VOLATILE and any(Path(VOLATILE).glob("*/*.journal")):
        return (
            f"journald writes to {VOLATILE} (Storage=volatile, or no /var/log/journal): set {ROLE}_journal_path to "
            f"{VOLATILE}, or Storage=persistent in journald.conf and restart systemd-journald"
        )
    return "name the directory that journald writes to (Storage= in journald.conf, which must not be none)"


def file_problem(pattern):
    """Return the error if the shipper cannot read all files of a glob, or None."""
    variable = f"{ROLE}_file_jobs: {pattern}"
    hidden = next((place for place in HIDDEN if pattern.startswith(place)), None)
    if hidden:
        return f"{variable} lies below {hidden}, which the service does not see; write the logs below /var/log"
    parent = Path(re.split(r"[*?\[{]", pattern)[0] + "*").parent
    barrier = closed_directory(parent)
    if barrier:
        return f"{variable}: {ROLE} cannot access {barrier} ({described(barrier)}); {cure_of(barrier)}"
    if not parent.is_dir():
        return f"{variable}: there is no directory {parent}; correct the path, or make the directory first"
    closed = [file for file in matching(pattern) if not readable(file)]
    if closed:
        what = ", ".join(f"{file} ({described(file)})" for file in closed[:SHOWN])
        more = f" and {len(closed) - SHOWN} more" if len(closed) > SHOWN else ""
        return f"{variable}: {ROLE} cannot read {what}{more}; {cure_of(closed[0])}, or narrow the path"
    return None


def closed_directory(directory):
    """Return the first inaccessible directory on the path to and including ``directory``, or None."""
    for place in [*reversed(directory.parents), directory]:
        needed = os.X_OK | (os.R_OK if place == directory else 0)
        if place.is_dir() and not os.access(place, needed):
            return place
    return None


def matching(pattern):
    """Return the files that match a glob, which may contain ``**`` and ``{a,b}``."""
    return sorted({file for each in alternatives(pattern) for file in Path("/").glob(each.lstrip("/")) if opens(file)})


def opens(file):
    """Return whether the shipper would open this file."""
    try:
        return not file.is_dir()
    except OSError:
        return True


def alternatives(pattern):
    """Return the globs to which a glob with ``{a,b}`` expands."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [each for word in found[1].split(",") for each in alternatives(before + word + after)]


def readable(file):
    try:
        with file.open("rb"):
            return True
    except FileNotFoundError:  # just rotated away
        return True
    except OSError:
        return False


def described(path):
    """Return mode and owners of a path as ``ls -l`` shows them."""
    seen = path.stat()
    return f"{stat.filemode(seen.st_mode)} {name_of(pwd.getpwuid, seen.st_uid)} {name_of(grp.getgrgid, seen.st_gid)}"


def name_of(table, number):
    try:
        return table(number)[0]
    except KeyError:
        return str(number)


def cure_of(path):
    """Return the cure that lets the shipper read ``path``."""
    seen = path.stat()
    needed = stat.S_IRGRP | (stat.S_IXGRP if stat.S_ISDIR(seen.st_mode) else 0)
    group = name_of(grp.getgrgid, seen.st_gid)
    if seen.st_mode & needed == needed and group not in ("root", "nogroup"):
        return f"add {group} to {ROLE}_groups"
    return f"let a group read it, and add that group to {ROLE}_groups"


def main():
    global ROLE
    wanted = json.loads(sys.argv[1])
    ROLE = wanted["role"]
    problems = [journal_problem(wanted["journal"])] if wanted["journal"] else []
    problems += [file_problem(pattern) for pattern in wanted["files"]]
    found = [problem for problem in problems if problem]
    if found:
        print("; and ".join(found))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
