"""Bring the firewall rules and machines of one project to their declared state.

Instances, firewalls and other resources are dictionaries as the API returns them; each instance has the name of its
zone as "zone". Machines and rules are the dictionaries that the module gcp_fleet documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from . import gcp_declared as declared
from .gcp_checks import Checks
from .gcp_client import Client, GcpError, credentials_for, unexpected_answer
from .gcp_declared import Change
from .gcp_dns import Records
from .gcp_policies import KINDS, Policies, name_of, schedule_problems, view
from .gcp_updates import Update, requests_for

PARALLEL_MACHINES = 8
ADDRESS_TIMEOUT = 60  # seconds until a running machine has its external address
TRANSITIONAL = {
    "DEPROVISIONING",
    "PENDING",
    "PENDING_STOP",
    "PROVISIONING",
    "REPAIRING",
    "STAGING",
    "STOPPING",
    "SUSPENDING",
}
TRANSITIONAL_DISK = {"CREATING", "DELETING"}


class Undeclared(NamedTuple):
    """Resources with the fleet's mark that are not declared, as the API returns them."""

    machines: list[dict]
    rules: list[dict]
    disks: list[dict]
    addresses: list[dict]
    schedules: list[dict]
    snapshots: list[dict]


class Fleet:
    """One run; `options`: the parameters of the module gcp_fleet.

    The methods named as the module's states do the run. It collects `changes`, `refused` (differences that are left as
    they are) and `remarks`, sentences on what is worth knowing.
    """

    def __init__(self, options: dict, check_mode: bool = False) -> None:
        lists = ("names", "adopt", "delete_undeclared", "delete_disks")
        options = {**options, **{name: [one.strip() for one in options[name]] for name in lists}}
        self.options = options
        self.check_mode = check_mode
        self.project: str = options["project"]
        self.fleet: str = options["fleet"]
        self.names: list[str] = options["names"]
        known = [one["name"] for one in options["machines"]]
        self.limited = declared.limited(known, options["limit"], options["limit_hosts"])
        self.machines: list[dict] = [one for one in options["machines"] if self._chosen(one["name"])]
        self.rules, self.absent_rules, self.rule_problems, self.remarks = declared.effective_rules(
            options["rules"], options["open_to_world"], options["open_to_world_ports"]
        )
        self.changes: list[Change] = []
        self.refused: list[str] = []
        self.unreached: list[str] = []  # zones that the list of instances does not include
        self._credentials: Any = None
        self.policies = Policies(self)
        self.records = Records(self, options["dns_zone"])

    def _chosen(self, name: str) -> bool:
        return name in self.limited and (not self.names or name in self.names)

    @property
    def everything(self) -> bool:
        """Whether the run is about all declared machines."""
        return len(self.machines) == len(self.options["machines"])

    def client(self) -> Client:
        """Return a new client; threads cannot share one. Raises GcpError where there are no credentials."""
        if self._credentials is None:
            self._credentials = credentials_for(self.options["service_account_file"])
        return Client(
            self.project,
            self._credentials,
            tries=self.options["tries"],
            pause=self.options["retry_pause"],
            operation_timeout=self.options["operation_timeout"],
        )

    # --- reading ------------------------------------------------------------------------------------------------

    def instances(self) -> list[dict]:
        """Return all instances of the project and note the zones that could not be reached."""
        found, self.unreached = self.client().aggregated("aggregated/instances", "instances")
        if not all(isinstance(one.get("status"), str) for one in found):
            raise unexpected_answer("GET aggregated/instances")
        return [{**one, "zone": one["scope"]} for one in found]

    def firewalls(self) -> dict[str, dict]:
        """Return all firewall rules of the project by name."""
        return {one["name"]: one for one in self.client().list("global/firewalls")}

    def ours(self, resource: dict) -> bool:
        """Return whether a resource has the fleet's mark or is adopted."""
        return declared.made_by(resource, self.fleet) or resource["name"] in self.options["adopt"]

    def find(self, machine: dict, instances: list[dict]) -> dict | None:
        """Return the instance of a machine, found by name, zone and mark; None where it does not exist.

        Raises GcpError where it is in a zone that is not declared, where an instance of another owner has its name, and
        where one of its zones could not be reached.
        """
        name = machine["name"]
        same = [one for one in instances if one["name"] == name]
        here = [one for zone in machine["zones"] for one in same if one["zone"] == zone]
        for one in here:
            if self.ours(one):
                return one
        if here:
            raise GcpError(
                f"{name} in {here[0]['zone']} {declared.origin(here[0])} and is left alone: give the machine of "
                f"gcp_machines another name, or take that one over as it is (gcp_adopt: [{name}])."
            )
        moved = [one["zone"] for one in same if declared.made_by(one, self.fleet)]
        if moved:
            raise GcpError(
                f"{name} exists in zone {moved[0]}, which its zones in gcp_machines do not name: add {moved[0]} "
                "there, or remove that machine first."
            )
        unreached = [zone for zone in machine["zones"] if zone in self.unreached]
        if unreached:
            raise GcpError(
                f"{name}: the Compute API cannot reach zone {declared.listed(unreached)} at present (UNREACHABLE), so "
                "it is not known whether the machine is there: nothing is done about it; try later."
            )
        for one in same:
            self.remarks.append(f"{name} in {one['zone']} {declared.origin(one)} and is left alone.")
        return None

    def declaration_problems(self) -> list[str]:
        """Return a sentence for each invalid value of the options; sends no request."""
        problems: list[str] = []
        if not self.project:
            problems.append("gcp_project is empty: set it to the ID of your Google Cloud project.")
        if not declared.NAME.fullmatch(self.fleet):
            problems.append(
                f"gcp_fleet_name '{self.fleet}' must be 1-63 lower-case letters, digits and hyphens, a letter first."
            )
        problems += declared.machine_problems(self.options["machines"], self.options["accelerators"])
        for machine in self.options["machines"]:
            problems += schedule_problems(f"gcp_machines: {machine['name']}", machine)
        problems += declared.rule_problems(self.options["rules"]) + self.rule_problems
        known = [one["name"] for one in self.options["machines"]]
        if self.options["state"] == "absent":
            if not any(self.names):
                problems.append("gcp_decommission is empty: give the name of the machine to delete.")
            outside = [name for name in self.names if name in known and name not in self.limited]
            problems += [
                f"'{name}' is not among what --limit names: leave it out of one of the two." for name in outside
            ]
            return problems
        problems += [
            f"'{name}' is not among gcp_machines ({declared.listed(known)})."
            for name in self.names
            if name not in known
        ]
        if not problems and not self.machines:
            problems.append(
                f"--limit {self.options['limit']} names no machine of gcp_machines ({declared.listed(known)})."
            )
        rules = {rule["name"] for rule in self.options["rules"] if rule["state"] == "present"}
        problems += [
            f"gcp_delete_undeclared names '{name}', which is declared: take it out of gcp_machines or "
            "gcp_firewall_rules first."
            for name in self.options["delete_undeclared"]
            if name in known or name in rules
        ]
        return problems

    # --- checked: before anything is created --------------------------------------------------------------------

    def checked(self) -> tuple[list[str], list[dict], list[dict]]:
        """Check everything that `present` needs. Returns (problems, cost estimates, machines to create or start)."""
        problems = self.declaration_problems()
        estimates = [
            {"name": one["name"], **declared.estimate(one, one["zones"][0], self.options["prices"])}
            for one in self.machines
            if one["zones"]
        ]
        if not self.project:
            return problems, estimates, []
        try:
            found, to_start = Checks(self).problems()
        except GcpError as error:
            found, to_start = [str(error)], []
        return problems + found, estimates, to_start

    # --- resources that are no longer declared ------------------------------------------------------------------

    def undeclared(self, instances: list[dict], firewalls: dict[str, dict]) -> Undeclared:
        """Return the resources with the fleet's mark that are not declared."""
        places = {(one["name"], zone) for one in self.options["machines"] for zone in one["zones"]}
        names = {one["name"] for one in self.options["machines"]}
        machines = [
            one
            for one in instances
            # `find` reports one that is declared for other zones.
            if declared.made_by(one, self.fleet)
            and (one["name"], one["zone"]) not in places
            and (one["name"] not in names or self._has_declared_copy(one, instances))
        ]
        known = {rule["name"] for rule in self.rules} | self.absent_rules
        rules = [one for one in firewalls.values() if declared.made_by(one, self.fleet) and one["name"] not in known]
        disks = [
            one for one in self._marked("disks") if not one.get("users") and one.get("status") not in TRANSITIONAL_DISK
        ]
        return Undeclared(
            machines,
            rules,
            disks,
            self._undeclared_addresses(instances),
            self._undeclared_schedules(instances),
            self._undeclared_snapshots(),
        )

    def _has_declared_copy(self, instance: dict, instances: list[dict]) -> bool:
        """Return whether a machine of the same name is in one of its declared zones too."""
        zones = [zone for one in self.options["machines"] if one["name"] == instance["name"] for zone in one["zones"]]
        same = [one for one in instances if one["name"] == instance["name"] and one["zone"] in zones]
        return any(declared.made_by(one, self.fleet) for one in same)

    def _marked(self, kind: str) -> list[dict]:
        """Return all resources of a kind with the fleet's mark, none where the account cannot list them."""
        client = self.client()
        try:
            if kind == "snapshots":
                found = list(client.list("global/snapshots"))
            else:
                found, _ = client.aggregated(f"aggregated/{kind}", kind)
        except GcpError as error:
            if error.status not in (403, 404, 501):
                raise
            return []
        return [one for one in found if declared.made_by(one, self.fleet)]

    def _undeclared_addresses(self, instances: list[dict]) -> list[dict]:
        """Return the reserved addresses with the mark that no declared machine has."""
        wanted = self._machine_regions(instances, [one for one in self.options["machines"] if one["reserved_address"]])
        return [one for one in self._marked("addresses") if (one["name"], one["scope"]) not in wanted]

    def _undeclared_schedules(self, instances: list[dict]) -> list[dict]:
        """Return the schedules with the mark that no declared machine has."""
        machines = self._machine_regions(instances, self.options["machines"])
        wanted = {(name_of(name, kind), region) for name, region in machines for kind in KINDS}
        return [one for one in self._marked("resourcePolicies") if (one["name"], one["scope"]) not in wanted]

    def _undeclared_snapshots(self) -> list[dict]:
        """Return the snapshots with the mark that are not the source of a declared machine."""
        wanted = {one["snapshot"] for one in self.options["machines"]}
        return [one for one in self._marked("snapshots") if one["name"] not in wanted]

    def _machine_regions(self, instances: list[dict], machines: list[dict]) -> set[tuple[str, str]]:
        """Return (name, region) of the regions that machines are in or can be created in."""
        return {(one["name"], declared.region_of(zone)) for one in machines for zone in self._zones_of(one, instances)}

    def _zones_of(self, machine: dict, instances: list[dict]) -> list[str]:
        """Return the zone that a machine is in, or the zones that it can be created in."""
        same = [one for one in instances if one["name"] == machine["name"] and one["zone"] in machine["zones"]]
        return [one["zone"] for one in same if self.ours(one)] or machine["zones"]

    def _report_undeclared(self, found: Undeclared, deleted: Collection[str] = ()) -> None:
        """Remark on undeclared resources, except those with a name in `deleted`."""
        texts = [(f"machine {one['name']} in {one['zone']} ({one['status']})", one) for one in found.machines]
        texts += [(f"rule {one['name']}", one) for one in found.rules]
        texts += [(f"disk {one['name']} in {one['scope']}", one) for one in found.disks]
        texts += [(f"address {one['name']} in {one['scope']} ({one.get('address')})", one) for one in found.addresses]
        texts += [(f"schedule {one['name']} in {one['scope']}", one) for one in found.schedules]
        left = [(text, one["name"]) for text, one in texts if one["name"] not in deleted]
        way = "playbooks/gcp_provision.yml -e gcp_delete_undeclared="
        if left:
            self.remarks.append(
                f"Made here, no longer declared, and open or paid for: {declared.listed(text for text, _ in left)}. "
                f"Declare it again, or have it deleted by {way}{','.join(dict.fromkeys(name for _, name in left))} (a "
                "machine's disk with it)."
            )
        kept = [one for one in found.snapshots if one["name"] not in deleted]
        if kept:
            self.remarks.append(
                f"Snapshots that were taken here and cost: {declared.listed(snapshot_text(one) for one in kept)}; "
                f"{way}{','.join(one['name'] for one in kept)} deletes them."
            )

    def _delete_undeclared(self, found: Undeclared) -> list[str]:
        """Delete the undeclared resources that gcp_delete_undeclared names. Returns problems."""
        names = set(self.options["delete_undeclared"])
        mine = {one["name"] for resources in found for one in resources}
        self.remarks += [
            f"gcp_delete_undeclared names '{name}': nothing of that name that was made here is left."
            for name in sorted(names - mine)
        ]
        client = self.client()
        for one in found.rules:
            if one["name"] in names:
                self._rule_absent(client, one)
        _, problems = self._for_each_machine(
            self._delete_machine,
            [({"name": one["name"], "zones": [one["zone"]]}, one) for one in found.machines if one["name"] in names],
        )
        for one in found.disks:
            if one["name"] in names:
                what = f"delete disk {one['name']} in {one['scope']}"
                shown = {"zone": one["scope"], "size_gb": one.get("sizeGb")}
                self._apply(client, what, shown, None, ("DELETE", f"zones/{one['scope']}/disks/{one['name']}"))
        for one in found.addresses:
            if one["name"] in names:
                self._release_address(client, one["name"], one["scope"], one.get("address"))
        for one in found.schedules:
            if one["name"] in names:
                path = f"regions/{one['scope']}/resourcePolicies/{one['name']}"
                self._apply(client, f"delete schedule {one['name']}", view(one), None, ("DELETE", path))
        for one in found.snapshots:
            if one["name"] in names:
                path = f"global/snapshots/{one['name']}"
                self._apply(
                    client, f"delete snapshot {one['name']}", {"size_gb": one.get("diskSizeGb")}, None, ("DELETE", path)
                )
        return problems

    # --- present: rules, then machines --------------------------------------------------------------------------

    def present(self) -> Outcome:
        """Create and update the rules, then the machines in parallel."""
        instances, firewalls = self.instances(), self.firewalls()
        orphans = self.undeclared(instances, firewalls)
        problems = self.foreign_rules(firewalls)
        if problems:
            self._report_undeclared(orphans)
            return [], problems
        problems += self._delete_undeclared(orphans) if self.options["delete_undeclared"] else []
        self._report_undeclared(orphans, deleted=self.options["delete_undeclared"])
        self._rules_present(firewalls)
        results, more = self._for_each_machine(
            lambda client, machine, result: self._machine_present(client, machine, instances, result)
        )
        return results, problems + more

    def wanted_rules(self) -> list[dict]:
        """Return the rules that apply to the chosen machines; all rules where all machines are chosen."""
        tags = {tag for one in self.machines for tag in one["tags"]}
        return [rule for rule in self.rules if self.everything or tags & set(rule["target_tags"])]

    def foreign_rules(self, firewalls: dict[str, dict]) -> list[str]:
        """Return a sentence for each declared rule whose name a rule of another owner has."""
        return [
            f"rule {rule['name']} {declared.origin(firewalls[rule['name']])} and is left alone: give the rule of "
            f"gcp_firewall_rules another name, or take that one over, with all that is declared "
            f"(-e gcp_adopt={rule['name']}; it is then deleted with the fleet's last machine)."
            for rule in self.wanted_rules()
            if rule["name"] in firewalls and not self.ours(firewalls[rule["name"]])
        ]

    def _rules_present(self, firewalls: dict[str, dict]) -> None:
        client = self.client()
        for rule in self.wanted_rules():
            self._rule_present(client, rule, firewalls.get(rule["name"]))
        for name in sorted(self.absent_rules) if self.everything else []:
            if name in firewalls:
                self._rule_absent(client, firewalls[name])

    def _rule_present(self, client: Client, rule: dict, firewall: dict | None) -> None:
        body = declared.rule_body(self.project, rule, self.fleet)
        after = declared.rule_view(self.project, body)
        path = f"global/firewalls/{rule['name']}"
        if firewall is None:
            self._apply(client, f"make rule {rule['name']}", None, after, ("POST", "global/firewalls", body))
            return
        before = declared.rule_view(self.project, firewall)
        patch, replace = declared.rule_patch(self.project, rule, firewall, self.fleet)
        if not patch:
            return
        if "description" in patch:
            before["description"] = firewall.get("description", "")
            after["description"] = body["description"]
        if replace:
            self._recreate_rule(client, rule, before, after, body)
        else:
            self._apply(client, f"update rule {rule['name']}", before, after, ("PATCH", path, patch))

    def _recreate_rule(self, client: Client, rule: dict, before: dict, after: dict, body: dict) -> None:
        """Delete a rule and create it again. Raises GcpError; where the second step fails, with the state after it."""
        name = rule["name"]
        if not self.check_mode:
            self._send(client, "DELETE", f"global/firewalls/{name}")
            try:
                self._send(client, "POST", "global/firewalls", body)
            except GcpError as error:
                self.changes.append(Change(f"delete rule {name}", before, None))
                raise GcpError(
                    f"rule {name} was deleted to be made anew, and that was refused, so its ports are closed now: "
                    f"{error} The next run of playbooks/gcp_provision.yml makes it.",
                    error.status,
                    error.reasons,
                ) from None
        self.changes.append(Change(f"make rule {name} anew", before, after))

    def _rule_absent(self, client: Client, firewall: dict) -> None:
        name = firewall["name"]
        if not declared.made_by(firewall, self.fleet):
            self.remarks.append(f"rule {name} {declared.origin(firewall)} and is left alone.")
            return
        before = declared.rule_view(self.project, firewall)
        self._apply(client, f"delete rule {name}", before, None, ("DELETE", f"global/firewalls/{name}"))

    def _machine_present(self, client: Client, machine: dict, instances: list[dict], result: Result) -> None:
        """Create or update a machine and start it, with its address, schedules and DNS records."""
        instance = self.find(machine, instances)
        if instance is not None and instance["status"] in TRANSITIONAL and not self.check_mode:
            # It may be about to disappear: the deletion of an interrupted decommission continues.
            instance = self._wait_until_settled(client, instance["zone"], machine["name"])
        if instance is None and self.check_mode:
            result.zone, result.status = machine["zones"][0], "would be made"
            if machine["reserved_address"]:
                self._reserve(client, machine, declared.region_of(machine["zones"][0]), result)
            result.changes.append(self._creation(machine, machine["zones"][0]))
            self.policies.present(client, machine, machine["zones"][0], None, result)
            self.records.present(client, machine["name"], None, result)
            return
        if instance is None:
            instance = self._create(client, machine, result)
        if machine["reserved_address"]:
            instance = self._assign_reserved_address(client, machine, instance, result)
        instance = self._update_machine(client, machine, instance, result)
        self.policies.present(client, machine, instance["zone"], instance, result)
        started = self._start(client, instance, result)
        if started is None:
            raise GcpError(f"{machine['name']} in {instance['zone']} is gone again: see who deleted it.")
        self._record_address(client, started, result)

    def _record_address(self, client: Client, instance: dict, result: Result) -> None:
        """Note the instance's state in its result, and point its DNS name to its address."""
        result.update_from(instance)
        # In check mode a machine that is to be started has no address yet.
        if result.address or result.status == "RUNNING" or not self.check_mode:
            self.records.present(client, result.name, result.address or result.internal_address, result)

    # --- reserved addresses -------------------------------------------------------------------------------------

    @property
    def has_reserved(self) -> bool:
        """Whether a chosen machine has a reserved address."""
        return any(one["reserved_address"] for one in self.machines)

    def reserved(self, client: Client, machine: dict, region: str) -> str | None:
        """Return the address that is reserved for a machine in a region, None where there is none.

        Raises GcpError where an address of another owner has the name.
        """
        found = client.get(f"regions/{region}/addresses/{machine['name']}", missing_ok=True)
        if found is not None and not self.ours({"name": machine["name"], **found}):
            raise GcpError(
                f"{machine['name']}: an address of that name in {region} {declared.origin(found)} and is left alone: "
                f"give the machine another name, or take that one over (gcp_adopt: [{machine['name']}])."
            )
        return found and found.get("address")

    def _reserve(
        self, client: Client, machine: dict, region: str, result: Result, current: str | None = None
    ) -> str | None:
        """Return the reserved address of a machine; where there is none, reserve `current` or a new one.

        None where check mode would reserve a new one.
        """
        address = self.reserved(client, machine, region)
        if address:
            return address
        name = machine["name"]
        change = Change(f"reserve address {name} in {region}", None, {"region": region, "address": current})
        if not self.check_mode:
            self._send(client, "POST", f"regions/{region}/addresses", declared.address_body(name, self.fleet, current))
            address = self.reserved(client, machine, region)
            if not address:
                raise unexpected_answer(f"GET regions/{region}/addresses/{name}")
        result.changes.append(change)
        return address

    def _assign_reserved_address(self, client: Client, machine: dict, instance: dict, result: Result) -> dict:
        """Reserve the address of an existing instance, or assign it the reserved one; return the instance then."""
        zone, name = instance["zone"], machine["name"]
        current, _ = declared.addresses(instance)
        address = self._reserve(client, machine, declared.region_of(zone), result, current)
        if self.check_mode and not address:
            return instance
        if current == address:
            return instance
        change = Change(f"give {name} its reserved address", {"address": current}, {"address": address})
        if not self.check_mode:
            path = f"zones/{zone}/instances/{name}"
            nic = declared.first_interface(instance)
            params = {"networkInterface": nic.get("name", "nic0")}
            for access in nic.get("accessConfigs") or []:
                client.change("POST", f"{path}/deleteAccessConfig", None, accessConfig=access["name"], **params)
            client.change("POST", f"{path}/addAccessConfig", {**declared.ACCESS, "natIP": address}, **params)
            instance = {**client.get(path), "zone": zone}
        result.changes.append(change)
        return instance

    def _release_address(self, client: Client, name: str, region: str, address: str | None) -> None:
        what = f"give address {name} in {region} back"
        self._apply(client, what, {"address": address}, None, ("DELETE", f"regions/{region}/addresses/{name}"))

    def _release_reserved(self) -> None:
        """Release the reserved addresses of deleted machines with release_addresses, else remark that they stay."""
        client = self.client()
        for machine in self.machines if self.has_reserved else []:
            regions = dict.fromkeys(declared.region_of(zone) for zone in machine["zones"])
            for region in regions if machine["reserved_address"] else []:
                found = client.get(f"regions/{region}/addresses/{machine['name']}", missing_ok=True)
                if found is None or not declared.made_by(found, self.fleet):
                    continue
                if self.options["release_addresses"]:
                    self._release_address(client, machine["name"], region, found.get("address"))
                else:
                    self.remarks.append(
                        f"address {machine['name']} ({found.get('address')}) in {region} stays reserved and costs; "
                        "-e gcp_release_addresses=true gives it back."
                    )

    def _creation(self, machine: dict, zone: str) -> Change:
        view = declared.declared_view(machine)
        return Change(f"make {machine['name']} in {zone}", None, {"zone": zone, **view})

    def _create(self, client: Client, machine: dict, result: Result) -> dict:
        """Insert an instance into the first declared zone that has capacity; return it once it has settled.

        An instance that appears meanwhile (a lost answer, another run) is accepted: it is compared afterwards.
        Raises GcpError where no zone has capacity.
        """
        zones: list[str] = []
        for zone in machine["zones"]:
            try:
                region = declared.region_of(zone)
                address = self._reserve(client, machine, region, result) if machine["reserved_address"] else None
                self._insert(client, machine, zone, address)
            except GcpError as error:
                if not error.stockout:
                    raise
                result.tried.append({"zone": zone, "reason": str(error)})
                zones += error.zones_available
                continue
            result.changes.append(self._creation(machine, zone))
            result.zone = zone
            instance = self._wait_until_settled(client, zone, machine["name"])
            if instance is None:
                raise GcpError(f"{machine['name']} was made in {zone} and is gone again: see who deleted it.")
            return instance
        elsewhere = f" The API names {declared.listed(dict.fromkeys(zones))}." if zones else ""
        raise GcpError(
            f"{machine['name']}: no capacity in {declared.listed(machine['zones'])}: "
            f"{result.tried[-1]['reason']}{elsewhere} Add a zone to its zones in gcp_machines, or try later."
        )

    def _insert(self, client: Client, machine: dict, zone: str, address: str | None = None) -> None:
        """Insert an instance; retry while a resource that is being deleted still has its name."""
        name, deadline = machine["name"], time.monotonic() + self.options["operation_timeout"]
        body = declared.machine_body(self.project, zone, machine, self.fleet, address)
        while True:
            try:
                client.change("POST", f"zones/{zone}/instances", body)
                return
            except GcpError as error:
                if not error.exists:
                    raise
                instance = client.get(f"zones/{zone}/instances/{name}", missing_ok=True)
                if instance is not None:
                    if self.ours(instance):
                        return
                    raise
                disk = client.get(f"zones/{zone}/disks/{name}", missing_ok=True)
                if (disk is None or disk.get("status") in TRANSITIONAL_DISK) and time.monotonic() < deadline:
                    time.sleep(min(self.options["retry_pause"], 5))
                    continue
                # The disk of a machine that was deleted without its disk has the name.
                raise GcpError(
                    f"{error} {declared.leftover_disk_cure(name, zone)}", error.status, error.reasons
                ) from None

    def _wait_until_settled(self, client: Client, zone: str, name: str) -> dict | None:
        """Return an instance once its status is not transitional and it has its external address; None once deleted.

        Raises GcpError where that takes longer than operation_timeout.
        """
        begin = time.monotonic()
        pause = min(self.options["retry_pause"], 0.5)
        while True:
            instance = client.get(f"zones/{zone}/instances/{name}", missing_ok=True)
            if instance is None:
                return None
            if not isinstance(instance.get("status"), str):
                raise unexpected_answer(f"GET zones/{zone}/instances/{name}")
            instance["zone"] = zone
            interface = declared.first_interface(instance)
            external, _ = declared.addresses(instance)
            lacks_address = instance["status"] == "RUNNING" and interface.get("accessConfigs") and not external
            elapsed = time.monotonic() - begin
            if instance["status"] not in TRANSITIONAL and (not lacks_address or elapsed > ADDRESS_TIMEOUT):
                return instance
            if elapsed > self.options["operation_timeout"]:
                raise GcpError(
                    f"{name} did not settle within {self.options['operation_timeout']} s (status "
                    f"{instance['status']}): look at it in the console, or raise gcp_operation_timeout."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5)

    def _update_machine(self, client: Client, machine: dict, instance: dict, result: Result) -> dict:
        """Change the fields that differ from the declaration, as far as the status allows; return the instance then.

        The other differences go to the result as refused.
        """
        zone, name = instance["zone"], machine["name"]
        stopped = instance["status"] in ("TERMINATED", "STOPPED")
        disk, family = self._boot_disk_and_image(client, zone, instance)
        wanted = declared.declared_view(machine)
        for difference in declared.differences(wanted, declared.actual_view(machine, instance, disk, family)):
            if difference.cure == declared.NEW or (difference.cure == declared.STOPPED and not stopped):
                result.refused.append(declared.refusal(name, difference))
                continue
            field = difference.field
            change = Change(f"update {field} of {name}", {field: difference.actual}, {field: difference.declared})
            if not self.check_mode:
                try:
                    instance = self._update_field(client, machine, zone, field) or instance
                except GcpError as error:
                    if field == "scheduling" and error.status == 400 and not stopped:
                        difference.cure = declared.STOPPED
                        result.refused.append(f"{declared.refusal(name, difference)} ({error})")
                        continue
                    raise
            result.changes.append(change)
        return instance

    def _boot_disk_and_image(self, client: Client, zone: str, instance: dict) -> tuple[dict | None, str | None]:
        """Return (Disk, "project/family") of the boot disk; None, with a remark, for what may not be read."""
        name, source = instance["name"], declared.last(declared.boot_disk(instance).get("source"))
        disk = self.get_if_readable(client, f"zones/{zone}/disks/{source}", name, "disk") if source else None
        parts = declared.tail((disk or {}).get("sourceImage"), self.project).split("/")
        if len(parts) < 2:
            return disk, None
        # Google deletes old images; their disks keep working.
        family: str | None = parts[-1]
        if "family" not in parts:
            family = (self.get_if_readable(client, "/".join(parts), name, "image") or {}).get("family")
        return disk, f"{parts[1]}/{family}" if family else None

    def get_if_readable(self, client: Client, path: str, who: str, what: str) -> dict | None:
        """Return a resource that is only compared: None where it does not exist, or, with a remark, may not be read."""
        try:
            return client.get(path, missing_ok=True)
        except GcpError as error:
            if error.status not in (403, 501):
                raise
            self.remarks.append(f"{who}: its {what} is not compared: {error}")
            return None

    def _update_field(self, client: Client, machine: dict, zone: str, field: str) -> dict | None:
        """Change a field, with fresh fingerprints; return the instance then."""
        path = f"zones/{zone}/instances/{machine['name']}"
        body = declared.machine_body(self.project, zone, machine, self.fleet)
        for attempt in (1, 2):
            instance = {**client.get(path), "zone": zone}
            try:
                for request in requests_for(field, Update(client, machine, body, instance)):
                    client.change(request.method, request.path, request.body, **request.params)
                return {**client.get(path), "zone": zone}
            except GcpError as error:
                # 412: somebody else changed it between the read and the write.
                if error.status != 412 or attempt == 2:
                    raise
        return None

    # --- started, stopped, absent -------------------------------------------------------------------------------

    def started(self) -> Outcome:
        """Start the machines. Machines that do not exist are problems."""
        instances = self.instances()
        self._report_undeclared(self.undeclared(instances, self.firewalls()))

        def start(client: Client, machine: dict, result: Result) -> None:
            instance = self.find(machine, instances)
            instance = instance and self._start(client, instance, result)
            if instance is None:
                raise GcpError(f"{machine['name']} does not exist: make it with playbooks/gcp_provision.yml.")
            self._record_address(client, instance, result)

        return self._for_each_machine(start)

    def _start(self, client: Client, instance: dict, result: Result) -> dict | None:
        """Start or resume an instance unless it runs; return it then, with its new address, None where it was deleted.

        Raises GcpError where its zone has no capacity.
        """
        zone, name = instance["zone"], instance["name"]
        if instance["status"] in TRANSITIONAL and not self.check_mode:
            settled = self._wait_until_settled(client, zone, name)
            if settled is None:
                return None
            instance = settled
        if instance["status"] == "RUNNING" or instance["status"] in TRANSITIONAL:
            if result.changes and not self.check_mode:
                return self._wait_until_settled(client, zone, name)
            return instance
        change = Change(f"start {name}", {"status": instance["status"]}, {"status": "RUNNING"})
        if self.check_mode:
            result.changes.append(change)
            return instance
        verb = "resume" if instance["status"] == "SUSPENDED" else "start"
        try:
            client.change("POST", f"zones/{zone}/instances/{name}/{verb}")
        except GcpError as error:
            if error.stockout:
                raise GcpError(
                    f"{error} Its disk is in {zone}, so it can start only there: try later, or move it to another zone "
                    "by a snapshot (docs/google-cloud.md, Snapshots).",
                    error.status,
                    error.reasons,
                ) from None
            raise
        result.changes.append(change)
        return self._wait_until_settled(client, zone, name)

    def stopped(self) -> Outcome:
        """Stop the machines that run."""
        instances = self.instances()
        self._report_undeclared(self.undeclared(instances, self.firewalls()))

        def stop(client: Client, machine: dict, result: Result) -> None:
            instance = self.find(machine, instances)
            if instance is not None and instance["status"] in TRANSITIONAL and not self.check_mode:
                instance = self._wait_until_settled(client, instance["zone"], instance["name"])
            if instance is None:
                return
            zone, name = instance["zone"], instance["name"]
            if instance["status"] in ("RUNNING", *TRANSITIONAL):
                change = Change(f"stop {name}", {"status": instance["status"]}, {"status": "TERMINATED"})
                if not self.check_mode:
                    client.change("POST", f"zones/{zone}/instances/{name}/stop")
                    instance = self._wait_until_settled(client, zone, name)
                result.changes.append(change)
            if instance is not None:
                result.update_from(instance)

        return self._for_each_machine(stop)

    def saved(self) -> Outcome:
        """Take a snapshot of each machine's boot disk."""
        instances = self.instances()

        def save(client: Client, machine: dict, result: Result) -> None:
            instance = self.find(machine, instances)
            if instance is None:
                raise GcpError(f"{machine['name']} does not exist: there is no disk to take a snapshot of.")
            self.policies.save(client, instance, result)
            result.update_from(instance)

        return self._for_each_machine(save)

    def absent(self) -> Outcome:
        """Delete the named machines, then the rules that no remaining machine needs."""
        instances, firewalls = self.instances(), self.firewalls()
        orphans = self.undeclared(instances, firewalls)
        known = {one["name"] for one in self.options["machines"]}
        strays = [one for one in orphans.machines if one["name"] in self.names and one["name"] not in known]
        unknown = sorted(set(self.names) - known - {one["name"] for one in strays} - {""})
        if unknown:
            return [], [
                f"'{name}' is not among gcp_machines ({declared.listed(known)}), and no machine of that name was made "
                "here: nothing is deleted."
                for name in unknown
            ]
        # All are found before the first is deleted: where one belongs to another owner, none is deleted.
        found: list[tuple[dict, dict]] = []
        problems: list[str] = []
        for machine in self.machines:
            try:
                instance = self.find(machine, instances)
                if instance is not None and not declared.made_by(instance, self.fleet):
                    raise GcpError(
                        f"{machine['name']} in {instance['zone']} was adopted, {declared.origin(instance)} and is not "
                        f"deleted: gcloud compute instances delete {machine['name']} --zone={instance['zone']} would."
                    )
                if instance is not None and instance.get("deletionProtection"):
                    raise GcpError(protection_sentence(instance))
                found += [(machine, instance)] if instance is not None else []
            except GcpError as error:
                problems.append(str(error))
        problems += [protection_sentence(one) for one in strays if one.get("deletionProtection")]
        if problems:
            return [], problems
        found += [({"name": one["name"], "zones": [one["zone"]]}, one) for one in strays]
        results, problems = self._for_each_machine(self._delete_machine, found)
        removed = {(result.name, result.zone) for result in results}
        left = [one for one in instances if (one["name"], one["zone"]) not in removed]
        self._delete_unused_rules(firewalls, left)
        if not problems:
            self._release_reserved()
        kept = [one for one in orphans.machines if (one["name"], one["zone"]) not in removed]
        self._report_undeclared(orphans._replace(machines=kept))
        absent = [one for one in self.machines if one["name"] not in {result.name for result in results}]
        return results + [Result(one["name"]) for one in absent if not problems], problems

    def _delete_unused_rules(self, firewalls: dict[str, dict], left: list[dict]) -> None:
        """Delete the rules that apply to none of the instances that are left, and remark on the others."""
        client = self.client()
        for name in sorted(self.absent_rules | {rule["name"] for rule in self.rules}):
            firewall = firewalls.get(name)
            if firewall is None:
                continue
            tags = set(firewall.get("targetTags") or [])
            users = [one["name"] for one in left if tags & set((one.get("tags") or {}).get("items") or [])]
            if users:
                self.remarks.append(f"rule {name} stays: {declared.listed(users)} uses it.")
            elif self.unreached:
                self.remarks.append(
                    f"rule {name} stays: zone {declared.listed(self.unreached)} cannot be reached at present, and a "
                    "machine there may use it."
                )
            else:
                self._rule_absent(client, firewall)

    def _delete_machine(self, client: Client, found: tuple[dict, dict], result: Result) -> None:
        """Delete the instance of (machine, instance) with its disks, schedules and DNS records.

        An earlier run may have done a part of it.
        """
        _, instance = found
        zone, name = instance["zone"], instance["name"]
        result.zone = zone
        path = f"zones/{zone}/instances/{name}"
        deleted, stay, _ = declared.disks_at_delete(
            instance, self.options["keep_boot_disk"], self.options["delete_disks"]
        )
        words = f"delete {name} in {zone}" + (f" and its {declared.disk_text(deleted)}" if deleted else "")
        shown = {
            "zone": zone,
            "machine_type": declared.last(instance.get("machineType")),
            "tags": sorted((instance.get("tags") or {}).get("items") or []),
            "labels": instance.get("labels") or {},
            "disks": [disk for disk, _ in deleted],
        }
        if stay:
            verb = "would stay" if self.check_mode else "stays"
            self.remarks.append(f"{name}: {declared.disk_text(stay)} in {zone} {verb} and costs.")
        if self.options["snapshot_before"]:
            self.policies.save(client, instance, result)
        if not self.check_mode:
            self._delete_and_wait(client, zone, name, path)
        result.changes.append(Change(words, shown, None))
        self.policies.absent(client, instance, result)
        self.records.absent(client, name, result)

    def _delete_and_wait(self, client: Client, zone: str, name: str, path: str) -> None:
        """Set the disks' auto-delete, delete the instance and wait until it is gone.

        Raises GcpError where it is another owner's or still exists after operation_timeout.
        """
        deadline = time.monotonic() + self.options["operation_timeout"]
        keep, named = self.options["keep_boot_disk"], self.options["delete_disks"]
        while time.monotonic() < deadline:
            instance = self._wait_until_settled(client, zone, name)
            if instance is None:
                return
            if not declared.made_by(instance, self.fleet):
                raise GcpError(f"{name} in {zone} {declared.origin(instance)} and is left alone.")
            try:
                for device, auto in declared.disks_at_delete(instance, keep, named)[2].items():
                    params = {"autoDelete": str(auto).lower(), "deviceName": device}
                    client.change("POST", f"{path}/setDiskAutoDelete", None, **params)
                client.change("DELETE", path)
            except GcpError as error:
                # Deleted meanwhile, or being deleted: read it again.
                if not error.absent and "resourceNotReady" not in error.reasons:
                    raise
        raise GcpError(
            f"{name}: still there {self.options['operation_timeout']} s after its deletion: look at it in the console, "
            "or raise gcp_operation_timeout."
        )

    # --- common -------------------------------------------------------------------------------------------------

    def _apply(self, client: Client, what: str, before: dict | None, after: dict | None, request: tuple) -> None:
        """Send a change, unless in check mode, and note it; `request`: the arguments of `_send`."""
        if not self.check_mode:
            self._send(client, *request)
        self.changes.append(Change(what, before, after))

    @staticmethod
    def _send(client: Client, method: str, path: str, body: dict | None = None) -> None:
        """Send a change; creating what exists and deleting what does not exist is no error."""
        try:
            client.change(method, path, body)
        except GcpError as error:
            # Created or deleted meanwhile: a lost answer, or another run. The next run compares it.
            if not (error.exists if method == "POST" else method == "DELETE" and error.absent):
                raise

    def _for_each_machine(
        self, action: Callable[[Client, Any, Result], None], items: Sequence[Any] | None = None
    ) -> Outcome:
        """Run an action for all machines in parallel; a failure of one does not stop the others.

        `items`: the second argument of each action instead of the chosen machines, tuples that begin with a machine.
        """
        results: list[Result] = []
        problems: list[str] = []
        with ThreadPoolExecutor(max_workers=PARALLEL_MACHINES) as pool:
            begun = []
            for item in self.machines if items is None else items:
                result = Result((item[0] if isinstance(item, tuple) else item)["name"])
                begun.append((result, pool.submit(action, self.client(), item, result)))
        for result, future in begun:
            # Changes made before a failure count too.
            self.changes += result.changes
            self.refused += result.refused
            self.remarks += [f"{result.name}: {one['zone']} has no capacity: {one['reason']}" for one in result.tried]
            try:
                future.result()
            except GcpError as error:
                sentence = str(error)
                problems.append(sentence if sentence.startswith(result.name) else f"{result.name}: {sentence}")
                continue
            results.append(result)
            if result.tried:
                self.remarks.append(f"{result.name}: made in {result.zone} instead.")
        return results, problems


