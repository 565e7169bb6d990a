"""A first start on a GPU host, the start after a reboot, and what is refused before the engine is touched."""

from __future__ import annotations

import re
import time

import pytest

ENGINE, CHANGE = "vllm : Run vLLM", {"vllm_max_model_len": 256}
ALONE = "engine.yml"
CONFIG = "/etc/vllm/config.yaml"
NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm")
CACHE = "/app/vllm-server/.cache/home"
READY_WITHIN = 600  # seconds


def pid(host) -> str:
    return host.check_output("systemctl show vllm --property MainPID --value")


def answers(host) -> bool:
    command = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8001/health', timeout=5).status)"
    return host.run("python3 -c %s", command).stdout.strip() == "200"


@pytest.fixture
def untouched(host):
    """The serving process is the same afterwards."""
    before = pid(host), host.file(CONFIG).content_string
    yield
    assert (pid(host), host.file(CONFIG).content_string) == before
    assert answers(host)


def test_the_engine_found_its_devices_and_compiled(host):
    for node in NODES:
        assert host.run("test -c %s", node).rc == 0, node
    assert answers(host)
    assert host.run("find %s/.triton -name 'cuda_utils*.so' | grep -q .", CACHE).rc == 0


def test_nobody_else_writes_where_compiled_code_is_loaded_from(host):
    home = host.file(CACHE)
    assert (home.user, home.mode) == ("vllm", 0o750)
    assert host.check_output("find %s/.triton ! -user vllm", CACHE) == ""
    assert host.check_output("find %s/.triton -perm /022 ! -type l", CACHE) == ""


def test_what_the_engine_compiles_with_came_with_the_role(host):
    for name in ("gcc", "libc6-dev", "libpython3-dev"):
        assert host.package(name).is_installed, name
    assert not host.package("g++").is_installed, "only torch.compile needs it"


def test_the_sampler_that_needs_nvcc_is_off_and_tools_are_found_in_the_environment(host):
    unit = host.file("/etc/systemd/system/vllm.service").content_string
    for line in (
        'Environment="VLLM_USE_FLASHINFER_SAMPLER=0"', 'Environment="LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu"',
        'Environment="PATH=/app/vllm-server/venv/bin:/usr/local/bin:/usr/bin:/bin"',
        f'Environment="TORCHINDUCTOR_CACHE_DIR={CACHE}/.cache/torchinductor"',
    ):  # fmt: skip
        assert line in unit.splitlines(), unit


@pytest.mark.stand_in
def test_driver_and_kernel_are_held(host):
    held = host.check_output("apt-mark showhold").split()
    assert {"libnvidia-compute-580", "nvidia-utils-580", "linux-image-gcp"} <= set(held)


def test_it_serves_again_after_a_reboot_that_took_the_device_nodes(host, restart):
    host.check_output("rm -f /dev/nvidia*")
    restart()
    deadline = time.monotonic() + READY_WITHIN
    while not answers(host):
        assert time.monotonic() < deadline, host.run("journalctl -u vllm --no-pager -n 40").stdout
        time.sleep(1)
    for node in NODES:
        assert host.run("test -c %s", node).rc == 0, node


@pytest.mark.parametrize(
    "path, cure",
    [
        ("/usr/bin/gcc", "triton cannot be compiled: there is no C compiler: install gcc"),
        ("/usr/include/python3.*/Python.h", "are missing: install libpython3."),
        ("/usr/include/stdlib.h", "the headers of the C library are missing: install libc6-dev"),
    ],
    ids=["compiler", "python-headers", "c-headers"],
)
def test_a_missing_part_of_the_toolchain_is_refused_by_name(host, converge, hide_files, untouched, path, cure):
    hide_files(path)
    outcome = converge(CHANGE, playbook=ALONE)
    assert outcome.code != 0
    assert cure in outcome.message, outcome.text
    assert ENGINE not in outcome.changed


def test_a_library_that_the_loader_does_not_know_is_refused(host, converge, untouched):
    host.check_output("mv /etc/ld.so.cache /etc/ld.so.cache.away")
    try:
        outcome = converge(CHANGE, playbook=ALONE)
    finally:
        host.check_output("mv /etc/ld.so.cache.away /etc/ld.so.cache")
    assert outcome.code != 0
    assert "ldconfig" in outcome.message, outcome.text


