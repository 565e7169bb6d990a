"""Check whether the server would start: `python -m app.check [--env-file FILE]`, before a switch to it.

Reads the settings (the environment overrides FILE, by default `.env`) and imports every module. Opens and changes
nothing. The exit status is 0 with one line on stdout, or nonzero with one line on stderr.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.check", description=__doc__.partition("\n")[0])
    parser.add_argument("--env-file", type=Path, help="the settings to check instead of ./.env")
    env_file = parser.parse_args().env_file
    if env_file:
        if not env_file.is_file():
            return _refuse(f"{env_file} is not a file")
        os.environ["AI_SERVER_ENV_FILE"] = str(env_file)
    names = [f"app.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return _refuse(f"{name} cannot be imported: {error} (install requirements.txt into this environment)")
    print(f"ai-server: settings accepted, {len(names)} modules imported")
    return 0


def _refuse(reason: str) -> int:
    print(f"ai-server: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
