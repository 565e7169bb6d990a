#!/usr/bin/python3
"""Back up what this host cannot make again, see that it can be read, and fetch it back.

    llm-backup take REASON        a snapshot now; `nightly` also forgets old ones and, when it is time, checks
    llm-backup check              see that the repository is whole
    llm-backup prepare            make the repository, where there is none yet; `look` only asks it
    llm-backup find HOST WHICH    what a snapshot has (WHICH: latest, or the beginning of its id)
    llm-backup fetch ID NAME DIR  bring one of its sets into DIR/new, whole and with this host's owners
    llm-backup restic …           restic itself, with the repository and its password

Answers are JSON. What is wrong is one sentence on standard error, exit code 1. A database of SQLite is copied by SQLite
itself, so it is whole while others write it. Needs root.
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
STORE = Path("/var/lib/llm-server/services")  # notes of the module service_release
UNITS = Path("/etc/systemd/system")
RESTIC = "restic"
TAG = "llm-server"
NIGHTLY = "nightly"
ANSWER_WITHIN = 60  # s for a first question; restic itself would ask for a quarter of an hour
RUN_WITHIN = 6 * 3600
BEFORE_WITHIN = 600  # what a change waits for
LOCKED_FOR = {NIGHTLY: 3600}  # s to wait for another host that has the repository locked; else LOCKED
LOCKED = 20
PAUSE = 5
DAY = 24 * 3600
STOP_WITHIN = 15
RECENT = "2d"  # snapshots from before a change stay so long whatever else is kept
MAGIC = b"SQLite format 3\0"
BESIDE_DATABASE = ("-wal", "-shm", "-journal")
AREA = ".llm-restore"  # of the module backup_restore, in a directory that it works on
RESERVE = 64 << 20  # bytes that stay free
LISTED = 6


class Refused(Exception):
    """It cannot be done; the text is one sentence."""


class Locked(Refused):
    """Somebody else has the repository locked."""


class Missing(Refused):
    """There is no repository at its place."""


# -- restic -----------------------------------------------------------------------------------------------------------


def secrets():
    """Return the variables of the root-only file: repository, password, credentials of a cloud."""
    try:
        lines = SECRETS.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise Refused(f"{SECRETS}: {error.strerror}; run site.yml") from None
    return dict(line.split("=", 1) for line in lines if "=" in line)


def restic(*words, within=RUN_WITHIN, good=(0,), stdout=None):
    """Run restic and return ``(code, standard output, standard error)``; `Refused` where it does not end well."""
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
        raise Refused(f"the repository {place(known)} took more than {within:.0f} s") from None
    out, err = ((text or b"").decode("utf-8", "replace") for text in (out, err))
    if process.returncode not in good:
        raise refusal(err or out, known)
    return process.returncode, out, err


def stop(process):
    """End restic so that it takes its lock away."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_WITHIN)
            return


def place(known):
    """Return where the repository is, without a login."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", known.get("RESTIC_REPOSITORY", ""))


def refusal(said, known):
    """Return what restic said as one sentence with the cure."""
    where = place(known)
    if "wrong password" in said or "no key found" in said:
        return Refused(
            f"the password does not open the repository {where}; set backup_password to the one that it was made with"
        )
    if "already locked" in said or "unable to create lock" in said:
        found = re.search(r"already locked[^\n]*", said)
        told = f" ({quiet(found[0], known)})" if found else ""
        return Locked(
            f"the repository {where} is locked by another run{told}; wait until that ends, or, where none runs any "
            f"more, call llm-backup restic unlock on this host"
        )
    lines = [line.strip() for line in said.partition("Is there a repository at")[0].split("\n") if line.strip()]
    told = quiet(" ".join(lines[-3:]), known)
    absent = re.search(r"no such file|does not exist|not found|NoSuchKey|NoSuchBucket|404", said)
    if absent and re.search(r"config|repository|bucket|stat ", said):
        return Missing(f"there is no repository at {where} ({told})")
    return Refused(f"the repository {where} cannot be used: {told}")


def quiet(text, known):
    """Return a text of restic without what is secret."""
    for name, value in known.items():
        if name != "RESTIC_REPOSITORY" and len(value) > 3:
            text = text.replace(value, "********")
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


def patiently(do, seconds):
    """Do it; while somebody else has the repository locked, again for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return do()
        except Locked:
            if time.monotonic() >= end:
                raise
            time.sleep(PAUSE)


