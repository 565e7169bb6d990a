"""The firewall rules and machines of one project, brought to what is declared: looked at, planned, done."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from . import gcp_declared as declared
from .gcp_checks import Checks
from .gcp_client import Client, GcpError, credentials_for, unexpected_answer
from .gcp_declared import Change
from .gcp_dns import Records
from .gcp_policies import KINDS, Policies, name_of, schedule_problems, view

PARALLEL_MACHINES = 8
ADDRESS_TIMEOUT = 60  # s until a machine that runs has its external address
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
TRANSITIONAL_DISK = {"CREATING", "DELETING"}  # states of a disk that end by themselves


class Fleet:
    """Everything one run needs. `options`: the parameters of the module gcp_fleet."""

    def __init__(self, options, check_mode=False):
        lists = ("names", "adopt", "delete_undeclared", "delete_disks")
        options = {**options, **{name: [one.strip() for one in options[name]] for name in lists}}
        self.options = options
        self.check_mode = check_mode
        self.project = options["project"]
        self.fleet = options["fleet"]
        self.names = options["names"]
        known = [one["name"] for one in options["machines"]]
        self.limited = declared.limited(known, options["limit"], options["limit_hosts"])
        self.machines = [one for one in options["machines"] if self._chosen(one["name"])]
        self.rules, self.absent_rules, self.rule_problems, self.remarks = declared.effective_rules(
            options["rules"], options["open_to_world"], options["open_to_world_ports"]
        )
        self.changes, self.refused = [], []
        self.unreached = []  # zones that the list of instances could not ask
        self._credentials = None
        self.policies = Policies(self)
        self.records = Records(self, options["dns_zone"])

    def _chosen(self, name):
        return name in self.limited and (not self.names or name in self.names)

    @property
    def everything(self):
        """Whether the run is about all that is declared, and not about some of the machines."""
        return len(self.machines) == len(self.options["machines"])

    def client(self):
        """Make a client; threads do not share one, as its session is not made for that."""
        if self._credentials is None:
            self._credentials = credentials_for(self.options["service_account_file"])
        return Client(
            self.project,
            self._credentials,
            tries=self.options["tries"],
            pause=self.options["retry_pause"],
            operation_timeout=self.options["operation_timeout"],
        )

    # --- looking ----------------------------------------------------------------------------------------------

    def instances(self):
        """Return all instances of the project, each with the name of its zone, in every zone."""
        found, self.unreached = self.client().aggregated("aggregated/instances", "instances")
        if not all(isinstance(one.get("status"), str) for one in found):
            raise unexpected_answer("GET aggregated/instances")
        return [{**one, "zone": one["scope"]} for one in found]

    def firewalls(self):
        """Return all rules of the project by name."""
        return {one["name"]: one for one in self.client().list("global/firewalls")}

    def ours(self, resource):
        """Say whether a resource was made here, or is declared as adopted."""
        return declared.made_by(resource, self.fleet) or resource["name"] in self.options["adopt"]

    def find(self, machine, instances):
        """Return the instance of a machine or None: its name, its zone and the mark decide.

        Raises GcpError where it is, but in no declared zone, where another's machine is in its place, and where a
        zone that it may be in cannot be asked.
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
                f"{name}: the Compute API cannot reach zone {declared.listed(unreached)} at present (UNREACHABLE), so it "
                "is not known whether the machine is there: nothing is done about it; try later."
            )
        for one in same:
            self.remarks.append(f"{name} in {one['zone']} {declared.origin(one)} and is left alone.")
        return None

    def declaration_problems(self):
        problems = []
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

    # --- checked: before anything is made -----------------------------------------------------------------------

    def checked(self):
        """Ask all that must be right before creation. Returns (problems, estimates, machines to make or start)."""
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

    # --- what was made here and is no longer declared ------------------------------------------------------------

    def undeclared(self, instances, firewalls):
        """Return (instances, rules, disks, addresses, schedules, snapshots) with the fleet's mark, not declared."""
        places = {(one["name"], zone) for one in self.options["machines"] for zone in one["zones"]}
        names = {one["name"] for one in self.options["machines"]}
        machines = [
            one
            for one in instances
            # One that is declared for other zones is told where its machine is looked for.
            if declared.made_by(one, self.fleet)
            and (one["name"], one["zone"]) not in places
            and (one["name"] not in names or self._has_declared_copy(one, instances))
        ]
        known = {rule["name"] for rule in self.rules} | self.absent_rules
        rules = [one for one in firewalls.values() if declared.made_by(one, self.fleet) and one["name"] not in known]
        disks = [
            one for one in self._marked("disks") if not one.get("users") and one.get("status") not in TRANSITIONAL_DISK
        ]
        return (
            machines,
            rules,
            disks,
            self._undeclared_addresses(instances),
            self._undeclared_policies(instances),
            self._undeclared_snapshots(),
        )

    def _has_declared_copy(self, instance, instances):
        """Say whether the machine of that name is there too, in a zone that is declared."""
        zones = [zone for one in self.options["machines"] if one["name"] == instance["name"] for zone in one["zones"]]
        same = [one for one in instances if one["name"] == instance["name"] and one["zone"] in zones]
        return any(declared.made_by(one, self.fleet) for one in same)

    def _marked(self, kind):
        """Return the resources of a kind with the mark, wherever they are; where they cannot be listed, none."""
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

    def _undeclared_addresses(self, instances):
        """Return the addresses with the mark that no declared machine is to have."""
        wanted = self._machine_regions(instances, [one for one in self.options["machines"] if one["reserved_address"]])
        return [one for one in self._marked("addresses") if (one["name"], one["scope"]) not in wanted]

    def _undeclared_policies(self, instances):
        """Return the schedules with the mark of which there is no declared machine."""
        machines = self._machine_regions(instances, self.options["machines"])
        wanted = {(name_of(name, kind), region) for name, region in machines for kind in KINDS}
        return [one for one in self._marked("resourcePolicies") if (one["name"], one["scope"]) not in wanted]

    def _undeclared_snapshots(self):
        """Return the snapshots that were taken here and are not what a declared machine is made from."""
        wanted = {one["snapshot"] for one in self.options["machines"]}
        return [one for one in self._marked("snapshots") if one["name"] not in wanted]

    def _machine_regions(self, instances, machines):
        """Return (name, region) of the places that machines are in or may be made in."""
        return {(one["name"], declared.region_of(zone)) for one in machines for zone in self._zones_of(one, instances)}

    def _zones_of(self, machine, instances):
        """Return the zone that a machine is in, or those that it may be made in."""
        same = [one for one in instances if one["name"] == machine["name"] and one["zone"] in machine["zones"]]
        return [one["zone"] for one in same if self.ours(one)] or machine["zones"]

    def _report_undeclared(self, machines, rules, disks, addresses, policies, snapshots, deleted=()):
        """Remark on what is left of what was made here and is not declared."""
        said = [(f"machine {one['name']} in {one['zone']} ({one['status']})", one) for one in machines]
        said += [(f"rule {one['name']}", one) for one in rules]
        said += [(f"disk {one['name']} in {one['scope']}", one) for one in disks]
        said += [(f"address {one['name']} in {one['scope']} ({one.get('address')})", one) for one in addresses]
        said += [(f"schedule {one['name']} in {one['scope']}", one) for one in policies]
        left = [(text, one["name"]) for text, one in said if one["name"] not in deleted]
        way = "playbooks/provision.yml -e gcp_delete_undeclared="
        if left:
            self.remarks.append(
                f"Made here, no longer declared, and open or paid for: {declared.listed(text for text, _ in left)}. "
                f"Declare it again, or have it deleted by {way}{','.join(dict.fromkeys(name for _, name in left))} (a "
                "machine's disk with it)."
            )
        kept = [one for one in snapshots if one["name"] not in deleted]
        if kept:
            self.remarks.append(
                f"Snapshots that were taken here and cost: {declared.listed(snapshot_text(one) for one in kept)}; "
                f"{way}{','.join(one['name'] for one in kept)} deletes them."
            )

    def _delete_undeclared(self, machines, rules, disks, addresses, policies, snapshots):
        """Delete of what is not declared what gcp_delete_undeclared names. Returns problems."""
        names = set(self.options["delete_undeclared"])
        mine = {one["name"] for one in (*machines, *rules, *disks, *addresses, *policies, *snapshots)}
        self.remarks += [
            f"gcp_delete_undeclared names '{name}': nothing of that name that was made here is left."
            for name in sorted(names - mine)
        ]
        client = self.client()
        for one in rules:
            if one["name"] in names:
                self._rule_absent(client, one)
        _, problems = self._for_each_machine(
            self._delete_machine,
            [({"name": one["name"], "zones": [one["zone"]]}, one) for one in machines if one["name"] in names],
        )
        for one in disks:
            if one["name"] in names:
                what = f"delete disk {one['name']} in {one['scope']}"
                shown = {"zone": one["scope"], "size_gb": one.get("sizeGb")}
                self._apply(client, what, shown, None, ("DELETE", f"zones/{one['scope']}/disks/{one['name']}"))
        for one in addresses:
            if one["name"] in names:
                self._release_address(client, one["name"], one["scope"], one.get("address"))
        for one in policies:
            if one["name"] in names:
                path = f"regions/{one['scope']}/resourcePolicies/{one['name']}"
                self._apply(client, f"delete schedule {one['name']}", view(one), None, ("DELETE", path))
        for one in snapshots:
            if one["name"] in names:
                path = f"global/snapshots/{one['name']}"
                self._apply(
                    client, f"delete snapshot {one['name']}", {"size_gb": one.get("diskSizeGb")}, None, ("DELETE", path)
                )
        return problems

    # --- present: rules, then machines --------------------------------------------------------------------------

    def present(self):
        """Make and mend the rules, then the machines side by side. Returns (results, problems)."""
        instances, firewalls = self.instances(), self.firewalls()
        orphans = self.undeclared(instances, firewalls)
        problems = self.foreign_rules(firewalls)
        if problems:
            self._report_undeclared(*orphans)
            return [], problems
        problems += self._delete_undeclared(*orphans) if self.options["delete_undeclared"] else []
        self._report_undeclared(*orphans, deleted=self.options["delete_undeclared"])
        self._rules_present(firewalls)
        results, more = self._for_each_machine(
            lambda client, machine, result: self._machine_present(client, machine, instances, result)
        )
        return results, problems + more

    def wanted_rules(self):
        """Return the rules that the chosen machines wear, all of them where all machines are chosen."""
        tags = {tag for one in self.machines for tag in one["tags"]}
        return [rule for rule in self.rules if self.everything or tags & set(rule["target_tags"])]

    def foreign_rules(self, firewalls):
        """Return a sentence for each declared rule in whose place another's is."""
        return [
            f"rule {rule['name']} {declared.origin(firewalls[rule['name']])} and is left alone: give the rule of "
            f"gcp_firewall_rules another name, or take that one over, with all that is declared "
            f"(-e gcp_adopt={rule['name']}; it is then deleted with the fleet's last machine)."
            for rule in self.wanted_rules()
            if rule["name"] in firewalls and not self.ours(firewalls[rule["name"]])
        ]

    def _rules_present(self, firewalls):
        client = self.client()
        for rule in self.wanted_rules():
            self._rule_present(client, rule, firewalls.get(rule["name"]))
        for name in sorted(self.absent_rules) if self.everything else []:
            if name in firewalls:
                self._rule_absent(client, firewalls[name])

    def _rule_present(self, client, rule, firewall):
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
            self._apply(client, f"mend rule {rule['name']}", before, after, ("PATCH", path, patch))

    def _recreate_rule(self, client, rule, before, after, body):
        """Delete a rule and make it again; where the second step fails, tell that the first one happened."""
        name = rule["name"]
        if not self.check_mode:
            self._send(client, "DELETE", f"global/firewalls/{name}")
            try:
                self._send(client, "POST", "global/firewalls", body)
            except GcpError as error:
                self.changes.append(Change(f"delete rule {name}", before, None))
                raise GcpError(
                    f"rule {name} was deleted to be made anew, and that was refused, so its ports are closed now: "
                    f"{error} The next run of playbooks/provision.yml makes it.",
                    error.status,
                    error.reasons,
                ) from error
        self.changes.append(Change(f"make rule {name} anew", before, after))

    def _rule_absent(self, client, firewall):
        name = firewall["name"]
        if not declared.made_by(firewall, self.fleet):
            self.remarks.append(f"rule {name} {declared.origin(firewall)} and is left alone.")
            return
        before = declared.rule_view(self.project, firewall)
        self._apply(client, f"delete rule {name}", before, None, ("DELETE", f"global/firewalls/{name}"))

    def _machine_present(self, client, machine, instances, result):
        instance = self.find(machine, instances)
        if instance is not None and instance["status"] in TRANSITIONAL and not self.check_mode:
            # It may be on its way out: a decommission that was interrupted goes on by itself.
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
        self._record_address(client, self._start(client, instance, result), result)

    def _record_address(self, client, instance, result):
        """Note what an instance is now, and let its name lead to its address."""
        result.update_from(instance)
        # In check mode a machine that is to be started has no address yet.
        if result.address or result.status == "RUNNING" or not self.check_mode:
            self.records.present(client, result.name, result.address or result.internal_address, result)

    # --- reserved addresses -------------------------------------------------------------------------------------

    @property
    def has_reserved(self):
        return any(one["reserved_address"] for one in self.machines)

    def reserved(self, client, machine, region):
        """Return the address that is reserved for a machine in a region, None where none is.

        Raises GcpError where another's has its name.
        """
        found = client.get(f"regions/{region}/addresses/{machine['name']}", missing_ok=True)
        if found is not None and not self.ours({"name": machine["name"], **found}):
            raise GcpError(
                f"{machine['name']}: an address of that name in {region} {declared.origin(found)} and is left alone: "
                f"give the machine another name, or take that one over (gcp_adopt: [{machine['name']}])."
            )
        return found and found.get("address")

    def _reserve(self, client, machine, region, result, current=None):
        """Return the address that is reserved for a machine; reserves one where there is none, or `current`."""
        there = self.reserved(client, machine, region)
        if there:
            return there
        name = machine["name"]
        change = Change(f"reserve address {name} in {region}", None, {"region": region, "address": current})
        if not self.check_mode:
            self._send(client, "POST", f"regions/{region}/addresses", declared.address_body(name, self.fleet, current))
            there = self.reserved(client, machine, region)
            if not there:
                raise unexpected_answer(f"GET regions/{region}/addresses/{name}")
        result.changes.append(change)
        return there

    def _assign_reserved_address(self, client, machine, instance, result):
        """Reserve the address of a machine that is there, and give it that one where it has another."""
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
            nic = (instance.get("networkInterfaces") or [{}])[0]
            params = {"networkInterface": nic.get("name", "nic0")}
            for access in nic.get("accessConfigs") or []:
                client.change("POST", f"{path}/deleteAccessConfig", None, accessConfig=access["name"], **params)
            client.change("POST", f"{path}/addAccessConfig", {**declared.ACCESS, "natIP": address}, **params)
            instance = {**client.get(path), "zone": zone}
        result.changes.append(change)
        return instance

    def _release_address(self, client, name, region, address):
        what = f"give address {name} in {region} back"
        self._apply(client, what, {"address": address}, None, ("DELETE", f"regions/{region}/addresses/{name}"))

    def _release_reserved(self):
        """After deletions: give the machines' reserved addresses back where that was said, else tell that they stay."""
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

    def _creation(self, machine, zone):
        view = declared.declared_view(machine)
        return Change(f"make {machine['name']} in {zone}", None, {"zone": zone, **view})

    def _create(self, client, machine, result):
        """Insert into the first declared zone that has capacity; return the instance once it stands still.

        One that appears meanwhile (an answer that got lost, another run) is as good: it is compared afterwards.
        """
        zones = []
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

    def _insert(self, client, machine, zone, address=None):
        """Send the insert of a machine, again while its name is still held by what is being deleted there."""
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
                # The disk of a machine that was deleted without it is there under the same name.
                raise GcpError(
                    f"{error} {declared.leftover_disk_cure(name, zone)}", error.status, error.reasons
                ) from error

    def _wait_until_settled(self, client, zone, name):
        """Wait until an instance stands still and has the external address that it is to have; None once it is gone."""
        begin = time.monotonic()
        pause = min(self.options["retry_pause"], 0.5)
        while True:
            instance = client.get(f"zones/{zone}/instances/{name}", missing_ok=True)
            if instance is None:
                return None
            if not isinstance(instance.get("status"), str):
                raise unexpected_answer(f"GET zones/{zone}/instances/{name}")
            instance["zone"] = zone
            interface = (instance.get("networkInterfaces") or [{}])[0]
            external, _ = declared.addresses(instance)
            lacks_address = instance["status"] == "RUNNING" and interface.get("accessConfigs") and not external
            elapsed = time.monotonic() - begin
            if instance["status"] not in TRANSITIONAL and (not lacks_address or elapsed > ADDRESS_TIMEOUT):
                return instance
            if elapsed > self.options["operation_timeout"]:
                raise GcpError(
                    f"{name}: still {instance['status']} without rest after {self.options['operation_timeout']} s: "
                    "look at it in the console, or raise gcp_operation_timeout."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5)

    def _update_machine(self, client, machine, instance, result):
        """Bring an instance to what is declared, as far as that is possible in its state."""
        zone, name = instance["zone"], machine["name"]
        stopped = instance["status"] in ("TERMINATED", "STOPPED")
        disk, family = self._boot_disk_and_image(client, zone, instance)
        wanted = declared.declared_view(machine)
        for difference in declared.differences(wanted, declared.actual_view(machine, instance, disk, family)):
            if difference.cure == declared.NEW or (difference.cure == declared.STOPPED and not stopped):
                result.refused.append(declared.refusal(name, difference))
                continue
            field = difference.field
            change = Change(f"mend {field} of {name}", {field: difference.actual}, {field: difference.declared})
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

    def _boot_disk_and_image(self, client, zone, instance):
        """Return (Disk, "project/family") of the boot disk; None, with a remark, for what cannot be asked."""
        source = declared.boot_disk(instance).get("source")
        name = instance["name"]
        disk = (
            self.get_if_readable(client, f"zones/{zone}/disks/{declared.last(source)}", name, "disk")
            if source
            else None
        )
        parts = declared.tail((disk or {}).get("sourceImage"), self.project).split("/")
        if len(parts) < 2:
            return disk, None
        # Google deletes old images; the disk made from one works on.
        family = parts[-1]
        if "family" not in parts:
            family = (self.get_if_readable(client, "/".join(parts), name, "image") or {}).get("family")
        return disk, f"{parts[1]}/{family}" if family else None

    def get_if_readable(self, client, path, who, what):
        """Get what is only compared: None where it is not there, and with a remark where it may not be read."""
        try:
            return client.get(path, missing_ok=True)
        except GcpError as error:
            if error.status not in (403, 501):
                raise
            self.remarks.append(f"{who}: its {what} is not compared: {error}")
            return None

    def _update_field(self, client, machine, zone, field):
        """Send the one change that mends a field, with fresh fingerprints; return the instance as it is then."""
        path = f"zones/{zone}/instances/{machine['name']}"
        for attempt in (1, 2):
            instance = {**client.get(path), "zone": zone}
            try:
                for method, where, body, params in self._requests(client, machine, zone, instance, field, path):
                    client.change(method, where, body, **params)
                return {**client.get(path), "zone": zone}
            except GcpError as error:
                # 412: somebody else changed it between our reading and writing.
                if error.status != 412 or attempt == 2:
                    raise
        return None

    def _requests(self, client, machine, zone, instance, field, path):
        """Yield (method, path, body, parameters) of the requests that mend one field."""
        body = declared.machine_body(self.project, zone, machine, self.fleet)
        boot = declared.boot_disk(instance)
        nic = (instance.get("networkInterfaces") or [{}])[0]
        if field == "tags":
            tags = {"items": body["tags"]["items"], **fingerprint(instance.get("tags"))}
            yield "POST", f"{path}/setTags", tags, {}
        elif field == "labels":
            google = {key: value for key, value in (instance.get("labels") or {}).items() if key.startswith("goog-")}
            labels = {"labels": {**google, **body["labels"]}, "labelFingerprint": instance.get("labelFingerprint", "")}
            yield "POST", f"{path}/setLabels", labels, {}
        elif field == "metadata":
            there = {one["key"]: one for one in (instance.get("metadata") or {}).get("items") or []}
            there.update({one["key"]: one for one in body["metadata"]["items"]})
            yield (
                "POST",
                f"{path}/setMetadata",
                {"items": list(there.values()), **fingerprint(instance.get("metadata"))},
                {},
            )
        elif field == "scheduling":
            yield "POST", f"{path}/setScheduling", body["scheduling"], {}
        elif field == "service_account":
            account = (body["serviceAccounts"] or [{"email": "", "scopes": []}])[0]
            yield "POST", f"{path}/setServiceAccount", account, {}
        elif field == "deletion_protection":
            protect = str(machine["deletion_protection"]).lower()
            yield "POST", f"{path}/setDeletionProtection", None, {"deletionProtection": protect}
        elif field == "shielded":
            yield "PATCH", f"{path}/updateShieldedInstanceConfig", declared.shielded_body(machine["shielded"]), {}
        elif field == "disk_labels":
            disk = f"zones/{zone}/disks/{declared.last(boot['source'])}"
            there = client.get(disk)
            google = {key: one for key, one in (there.get("labels") or {}).items() if key.startswith("goog-")}
            labels = {**google, **declared.label_values(machine["disk"]["labels"])}
            yield "POST", f"{disk}/setLabels", {"labels": labels, "labelFingerprint": there["labelFingerprint"]}, {}
        elif field == "machine_type":
            yield "POST", f"{path}/setMachineType", {"machineType": body["machineType"]}, {}
        elif field == "accelerator":
            # A machine type that brings its GPUs along has mended this already.
            if same_gpus(instance, body):
                return
            yield "POST", f"{path}/setMachineResources", {"guestAccelerators": body["guestAccelerators"]}, {}
        elif field == "disk_size_gb":
            disk = f"zones/{zone}/disks/{declared.last(boot['source'])}"
            yield "POST", f"{disk}/resize", {"sizeGb": str(machine["disk"]["size_gb"])}, {}
        elif field == "disk_auto_delete":
            auto = str(machine["disk"]["auto_delete"]).lower()
            params = {"autoDelete": auto, "deviceName": boot.get("deviceName", machine["name"])}
            yield "POST", f"{path}/setDiskAutoDelete", None, params
        elif field == "external_address":
            if machine["external_address"]:
                params = {"networkInterface": nic.get("name", "nic0")}
                yield "POST", f"{path}/addAccessConfig", dict(declared.ACCESS), params
            for access in [] if machine["external_address"] else nic.get("accessConfigs") or []:
                params = {"networkInterface": nic.get("name", "nic0"), "accessConfig": access["name"]}
                yield "POST", f"{path}/deleteAccessConfig", None, params

    # --- started, stopped, absent -------------------------------------------------------------------------------

    def started(self):
        instances = self.instances()
        self._report_undeclared(*self.undeclared(instances, self.firewalls()))

        def start(client, machine, result):
            instance = self.find(machine, instances)
            instance = instance and self._start(client, instance, result)
            if instance is None:
                raise GcpError(f"{machine['name']} does not exist: make it with playbooks/provision.yml.")
            self._record_address(client, instance, result)

        return self._for_each_machine(start)

    def _start(self, client, instance, result):
        """Start an instance that does not run; return it as it is then, with its new address, None where it is gone."""
        zone, name = instance["zone"], instance["name"]
        if instance["status"] in TRANSITIONAL and not self.check_mode:
            instance = self._wait_until_settled(client, zone, name)
            if instance is None:
                return None
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
                ) from error
            raise
        result.changes.append(change)
        return self._wait_until_settled(client, zone, name)

    def stopped(self):
        instances = self.instances()
        self._report_undeclared(*self.undeclared(instances, self.firewalls()))

        def stop(client, machine, result):
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

    def saved(self):
        """Take a snapshot of each machine's boot disk."""
        instances = self.instances()

        def save(client, machine, result):
            instance = self.find(machine, instances)
            if instance is None:
                raise GcpError(f"{machine['name']} does not exist: there is no disk to take a snapshot of.")
            self.policies.save(client, instance, result)
            result.update_from(instance)

        return self._for_each_machine(save)

    def absent(self):
        """Delete the named machines, then the rules that no remaining machine needs."""
        instances, firewalls = self.instances(), self.firewalls()
        orphans, rules, *rest = self.undeclared(instances, firewalls)
        known = {one["name"] for one in self.options["machines"]}
        strays = [one for one in orphans if one["name"] in self.names and one["name"] not in known]
        unknown = sorted(set(self.names) - known - {one["name"] for one in strays} - {""})
        if unknown:
            return [], [
                f"'{name}' is not among gcp_machines ({declared.listed(known)}), and no machine of that name was made "
                "here: nothing is deleted."
                for name in unknown
            ]
        # All are found before the first is deleted: one that is another's ends the run with all of them there.
        found, problems = [], []
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
        gone = {(result.name, result.zone) for result in results}
        left = [one for one in instances if (one["name"], one["zone"]) not in gone]
        self._delete_unused_rules(firewalls, left)
        if not problems:
            self._release_reserved()
        self._report_undeclared([one for one in orphans if (one["name"], one["zone"]) not in gone], rules, *rest)
        absent = [one for one in self.machines if one["name"] not in {result.name for result in results}]
        return results + [Result(one["name"]) for one in absent if not problems], problems

    def _delete_unused_rules(self, firewalls, left):
        """Delete the rules of which no remaining machine wears a tag."""
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

    def _delete_machine(self, client, found, result):
        """Delete one instance, with the disks that go with it, whatever of that an earlier run has done."""
        _, instance = found
        zone, name = instance["zone"], instance["name"]
        result.zone = zone
        path = f"zones/{zone}/instances/{name}"
        gone, stay, _ = declared.disks_at_delete(instance, self.options["keep_boot_disk"], self.options["delete_disks"])
        words = f"delete {name} in {zone}" + (f" and its {declared.disk_text(gone)}" if gone else "")
        shown = {
            "zone": zone,
            "machine_type": declared.last(instance.get("machineType")),
            "tags": sorted((instance.get("tags") or {}).get("items") or []),
            "labels": instance.get("labels") or {},
            "disks": [disk for disk, _ in gone],
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

    def _delete_and_wait(self, client, zone, name, path):
        """Set the disks' auto-delete, send the delete and wait until the instance is gone."""
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
                # Gone meanwhile, or on its way out: looked at again.
                if not error.absent and "resourceNotReady" not in error.reasons:
                    raise
        raise GcpError(
            f"{name}: still there {self.options['operation_timeout']} s after its deletion: look at it in the console, "
            "or raise gcp_operation_timeout."
        )

    # --- the common part ----------------------------------------------------------------------------------------

    def _apply(self, client, what, before, after, request):
        if not self.check_mode:
            self._send(client, *request)
        self.changes.append(Change(what, before, after))

    @staticmethod
    def _send(client, method, path, body=None):
        """Send a change that makes or deletes; what it is to bring about may be so already."""
        try:
            client.change(method, path, body)
        except GcpError as error:
            # Made or deleted meanwhile: an answer that got lost, or another run. The next run compares it.
            if not (error.exists if method == "POST" else method == "DELETE" and error.absent):
                raise

    def _for_each_machine(self, action, things=None):
        """Do one thing for every machine, side by side. Returns (results, problems): one's failure stops no other.

        `things`: what the action is given instead of the chosen machines, pairs that begin with one.
        """
        results, problems = [], []
        things = self.machines if things is None else things
        with ThreadPoolExecutor(max_workers=PARALLEL_MACHINES) as pool:
            begun = []
            for thing in things:
                result = Result((thing[0] if isinstance(thing, tuple) else thing)["name"])
                begun.append((result, pool.submit(action, self.client(), thing, result)))
        for result, future in begun:
            # What a machine went through before it failed has happened all the same.
            self.changes += result.changes
            self.refused += result.refused
            self.remarks += [f"{result.name}: {one['zone']} has no capacity: {one['reason']}" for one in result.tried]
            try:
                future.result()
            except GcpError as error:
                said = str(error)
                problems.append(said if said.startswith(result.name) else f"{result.name}: {said}")
                continue
            results.append(result)
            if result.tried:
                self.remarks.append(f"{result.name}: made in {result.zone} instead.")
        return results, problems


class Result:
    """What became of one machine."""

    def __init__(self, name):
        self.name = name
        self.zone = None
        self.status = "absent"
        self.address = None
        self.internal_address = None
        self.changes = []
        self.refused = []
        self.tried = []

    def update_from(self, instance):
        self.zone = instance["zone"]
        self.status = instance["status"]
        self.address, self.internal_address = declared.addresses(instance)

    def sentence(self):
        if self.status in ("absent", "would be made"):
            return f"{self.name}: {self.status}{f' in {self.zone}' if self.zone else ''}."
        where = f" at {self.address or 'no external address'} (internal {self.internal_address})"
        stays = ", without an external address; its disk stays and costs"
        return f"{self.name} in {self.zone} is {self.status}{where if self.status == 'RUNNING' else stays}."

    def as_dict(self):
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


def snapshot_text(snapshot):
    size = f" ({snapshot['diskSizeGb']} GB disk)" if snapshot.get("diskSizeGb") else ""
    return f"{snapshot['name']}{size}"


def protection_sentence(instance):
    return (
        f"{instance['name']} in {instance['zone']} is protected from deletion: declare deletion_protection: false "
        "for it and run playbooks/provision.yml first, or gcloud compute instances update --no-deletion-protection."
    )


def fingerprint(part):
    return {"fingerprint": part["fingerprint"]} if part and part.get("fingerprint") else {}


def same_gpus(*resources):
    kinds = [
        {
            declared.last(one["acceleratorType"]): one["acceleratorCount"]
            for one in resource.get("guestAccelerators") or []
        }
        for resource in resources
    ]
    return kinds[0] == kinds[1]
