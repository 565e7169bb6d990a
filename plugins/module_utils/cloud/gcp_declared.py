"""Check what is declared for Google Cloud, convert it to the API's resources, and compare it with the existing ones.

Plain Python without requests: dictionaries in, dictionaries and sentences out. A rule and a machine are the
dictionaries that the module gcp_fleet documents. Resources (Instance, Disk, Firewall …) are those of the API; source:
https://cloud.google.com/compute/docs/reference/rest/v1.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

URL = "https://www.googleapis.com/compute/v1/"
# The description of every resource that is made here, followed by the name of the fleet: only these are deleted again.
# Releases before fleets had names wrote it alone. The playbook's old name stays in it: it is on existing machines.
MARK = "Made by llm-server, playbooks/provision.yml"
FLEET = ", fleet "

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
SCOPE = "https://www.googleapis.com/auth/"
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")

# Argument spec of a rule, for the module and the inventory alike.
RULE = {
    "name": {"type": "str", "required": True},
    "ports": {"type": "list", "elements": "int", "required": True},
    "source_ranges": {"type": "list", "elements": "str", "default": []},
    "target_tags": {"type": "list", "elements": "str", "required": True},
    "network": {"type": "str", "default": "default"},
    "priority": {"type": "int", "default": 1000},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

MAX_RUN_HOURS = 120 * 24  # the API's own limit
LIVE, STOPPED, NEW = "live", "stopped", "new"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class Difference:
    """One field of a machine that differs from its declaration.

    `cure`: LIVE (changes at any time), STOPPED (changes on a stopped machine) or NEW (needs a new machine).
    """

    field: str
    actual: object
    declared: object
    cure: str


class Change:
    """One change, made or planned: a sentence, and the fields before and after it (None: no resource)."""

    def __init__(self, what: str, before: dict | None, after: dict | None) -> None:
        self.what = what
        self.before = before
        self.after = after

    def only_differing(self) -> tuple[dict | None, dict | None]:
        """Return (before, after) with the fields that differ; of a new or deleted resource, those that are set."""
        if self.before is None or self.after is None:
            return _set_fields(self.before), _set_fields(self.after)
        keys = [key for key in {**self.before, **self.after} if self.before.get(key) != self.after.get(key)]
        before, after = ({key: side[key] for key in keys if key in side} for side in (self.before, self.after))
        return before, after


def _set_fields(fields: dict | None) -> dict | None:
    return fields and {key: value for key, value in fields.items() if value}


def region_of(zone: str) -> str:
    """Return the region of a zone: asia-northeast3 of asia-northeast3-a."""
    return zone.rsplit("-", 1)[0]


def last(url: str | None) -> str:
    """Return the name at the end of a full or partial URL; "" where there is none."""
    return (url or "").rsplit("/", 1)[-1]


def tail(url: str | None, project: str) -> str:
    """Return a resource URL from "projects/" on, so that full and partial forms compare equal."""
    url = re.sub(r"^https?://[^/]+/compute/[^/]+/", "", url or "")
    return url if not url or url.startswith("projects/") else f"projects/{project}/{url.lstrip('/')}"


# --- ownership --------------------------------------------------------------------------------------------------


def mark(fleet: str) -> str:
    """Return the description of the resources that are made for this fleet."""
    return f"{MARK}{FLEET}{fleet}"


def made_by(resource: dict, fleet: str) -> bool:
    """Return whether a resource has the fleet's mark, or that of a release before fleets had names."""
    return resource.get("description") in (MARK, mark(fleet))


def origin(resource: dict) -> str:
    """Return how a resource that is not this fleet's was made, for a sentence that begins with its name."""
    text = str(resource.get("description") or "")
    if text.startswith(MARK + FLEET):
        return f"was made by another fleet ('{text.removeprefix(MARK + FLEET)}')"
    return "was not made by playbooks/gcp_provision.yml"


def limited(names: Iterable[str], limit: str | None, matched: Collection[str]) -> list[str]:
    """Return the names that ansible's --limit selects.

    `limit`: the value of --limit, `matched`: the hosts of the inventory that it matched. A machine that does not exist
    yet is in no inventory, so the patterns are matched against its name. Without patterns, or with localhost alone,
    all names are selected.
    """
    patterns = [one for one in re.split(r"[,:\s]+", limit or "") if one]
    wanted = [one for one in patterns if one[0] not in "!&" and one not in ("localhost", "127.0.0.1")]
    if not wanted and not any(one[0] in "!&" for one in patterns):
        return list(names)
    excluded = [one[1:] for one in patterns if one[0] == "!"]
    wanted = ["*" if one == "all" else one for one in wanted] or ["*"]

    def selected(name: str) -> bool:
        if name in matched:
            return True
        if any(one[0] == "&" for one in patterns) or any(fnmatch.fnmatchcase(name, one) for one in excluded):
            return False
        return any(fnmatch.fnmatchcase(name, one) for one in wanted)

    return [name for name in names if selected(name)]


# --- checks of the declarations ---------------------------------------------------------------------------------


