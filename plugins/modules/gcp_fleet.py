#!/usr/bin/python
"""Door to module_utils.cloud.gcp_fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gcp_fleet
short_description: Firewall rules and virtual machines of one Google Cloud project, exactly as declared
description:
  - Compares what is declared with what is there, field by field and both ways, so that a port, range, tag or label
    that was added by hand is found like one that was taken away.
  - Updates what can be changed in the state that a machine is in; returns the rest as RV(refused), with the cure.
  - Works on all machines side by side; a failure of one does not stop the others.
  - Everything made carries a mark with the fleet's name in its description. Only what carries it is deleted, and what
    carries it without being declared is told by every run.
  - Authenticates with E(GCP_ACCESS_TOKEN) where it is set, else with O(service_account_file), else with application
    default credentials. E(HTTPS_PROXY) and E(REQUESTS_CA_BUNDLE) are honoured.
author: The llm-server maintainers (@llm-server)
requirements: [google-auth, requests, PyYAML]
options:
  state:
    description:
      - V(checked) asks all that must be right before anything is made (credentials, project, accelerator in the zone,
        image family, quota, permissions) and estimates what the machines cost; it changes nothing.
      - V(present) creates and updates rules and machines, and starts a machine that is stopped.
      - V(saved) takes a snapshot of the machines' boot disks.
      - V(started) and V(stopped) start and stop machines; labels, tags and disk stay.
      - V(absent) deletes the machines in O(names) with their boot disks, then the rules that no other machine uses.
        What is gone already, or on its way out, is no error. Further disks stay.
    type: str
    choices: [checked, present, started, stopped, saved, absent]
    default: present
  project: {description: ID of the project., type: str, required: true}
  service_account_file: {description: Key file of a service account., type: path}
  fleet:
    description:
      - Name that the mark carries. Two inventories that share a project need one each.
    type: str
    default: llm-server
  dns_zone:
    description:
      - Managed zone of Cloud DNS in which the name of each machine leads to its external address, or to the internal
        one where it has none. A record that was not made here is left alone.
    type: str
    default: ""
  adopt:
    description:
      - Names of rules and machines that are taken over though they do not carry the mark. A rule gets the mark; a
        machine keeps its description, so it stays in this list, and is never deleted.
    type: list
    elements: str
    default: []
  egress:
    description: How machines without an external address reach the network; Cloud NAT is looked for before one is made.
    type: str
    choices: [nat, other]
    default: nat
  delete_undeclared:
    description:
      - Names of rules, machines, disks, addresses, schedules and snapshots that carry the mark, are no longer declared
        and are to be deleted.
    type: list
    elements: str
    default: []
  snapshot_before:
    description: Take a snapshot of a machine's boot disk before it is deleted.
    type: bool
    default: false
  keep_boot_disk: {description: Keep the boot disks of machines that are deleted., type: bool, default: false}
  release_addresses:
    description: Give the reserved addresses of machines that are deleted back.
    type: bool
    default: false
  delete_disks:
    description: Names of further disks of machines that are deleted which go with them.
    type: list
    elements: str
    default: []
  rules:
    description: Firewall rules (ingress, allow, TCP).
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the rule., type: str, required: true}
      ports: {description: TCP ports that it opens., type: list, elements: int, required: true}
      source_ranges: {description: Networks that may reach them (CIDR)., type: list, elements: str, default: []}
      target_tags: {description: Network tags of the machines., type: list, elements: str, required: true}
      network: {description: Network of the project., type: str, default: default}
      priority: {description: "Priority, 0 is first.", type: int, default: 1000}
      state: {description: Whether the rule is to be there., type: str, choices: [present, absent], default: present}
  open_to_world:
    description: Allow source ranges that are the whole Internet (C(0.0.0.0/0), any network wider than C(/8)).
    type: bool
    default: false
  open_to_world_ports:
    description: Ports that such a range opens; the others of its rule stay closed to it.
    type: list
    elements: int
    default: []
  machines:
    description: The machines.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the machine., type: str, required: true}
      zones:
        description: Zones to make it in; a further one is tried when those before have no capacity.
        type: list
        elements: str
        required: true
      machine_type: {description: Machine type., type: str, required: true}
      accelerator:
        description: GPU of the machine.
        type: dict
        required: true
        suboptions:
          type: {description: Accelerator type., type: str, required: true}
          count: {description: "How many, 0 for none.", type: int, required: true}
      image:
        description: Image of the boot disk.
        type: dict
        required: true
        suboptions:
          project: {description: Project of the image., type: str, required: true}
          family: {description: Image family., type: str, required: true}
      disk:
        description: Boot disk.
        type: dict
        required: true
        suboptions:
          size_gb: {description: Size (GB)., type: int, required: true}
          type: {description: Disk type., type: str, required: true}
          labels: {description: Labels; those that are there are left alone when left out., type: dict}
          auto_delete: {description: Whether it goes with the machine., type: bool, default: true}
      network: {description: Network of the project., type: str, default: default}
      subnetwork: {description: Subnetwork in the zone's region; the network's own when left out., type: str}
      nic_type:
        description: Network interface; V(auto) is Google's choice.
        type: str
        choices: [auto, GVNIC, VIRTIO_NET]
        default: auto
      snapshot:
        description:
          - Snapshot of the project that the boot disk is made from instead of the image. It counts when the machine is
            made, in whichever zone, and not afterwards.
        type: str
      hours:
        description:
          - When the machine is started and stopped, by Google and whatever the controller does. The project's Compute
            Engine service agent needs the role Compute Instance Admin (v1) for it.
        type: dict
        suboptions:
          start: {description: Five fields of cron., type: str, default: ""}
          stop: {description: Five fields of cron., type: str, default: ""}
          time_zone: {description: Time zone of both., type: str, default: UTC}
      snapshots:
        description: Schedule of the boot disk's snapshots, which outlive the disk.
        type: dict
        suboptions:
          at: {description: "Time in UTC, one of 00:00 04:00 08:00 12:00 16:00 20:00.", type: str, default: "20:00"}
          every_days: {description: Days from one to the next., type: int, default: 1}
          keep_days: {description: Days that each is kept., type: int, default: 14}
      max_run_hours:
        description: Hours after each start at which Google stops the machine, at most 2880; 0 for no limit.
        type: int
        default: 0
      external_address: {description: Whether it gets an external address., type: bool, default: true}
      reserved_address:
        description:
          - Reserve the external address, under the machine's name, so that it stays over stop and start. One that the
            machine has already is kept.
        type: bool
        default: false
      service_account:
        description: Service account that programs on the machine act as, and for what; none when left out.
        type: dict
        suboptions:
          email: {description: Its whole address., type: str, required: true}
          scopes: {description: Access scopes (whole addresses)., type: list, elements: str, required: true}
      deletion_protection: {description: Refuse to delete the machine., type: bool, default: false}
      shielded:
        description: Shielded VM. Secure boot loads signed kernel modules only, so NVIDIA's driver must be signed.
        type: dict
        suboptions:
          secure_boot: {description: Load signed boot code and modules only., type: bool, default: false}
          vtpm: {description: Virtual trusted platform module., type: bool, default: true}
          integrity_monitoring: {description: Compare each boot with the first., type: bool, default: true}
      spot: {description: Make it a spot machine (may be stopped by Google at any time)., type: bool, default: false}
      maintenance_policy:
        description: What happens at host maintenance; with a GPU only V(TERMINATE) is possible.
        type: str
        choices: [TERMINATE, MIGRATE]
        default: TERMINATE
      automatic_restart: {description: Restart after a failure of the host., type: bool, default: true}
      tags: {description: Network tags., type: list, elements: str, default: []}
      labels: {description: Labels., type: dict, default: {}}
      metadata: {description: Metadata keys to have; others are left alone., type: dict, default: {}}
  names: {description: Only these machines., type: list, elements: str, default: []}
  limit: {description: What was given to C(--limit); names and patterns of machines., type: str, default: ""}
  limit_hosts: {description: Hosts of the inventory that it matched., type: list, elements: str, default: []}
  prices: {description: Price table (see C(data/gcp/prices.yml))., type: dict, default: {}}
  unfit_images:
    description: Image projects that do not fit a machine series (see C(data/gcp/images.yml)).
    type: list
    elements: dict
    default: []
  accelerators:
    description: Machine series and numbers of each accelerator (see C(data/gcp/accelerators.yml)).
    type: dict
    default: {}
  tries: {description: How often a request is sent while the answer is 409 429 or 5xx., type: int, default: 6}
  retry_pause: {description: Seconds before the second try; doubled for each further one., type: float, default: 1.0}
  operation_timeout: {description: Seconds to wait for one operation., type: int, default: 900}
attributes:
  check_mode: {description: Reads everything and changes nothing; the diff is what a run would do., support: full}
  diff_mode: {description: Shows every changed field of every rule and machine., support: full}
"""

