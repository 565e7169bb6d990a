#!/usr/bin/python
"""Door to module_utils.release.service_release; the action plugin of the same name calls it phase by phase."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_release
short_description: Run a systemd service on exactly what is written, or keep the release that served before
description:
  - Writes the files, links and unit of a service after each has been checked, and restarts the service when the running
    process was started with anything else. The process carries the digest of its release in its environment, so an
    interrupted run is healed by the next one.
  - No stored release has a secret. Whoever goes back, by himself or because a start failed, gets the release of before
    with the secrets of today.
  - What others make of the unit is looked at too. A mask, a link or a drop-in that changes what the unit says is
    refused; one that only adds, such as a limit, is a warning.
  - Waits until the probes answer. When they do not, the last verified release is put back and started, and the task
    fails with the cause taken from the journal.
  - "Source of the unit's defaults: systemd.exec(5)."
author: The llm-server maintainers (@llm-server)
options:
  name:
    description: Name of the service; its unit is C(<name>.service).
    type: str
    required: true
  kind:
    description:
      - What runs in it, such as V(vllm) or V(llama_cpp), where its name does not say it. The causes of a failure are
        looked for among those of its kind.
    type: str
  state:
    description:
      - V(prepared) makes the user and the directories, for what must be there before the release can be described.
      - V(present) writes, starts and verifies the release; V(absent) takes the service away but keeps the directories
        marked O(directories[].keep); V(previous) goes back to an earlier verified release.
      - V(out) takes the host out of rotation by O(take_out) and leaves the service as it is. The next good run
        puts the host back. Where the host does not answer, the command runs all the same, and nothing is noted.
    type: str
    choices: [prepared, present, absent, previous, out]
    default: present
  release:
    description:
      - With O(state=previous), the release to go back to; the last verified one when left out.
      - In the other phases of the action plugin, the release they are about.
    type: str
  purge:
    description: With O(state=absent), remove kept directories and the user too.
    type: bool
    default: false
  user:
    description:
      - System user that is created for the service when it is missing. One that is there is used as it is.
      - As a group, wherever one is named, a user stands for his own group, whatever it is called.
    type: str
  groups:
    description:
      - Groups that the process joins besides its user's own; the role's variable C(<name>_groups) names them. One that
        the host does not have is refused.
    type: list
    elements: str
    default: []
  peers:
    description:
      - Addresses, networks or C(localhost) with which alone the service may exchange packets; systemd drops all others,
        whatever the process listens on. Without any there is no filter.
      - "Source: systemd.resource-control(5), IPAddressAllow."
    type: list
    elements: str
    default: []
  home:
    description: Home directory named in the user's entry; it is not created.
    type: path
    default: /nonexistent
  directories:
    description: Directories the service needs.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory., type: path, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0755"}
      keep: {description: Whether it holds data that outlives the service., type: bool, default: false}
  files:
    description: Files the service is started with.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0644"}
      validate:
        description: Command that checks the file before it replaces the old one; C(%s) stands for the staged file.
        type: list
        elements: str
      live:
        description:
          - The process reads the file again while it runs, by the unit's C(ExecReload) where it has one. Another text,
            or one such file more or less, restarts nothing, and a rollback keeps today's.
        type: bool
        default: false
  secrets:
    description:
      - Files like O(files) of lines C(NAME=value) whose text appears in no result, diff or log. No release has their
        values but keyed digests of them, so another value is another release, and one that comes back has the values of
        today.
      - A file that a later release does not have any more stays until no kept release needs it.
      - With O(secrets[].whole) the text has no names, such as that of a file with one password.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0600"}
      validate:
        description: Like O(files[].validate); the program must not print what it reads.
        type: list
        elements: str
      plain:
        description: Names in the file that are no secrets; their values are kept with a release and come back with it.
        type: list
        elements: str
        default: []
      whole: {description: Whether the whole text is one secret., type: bool, default: false}
  links:
    description: Links switched with the release, such as the one that chooses the program's version.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The link., type: path, required: true}
      target:
        description: Directory it points to; removed when no kept release points there any more.
        type: path
        required: true
  beside:
    description:
      - Programs and environments that this run built for other services which are started after this one. They are
        kept, though no release refers to them yet.
    type: list
    elements: path
    default: []
  inputs:
    description:
      - Named values that the process depends on and that stand in none of its files, such as the digest of data that it
        reads when it starts; with another value it is another release and is restarted.
    type: dict
    default: {}
  unit:
    description: >-
      Sections of the unit as C({section: {directive: value}}), laid over the project's hardened defaults; a list
      repeats the directive, null takes a default away. Values are meant as they stand: C(%) is no specifier.
    type: dict
    default: {}
  limits:
    description:
      - Memory limit and OOM score of the service. A change takes effect without a restart, and a rollback keeps it. A
        limit below the current use is refused.
      - "Source: systemd.exec(5), OOMScoreAdjust, and systemd.resource-control(5), MemoryMax."
    type: dict
    suboptions:
      oom_score_adjust:
        description: How early the OOM killer chooses the service; child processes inherit the value.
        type: int
        required: true
      memory_max:
        description: Maximum memory without swap, in systemd's format. The kernel kills a service that exceeds it.
        type: str
        default: infinity
  trials:
    description:
      - Scripts that must succeed in the sandbox of the unit, as its user and with its variables but without its files
        of variables, before a release is written. They run when the service is about to be restarted, not in check
        mode. The last line that one prints is the reason of a refusal.
    type: list
    elements: dict
    default: []
    suboptions:
      script: {description: Text of the script., type: str, required: true}
      argv:
        description: Command that runs it; C(%s) stands for the file with the script.
        type: list
        elements: str
        required: true
  listens:
    description: TCP ports that must be free, or held by this very service, before anything is written.
    type: list
    elements: int
    default: []
  probes:
    description:
      - What must answer before the release counts as serving, in this order; each is one probe of one kind.
      - A key that a probe shows is named by C(bearer_file) and C(bearer_variable), one of the lines C(NAME=value) of a
        file of O(secrets), and read when the question is asked. So is the password of C(user), by C(password_file), a
        whole secret.
    type: list
    elements: dict
    default: []
    suboptions: &probes
      http:
        description: The URL answers.
        type: dict
        suboptions:
          url: &url {description: Address that is asked., type: str, required: true}
          bearer_file: &file {description: File with the key that is shown., type: path}
          bearer_variable: &variable {description: Name of the key in that file., type: str}
          timeout: &timeout {description: Seconds to wait for the answer; 5 when left out., type: float}
          status: {description: Status of the answer; 200 when left out., type: int}
          contains: {description: Text that the answer has., type: str}
          user: {description: User who logs in., type: str}
          password_file: {description: File whose whole text is the password., type: path}
      metric:
        description: The URL is a page of Prometheus metrics.
        type: dict
        suboptions:
          url: *url
          timeout: *timeout
          series: {description: Names of series that it has., type: list, elements: str, required: true}
      models:
        description: An engine lists exactly these models.
        type: dict
        suboptions:
          url: *url
          bearer_file: *file
          bearer_variable: *variable
          timeout: *timeout
          expected:
            description: Names of the models, the base model before its adapters.
            type: list
            elements: str
            required: true
          max_model_len: {description: Longest text in tokens that the base model has., type: int}
      completion:
        description: An engine completes a prompt.
        type: dict
        suboptions:
          url: *url
          bearer_file: *file
          bearer_variable: *variable
          timeout: {description: Seconds to wait for the answer; 60 when left out., type: float}
          model: {description: Name of the model., type: str, required: true}
          prompt: {description: The prompt; Hello when left out., type: str}
          max_tokens: {description: Longest answer in tokens; 8 when left out., type: int}
      gpu_free:
        description: GPUs have memory free.
        type: dict
        suboptions:
          mib: {description: Free memory that each must have (MiB)., type: int, required: true}
          gpus: {description: "How many, counted from the first; 1 when left out.", type: int}
          timeout: {description: Seconds to wait for nvidia-smi., type: float}
  before_start:
    description:
      - Probes that must hold between the process before and the new one, such as C(gpu_free). Where one does not within
        a minute, nothing is started, and the release before comes back.
    type: list
    elements: dict
    default: []
    suboptions: *probes
  start_timeout:
    description: Seconds until the probes must have answered. It is about the wait alone and restarts nothing.
    type: int
    default: 60
  take_out:
    description:
      - Command that takes this host out of rotation. It runs on the controller, after everything was checked and before
        a service that served is interrupted; where it fails, the service is not touched.
    type: list
    elements: str
    default: []
  put_back:
    description:
      - Command that puts this host back into rotation. It runs on the controller once the service serves again, be it
        on the release before, and only on a host that was taken out; an interrupted run is made up for by the next.
    type: list
    elements: str
    default: []
  phase:
    description: Step of the action plugin; not for playbooks.
    type: str
    choices: [apply, ahead, out, in, look, back, confirm]
    default: apply
  seconds:
    description: With O(phase=look), how long to watch before answering.
    type: float
    default: 5
attributes:
  check_mode: {description: Checks and shows the differences; writes and starts nothing., support: full}
  diff_mode: {description: Shows files and the unit; secrets only as changed., support: full}
"""