def machine_problems(machines: list[dict], accelerators: dict | None = None) -> list[str]:
    """Return a sentence for each invalid value of the declared machines.

    `accelerators`: the series and counts that each GPU can be attached in (data/gcp/accelerators.yml).
    """
    problems = name_problems("gcp_machines", machines)
    if not machines:
        problems.append("gcp_machines is empty: name at least one machine.")
    for machine in machines:
        who = f"gcp_machines: {machine['name']}"
        named = {
            "machine_type": machine["machine_type"],
            "accelerator.type": machine["accelerator"]["type"],
            "disk.type": machine["disk"]["type"],
            "network": machine["network"],
            "subnetwork": machine["subnetwork"] or "default",
        }
        for field, value in named.items():
            if not NAME.fullmatch(value):
                problems.append(f"{who}: {field} '{value}' must be the name alone, in lower-case letters.")
        if not machine["zones"]:
            problems.append(f"{who}: zones is empty: name at least one, such as asia-northeast3-a.")
        for zone in machine["zones"]:
            if not ZONE.fullmatch(zone):
                problems.append(f"{who}: '{zone}' is no zone: write it like asia-northeast3-a.")
        problems += account_problems(who, machine["service_account"])
        for tag in machine["tags"]:
            if not NAME.fullmatch(tag):
                problems.append(f"{who}: the tag '{tag}' must be lower-case letters, digits and hyphens.")
        for key, value in machine["labels"].items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(str(value)):
                problems.append(
                    f"{who}: the label {key}={value} must be lower-case letters, digits, '-' and '_' (63 at most)."
                )
        if machine["snapshot"] and not NAME.fullmatch(machine["snapshot"]):
            problems.append(f"{who}: snapshot '{machine['snapshot']}' must be the name alone, in lower-case letters.")
        if not 0 <= machine["max_run_hours"] <= MAX_RUN_HOURS:
            problems.append(
                f"{who}: max_run_hours {machine['max_run_hours']} must be between 1 and {MAX_RUN_HOURS} (120 days), or "
                "0 for no limit."
            )
        if machine["reserved_address"] and not machine["external_address"]:
            problems.append(f"{who}: reserved_address needs external_address: true.")
        if machine["spot"] and machine["maintenance_policy"] != "TERMINATE":
            problems.append(f"{who}: a spot machine needs maintenance_policy TERMINATE.")
        if machine["accelerator"]["count"] and machine["maintenance_policy"] != "TERMINATE":
            problems.append(f"{who}: a machine with a GPU cannot migrate: set maintenance_policy to TERMINATE.")
        problems += accelerator_problems(who, machine, accelerators or {})
    return problems


def account_problems(who: str, account: dict | None) -> list[str]:
    """Return a sentence for each invalid value of a machine's service account."""
    if account is None:
        return []
    problems = []
    if not EMAIL.fullmatch(account["email"]):
        problems.append(
            f"{who}: service_account.email '{account['email']}' must be the whole address, such as "
            "NAME@PROJECT.iam.gserviceaccount.com."
        )
    if not account["scopes"]:
        problems.append(f"{who}: service_account.scopes is empty: name what the account may be used for.")
    problems += [
        f"{who}: the scope '{scope}' must be a whole address, such as {SCOPE}logging.write."
        for scope in account["scopes"]
        if not scope.startswith(SCOPE)
    ]
    return problems


def accelerator_problems(who: str, machine: dict, accelerators: dict) -> list[str]:
    """Return a sentence where the machine's series cannot have the GPU, or not in that count."""
    gpu = machine["accelerator"]
    if gpu["count"] < 0:
        return [f"{who}: accelerator.count {gpu['count']} must be 0 for none, or more."]
    known = accelerators.get(gpu["type"])
    if not gpu["count"] or not known:
        return []
    problems, series = [], machine["machine_type"].split("-")[0]
    if series not in known["with"]:
        problems.append(
            f"{who}: {machine['machine_type']} cannot have {gpu['type']}: it goes with machine types of the series "
            f"{listed(known['with'])}: set machine_type or accelerator."
        )
    elif gpu["count"] not in known["counts"]:
        problems.append(
            f"{who}: {gpu['count']} {gpu['type']} asked for: a machine can have {listed(known['counts'])}: set "
            "accelerator.count."
        )
    return problems


