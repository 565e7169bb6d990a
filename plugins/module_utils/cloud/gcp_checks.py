"""Check the declarations against the Compute API before anything is created, and report all problems at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import gcp_declared as declared
from .gcp_client import GcpError, project_sentence

if TYPE_CHECKING:
    from .gcp_fleet import Fleet

RULE_PERMISSIONS = (
    "compute.firewalls.create",
    "compute.firewalls.delete",
    "compute.firewalls.update",
    "compute.networks.updatePolicy",
)
MACHINE_PERMISSIONS = (
    "compute.disks.create",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setTags",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.subnetworks.use",
)
EXTERNAL_PERMISSION = "compute.subnetworks.useExternalIp"
ACCOUNT_PERMISSION = "compute.instances.setServiceAccount"
SCHEDULE_PERMISSIONS = (
    "compute.disks.addResourcePolicies",
    "compute.instances.addResourcePolicies",
    "compute.resourcePolicies.create",
    "compute.resourcePolicies.use",
)
DNS_PERMISSIONS = (
    "dns.changes.create",
    "dns.managedZones.get",
    "dns.resourceRecordSets.create",
    "dns.resourceRecordSets.get",
    "dns.resourceRecordSets.update",
)
SNAPSHOT_PERMISSION = "compute.snapshots.useReadOnly"
ADDRESS_PERMISSIONS = ("compute.addresses.create", "compute.addresses.use")

# What to do besides asking for more quota; see `gcp_declared.quota_problem`.
OTHER_GPUS = "stop other machines with a GPU, or choose another region"
OTHER_DISKS = "delete disks that nobody needs, or set disk.size_gb so that all ask for at most {left:g}"
OTHER_CPUS = "stop other machines, or choose a smaller machine_type or another region"
OTHER_ADDRESSES = "stop other machines, or set external_address to false"
OTHER_MACHINES = "delete machines that nobody needs, or choose another region"
OTHER_RULES = "delete rules that nobody needs"


class Checks:
    """The checks of one run; `fleet`: the run. What is worth knowing but no problem goes to its remarks."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.client = fleet.client()
        self.remarks = fleet.remarks
        self.cpus: dict[str, int | None] = {}  # {machine type: vCPUs}
        self.new_addresses: set[tuple[str, str]] = set()  # (machine, region) of the addresses to reserve

    def problems(self) -> tuple[list[str], list[dict]]:
        """Return (a sentence for each problem, machines to create or start)."""
        fleet = self.fleet
        try:
            about = self.client.get("")
            instances, firewalls = fleet.instances(), fleet.firewalls()
        except GcpError as error:
            return [project_sentence(fleet.project, error)], []
        problems = fleet.foreign_rules(firewalls)
        missing, waiting, not_found = self._machines_to_start(instances)
        problems += not_found
        self._remark_prerequisites(missing)
        new_rules = [rule["name"] for rule in fleet.wanted_rules() if rule["name"] not in firewalls]
        unknown_zones, with_known_zones = self._unknown_zones(missing)
        problems += unknown_zones
        checks: list[Callable[[], list[str]]] = [
            lambda: self._permissions(missing, new_rules),
            lambda: self._references(with_known_zones),
            lambda: self._accelerators(with_known_zones),
            lambda: self._images([one for one in missing if not one["snapshot"]]),
            lambda: self._snapshots([one for one in missing if one["snapshot"]]),
            lambda: self._leftover_disks(with_known_zones),
            lambda: self._addresses(with_known_zones),
            lambda: self._egress(with_known_zones),
            self._dns,
            lambda: self._quotas(with_known_zones, waiting, about, new_rules),
        ]
        for check in checks:
            try:
                problems += check()
            except GcpError as error:
                problems.append(str(error))
        return problems, [*missing, *(machine for machine, _ in waiting)]

    def _machines_to_start(self, instances: list[dict]) -> tuple[list[dict], list[tuple[dict, dict]], list[str]]:
        """Return (machines to create, (machine, instance) of those to start, problems)."""
        missing: list[dict] = []
        waiting: list[tuple[dict, dict]] = []
        problems: list[str] = []
        for machine in self.fleet.machines:
            try:
                instance = self.fleet.find(machine, instances)
            except GcpError as error:
                problems.append(str(error))
                continue
            if instance is None:
                missing.append(machine)
            elif instance["status"] not in ("RUNNING", "PROVISIONING", "STAGING"):
                waiting.append((machine, instance))
        return missing, waiting, problems

    def _remark_prerequisites(self, missing: list[dict]) -> None:
        """Remark on what secure boot and schedules need and the API cannot tell."""
        self.remarks += [
            f"{one['name']}: secure boot loads signed kernel modules only: NVIDIA's driver must be signed (Ubuntu's "
            "prebuilt linux-modules-nvidia are, one that DKMS built is not), else there is no GPU."
            for one in self.fleet.machines
            if one["shielded"]["secure_boot"] and one["accelerator"]["count"]
        ]
        self.remarks += [
            f"{one['name']}: hours: Google starts and stops it only if the project's Compute Engine service agent "
            "(service-PROJECT_NUMBER@compute-system.iam.gserviceaccount.com) has the role Compute Instance Admin (v1)."
            for one in missing
            if one["hours"]
        ]

    def _unknown_zones(self, missing: list[dict]) -> tuple[list[str], list[dict]]:
        """Return (sentences about zones that do not exist, the machines without those zones)."""
        known = self._known_names("zones")
        problems, usable = [], []
        for machine in missing:
            unknown = [zone for zone in machine["zones"] if known and zone not in known]
            for zone in unknown:
                alike = difflib.get_close_matches(zone, known, 3, 0.75)
                there = f", such as {declared.listed(alike)}" if alike else ""
                problems.append(
                    f"{machine['name']}: there is no zone {zone}: choose another{there} (known: "
                    f"{declared.listed(sorted(known))})."
                )
            usable.append({**machine, "zones": [zone for zone in machine["zones"] if zone not in unknown]})
        return problems, usable

    def _permissions(self, missing: list[dict], new_rules: list[str]) -> list[str]:
        """Check that the account has the permissions for this run; remark where that cannot be asked."""
        needed = {*(RULE_PERMISSIONS if new_rules else ()), *(MACHINE_PERMISSIONS if missing else ())}
        needed |= {EXTERNAL_PERMISSION} if any(one["external_address"] for one in missing) else set()
        needed |= {ACCOUNT_PERMISSION} if any(one["service_account"] for one in missing) else set()
        needed |= set(ADDRESS_PERMISSIONS if any(one["reserved_address"] for one in missing) else ())
        needed |= set(SCHEDULE_PERMISSIONS if any(one["hours"] or one["snapshots"] for one in missing) else ())
        needed |= {SNAPSHOT_PERMISSION} if any(one["snapshot"] for one in missing) else set()
        needed |= set(DNS_PERMISSIONS if missing and self.fleet.options["dns_zone"] else ())
        if not needed:
            return []
        lacking = self.client.missing_permissions(needed)
        if lacking is None:
            self.remarks.append(
                "Whether the account has the permissions that are needed could not be asked (it takes the Cloud "
                "Resource Manager API); the first request that lacks one will tell."
            )
        if not lacking:
            return []
        dns = ", and DNS Administrator" if any(one.startswith("dns.") for one in lacking) else ""
        return [
            f"The account lacks {declared.listed(lacking)} on project {self.fleet.project}: give it the roles Compute "
            f"Instance Admin (v1) and Compute Security Admin{dns}."
        ]

    def _dns(self) -> list[str]:
        """Check that the DNS zone of the machines exists; GcpError where it does not."""
        if self.fleet.options["dns_zone"]:
            self.fleet.records.suffix(self.client)
        return []

    def _accelerators(self, missing: list[dict]) -> list[str]:
        """Check that every declared zone of a new machine offers its accelerator."""
        problems = []
        for machine in missing:
            gpu = machine["accelerator"]
            for zone in machine["zones"] if gpu["count"] else []:
                try:
                    kind = self.client.get(f"zones/{zone}/acceleratorTypes/{gpu['type']}", missing_ok=True)
                    elsewhere = self._zones_with(gpu["type"]) if kind is None else []
                except GcpError as error:
                    problems.append(f"{machine['name']}: {error}")
                    continue
                if kind is None and zone not in elsewhere:
                    problems.append(
                        f"{machine['name']}: zone {zone} has no accelerator {gpu['type']}: choose another zone"
                        + (f", such as {declared.listed(elsewhere[:6])}." if elsewhere else ".")
                    )
                elif kind and gpu["count"] > kind.get("maximumCardsPerInstance", gpu["count"]):
                    problems.append(
                        f"{machine['name']}: {gpu['count']} {gpu['type']} asked for, zone {zone} gives a machine at "
                        f"most {kind['maximumCardsPerInstance']}."
                    )
        return problems

    def _zones_with(self, accelerator: str) -> list[str]:
        """Return the zones that offer an accelerator, none where they cannot be listed: they are only suggestions."""
        try:
            found, _ = self.client.aggregated(
                "aggregated/acceleratorTypes", "acceleratorTypes", filter=f'name = "{accelerator}"'
            )
        except GcpError:
            return []
        return sorted({one["scope"] for one in found if one["name"] == accelerator})

    def _references(self, missing: list[dict]) -> list[str]:
        """Check that the networks, subnetworks, disk types and machine types of rules and new machines exist."""
        rules = self.fleet.wanted_rules()
        named: list[tuple[str, str, str, str, dict | None]] = [
            (f"rule {rule['name']}", "network", "global/networks", rule["network"], None) for rule in rules
        ]
        for one in missing:
            named.append((one["name"], "network", "global/networks", one["network"], None))
            for zone in one["zones"]:
                if one["subnetwork"]:
                    subnetworks = f"regions/{declared.region_of(zone)}/subnetworks"
                    named.append((one["name"], "subnetwork", subnetworks, one["subnetwork"], None))
                named.append((one["name"], "disk.type", f"zones/{zone}/diskTypes", one["disk"]["type"], None))
                named.append((one["name"], "machine_type", f"zones/{zone}/machineTypes", one["machine_type"], one))
        problems: list[str] = []
        found: dict[tuple[str, str], dict | None] = {}
        for who, field, where, name, machine in named:
            try:
                if (where, name) not in found:
                    found[where, name] = self.fleet.get_if_readable(self.client, f"{where}/{name}", who, field)
            except GcpError as error:
                problems.append(f"{who}: {error}")
                continue
            resource = found[where, name]
            known = self._known_names(where) if resource is None else []
            if known and name not in known:
                alike = declared.listed(difflib.get_close_matches(name, known) or known[:6])
                problems.append(f"{who}: there is no '{name}' in {where}: set {field}, such as {alike}.")
            if machine and resource:
                self.cpus[name] = resource.get("guestCpus")
                problems += self._builtin_gpus(who, machine, resource)
        return list(dict.fromkeys(problems))

    @staticmethod
    def _builtin_gpus(who: str, machine: dict, resource: dict) -> list[str]:
        """Return a sentence where the accelerators of a machine type differ from the declared ones.

        `resource`: the API's MachineType.
        """
        brings = resource.get("accelerators") or []
        own = {declared.last(one.get("guestAcceleratorType")): one.get("guestAcceleratorCount") for one in brings}
        chosen = declared.declared_view(machine)["accelerator"]
        # "-vws" is the same GPU with a licence for graphics workstations.
        if not own or own == {kind.removesuffix("-vws"): count for kind, count in chosen.items()}:
            return []
        return [
            f"{who}: {machine['machine_type']} comes with {gpu_text(own)}, accelerator says {gpu_text(chosen)}: make "
            "them agree."
        ]

    def _known_names(self, where: str) -> list[str]:
        """Return the names in a collection, none where it cannot be listed: they are only suggestions."""
        try:
            return [one["name"] for one in self.client.list(where)]
        except GcpError:
            return []

    def _images(self, missing: list[dict]) -> list[str]:
        """Check that the image family exists and fits the machine."""
        problems: list[str] = []
        images: dict[tuple[str, str], dict | None] = {}
        for machine in missing:
            project, family = machine["image"]["project"], machine["image"]["family"]
            who = f"{machine['name']}: image family {family} of project {project}"
            series = machine["machine_type"].split("-")[0]
            for rule in self.fleet.options["unfit_images"]:
                if (rule["image_project"], rule["machine_series"]) == (project, series):
                    problems.append(f"{who} does not fit {machine['machine_type']}: use {rule['instead']}.")
            if (project, family) not in images:
                path = f"projects/{project}/global/images/family/{family}"
                try:
                    images[project, family] = self.client.get(path, missing_ok=True)
                except GcpError as error:
                    problems.append(f"{who} cannot be read: {error}")
                    continue
            image = images[project, family]
            if image is None:
                problems.append(
                    f"{who} does not exist: see 'gcloud compute images list --project={project} --no-standard-images' "
                    "and set image.family."
                )
                continue
            if image.get("architecture", "X86_64") not in ("X86_64", "ARCHITECTURE_UNSPECIFIED"):
                problems.append(f"{who} is for {image['architecture']}, {machine['machine_type']} is X86_64.")
            if int(image.get("diskSizeGb", 0)) > machine["disk"]["size_gb"]:
                problems.append(
                    f"{who} needs a disk of {image['diskSizeGb']} GB, declared is {machine['disk']['size_gb']}: raise "
                    "disk.size_gb."
                )
        return problems

    def _snapshots(self, missing: list[dict]) -> list[str]:
        """Check that the snapshot for a new boot disk exists and fits the disk."""
        problems = []
        for machine in missing:
            name, size = machine["snapshot"], machine["disk"]["size_gb"]
            who = f"{machine['name']}: snapshot {name}"
            found = self.fleet.get_if_readable(self.client, f"global/snapshots/{name}", machine["name"], "snapshot")
            if found is None:
                known = self._known_names("global/snapshots")
                alike = declared.listed(difflib.get_close_matches(name, known) or known[:6]) or "none at all"
                problems.append(f"{who} is not in project {self.fleet.project}: there is {alike}.")
            elif found.get("status", "READY") != "READY":
                problems.append(f"{who} is {found['status']}: wait until it is READY, or name another.")
            elif int(found.get("diskSizeGb", 0)) > size:
                problems.append(
                    f"{who} needs a disk of {found['diskSizeGb']} GB, declared is {size}: raise disk.size_gb."
                )
        return problems

    def _leftover_disks(self, missing: list[dict]) -> list[str]:
        """Check that no disk has the name of a new machine's boot disk."""
        problems = []
        for machine in missing:
            for zone in machine["zones"]:
                disk = self.fleet.get_if_readable(
                    self.client, f"zones/{zone}/disks/{machine['name']}", machine["name"], "disk"
                )
                if disk and disk.get("status") != "DELETING":
                    problems.append(
                        f"{machine['name']}: a disk of that name is in {zone}, where its boot disk would be made. "
                        f"{declared.leftover_disk_cure(machine['name'], zone)}"
                    )
        return problems

    def _addresses(self, missing: list[dict]) -> list[str]:
        """Check that no address of another owner has the name of one to reserve."""
        problems = []
        for machine in missing if self.fleet.has_reserved else []:
            for region in dict.fromkeys(declared.region_of(zone) for zone in machine["zones"]):
                try:
                    address = machine["reserved_address"] and self.fleet.reserved(self.client, machine, region)
                except GcpError as error:
                    problems.append(str(error))
                    continue
                if machine["reserved_address"] and not address:
                    self.new_addresses.add((machine["name"], region))
        return problems

    def _egress(self, missing: list[dict]) -> list[str]:
        """Check that Cloud NAT lets machines without an external address download their software."""
        inner = [one for one in missing if not one["external_address"] and self.fleet.options["egress"] == "nat"]
        problems: list[str] = []
        found: dict[str, list[dict]] = {}
        for machine in inner:
            for region in dict.fromkeys(declared.region_of(zone) for zone in machine["zones"]):
                try:
                    if region not in found:
                        found[region] = list(self.client.list(f"regions/{region}/routers"))
                except GcpError as error:
                    if error.status not in (403, 404, 501):
                        raise
                    self.remarks.append(f"{machine['name']}: whether {region} has a Cloud NAT cannot be asked: {error}")
                    continue
                routers = [one for one in found[region] if declared.last(one.get("network")) == machine["network"]]
                if not any(one.get("nats") for one in routers):
                    problems.append(
                        f"{machine['name']}: it has no external address, and network {machine['network']} has no Cloud "
                        f"NAT in {region}, so nothing could be fetched to it: make one (gcloud compute routers nats "
                        "create), or set gcp_egress: other where it has another way, such as a proxy."
                    )
        return problems

    def _quotas(
        self, missing: list[dict], waiting: list[tuple[dict, dict]], about: dict, new_rules: list[str]
    ) -> list[str]:
        """Check the quotas; what only a machine's further zones would exceed is a remark. `about`: the Project."""
        problems: list[str] = []
        # {region: [(machine, whether it is new)]}: in the first declared zones, and in all of them.
        certain: dict[str, list[tuple[dict, bool]]] = {}
        possible: dict[str, list[tuple[dict, bool]]] = {}
        for machine in missing:
            regions = list(dict.fromkeys(declared.region_of(zone) for zone in machine["zones"]))
            for region in regions:
                possible.setdefault(region, []).append((machine, True))
            for region in regions[:1]:
                certain.setdefault(region, []).append((machine, True))
        for machine, instance in waiting:
            for machines in (certain, possible):
                machines.setdefault(declared.region_of(instance["zone"]), []).append((machine, False))
        for region, machines_there in possible.items():
            quotas = by_metric(self.client.get(f"regions/{region}", missing_ok=True) or {})
            shortages, unknown = self._shortages(region, quotas, certain.get(region, []))
            problems += shortages
            if unknown:
                self.remarks.append(f"region {region} does not tell its quota {declared.listed(unknown)}.")
            if not shortages:
                later, _ = self._shortages(region, quotas, machines_there)
                self.remarks += [f"Should the first zones have no capacity: {one}" for one in later]
        wanted = [*missing, *(machine for machine, _ in waiting)]
        requested: dict[tuple[str, str], dict[str, int]] = {
            ("GPUS_ALL_REGIONS", OTHER_GPUS): {one["name"]: one["accelerator"]["count"] for one in wanted},
            ("CPUS_ALL_REGIONS", OTHER_CPUS): {one["name"]: self._vcpus(one) or 0 for one in wanted},
            ("FIREWALLS", OTHER_RULES): {f"rule {name}": 1 for name in new_rules},
        }
        return problems + exceeded(f"project {self.fleet.project}", by_metric(about), requested)

    def _vcpus(self, machine: dict) -> int | None:
        """Return the vCPUs of a machine's type; of one that was not read, the number at the end of its name."""
        ending = machine["machine_type"].rsplit("-", 1)[-1]
        return self.cpus.get(machine["machine_type"]) or (int(ending) if ending.isdigit() else None)

    def _shortages(
        self, region: str, quotas: Mapping[str, dict], wanted: list[tuple[dict, bool]]
    ) -> tuple[list[str], list[str]]:
        """Return (sentences, metrics that the region does not tell); `wanted`: (machine, whether it is new)."""
        totals: dict[tuple[str, str], dict[str, int]] = {}

        def count(metric: str | None, cure: str, machine: dict, amount: int | None) -> None:
            if metric and amount:
                totals.setdefault((metric, cure), {})[machine["name"]] = amount

        for machine, new in wanted:
            kind, spot, gpu = machine["machine_type"], machine["spot"], machine["accelerator"]
            if new:
                count(declared.disk_metric(machine["disk"]["type"]), OTHER_DISKS, machine, machine["disk"]["size_gb"])
                count("INSTANCES", OTHER_MACHINES, machine, 1)
            count(declared.gpu_metric(gpu["type"], spot, quotas), OTHER_GPUS, machine, gpu["count"])
            count(declared.cpu_metric(kind, spot, quotas), OTHER_CPUS, machine, self._vcpus(machine))
            new_address = (machine["name"], region) in self.new_addresses
            count("STATIC_ADDRESSES", OTHER_ADDRESSES, machine, int(new_address))
            count("IN_USE_ADDRESSES", OTHER_ADDRESSES, machine, int(machine["external_address"]))
        return exceeded(f"region {region}", quotas, totals), sorted(
            metric for metric, _ in totals if metric not in quotas
        )


def exceeded(
    where: str, quotas: Mapping[str, dict], requested: Mapping[tuple[str, str], Mapping[str, int]]
) -> list[str]:
    """Return a sentence for each quota that is too low; `requested`: {(metric, cure): {who: amount}}."""
    problems = []
    for (metric, cure), amounts in requested.items():
        who = {name: amount for name, amount in amounts.items() if amount}
        if who:
            problems.append(declared.quota_problem(where, quotas, metric, sum(who.values()), who, cure))
    return [one for one in problems if one]


def gpu_text(accelerators: Mapping[str, int]) -> str:
    """Return {accelerator type: count} as text for a sentence."""
    return declared.listed(f"{count} {kind}" for kind, count in accelerators.items()) or "none"


def by_metric(resource: dict) -> dict[str, dict]:
    """Return the quotas of the API's Project or Region as {metric: {metric, limit, usage}}."""
    return {one["metric"]: one for one in resource.get("quotas") or []}
