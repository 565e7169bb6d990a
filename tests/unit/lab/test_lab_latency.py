"""The slow link: data arrives complete, in order, and delayed in both directions."""

from __future__ import annotations

import socket
import socketserver
import threading
import time

from lab.latency import Link


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_each_round_trip_takes_both_ways():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            Link(server.server_address, 0.05) as port,
            socket.create_connection(("127.0.0.1", port), timeout=10) as there,
        ):
            lines, begin = there.makefile("rwb"), time.monotonic()
            for number in range(4):
                lines.write(b"%d\n" % number)
                lines.flush()
                assert lines.readline() == b"%d\n" % number
            assert 0.4 <= time.monotonic() - begin < 2
            long = bytes(range(1, 10)) * 50000 + b"\n"
            threading.Thread(target=there.sendall, args=[long], daemon=True).start()
            assert lines.readline() == long[: long.index(b"\n") + 1]
        server.shutdown()
