"""The firewall rules and machines of one project, brought to what is declared: looked at, planned, done."""

from __future__ import annotations

import difflib
import functools
import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils import gcp_declared as declared
from ansible.module_utils.gcp_client import Client, GcpError, credentials_for, project_sentence

SIDE_BY_SIDE = 8
ADDRESS_TIMEOUT = 60  # s until a machine that runs has its external address
MOVING = {"PROVISIONING", "STAGING", "STOPPING", "PENDING_STOP", "SUSPENDING", "REPAIRING"}


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


class Fleet:
    """Everything one run needs. `options`: the parameters of the module gcp_fleet."""

    def __init__(self, options, check_mode=False):
        self.options = options
        self.check_mode = check_mode
        self.project = options["project"]
        self.names = [name.strip() for name in options["names"]]
        self.machines = [one for one in options["machines"] if not self.names or one["name"] in self.names]
        self.rules, self.without, self.rule_problems, self.remarks = declared.effective_rules(
            options["rules"], options["open_to_world"], options["open_to_world_ports"]
        )
        self.changes, self.refused = [], []
        self._credentials = None

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
        found = []
        for scope, content in self.client().list("aggregated/instances"):
            found += [{**one, "zone": declared.last(scope)} for one in content.get("instances") or []]
        return found

    def find(self, machine, instances):
        """Return the instance of a machine or None. Raises GcpError where it is, but in no declared zone."""
        same = [one for one in instances if one["name"] == machine["name"]]
        for zone in machine["zones"]:
            for one in same:
                if one["zone"] == zone:
                    return one
        if same:
            zone = same[0]["zone"]
            raise GcpError(
                f"{machine['name']} exists in zone {zone}, which its zones in gcp_machines do not name: add {zone} "
                "there, or remove that machine first."
            )
        return None

    def declaration_problems(self):
        problems = []
        if not self.project:
            problems.append("gcp_project is empty: set it to the ID of your Google Cloud project.")
        problems += declared.machine_problems(self.options["machines"])
        problems += declared.rule_problems(self.options["rules"]) + self.rule_problems
        known = [one["name"] for one in self.options["machines"]]
        if self.options["state"] == "absent" and not any(self.names):
            return [*problems, "gcp_decommission is empty: give the name of the machine to delete."]
        problems += [
            f"'{name}' is not among gcp_machines ({declared.listed(known)})."
            for name in self.names
            if name not in known
        ]
        return problems

    # --- checked: before anything is made -----------------------------------------------------------------------

    def checked(self):
        """Ask all that must be right before creation. Returns (problems, estimates)."""
        problems = self.declaration_problems()
        estimates = [
            {"name": one["name"], **declared.estimate(one, one["zones"][0], self.options["prices"])}
            for one in self.machines
            if one["zones"]
        ]
        if not self.project:
            return problems, estimates
        try:
            client = self.client()
            about = client.get("")
            instances = self.instances()
        except GcpError as error:
            return [*problems, project_sentence(self.project, error)], estimates
        missing, waiting = [], []
        for machine in self.machines:
            try:
                instance = self.find(machine, instances)
            except GcpError as error:
                problems.append(str(error))
                continue
            if instance is None:
                missing.append(machine)
            elif instance["status"] not in ("RUNNING", "PROVISIONING", "STAGING"):
                waiting.append((machine, instance))
        quota = functools.partial(self._quota_problems, about=about, waiting=waiting)
        for check in (self._zone_problems, self._name_problems, self._image_problems, quota):
            try:
                problems += check(client, missing)
            except GcpError as error:
                problems.append(str(error))
        return problems, estimates

    def _zone_problems(self, client, missing):
        """See that every declared zone of a machine to be made offers its accelerator."""
        problems = []
        for machine in missing:
            gpu = machine["accelerator"]
            for zone in machine["zones"] if gpu["count"] else []:
                kind = client.get(f"zones/{zone}/acceleratorTypes/{gpu['type']}", missing_ok=True)
                elsewhere = self._zones_with(client, gpu["type"]) if kind is None else []
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

    def _zones_with(self, client, accelerator):
        """Name the zones that have an accelerator; a help in a sentence, so no answer is no error."""
        try:
            pages = client.list("aggregated/acceleratorTypes", filter=f'name = "{accelerator}"')
            zones = [
                declared.last(scope)
                for scope, content in pages
                for one in content.get("acceleratorTypes") or []
                if one["name"] == accelerator
            ]
        except GcpError:
            return []
        return sorted(zones)

    def _name_problems(self, client, missing):
        """See that there is what rules and machines to be made name, before the first of them is made."""
        named = [(f"rule {rule['name']}", "network", "global/networks", rule["network"], None) for rule in self.rules]
        for one in missing:
            named.append((one["name"], "network", "global/networks", one["network"], None))
            for zone in one["zones"]:
                if one["subnetwork"]:
                    subnetworks = f"regions/{declared.region_of(zone)}/subnetworks"
                    named.append((one["name"], "subnetwork", subnetworks, one["subnetwork"], None))
                named.append((one["name"], "disk.type", f"zones/{zone}/diskTypes", one["disk"]["type"], None))
                named.append((one["name"], "machine_type", f"zones/{zone}/machineTypes", one["machine_type"], one))
        problems, found = [], {}
        for who, field, where, name, machine in named:
            if (where, name) not in found:
                found[where, name] = self._ask(client, f"{where}/{name}", who, field)
            resource = found[where, name]
            known = self._known(client, where) if resource is None else []
            if known and name not in known:
                alike = declared.listed(difflib.get_close_matches(name, known) or known[:6])
                problems.append(f"{who}: there is no '{name}' in {where}: set {field}, such as {alike}.")
            brings = (resource or {}).get("accelerators") if machine else None
            if brings:
                own = {declared.last(one["guestAcceleratorType"]): one["guestAcceleratorCount"] for one in brings}
                asked = declared.declared_view(machine)["accelerator"]
                # The same GPU with a licence for graphics.
                if own != {kind.removesuffix("-vws"): count for kind, count in asked.items()}:
                    problems.append(
                        f"{who}: {name} comes with {counted(own)}, accelerator says {counted(asked)}: make them agree."
                    )
        return list(dict.fromkeys(problems))

    @staticmethod
    def _known(client, where):
        """Name all that a collection has; a help in a sentence, so no answer is no error."""
        try:
            return [one["name"] for one in client.list(where)]
        except GcpError:
            return []

    def _image_problems(self, client, missing):
        """See that the image family exists and fits the machine."""
        problems, images = [], {}
        for machine in missing:
            project, family = machine["image"]["project"], machine["image"]["family"]
            who = f"{machine['name']}: image family {family} of project {project}"
            series = machine["machine_type"].split("-")[0]
            for rule in self.options["unfit_images"]:
                if (rule["image_project"], rule["machine_series"]) == (project, series):
                    problems.append(f"{who} does not fit {machine['machine_type']}: use {rule['instead']}.")
            if (project, family) not in images:
                path = f"projects/{project}/global/images/family/{family}"
                try:
                    images[project, family] = client.get(path, missing_ok=True)
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

    def _quota_problems(self, client, missing, about, waiting):
        """Compare disk and GPU quota with what is asked; what only a further zone would need is a remark."""
        problems = []
        certain, possible = {}, {}  # region -> [(machine, is its disk new)]
        for machine in missing:
            regions = list(dict.fromkeys(declared.region_of(zone) for zone in machine["zones"]))
            for region in regions:
                possible.setdefault(region, []).append((machine, True))
            for region in regions[:1]:
                certain.setdefault(region, []).append((machine, True))
        for machine, instance in waiting:
            for asked in (certain, possible):
                asked.setdefault(declared.region_of(instance["zone"]), []).append((machine, False))
        for region, wanted in possible.items():
            quotas = by_metric(client.get(f"regions/{region}", missing_ok=True) or {})
            said, unknown = shortages(region, quotas, certain.get(region, []))
            problems += said
            if unknown:
                self.remarks.append(f"region {region} does not tell its quota {declared.listed(unknown)}.")
            if not said:
                later, _ = shortages(region, quotas, wanted)
                self.remarks += [f"Should the first zones have no capacity: {one}" for one in later]
        wanted = [*missing, *(machine for machine, _ in waiting)]
        gpus = {one["name"]: one["accelerator"]["count"] for one in wanted if one["accelerator"]["count"]}
        if gpus:
            said = declared.quota_problem(
                f"project {self.project}", by_metric(about), "GPUS_ALL_REGIONS", sum(gpus.values()), gpus, OTHER_GPUS
            )
            problems += [said] if said else []
        return problems

    # --- present: rules, then machines --------------------------------------------------------------------------

    def present(self):
        """Make and mend the rules, then the machines side by side. Returns (results, problems)."""
        instances = self.instances()
        self._rules_present()
        return self._each(lambda client, machine, result: self._machine_present(client, machine, instances, result))

    def _rules_present(self):
        client = self.client()
        for rule in self.rules:
            self._rule_present(client, rule)
        for name in sorted(self.without):
            firewall = client.get(f"global/firewalls/{name}", missing_ok=True)
            if firewall:
                self._rule_absent(client, firewall)

    def _rule_present(self, client, rule):
        body = declared.rule_body(self.project, rule)
        after = declared.rule_view(self.project, body)
        path = f"global/firewalls/{rule['name']}"
        firewall = client.get(path, missing_ok=True)
        if firewall is None:
            self._do(client, f"make rule {rule['name']}", None, after, ("POST", "global/firewalls", body))
            return
        before = declared.rule_view(self.project, firewall)
        if before == after:
            return
        patch, replace = declared.rule_patch(self.project, rule, firewall)
        if replace:
            renew = (("DELETE", path), ("POST", "global/firewalls", body))
            self._do(client, f"make rule {rule['name']} anew", before, after, *renew)
        else:
            self._do(client, f"mend rule {rule['name']}", before, after, ("PATCH", path, patch))

    def _rule_absent(self, client, firewall):
        name = firewall["name"]
        if firewall.get("description") != declared.MARK:
            self.remarks.append(f"rule {name} was not made by this project and is left alone.")
            return
        before = declared.rule_view(self.project, firewall)
        self._do(client, f"delete rule {name}", before, None, ("DELETE", f"global/firewalls/{name}"))

    def _machine_present(self, client, machine, instances, result):
        instance = self.find(machine, instances)
        if instance is None and self.check_mode:
            result.zone, result.status = machine["zones"][0], "would be made"
            result.changes.append(self._made(machine, machine["zones"][0]))
            return
        if instance is None:
            instance = self._create(client, machine, result)
        instance = self._mend(client, machine, instance, result)
        result.seen(self._start(client, instance, result))

    def _made(self, machine, zone):
        view = declared.declared_view(machine)
        return Change(f"make {machine['name']} in {zone}", None, {"zone": zone, **view})

    def _create(self, client, machine, result):
        """Insert into the first declared zone that has capacity; return the instance once it stands still.

        One that appears meanwhile (an answer that got lost, another run) is as good: it is compared afterwards.
        """
        zones = []
        for zone in machine["zones"]:
            body = declared.machine_body(self.project, zone, machine)
            try:
                client.change("POST", f"zones/{zone}/instances", body)
            except GcpError as error:
                if error.stockout:
                    result.tried.append({"zone": zone, "reason": str(error)})
                    zones += error.zones_available
                    continue
                if not error.exists:
                    raise
                if client.get(f"zones/{zone}/instances/{machine['name']}", missing_ok=True) is None:
                    # The disk of a machine that was deleted without it is there under the same name.
                    raise GcpError(
                        f"{error} If it is a disk that nobody needs, delete it (gcloud compute disks delete "
                        f"{machine['name']} --zone={zone}); else give the machine another name in gcp_machines.",
                        error.status,
                        error.reasons,
                    ) from error
            result.changes.append(self._made(machine, zone))
            result.zone = zone
            return self._settled(client, zone, machine["name"])
        elsewhere = f" The API names {declared.listed(dict.fromkeys(zones))}." if zones else ""
        raise GcpError(
            f"{machine['name']}: no capacity in {declared.listed(machine['zones'])}: "
            f"{result.tried[-1]['reason']}{elsewhere} Add a zone to its zones in gcp_machines, or try later."
        )

    def _settled(self, client, zone, name):
        """Wait until an instance stands still, and until it has the external address that it is to have."""
        begin = time.monotonic()
        pause = 0.5
        while True:
            instance = {**client.get(f"zones/{zone}/instances/{name}"), "zone": zone}
            interface = (instance.get("networkInterfaces") or [{}])[0]
            external, _ = declared.addresses(instance)
            lacks_address = instance["status"] == "RUNNING" and interface.get("accessConfigs") and not external
            elapsed = time.monotonic() - begin
            if instance["status"] not in MOVING and (not lacks_address or elapsed > ADDRESS_TIMEOUT):
                return instance
            if elapsed > self.options["operation_timeout"]:
                raise GcpError(
                    f"{name}: still {instance['status']} without rest after {self.options['operation_timeout']} s: "
                    "look at it in the console, or raise gcp_operation_timeout."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5)

    def _mend(self, client, machine, instance, result):
        """Bring an instance to what is declared, as far as that is possible in its state."""
        zone, name = instance["zone"], machine["name"]
        if instance["status"] in MOVING and not self.check_mode:
            instance = self._settled(client, zone, name)
        stopped = instance["status"] in ("TERMINATED", "STOPPED")
        disk, family = self._boot(client, zone, instance)
        wanted = declared.declared_view(machine)
        for difference in declared.differences(wanted, declared.actual_view(machine, instance, disk, family)):
            if difference.cure == declared.NEW or (difference.cure == declared.STOPPED and not stopped):
                result.refused.append(declared.refusal(name, difference))
                continue
            field = difference.field
            change = Change(f"mend {field} of {name}", {field: difference.actual}, {field: difference.declared})
            if not self.check_mode:
                try:
                    instance = self._mend_field(client, machine, zone, field) or instance
                except GcpError as error:
                    if field == "scheduling" and error.status == 400 and not stopped:
                        difference.cure = declared.STOPPED
                        result.refused.append(f"{declared.refusal(name, difference)} ({error})")
                        continue
                    raise
            result.changes.append(change)
        return instance

    def _boot(self, client, zone, instance):
        """Return (Disk, "project/family") of the boot disk; None, with a remark, for what cannot be asked."""
        source = declared.boot_disk(instance).get("source")
        name = instance["name"]
        disk = self._ask(client, f"zones/{zone}/disks/{declared.last(source)}", name, "disk") if source else None
        parts = declared.tail((disk or {}).get("sourceImage"), self.project).split("/")
        if len(parts) < 2:
            return disk, None
        # Google deletes old images; the disk made from one works on.
        family = parts[-1]
        if "family" not in parts:
            family = (self._ask(client, "/".join(parts), name, "image") or {}).get("family")
        return disk, f"{parts[1]}/{family}" if family else None

    def _ask(self, client, path, who, what):
        """Get what is only compared: None where it is not there, and with a remark where it may not be read."""
        try:
            return client.get(path, missing_ok=True)
        except GcpError as error:
            if error.status not in (403, 501):
                raise
            self.remarks.append(f"{who}: its {what} is not compared: {error}")
            return None

    def _mend_field(self, client, machine, zone, field):
        """Send the one change that mends a field, with fresh fingerprints; return the instance as it is then."""
        path = f"zones/{zone}/instances/{machine['name']}"
        for attempt in (1, 2):
            instance = {**client.get(path), "zone": zone}
            try:
                for method, where, body, params in self._requests(machine, zone, instance, field, path):
                    client.change(method, where, body, **params)
                return {**client.get(path), "zone": zone}
            except GcpError as error:
                # 412: somebody else changed it between our reading and writing.
                if error.status != 412 or attempt == 2:
                    raise
        return None

    def _requests(self, machine, zone, instance, field, path):
        """Yield (method, path, body, parameters) of the requests that mend one field."""
        body = declared.machine_body(self.project, zone, machine)
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
            params = {"autoDelete": "true", "deviceName": boot.get("deviceName", machine["name"])}
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

        def start(client, machine, result):
            instance = self.find(machine, instances)
            if instance is None:
                raise GcpError(f"{machine['name']} does not exist: make it with playbooks/provision.yml.")
            result.seen(self._start(client, instance, result))

        return self._each(start)

    def _start(self, client, instance, result):
        """Start an instance that does not run; return it as it is then, with its new address."""
        zone, name = instance["zone"], instance["name"]
        if instance["status"] in MOVING and not self.check_mode:
            instance = self._settled(client, zone, name)
        if instance["status"] == "RUNNING" or instance["status"] in MOVING:
            if result.changes and not self.check_mode:
                return self._settled(client, zone, name)
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
                    f"{error} Its disk is in {zone}, so it can start only there: try later, or make it anew in "
                    "another zone (playbooks/decommission.yml, then playbooks/provision.yml).",
                    error.status,
                    error.reasons,
                ) from error
            raise
        result.changes.append(change)
        return self._settled(client, zone, name)

    def stopped(self):
        instances = self.instances()

        def stop(client, machine, result):
            instance = self.find(machine, instances)
            if instance is None:
                return
            zone, name = instance["zone"], instance["name"]
            if instance["status"] in MOVING and not self.check_mode:
                instance = self._settled(client, zone, name)
            if instance["status"] in ("RUNNING", *MOVING):
                change = Change(f"stop {name}", {"status": instance["status"]}, {"status": "TERMINATED"})
                if not self.check_mode:
                    client.change("POST", f"zones/{zone}/instances/{name}/stop")
                    instance = self._settled(client, zone, name)
                result.changes.append(change)
            result.seen(instance)

        return self._each(stop)

    def absent(self):
        """Delete the named machines, then the rules that no remaining machine needs."""
        instances = self.instances()

        def delete(client, machine, result):
            instance = self.find(machine, instances)
            if instance is None:
                return
            zone, name = instance["zone"], instance["name"]
            if instance.get("description") != declared.MARK:
                raise GcpError(
                    f"{name} in {zone} was not made by playbooks/provision.yml and is not deleted: "
                    f"gcloud compute instances delete {name} --zone={zone} would."
                )
            view = declared.actual_view(machine, instance, None, None)
            shown = {"zone": zone, **{key: view[key] for key in ("machine_type", "tags", "labels")}}
            if not self.check_mode:
                if not declared.boot_disk(instance).get("autoDelete"):
                    self._mend_field(client, machine, zone, "disk_auto_delete")
                client.change("DELETE", f"zones/{zone}/instances/{name}")
            result.changes.append(Change(f"delete {name} and its boot disk", shown, None))

        results, problems = self._each(delete)
        gone = {result.name for result in results}
        left = [one for one in instances if one["name"] not in gone]
        client = self.client()
        for name in sorted(self.without | {rule["name"] for rule in self.rules}):
            firewall = client.get(f"global/firewalls/{name}", missing_ok=True)
            if firewall is None:
                continue
            tags = set(firewall.get("targetTags") or [])
            users = [one["name"] for one in left if tags & set((one.get("tags") or {}).get("items") or [])]
            if users:
                self.remarks.append(f"rule {name} stays: {declared.listed(users)} uses it.")
            else:
                self._rule_absent(client, firewall)
        return results, problems

    # --- the common part ----------------------------------------------------------------------------------------

    def _do(self, client, what, before, after, *requests):
        if not self.check_mode:
            for request in requests:
                try:
                    client.change(*request)
                except GcpError as error:
                    # Made meanwhile: an answer that got lost, or another run. The next run compares it.
                    if not error.exists:
                        raise
        self.changes.append(Change(what, before, after))

    def _each(self, action):
        """Do one thing for every machine, side by side. Returns (results, problems): one's failure stops no other."""
        results, problems = [], []
        with ThreadPoolExecutor(max_workers=SIDE_BY_SIDE) as pool:
            begun = []
            for machine in self.machines:
                result = Result(machine["name"])
                begun.append((result, pool.submit(action, self.client(), machine, result)))
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


