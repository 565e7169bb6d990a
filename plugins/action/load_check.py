"""Run a load check: start the tool on the host, show its progress, and save the results on the controller."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import atomic_file
from ..module_utils.errors import UserError
from ..module_utils.load import judge, page, search, watch
from ..module_utils.load.plan import checked

display = Display()

SHOWN_EVERY = 10.0
ANSWERED = 0.95  # share of a turn's requests; with fewer answers another turn would show nothing new
LEAST_SHARE = 0.8  # share of the time that the requests must fill; otherwise another turn fills the rest
TURNS = 4


class ActionModule(ActionBase):
    """Run the phases of the module on the host, and the last one in any case."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        self._host, self._vars = task_vars["inventory_hostname"], {**task_vars, "ansible_no_target_syslog": True}
        args = self._task.args
        try:
            plan = checked(args)
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        self._plan, self._samples, self._events = asdict(plan), [], []
        if self._task.check_mode:
            return {
                "changed": False,
                "table": [f"{self._host}: would load {self._told(args)}: {judge.asked(self._plan)}"],
            }
        try:
            self._began = self._phase("begin")
            self._say(f"loading {self._told(args)}: {judge.asked(self._plan)}")
            others = sum((each or {}).get("running", 0) for each in self._began["first"]["engines"].values())
            if others:
                self._say(f"{others:.0f} requests of other clients are running; they count in the figures", "yellow")
            runs, answers = self._find(plan) if plan.find_ttft_ms else (self._load(plan), [])
        except UserError as error:
            return {"failed": True, "msg": f"{self._host}: {error}"}
        finally:
            if hasattr(self, "_began"):
                self._execute("end", {})
        return self._kept(runs, answers)

    # -- what is run --------------------------------------------------------------------------------------------------

    def _load(self, plan) -> list[dict]:
        """Load every model of every target for the requested time, targets in parallel."""
        targets, runs = self._task.args["targets"], []
        for place in range(max(len(each["models"]) for each in targets)):
            jobs = [
                {"name": each["name"], "model": each["models"][place]}
                for each in targets
                if len(each["models"]) > place
            ]
            runs += self._round(jobs, plan.callers)
            if self._events:
                break
        return runs

    def _find(self, plan) -> tuple[list[dict], list[str]]:
        """Search the targets one by one: load on another engine would distort the result."""
        runs, answers = [], []
        for target in self._task.args["targets"]:
            who = f"{target['name']} {target['models'][0]}"
            steps = search.largest(plan.callers)
            callers, held = next(steps), None
            while callers:
                (run,) = self._round([{"name": target["name"], "model": target["models"][0]}], callers)
                runs.append(run)
                held = not self._events and judge.holds(run, plan.find_ttft_ms, plan.limits)
                measured = (
                    run.get("problem")
                    or f"p95 time to first token {run['ttft_ms']['p95'] or 0:.0f} ms, {run['failed']} failed"
                )
                self._say(f"{who}: {callers} callers: {measured}: {'within the limit' if held else 'over the limit'}")
                if self._events:
                    return runs, [*answers, f"{who}: the search was aborted at {callers} callers."]
                try:
                    callers = steps.send(held)
                except StopIteration as end:
                    answers.append(_answer(who, end.value, plan))
                    callers = 0
        return runs, answers

    def _round(self, jobs: list[dict], callers: int) -> list[dict]:
        """Load the targets with one model each; return one run per target."""
        plan, seconds = {**self._plan, "callers": callers}, self._plan["minutes"] * 60
        state = {"plan": plan, "jobs": [{**job, "seed": 1 + len(self._samples)} for job in jobs]}
        open_jobs, found, left = state["jobs"], {}, seconds
        for turn in range(TURNS):
            begun = self._phase("start", {**state, "jobs": open_jobs, "seconds": left, "turn": turn})
            self._watch(plan, open_jobs, begun)
            found.update(self._phase("collect", {**state, "jobs": open_jobs}))
            loaded = min(run.get("seconds", seconds) for run in found.values())
            if self._events or loaded >= LEAST_SHARE * seconds:
                break
            # The first requests were slower than the rest: fill the remaining time at the measured rate.
            left = seconds - loaded
            open_jobs = [
                {**job, "rate": max(run["requests"] / run["seconds"], 1e-3), "seed": job["seed"] + turn + 1}
                for job in open_jobs
                if "problem" not in (run := found[job["name"]])
                and run["seconds"] < LEAST_SHARE * seconds
                and run["error_share"] <= 1 - ANSWERED
            ]
            if not open_jobs:
                break
        self._phase("end")
        if self._events:
            for run in found.values():
                run.update({"problem": "the load was stopped early"} if "problem" in run else {})
        return [
            {"target": job["name"], "model": job["model"], "callers": callers, **found[job["name"]]} for job in jobs
        ]

    def _watch(self, plan: dict, jobs: list[dict], begun: dict) -> None:
        """Sample until the tool has finished on all targets; print progress every few seconds."""
        begin, asked, limit = time.monotonic(), False, max(each["limit"] for each in begun.values())
        models = ", ".join(f"{job['name']} {job['model']} ({begun[job['name']]['requests']} requests)" for job in jobs)
        self._say(f"{models}: {plan['callers']} callers")
        while True:
            state = {"names": [job["name"] for job in jobs], "seconds": SHOWN_EVERY, "began": self._began}
            seen = self._phase("look", state)
            self._samples += seen["samples"]
            self._events = seen["events"]
            if self._events or not seen["left"]:
                return
            elapsed = time.monotonic() - begin
            asked = asked or any(
                (one or {}).get("running") for each in seen["samples"] for one in each["engines"].values()
            )
            self._say(f"{elapsed:.0f} s: {_now(seen['samples']) if asked else 'the tool is starting'}")
            if elapsed > limit + 60:
                raise UserError(f"the tool has not finished after {elapsed:.0f} s")

    # -- the host and the controller ----------------------------------------------------------------------------------

    def _execute(self, phase: str, state: dict) -> dict:
        args = {**self._task.args, "phase": phase, "state": state}
        return self._execute_module(module_name="llm.server.load_check", module_args=args, task_vars=self._vars)

    def _phase(self, phase: str, state: dict | None = None) -> dict:
        seen = self._execute(phase, state or {})
        if "told" not in seen:
            raise UserError(" ".join(str(seen.get("msg") or seen.get("module_stderr") or "no answer").split()))
        return seen["told"]

    def _say(self, text: str, colour: str = "cyan") -> None:
        display.display(f"  {self._host}: {text}", color=colour)

    def _told(self, args: dict) -> str:
        return "; ".join(f"{each['name']} ({', '.join(each['models'])}) at {each['url']}" for each in args["targets"])

    def _kept(self, runs: list[dict], answers: list[str]) -> dict:
        """Write the HTML page and the JSON file; return the result with its failures."""
        report = {
            "host": self._host,
            "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "through": self._task.args.get("through", "engine"),
            "plan": self._plan,
            "runs": runs,
            "peaks": watch.peaks(self._samples),
            "events": self._events,
            "answer": " ".join(answers),
            "samples": self._samples,
        }
        report["failures"] = judge.failures(report) if not self._plan["find_ttft_ms"] or self._events else []
        try:
            files = written(Path(self._task.args["directory"]).expanduser().resolve(), report)
        except OSError as error:
            return {
                "failed": True,
                "msg": f"load_directory is not writable: {error}; choose another directory",
                "table": judge.table(report),
            }
        result = {"changed": False, "table": [*judge.table(report), "", *files], "files": files, "runs": runs}
        return {**result, "failures": report["failures"], "answer": report["answer"]}


