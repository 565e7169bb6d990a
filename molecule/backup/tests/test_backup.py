"""Backup and restore of a service that writes, with restic and a repository in a directory."""

from __future__ import annotations

import json

import pytest

ROOT = "/app/ai-server"
JOBS = f"{ROOT}/state/jobs.sqlite3"
UPLOADS = f"{ROOT}/resources/s3"
PROGRAM = "/usr/local/sbin/llm-backup"
PAGE = "/var/lib/llm-backup/metrics/backup.prom"
BACKUP, RESTORE, ROLLBACK = (f"../../playbooks/{name}.yml" for name in ("backup", "restore", "rollback"))
CANARY = "canary"
STORE = "/var/lib/llm-server/services/llm-backup"
SET_UP = "backup : Set up the nightly backup"
# The units as an earlier version of the role wrote them, without a release.
EARLIER = {
    "/etc/systemd/system/llm-backup.service": f"""[Unit]
Description=Back up data that this host cannot rebuild
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {PROGRAM} take nightly
""",
    "/etc/systemd/system/llm-backup.timer": """[Unit]
Description=Back up data that this host cannot rebuild
[Timer]
OnCalendar=*-*-* 03:30:00
Persistent=true
RandomizedDelaySec=15min
[Install]
WantedBy=timers.target
""",
}


@pytest.fixture(scope="module")
def restore(converge):
    def run(**variables):
        outcome = converge(variables, playbook=RESTORE)
        assert CANARY not in outcome.text
        return outcome

    return run


def snapshots(host) -> list[dict]:
    return json.loads(host.check_output(f"{PROGRAM} restic snapshots --json"))


def take(host) -> str:
    return json.loads(host.check_output(f"{PROGRAM} take by-hand"))["snapshot"]


def newest(host) -> list[str]:
    """Return the tags of the newest snapshot."""
    return max(snapshots(host), key=lambda one: one["time"])["tags"]


def ask(host, sql: str) -> str:
    program = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1], 30).execute(sys.argv[2]).fetchone())"
    return host.check_output("python3 -c %s %s %s", program, JOBS, sql)


def rows(host) -> int:
    return int(ask(host, "SELECT count(*) FROM pairs"))


def pid(host) -> str:
    return host.check_output("systemctl show ai-server --property MainPID --value")


def serves(host) -> bool:
    ask = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"
    return host.run("python3 -c %s", ask).rc == 0


def owners(host, path: str) -> str:
    return host.check_output("stat -c '%%U:%%G %%a' %s", path)


def test_the_first_back_up_was_taken_and_the_timer_runs(host):
    assert [one["tags"] for one in snapshots(host)] == [["llm-server", "first"]]
    assert host.service("llm-backup.timer").is_running and host.service("llm-backup.timer").is_enabled


def test_a_run_without_changes_changes_nothing(host, converge):
    for check in (True, False):
        assert converge(check=check).changed == []


def test_what_is_kept_and_what_is_not(host):
    names = host.check_output(f"{PROGRAM} restic ls latest").splitlines()
    for path in (f"{ROOT}/.env", "/var/lib/llm-server/services/ai-server/state.json", "/srv/further/notes.txt",
                 f"{UPLOADS}/0.pdf",
                 f"/var/lib/llm-backup/staging{JOBS}", "/etc/systemd/system/ai-server.service"):  # fmt: skip
        assert path in names
    assert not [name for name in names if name in (JOBS, f"{JOBS}-wal", f"{JOBS}-shm")]
    # The repository's own password is of no use in it.
    assert "/etc/llm-backup/settings.json" in names and "/etc/llm-backup/secrets.env" not in names


def test_secrets_are_in_a_file_of_root_alone(host):
    assert owners(host, "/etc/llm-backup/secrets.env") == "root:root 600"
    assert owners(host, "/etc/llm-backup") == "root:root 700"
    for command in ("cat /etc/systemd/system/llm-backup.*", "journalctl --no-pager", f"cat {PAGE}",
                    "cat /var/lib/llm-backup/state.json /etc/llm-backup/settings.json",
                    f"grep -r . {STORE}"):  # fmt: skip
        assert CANARY not in host.check_output(command)


def test_a_back_up_now_shows_its_result_and_interrupts_nothing(host, converge):
    before = pid(host)
    outcome = converge(playbook=BACKUP)
    assert outcome.code == 0 and CANARY not in outcome.text, outcome.text
    for word in ("snapshot", "files", "added", "seconds"):
        assert word in outcome.text
    assert newest(host) == ["llm-server", "by-hand"]
    assert pid(host) == before and serves(host)


