"""NVIDIA's repository, by a mirror, on a host that was configured for it in other ways before."""

from __future__ import annotations

import pytest

OLD = "/etc/apt/sources.list.d/cuda.list"
DEB822 = "/etc/apt/sources.list.d/nvidia.sources"
KEYRING = "/usr/share/keyrings/cuda-archive-keyring.gpg"


@pytest.fixture
def own(host) -> str:
    """Return the file that registers the repository."""
    return f"/etc/apt/sources.list.d/cuda-debian{host.system_info.release.partition('.')[0]}-x86_64.list"


@pytest.fixture(scope="session")
def mirror(inventory) -> str:
    return inventory["lab_mirror"]


def test_apt_offers_the_packages_from_the_mirror(host, own, mirror):
    assert host.file(own).content_string.startswith(
        f"deb [signed-by={KEYRING}] {mirror}/developer.download.nvidia.com/"
    )
    for package, version in (("datacenter-gpu-manager", "1:3.3.9"), ("datacenter-gpu-manager-4-core", "1:4.2.3-2")):
        assert f"Candidate: {version}" in host.check_output(f"apt-cache policy {package}")
    assert host.package("cuda-keyring").version == "1.1-1"


def test_apt_has_no_complaint(host):
    update = host.run("apt-get update --error-on=any")
    assert update.rc == 0, update.stderr
    assert "configured multiple times" not in update.stderr


def test_other_ways_are_set_aside_and_other_entries_stay(host):
    lines = host.file(OLD).content_string.splitlines()
    assert lines[0].startswith("# set aside for cuda-keyring: deb https://developer.download.nvidia.com/")
    assert lines[1] == "deb [trusted=yes] file:/srv/none ./"
    assert all(line.startswith("# set aside") for line in host.file(DEB822).content_string.splitlines())


def test_a_run_without_changes_sends_no_request(host, converge, mirror_requests):
    index = host.check_output("stat -c '%n %Y' /var/lib/apt/lists/*")
    outcome = converge()
    assert outcome.code == 0 and outcome.changed == [], outcome.text
    assert mirror_requests() == []
    assert host.check_output("stat -c '%n %Y' /var/lib/apt/lists/*") == index


def test_the_checklist_sees_a_missing_index(host, converge):
    assert converge(playbook="checklist.yml").code == 0
    host.check_output("mkdir /root/lists && mv /var/lib/apt/lists/*_Packages* /root/lists/")
    outcome = converge(playbook="checklist.yml")
    host.check_output("mv /root/lists/* /var/lib/apt/lists/ && rmdir /root/lists")
    assert outcome.code != 0
    assert "NVIDIA's repository: apt has no index of" in outcome.message


def test_a_missing_index_is_fetched_again(host, converge):
    host.check_output("find /var/lib/apt/lists -name '*nvidia*' -delete")
    assert converge().changed == ["cuda_keyring : Register NVIDIA's repository"]
    assert "1:3.3.9" in host.check_output("apt-cache policy datacenter-gpu-manager")


def test_a_new_entry_of_somebody_is_set_aside(host, converge):
    host.check_output(
        "echo 'deb https://developer.download.nvidia.com/compute/cuda/repos/x /' > /etc/apt/sources.list.d/x.list"
    )
    assert host.run("apt-get update --error-on=any").rc != 0
    assert converge().code == 0
    assert host.run("apt-get update --error-on=any").rc == 0
    host.check_output("rm /etc/apt/sources.list.d/x.list")


def test_it_waits_for_apts_lock(host, converge):
    holder = (
        "import fcntl, time; h = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(h, fcntl.LOCK_EX); time.sleep(8)"
    )
    host.run_expect([0], f'systemd-run --unit=holder python3 -c "{holder}"')
    host.check_output("sleep 1")
    outcome = converge({"cuda_keyring_version": "1.0-1"})
    assert outcome.code == 0, outcome.text
    assert host.package("cuda-keyring").version == "1.0-1"
    assert converge().code == 0
    assert host.package("cuda-keyring").version == "1.1-1"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"cuda_keyring_version": "9.9-1"},
            "cuda_keyring_version: version 9.9-1 has no checksum (known: 1.0-1, 1.1-1)",
        ),
        ({"cuda_keyring_mirror": "http://127.0.0.1:9"}, "apt cannot use http://127.0.0.1:9/"),
        ({"cuda_keyring_state": "gone"}, "cuda_keyring_state"),
    ],
)
def test_bad_input_is_one_sentence_and_apt_still_works(host, own, converge, variables, sentence):
    before = host.file(own).content_string
    outcome = converge(variables)
    assert outcome.code == 2 and sentence in outcome.message, outcome.text
    assert host.file(own).content_string == before
    assert host.run("apt-get update --error-on=any").rc == 0


@pytest.mark.full
@pytest.mark.parametrize("fault", ["503", "truncated", "corrupt"])
def test_a_broken_download_installs_nothing(host, converge, mirror, fault):
    outcome = converge({"cuda_keyring_version": "1.0-1", "cuda_keyring_mirror": f"{mirror}/faults/{fault}"})
    assert outcome.code == 2 and "cuda-keyring_1.0-1_all.deb" in outcome.message, outcome.text
    assert host.package("cuda-keyring").version == "1.1-1"
    assert host.run("apt-get update --error-on=any").rc == 0


@pytest.mark.full
def test_a_full_disk_is_named_and_the_keyring_stays(host, own, converge, cramped):
    before = host.file(own).content_string
    cramped("/usr/share/keyrings", 0)
    outcome = converge({"cuda_keyring_version": "1.0-1"})
    assert outcome.code == 2 and "No space left on device" in outcome.message, outcome.text
    assert (host.package("cuda-keyring").version, host.file(own).content_string) == ("1.1-1", before)
    assert host.run("apt-get update --error-on=any").rc == 0
    assert host.check_output("dpkg --audit") == ""


@pytest.mark.full
def test_removal_restores_what_was_set_aside(host, own, converge):
    assert converge({"cuda_keyring_state": "absent"}, check=True).changed
    assert host.package("cuda-keyring").is_installed
    assert converge({"cuda_keyring_state": "absent"}).code == 0
    assert not host.package("cuda-keyring").is_installed
    assert not host.file(own).exists and not host.file(KEYRING).exists
    assert host.file(OLD).content_string.startswith("deb https://developer.download.nvidia.com/")
    assert host.file(DEB822).content_string.startswith("Types: deb\nURIs: ")
    assert host.run("ls /var/lib/apt/lists/*nvidia*").rc != 0
    assert converge({"cuda_keyring_state": "absent"}).changed == []
