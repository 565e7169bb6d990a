"""What is declared for Google Cloud: checked, worded as the API wants it, and compared with what is there.

No requests here: dictionaries in, dictionaries and sentences out. A rule and a machine are the dictionaries that
the module gcp_fleet documents.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from dataclasses import dataclass

URL = "https://www.googleapis.com/compute/v1/"
# Written into the description of all that is made, with the name of the fleet, so that only that is taken away again.
# Releases before fleets had names wrote it alone.
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


@dataclass
class Difference:
    """One field of a machine that is not as declared; `cure`: LIVE, STOPPED (mended on a stopped VM) or NEW."""

    field: str
    actual: object
    declared: object
    cure: str


class Change:
    """One thing done or to be done: a sentence, and what was there before and is after (None: nothing)."""

    def __init__(self, what, before, after):
        self.what = what
        self.before = before
        self.after = after

    def only_differing(self):
        """Return (before, after): of a change the fields that differ, of what comes or goes those that are set."""
        if self.before is None or self.after is None:
            return tuple(
                side and {key: value for key, value in side.items() if value} for side in (self.before, self.after)
            )
        keys = [key for key in {**self.before, **self.after} if self.before.get(key) != self.after.get(key)]
        return tuple({key: side[key] for key in keys if key in side} for side in (self.before, self.after))


def region_of(zone):
    return zone.rsplit("-", 1)[0]


def last(url):
    """Return the name at the end of a full or partial URL."""
    return (url or "").rsplit("/", 1)[-1]


def tail(url, project):
    """Return a resource URL from "projects/" on, so that full and partial forms compare equal."""
    url = re.sub(r"^https?://[^/]+/compute/[^/]+/", "", url or "")
    return url if not url or url.startswith("projects/") else f"projects/{project}/{url.lstrip('/')}"


# --- what was made here ------------------------------------------------------------------------------------------


def mark(fleet):
    return f"{MARK}{FLEET}{fleet}"


def made_by(resource, fleet):
    """Say whether a resource carries the fleet's mark, or that of a release before fleets had names."""
    return resource.get("description") in (MARK, mark(fleet))


def maker(resource):
    """Say in words whose a resource is that is not this fleet's."""
    text = str(resource.get("description") or "")
    if text.startswith(MARK + FLEET):
        return f"was made by another fleet ('{text.removeprefix(MARK + FLEET)}')"
    return "was not made by playbooks/provision.yml"


def limited(names, patterns, matched):
    """Return which names ansible's --limit leaves.

    `patterns`: what was given to --limit, `matched`: the hosts of the inventory that it matched. A machine that is not
    there yet is in no inventory, so patterns are held against its name. Without patterns, and where only localhost
    is named, all are left.
    """
    patterns = [one for one in re.split(r"[,:\s]+", patterns or "") if one]
    wanted = [one for one in patterns if one[0] not in "!&" and one not in ("localhost", "127.0.0.1")]
    if not wanted and not any(one[0] in "!&" for one in patterns):
        return list(names)
    without = [one[1:] for one in patterns if one[0] == "!"]
    wanted = ["*" if one == "all" else one for one in wanted] or ["*"]

    def left(name):
        if name in matched:
            return True
        if any(one[0] == "&" for one in patterns) or any(fnmatch.fnmatchcase(name, one) for one in without):
            return False
        return any(fnmatch.fnmatchcase(name, one) for one in wanted)

    return [name for name in names if left(name)]


# --- what was declared, checked ---------------------------------------------------------------------------------


def machine_problems(machines, accelerators=None):
    """Return a sentence for each declared value that cannot be meant.

    `accelerators`: which series a GPU goes with and in which numbers (data/gcp/accelerators.yml).
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


def account_problems(who, account):
    """Return a sentence for each value of a machine's service account that cannot be meant."""
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


def accelerator_problems(who, machine, accelerators):
    """Return a sentence where a GPU cannot be had with the machine's series, or not in that number."""
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


def name_problems(variable, declared):
    """Return a sentence for each name of a list that is no name, or that is there twice."""
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


