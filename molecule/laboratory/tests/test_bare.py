"""The bare machine has a driver's user space without a device, and device nodes once a program requests them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.platform("bare")

NODES = "find /dev -name 'nvidia*' | sort"
MODPROBE = "/usr/bin/nvidia-modprobe"
LOAD = (
    "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); text = ctypes.c_char_p(); code = cuda.cuInit(0); "
    "cuda.cuGetErrorString(code, ctypes.byref(text)); print(code, text.value.decode())"
)


@pytest.fixture(autouse=True)
def no_nodes(host):
    """Remove the nodes after each test."""
    yield
    host.check_output("find /dev -name 'nvidia*' -delete")


def as_user(words):
    return f"runuser -u operator -- {words}"


def test_it_boots_without_device_nodes(host):
    assert host.check_output(NODES) == ""


def test_the_library_is_known_loads_and_finds_no_device(host):
    known = host.check_output("/sbin/ldconfig -p")
    assert "libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1" in known
    assert host.check_output("python3 -c %s", LOAD) == "100 no CUDA-capable device is detected"


def test_nodes_are_made_for_whoever_asks(host):
    modprobe = host.file(MODPROBE)
    assert (modprobe.user, modprobe.mode) == ("root", 0o4755)
    host.check_output(as_user(f"{MODPROBE} -c 0 -c 255"))
    host.check_output(as_user(f"{MODPROBE} -u -c=0"))
    made = host.check_output(NODES).split()
    assert made == ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidiactl"]
    for path in made:
        assert host.check_output("stat --format '%%F %%a' %s", path) == "character special file 666"
        host.check_output(as_user(f"sh -c ': < {path}'"))


def test_unified_memory_brings_its_own_nodes_alone(host):
    host.check_output(f"{MODPROBE} --unified-memory --create-nvidia-device-file=0")
    assert host.check_output(NODES).split() == ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]


def test_nothing_is_made_where_privileges_cannot_be_gained(host):
    refused = host.run(as_user(f"setpriv --no-new-privs {MODPROBE} -u -c 0"))
    assert refused.rc == 1 and "/dev/nvidia-uvm: " in refused.stderr
    assert host.check_output(NODES) == ""


@pytest.mark.parametrize("words", ["-c", "-c x", "-c 256", "--no-such"])
def test_words_that_the_real_one_refuses_are_refused(host, words):
    assert host.run(f"{MODPROBE} {words}").rc == 1
    assert host.check_output(NODES) == ""


def test_querying_the_card_creates_its_nodes(host):
    assert host.check_output(as_user("nvidia-smi -L")).startswith("GPU 0: NVIDIA L4")
    assert host.check_output(NODES).split() == ["/dev/nvidia0", "/dev/nvidiactl"]


def test_nodes_are_missing_after_a_restart(host, restart):
    host.check_output(f"{MODPROBE} -c 0")
    restart()
    assert host.check_output(NODES) == ""
