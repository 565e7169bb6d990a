"""Install a released program unless it is there; see `released_program` for how, and `downloads` for the network."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ..errors import UserError
from ..unprivileged import ANYONE, barred, open_up
from .downloads import download
from .released_program import install, installed_checksum, place

ROOT = Path("/opt")


def provide(module, wanted: dict, root: Path = ROOT, user: str | None = ANYONE, check_mode: bool | None = None) -> dict:
    """Install a program, and return ``{changed, path, diff}``; in check mode, what would change.

    ``wanted`` has ``name``, ``version``, ``url`` and ``checksum``, and ``member`` and ``ca_path``, which may be None.
    ``user`` must be able to run it; None is the user who installs it. ``check_mode`` defaults to the module's. Raises
    UserError.
    """
    name, version, checksum = wanted["name"], wanted["version"], wanted["checksum"]
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
        raise UserError(f"checksum must be sha256: and 64 hexadecimal digits, not {checksum!r}")
    home, member = root / name, wanted.get("member") or name
    directory = place(home, version, checksum)
    changed = installed_checksum(directory) != checksum or bool(barred(directory / member, user))
    if changed and not (module.check_mode if check_mode is None else check_mode):
        open_up(home)
        try:
            with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as stage:
                archive = Path(stage) / "archive"
                download(module, wanted["url"], archive, wanted.get("ca_path"))
                install(archive, checksum, member, directory)
        except (UserError, OSError) as error:
            if not any(home.iterdir()):
                home.rmdir()
            raise UserError(f"{name} {version} from {wanted['url']}: {error}") from None
        closed = barred(directory / member, user)
        if closed:
            raise UserError(f"{name} {version}: {closed}")
    diff = {"before": "", "after": f"{directory} from {wanted['url']}\n"} if changed else {}
    return {"changed": changed, "path": str(directory), "diff": diff}