EXAMPLES = r"""
- name: Run node_exporter
  llm.server.service_release:
    name: node_exporter
    user: node_exporter
    links:
      - {path: /opt/node_exporter/current, target: /opt/node_exporter/1.9.0}
    unit:
      Unit: {Description: Host metrics for Prometheus}
      Service:
        User: node_exporter
        ExecStart: /opt/node_exporter/current/node_exporter --web.listen-address=127.0.0.1:9100
    listens: [9100]
    probes:
      - metric: {url: "http://127.0.0.1:9100/metrics", series: [node_memory_MemTotal_bytes]}
"""

RETURN = r"""
release: {description: Digest of the release that was asked for., type: str, returned: always, sample: 1f0c9a7be2d34c55}
restarted: {description: Why the service was started anew; null when it was not., type: str, returned: always}
elapsed: {description: Seconds from the start until the probes answered., type: float, returned: when it was started}
cause: {description: "Cause named in the journal, with its cure.", type: dict, returned: on failure}
journal: {description: Last lines of the service's journal., type: list, elements: str, returned: on failure}
rolled_back_to: {description: Release that serves again; null where there was none., type: str, returned: on failure}
rotation: {description: Whether the host was put back into rotation., type: str, returned: when hooks ran, sample: back}
"""


import re

from ..module_utils.engines import engine_states
from ..module_utils.quiet_module import QuietModule
from ..module_utils.release.probes import first_failure
from ..module_utils.release.probes import options as probe_options
from ..module_utils.release.service_release import Refused, Service, digest, digest_before
from ..module_utils.release.systemd_unit import SystemdError
from ..module_utils.unprivileged import group_of


