"""The source of the laboratory's OpenTelemetry Collector: upstream's parts, assembled by upstream's builder.

`builder.yaml` lists the parts; go.mod and go.sum lock all their modules, so that each build uses the same versions.
After a change of builder.yaml, regenerate both: run ocb as `generate` does, but without `--skip-get-modules`.
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
    """Return the version of the collector that is assembled."""
    return yaml.safe_load((HERE / "builder.yaml").read_text())["dist"]["version"]


def generate(go: str, environment: dict[str, str], folder: Path) -> Path:
    """Write the collector's source into a folder and return it; first build ocb in the same version."""
    tools = folder / "tools"
    cure = "see the whole output by running it again by hand"
    # Outside a module, Go uses no lock; it verifies its downloads against the checksum database.
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
