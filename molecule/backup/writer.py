#!/usr/bin/python3
"""A service that writes continuously, like ai-server: a database in WAL mode and uploads. It answers /health.

Each transaction adds two rows, so an odd number of rows means an incomplete transaction. It refuses to start if the
database has a table named `broken`.
"""

import http.server
import sqlite3
import sys
import threading
import time
from pathlib import Path

state, uploads, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(state / "jobs.sqlite3", isolation_level=None, timeout=10, check_same_thread=False)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE IF NOT EXISTS pairs (number INTEGER, text TEXT)")
if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'broken'").fetchone():
    sys.exit("this database cannot be served")


def write():
    number = 0
    while True:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO pairs VALUES (?, ?)", (number, "x" * 200))
        db.execute("INSERT INTO pairs VALUES (?, ?)", (number, "y" * 200))
        db.execute("COMMIT")
        if number % 100 == 0:
            (uploads / f"{number % 1000}.pdf").write_bytes(b"%PDF-" + bytes(5000))
        number += 1
        time.sleep(0.002)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words):
        pass


threading.Thread(target=write, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Health).serve_forever()
