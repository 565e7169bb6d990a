"""nvidia_smi: recorded output of the real program becomes values or one error sentence."""

import stat
from pathlib import Path

import pytest

from plugins.module_utils.gpu import nvidia_smi

DATA = Path(__file__).parent.parent / "data" / "nvidia_smi"

FAILURES = [
    ("no_library.txt", 12, "no_driver"),
    ("no_driver.txt", 9, "no_driver"),
    ("mismatch.txt", 18, "library_mismatch"),
    ("no_devices.txt", 6, "no_gpu"),
    ("handle.txt", 255, "gpu_lost"),
    ("permissions.txt", 4, "permissions"),
    ("nvml.txt", 255, "nvml"),
]


def canned(name):
    return lambda timeout: (DATA / name).read_text()


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(("name", "code", "kind"), FAILURES)
def test_each_failure_has_its_own_sentence(tmp_path, name, code, kind):
    binary = program(tmp_path / "smi", f"cat {DATA / name}; exit {code}")
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.query(binary=binary)
    assert caught.value.kind == kind
    assert str(caught.value).count(".") >= 1
    assert "\n" not in str(caught.value)


def test_failures_of_different_causes_read_differently():
    texts = {str(nvidia_smi.failure((DATA / name).read_text(), code)) for name, code, _ in FAILURES}
    assert len(texts) == len(FAILURES)


def test_a_lost_gpu_is_reported_even_if_the_program_succeeds(tmp_path):
    binary = program(tmp_path / "smi", f"cat {DATA / 'handle.txt'} {DATA / 'l4_two.xml'}")
    with pytest.raises(nvidia_smi.GpuError, match="fell off the bus"):
        nvidia_smi.query(binary=binary)


def test_a_hanging_driver_is_reported_after_the_timeout(tmp_path):
    binary = program(tmp_path / "smi", "exec sleep 30")
    with pytest.raises(nvidia_smi.GpuError, match=r"no answer within 0\.3 s") as caught:
        nvidia_smi.query(timeout=0.3, binary=binary)
    assert caught.value.kind == "hang"


def test_no_program_at_all():
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.query(binary="nvidia-smi-that-is-not-there")
    assert caught.value.kind == "no_nvidia_smi"


def test_unknown_words_are_passed_on():
    error = nvidia_smi.failure("\nsomething new\n", 3)
    assert error.kind == "failed"
    assert "exit code 3: something new" in str(error)


def test_the_unit_of_a_process_in_a_group_of_any_name(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_bytes(b"0::/machine.slice/caf\xe9/vllm.service\n")
    assert nvidia_smi.unit_of(7, str(tmp_path)) == "vllm.service"


def test_two_gpus_with_their_processes_and_units(tmp_path):
    cgroup = tmp_path / "12176" / "cgroup"
    cgroup.parent.mkdir()
    cgroup.write_text("0::/system.slice/vllm.service\n")
    found = nvidia_smi.read(proc=str(tmp_path), run=canned("l4_two.xml"))
    assert (found["driver_version"], found["cuda_version"]) == ("555.42.06", "12.5")
    first, second = found["gpus"]
    assert (first["name"], first["total_mib"], first["free_mib"], first["reserved_mib"]) == (
        "NVIDIA L4",
        23034,
        22601,
        434,
    )
    assert first["processes"] == []
    assert [(p["pid"], p["used_mib"], p["unit"]) for p in second["processes"]] == [
        (7372, 136, ""),
        (12176, 782, "vllm.service"),
        (20035, None, ""),
    ]
    assert nvidia_smi.memory_of_units(second, ["vllm"]) == 782
    assert nvidia_smi.memory_of_units(second, ["other.service", ""]) == 0
    assert "python3 (pid 12176, vllm.service, 782 MiB)" in nvidia_smi.holders([second])


def test_a_card_that_was_read_idle_and_held(tmp_path):
    (idle,), (held,) = (nvidia_smi.read(str(tmp_path), run=canned(n))["gpus"] for n in ("h100.xml", "h100_held.xml"))
    assert nvidia_smi.notes([idle]) == [] and nvidia_smi.usable(idle) == idle
    assert (idle["total_mib"], idle["free_mib"], idle["used_mib"], idle["reserved_mib"]) == (81559, 81079, 0, 480)
    assert nvidia_smi.unmet([idle], {"count": 1, "name": "L4", "minimum_free_mib": 90000}) == [
        "GPU 0 is a NVIDIA H100 80GB HBM3, wanted L4",
        "GPU 0 has 81079 MiB free, wanted at least 90000 MiB",
    ]
    assert (held["free_mib"], held["used_mib"]) == (77481, 3599)
    assert nvidia_smi.holders([held]) == "python3 (pid 744, 3590 MiB)"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/vllm.service\n", "vllm.service"),
        ("12:pids:/x\n1:name=systemd:/system.slice/llama@code.service\n", "llama@code.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/run.service\n", "run.service"),
        ("0::/user.slice/session-1.scope\n", ""),
    ],
)
def test_unit_of_a_process(tmp_path, text, unit):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(text)
    assert nvidia_smi.unit_of(7, str(tmp_path)) == unit


