"""Run a command against an engine, on the controller or on the host, and keep its output on the controller."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import atomic_file
from ..module_utils.engines import engine_runs
from ..module_utils.errors import UserError

display = Display()

TUNNEL_WITHIN = 30  # seconds
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ActionModule(ActionBase):
    """Run the command where requested; always write the log on the controller."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        args, host = self._task.args, task_vars["inventory_hostname"]
        if self._task.check_mode:
            return {"changed": False, "skipped": True}
        timeout = float(args.get("timeout") or 86400)
        place = "the controller" if args.get("run_on", "controller") == "controller" else "the host"
        display.display(f"  {host}: {args['engine']}: running {args['argv'][0]} on {place}", color="cyan")
        if place == "the host":
            told = self._execute_module(
                "engine_command", module_args=dict(args), task_vars={**task_vars, "ansible_no_target_syslog": True}
            )
            if told.get("failed"):
                return told
        else:
            given = (args["engine"], args["model"], args["api_key"])
            try:
                with self._reached(args["url"]) as url:
                    told = engine_runs.run(list(args["argv"]), given[0], url, given[1], given[2], timeout)
            except (UserError, OSError) as error:
                return {"failed": True, "msg": f"{args['engine']}: {error}"}
        log = Path(args["log"]).expanduser().resolve()
        write(log, engine_runs.log_of(told, list(args["argv"]), args["engine"], args["model"]))
        says = engine_runs.sentence(told, timeout)
        display.display(f"  {host}: {args['engine']}: {says}", color="cyan")
        return {"changed": True, "rc": told["rc"], "seconds": told["seconds"], "says": says, "log": str(log)}

    @contextmanager
    def _reached(self, url):
        """Yield the address at which the controller reaches an engine that has ``url`` on the host."""
        asked = urlsplit(url)
        if self._connection.transport == "local" or asked.hostname not in LOOPBACK:
            yield url
            return
        if self._connection.transport != "ssh":
            raise UserError(f"the controller cannot reach {url} of the host; write -e run_on=host")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        there = f"[{asked.hostname}]" if ":" in asked.hostname else asked.hostname
        words = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:{there}:{asked.port}"]
        host = self._connection.get_option("host")
        # With the connection's own options and login, but not its master: the tunnel would outlive the command there.
        binary, *rest = self._connection._build_command("ssh", "ssh", *words, host)
        if binary != b"ssh":
            raise UserError(f"a tunnel to {url} of the host takes an SSH key, not a password; write -e run_on=host")
        command = [binary, b"-S", b"none", *rest]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            self._await(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate()

    @staticmethod
    def _await(process, port):
        end = time.monotonic() + TUNNEL_WITHIN
        while time.monotonic() < end and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    return
            except OSError:
                time.sleep(0.1)
        process.terminate()
        said = process.communicate()[1].decode("utf-8", "replace").strip().split("\n")[-1]
        raise UserError(f"no SSH tunnel to the engine{f': {said}' if said else ''}; write -e run_on=host")


def write(path: Path, text: str) -> None:
    """Write a file in one step that only its owner can read."""
    atomic_file.write(path, text, 0o600, directory_mode=0o700)