def rule_problems(rules):
    """Return a sentence for each declared value that cannot be meant; `read_ranges` does so for the ranges."""
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


def is_world(network):
    """Say whether a range is, for the purpose of asking twice, the whole Internet."""
    return network.prefixlen < 8


def read_ranges(rule):
    """Return (networks that are the world, narrower ones, problems) of a rule's source ranges."""
    networks, problems = [], []
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
    # Narrow ones that together are the world are the world.
    for version in (4, 6):
        if any(is_world(one) for one in ipaddress.collapse_addresses([n for n in narrow if n.version == version])):
            world += [one for one in narrow if one.version == version]
            narrow = [one for one in narrow if one.version != version]
    return world, narrow, problems


def effective_rules(rules, open_to_world, world_ports):
    """Work out the rules that are really made.

    A range that is the whole Internet opens `world_ports` only; the other ports of such a rule are opened to its
    narrower ranges, in a rule of their own (NAME-restricted), or to nobody. IPv6 ranges get one too (NAME-ipv6).

    Returns (rules to have, names to be without, problems, remarks).
    """
    have, problems, remarks = [], [], []
    for rule in rules:
        if rule["state"] == "absent":
            continue
        world, narrow, wrong = read_ranges(rule)
        problems += wrong
        if not rule["source_ranges"]:
            problems.append(
                f"rule {rule['name']}: it has no source ranges: set gcp_source_ranges to the networks that may reach "
                f"port {listed(rule['ports'])}, such as ['203.0.113.0/24']."
            )
        if wrong or not rule["source_ranges"]:
            continue
        if world and not open_to_world:
            problems.append(
                f"rule {rule['name']}: {listed(world)} is the whole Internet: name narrower gcp_source_ranges, or set "
                "gcp_open_to_world: true if that is what you want."
            )
            continue
        if all(one.version == 6 for one in world + narrow):
            problems.append(
                f"rule {rule['name']}: its source ranges are IPv6 only, and the machines have IPv4 addresses only: "
                "name the IPv4 networks that may reach them."
            )
            continue
        shut = [port for port in rule["ports"] if world and port not in world_ports]
        open_ = [port for port in rule["ports"] if port not in shut]
        if open_:
            have += by_family({**rule, "ports": open_}, world + narrow)
        if shut and narrow:
            name = f"{rule['name']}-restricted" if open_ else rule["name"]
            have += by_family({**rule, "name": name, "ports": shut}, narrow)
        if shut:
            remarks.append(
                f"rule {rule['name']}: port {listed(shut)} stays closed to the Internet"
                f"{f' and open to {listed(narrow)}' if narrow else ''}; gcp_open_to_world_ports would open it."
            )
    declared = {rule["name"] for rule in rules}
    for name in [rule["name"] for rule in have]:
        clash = name in declared and [rule["name"] for rule in have].count(name) > 1
        if clash or (name not in declared and not NAME.fullmatch(name)):
            problems.append(
                f"rule {name}: gcp_firewall_rules needs a rule of this name for a part of its ranges, and the name is "
                f"{'taken' if clash else 'longer than 63 characters'}: give the declared rule another name."
            )
    wanted = {rule["name"] for rule in have}
    without = {f"{rule['name']}{end}" for rule in rules for end in ENDS} - wanted
    return have, without, list(dict.fromkeys(problems)), remarks


ENDS = ("", "-ipv6", "-restricted", "-restricted-ipv6")


def by_family(rule, networks):
    """Return the rule for its IPv4 ranges and NAME-ipv6 for the others: the API takes one family a rule."""
    split = {version: [str(one) for one in networks if one.version == version] for version in (4, 6)}
    named = {4: rule["name"], 6: f"{rule['name']}-ipv6"}
    return [{**rule, "name": named[version], "source_ranges": split[version]} for version in (4, 6) if split[version]]


def open_ports(rules, tags):
    """Return the ports that rules open on a machine that carries these tags, sorted."""
    return sorted({port for rule in rules if set(rule["target_tags"]) & set(tags) for port in rule["ports"]})


def listed(values):
    return ", ".join(str(value) for value in values)


