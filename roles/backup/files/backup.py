#!/usr/bin/python3
"""Back up data that this host cannot rebuild, check the repository, and fetch data for a restore.

    llm-backup take REASON        take a snapshot; `nightly` also removes old ones and checks the repository when due
    llm-backup check              check the repository for damage
    llm-backup prepare            create the repository if it never existed; `look` only tests access to it
    llm-backup find HOST WHICH    describe a snapshot (WHICH: latest, or the start of its ID)
    llm-backup fetch ID NAME DIR  restore one of its data sets to DIR/new, checked and with this host's owners
    llm-backup restic …           run restic with the repository and its password

Prints JSON. An error is one sentence on standard error, with exit code 1. SQLite databases are copied with SQLite's
backup API, so a copy is consistent while others write. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

SETTINGS = Path("/etc/llm-backup/settings.json")
SECRETS = Path("/etc/llm-backup/secrets.env")
HOME = Path("/var/lib/llm-backup")
STORE = Path("/var/lib/llm-server/services")  # release records of the module service_release
UNITS = Path("/etc/systemd/system")
RESTIC = "restic"
TAG = "llm-server"
NIGHTLY = "nightly"
ANSWER_WITHIN = 60  # s for a first request; restic itself would retry for 15 minutes
RUN_WITHIN = 6 * 3600
BEFORE_WITHIN = 600  # s that a change waits for its backup
LOCKED_FOR = {NIGHTLY: 3600}  # s to wait while another host locks the repository; LOCKED for other reasons
LOCKED = 20
PAUSE = 5
DAY = 24 * 3600
STOP_WITHIN = 15
RECENT = "2d"  # all snapshots are kept this long, such as those taken before a change
MAGIC = b"SQLite format 3\0"
BESIDE_DATABASE = ("-wal", "-shm", "-journal")
AREA = ".llm-restore"  # work directory of the module backup_restore inside a data directory
RESERVE = 64 << 20  # bytes that stay free
LISTED = 6


class Refused(Exception):
    """The operation is not possible; the message is one sentence."""


class Locked(Refused):
    """Another process holds the lock."""


class Missing(Refused):
    """There is no repository at the configured location."""


# -- restic -----------------------------------------------------------------------------------------------------------


def secrets():
    """Return the variables of the root-only file: repository, password, cloud credentials."""
    try:
        lines = SECRETS.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise Refused(f"{SECRETS}: {error.strerror}; run site.yml") from None
    return dict(line.split("=", 1) for line in lines if "=" in line)


def restic(*words, within=RUN_WITHIN, good=(0,), stdout=None):
    """Run restic and return ``(code, standard output, standard error)``. Raises `Refused` if it fails."""
    known = secrets()
    variables = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", "LC_ALL": "C", "TMPDIR": str(HOME)}
    variables |= {"RESTIC_CACHE_DIR": str(HOME / "cache"), **known}
    try:
        process = subprocess.Popen(
            [RESTIC, *words], env=variables, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True,
            stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused("restic is not installed; run site.yml") from None
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        stop(process)
        raise Refused(f"restic did not finish within {within:.0f} s on the repository {location(known)}") from None
    out, err = ((text or b"").decode("utf-8", "replace") for text in (out, err))
    if process.returncode not in good:
        raise refusal(err or out, known)
    return process.returncode, out, err


def stop(process):
    """Stop restic, with a chance to remove its lock."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_WITHIN)
            return


def location(known):
    """Return the repository's address without credentials."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", known.get("RESTIC_REPOSITORY", ""))


def refusal(said, known):
    """Return restic's error as one sentence with the cure."""
    where = location(known)
    if "wrong password" in said or "no key found" in said:
        return Refused(
            f"the password does not open the repository {where}; set backup_password to the one it was created with"
        )
    if "already locked" in said or "unable to create lock" in said:
        found = re.search(r"already locked[^\n]*", said)
        told = f" ({redact(found[0], known)})" if found else ""
        return Locked(
            f"the repository {where} is locked by another run{told}; wait until it ends, or, if none is running, run "
            f"llm-backup restic unlock on this host"
        )
    lines = [line.strip() for line in said.partition("Is there a repository at")[0].split("\n") if line.strip()]
    told = redact(" ".join(lines[-3:]), known)
    absent = re.search(r"no such file|does not exist|not found|NoSuchKey|NoSuchBucket|404", said)
    if absent and re.search(r"config|repository|bucket|stat ", said):
        return Missing(f"there is no repository at {where} ({told})")
    return Refused(f"the repository {where} cannot be used: {told}")


