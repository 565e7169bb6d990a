"""Switch a service to a release, show its progress while it starts, and roll back if it fails.

The module of the same name does each phase on the host. This plugin does what needs the controller: it shows progress,
finds the cause of a failure in the table of known causes, decides on a rollback, and runs the rotation commands.
"""

from __future__ import annotations

import shlex
import subprocess

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.diagnosis import causes, judge, lines, render

display = Display()

SHOWN_EVERY = 5.0  # seconds between two lines of progress
HOOK_TIMEOUT = 600  # seconds: a load balancer may drain connections for minutes


class ActionModule(ActionBase):
    """Runs the phases of the module, in order, on one host."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task, with the rotation of the host if the task changes it."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        service, host = self._task.args["name"], task_vars["inventory_hostname"]
        if self._task.args.get("state") == "out":
            return self._stay_out(service, host, task_vars)
        left = self._leave_rotation(service, host, task_vars)
        if left.get("failed"):
            return left
        result = self._change(service, host, task_vars)
        if result.pop("out", False):
            return self._rejoin_rotation(service, host, result, task_vars)
        if left and result.get("failed"):
            result["msg"] = f"{result['msg']} The host stays out of rotation until a run ends well."
        return {**result, **left}

    def _change(self, service: str, host: str, task_vars: dict) -> dict:
        """Switch the service to its release, or roll back; ``out``: it serves on a host that is out of rotation."""
        result = self.phase("apply", task_vars)
        gives_way, new_secrets = result.pop("gives_way", False), result.pop("new_secrets", False)
        if result.get("failed") or not result.pop("await", False):
            return result
        out = result.pop("out", False)
        seen = self.wait(service, host, result["release"], task_vars)
        if seen.get("ready"):
            confirmed = self.phase("confirm", task_vars, release=result["release"])
            return confirmed if confirmed.get("failed") else {**result, "elapsed": seen["elapsed"], "out": out}
        if "journal" not in seen:
            return seen
        if gives_way:
            failed = self._go_back(service, host, {**result, **seen}, task_vars)
            serves = failed.pop("serves", False)
            return {**failed, "out": out and serves}
        stays = "it is the release that served last, so it is left as it is"
        if new_secrets:
            stays = "it is left as it is: only its secrets are new, and those before them are kept nowhere"
        return self._failure(service, {**result, **seen}, stays)

    def phase(self, phase: str, task_vars: dict, **extra) -> dict:
        """Return the result of one phase of the module; ``extra``: arguments in addition to those of the task."""
        # The host's syslog masks a secret of one line, but not a file of several lines.
        quiet = {**task_vars, "ansible_no_target_syslog": True}
        return self._execute_module(
            module_name="llm.server.service_release",
            module_args={**self._task.args, "phase": phase, **extra},
            task_vars=quiet,
        )

    def wait(self, service: str, host: str, release: str, task_vars: dict, limit: int | None = None) -> dict:
        """Poll until the service is ready or dead, or ``limit`` seconds are over; return what the last poll saw.

        Without ``limit`` the task's start_timeout counts. Progress is shown every `SHOWN_EVERY` seconds.
        """
        limit = limit or int(self._task.args.get("start_timeout") or 60)
        shown, elapsed = "", 0.0
        while True:
            seconds = max(0.0, min(SHOWN_EVERY, limit - elapsed))
            seen = self.phase("look", task_vars, seconds=seconds, release=release, start_timeout=limit)
            if seen.get("ready") or seen.get("dead") or seen.get("failed"):
                return seen
            elapsed = seen["elapsed"]
            if elapsed >= limit:
                return {**seen, "why": f"not ready after {limit} s: {seen['why']}"}
            phase = causes.phase(seen["journal"]) or seen["why"]
            line = f"{host}: {service} starting, {elapsed:.0f} s of {limit} s: {phase}"
            if line != shown:
                display.display(f"  {line}", color="cyan")
                shown = line

    def _go_back(self, service: str, host: str, result: dict, task_vars: dict) -> dict:
        """Roll back to the release that served before; return the failure, with ``serves`` if that one serves."""
        display.display(f"  {host}: {service} does not serve; going back to what served before", color="yellow")
        back = self.phase("back", task_vars, release=result["release"])
        if back.get("failed"):
            return back
        earlier = back["rolled_back_to"]
        if not earlier:
            serves = "there was no earlier release, so it is stopped; its files stay for inspection"
            return self._failure(service, {**result, **back}, serves)
        again = self.wait(service, host, earlier, task_vars, back.pop("start_timeout", None))
        if not again.get("ready"):
            why = again.get("why") or again.get("msg")
            now = f"release {earlier} was put back and does not serve: {why}"
            return self._failure(service, {**result, **back}, now)
        self.phase("confirm", task_vars, release=earlier)
        now = f"release {earlier} serves again"
        return {**self._failure(service, {**result, **back}, now), "serves": True}

    def _failure(self, service: str, result: dict, now: str) -> dict:
        return failure(service, result, now, self._task.args.get("kind"))

    def _leave_rotation(self, service: str, host: str, task_vars: dict) -> dict:
        """Take the host out of rotation if this task will interrupt a service that serves; see ``take_out``.

        Return ``rotation`` if the host is out, the failure if that fails, otherwise an empty result.
        """
        args = self._task.args
        if not args.get("take_out") or args.get("state") == "prepared" or self._task.check_mode:
            return {}
        ahead = self.phase("ahead", task_vars)
        if ahead.get("failed") or not ahead["interrupts"]:
            return ahead if ahead.get("failed") else {}
        # Recorded first: the next run puts the host back if this one ends here.
        self.phase("out", task_vars)
        display.display(f"  {host}: out of rotation, {service} is going to be interrupted", color="cyan")
        problem = command(args["take_out"])
        if problem:
            return {
                "failed": True,
                "msg": f"{service}: take_out failed, so nothing was changed: {problem}. Correct it and run again.",
            }
        return {"rotation": "out"}

    def _stay_out(self, service: str, host: str, task_vars: dict) -> dict:
        """Take the host out of rotation until a run succeeds, even if the host does not answer."""
        if not self._task.args.get("take_out"):
            return {"failed": True, "msg": "take_out must be given: the command that takes the host out of rotation."}
        try:
            # In check mode the phase "apply" only previews this state.
            noted = self.phase("apply" if self._task.check_mode else "out", task_vars)
            lost = noted.get("msg") if noted.get("failed") else None
        except AnsibleConnectionFailure as error:
            noted, lost = {"changed": True}, str(error)
        if self._task.check_mode:
            return {"changed": bool(lost or noted["changed"]), "rotation": "would leave"}
        if not lost and not noted["changed"]:
            return {**noted, "rotation": "out"}
        problem = command(self._task.args["take_out"])
        if problem:
            if not lost:
                self.phase("in", task_vars)
            return {"failed": True, "msg": f"{service}: take_out failed: {problem}. Correct it and run again."}
        display.display(f"  {host}: out of rotation", color="cyan")
        unnoted = {"unnoted": f"nothing could be noted on the host: {lost}"} if lost else {}
        return {"changed": True, "rotation": "out", **unnoted}

    def _rejoin_rotation(self, service: str, host: str, result: dict, task_vars: dict) -> dict:
        """Put a host back into rotation once its service serves."""
        problem = command(self._task.args.get("put_back"))
        if problem:
            said = f"{result['msg']} And put_back" if result.get("failed") else f"{service} serves, but put_back"
            return {**result, "failed": True, "msg": f"{said} failed: {problem}. Correct it and run again."}
        self.phase("in", task_vars)
        display.display(f"  {host}: back in rotation, {service} serves", color="cyan")
        return {**result, "changed": True, "rotation": "back"}


def command(argv: list[str] | str | None) -> str | None:
    """Run a command on the controller; return None, or its last line of output if it fails."""
    if not argv:
        return None
    argv = shlex.split(argv) if isinstance(argv, str) else argv
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=HOOK_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip() or f"{argv[0]}: exit code {done.returncode}").splitlines()
    return said[-1].rstrip(".") if done.returncode else None


def failure(service: str, result: dict, now: str, kind: str | None = None) -> dict:
    """Return the result of a task whose release does not serve; its message has the cause, then the state ``now``."""
    verdict = judge.judge(lines.read(result["journal"]), causes.load(), kind or service, stopping=True, name=service)
    why = result["why"]
    if verdict.cause or verdict.exception:
        why = render.sentence(verdict) if verdict.cause else f"{why}; {render.sentence(verdict)}"
    found = verdict.cause
    return {
        "failed": True,
        "changed": True,
        "msg": f"{service}: release {result['release']} does not serve: {why.strip().rstrip('.')}. Now {now}.",
        "cause": {"id": found.cause.id, "says": found.says, "cure": found.cure} if found else None,
        "why": result["why"],
        "journal": result["journal"][-15:],
        "rolled_back_to": result.get("rolled_back_to"),
        "elapsed": result["elapsed"],
    }