# --- firewall rules ---------------------------------------------------------------------------------------------


def rule_body(project, rule, fleet):
    """Word a rule as the API's Firewall; the lists that must be empty are left to `rule_patch`."""
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


LISTS = ("sourceTags", "sourceServiceAccounts", "targetServiceAccounts", "destinationRanges")


def rule_view(project, firewall):
    """Bring a Firewall of the API, or a body for it, into the one form that is compared and shown."""
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
        **{name: sorted(firewall.get(name) or []) for name in LISTS},
    }


def canonical(cidr):
    try:
        return str(ipaddress.ip_network(cidr, strict=False))
    except ValueError:
        return cidr


def protocols(entries):
    """Flatten Firewall.allowed into sorted "tcp:8000-8001" strings with touching ports merged."""
    spans = {}
    flat = set()
    for entry in entries or []:
        protocol = {"6": "tcp", "17": "udp", "1": "icmp"}.get(str(entry.get("IPProtocol")), entry.get("IPProtocol"))
        if not entry.get("ports"):
            flat.add(str(protocol))
        for text in entry.get("ports") or []:
            low, _, high = str(text).partition("-")
            spans.setdefault(protocol, []).append((int(low), int(high or low)))
    for protocol, pairs in spans.items():
        if protocol in flat:
            continue
        merged = []
        for low, high in sorted(pairs):
            if merged and low <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        flat.update(f"{protocol}:{low}" if low == high else f"{protocol}:{low}-{high}" for low, high in merged)
    return sorted(flat)


def rule_patch(project, rule, firewall, fleet):
    """Return (body, replace): the fields to PATCH, and whether the rule can only be made anew."""
    view, body = rule_view(project, firewall), rule_body(project, rule, fleet)
    wanted = rule_view(project, body)
    wrong = {key for key in wanted if view[key] != wanted[key]}
    if wrong & {"network", "direction", "denied"}:
        return body, True
    patch = {key: body[key] for key in body if key in wrong}
    if not made_by(firewall, fleet):  # adopted
        patch["description"] = body["description"]
    patch.update({name: [] for name in LISTS if name in wrong})
    if "logging" in wrong:
        patch["logConfig"] = {"enable": False}
    return patch, False


# --- machines ---------------------------------------------------------------------------------------------------


def scheduling(machine):
    spot, hours = machine["spot"], machine["max_run_hours"]
    return {
        "provisioningModel": "SPOT" if spot else "STANDARD",
        "onHostMaintenance": "TERMINATE" if spot else machine["maintenance_policy"],
        # The API refuses automatic restart of a spot machine.
        "automaticRestart": machine["automatic_restart"] and not spot,
        # The disk is kept when Google takes a spot machine away, or its time is over.
        **({"instanceTerminationAction": "STOP"} if spot or hours else {}),
        **({"maxRunDuration": {"seconds": str(hours * 3600)}} if hours else {}),
    }


def accelerators(project, zone, machine):
    if not machine["accelerator"]["count"]:
        return []
    kind = f"{URL}projects/{project}/zones/{zone}/acceleratorTypes/{machine['accelerator']['type']}"
    return [{"acceleratorType": kind, "acceleratorCount": machine["accelerator"]["count"]}]


ACCESS = {"type": "ONE_TO_ONE_NAT", "name": "External NAT", "networkTier": "PREMIUM"}


def service_accounts(machine):
    account = machine["service_account"]
    return [{"email": account["email"], "scopes": sorted(set(account["scopes"]))}] if account else []


def shielded_body(shielded):
    return {
        "enableSecureBoot": shielded["secure_boot"],
        "enableVtpm": shielded["vtpm"],
        "enableIntegrityMonitoring": shielded["integrity_monitoring"],
    }


def address_body(name, fleet, current=None):
    """Word the address that is reserved for a machine; `current`: the one that it has already and is to keep."""
    body = {"name": name, "description": mark(fleet), "addressType": "EXTERNAL", "networkTier": "PREMIUM"}
    return {**body, "address": current} if current else body