def redact(text, known):
    """Return a text without secrets and credentials."""
    for name, value in known.items():
        if name != "RESTIC_REPOSITORY" and len(value) > 3:
            text = text.replace(value, "********")
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


def retry_while_locked(do, seconds):
    """Return the result of ``do``; while the repository is locked, retry for up to ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        try:
            return do()
        except Locked:
            if time.monotonic() >= end:
                raise
            time.sleep(PAUSE)


def repository():
    """Return the ID of the repository. Raises `Refused` if it does not answer or the password is wrong."""
    _, out, _ = restic("cat", "config", "--no-lock", within=ANSWER_WITHIN)
    return json.loads(out)["id"]


def snapshots(host=None):
    """Return the snapshots that this program took, oldest first."""
    words = ["--host", host] if host else []
    _, out, _ = restic("snapshots", "--json", "--tag", TAG, *words, within=5 * ANSWER_WITHIN)
    return sorted(json.loads(out) or [], key=lambda one: moment(one["time"]))


def moment(told):
    """Return a restic time as seconds since 1970; restic writes it with the UTC offset of its host."""
    plain, fraction, zone = re.fullmatch(r"([\d-]+T[\d:]+)(\.\d+)?(Z|[+-]\d\d:\d\d)", told).groups()
    return datetime.fromisoformat(plain + zone.replace("Z", "+00:00")).timestamp() + float(fraction or 0)


def written(told):
    """Return a restic time in readable form."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment(told)))


# -- local state and metrics ------------------------------------------------------------------------------------------


