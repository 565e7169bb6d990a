#!/usr/bin/env bash
# Make .venv from a lock file with hashes, on a machine that has python3 and root or sudo and nothing else prepared.
set -euo pipefail
lock=$1

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "python3-venv is missing and there is no sudo: run as root once." >&2; exit 2; }
        root=(sudo)
    fi
    echo "Installing python3-venv (usually 10 s) …"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "The tools need Python 3.11 or newer; python3 here is $(python3 -V). Put a newer one first in PATH." >&2
    exit 2
fi

echo "Making .venv from $lock (usually 30 s) …"
[ -x .venv/bin/python ] || python3 -m venv .venv
# uv itself comes from the same lock, then installs the rest in a tenth of pip's time.
awk '/^uv==/ { found = 1; print; next } found && /^ / { print; next } found { exit }' "$lock" > .venv/uv.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
.venv/bin/uv pip sync --quiet --require-hashes --python .venv/bin/python "$lock"
# Where bytecode may not be written, every run of Ansible would compile itself anew, which takes a second.
.venv/bin/python -m compileall -q -j 0 -x 'ansible_collections|ansible_test' .venv/lib >/dev/null ||
    echo "Some of the tools could not be compiled; they run all the same, later." >&2