def machine_body(project, zone, machine, fleet, address=None):
    """Word a machine as the API's Instance for an insert. `address`: the external one that is reserved for it."""
    here = f"{URL}projects/{project}/zones/{zone}"
    interface = {"network": f"{URL}projects/{project}/global/networks/{machine['network']}"}
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
                    "labels": labels_text(machine["disk"]["labels"]),
                    "diskSizeGb": str(machine["disk"]["size_gb"]),
                    "diskType": f"{here}/diskTypes/{machine['disk']['type']}",
                    **source(project, machine),
                },
            }
        ],
        "networkInterfaces": [interface],
        "serviceAccounts": service_accounts(machine),
        "deletionProtection": machine["deletion_protection"],
        # Left to Google where it is as Google has it: an image that cannot be shielded takes none of it.
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


def source(project, machine):
    """Return what a boot disk is made from: a snapshot of the project where one is named, else the image."""
    if machine["snapshot"]:
        return {"sourceSnapshot": f"{URL}projects/{project}/global/snapshots/{machine['snapshot']}"}
    image = machine["image"]
    return {"sourceImage": f"{URL}projects/{image['project']}/global/images/family/{image['family']}"}


def declared_view(machine):
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
        **({"disk_labels": labels_text(machine["disk"]["labels"])} if machine["disk"]["labels"] is not None else {}),
        "scheduling": scheduling(machine),
        "tags": sorted(set(machine["tags"])),
        "labels": {key: str(value) for key, value in sorted(machine["labels"].items())},
        "metadata": {key: str(value) for key, value in sorted(machine["metadata"].items())},
    }


def actual_view(machine, instance, disk, image_family):
    """Return the same fields of what is there.

    `disk`: the API's Disk of the boot disk, `image_family`: "project/family" it was made from; where one is unknown
    (None: no longer there to ask) the declared value stands in, as nothing can be said against it.
    """
    declared = declared_view(machine)
    boot = boot_disk(instance)
    interface = (instance.get("networkInterfaces") or [{}])[0]
    plan = instance.get("scheduling") or {}
    spot = plan.get("provisioningModel") == "SPOT" or plan.get("preemptible")
    actual_plan = {
        "provisioningModel": "SPOT" if spot else plan.get("provisioningModel", "STANDARD"),
        "onHostMaintenance": plan.get("onHostMaintenance", "TERMINATE" if spot else "MIGRATE"),
        "automaticRestart": plan.get("automaticRestart", not spot),
    }
    seconds = str((plan.get("maxRunDuration") or {}).get("seconds") or "")
    if machine["spot"] or seconds:
        actual_plan["instanceTerminationAction"] = plan.get("instanceTerminationAction", "STOP")
    if seconds:
        actual_plan["maxRunDuration"] = {"seconds": seconds}
    size = (disk or {}).get("sizeGb") or boot.get("diskSizeGb") or declared["disk_size_gb"]
    items = {one["key"]: one.get("value", "") for one in (instance.get("metadata") or {}).get("items") or []}
    labels = instance.get("labels") or {}
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
            {"disk_labels": labels_text((disk or {"labels": machine["disk"]["labels"]}).get("labels"))}
            if machine["disk"]["labels"] is not None
            else {}
        ),
        "scheduling": actual_plan,
        "tags": sorted((instance.get("tags") or {}).get("items") or []),
        # Labels that Google sets itself are not ours to take away.
        "labels": {key: value for key, value in sorted(labels.items()) if not key.startswith("goog-")},
        # Metadata is shared with Google's own tools (ssh-keys, windows-keys …): only declared keys are compared.
        "metadata": {key: items[key] for key in sorted(machine["metadata"]) if key in items},
    }


def labels_text(labels):
    return {key: str(value) for key, value in sorted((labels or {}).items()) if not key.startswith("goog-")}


def shielded_view(config):
    """Return what is there; what the API does not tell has Google's default."""
    return {
        "secure_boot": bool(config.get("enableSecureBoot", False)),
        "vtpm": bool(config.get("enableVtpm", True)),
        "integrity_monitoring": bool(config.get("enableIntegrityMonitoring", True)),
    }


