"""What the action plugins of a service share: its steps, the wait for a start, the rollback and the rotation.

The modules change the host. The plugins do what needs the controller: they show progress, find the cause of a failure
in the table of known causes, decide on a rollback, and run the commands that drain and restore a host.
"""

from __future__ import annotations

import shlex
import subprocess

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.diagnosis import causes, judge, lines, render

display = Display()

SHOWN_EVERY = 5.0  # seconds between two lines of progress
HOOK_TIMEOUT = 600  # seconds: a load balancer may drain connections for minutes


class ServiceSteps(ActionBase):
    """Runs the module of a task, and steps, on the host."""

    MODULE: str

    def apply(self, task_vars: dict) -> dict:
        """Return the result of the task's own module on the host."""
        return self._quietly(self.MODULE, self._task.args, task_vars)

    def step(self, step: str, task_vars: dict, **arguments) -> dict:
        """Return the result of a step; see the module service_step."""
        return self._quietly("service_step", {"name": self._task.args["name"], "step": step, **arguments}, task_vars)

    def confirm(self, release: str, task_vars: dict) -> dict:
        """Record that a release serves. What no kept release needs goes then, but not what is built for others."""
        return self.step("confirm", task_vars, release=release, beside=self._task.args.get("beside") or [])

    def wait(self, service: str, host: str, release: str, task_vars: dict, limit: int | None = None) -> dict:
        """Poll until the service is ready or dead, or ``limit`` seconds are over; return what the last poll saw.

        Without ``limit`` the task's start_timeout counts. Progress is shown every `SHOWN_EVERY` seconds.
        """
        limit = limit or int(self._task.args.get("start_timeout") or 60)
        shown, elapsed = "", 0.0
        while True:
            seconds = max(0.0, min(SHOWN_EVERY, limit - elapsed))
            seen = self.step("poll", task_vars, seconds=seconds, release=release, start_timeout=limit)
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

    def _quietly(self, module: str, arguments: dict, task_vars: dict) -> dict:
        # The host's syslog masks a secret of one line, but not a file of several lines.
        quiet = {**task_vars, "ansible_no_target_syslog": True}
        return self._execute_module(module_name=f"llm.server.{module}", module_args=arguments, task_vars=quiet)


class ServiceStart(ServiceSteps):
    """Runs a module that starts a service, waits until it serves, and rolls back if it does not."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task, with the rotation of the host if the task changes it."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        service, host = self._task.args["name"], task_vars["inventory_hostname"]
        drained = self._drain(service, host, task_vars)
        if drained.get("failed"):
            return drained
        result = self._change(service, host, task_vars)
        if result.pop("out", False):
            return self._restore(service, host, result, task_vars)
        if drained and result.get("failed"):
            result["msg"] = f"{result['msg']} The host stays out of rotation until a run ends well."
        return {**result, **drained}

    def to_preview(self) -> dict:
        """Return the arguments of the step ``preview`` for this task."""
        raise NotImplementedError

    def _change(self, service: str, host: str, task_vars: dict) -> dict:
        """Switch the service to its release, or roll back; ``out``: it serves on a host that is out of rotation."""
        result = self.apply(task_vars)
        may_roll_back, new_secrets = result.pop("may_roll_back", False), result.pop("new_secrets", False)
        if result.get("failed") or not result.pop("await", False):
            return result
        out = result.pop("out", False)
        seen = self.wait(service, host, result["release"], task_vars)
        if seen.get("ready"):
            confirmed = self.confirm(result["release"], task_vars)
            return confirmed if confirmed.get("failed") else {**result, "elapsed": seen["elapsed"], "out": out}
        if "journal" not in seen:
            return seen
        if may_roll_back:
            failed = self._roll_back(service, host, {**result, **seen}, task_vars)
            serves = failed.pop("serves", False)
            return {**failed, "out": out and serves}
        stays = "it is the release that served last, so it is left as it is"
        if new_secrets:
            stays = "it is left as it is: only its secrets are new, and those before them are kept nowhere"
        return self._failure(service, {**result, **seen}, stays)

    def _roll_back(self, service: str, host: str, result: dict, task_vars: dict) -> dict:
        """Roll back to the release that served before; return the failure, with ``serves`` if that one serves."""
        display.display(f"  {host}: {service} does not serve; going back to what served before", color="yellow")
        back = self.step("roll_back", task_vars, release=result["release"])
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
        self.confirm(earlier, task_vars)
        now = f"release {earlier} serves again"
        return {**self._failure(service, {**result, **back}, now), "serves": True}

    def _failure(self, service: str, result: dict, now: str) -> dict:
        return failure(service, result, now, self._task.args.get("kind"))

    def _drain(self, service: str, host: str, task_vars: dict) -> dict:
        """Take the host out of rotation if this task will interrupt a service that serves; see ``drain_command``.

        Return ``rotation`` if the host is out, the failure if that fails, otherwise an empty result.
        """
        drain = self._task.args.get("drain_command")
        if not drain or self._task.check_mode:
            return {}
        foreseen = self.step("preview", task_vars, **self.to_preview())
        if foreseen.get("failed") or not foreseen["interrupts"]:
            return foreseen if foreseen.get("failed") else {}
        # Recorded first: the next run puts the host back if this one ends here.
        self.step("drain", task_vars)
        display.display(f"  {host}: out of rotation, {service} is going to be interrupted", color="cyan")
        problem = command(drain)
        if problem:
            message = f"drain_command failed, so nothing was changed: {problem}"
            return {"failed": True, "msg": f"{service}: {message}. Correct it and run again."}
        return {"rotation": "out"}

    def _restore(self, service: str, host: str, result: dict, task_vars: dict) -> dict:
        """Put a host back into rotation once its service serves."""
        problem = command(self._task.args.get("restore_command"))
        if problem:
            message = f"{result['msg']} And" if result.get("failed") else f"{service} serves, but"
            message += f" restore_command failed: {problem}. Correct it and run again."
            return {**result, "failed": True, "msg": message}
        self.step("restore", task_vars)
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
    lines = (done.stderr.strip() or done.stdout.strip() or f"{argv[0]}: exit code {done.returncode}").splitlines()
    return lines[-1].rstrip(".") if done.returncode else None


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