def repository():
    """Return the id of the repository; `Refused` where it does not answer or the password is another's."""
    _, out, _ = restic("cat", "config", "--no-lock", within=ANSWER_WITHIN)
    return json.loads(out)["id"]


def snapshots(host=None):
    """Return the snapshots of this project, the oldest first."""
    words = ["--host", host] if host else []
    _, out, _ = restic("snapshots", "--json", "--tag", TAG, *words, within=5 * ANSWER_WITHIN)
    return sorted(json.loads(out) or [], key=lambda one: moment(one["time"]))


def moment(told):
    """Return a time of restic as seconds since 1970; each has the time zone of its host, and summer time."""
    plain, fraction, zone = re.fullmatch(r"([\d-]+T[\d:]+)(\.\d+)?(Z|[+-]\d\d:\d\d)", told).groups()
    return datetime.fromisoformat(plain + zone.replace("Z", "+00:00")).timestamp() + float(fraction or 0)


def written(told):
    """Return a time of restic for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment(told)))


# -- what is kept of it here ------------------------------------------------------------------------------------------


def noted():
    """Return what earlier runs noted."""
    try:
        return dict(json.loads((HOME / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def note(**changes):
    """Note something and tell it as metrics, which everybody may read."""
    for folder in (HOME, HOME / "metrics"):
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
    state = {**noted(), **changes}
    replace(HOME / "state.json", json.dumps(state, indent=1), 0o600)
    replace(HOME / "metrics" / "backup.prom", page(state), 0o644)


def page(state):
    """Return the metrics for node_exporter's textfile collector."""
    run, good, check = (state.get(name) or {} for name in ("run", "good", "check"))
    series = [
        ("last_run_seconds", "Unix time of the last backup, good or not.", run.get("at")),
        ("last_run_ok", "1 where the last backup has all that it should.", run and int(run["ok"])),
        ("last_success_seconds", "Unix time of the last good backup.", good.get("at")),
        ("files", "Files of the last good backup.", good.get("files")),
        ("added_bytes", "Bytes that it added to the repository.", good.get("added")),
        ("duration_seconds", "How long it took.", good.get("seconds")),
        ("last_check_seconds", "Unix time of the last check of the repository.", check.get("at")),
        ("last_check_ok", "1 where the repository was whole.", check and int(check["ok"])),
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
    """Write a file in one step."""
    beside = path.with_name(f".{path.name}.new")
    beside.touch(mode=mode)
    beside.chmod(mode)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextlib.contextmanager
def alone(seconds):
    """Be the only run on this host."""
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


# -- what is backed up ------------------------------------------------------------------------------------------------


def sets(settings):
    """Return the sets of data that are on this host: name, path, service.

    Where a directory is a link, such as to a larger disk, its path is the one that it leads to: of a link itself restic
    has nothing but the link.
    """
    return [{**one, "path": os.path.realpath(one["path"])} for one in settings["data"] if Path(one["path"]).is_dir()]


def kept_settings(settings):
    """Return the files that say what runs here: the releases' notes, their files and secrets, and what else is named.

    No environment and no model: the same command makes these again.
    """
    paths = [STORE, *map(Path, settings["settings"])]
    for state in sorted(STORE.glob("*/state.json")):
        try:
            current = json.loads(state.read_text(encoding="utf-8"))["current"]
            release = json.loads((state.parent / "releases" / f"{current}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        paths += [Path(file["path"]) for part in ("files", "secrets") for file in release.get(part, [])]
        paths.append(UNITS / f"{state.parent.name}.service")
    return [path for path in dict.fromkeys(paths) if path.exists()]


def is_database(path):
    try:
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def survey(one):
    """Return what a set has: files, bytes, databases (paths), and the ids of its owners."""
    told = {"files": 0, "bytes": 0, "databases": [], "uids": set(), "gids": set()}
    for folder, folders, names in os.walk(one["path"]):
        folders[:] = sorted(name for name in folders if name != AREA)
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
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
    """Copy a database while others write it; raises sqlite3.Error where it is damaged."""
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
    """Return the names of users or groups by number."""
    names = {}
    for number in sorted(ids):
        with contextlib.suppress(KeyError):
            names[str(number)] = lookup(number)[0]
    return names


def stage(settings, problems):
    """Copy the databases and write down what there is; return the paths for restic, and what it is to leave out."""
    staging = HOME / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    found = [(one, survey(one)) for one in sets(settings)]
    needed = sum(Path(path).stat().st_size for _, told in found for path in told["databases"])
    free = shutil.disk_usage(staging).free
    if needed + RESERVE > free:
        raise Refused(
            f"the databases need {needed >> 20} MiB for their copies, and {free >> 20} MiB are free on {HOME}; make "
            "room by playbooks/housekeeping.yml -e backup_before=false"
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
                # As it is, it may still be of use to somebody.
                copy.unlink(missing_ok=True)
                problems.append(f"{path} cannot be copied as a database ({error}), so it is backed up as it is")
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
    """Return a pattern of restic that only this path fits."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def take(settings, reason):
    """Take a snapshot, note what came of it and return it."""
    begin = time.time()
    told, problems, good = {"at": int(begin), "reason": reason}, [], {}
    try:
        with alone(LOCKED_FOR.get(reason, LOCKED)):
            repository()
            told |= snapshot(settings, reason, problems)
            told["seconds"] = round(time.time() - begin, 1)
            good = {} if problems else {"good": told}
            if reason == NIGHTLY:
                look_after(settings, problems)
    except (Refused, OSError) as error:
        problems.append(str(error))
    seconds = round(time.time() - begin, 1)
    told = {**told, "seconds": seconds, "ok": not problems, "why": "; ".join(problems)}
    with contextlib.suppress(OSError):  # a full disk
        note(run=told, **good)
    return told


def look_after(settings, problems):
    """Forget old snapshots, and check the repository in time; the new one is good whatever comes of it."""
    for duty in (forget, check_in_time):
        try:
            duty(settings)
        except Refused as error:
            problems.append(str(error))


def snapshot(settings, reason, problems):
    """Take a snapshot and return what restic tells of it; what is not as it should be is added to ``problems``."""
    paths, excluded = stage(settings, problems)
    limit = BEFORE_WITHIN if reason.startswith("before") else RUN_WITHIN
    words = ["backup", "--json", "--host", settings["host"], "--tag", f"{TAG},{reason}"]
    words += [word for each in excluded for word in ("--exclude", each)]
    try:
        # 3: a snapshot without some files.
        code, out, err = patiently(
            lambda: restic(*words, "--", *paths, good=(0, 3), within=limit), LOCKED_FOR.get(reason, LOCKED)
        )
    finally:
        shutil.rmtree(HOME / "staging", ignore_errors=True)
    summary = next((one for one in json_lines(out) if one.get("message_type") == "summary"), None)
    if summary is None:
        raise Refused(f"restic told nothing of a snapshot: {quiet(err.strip(), secrets())}")
    if code == 3:
        unread = [line for line in err.split("\n") if line.strip() and not re.search("no such file|Warning", line)]
        problems.extend([f"some files were not read: {quiet(' '.join(unread[:LISTED]), secrets())}"] if unread else [])
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
    """Let go of snapshots that are not to be kept, and of what only they needed."""
    words = ["forget", "--host", settings["host"], "--tag", TAG, "--group-by", "host", "--keep-within", RECENT]
    words += [word for name, count in settings["keep"].items() for word in (f"--keep-{name}", str(count))]
    patiently(lambda: restic(*words, "--prune"), LOCKED_FOR[NIGHTLY])


def check_in_time(settings):
    """Check the repository where that was not done for some days."""
    known = noted().get("check") or {}
    if not known.get("ok") or time.time() - known["at"] > settings["check_days"] * DAY - DAY / 2:
        told = check()
        if not told["ok"]:
            raise Refused(f"the check of the repository failed: {told['why']}")


def check():
    """See that the repository is whole; note what came of it and return it."""
    told = {"at": int(time.time()), "ok": True, "why": ""}
    try:
        patiently(lambda: restic("check"), LOCKED_FOR[NIGHTLY])
    except Locked as error:
        # It is used, not damaged: the last verdict stays.
        return {**told, "ok": False, "why": str(error)}
    except Refused as error:
        told |= {"ok": False, "why": str(error)}
    told["seconds"] = round(time.time() - told["at"], 1)
    note(check=told)
    return told


def prepare(settings):
    """See that the repository answers; make it where there has never been one."""
    known, where = noted().get("repository") or {}, place(secrets())
    try:
        found, made = repository(), False
    except Missing as error:
        if known.get("place") == where:
            # Such as a disk that is not mounted: another one in its place would hide that.
            raise Refused(
                f"{error}, where there was one: bring it back (is its disk mounted?), or remove {HOME}/state.json to "
                "begin a new one"
            ) from None
        if settings.get("look"):
            return {"made": True}
        restic("init", within=5 * ANSWER_WITHIN)
        found, made = repository(), True
    if known.get("id") != found and not settings.get("look"):
        note(repository={"place": where, "id": found, "since": int(time.time())})
    # A machine that was built anew has nothing yet: its first snapshot would be taken for the newest of its data.
    taken = bool(noted().get("good")) or bool(patiently(lambda: snapshots(settings["host"]), LOCKED))
    return {"made": made, "id": found, "taken": taken}


# -- the way back -----------------------------------------------------------------------------------------------------


def find(host, which):
    """Return a snapshot of a host and what it has."""
    repository()
    everything = patiently(snapshots, LOCKED)
    own = [one for one in everything if one["hostname"] == host]
    if not own:
        hosts = sorted({one["hostname"] for one in everything})
        raise Refused(f"the repository has no snapshot of {host}; it has some of: {', '.join(hosts) or 'no host'}")
    fitting = own[-1:] if which == "latest" else [one for one in own if one["id"].startswith(which)]
    if len(fitting) != 1:
        newest = ", ".join(f"{one['id'][:8]} ({written(one['time'])})" for one in own[: -LISTED - 1 : -1])
        many = "is not one snapshot" if fitting else "is no snapshot"
        raise Refused(f"backup_snapshot {which} {many} of {host}; the newest are: {newest}")
    (chosen,) = fitting
    _, out, _ = restic("dump", chosen["id"], f"{HOME}/staging/manifest.json", within=5 * ANSWER_WITHIN)
    return {"id": chosen["id"], "at": written(chosen["time"]), **json.loads(out)}


def fetch(snapshot_id, name, directory):
    """Bring a set of a snapshot into ``directory``/new with the owners that it has on this host."""
    _, out, _ = restic("dump", snapshot_id, f"{HOME}/staging/manifest.json", within=5 * ANSWER_WITHIN)
    manifest = json.loads(out)
    one = next((each for each in manifest["sets"] if each["name"] == name), None)
    if one is None:
        raise Refused(f"the snapshot has no {name}")
    raw, new, copies = directory / "raw", directory / "new", f"{HOME}/staging{one['path']}"
    for folder in (raw, new):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
    words = [word for path in (one["path"], copies) for word in ("--include", pattern(path))]
    _, out, err = restic("restore", snapshot_id, "--target", str(raw), *words, "--verify")
    # Old versions go on after an error and end well.
    errors = [line for line in f"{out}\n{err}".split("\n") if re.match(r"(?i)\s*(ignoring )?error", line)]
    if errors:
        raise Refused(f"{name} could not be read whole: {quiet(errors[0], secrets())}")
    for source in (raw / one["path"].lstrip("/"), raw / copies.lstrip("/")):
        merge(source, new)
    shutil.rmtree(raw)
    brought = sum(path.is_symlink() or path.is_file() for path in new.rglob("*"))
    if one["files"] and not brought:
        # restic ends well where nothing fits; an empty directory must not take the place of data.
        raise Refused(
            f"{name} came without any of its {one['files']} files; choose another snapshot by backup_snapshot"
        )
    for path in one["databases"]:
        see_whole(new / Path(path).relative_to(one["path"]), path)
    own(new, manifest, directory.parent.stat())
    return {"files": brought, "name": name}


def merge(source, target):
    """Move all that is in one directory into another."""
    if source.is_symlink() or not source.is_dir():
        return
    for child in source.iterdir():
        there = target / child.name
        if child.is_dir() and not child.is_symlink() and there.is_dir():
            merge(child, there)
        else:
            child.rename(there)


def see_whole(copy, path):
    """Refuse a database that is not there or damaged."""
    try:
        database = sqlite3.connect(f"file:{quote(str(copy))}?mode=rw", uri=True)
        try:
            problem = database.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error as error:
        problem = str(error)
    if problem != "ok":
        raise Refused(f"the snapshot's {path} is damaged ({problem}); choose an earlier snapshot by backup_snapshot")


def own(tree, manifest, otherwise):
    """Give all in a tree to the users of the same names on this host; what has none goes to the owner of its place."""

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
            path.chmod(found.st_mode & 0o7777)  # chown takes some bits away


# -- doors ------------------------------------------------------------------------------------------------------------


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