def boot_disk(instance):
    disks = instance.get("disks") or [{}]
    return next((one for one in disks if one.get("boot")), disks[0])


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


def differences(declared, actual):
    """Compare two views field by field."""
    found = []
    for field, wanted in declared.items():
        is_ = actual[field]
        if is_ == wanted:
            continue
        cure = CURES.get(field, LIVE)
        if field == "disk_size_gb" and wanted < is_:
            cure = NEW
        if field == "scheduling" and is_["provisioningModel"] != wanted["provisioningModel"]:
            cure = STOPPED
        found.append(Difference(field, is_, wanted, cure))
    return found


def refusal(name, difference):
    """Say why a difference is not mended, and how it can be."""
    what = f"{name}: {difference.field} is {difference.actual}, declared is {difference.declared}"
    if difference.cure == STOPPED:
        return (
            f"{what}: this changes only while the machine is stopped: run playbooks/stop.yml, then "
            "playbooks/provision.yml, which changes it and starts the machine."
        )
    if difference.field == "disk_size_gb":
        return (
            f"{what}: a disk cannot shrink: declare {difference.actual} GB, or make a new machine "
            "(playbooks/decommission.yml, then playbooks/provision.yml; what is on the disk is lost)."
        )
    return (
        f"{what}: this is fixed when a machine is made: declare what is there, or make a new machine "
        "(playbooks/decommission.yml, then playbooks/provision.yml; what is on the disk is lost)."
    )


def disks_at_delete(instance, keep_boot, named):
    """Return (disks that go with an instance, disks that stay, device -> auto-delete to set before).

    The boot disk goes unless it is to be kept or its auto-delete was switched off; a further disk stays. `named`:
    disks that go all the same. Disks are told by name, local SSDs, which have none, not at all.
    """
    gone, stay, switch = [], [], {}
    for disk in instance.get("disks") or []:
        name = last(disk.get("source"))
        if not name:
            continue
        goes = name in named or bool(disk.get("boot") and disk.get("autoDelete") and not keep_boot)
        (gone if goes else stay).append((name, disk))
        if goes != bool(disk.get("autoDelete")):
            switch[disk.get("deviceName", name)] = goes
    return gone, stay, switch


def left_disk(name, zone):
    """Say the ways out where a disk is in the place of a machine's boot disk."""
    return (
        f"If it is a disk that nobody needs, delete it (gcloud compute disks delete {name} --zone={zone}); else give "
        "the machine another name in gcp_machines."
    )


def disk_words(disks):
    return listed(
        f"{'boot ' if disk.get('boot') else ''}disk {name}"
        + (f" ({disk['diskSizeGb']} GB)" if disk.get("diskSizeGb") else "")
        for name, disk in disks
    )


def addresses(instance):
    """Return (external, internal) address of an instance, None where it has none."""
    interface = (instance.get("networkInterfaces") or [{}])[0]
    external = next((one["natIP"] for one in interface.get("accessConfigs") or [] if one.get("natIP")), None)
    return external, interface.get("networkIP")


# --- quota and money --------------------------------------------------------------------------------------------


def disk_metric(disk_type):
    """Return the name of the region's quota that a disk type counts against, None where it is not a total in GB."""
    return {
        "pd-ssd": "SSD_TOTAL_GB",
        "pd-balanced": "SSD_TOTAL_GB",
        "pd-standard": "DISKS_TOTAL_GB",
        "hyperdisk-balanced": "HDB_TOTAL_GB",
    }.get(disk_type)


def gpu_metric(accelerator, spot, quotas):
    """Return the name of the region's GPU quota, taken from the list of those that the region has.

    The names leave out what the accelerator's has besides (nvidia-tesla-t4: NVIDIA_T4_GPUS), and some the memory
    (nvidia-h100-80gb: NVIDIA_H100_GPUS). A spot machine counts against the ordinary one where it has none of its own.
    """
    words = [word for word in accelerator.split("-") if word != "tesla"]
    shorter = [word for word in words if not re.fullmatch(r"\d+gb", word)]
    names = ["_".join(one).upper() + "_GPUS" for one in (words, shorter)]
    metric = next((one for one in names if one in quotas or f"PREEMPTIBLE_{one}" in quotas), names[0])
    preemptible = f"PREEMPTIBLE_{metric}"
    return preemptible if spot and quotas.get(preemptible, {}).get("limit") else metric