EXAMPLES = r"""
- name: Make both rules and the machine
  llm.server.gcp_fleet:
    project: my-project
    rules:
      - name: allow-ai-server-ports
        ports: [8000, 8001]
        target_tags: [ai-server]
        source_ranges: [203.0.113.0/24]
    machines:
      - name: llm-1
        zones: [asia-northeast3-a, asia-northeast3-b]
        machine_type: g2-standard-4
        accelerator: {type: nvidia-l4, count: 1}
        image:
          project: ubuntu-os-accelerator-images
          family: ubuntu-accelerator-2204-amd64-with-nvidia-580
        disk: {size_gb: 200, type: pd-ssd}
        tags: [ai-server]
"""

RETURN = r"""
changes:
  description: What was done (in check mode would be), a sentence each.
  returned: always
  type: list
  elements: str
  sample: [make rule allow-ai-server-ports, make llm-1 in asia-northeast3-a]
machines:
  description: The machines as they are now.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: Name., type: str, sample: llm-1}
    zone: {description: Zone it is in., type: str, sample: asia-northeast3-a}
    status: {description: "Status that the API tells, or C(absent).", type: str, sample: RUNNING}
    address: {description: External address; null without one or while stopped., type: str, sample: 203.0.113.7}
    internal_address: {description: Address in its network., type: str, sample: 10.178.0.2}
    changes: {description: What was done to it., type: list, elements: str}
    refused: {description: "What is not as declared and was not updated, with the cure.", type: list, elements: str}
    tried: {description: Zones without capacity that were tried before., type: list, elements: dict}
refused:
  description:
    - What is not as declared and cannot be updated in the state that its machine is in, with the cure. The rest
      is updated and the module does not fail, so that its diff is seen; the caller decides what becomes of these.
  returned: always
  type: list
  elements: str
report:
  description: The same in sentences for people; costs, machines, remarks.
  returned: always
  type: list
  elements: str
  sample: [llm-1 in asia-northeast3-a is RUNNING at 203.0.113.7 (internal 10.178.0.2).]
remarks:
  description: What is worth knowing and no failure.
  returned: always
  type: list
  elements: str
estimates:
  description: Estimated cost per hour while running and while stopped, in the currency of the price table.
  returned: with state checked
  type: list
  elements: dict
  sample: [{name: llm-1, running: 0.9728, stopped: 0.0605, currency: USD, missing: ""}]
to_start:
  description: Names of the machines that O(state=present) would make or start.
  returned: with state checked
  type: list
  elements: str
problems:
  description: All that is wrong, a sentence each; with the API's reason where it is the API that refuses.
  returned: when something is wrong
  type: list
  elements: str
"""