def file_options(mode: str, secret: bool) -> dict:
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True, "no_log": secret},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": mode},
    }
    if not secret:
        options["live"] = {"type": "bool", "default": False}
    if secret:
        options["plain"] = {"type": "list", "elements": "str", "default": []}
        options["whole"] = {"type": "bool", "default": False}
    return {**options, "validate": {"type": "list", "elements": "str"}}


def listed(options: dict) -> dict:
    return {"type": "list", "elements": "dict", "default": [], "options": options}


ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "kind": {"type": "str"},
    "state": {"type": "str", "choices": ["prepared", "present", "absent", "previous", "out"], "default": "present"},
    "release": {"type": "str"},
    "purge": {"type": "bool", "default": False},
    "user": {"type": "str"},
    "groups": {"type": "list", "elements": "str", "default": []},
    "peers": {"type": "list", "elements": "str", "default": []},
    "home": {"type": "path", "default": "/nonexistent"},
    "directories": listed(
        {
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0755"},
            "keep": {"type": "bool", "default": False},
        }
    ),
    "files": listed(file_options("0644", secret=False)),
    "secrets": {**listed(file_options("0600", secret=True)), "no_log": False},
    "links": listed({"path": {"type": "path", "required": True}, "target": {"type": "path", "required": True}}),
    "beside": {"type": "list", "elements": "path", "default": []},
    "inputs": {"type": "dict", "default": {}},
    "unit": {"type": "dict", "default": {}},
    "limits": {
        "type": "dict",
        "options": {
            "oom_score_adjust": {"type": "int", "required": True},
            "memory_max": {"type": "str", "default": "infinity"},
        },
    },
    "trials": listed(
        {"script": {"type": "str", "required": True}, "argv": {"type": "list", "elements": "str", "required": True}}
    ),
    "listens": {"type": "list", "elements": "int", "default": []},
    "probes": listed(probe_options()),
    "before_start": listed(probe_options()),
    "start_timeout": {"type": "int", "default": 60},
    "take_out": {"type": "list", "elements": "str", "default": []},
    "put_back": {"type": "list", "elements": "str", "default": []},
    "phase": {
        "type": "str",
        "choices": ["apply", "ahead", "out", "in", "look", "back", "confirm"],
        "default": "apply",
    },
    "seconds": {"type": "float", "default": 5},
}