def cpu_metric(machine_type, spot, quotas):
    """Return the name of the region's vCPU quota: the series' own where it has one, else CPUS."""
    own = f"{machine_type.split('-')[0].upper()}_CPUS"
    if spot and quotas.get("PREEMPTIBLE_CPUS", {}).get("limit"):
        return "PREEMPTIBLE_CPUS"
    return own if own in quotas else "CPUS"


def quota_problem(where, quotas, metric, asked, who, cure):
    """Compare one quota with what is asked for; return a sentence or None. `quotas`: metric -> {limit, usage}."""
    quota = quotas.get(metric)
    if quota is None:
        return None
    limit, usage = quota.get("limit", 0), quota.get("usage", 0)
    if usage + asked <= limit:
        return None
    return (
        f"{where}: quota {metric} is {limit:g}, {usage:g} of it in use, {asked:g} more asked for by {listed(who)}: "
        f"ask Google for {usage + asked:g} (console: IAM & Admin, Quotas), or "
        f"{cure.format(left=max(limit - usage, 0))}."
    )


def estimate(machine, zone, prices):
    """Return {"running": per hour, "stopped": per hour, "currency": …, "missing": sentence or ""}.

    Where the disk's price is not known, `running` is without it and `stopped` None.
    """
    table = (prices.get("regions") or {}).get(region_of(zone)) or {}
    kind = "spot" if machine["spot"] else "on_demand"
    per_machine = (table.get("machines") or {}).get(machine["machine_type"], {}).get(kind)
    per_gb = (table.get("disk_gb_month") or {}).get(machine["disk"]["type"])
    addresses = prices.get("external_address") or {}
    address = addresses.get(kind, 0) if machine["external_address"] else 0
    unused = addresses.get("unused", 0) if machine["reserved_address"] else 0
    result = {"currency": prices.get("currency", "USD"), "running": None, "stopped": None, "missing": ""}
    if per_machine is None:
        what = machine["machine_type"]
        result["missing"] = f"data/gcp/prices.yml has no {kind} price of {what} in {region_of(zone)}"
        return result
    disk = 0
    if per_gb is None:
        result["missing"] = f"without its disk: data/gcp/prices.yml has no price of {machine['disk']['type']} there"
    else:
        disk = machine["disk"]["size_gb"] * per_gb / prices.get("hours_per_month", 730)
        result["stopped"] = round(disk + unused, 4)
    result["running"] = round(per_machine + address + disk, 4)
    return result


def cost_sentences(costs, hours, as_of=""):
    """Say what each machine costs an hour and a month, and the fleet as a whole.

    `hours`: of a month, `as_of`: the date of the table of prices.
    """

    def money(one, state):
        return f"{one[state]:.2f} {one['currency']} an hour ({one[state] * hours:.0f} a month)"

    known = [one for one in costs if one["stopped"] is not None]
    table = f"data/gcp/prices.yml{f', as of {as_of}' if as_of else ''}"
    said = []
    for one in costs:
        if one["running"] is None:
            said.append(f"{one['name']}: no estimate: {one['missing']}.")
        elif one["stopped"] is None:
            said.append(f"{one['name']} costs about {money(one, 'running')} while it runs ({table}), {one['missing']}.")
        else:
            said.append(
                f"{one['name']} costs about {money(one, 'running')} while it runs, {money(one, 'stopped')} while it is "
                f"stopped ({table})."
            )
    if len(costs) > 1 and known:
        total = {state: sum(one[state] for one in known) for state in ("running", "stopped")}
        total["currency"] = known[0]["currency"]
        rest = f", without {len(costs) - len(known)} of which no price is known" if len(known) < len(costs) else ""
        said.append(
            f"The fleet of {len(costs)}{rest} costs about {money(total, 'running')} while all run, "
            f"{money(total, 'stopped')} while all are stopped."
        )
    return said