import traceback

from ansible.module_utils.basic import missing_required_lib

from ..module_utils.cloud.gcp_declared import RULE, Change, cost_sentences
from ..module_utils.host_module import HostModule

try:
    import yaml

    from ..module_utils.cloud.gcp_client import GcpError, unexpected_answer
    from ..module_utils.cloud.gcp_fleet import Fleet, Result

    MISSING = None
except ImportError:
    MISSING = traceback.format_exc()


def strings(**names: bool) -> dict[str, dict]:
    """Return the argument specs of texts; the value says whether one is required."""
    return {name: {"type": "str", "required": required} for name, required in names.items()}


MACHINE = {
    **strings(name=True, machine_type=True, subnetwork=False),
    "zones": {"type": "list", "elements": "str", "required": True},
    "accelerator": {
        "type": "dict",
        "required": True,
        "options": {**strings(type=True), "count": {"type": "int", "required": True}},
    },
    "image": {"type": "dict", "required": True, "options": strings(project=True, family=True)},
    "disk": {
        "type": "dict",
        "required": True,
        "options": {
            "size_gb": {"type": "int", "required": True},
            **strings(type=True),
            "labels": {"type": "dict"},
            "auto_delete": {"type": "bool", "default": True},
        },
    },
    "network": {"type": "str", "default": "default"},
    "nic_type": {"type": "str", "choices": ["auto", "GVNIC", "VIRTIO_NET"], "default": "auto"},
    "snapshot": {"type": "str"},
    "hours": {
        "type": "dict",
        "options": {
            "start": {"type": "str", "default": ""},
            "stop": {"type": "str", "default": ""},
            "time_zone": {"type": "str", "default": "UTC"},
        },
    },
    "snapshots": {
        "type": "dict",
        "options": {
            "at": {"type": "str", "default": "20:00"},
            "every_days": {"type": "int", "default": 1},
            "keep_days": {"type": "int", "default": 14},
        },
    },
    "max_run_hours": {"type": "int", "default": 0},
    "external_address": {"type": "bool", "default": True},
    "reserved_address": {"type": "bool", "default": False},
    "service_account": {
        "type": "dict",
        "options": {**strings(email=True), "scopes": {"type": "list", "elements": "str", "required": True}},
    },
    "deletion_protection": {"type": "bool", "default": False},
    "shielded": {
        "type": "dict",
        "apply_defaults": True,
        "options": {
            "secure_boot": {"type": "bool", "default": False},
            "vtpm": {"type": "bool", "default": True},
            "integrity_monitoring": {"type": "bool", "default": True},
        },
    },
    "spot": {"type": "bool", "default": False},
    "maintenance_policy": {"type": "str", "choices": ["TERMINATE", "MIGRATE"], "default": "TERMINATE"},
    "automatic_restart": {"type": "bool", "default": True},
    "tags": {"type": "list", "elements": "str", "default": []},
    "labels": {"type": "dict", "default": {}},
    "metadata": {"type": "dict", "default": {}},
}

