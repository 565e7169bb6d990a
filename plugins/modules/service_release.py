#!/usr/bin/python
"""Thin module over module_utils.release.service_release; the action plugin of the same name calls it in phases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_release
short_description: Deploy a release of a systemd service, and roll back if it does not serve
description:
  - Writes the files, links and unit of a service after each has been checked. Restarts the service only if the running
    process differs from the release on disk. The process carries the digest of its release in its environment, so the
    next run completes an interrupted one.
  - Stored releases have no secrets. A rollback, by a user or after a failed start, restores the earlier release with
    the current secrets.
  - Changes that others made to the unit are checked too. A mask, a link or a drop-in that changes what the unit says is
    refused; a drop-in that only adds something, such as a limit, is a warning.
  - Waits until the probes answer. If they do not, the last verified release is put back and started, and the task
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
      - What runs in the service, such as V(vllm) or V(llama_cpp), if the name does not say it. The cause of a failure
        is looked for among the causes of this kind.
    type: str
  state:
    description:
      - V(prepared) creates the user and the directories that must exist before the release can be described.
      - V(present) writes, starts and verifies the release; V(absent) removes the service but keeps the directories
        marked O(directories[].keep); V(previous) goes back to an earlier verified release.
      - V(out) takes the host out of rotation by O(take_out) and leaves the service as it is. The next successful run
        puts the host back. If the host is unreachable, the command runs anyway, and nothing is recorded.
    type: str
    choices: [prepared, present, absent, previous, out]
    default: present
  release:
    description:
      - With O(state=previous), the release to go back to; by default the last verified one.
      - In the other phases of the action plugin, the release that the phase is about.
    type: str
  purge:
    description: With O(state=absent), remove kept directories and the user too.
    type: bool
    default: false
  user:
    description:
      - System user of the service, created if it is missing. An existing user is used unchanged.
      - In an option that takes a group, the name of a user means that user's own group, whatever it is called.
    type: str
  groups:
    description:
      - Groups that the process joins in addition to its user's own. The role's variable C(<name>_groups) sets them. A
        group that the host does not have is refused.
    type: list
    elements: str
    default: []
  peers:
    description:
      - Addresses, networks or C(localhost), the only peers with which the service may exchange packets. systemd drops
        all other packets, whatever the process listens on. An empty list means no filter.
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
    description: Files that the service depends on at its start.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      content: {description: Its full text., type: str, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0644"}
      validate:
        description: Command that checks the file before it replaces the old one; C(%s) stands for the staged file.
        type: list
        elements: str
      live:
        description:
          - The process reads the file again while it runs, through the unit's C(ExecReload) if it has one. Changing,
            adding or removing such a file restarts nothing, and a rollback keeps the current one.
        type: bool
        default: false
  secrets:
    description:
      - Files like O(files), with lines C(NAME=value), whose text appears in no result, diff or log. A release stores
        keyed digests of the values instead of the values. So another value makes another release, and a release that is
        restored gets the current values.
      - A file that a later release no longer has stays until no kept release needs it.
      - With O(secrets[].whole) the text has no names, such as a file that contains only one password.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      content: {description: Its full text., type: str, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0600"}
      validate:
        description: Like O(files[].validate); the program must not print what it reads.
        type: list
        elements: str
      plain:
        description: Names in the file that are not secrets; a release stores their values and restores them.
        type: list
        elements: str
        default: []
      whole: {description: Whether the full text is one secret., type: bool, default: false}
  links:
    description: Links that change with the release, such as the one that selects the program's version.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The link., type: path, required: true}
      target:
        description: Directory that the link points to. It is removed when no kept release points to it any more.
        type: path
        required: true
  beside:
    description:
      - Programs and environments that this run built for other services, which are started after this one. They are
        kept although no release refers to them yet.
    type: list
    elements: path
    default: []
  inputs:
    description:
      - Named values that the process depends on and that are in none of its files, such as the digest of data that it
        reads when it starts. Another value makes another release and restarts the service.
    type: dict
    default: {}
  unit:
    description: >-
      Sections of the unit as C({section: {directive: value}}), merged over the project's hardened defaults. A list
      repeats the directive; null removes a default. Values are literal: C(%) does not start a specifier.
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
      - Scripts that must succeed before a release is written. They run in the unit's sandbox, as its user and with its
        variables but without its files of variables. They run only if the service is about to be restarted, and not in
        check mode. The last line that a script prints is the reason of a refusal.
    type: list
    elements: dict
    default: []
    suboptions:
      script: {description: Text of the script., type: str, required: true}
      argv:
        description: Command that runs the script; C(%s) stands for the file with the script.
        type: list
        elements: str
        required: true
  listens:
    description: TCP ports that must be free, or in use by this service, before anything is written.
    type: list
    elements: int
    default: []
  probes:
    description:
      - What must answer, in this order, before the release counts as serving. Each entry is one probe of one kind.
      - C(bearer_file) and C(bearer_variable) name the API key that a probe sends. It is one of the lines C(NAME=value)
        of a file of O(secrets) and is read when the probe runs. So is the password of C(user), named by
        C(password_file), a file with O(secrets[].whole).
    type: list
    elements: dict
    default: []
    suboptions: &probes
      http:
        description: The URL answers.
        type: dict
        suboptions:
          url: &url {description: Address of the request., type: str, required: true}
          bearer_file: &file {description: File with the API key., type: path}
          bearer_variable: &variable {description: Name of the key in that file., type: str}
          timeout: &timeout {description: Seconds to wait for the answer; 5 by default., type: float}
          status: {description: Expected status of the answer; 200 by default., type: int}
          contains: {description: Text that the answer must contain., type: str}
          user: {description: User who logs in., type: str}
          password_file: {description: File that contains only the password., type: path}
      metric:
        description: The URL is a page of Prometheus metrics.
        type: dict
        suboptions:
          url: *url
          timeout: *timeout
          series: {description: Names of series that it must have., type: list, elements: str, required: true}
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
          max_model_len: {description: Context length of the base model in tokens., type: int}
      completion:
        description: An engine completes a prompt.
        type: dict
        suboptions:
          url: *url
          bearer_file: *file
          bearer_variable: *variable
          timeout: {description: Seconds to wait for the answer; 60 by default., type: float}
          model: {description: Name of the model., type: str, required: true}
          prompt: {description: The prompt; Hello by default., type: str}
          max_tokens: {description: Maximum length of the answer in tokens; 8 by default., type: int}
      gpu_free:
        description: GPUs have free memory.
        type: dict
        suboptions:
          mib: {description: Free memory that each GPU must have (MiB)., type: int, required: true}
          gpus: {description: "Number of GPUs, counted from the first; 1 by default.", type: int}
          timeout: {description: Seconds to wait for nvidia-smi., type: float}
  before_start:
    description:
      - Probes that must succeed after the old process has stopped and before the new one starts, such as C(gpu_free).
        If one does not succeed within a minute, nothing is started, and the release before is restored.
    type: list
    elements: dict
    default: []
    suboptions: *probes
  start_timeout:
    description: Seconds until the probes must have answered. It only limits the wait; changing it restarts nothing.
    type: int
    default: 60
  take_out:
    description:
      - Command that takes this host out of rotation. It runs on the controller, after all checks and before a serving
        service is interrupted. If it fails, the service is not touched.
    type: list
    elements: str
    default: []
  put_back:
    description:
      - Command that puts this host back into rotation. It runs on the controller once the service serves again, also
        after a rollback, and only if the host was taken out. The next run makes up for an interrupted one.
    type: list
    elements: str
    default: []
  phase:
    description: Step of the action plugin; not for playbooks.
    type: str
    choices: [apply, ahead, out, in, look, back, confirm]
    default: apply
  seconds:
    description: With O(phase=look), how many seconds to watch before the module returns.
    type: float
    default: 5
attributes:
  check_mode: {description: Runs the checks and shows the differences; writes and starts nothing., support: full}
  diff_mode: {description: "Shows files and the unit; of secrets, only that they changed.", support: full}
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
release: {description: Digest of the requested release., type: str, returned: always, sample: 1f0c9a7be2d34c55}
restarted: {description: Why the service was restarted; null if it was not., type: str, returned: always}
elapsed: {description: Seconds from the start until the probes answered., type: float, returned: when it was started}
cause: {description: "Cause found in the journal, with its cure.", type: dict, returned: on failure}
journal: {description: Last lines of the service's journal., type: list, elements: str, returned: on failure}
rolled_back_to: {description: Release that serves again; null if there was none., type: str, returned: on failure}
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
    """Check the users and groups, and replace a user that is named as a group by the user's own group."""
    entries = [*wanted["directories"], *wanted["files"], *wanted["secrets"]]
    for entry in entries:
        entry["group"] = group_of(entry["group"])
    if wanted["state"] in ("prepared", "present") and wanted["phase"] in ("apply", "ahead"):
        service.check_accounts(entries, wanted["user"], wanted["groups"])


def apply(service: Service, wanted: dict, check_mode: bool) -> dict:
    """Write and start the wanted release; ``await`` in the result says whether to wait for the start."""
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
    # The release that served last is the best known one: only a newer one may be rolled back.
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
            service.earlier(wanted["release"])  # before a lock is left behind for a service that does not exist
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
    """Return the changes of going back to the release ``target``."""
    release = service.renewed(service.release(target))
    diff = [shown(difference) for difference in service.differences(release)]
    return {"changed": True, "release": target, "restarted": f"back to release {target}", "diff": diff}


def give_way(service: Service) -> dict:
    """Keep the failed release for inspection and start the last verified one; if there is none, stop the service."""
    failed = service.state()["current"]
    service.note(failed=failed)
    if service.state()["verified"]:
        name = service.back()
        # The start_timeout of the failed release may be what is wrong with it.
        return {"changed": True, "rolled_back_to": name, "start_timeout": service.proof_of(name)["start_timeout"]}
    service.stop()
    return {"changed": True, "rolled_back_to": None}


if __name__ == "__main__":
    main()
