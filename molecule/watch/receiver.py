"""Accepts posts as Slack does, and writes a line of JSON for each: FILE PORT."""

import http.server
import json
import sys
import time
from pathlib import Path

FILE, PORT = Path(sys.argv[1]), int(sys.argv[2])


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with FILE.open("a") as handle:
            handle.write(json.dumps({"at": time.time(), "path": self.path, "body": body}) + "\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