def test_the_nightly_run_works_in_its_sandbox(host, converge):
    host.check_output("systemctl start llm-backup.service")
    assert newest(host) == ["llm-server", "nightly"]
    page = host.file(PAGE)
    assert page.mode == 0o644
    assert "llm_backup_last_run_ok 1" in page.content_string and "llm_backup_last_check_ok 1" in page.content_string
    host.check_output("runuser -u nobody cat %s", PAGE)
    outcome = converge(playbook="checklist.yml")
    assert outcome.code == 0, outcome.text


@pytest.fixture
def running(host):
    """Return the pid of a nightly backup that runs until the test ends."""
    host.check_output("systemd-run --unit holder flock /var/lib/llm-backup/lock sleep infinity")
    host.check_output("while flock --nonblock /var/lib/llm-backup/lock true; do sleep 0.5; done")
    host.check_output("systemctl start --no-block llm-backup.service && sleep 2")
    yield nightly(host)
    host.check_output("systemctl stop llm-backup.service holder.service")
    host.check_output("systemctl reset-failed llm-backup.service")


def nightly(host) -> str:
    """Return the pid of the nightly backup, 0 if none runs."""
    return host.check_output("systemctl show llm-backup.service --property MainPID --value")


def test_a_run_neither_ends_nor_starts_a_back_up(host, converge, running):
    assert running != "0"
    had = len(snapshots(host))
    # An hour ago: a time that a persistent timer would make up for.
    passed = host.check_output("date --date '-1 hour' +%H:%M:%S")
    host.check_output("touch --date '-2 hours' /var/lib/systemd/timers/stamp-llm-backup.timer")
    outcome = converge({"backup_schedule": f"*-*-* {passed}", "backup_keep_daily": 8})
    assert outcome.code == 0 and outcome.changed == [SET_UP], outcome.text
    assert nightly(host) == running
    following = host.check_output("systemctl show llm-backup.timer --property NextElapseUSecRealtime --value")
    assert int(host.check_output("date --date %s +%%s", following)) > int(host.check_output("date +%s")) + 20 * 3600
    assert converge().changed == [SET_UP]
    assert nightly(host) == running and len(snapshots(host)) == had


@pytest.mark.full
def test_a_back_up_that_is_ended_leaves_no_lock_in_the_repository(host):
    host.check_output("truncate --size 40G /srv/further/large")
    host.check_output("systemctl start --no-block llm-backup.service")
    host.run_test("for _ in 1 2 3 4 5 6 7 8 9; do ls /srv/repository/locks/* && exit; sleep 0.5; done; exit 1")
    assert nightly(host) != "0"
    host.check_output("systemctl stop llm-backup.service; rm /srv/further/large")
    assert host.check_output("ls /srv/repository/locks") == ""
    assert not host.file("/var/lib/llm-backup/staging").exists
    host.check_output("systemctl reset-failed llm-backup.service")


@pytest.fixture
def earlier(host):
    """A host that an earlier version of the role set up."""
    host.check_output(f"rm -r {STORE}")
    for path, text in EARLIER.items():
        host.run_expect([0], f"printf %s '{text}' > {path}")
    host.check_output("systemctl daemon-reload && systemctl restart llm-backup.timer")


def test_a_host_of_an_earlier_version_is_taken_over(host, converge, earlier):
    had = len(snapshots(host))
    assert converge(check=True).changed == [SET_UP]
    assert converge().changed == [SET_UP]
    assert "NoNewPrivileges=yes" in host.file("/etc/systemd/system/llm-backup.service").content_string
    assert host.service("llm-backup.timer").is_running and host.service("llm-backup.timer").is_enabled
    assert len(snapshots(host)) == had
    assert converge().changed == []


@pytest.mark.full
def test_a_host_of_an_earlier_version_is_cleaned(host, converge, earlier):
    had = len(snapshots(host))
    assert converge({"backup_state": "absent"}).code == 0
    assert not any(host.file(path).exists for path in (*EARLIER, PROGRAM, "/etc/llm-backup", "/var/lib/llm-backup"))
    assert not host.service("llm-backup.timer").is_running
    assert host.file("/srv/repository/config").exists
    assert converge({"backup_state": "absent"}).changed == []
    for check in (True, False):
        outcome = converge({"backup_schedule": "every night"}, check=check)
        assert outcome.code == 2 and outcome.message.startswith("backup_schedule is every night;"), outcome.text
        assert not outcome.changed and not host.file("/etc/llm-backup").exists
    outcome = converge(check=True)
    assert outcome.code == 0 and SET_UP in outcome.changed, outcome.text
    assert converge().code == 0
    assert len(snapshots(host)) == had
    assert owners(host, "/etc/llm-backup/secrets.env") == "root:root 600"