@pytest.mark.parametrize(
    ("name", "kind"), [("a100_mig.xml", "mig"), ("n_a.xml", "not_available"), ("lost.xml", "gpu_lost")]
)
def test_gpus_that_cannot_be_planned_with(name, kind):
    gpu = nvidia_smi.read(run=canned(name))["gpus"][0]
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.usable(gpu)
    assert caught.value.kind == kind


def test_several_gpus_need_an_index():
    gpus = nvidia_smi.read(run=canned("l4_two.xml"))["gpus"]
    with pytest.raises(nvidia_smi.GpuError, match="2 GPUs"):
        nvidia_smi.choose(gpus)
    assert nvidia_smi.choose(gpus, 1)["used_mib"] == 2140
    with pytest.raises(nvidia_smi.GpuError, match="no GPU 2"):
        nvidia_smi.choose(gpus, 2)


def test_no_gpu_in_the_answer():
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.read(run=lambda timeout: "<nvidia_smi_log><attached_gpus>0</attached_gpus></nvidia_smi_log>")
    assert caught.value.kind == "no_gpu"


@pytest.mark.parametrize("text", ["", "no xml", "<nvidia_smi_log><gpu>"])
def test_unreadable_answers(text):
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.parse(text)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize(
    ("wanted", "problems"),
    [
        ({}, []),
        ({"count": 2, "name": "l4", "minimum_total_mib": 23034}, []),
        ({"count": 1}, ["count of GPUs is 2, wanted 1"]),
        ({"name": "H100"}, ["GPU 0 is a NVIDIA L4, wanted H100", "GPU 1 is a NVIDIA L4, wanted H100"]),
        ({"minimum_free_mib": 21000}, ["GPU 1 has 20462 MiB free, wanted at least 21000 MiB"]),
        ({"maximum_used_mib": 1024}, ["GPU 1 has 2140 MiB used, wanted at most 1024 MiB"]),
    ],
)
def test_wishes_report_both_sides(wanted, problems):
    gpus = nvidia_smi.read(run=canned("l4_two.xml"))["gpus"]
    assert nvidia_smi.unmet(gpus, wanted) == problems


def test_notes_name_mig_and_missing_values_and_a_lost_gpu_is_an_error():
    assert nvidia_smi.notes(nvidia_smi.read(run=canned("l4_two.xml"))["gpus"]) == []
    assert "split by MIG" in nvidia_smi.notes(nvidia_smi.read(run=canned("a100_mig.xml"))["gpus"])[0]
    assert "is N/A" in nvidia_smi.notes(nvidia_smi.read(run=canned("n_a.xml"))["gpus"])[0]
    with pytest.raises(nvidia_smi.GpuError, match="fell off the bus"):
        nvidia_smi.notes(nvidia_smi.read(run=canned("lost.xml"))["gpus"])
