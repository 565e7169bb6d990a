#!/usr/bin/env bash
# Compile every lock file anew. Lock files are requirements files with hashes: they record no download addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { .venv/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header --no-annotate "$@"; }
compile --python-version 3.11 requirements/dev.in --output-file requirements/dev.txt
compile --python-version 3.11 --constraint requirements/dev.txt requirements/controller.in --output-file requirements/controller.txt
compile --python-version 3.14 requirements/dev-newest.in --output-file requirements/dev-newest.txt
compile --python-version 3.14 --constraint requirements/dev-newest.txt requirements/controller-newest.in --output-file requirements/controller-newest.txt
compile --python-version 3.10 --constraint requirements/dev.txt requirements/host.in --output-file requirements/host.txt
compile --python-version 3.10 roles/uv/files/requirements.in --output-file roles/uv/files/requirements.txt
compile --python-version 3.10 data/profile/py-spy.in --output-file data/profile/py-spy.txt
compile --python-version 3.11 lab/pyinfra/requirements.in --output-file lab/pyinfra/requirements.txt
compile --python-version 3.11 --override lab/vllm/overrides.txt lab/vllm/requirements.in --output-file lab/vllm/requirements.txt