def test_lost_data_comes_back_whole_while_the_service_writes(host, restore, converge):
    kept, had = take(host), rows(host)
    host.check_output(f"systemctl stop ai-server && rm -rf {ROOT}/state/* {UPLOADS}/* /srv/further/notes.txt")
    host.check_output("systemctl start ai-server")
    outcome = restore(backup_snapshot=kept)
    assert outcome.code == 0, outcome.text
    assert "serves again" in outcome.text
    assert ask(host, "PRAGMA integrity_check") == "ok"
    # A pair is written in one transaction; the service has written more since the backup.
    assert ask(host, "SELECT count(*) FROM (SELECT number FROM pairs GROUP BY number HAVING count(*) % 2)") == "0"
    assert had * 0.5 < rows(host)
    assert owners(host, JOBS) == "ai-server:ai-server 640"
    assert owners(host, f"{UPLOADS}/0.pdf") == "ai-server:ai-server 640"
    assert owners(host, f"{ROOT}/state") == "ai-server:ai-server 750"
    assert owners(host, "/srv/further/notes.txt").startswith("nobody:")
    assert host.run(f"ls -d {ROOT}/state/.llm-restore {UPLOADS}/.llm-restore").rc != 0
    assert serves(host)
    assert converge().changed == []


def test_a_restore_that_does_not_serve_is_undone(host, restore):
    host.check_output("systemctl stop ai-server")
    spoil = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute(sys.argv[2])"
    host.check_output("python3 -c %s %s %s", spoil, JOBS, "CREATE TABLE broken (x)")
    take(host)
    host.check_output("python3 -c %s %s %s", spoil, JOBS, "DROP TABLE broken")
    host.check_output("systemctl start ai-server")
    before = rows(host)
    outcome = restore()
    assert outcome.code != 0 and "ai-server does not serve with the restored data" in outcome.message, outcome.text
    assert "the previous data is back and in use by ai-server" in outcome.message
    assert serves(host) and rows(host) >= before
    assert owners(host, JOBS) == "ai-server:ai-server 640"
    take(host)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"backup_snapshot": "abcdef01"}, "backup_snapshot abcdef01 matches no snapshot of machine; the latest are"),
        ({"backup_of": "stranger"}, "the repository has no snapshot of stranger; set backup_of to one of: machine"),
    ],
)
def test_what_cannot_be_found_is_refused_before_anything_stops(host, restore, variables, sentence):
    before = pid(host)
    outcome = restore(**variables)
    assert outcome.code != 0 and sentence in outcome.message, outcome.text
    assert pid(host) == before


@pytest.fixture
def secrets(host):
    """Return a function that changes the file of secrets for one test."""
    host.check_output("cp -p /etc/llm-backup/secrets.env /root/secrets.env")

    def change(expression: str) -> None:
        host.check_output("sed -i %s /etc/llm-backup/secrets.env", expression)

    yield change
    host.check_output("mv /root/secrets.env /etc/llm-backup/secrets.env")


def test_a_wrong_password_is_refused_and_seen(host, restore, converge, secrets):
    before = pid(host)
    secrets("s/canary-password/wrong-password/")
    outcome = restore()
    assert outcome.code != 0 and "the password does not open the repository /srv/repository" in outcome.message
    assert pid(host) == before
    assert host.run("systemctl start llm-backup.service").rc != 0
    assert "llm_backup_last_run_ok 0" in host.file(PAGE).content_string
    outcome = converge(playbook="checklist.yml")
    assert outcome.code != 0 and "the password does not open" in outcome.message


def test_a_repository_that_is_away_is_refused_and_none_takes_its_place(host, restore):
    host.check_output("mv /srv/repository /srv/away")
    before = pid(host)
    outcome, prepared = restore(), host.run(f"{PROGRAM} prepare")
    host.check_output("mv /srv/away /srv/repository")
    assert outcome.code != 0 and "there is no repository at /srv/repository" in outcome.message
    assert prepared.rc == 1 and "is its disk mounted?" in prepared.stderr
    assert pid(host) == before