ARGUMENTS = {
    "state": {
        "type": "str",
        "choices": ["checked", "present", "started", "stopped", "saved", "absent"],
        "default": "present",
    },
    "project": {"type": "str", "required": True},
    "service_account_file": {"type": "path"},
    "fleet": {"type": "str", "default": "llm-server"},
    "dns_zone": {"type": "str", "default": ""},
    "adopt": {"type": "list", "elements": "str", "default": []},
    "egress": {"type": "str", "choices": ["nat", "other"], "default": "nat"},
    "delete_undeclared": {"type": "list", "elements": "str", "default": []},
    "snapshot_before": {"type": "bool", "default": False},
    "keep_boot_disk": {"type": "bool", "default": False},
    "release_addresses": {"type": "bool", "default": False},
    "delete_disks": {"type": "list", "elements": "str", "default": []},
    "rules": {"type": "list", "elements": "dict", "options": RULE, "default": []},
    "open_to_world": {"type": "bool", "default": False},
    "open_to_world_ports": {"type": "list", "elements": "int", "default": []},
    "machines": {"type": "list", "elements": "dict", "options": MACHINE, "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "str", "default": ""},
    "limit_hosts": {"type": "list", "elements": "str", "default": []},
    "prices": {"type": "dict", "default": {}},
    "accelerators": {"type": "dict", "default": {}},
    "unfit_images": {"type": "list", "elements": "dict", "default": []},
    "tries": {"type": "int", "default": 6},
    "retry_pause": {"type": "float", "default": 1.0},
    "operation_timeout": {"type": "int", "default": 900},
}


def main() -> None:
    """Bring the fleet to the state, and exit with all changes and problems."""
    module = HostModule(
        ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "absent", ("names",))],
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("google-auth, requests and PyYAML"), exception=MISSING)
    fleet = Fleet(module.params, check_mode=module.check_mode)
    state = module.params["state"]
    estimates: list[dict] = []
    to_start: list[dict] = []
    machines: list[Result] = []
    problems: list[str] = []
    trace: str | None = None
    try:
        if state == "checked":
            problems, estimates, to_start = fleet.checked()
        else:
            problems = fleet.declaration_problems()
            if not problems:
                machines, problems = getattr(fleet, state)()
    except GcpError as error:
        problems = [*problems, str(error)]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        # The parameters are validated, so only an answer of the API can have an unknown form.
        trace = traceback.format_exc()
        problems = [*problems, f"{unexpected_answer('The Compute API')} ({type(error).__name__}: {error})"]
    remarks = list(dict.fromkeys(fleet.remarks))
    prices = module.params["prices"]
    costs = cost_sentences(estimates, prices.get("hours_per_month", 730), prices.get("as_of", ""))
    result: dict = {
        "changed": bool(fleet.changes),
        "changes": [change.what for change in fleet.changes],
        "machines": [one.as_dict() for one in machines],
        "estimates": estimates,
        "to_start": [one["name"] for one in to_start],
        "report": [*costs, *(one.sentence() for one in machines), *remarks],
        "remarks": remarks,
        "refused": fleet.refused,
        "diff": [shown(change) for change in fleet.changes],
    }
    if problems:
        done = [f"Done before: {'; '.join(result['changes'])}."] if result["changes"] and not module.check_mode else []
        exception = {"exception": trace} if trace else {}
        module.fail_json(msg="\n".join([*problems, *done]), problems=problems, **exception, **result)
    module.exit_json(**result)


def shown(change: Change) -> dict[str, str]:
    """Return a change in the form of Ansible's diff."""
    before, after = change.only_differing()
    return {
        "before_header": change.what,
        "after_header": change.what,
        "before": "" if before is None else yaml.safe_dump(before, sort_keys=False),
        "after": "" if after is None else yaml.safe_dump(after, sort_keys=False),
    }


if __name__ == "__main__":
    main()