def name_problems(variable: str, declared: list[dict]) -> list[str]:
    """Return a sentence for each name of a list that is invalid or used twice."""
    names = [one["name"] for one in declared]
    problems = [
        f"{variable} names '{name}' more than once: give each a name of its own."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    return problems + [
        f"{variable}: {name}: the name must be 1-63 lower-case letters, digits and hyphens, a letter first."
        for name in names
        if not NAME.fullmatch(name)
    ]


def rule_problems(rules: list[dict]) -> list[str]:
    """Return a sentence for each invalid value of the declared rules; `read_ranges` checks their ranges."""
    problems = name_problems("gcp_firewall_rules", rules)
    for rule in rules:
        who = f"rule {rule['name']}"
        if rule["state"] == "present" and not rule["ports"]:
            problems.append(f"{who}: it opens no port: name one, or set its state to absent.")
        if not rule["target_tags"]:
            problems.append(f"{who}: without target_tags it would open every machine of the network: name the tags.")
        problems += [f"{who}: {port} is no port: write 1-65535." for port in rule["ports"] if not 0 < port < 65536]
        problems += [
            f"{who}: the tag '{tag}' must be lower-case letters, digits and hyphens."
            for tag in rule["target_tags"]
            if not NAME.fullmatch(tag)
        ]
        if not NAME.fullmatch(rule["network"]):
            problems.append(f"{who}: network '{rule['network']}' must be the name alone, in lower-case letters.")
        if not 0 <= rule["priority"] < 65536:
            problems.append(f"{who}: priority {rule['priority']} must be between 0 and 65535.")
    return problems


def is_world(network: Network) -> bool:
    """Return whether a range is so wide that it counts as the whole Internet."""
    return network.prefixlen < 8


def read_ranges(rule: dict) -> tuple[list[Network], list[Network], list[str]]:
    """Return (networks that are the whole Internet, narrower ones, problems) of a rule's source ranges.

    Narrow ranges that together cover the Internet are in the first list.
    """
    networks: list[Network] = []
    problems: list[str] = []
    for text in rule["source_ranges"]:
        try:
            networks.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            problems.append(
                f"rule {rule['name']}: source range '{text}' is not usable ({error}): write 203.0.113.0/24."
            )
    networks = list(dict.fromkeys(networks))
    world = [one for one in networks if is_world(one)]
    narrow = [one for one in networks if not is_world(one)]
    for version in (4, 6):
        family: list = [one for one in narrow if one.version == version]
        if any(is_world(one) for one in ipaddress.collapse_addresses(family)):
            world += family
            narrow = [one for one in narrow if one.version != version]
    return world, narrow, problems


def effective_rules(
    rules: list[dict], open_to_world: bool, world_ports: Collection[int]
) -> tuple[list[dict], set[str], list[str], list[str]]:
    """Return the firewall rules to create for the declared ones.

    A range that is the whole Internet opens `world_ports` only; the other ports of such a rule are opened to its
    narrower ranges, in a rule of their own (NAME-restricted), or to nobody. IPv6 ranges get one too (NAME-ipv6).

    Returns (rules to create, names of rules that must not exist, problems, remarks).
    """
    effective: list[dict] = []
    problems: list[str] = []
    remarks: list[str] = []
    for rule in rules:
        if rule["state"] == "absent":
            continue
        world, narrow, unreadable = read_ranges(rule)
        wrong = unreadable or _source_problems(rule, world, narrow, open_to_world)
        problems += wrong
        if not wrong:
            split, closed = _split_by_port(rule, world, narrow, world_ports)
            effective += split
            remarks += closed
    problems += _derived_name_problems(rules, effective)
    wanted = {rule["name"] for rule in effective}
    absent = {f"{rule['name']}{suffix}" for rule in rules for suffix in SUFFIXES} - wanted
    return effective, absent, list(dict.fromkeys(problems)), remarks


def _source_problems(rule: dict, world: list[Network], narrow: list[Network], open_to_world: bool) -> list[str]:
    """Return a sentence where a rule's source ranges, valid each, cannot be used."""
    if not rule["source_ranges"]:
        return [
            f"rule {rule['name']}: it has no source ranges: set gcp_source_ranges to the networks that may reach "
            f"port {listed(rule['ports'])}, such as ['203.0.113.0/24']."
        ]
    if world and not open_to_world:
        return [
            f"rule {rule['name']}: {listed(world)} is the whole Internet: name narrower gcp_source_ranges, or set "
            "gcp_open_to_world: true if that is what you want."
        ]
    if all(one.version == 6 for one in world + narrow):
        return [
            f"rule {rule['name']}: its source ranges are IPv6 only, and the machines have IPv4 addresses only: "
            "name the IPv4 networks that may reach them."
        ]
    return []


def _split_by_port(
    rule: dict, world: list[Network], narrow: list[Network], world_ports: Collection[int]
) -> tuple[list[dict], list[str]]:
    """Return (rules, remarks): a rule split into ports open to the Internet and ports open to narrow ranges."""
    closed = [port for port in rule["ports"] if world and port not in world_ports]
    opened = [port for port in rule["ports"] if port not in closed]
    split: list[dict] = []
    if opened:
        split += split_by_family({**rule, "ports": opened}, world + narrow)
    if closed and narrow:
        name = f"{rule['name']}-restricted" if opened else rule["name"]
        split += split_by_family({**rule, "name": name, "ports": closed}, narrow)
    if not closed:
        return split, []
    return split, [
        f"rule {rule['name']}: port {listed(closed)} stays closed to the Internet"
        f"{f' and open to {listed(narrow)}' if narrow else ''}; gcp_open_to_world_ports would open it."
    ]


def _derived_name_problems(rules: list[dict], effective: list[dict]) -> list[str]:
    """Return a sentence for each rule that a split needs and whose name is taken or too long."""
    declared = {rule["name"] for rule in rules}
    names = [rule["name"] for rule in effective]
    problems = []
    for name in names:
        clash = name in declared and names.count(name) > 1
        if clash or (name not in declared and not NAME.fullmatch(name)):
            problems.append(
                f"rule {name}: gcp_firewall_rules needs a rule of this name for a part of its ranges, and the name is "
                f"{'taken' if clash else 'longer than 63 characters'}: give the declared rule another name."
            )
    return problems


# The ends of the names of rules that `effective_rules` may derive from one declared rule.
SUFFIXES = ("", "-ipv6", "-restricted", "-restricted-ipv6")


def split_by_family(rule: dict, networks: list[Network]) -> list[dict]:
    """Return the rule for its IPv4 ranges and NAME-ipv6 for its IPv6 ranges: the API takes one family per rule."""
    split = {version: [str(one) for one in networks if one.version == version] for version in (4, 6)}
    named = {4: rule["name"], 6: f"{rule['name']}-ipv6"}
    return [{**rule, "name": named[version], "source_ranges": split[version]} for version in (4, 6) if split[version]]


def open_ports(rules: Iterable[dict], tags: Iterable[str]) -> list[int]:
    """Return the sorted ports that the rules open on a machine with these tags."""
    return sorted({port for rule in rules if set(rule["target_tags"]) & set(tags) for port in rule["ports"]})


def listed(values: Iterable[object]) -> str:
    """Return values as text, separated by commas."""
    return ", ".join(str(value) for value in values)


# --- firewall rules ---------------------------------------------------------------------------------------------


def rule_body(project: str, rule: dict, fleet: str) -> dict:
    """Return the API's Firewall for a rule; `rule_patch` adds the lists that must be empty."""
    return {
        "name": rule["name"],
        "description": mark(fleet),
        "network": f"{URL}projects/{project}/global/networks/{rule['network']}",
        "direction": "INGRESS",
        "priority": rule["priority"],
        "disabled": False,
        "allowed": [{"IPProtocol": "tcp", "ports": [str(port) for port in sorted(set(rule["ports"]))]}],
        "sourceRanges": sorted(rule["source_ranges"]),
        "targetTags": sorted(set(rule["target_tags"])),
    }


# Lists of a Firewall that no declared rule has.
RESTRICTING_LISTS = ("sourceTags", "sourceServiceAccounts", "targetServiceAccounts", "destinationRanges")


def rule_view(project: str, firewall: dict) -> dict:
    """Return the fields of the API's Firewall, or of a body for one, in the form that is compared and shown."""
    return {
        "network": tail(firewall.get("network"), project),
        "direction": firewall.get("direction", "INGRESS"),
        "priority": firewall.get("priority", 1000),
        "disabled": bool(firewall.get("disabled")),
        "allowed": protocols(firewall.get("allowed")),
        "denied": protocols(firewall.get("denied")),
        "sourceRanges": sorted(canonical(one) for one in firewall.get("sourceRanges") or []),
        "targetTags": sorted(firewall.get("targetTags") or []),
        "logging": bool((firewall.get("logConfig") or {}).get("enable")),
        **{name: sorted(firewall.get(name) or []) for name in RESTRICTING_LISTS},
    }


def canonical(cidr: str) -> str:
    """Return a range without host bits; text that is no range is returned unchanged."""
    try:
        return str(ipaddress.ip_network(cidr, strict=False))
    except ValueError:
        return cidr


def protocols(entries: list[dict] | None) -> list[str]:
    """Return Firewall.allowed or .denied as sorted "tcp:8000-8001" strings; adjacent ports are merged."""
    spans: dict[str, list[tuple[int, int]]] = {}
    flat: set[str] = set()
    for entry in entries or []:
        protocol = str(entry.get("IPProtocol"))
        protocol = {"6": "tcp", "17": "udp", "1": "icmp"}.get(protocol, protocol)
        if not entry.get("ports"):
            flat.add(protocol)
        for text in entry.get("ports") or []:
            first, _, end = str(text).partition("-")
            spans.setdefault(protocol, []).append((int(first), int(end or first)))
    for protocol, pairs in spans.items():
        if protocol in flat:
            continue
        merged: list[list[int]] = []
        for low, high in sorted(pairs):
            if merged and low <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        flat.update(f"{protocol}:{low}" if low == high else f"{protocol}:{low}-{high}" for low, high in merged)
    return sorted(flat)


def rule_patch(project: str, rule: dict, firewall: dict, fleet: str) -> tuple[dict, bool]:
    """Return (fields to PATCH, replace); `replace`: the rule must be deleted and created again with these fields."""
    view, body = rule_view(project, firewall), rule_body(project, rule, fleet)
    wanted = rule_view(project, body)
    wrong = {key for key in wanted if view[key] != wanted[key]}
    if wrong & {"network", "direction", "denied"}:
        return body, True
    patch = {key: body[key] for key in body if key in wrong}
    if not made_by(firewall, fleet):  # adopted
        patch["description"] = body["description"]
    patch.update({name: [] for name in RESTRICTING_LISTS if name in wrong})
    if "logging" in wrong:
        patch["logConfig"] = {"enable": False}
    return patch, False


# --- machines ---------------------------------------------------------------------------------------------------


def scheduling(machine: dict) -> dict:
    """Return the API's Scheduling for a machine."""
    spot, hours = machine["spot"], machine["max_run_hours"]
    return {
        "provisioningModel": "SPOT" if spot else "STANDARD",
        "onHostMaintenance": "TERMINATE" if spot else machine["maintenance_policy"],
        # The API refuses automatic restart of a spot machine.
        "automaticRestart": machine["automatic_restart"] and not spot,
        # The disk is kept when Google preempts a spot machine, or its maximum run time ends.
        **({"instanceTerminationAction": "STOP"} if spot or hours else {}),
        **({"maxRunDuration": {"seconds": str(hours * 3600)}} if hours else {}),
    }


def accelerators(project: str, zone: str, machine: dict) -> list[dict]:
    """Return the API's guestAccelerators for a machine."""
    if not machine["accelerator"]["count"]:
        return []
    kind = f"{URL}projects/{project}/zones/{zone}/acceleratorTypes/{machine['accelerator']['type']}"
    return [{"acceleratorType": kind, "acceleratorCount": machine["accelerator"]["count"]}]


ACCESS = {"type": "ONE_TO_ONE_NAT", "name": "External NAT", "networkTier": "PREMIUM"}


def service_accounts(machine: dict) -> list[dict]:
    """Return the API's serviceAccounts for a machine."""
    account = machine["service_account"]
    return [{"email": account["email"], "scopes": sorted(set(account["scopes"]))}] if account else []


def shielded_body(shielded: dict) -> dict:
    """Return the API's ShieldedInstanceConfig."""
    return {
        "enableSecureBoot": shielded["secure_boot"],
        "enableVtpm": shielded["vtpm"],
        "enableIntegrityMonitoring": shielded["integrity_monitoring"],
    }


def address_body(name: str, fleet: str, current: str | None = None) -> dict:
    """Return the API's Address that is reserved for a machine; `current`: the address that it has and keeps."""
    body = {"name": name, "description": mark(fleet), "addressType": "EXTERNAL", "networkTier": "PREMIUM"}
    return {**body, "address": current} if current else body


def machine_body(project: str, zone: str, machine: dict, fleet: str, address: str | None = None) -> dict:
    """Return the API's Instance to insert for a machine; `address`: the external address that is reserved for it."""
    here = f"{URL}projects/{project}/zones/{zone}"
    interface: dict = {"network": f"{URL}projects/{project}/global/networks/{machine['network']}"}
    if machine["subnetwork"]:
        region = region_of(zone)
        interface["subnetwork"] = f"{URL}projects/{project}/regions/{region}/subnetworks/{machine['subnetwork']}"
    if machine["external_address"]:
        interface["accessConfigs"] = [{**ACCESS, **({"natIP": address} if address else {})}]
    if machine["nic_type"] != "auto":
        interface["nicType"] = machine["nic_type"]
    return {
        "name": machine["name"],
        "description": mark(fleet),
        "machineType": f"{here}/machineTypes/{machine['machine_type']}",
        "guestAccelerators": accelerators(project, zone, machine),
        "disks": [
            {
                "boot": True,
                "autoDelete": machine["disk"]["auto_delete"],
                "type": "PERSISTENT",
                "deviceName": machine["name"],
                "initializeParams": {
                    "description": mark(fleet),
                    "labels": label_values(machine["disk"]["labels"]),
                    "diskSizeGb": str(machine["disk"]["size_gb"]),
                    "diskType": f"{here}/diskTypes/{machine['disk']['type']}",
                    **source(project, machine),
                },
            }
        ],
        "networkInterfaces": [interface],
        "serviceAccounts": service_accounts(machine),
        "deletionProtection": machine["deletion_protection"],
        # Not sent where it is Google's default: an image without support for it refuses the field.
        **(
            {}
            if machine["shielded"] == shielded_view({})
            else {"shieldedInstanceConfig": shielded_body(machine["shielded"])}
        ),
        "scheduling": scheduling(machine),
        "tags": {"items": sorted(set(machine["tags"]))},
        "labels": {key: str(value) for key, value in machine["labels"].items()},
        "metadata": {
            "items": [{"key": key, "value": str(value)} for key, value in sorted(machine["metadata"].items())]
        },
    }


def source(project: str, machine: dict) -> dict:
    """Return the source of a boot disk: the declared snapshot of the project, else the image family."""
    if machine["snapshot"]:
        return {"sourceSnapshot": f"{URL}projects/{project}/global/snapshots/{machine['snapshot']}"}
    image = machine["image"]
    return {"sourceImage": f"{URL}projects/{image['project']}/global/images/family/{image['family']}"}


def declared_view(machine: dict) -> dict:
    """Return the fields of a declared machine in the form that is compared and shown."""
    gpu = machine["accelerator"]
    return {
        "machine_type": machine["machine_type"],
        "accelerator": {gpu["type"]: gpu["count"]} if gpu["count"] else {},
        "image": f"{machine['image']['project']}/{machine['image']['family']}",
        "disk_type": machine["disk"]["type"],
        "disk_size_gb": machine["disk"]["size_gb"],
        "disk_auto_delete": machine["disk"]["auto_delete"],
        "network": machine["network"],
        **({"subnetwork": machine["subnetwork"]} if machine["subnetwork"] else {}),
        **({"nic_type": machine["nic_type"]} if machine["nic_type"] != "auto" else {}),
        "external_address": machine["external_address"],
        "service_account": {one["email"]: one["scopes"] for one in service_accounts(machine)},
        "deletion_protection": machine["deletion_protection"],
        "shielded": dict(machine["shielded"]),
        **({"disk_labels": label_values(machine["disk"]["labels"])} if machine["disk"]["labels"] is not None else {}),
        "scheduling": scheduling(machine),
        "tags": sorted(set(machine["tags"])),
        "labels": {key: str(value) for key, value in sorted(machine["labels"].items())},
        "metadata": {key: str(value) for key, value in sorted(machine["metadata"].items())},
    }


def actual_view(machine: dict, instance: dict, disk: dict | None, image_family: str | None) -> dict:
    """Return the same fields of an existing instance.

    `disk`: the API's Disk of the boot disk, `image_family`: "project/family" that it was made from. Where one is
    unknown (None, it cannot be read or no longer exists) the declared value is used, so it is not a difference.
    """
    declared = declared_view(machine)
    boot = boot_disk(instance)
    interface = first_interface(instance)
    size = (disk or {}).get("sizeGb") or boot.get("diskSizeGb") or declared["disk_size_gb"]
    items = {one["key"]: one.get("value", "") for one in (instance.get("metadata") or {}).get("items") or []}
    return {
        "machine_type": last(instance.get("machineType")),
        "accelerator": {
            last(one.get("acceleratorType")): one.get("acceleratorCount", 0)
            for one in instance.get("guestAccelerators") or []
        },
        "image": image_family or declared["image"],
        "disk_type": last(disk["type"]) if disk and disk.get("type") else declared["disk_type"],
        "disk_size_gb": int(size),
        "disk_auto_delete": bool(boot.get("autoDelete")),
        "network": last(interface.get("network")),
        **({"subnetwork": last(interface.get("subnetwork"))} if machine["subnetwork"] else {}),
        **({"nic_type": interface.get("nicType", "VIRTIO_NET")} if machine["nic_type"] != "auto" else {}),
        "external_address": bool(interface.get("accessConfigs")),
        "service_account": {
            one.get("email"): sorted(one.get("scopes") or []) for one in instance.get("serviceAccounts") or []
        },
        "deletion_protection": bool(instance.get("deletionProtection")),
        "shielded": shielded_view(instance.get("shieldedInstanceConfig") or {}),
        **(
            {"disk_labels": label_values((disk or {"labels": machine["disk"]["labels"]}).get("labels"))}
            if machine["disk"]["labels"] is not None
            else {}
        ),
        "scheduling": scheduling_view(machine, instance),
        "tags": sorted((instance.get("tags") or {}).get("items") or []),
        # Google's own labels are not ours to remove.
        "labels": {
            key: value for key, value in sorted((instance.get("labels") or {}).items()) if not key.startswith("goog-")
        },
        # Metadata is shared with Google's own tools (ssh-keys, windows-keys …): only declared keys are compared.
        "metadata": {key: items[key] for key in sorted(machine["metadata"]) if key in items},
    }


def scheduling_view(machine: dict, instance: dict) -> dict:
    """Return the scheduling of an existing instance in the form of `scheduling`; missing fields have the API's default.

    The termination action counts only for a machine declared as spot or an instance with a maximum run time.
    """
    plan = instance.get("scheduling") or {}
    spot = plan.get("provisioningModel") == "SPOT" or plan.get("preemptible")
    actual = {
        "provisioningModel": "SPOT" if spot else plan.get("provisioningModel", "STANDARD"),
        "onHostMaintenance": plan.get("onHostMaintenance", "TERMINATE" if spot else "MIGRATE"),
        "automaticRestart": plan.get("automaticRestart", not spot),
    }
    seconds = str((plan.get("maxRunDuration") or {}).get("seconds") or "")
    if machine["spot"] or seconds:
        actual["instanceTerminationAction"] = plan.get("instanceTerminationAction", "STOP")
    if seconds:
        actual["maxRunDuration"] = {"seconds": seconds}
    return actual


def label_values(labels: Mapping | None) -> dict[str, str]:
    """Return labels sorted by key, values as text, without Google's own."""
    return {key: str(value) for key, value in sorted((labels or {}).items()) if not key.startswith("goog-")}


def shielded_view(config: dict) -> dict[str, bool]:
    """Return a ShieldedInstanceConfig in the form that is compared; missing fields have Google's default."""
    return {
        "secure_boot": bool(config.get("enableSecureBoot", False)),
        "vtpm": bool(config.get("enableVtpm", True)),
        "integrity_monitoring": bool(config.get("enableIntegrityMonitoring", True)),
    }


def first_interface(instance: dict) -> dict:
    """Return an instance's first network interface; machines of this project have one."""
    return (instance.get("networkInterfaces") or [{}])[0]


def boot_disk(instance: dict) -> dict:
    """Return the AttachedDisk that an instance boots from."""
    disks = instance.get("disks") or [{}]
    return next((one for one in disks if one.get("boot")), disks[0])


# Fields that cannot be changed on a running machine; all others are LIVE.
CURES = {
    "machine_type": STOPPED,
    "accelerator": STOPPED,
    "service_account": STOPPED,
    "shielded": STOPPED,
    "image": NEW,
    "disk_type": NEW,
    "network": NEW,
    "subnetwork": NEW,
    "nic_type": NEW,
}


def differences(declared: dict, actual: dict) -> list[Difference]:
    """Return the fields in which two views differ."""
    found = []
    for field, wanted in declared.items():
        current = actual[field]
        if current == wanted:
            continue
        cure = CURES.get(field, LIVE)
        if field == "disk_size_gb" and wanted < current:
            cure = NEW
        if field == "scheduling" and current["provisioningModel"] != wanted["provisioningModel"]:
            cure = STOPPED
        found.append(Difference(field, current, wanted, cure))
    return found


def refusal(name: str, difference: Difference) -> str:
    """Return why a difference is left as it is, and how it can be resolved."""
    what = f"{name}: {difference.field} is {difference.actual}, declared is {difference.declared}"
    if difference.cure == STOPPED:
        return (
            f"{what}: this changes only while the machine is stopped: run playbooks/gcp_stop.yml, then "
            "playbooks/gcp_provision.yml, which changes it and starts the machine."
        )
    if difference.field == "disk_size_gb":
        return (
            f"{what}: a disk cannot shrink: declare {difference.actual} GB, or make a new machine "
            "(playbooks/gcp_decommission.yml, then playbooks/gcp_provision.yml; what is on the disk is lost)."
        )
    return (
        f"{what}: this is fixed when a machine is made: declare what is there, or make a new machine "
        "(playbooks/gcp_decommission.yml, then playbooks/gcp_provision.yml; what is on the disk is lost)."
    )


def disks_at_delete(
    instance: dict, keep_boot: bool, named: Collection[str]
) -> tuple[list[tuple[str, dict]], list[tuple[str, dict]], dict[str, bool]]:
    """Return (disks deleted with an instance, disks that stay, {device: auto-delete to set before}).

    The boot disk is deleted unless `keep_boot` or its auto-delete is off; other disks stay. The disks `named` are
    deleted in any case. Disks are (name, AttachedDisk); local SSDs, which have no name, are left out.
    """
    deleted_disks: list[tuple[str, dict]] = []
    kept_disks: list[tuple[str, dict]] = []
    switch: dict[str, bool] = {}
    for disk in instance.get("disks") or []:
        name = last(disk.get("source"))
        if not name:
            continue
        deleted = name in named or bool(disk.get("boot") and disk.get("autoDelete") and not keep_boot)
        (deleted_disks if deleted else kept_disks).append((name, disk))
        if deleted != bool(disk.get("autoDelete")):
            switch[disk.get("deviceName", name)] = deleted
    return deleted_disks, kept_disks, switch


def leftover_disk_cure(name: str, zone: str) -> str:
    """Return what to do where a disk already has the name of a machine's boot disk."""
    return (
        f"If it is a disk that nobody needs, delete it (gcloud compute disks delete {name} --zone={zone}); else give "
        "the machine another name in gcp_machines."
    )


def disk_text(disks: Iterable[tuple[str, dict]]) -> str:
    """Return disks, (name, AttachedDisk) each, as text for a sentence."""
    return listed(
        f"{'boot ' if disk.get('boot') else ''}disk {name}"
        + (f" ({disk['diskSizeGb']} GB)" if disk.get("diskSizeGb") else "")
        for name, disk in disks
    )


def addresses(instance: dict) -> tuple[str | None, str | None]:
    """Return the (external, internal) address of an instance, None where it has none."""
    interface = first_interface(instance)
    external = next((one["natIP"] for one in interface.get("accessConfigs") or [] if one.get("natIP")), None)
    return external, interface.get("networkIP")


# --- quota and money --------------------------------------------------------------------------------------------


def disk_metric(disk_type: str) -> str | None:
    """Return the name of the region's quota in GB that a disk type counts against, None where it has none."""
    return {
        "pd-ssd": "SSD_TOTAL_GB",
        "pd-balanced": "SSD_TOTAL_GB",
        "pd-standard": "DISKS_TOTAL_GB",
        "hyperdisk-balanced": "HDB_TOTAL_GB",
    }.get(disk_type)


def gpu_metric(accelerator: str, spot: bool, quotas: Mapping[str, dict]) -> str:
    """Return the name of the region's GPU quota; `quotas`: {metric: Quota} of the region.

    The metric leaves out "tesla" (nvidia-tesla-t4: NVIDIA_T4_GPUS), and for some GPUs the memory size
    (nvidia-h100-80gb: NVIDIA_H100_GPUS). A spot machine counts against the ordinary quota where the region has no
    preemptible one.
    """
    words = [word for word in accelerator.split("-") if word != "tesla"]
    shorter = [word for word in words if not re.fullmatch(r"\d+gb", word)]
    names = ["_".join(one).upper() + "_GPUS" for one in (words, shorter)]
    metric = next((one for one in names if one in quotas or f"PREEMPTIBLE_{one}" in quotas), names[0])
    preemptible = f"PREEMPTIBLE_{metric}"
    return preemptible if spot and quotas.get(preemptible, {}).get("limit") else metric


def cpu_metric(machine_type: str, spot: bool, quotas: Mapping[str, dict]) -> str:
    """Return the name of the region's vCPU quota: that of the series where it has one, else CPUS."""
    own = f"{machine_type.split('-')[0].upper()}_CPUS"
    if spot and quotas.get("PREEMPTIBLE_CPUS", {}).get("limit"):
        return "PREEMPTIBLE_CPUS"
    return own if own in quotas else "CPUS"


def quota_problem(
    where: str, quotas: Mapping[str, dict], metric: str, requested: float, who: Iterable[str], cure: str
) -> str | None:
    """Return a sentence where a quota is lower than its usage and `requested` together, else None.

    `quotas`: {metric: {limit, usage}}, `who`: who asks for it, `cure`: a format string that may use {left}.
    """
    quota = quotas.get(metric)
    if quota is None:
        return None
    limit, usage = quota.get("limit", 0), quota.get("usage", 0)
    if usage + requested <= limit:
        return None
    return (
        f"{where}: quota {metric} is {limit:g}, {usage:g} of it in use, {requested:g} more asked for by {listed(who)}: "
        f"ask Google for {usage + requested:g} (console: IAM & Admin, Quotas), or "
        f"{cure.format(left=max(limit - usage, 0))}."
    )


def estimate(machine: dict, zone: str, prices: dict) -> dict:
    """Return the estimated cost of a machine: {running, stopped, currency, missing}.

    `running` and `stopped` are per hour, in `currency`; `missing` is a sentence about a price that is not known, or "".
    Without the disk's price, `running` excludes the disk and `stopped` is None. Source: `prices`, the table
    data/gcp/prices.yml.
    """
    table = (prices.get("regions") or {}).get(region_of(zone)) or {}
    kind = "spot" if machine["spot"] else "on_demand"
    per_machine = (table.get("machines") or {}).get(machine["machine_type"], {}).get(kind)
    per_gb = (table.get("disk_gb_month") or {}).get(machine["disk"]["type"])
    addresses = prices.get("external_address") or {}
    address = addresses.get(kind, 0) if machine["external_address"] else 0
    unused = addresses.get("unused", 0) if machine["reserved_address"] else 0
    result: dict = {"currency": prices.get("currency", "USD"), "running": None, "stopped": None, "missing": ""}
    if per_machine is None:
        what = machine["machine_type"]
        result["missing"] = f"data/gcp/prices.yml has no {kind} price of {what} in {region_of(zone)}"
        return result
    disk = 0.0
    if per_gb is None:
        result["missing"] = f"without its disk: data/gcp/prices.yml has no price of {machine['disk']['type']} there"
    else:
        disk = machine["disk"]["size_gb"] * per_gb / prices.get("hours_per_month", 730)
        result["stopped"] = round(disk + unused, 4)
    result["running"] = round(per_machine + address + disk, 4)
    return result


def cost_sentences(costs: list[dict], hours: float, as_of: str = "") -> list[str]:
    """Return sentences with the cost per hour and month of each machine and of the whole fleet.

    `costs`: results of `estimate` with the name, `hours`: hours per month, `as_of`: date of the price table.
    """

    def money(one: dict, state: str) -> str:
        return f"{one[state]:.2f} {one['currency']} an hour ({one[state] * hours:.0f} a month)"

    known = [one for one in costs if one["stopped"] is not None]
    table = f"data/gcp/prices.yml{f', as of {as_of}' if as_of else ''}"
    sentences: list[str] = []
    for one in costs:
        if one["running"] is None:
            sentences.append(f"{one['name']}: no estimate: {one['missing']}.")
        elif one["stopped"] is None:
            sentences.append(
                f"{one['name']} costs about {money(one, 'running')} while it runs ({table}), {one['missing']}."
            )
        else:
            sentences.append(
                f"{one['name']} costs about {money(one, 'running')} while it runs, {money(one, 'stopped')} while it is "
                f"stopped ({table})."
            )
    if len(costs) > 1 and known:
        total = {state: sum(one[state] for one in known) for state in ("running", "stopped")}
        total["currency"] = known[0]["currency"]
        rest = f", without {len(costs) - len(known)} of which no price is known" if len(known) < len(costs) else ""
        sentences.append(
            f"The fleet of {len(costs)}{rest} costs about {money(total, 'running')} while all run, "
            f"{money(total, 'stopped')} while all are stopped."
        )
    return sentences
