"""The machines of the benchmark, as lab/bench_site.py has written them down."""

import json
import os
from pathlib import Path

machines = [(each["name"], each) for each in json.loads(Path(os.environ["BENCH_MACHINES"]).read_text())]
