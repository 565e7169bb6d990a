"""Run the tests of molecule/gpu_host on a host that has a GPU, without stand-ins.

    python tests/gpu_check.py [USER@]ADDRESS[:PORT] [--variables FILE]

The host is the user's: it is converged by site.yml with the production example, only a base model, and keys generated
for this check; then it is tested, rebooted and left in that state. SSH and sudo must work without a password. A YAML
file of variables is laid over the example.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
FOLDER = ROOT / ".lab" / "gpu_check"
SCENARIO = ROOT / "molecule" / "gpu_host"


def variables(file: str | None) -> dict:
    """Return the variables laid over the production example; the user's have the last word."""
    made = {
        "vault_vllm_api_key": secrets.token_urlsafe(24),
        "vault_huggingface_token": os.environ.get("HF_TOKEN", ""),
        # Their commits have to be filled in by the user.
        "vllm_lora_adapters": [],
    }
    return made | (yaml.safe_load(Path(file).read_text()) if file else {})


def reach(host: str) -> dict:
    """Return the user, address and port of ``[USER@]ADDRESS[:PORT]``; exit with an error if it is malformed."""
    found = re.fullmatch(r"(?:([\w.-]+)@)?([\w.-]+)(?::(\d+))?", host)
    if not found:
        sys.exit(f"HOST is {host!r}; write [USER@]ADDRESS[:PORT], such as HOST=ubuntu@203.0.113.7.")
    return {"user": found[1], "address": found[2], "port": int(found[3] or 22)}


def prepare(reached: dict, laid_over: dict) -> None:
    """Write the inventory, the variables and the SSH configuration of the check; only this user can read them."""
    (FOLDER / "inventory").mkdir(parents=True, exist_ok=True, mode=0o700)
    user = {"ansible_user": reached["user"]} if reached["user"] else {}
    machine = {
        "ansible_host": reached["address"], "ansible_port": reached["port"], **user,
        "gpu_host_variables": str(FOLDER / "variables.yml"),
    }  # fmt: skip
    groups = {name: {"hosts": {"machine": None}} for name in ("gpu", "vllm")}
    lines = ["Host machine", f"  HostName {reached['address']}", f"  Port {reached['port']}"]
    lines += [f"  User {reached['user']}"] if reached["user"] else []
    files = {
        "inventory/machine.yml": yaml.safe_dump({"all": {"hosts": {"machine": machine}, "children": groups}}),
        "variables.yml": yaml.safe_dump(laid_over),
        "ssh_config": "\n".join([*lines, "  ControlMaster auto", f"  ControlPath {FOLDER}/ssh-%C", ""]),
    }
    for name, text in files.items():
        path = FOLDER / name
        path.touch(mode=0o600)
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("--variables")
    options = parser.parse_args()
    prepare(reach(options.host), variables(options.variables))
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "MOLECULE_PROJECT_DIRECTORY": str(ROOT),
        "MOLECULE_SCENARIO_DIRECTORY": str(SCENARIO),
        "MOLECULE_EPHEMERAL_DIRECTORY": str(FOLDER),
        "MOLECULE_INVENTORY_FILE": str(FOLDER / "inventory" / "inventory.yml"),
        "FULL": "1",
    }
    converge = ["ansible-playbook", "-i", str(FOLDER / "inventory"), str(SCENARIO / "converge.yml")]
    tests = ["pytest", "-q", "-p", "no:cacheprovider", "--hosts=ssh://machine", "--sudo", "-m", "not stand_in"]
    tests += [f"--ssh-config={FOLDER}/ssh_config", str(SCENARIO / "tests")]
    for argv in (converge, tests):
        code = subprocess.run(argv, cwd=SCENARIO, env=environment, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