def test_choosing_the_sampler_without_nvcc_is_refused(converge, untouched):
    outcome = converge({"vllm_service_environment": {"VLLM_USE_FLASHINFER_SAMPLER": "1"}}, playbook=ALONE)
    assert outcome.code != 0
    assert "there is no nvcc: install a CUDA toolkit, or set VLLM_USE_FLASHINFER_SAMPLER to 0" in outcome.message


def test_a_cache_outside_of_what_the_unit_may_write_is_refused(converge, untouched):
    outcome = converge({"vllm_service_environment": {"TRITON_CACHE_DIR": "/srv/triton"}}, playbook=ALONE)
    assert outcome.code != 0
    assert "the compile cache cannot be written (/srv/triton)" in outcome.message


def test_arguments_are_judged_while_the_driver_sleeps(host, converge, untouched):
    host.check_output("rm -f /dev/nvidia*")
    outcome = converge({"vllm_engine_arguments": {"max-loraz": 1}}, playbook=ALONE)
    assert outcome.code != 0
    assert "unrecognized arguments: --max-loraz" in outcome.message, outcome.text


def test_a_start_creates_missing_nodes(host, converge):
    host.check_output("rm -f /dev/nvidia*")
    assert converge(CHANGE, playbook=ALONE).code == 0
    for node in NODES:
        assert host.run("test -c %s", node).rc == 0, node
    assert converge(playbook=ALONE).code == 0


@pytest.mark.stand_in
@pytest.mark.parametrize("leaves", [True, False], ids=["that-leaves-late", "that-does-not-leave"])
def test_the_memory_of_the_engine_before_is_waited_for(host, converge, leaves):
    until = "while systemctl is-active -q vllm; do sleep 0.2; done; sleep 4" if leaves else "sleep 1000"
    host.check_output("systemd-run --unit last-engine sh -c %s", until)
    try:
        host.check_output("echo $(systemctl show last-engine -P MainPID) vllm.service > /etc/stand-in-gpu-held")
        outcome = converge(CHANGE, playbook=ALONE)
        if leaves:
            assert outcome.code == 0, outcome.message
        else:
            assert outcome.code != 0
            assert "GPU 0 has 2563 MiB free, wanted at least" in outcome.message, outcome.message
            assert re.search(r"\(held by \w+ \(pid \d+, last-engine.service, 20000 MiB\)\)", outcome.message)
            assert "serves again" in outcome.message, "the release before is tried all the same"
        assert answers(host)
    finally:
        host.run("systemctl stop last-engine")
        host.run("rm /etc/stand-in-gpu-held")
    assert converge(playbook=ALONE).code == 0


@pytest.mark.stand_in
def test_a_changed_driver_is_reported_before_any_change_and_in_the_checklist(host, converge, untouched):
    host.check_output("touch /etc/stand-in-with-another-library")
    try:
        for check in (True, False):
            outcome = converge(CHANGE, check=check)
            assert outcome.code != 0
            assert "reboot this host" in outcome.message
            assert outcome.changed == []
        outcome = converge(playbook="verify.yml")
    finally:
        host.check_output("rm /etc/stand-in-with-another-library")
    assert outcome.code != 0
    assert "GPU: driver, library and next kernel" in outcome.message and "reboot this host" in outcome.message


def test_missing_nodes_make_the_checklist_red(host, converge):
    host.check_output("mv /dev/nvidia-uvm /dev/away")
    outcome = converge(playbook="verify.yml")
    host.check_output("mv /dev/away /dev/nvidia-uvm")
    assert outcome.code != 0
    assert "GPU: device nodes: /dev/nvidia-uvm not there" in outcome.message, outcome.message


def test_a_rotation_is_not_left_for_a_start_that_cannot_be(converge, hide_files, tmp_path, untouched):
    hide_files("/usr/bin/gcc")
    mark = tmp_path / "out"
    outcome = converge({**CHANGE, "vllm_drain_command": ["touch", str(mark)]}, playbook=ALONE)
    assert outcome.code != 0
    assert not mark.exists()


@pytest.mark.stand_in
def test_holds_and_packages_leave_with_their_roles(host, converge):
    removed = {"vllm_state": "absent", "nvidia_driver_hold": False}
    assert converge(removed, playbook="leave.yml").code == 0
    assert not host.package("libpython3-dev").is_installed
    assert host.package("gcc").is_installed, "the exporter is built with it"
    assert "580" not in host.check_output("apt-mark showhold")
    assert host.package("libnvidia-compute-580").is_installed
    assert converge(removed, playbook="leave.yml").changed == []
    assert converge().code == 0
