"""The source of the laboratory's OpenTelemetry Collector: upstream's own parts, put together by upstream's builder.

`builder.yaml` says which parts, and go.mod and go.sum lock every module below them, so that each build has the same.
After a change of builder.yaml write both anew: run ocb with it as `generate` does, without `--skip-get-modules`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from lab import host

HERE = Path(__file__).parent
BUILDER = "go.opentelemetry.io/collector/cmd/builder"
LOCK = ("go.mod", "go.sum")


def version() -> str:
    """Return the version of the collector that is put together."""
    return yaml.safe_load((HERE / "builder.yaml").read_text())["dist"]["version"]


def generate(go: str, environment: dict[str, str], folder: Path) -> Path:
    """Write the collector's source into a folder and return it; ocb is built first, of the same version."""
    tools = folder / "tools"
    cure = "see the whole output by running it again by hand"
    # Outside of a module, go asks for no lock; what it fetches it compares with the checksum database.
    install = ["nice", go, "install", f"{BUILDER}@v{version()}"]
    host.run(install, env={**environment, "GOBIN": str(tools)}, cwd=folder, tries=3, cure=cure)
    source, manifest = folder / "collector", folder / "builder.yaml"
    wanted = yaml.safe_load((HERE / "builder.yaml").read_text())
    wanted["dist"] |= {"output_path": str(source), "go": go}
    manifest.write_text(yaml.safe_dump(wanted))
    words = ["--config", str(manifest), "--skip-compilation", "--skip-get-modules"]
    host.run(["nice", str(tools / "builder"), *words], env=environment, cwd=folder, cure=cure)
    for name in LOCK:
        shutil.copy(HERE / name, source / name)
    shutil.copy(HERE / "README.md", source / "README.md")
    return source