def wanted_release(service: Service, wanted: dict) -> dict:
    return service.build(
        wanted["files"],
        wanted["links"],
        wanted["unit"],
        wanted["secrets"],
        wanted["inputs"],
        wanted.get("groups") or (),
        wanted.get("peers") or (),
        wanted.get("limits"),
    )


def settle_groups(service: Service, wanted: dict) -> None:
    """Check the users and groups, and put a user's own group where one of them is named as a group."""
    entries = [*wanted["directories"], *wanted["files"], *wanted["secrets"]]
    for entry in entries:
        entry["group"] = group_of(entry["group"])
    if wanted["state"] in ("prepared", "present") and wanted["phase"] in ("apply", "ahead"):
        service.check_accounts(entries, wanted["user"], wanted["groups"])


def apply(service: Service, wanted: dict, check_mode: bool) -> dict:
    """Write and start what is wanted; the result says whether the start is still to be awaited."""
    files = [*wanted["files"], *wanted["secrets"]]
    release = wanted_release(service, wanted)
    name = digest(release)
    besides = service.check_unit(release, check_mode)
    reread = not check_mode and service.reread()
    new_user = service.missing_user(wanted["user"])
    directories = service.wrong_directories(wanted["directories"])
    differences = service.differences(release)
    restart = service.restart_reason(release, differences, digest_before(files, release))
    result = {
        "changed": bool(reread or new_user or directories or differences or restart or service.leftovers([release])),
        "release": name,
        "restarted": restart,
        "besides": besides,
        "diff": [shown(difference) for difference in differences],
    }
    if differences or restart:
        service.check_ports(wanted["listens"])
        service.check_memory(release["limits"])
        if not check_mode:
            prepare(service, wanted, new_user, directories)
        service.check(release, files, wanted["user"], check_mode)
        if restart and not check_mode:
            service.try_out(release, wanted["trials"])
    elif not check_mode:
        prepare(service, wanted, new_user, directories)
    if check_mode:
        return {**result, "await": False}
    state = service.state()
    if differences or restart:
        before = service.release(state["current"])
        service.put(release, {secret["path"]: secret["content"] for secret in wanted["secrets"]})
        if before:
            service.take_away(before, but=release)
        service.note(current=name)
    elif state["current"] != name:
        service.adopt(release)
    proof = {key: wanted[key] for key in ("probes", "before_start", "start_timeout")}
    service.store_proof(name, proof)
    result["out"] = state["out"]
    # What served last is the best there is: only something newer gives way to it.
    result["gives_way"] = not service.served_last()
    result["new_secrets"] = service.served_last() and name != state["verified"][-1]
    if restart:
        service.start(wanted["before_start"], regardless=not result["gives_way"])
        return {**result, "await": True}
    service.reload(release, differences)
    if name not in state["verified"] or first_failure(wanted["probes"]):
        service.watch()
        return {**result, "await": True}
    service.prune()
    return {**result, "await": False}


def prepare(service: Service, wanted: dict, new_user: bool, directories: list[dict]) -> None:
    if new_user:
        service.add_user(wanted["user"], wanted["home"])
    for entry in directories:
        service.put_directory(entry)
    service.need(wanted["user"], wanted["directories"])


