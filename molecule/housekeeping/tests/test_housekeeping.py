"""Free disk space on a host with a service."""

from __future__ import annotations

import pytest

ROOT = "/opt/sample"
ENVIRONMENTS = f"{ROOT}/environments"
HUB = f"{ROOT}/.cache/huggingface/hub"
MODEL = f"{HUB}/models--owner--model"
SERVED, BEFORE = ("1" * 40, "2" * 40)
JOURNAL = "/etc/systemd/journald.conf.d/housekeeping.conf"
CORES = "/etc/systemd/coredump.conf.d/housekeeping.conf"
# A refused environment, an interrupted installation, an interrupted download, and an earlier engine's code.
LEFTOVERS = {
    f"{ENVIRONMENTS}/bbbbbbbbbbbb": f"{ENVIRONMENTS}/bbbbbbbbbbbb/.environment.json",
    f"{ENVIRONMENTS}/.cccccccccccc-0a1b2c3d": f"{ENVIRONMENTS}/.cccccccccccc-0a1b2c3d/wheel",
    f"{MODEL}/blobs/abc.incomplete": f"{MODEL}/blobs/abc.incomplete",
    f"{ROOT}/.cache/home/.triton/cache/old": f"{ROOT}/.cache/home/.triton/cache/old/kernel",
}
STAY = [f"{ENVIRONMENTS}/aaaaaaaaaaaa", f"{ENVIRONMENTS}/mine", f"{MODEL}/snapshots/{SERVED}/weights"]


@pytest.fixture(autouse=True)
def littered(host):
    """Create leftovers of releases, ten days old, and a model at two revisions."""
    files = [*LEFTOVERS.values(), f"{ENVIRONMENTS}/mine/notes", f"{MODEL}/blobs/one", f"{MODEL}/blobs/two"]
    for file in files:
        host.check_output("mkdir -p $(dirname %s) && head -c 3000000 /dev/zero > %s", file, file)
    for revision, blob in ((SERVED, "one"), (BEFORE, "two")):
        folder = f"{MODEL}/snapshots/{revision}"
        host.check_output("mkdir -p %s && ln -sf ../../blobs/%s %s/weights", folder, blob, folder)
    age(host)


def age(host):
    host.check_output(f"find {ROOT} -depth -exec touch --no-dereference --date '10 days ago' {{}} +")


def there(host, paths) -> list[str]:
    return [path for path in paths if host.run("test -e %s", path).rc == 0]


def test_what_no_release_refers_to_goes(host, converge):
    pid = host.check_output("systemctl show sample --property MainPID --value")
    preview = converge(check=True)
    assert preview.code == 0 and preview.changed, preview.text
    assert "bbbbbbbbbbbb: built for no release that is kept, 3 MiB" in preview.text
    assert there(host, LEFTOVERS) == list(LEFTOVERS)
    outcome = converge()
    assert outcome.code == 0, outcome.text
    assert "MiB free, then" in outcome.text
    assert there(host, LEFTOVERS) == []
    assert there(host, STAY) == STAY and there(host, [f"{MODEL}/snapshots/{BEFORE}/weights"])
    assert host.check_output("systemctl show sample --property MainPID --value") == pid
    assert converge().changed == []


def test_revisions_of_models_go_on_request(host, converge):
    outcome = converge({"housekeeping_models": True})
    assert outcome.code == 0, outcome.text
    assert there(host, STAY) == STAY
    assert there(host, [f"{MODEL}/snapshots/{BEFORE}", f"{MODEL}/blobs/two"]) == []


def test_what_is_in_use_stays_and_is_reported(host, converge):
    path = f"{ENVIRONMENTS}/bbbbbbbbbbbb"
    host.check_output("systemd-run --unit user-of-it tail -f %s/.environment.json", path)
    outcome = converge()
    host.check_output("systemctl stop user-of-it")
    assert outcome.code == 0 and "bbbbbbbbbbbb stays: a process uses it" in outcome.text, outcome.text
    assert there(host, [path]) == [path]


def test_a_service_that_another_run_changes_is_left_alone(host, converge):
    host.check_output("systemd-run --unit another-run flock /run/llm-server-sample.lock sleep 600")
    outcome = converge()
    host.check_output("systemctl stop another-run")
    assert outcome.code == 0 and "another run is changing this service now" in outcome.text, outcome.text
    assert there(host, LEFTOVERS) == list(LEFTOVERS)


@pytest.fixture
def no_room(host, cramped):
    """Leave no free byte on the service's disk and in the directories of temporary files."""
    cramped(ROOT, 0)
    for path in ("/tmp", "/var/tmp"):
        host.check_output("mount -t tmpfs -o size=4k tmpfs %s", path)
    for path in ("/tmp", "/var/tmp", ROOT):
        assert host.run("head -c 1000000 /dev/zero > %s/fill", path).rc != 0
    yield
    for path in ("/tmp", "/var/tmp"):
        host.check_output("umount %s", path)


def test_a_full_disk_is_cleaned(host, converge, no_room):
    outcome = converge()
    assert outcome.code == 0, outcome.text
    assert f"{ROOT}: 0 MiB free, then" in outcome.text
    assert there(host, LEFTOVERS) == []


def test_the_limits_are_read(host, converge):
    assert "SystemMaxUse=64M" in host.file(JOURNAL).content_string
    assert "MaxUse=1024M" in host.file(CORES).content_string
    host.check_output("sed -i s/64M/65M/ %s", JOURNAL)
    assert converge().code == 0
    assert "SystemMaxUse=64M" in host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert host.service("systemd-journald").is_running
    outcome = converge(playbook="checklist.yml")
    assert outcome.code == 0, outcome.text
    outcome = converge({"housekeeping_free_mib": 1 << 30}, playbook="checklist.yml")
    assert outcome.code != 0 and "MiB free on" in outcome.message, outcome.text


@pytest.mark.full
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"housekeeping_age_hours": 0}, "housekeeping_age_hours is 0"),
        ({"housekeeping_journal_mib": 1}, "housekeeping_journal_mib is 1; it must be 16 (MiB) or more"),
        ({"housekeeping_journal_days": "many"}, "housekeeping_journal_days"),
        ({"housekeeping_models": "perhaps"}, "housekeeping_models"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_goes(host, converge, variables, sentence):
    outcome = converge(variables)
    assert outcome.code == 2 and sentence in outcome.message and not outcome.changed, outcome.text
    assert there(host, LEFTOVERS) == list(LEFTOVERS)


@pytest.mark.full
def test_after_a_reboot_nothing_is_left_to_do(host, converge, restart):
    assert converge().code == 0
    restart()
    assert converge().changed == []


@pytest.mark.full
def test_absent_removes_only_the_limits(host, converge):
    assert converge({"housekeeping_state": "absent"}, check=True).changed
    assert host.file(JOURNAL).exists
    assert converge({"housekeeping_state": "absent"}).code == 0
    assert not host.file(JOURNAL).exists and not host.file(CORES).exists
    assert there(host, LEFTOVERS) == list(LEFTOVERS)
    assert converge({"housekeeping_state": "absent"}).changed == []
    assert converge().code == 0