@pytest.mark.full
def test_a_locked_repository_is_refused(host, restore):
    host.check_output(
        "systemd-run --unit holder sh -c '. /etc/llm-backup/secrets.env; export RESTIC_REPOSITORY RESTIC_PASSWORD; "
        "exec restic check --read-data --limit-download 1'"
    )
    host.run_test("for _ in 1 2 3 4 5 6 7 8 9; do ls /srv/repository/locks/* && exit; sleep 0.5; done; exit 1")
    before = pid(host)
    outcome = restore()
    host.check_output("systemctl kill --signal INT holder; sleep 2; systemctl stop holder")
    host.check_output(f"{PROGRAM} restic unlock --remove-all")
    assert outcome.code != 0 and "is locked by another run" in outcome.message, outcome.text
    assert pid(host) == before


def test_a_disk_without_room_is_refused_before_anything_stops(host, restore, cramped):
    cramped(f"{UPLOADS}", 2)
    before = pid(host)
    outcome = restore()
    assert outcome.code != 0 and "MiB free, since the current data is kept" in outcome.message, outcome.text
    assert pid(host) == before


@pytest.mark.full
def test_a_repository_by_sftp_works_in_the_sandbox_too(host, converge):
    host.check_output(
        "mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 "
        "&& cat /root/.ssh/id_ed25519.pub >> ~operator/.ssh/authorized_keys "
        "&& sed 's/^/127.0.0.1 /' /etc/ssh/ssh_host_ed25519_key.pub > /root/.ssh/known_hosts"
    )
    outcome = converge({"backup_repository": "sftp:operator@127.0.0.1:/home/operator/repository"})
    assert outcome.code == 0, outcome.text
    host.check_output("systemctl start llm-backup.service")
    assert [one["tags"][-1] for one in snapshots(host)] == ["nightly"]
    assert converge().code == 0


@pytest.mark.full
def test_another_machine_gets_the_data_with_its_own_users(host, restore, converge):
    take(host)
    uid, gid = (int(host.check_output(f"id {flag} ai-server")) for flag in ("-u", "-g"))
    host.check_output(
        f"systemctl stop ai-server && groupmod -g {gid + 1000} ai-server && usermod -u {uid + 1000} ai-server "
        f"&& rm -rf {ROOT}/state/* {UPLOADS}/* && chown -R ai-server:ai-server {ROOT}/state {UPLOADS} {ROOT}/.env "
        "&& systemctl start ai-server"
    )
    # Another name makes it another machine.
    assert converge({"backup_host": "new-machine"}).code == 0
    outcome = restore(backup_host="new-machine", backup_of="machine")
    assert outcome.code == 0, outcome.text
    assert owners(host, JOBS) == "ai-server:ai-server 640"
    assert int(host.check_output("stat -c %%u %s", JOBS)) == uid + 1000
    assert serves(host)
    assert converge({"backup_host": "new-machine"}).changed == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"backup_password": ""}, "backup_password must be set with backup_repository"),
        ({"backup_repository": "srv/x"}, "backup_repository must be an absolute path or a restic address"),
        ({"backup_repository": f"{UPLOADS}/repository"}, f"backup_repository is in {UPLOADS}, which is backed up"),
        ({"backup_credentials": {"RESTIC_PASSWORD": "x"}}, "whose place is backup_password"),
        ({"backup_keep_daily": 0}, "backup_keep_daily is 0"),
        ({"backup_schedule": "every night"}, "backup_schedule is every night; set a calendar expression"),
        (
            {"backup_paths": [{"path": f"{ROOT}/state/x"}]},
            f"contain {ROOT}/state/x inside another of their directories",
        ),
    ],
)
def test_bad_input_is_one_sentence(host, converge, variables, sentence):
    outcome = converge(variables)
    assert outcome.code == 2 and sentence in outcome.message and not outcome.changed, outcome.text


@pytest.mark.full
def test_without_a_repository_everything_passes_on(host, converge):
    outcome = converge({"backup_repository": ""})
    assert outcome.code == 0 and not outcome.changed, outcome.text


def test_before_a_rollback_is_a_back_up(host, converge):
    outcome = converge({"service": "ai-server"}, playbook=ROLLBACK)
    assert "no earlier verified release" in outcome.message
    assert newest(host) == ["llm-server", "before-rollback"]


@pytest.mark.full
def test_absent_takes_all_away_but_the_repository(host, converge):
    outcome = converge({"backup_state": "absent"})
    assert outcome.code == 0, outcome.text
    for path in (PROGRAM, "/etc/llm-backup", "/var/lib/llm-backup", "/usr/bin/restic"):
        assert not host.file(path).exists
    assert host.run("systemctl list-timers --all | grep llm-backup").rc != 0
    assert host.file("/srv/repository/config").exists
    assert converge({"backup_state": "absent"}).changed == []
    outcome = converge({"service": "ai-server"}, playbook=ROLLBACK)
    assert "no repository is configured" in outcome.text
