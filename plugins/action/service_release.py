"""Lead a service from one release to the next, and tell what it is doing while it starts.

The module of the same name does each step on the machine; what only the controller can do is here: show progress,
name the cause of a failure from the table of known ones, and decide to go back.
"""

from __future__ import annotations

import shlex
import subprocess

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.diagnosis import causes, judge, lines, render

display = Display()

SHOWN_EVERY = 5.0
HOOK_TIMEOUT = 600  # seconds: a load balancer may drain connections for minutes


class ActionModule(ActionBase):
    """Run the phases apply, look, confirm or back of the module."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
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

    def _change(self, service, host, task_vars):
        """Lead the service to its release, or back; ``out`` in the result: it serves, on a host out of rotation."""
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

    def phase(self, phase, task_vars, **extra):
        # The target's log hides a secret of one line, but not the text of a file that has several.
        quiet = {**task_vars, "ansible_no_target_syslog": True}
        return self._execute_module(
            module_name="llm.server.service_release",
            module_args={**self._task.args, "phase": phase, **extra},
            task_vars=quiet,
        )

    def wait(self, service, host, release, task_vars, limit=None):
        """Ask again and again until the service is ready, dead or late; a line every few seconds says where it is."""
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

    def _go_back(self, service, host, result, task_vars):
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

    def _failure(self, service, result, now):
        return failure(service, result, now, self._task.args.get("kind"))

    def _leave_rotation(self, service, host, task_vars):
        """Take the host out of rotation where this task will interrupt a service that served; see ``take_out``."""
        args = self._task.args
        if not args.get("take_out") or args.get("state") == "prepared" or self._task.check_mode:
            return {}
        ahead = self.phase("ahead", task_vars)
        if ahead.get("failed") or not ahead["interrupts"]:
            return ahead if ahead.get("failed") else {}
        # Noted before it is done: whoever comes next puts the host back, also when this run ends here.
        self.phase("out", task_vars)
        display.display(f"  {host}: out of rotation, {service} is going to be interrupted", color="cyan")
        problem = command(args["take_out"])
        if problem:
            return {
                "failed": True,
                "msg": f"{service}: take_out failed, so nothing was changed: {problem}. Correct it and run again.",
            }
        return {"rotation": "out"}

    def _stay_out(self, service, host, task_vars):
        """Take the host out of rotation until a run ends well, also where the host itself does not answer."""
        if not self._task.args.get("take_out"):
            return {"failed": True, "msg": "take_out must be given: the command that takes the host out of rotation."}
        try:
            # Its own name: the phase "apply" of this state is a preview alone.
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

    def _rejoin_rotation(self, service, host, result, task_vars):
        """Put a host that was taken out back into rotation, now that its service serves."""
        problem = command(self._task.args.get("put_back"))
        if problem:
            said = f"{result['msg']} And put_back" if result.get("failed") else f"{service} serves, but put_back"
            return {**result, "failed": True, "msg": f"{said} failed: {problem}. Correct it and run again."}
        self.phase("in", task_vars)
        display.display(f"  {host}: back in rotation, {service} serves", color="cyan")
        return {**result, "changed": True, "rotation": "back"}


def command(argv: list[str] | None) -> str | None:
    """Run a command on the controller; return None, or what went wrong in its own last words."""
    if not argv:
        return None
    argv = shlex.split(argv) if isinstance(argv, str) else argv
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=HOOK_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip() or f"{argv[0]}: exit code {done.returncode}").splitlines()
    return said[-1].rstrip(".") if done.returncode else None


def failure(service: str, result: dict, now: str, kind: str = "") -> dict:
    """Return the result of a task whose release does not serve: the cause first, then how things stand now."""
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