def written(directory: Path, report: dict) -> list[str]:
    """Write the report as JSON and HTML; return the paths."""
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', report['host'])}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    texts = {"html": page.html(report), "json": json.dumps(report, indent=1) + "\n"}
    for kind, text in texts.items():
        atomic_file.write(directory / f"{stem}.{kind}", text, directory_mode=0o700)
    return [str(directory / f"{stem}.{kind}") for kind in texts]


def _now(samples: list[dict]) -> str:
    """Return one line about the state of the engines in the last seconds."""
    told = []
    last, before = samples[-1], samples[0]
    for name, seen in last["engines"].items():
        if not seen:
            told.append(f"{name} does not answer")
            continue
        several = [each["engines"].get(name) or {} for each in samples]
        most = {key: max(each.get(key, 0) for each in several) for key in ("running", "waiting", "kv_cache")}
        words = [f"{most['running']:.0f} running", f"{most['waiting']:.0f} waiting"]
        was, passed = before["engines"].get(name) or {}, last["time"] - before["time"]
        if passed > 0 and "tokens" in seen and "tokens" in was:
            words.append(f"{max(0, seen['tokens'] - was['tokens']) / passed:.0f} tokens/s")
        words += [f"KV cache {100 * most['kv_cache']:.0f} %"] if "kv_cache" in seen else []
        told.append(f"{name} {', '.join(words)}")
    return "; ".join(told)


def _answer(who: str, callers: int, plan) -> str:
    limit = f"{plan.find_ttft_ms:g} ms"
    if not callers:
        return f"{who}: even one caller exceeds a p95 time to first token of {limit}."
    more = " (the upper bound of the search; raise load_callers to go on)" if callers == plan.callers else ""
    return f"{who}: up to {callers} callers at once keep the p95 time to first token within {limit}{more}."
