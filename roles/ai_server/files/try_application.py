"""Would the application start? Import app.main of a source with a .env, as the service will; open and change nothing.

Arguments: the source, the .env. Status 0, or not 0 and what is wrong as the last line.
"""

import importlib
import os
import sys
from pathlib import Path

source, settings = sys.argv[1:]
os.chdir(Path(settings).parent)  # where the application looks for its .env
sys.path.insert(0, source)
try:
    importlib.import_module("app.main")
except ImportError as error:
    sys.exit(
        f"app.main cannot be imported: {error}; declare what is missing in the application's dependencies and lock them"
    )
