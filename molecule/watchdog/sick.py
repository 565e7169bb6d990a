#!/usr/bin/python3
"""A service with configurable faults: the file /run/sick names one; `once` after it means that a restart cures it.

serve: healthy. work: answers, a request is pending, tokens are generated. stall: answers, a request is pending, no
token is generated. busy: does not answer, tokens are generated. hang: nothing answers. load: never becomes ready.
die: exits at the start.
"""

import http.server
import sys
import time
from pathlib import Path

FAULT = Path("/run/sick")


def state():
    return FAULT.read_text(encoding="utf-8").split()[0] if FAULT.exists() else "serve"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        now = state()
        if now == "hang" or (now == "busy" and self.path == "/health"):
            time.sleep(30)
        pending, tokens = int(now in ("stall", "busy", "work")), int(time.time()) if now in ("busy", "work") else 7
        page = f'vllm:num_requests_running{{engine="0"}} {pending}\nvllm:iteration_tokens_total_count {tokens}\n'
        self.send_response(503 if now == "load" else 200)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *words):
        pass


if FAULT.exists() and "once" in FAULT.read_text(encoding="utf-8"):
    FAULT.unlink()
if state() == "die":
    sys.exit(1)
http.server.ThreadingHTTPServer(("127.0.0.1", 8001), Handler).serve_forever()