class Result:
    """The state of one machine after its action.

    `refused`: differences that are left as they are, `tried`: {zone, reason} of the zones without capacity.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.zone: str | None = None
        self.status = "absent"
        self.address: str | None = None
        self.internal_address: str | None = None
        self.changes: list[Change] = []
        self.refused: list[str] = []
        self.tried: list[dict[str, str]] = []

    def update_from(self, instance: dict) -> None:
        """Take zone, status and addresses from an instance."""
        self.zone = instance["zone"]
        self.status = instance["status"]
        self.address, self.internal_address = declared.addresses(instance)

    def sentence(self) -> str:
        """Return the machine's state as a sentence."""
        if self.status in ("absent", "would be made"):
            return f"{self.name}: {self.status}{f' in {self.zone}' if self.zone else ''}."
        where = f" at {self.address or 'no external address'} (internal {self.internal_address})"
        stays = ", without an external address; its disk stays and costs"
        return f"{self.name} in {self.zone} is {self.status}{where if self.status == 'RUNNING' else stays}."

    def as_dict(self) -> dict:
        """Return the machine as the module gcp_fleet documents it."""
        return {
            "name": self.name,
            "zone": self.zone,
            "status": self.status,
            "address": self.address,
            "internal_address": self.internal_address,
            "changes": [change.what for change in self.changes],
            "refused": self.refused,
            "tried": self.tried,
        }


# Results of the machines whose action succeeded, and a sentence for each problem.
Outcome = tuple[list[Result], list[str]]


def snapshot_text(snapshot: dict) -> str:
    """Return a snapshot's name and size as text for a sentence."""
    size = f" ({snapshot['diskSizeGb']} GB disk)" if snapshot.get("diskSizeGb") else ""
    return f"{snapshot['name']}{size}"


def protection_sentence(instance: dict) -> str:
    """Return how to delete an instance that is protected from deletion."""
    return (
        f"{instance['name']} in {instance['zone']} is protected from deletion: declare deletion_protection: false "
        "for it and run playbooks/gcp_provision.yml first, or gcloud compute instances update --no-deletion-protection."
    )