def shown(difference: dict) -> dict:
    what = difference["what"]
    if difference["secret"]:
        return {"prepared": f"{what}: secret, its text is not shown\n"}
    return {
        "before_header": what,
        "after_header": what,
        "before": (difference["before"] or "").rstrip("\n") + "\n" if difference["before"] else "",
        "after": (difference["after"] or "").rstrip("\n") + "\n",
    }


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    wanted, service = module.params, Service(module.params["name"])
    service.beside = wanted["beside"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", wanted["name"]):
        module.fail_json(msg=f"name is {wanted['name']!r}; it must be a service's, such as vllm or ai-server")
    try:
        settle_groups(service, wanted)
        if wanted["state"] == "previous" and wanted["phase"] == "apply":
            service.earlier(wanted["release"])  # before a lock is left for a service that there is not
        if module.check_mode:
            result = dry_run(service, wanted)
        else:
            with service.lock():
                result = act(service, wanted)
    except (Refused, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    for addition in result.pop("besides", []):
        module.warn(f"{service.name}: {addition}; it is left as it is")
    module.exit_json(**result)


def dry_run(service: Service, wanted: dict) -> dict:
    if wanted["state"] == "out":
        return {"changed": not service.state()["out"]}
    if wanted["state"] == "absent":
        return {"changed": service.removable(wanted["purge"])}
    if wanted["state"] == "previous":
        return way_back(service, service.earlier(wanted["release"]))
    if wanted["state"] == "prepared":
        return {
            "changed": service.missing_user(wanted["user"]) or bool(service.wrong_directories(wanted["directories"]))
        }
    return apply(service, wanted, check_mode=True)


def act(service: Service, wanted: dict) -> dict:
    if wanted["phase"] == "apply" and wanted["state"] in ("present", "previous"):
        service.clean({secret["path"]: secret["plain"] for secret in wanted.get("secrets") or []})
    if wanted["phase"] == "ahead":
        foreseen = dry_run(service, wanted)
        interrupts = bool(service.state()["verified"]) and bool(foreseen.get("restarted", foreseen["changed"]))
        if interrupts and wanted["state"] == "present":
            service.try_out(wanted_release(service, wanted), wanted["trials"])
        return {"changed": False, "interrupts": interrupts}
    if wanted["phase"] in ("out", "in"):
        before, out = service.state(), wanted["phase"] == "out"
        if not before["current"]:
            raise Refused(f"{service.name} is not on this host, so nothing can be noted of it")
        service.note(out=out)
        return {"changed": before["out"] != out}
    if wanted["phase"] != "apply" and wanted["release"] != service.state()["current"]:
        raise Refused(f"{service.name}: another run changed this service meanwhile; run this one again")
    if wanted["phase"] == "look":
        questions = service.proof_of(wanted["release"])["probes"]
        return {"changed": False, **service.look(questions, wanted["seconds"], wanted["start_timeout"])}
    if wanted["phase"] == "confirm":
        service.confirm()
        return {"changed": False}
    if wanted["phase"] == "back":
        return give_way(service)
    if wanted["state"] == "absent":
        return {"changed": service.remove(wanted["purge"])}
    if wanted["state"] == "prepared":
        new_user, directories = service.missing_user(wanted["user"]), service.wrong_directories(wanted["directories"])
        prepare(service, wanted, new_user, directories)
        return {"changed": bool(new_user or directories)}
    if wanted["state"] == "previous":
        if service.name in engine_states.away():
            raise Refused(f"{service.name} is off because another engine of its group serves; switch to it first")
        way = way_back(service, service.earlier(wanted["release"]))
        service.check_unit(service.release(way["release"]), check_mode=False)
        return {
            **way,
            "release": service.back(way["release"]),
            "await": True,
            "gives_way": True,
            "out": service.state()["out"],
        }
    return apply(service, wanted, check_mode=False)


def way_back(service: Service, target: str) -> dict:
    """Return what going back to the release ``target`` changes."""
    release = service.renewed(service.release(target))
    diff = [shown(difference) for difference in service.differences(release)]
    return {"changed": True, "release": target, "restarted": f"back to release {target}", "diff": diff}


def give_way(service: Service) -> dict:
    """Keep the failed release for inspection and start the last verified one; without one, stop."""
    failed = service.state()["current"]
    service.note(failed=failed)
    if service.state()["verified"]:
        name = service.back()
        # The time given to the one that failed may be what is wrong with it.
        return {"changed": True, "rolled_back_to": name, "start_timeout": service.proof_of(name)["start_timeout"]}
    service.stop()
    return {"changed": True, "rolled_back_to": None}


if __name__ == "__main__":
    main()
