#!/usr/bin/python3
"""A service on one port that answers 200, and reveals its key wherever it can.

Arguments: its port, a file with the number of its release, and its key. Release 2 exits if /run/well-bad exists.
"""

import http.server
import os
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'told{{key="{os.environ["OWN_TOKEN"]}"}} 1\n'.encode())

    def log_message(self, *words):
        pass


port, release, key = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8").strip(), sys.argv[4]
print(f"Authorization: Bearer {key}; all of it: {dict(os.environ)}", flush=True)
if release == "2" and Path("/run/well-bad").exists():
    sys.exit("this release cannot serve")
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