def read_state():
    """Return the state that earlier runs saved."""
    try:
        return dict(json.loads((HOME / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def save_state(**changes):
    """Save changes of the state and write them as world-readable metrics."""
    for folder in (HOME, HOME / "metrics"):
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
    state = {**read_state(), **changes}
    replace(HOME / "state.json", json.dumps(state, indent=1), 0o600)
    replace(HOME / "metrics" / "backup.prom", page(state), 0o644)


def page(state):
    """Return the metrics for node_exporter's textfile collector."""
    run, good, check = (state.get(name) or {} for name in ("run", "good", "check"))
    series = [
        ("last_run_seconds", "Unix time of the last backup, successful or not.", run.get("at")),
        ("last_run_ok", "1 if the last backup is complete.", run and int(run["ok"])),
        ("last_success_seconds", "Unix time of the last successful backup.", good.get("at")),
        ("files", "Files in the last successful backup.", good.get("files")),
        ("added_bytes", "Bytes that the last successful backup added to the repository.", good.get("added")),
        ("duration_seconds", "Seconds that the last successful backup took.", good.get("seconds")),
        ("last_check_seconds", "Unix time of the last check of the repository.", check.get("at")),
        ("last_check_ok", "1 if the last check found no damage.", check and int(check["ok"])),
    ]
    lines = []
    for name, text, value in series:
        if value not in (None, {}):
            lines += [
                f"# HELP llm_backup_{name} {text}",
                f"# TYPE llm_backup_{name} gauge",
                f"llm_backup_{name} {value}",
            ]
    return "".join(f"{line}\n" for line in lines)


def replace(path, text, mode):
    """Write a file atomically."""
    beside = path.with_name(f".{path.name}.new")
    beside.touch(mode=mode)
    beside.chmod(mode)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextlib.contextmanager
def alone(seconds):
    """Hold the lock that allows one run at a time on this host."""
    end = time.monotonic() + seconds
    with (HOME / "lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Locked("another backup of this host is running; wait until it ends") from None
                time.sleep(1)
        yield


# -- backup -----------------------------------------------------------------------------------------------------------


def sets(settings):
    """Return the data sets that exist on this host: name, path, service.

    The path of a directory that is a symlink, for example to a larger disk, is its target: restic backs up a symlink as
    such.
    """
    return [{**one, "path": os.path.realpath(one["path"])} for one in settings["data"] if Path(one["path"]).is_dir()]


def kept_settings(settings):
    """Return the settings files: release records, the releases' files and secrets, and those of ``settings``.

    Environments and models are left out: site.yml installs them again. So are the repository's own password and
    credentials, which nobody can read there without them.
    """
    paths = [STORE, *map(Path, settings["settings"])]
    for state in sorted(STORE.glob("*/state.json")):
        try:
            current = json.loads(state.read_text(encoding="utf-8"))["current"]
            release = json.loads((state.parent / "releases" / f"{current}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        kept = [Path(file["path"]) for part in ("files", "secrets") for file in release.get(part, [])]
        paths += [path for path in kept if path != SECRETS]
        paths.append(UNITS / f"{state.parent.name}.service")
    return [path for path in dict.fromkeys(paths) if path.exists()]


def is_database(path):
    try:
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def survey(one):
    """Return the contents of a data set: files, bytes, databases (paths), and the IDs of the owners."""
    told = {"files": 0, "bytes": 0, "databases": [], "uids": set(), "gids": set()}
    for folder, folders, names in os.walk(one["path"]):
        folders[:] = sorted(name for name in folders if name != AREA)
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found = path.lstat()
                told["uids"].add(found.st_uid)
                told["gids"].add(found.st_gid)
                if name in folders or (
                    name.endswith(BESIDE_DATABASE) and is_database(Path(folder, name.rpartition("-")[0]))
                ):
                    continue
                told["files"] += 1
                told["bytes"] += found.st_size
                if path.is_file() and not path.is_symlink() and is_database(path):
                    told["databases"].append(str(path))
    return told


def copy_database(source, target):
    """Copy a database while others write. Raises sqlite3.Error if it is damaged."""
    target.parent.mkdir(parents=True, exist_ok=True)
    found = source.stat()
    from_ = sqlite3.connect(f"file:{quote(str(source))}?mode=rw", uri=True, timeout=30)
    to = sqlite3.connect(target)
    try:
        from_.backup(to)
        problem = to.execute("PRAGMA quick_check").fetchone()[0]
    finally:
        to.close()
        from_.close()
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    os.chown(target, found.st_uid, found.st_gid)
    target.chmod(found.st_mode & 0o7777)


def names_of(ids, lookup):
    """Return the names of users or groups by their IDs."""
    names = {}
    for number in sorted(ids):
        with contextlib.suppress(KeyError):
            names[str(number)] = lookup(number)[0]
    return names


def stage(settings, problems):
    """Copy the databases and write the manifest; return restic's paths and exclude patterns."""
    staging = HOME / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    found = [(one, survey(one)) for one in sets(settings)]
    needed = sum(Path(path).stat().st_size for _, told in found for path in told["databases"])
    free = shutil.disk_usage(staging).free
    if needed + RESERVE > free:
        raise Refused(
            f"the copies of the databases need {needed >> 20} MiB, but only {free >> 20} MiB are free in {HOME}; free "
            "space with playbooks/housekeeping.yml -e backup_before=false"
        )
    excluded, uids, gids = [AREA], set(), set()
    for _, told in found:
        uids, gids = uids | told["uids"], gids | told["gids"]
        for path in told["databases"]:
            copy = staging / path.lstrip("/")
            try:
                copy_database(Path(path), copy)
                excluded += [pattern(path), *(pattern(path + end) for end in BESIDE_DATABASE)]
            except (sqlite3.Error, OSError) as error:
                # The damaged file may still be useful.
                copy.unlink(missing_ok=True)
                problems.append(f"{path} cannot be copied as a database ({error}) and is backed up as a plain file")
    manifest = {
        "host": settings["host"],
        "sets": [{**one, **{key: told[key] for key in ("files", "bytes", "databases")}} for one, told in found],
        "users": names_of(uids, pwd.getpwuid),
        "groups": names_of(gids, grp.getgrgid),
    }
    replace(staging / "manifest.json", json.dumps(manifest, indent=1), 0o600)
    paths = [staging, *(Path(one["path"]) for one, _ in found), *kept_settings(settings)]
    return list(dict.fromkeys(map(str, paths))), excluded


def pattern(path):
    """Return a restic pattern that matches only this path."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def take(settings, reason):
    """Take a snapshot; save and return the result."""
    begin = time.time()
    told, problems, good = {"at": int(begin), "reason": reason}, [], {}
    try:
        with alone(LOCKED_FOR.get(reason, LOCKED)):
            repository()
            told |= snapshot(settings, reason, problems)
            told["seconds"] = round(time.time() - begin, 1)
            good = {} if problems else {"good": told}
            if reason == NIGHTLY:
                maintain(settings, problems)
    except (Refused, OSError) as error:
        problems.append(str(error))
    seconds = round(time.time() - begin, 1)
    told = {**told, "seconds": seconds, "ok": not problems, "why": "; ".join(problems)}
    with contextlib.suppress(OSError):  # a full disk
        save_state(run=told, **good)
    return told


def maintain(settings, problems):
    """Remove old snapshots and check the repository when due; a failure does not affect the new snapshot."""
    for duty in (forget, check_in_time):
        try:
            duty(settings)
        except Refused as error:
            problems.append(str(error))


def snapshot(settings, reason, problems):
    """Take a snapshot and return restic's summary; problems that do not prevent it are added to ``problems``."""
    paths, excluded = stage(settings, problems)
    limit = BEFORE_WITHIN if reason.startswith("before") else RUN_WITHIN
    words = ["backup", "--json", "--host", settings["host"], "--tag", f"{TAG},{reason}"]
    words += [word for each in excluded for word in ("--exclude", each)]
    try:
        # 3: some files could not be read.
        code, out, err = retry_while_locked(
            lambda: restic(*words, "--", *paths, good=(0, 3), within=limit), LOCKED_FOR.get(reason, LOCKED)
        )
    finally:
        shutil.rmtree(HOME / "staging", ignore_errors=True)
    summary = next((one for one in json_lines(out) if one.get("message_type") == "summary"), None)
    if summary is None:
        raise Refused(f"restic reported no snapshot: {redact(err.strip(), secrets())}")
    if code == 3:
        unread = [line for line in err.split("\n") if line.strip() and not re.search("no such file|Warning", line)]
        problems.extend(
            [f"some files could not be read: {redact(' '.join(unread[:LISTED]), secrets())}"] if unread else []
        )
    return {
        "snapshot": summary["snapshot_id"][:8],
        "files": summary["total_files_processed"],
        "bytes": summary["total_bytes_processed"],
        "added": summary["data_added"],
    }


def json_lines(text):
    found = []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def forget(settings):
    """Remove snapshots that are not to be kept, and their data."""
    words = ["forget", "--host", settings["host"], "--tag", TAG, "--group-by", "host", "--keep-within", RECENT]
    words += [word for name, count in settings["keep"].items() for word in (f"--keep-{name}", str(count))]
    retry_while_locked(lambda: restic(*words, "--prune"), LOCKED_FOR[NIGHTLY])


def check_in_time(settings):
    """Check the repository if the last check is too old or failed."""
    known = read_state().get("check") or {}
    if not known.get("ok") or time.time() - known["at"] > settings["check_days"] * DAY - DAY / 2:
        told = check()
        if not told["ok"]:
            raise Refused(f"the check of the repository failed: {told['why']}")


def check():
    """Check the repository for damage; save and return the result."""
    told = {"at": int(time.time()), "ok": True, "why": ""}
    try:
        retry_while_locked(lambda: restic("check"), LOCKED_FOR[NIGHTLY])
    except Locked as error:
        # In use, not damaged: the last result stays.
        return {**told, "ok": False, "why": str(error)}
    except Refused as error:
        told |= {"ok": False, "why": str(error)}
    told["seconds"] = round(time.time() - told["at"], 1)
    save_state(check=told)
    return told


def prepare(settings):
    """Check that the repository answers; create it if it never existed."""
    known, where = read_state().get("repository") or {}, location(secrets())
    try:
        found, made = repository(), False
    except Missing as error:
        if known.get("place") == where:
            # Perhaps a disk is not mounted; a new repository in its place would hide that.
            raise Refused(
                f"{error}, but there was one: bring it back (is its disk mounted?), or remove {HOME}/state.json to "
                "start a new one"
            ) from None
        if settings.get("look"):
            return {"made": True}
        restic("init", within=5 * ANSWER_WITHIN)
        found, made = repository(), True
    if known.get("id") != found and not settings.get("look"):
        save_state(repository={"place": where, "id": found, "since": int(time.time())})
    # A rebuilt machine has no data yet: a first snapshot would become the latest and hide the real one.
    taken = bool(read_state().get("good")) or bool(retry_while_locked(lambda: snapshots(settings["host"]), LOCKED))
    return {"made": made, "id": found, "taken": taken}


# -- restore ----------------------------------------------------------------------------------------------------------


def find(host, which):
    """Return a snapshot of a host with its manifest."""
    repository()
    everything = retry_while_locked(snapshots, LOCKED)
    own = [one for one in everything if one["hostname"] == host]
    if not own:
        hosts = sorted({one["hostname"] for one in everything})
        raise Refused(
            f"the repository has no snapshot of {host}; set backup_of to one of: {', '.join(hosts) or '(none)'}"
        )
    fitting = own[-1:] if which == "latest" else [one for one in own if one["id"].startswith(which)]
    if len(fitting) != 1:
        newest = ", ".join(f"{one['id'][:8]} ({written(one['time'])})" for one in own[: -LISTED - 1 : -1])
        many = "matches several snapshots" if fitting else "matches no snapshot"
        raise Refused(f"backup_snapshot {which} {many} of {host}; the latest are: {newest}")
    (chosen,) = fitting
    _, out, _ = restic("dump", chosen["id"], f"{HOME}/staging/manifest.json", within=5 * ANSWER_WITHIN)
    return {"id": chosen["id"], "at": written(chosen["time"]), **json.loads(out)}


def fetch(snapshot_id, name, directory):
    """Restore a data set of a snapshot to ``directory``/new with this host's owners."""
    _, out, _ = restic("dump", snapshot_id, f"{HOME}/staging/manifest.json", within=5 * ANSWER_WITHIN)
    manifest = json.loads(out)
    one = next((each for each in manifest["sets"] if each["name"] == name), None)
    if one is None:
        raise Refused(f"the snapshot has no data named {name}")
    raw, new, copies = directory / "raw", directory / "new", f"{HOME}/staging{one['path']}"
    for folder in (raw, new):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
    words = [word for path in (one["path"], copies) for word in ("--include", pattern(path))]
    _, out, err = restic("restore", snapshot_id, "--target", str(raw), *words, "--verify")
    # Old versions continue after an error and exit with 0.
    errors = [line for line in f"{out}\n{err}".split("\n") if re.match(r"(?i)\s*(ignoring )?error", line)]
    if errors:
        raise Refused(f"{name} could not be restored completely: {redact(errors[0], secrets())}")
    for source in (raw / one["path"].lstrip("/"), raw / copies.lstrip("/")):
        merge(source, new)
    shutil.rmtree(raw)
    brought = sum(path.is_symlink() or path.is_file() for path in new.rglob("*"))
    if one["files"] and not brought:
        # restic succeeds even if nothing matches; an empty directory must not replace data.
        raise Refused(
            f"{name} came without any of its {one['files']} files; choose another snapshot with backup_snapshot"
        )
    for path in one["databases"]:
        check_database(new / Path(path).relative_to(one["path"]), path)
    set_owners(new, manifest, directory.parent.stat())
    return {"files": brought, "name": name}


def merge(source, target):
    """Move the contents of one directory into another."""
    if source.is_symlink() or not source.is_dir():
        return
    for child in source.iterdir():
        there = target / child.name
        if child.is_dir() and not child.is_symlink() and there.is_dir():
            merge(child, there)
        else:
            child.rename(there)


def check_database(copy, path):
    """Raise `Refused` if a database is missing or damaged."""
    try:
        database = sqlite3.connect(f"file:{quote(str(copy))}?mode=rw", uri=True)
        try:
            problem = database.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error as error:
        problem = str(error)
    if problem != "ok":
        raise Refused(f"the snapshot's {path} is damaged ({problem}); choose an earlier snapshot with backup_snapshot")


def set_owners(tree, manifest, otherwise):
    """Set the owners of a tree to this host's users and groups of the same names; ``otherwise`` if unknown."""

    def local(names, number, lookup, instead):
        try:
            return lookup(names[str(number)])[2]
        except KeyError:
            return instead

    for path in tree.rglob("*"):
        found = path.lstat()
        uid = local(manifest["users"], found.st_uid, pwd.getpwnam, otherwise.st_uid)
        gid = local(manifest["groups"], found.st_gid, grp.getgrnam, otherwise.st_gid)
        os.chown(path, uid, gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(found.st_mode & 0o7777)  # chown clears some bits


# -- command line -----------------------------------------------------------------------------------------------------


def main(words):
    settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
    os.umask(0o077)
    HOME.mkdir(mode=0o755, exist_ok=True)
    command, rest = (words or ["help"])[0], words[1:]
    if command == "restic":
        os.execvpe(RESTIC, [RESTIC, *rest], {**os.environ, "RESTIC_CACHE_DIR": str(HOME / "cache"), **secrets()})
    doors = {
        ("take", 1): lambda reason: take(settings, reason),
        ("check", 0): check,
        ("prepare", 0): lambda: prepare(settings),
        ("look", 0): lambda: prepare({**settings, "look": True}),
        ("find", 2): find,
        ("fetch", 3): lambda one, name, directory: fetch(one, name, Path(directory)),
    }
    door = doors.get((command, len(rest)))
    if door is None:
        sys.exit(__doc__)
    try:
        told = door(*rest)
    except (Refused, OSError) as error:
        print(f"<3>{error}" if os.environ.get("JOURNAL_STREAM") else error, file=sys.stderr)
        sys.exit(1)
    print(json.dumps(told))
    if told.get("ok") is False:
        print(f"<3>{told['why']}" if os.environ.get("JOURNAL_STREAM") else told["why"], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
