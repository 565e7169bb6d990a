"""Bring a service to the release that a module's arguments describe: check, write, start."""

from __future__ import annotations

from ..install import program
from . import account, checks, contents, rollback, serving
from .description import digest, digest_before
from .probes import first_failure
from .store import Service


def settle(module, service: Service, wanted: dict) -> None:
    """Check the groups and conflicts of ``wanted`` and install its program; the running service does not change.

    Adds to ``wanted`` the link that selects the program, and the result of its installation. Raises `Refused` or
    UserError.
    """
    account.settle_groups(service, wanted)
    if wanted["state"] == "absent":
        return
    if not module.check_mode:
        checks.check_conflicts(wanted["conflicts"])
    if wanted["program"]:
        check_mode = module.check_mode or wanted.get("compare_only", False)
        installed = program.provide(module, {"name": service.name, **wanted["program"]}, check_mode=check_mode)
        current = {"path": str(program.ROOT / service.name / "current"), "target": installed["path"]}
        wanted |= {"links": [current, *wanted["links"]], "installed": installed}


def wanted_release(service: Service, wanted: dict) -> dict:
    """Return the release that the arguments ``wanted`` describe."""
    return contents.build(
        service,
        wanted["files"],
        wanted["links"],
        wanted["unit"],
        wanted["secrets"],
        wanted["inputs"],
        wanted.get("groups") or (),
        wanted.get("peers") or (),
        wanted.get("limits"),
        wanted.get("timer"),
    )


def deploy(service: Service, wanted: dict, check_mode: bool) -> dict:
    """Write and start the wanted release; ``await`` in the result says whether to wait for the start.

    If ``wanted`` has ``compare_only``, this does only what a run without changes does, and reports changes like check
    mode.
    """
    files = [*wanted["files"], *wanted["secrets"]]
    fixed = [file for file in files if not file.get("live")]
    release = wanted_release(service, wanted)
    besides = checks.check_unit(service, release, check_mode)
    compare_only = wanted.get("compare_only", False)
    reread = not check_mode and (checks.outdated(service) if compare_only else checks.reread(service))
    new_user = account.missing_user(wanted["user"])
    directories = account.wrong_directories(wanted["directories"])
    differences = contents.differences(service, release)
    restart = serving.restart_reason(service, release, differences, digest_before(fixed, release))
    unused = rollback.unused_builds(service, [release])
    installed = wanted.get("installed") or {"changed": False, "path": None, "diff": {}}
    changes = (installed["changed"], reread, new_user, directories, differences, restart, unused)
    result = {
        "changed": any(map(bool, changes)),
        "program": installed["path"],
        "release": digest(release),
        "restarted": restart,
        "besides": besides,
        "diff": [*filter(None, [installed["diff"]]), *map(contents.shown, differences)],
    }
    if compare_only and result["changed"]:
        return {**result, "await": False}
    if differences or restart:
        if restart or contents.besides_live(service, release, differences):
            checks.check_times(service, wanted.get("timer") or {}, wanted.get("schedule_variable"))
            checks.check_ports(service, wanted["listens"])
            checks.check_memory(service, release["limits"])
        else:
            # A key that is taken back must not have to wait until something else is right.
            files = [file for file in files if file["path"] in {difference["what"] for difference in differences}]
        if not check_mode:
            account.prepare(service, wanted, new_user, directories)
        checks.check(service, release, files, wanted["user"], check_mode)
        if restart and not check_mode:
            checks.try_out(service, release, wanted["trials"])
    elif not check_mode:
        account.prepare(service, wanted, new_user, directories)
    if check_mode:
        return {**result, "await": False}
    return {**result, **_switch(service, wanted, release, differences, restart)}


def _switch(service: Service, wanted: dict, release: dict, differences: list[dict], restart: str | None) -> dict:
    """Write ``release`` and start it if ``restart`` says why; return what the action plugin has to know."""
    name, state = digest(release), service.state()
    if differences or restart:
        before = service.release(state["current"])
        contents.put(service, release, {secret["path"]: secret["content"] for secret in wanted["secrets"]})
        if before:
            contents.take_away(service, before, but=release)
        service.note(current=name)
    elif service.release(state["current"]) != release:
        # Its record was lost, or it was written before a live file belonged to it.
        service.adopt(release)
    service.store_proof(name, {key: wanted[key] for key in ("probes", "before_start", "start_timeout")})
    served_last = rollback.served_last(service)
    result = {
        "out": state["out"],
        # The release that served last is the best known one: only a newer one may be rolled back.
        "may_roll_back": not served_last,
        "new_secrets": served_last and name != state["verified"][-1],
    }
    if restart:
        serving.start(service, wanted["before_start"], regardless=served_last)
        return {**result, "await": True}
    serving.reload(service, release, differences)
    if name not in state["verified"] or first_failure(wanted["probes"]):
        serving.watch(service)
        return {**result, "await": True}
    rollback.prune(service)
    return {**result, "await": False}
