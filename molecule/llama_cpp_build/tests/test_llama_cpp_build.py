"""llama-server built on the machine: once, next to the running one, and never incomplete."""

from __future__ import annotations

LINK = "/opt/llama.cpp/current-llama-cpp"


def pid(host) -> str:
    return host.check_output("systemctl show llama-cpp --property MainPID --value")


def test_it_runs_what_was_built_here(host, inventory):
    directory = host.check_output("readlink -f %s", LINK)
    assert directory == f"/opt/llama.cpp/{inventory['lab_llama_cpp']['version']}-cpu"
    assert host.check_output("readlink /proc/%s/exe", pid(host)) == f"{directory}/llama-server"
    program = host.file(f"{directory}/llama-server")
    assert (program.user, program.mode) == ("root", 0o755)
    assert not host.run("ls -d /opt/llama.cpp/.work-*").stdout


def test_a_build_that_fails_changes_nothing(host, converge):
    before = pid(host)
    outcome = converge({"llama_cpp_build_options": ["-DCMAKE_CXX_COMPILER=/nowhere/g++"]})
    assert outcome.code and "cmake -S" in outcome.message and "/nowhere/g++" in outcome.message, outcome.message
    other = {"llama_cpp_version": "b1", "llama_cpp_checksums": {"b1": {"source": f"sha256:{'0' * 64}"}}}
    outcome = converge(other)
    assert outcome.code and "llama.cpp b1 (cpu) from" in outcome.message, outcome.message
    assert pid(host) == before
    outcome = converge()
    assert not outcome.code and not outcome.changed, outcome.message or outcome.changed


PACK = """
import hashlib, pathlib, sys, tarfile
program, archive = map(pathlib.Path, sys.argv[1:])
archive.parent.mkdir(parents=True)
with tarfile.open(archive, "w:gz") as packed:
    packed.add(program, arcname=f"llama/{program.name}")
print("sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest())
"""


def test_a_build_serves_as_a_release_and_is_rolled_back(host, converge, inventory):
    version = inventory["lab_llama_cpp"]["version"]
    folder, name = "/srv/releases", f"llama-{version}.tar.gz"
    built = host.check_output("readlink -f %s", f"{LINK}/llama-server")
    checksum = host.check_output("python3 -c %s %s %s", PACK, built, f"{folder}/{name}")
    serve = "systemd-run --quiet --unit releases python3 -m http.server --bind 127.0.0.1 --directory %s 8090"
    host.check_output(serve, folder)
    release = {
        "llama_cpp_source": "archive",
        "llama_cpp_mirror": "",
        "llama_cpp_url": f"http://127.0.0.1:8090/{name}",
        "llama_cpp_checksums": {version: {"amd64": checksum}},
    }
    outcome = converge(release)
    assert outcome.code == 0, outcome.message
    assert host.check_output("readlink -f %s", LINK) == f"/opt/llama.cpp/{version}"
    host.check_output("systemctl stop releases && rm -r %s", folder)
    outcome = converge()
    assert outcome.code == 0 and not any("Build" in task for task in outcome.changed), (
        outcome.message or outcome.changed
    )


def test_removal_takes_the_programs_too(host, converge):
    assert converge({"llama_cpp_state": "absent", "llama_cpp_purge": True}).code == 0
    assert not host.file("/opt/llama.cpp").exists and not host.file("/app/llama-cpp").exists
    assert not host.run("command -v cmake").stdout