def cost_sentence(cost):
    if cost["missing"]:
        return f"{cost['name']}: no estimate: {cost['missing']}."
    return (
        f"{cost['name']} costs about {cost['running']:.2f} {cost['currency']} an hour while it runs, "
        f"{cost['stopped']:.2f} while it is stopped (data/gcp/prices.yml)."
    )


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

    def seen(self, instance):
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


def counted(accelerators):
    return declared.listed(f"{count} {kind}" for kind, count in accelerators.items()) or "none"


def by_metric(resource):
    return {one["metric"]: one for one in resource.get("quotas") or []}


OTHER_GPUS = "stop other machines with a GPU, or choose another region"
OTHER_DISKS = "delete disks that nobody needs, or set disk.size_gb so that all ask for at most {left:g}"


def shortages(region, quotas, wanted):
    """Return (sentences, metrics that the region does not tell). `wanted`: [(machine, is its disk new)]."""
    totals = {}
    for machine, new_disk in wanted:
        disk, gpu = declared.disk_metric(machine["disk"]["type"]), machine["accelerator"]
        if new_disk and disk:
            totals.setdefault((disk, OTHER_DISKS), {})[machine["name"]] = machine["disk"]["size_gb"]
        if gpu["count"]:
            metric = declared.gpu_metric(gpu["type"], machine["spot"], quotas)
            totals.setdefault((metric, OTHER_GPUS), {})[machine["name"]] = gpu["count"]
    said = [
        declared.quota_problem(f"region {region}", quotas, metric, sum(who.values()), who, cure)
        for (metric, cure), who in totals.items()
    ]
    return [one for one in said if one], sorted(metric for metric, _ in totals if metric not in quotas)
