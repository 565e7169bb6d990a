"""Create, update and delete a machine's schedules in Google Cloud (resource policies), and take snapshots.

`hours`: when the machine starts and stops. `snapshots`: when snapshots of its boot disk are taken. Source:
https://cloud.google.com/compute/docs/reference/rest/v1/resourcePolicies.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from . import gcp_declared as declared
from .gcp_client import Client, GcpError
from .gcp_declared import Change

if TYPE_CHECKING:
    from .gcp_fleet import Fleet, Result

ON_MACHINE, ON_DISK = "instances", "disks"
# kind -> (the policy's field in the API, what it is attached to). The kind ends the policy's name.
KINDS = {"hours": ("instanceSchedulePolicy", ON_MACHINE), "snapshots": ("snapshotSchedulePolicy", ON_DISK)}
SNAPSHOT_TIMES = ("00:00", "04:00", "08:00", "12:00", "16:00", "20:00")  # UTC; the API takes no other
CRON = re.compile(r"\S+( \S+){4}")
TIME_ZONE = re.compile(r"[A-Za-z_+-]+(/[A-Za-z0-9_+-]+)*")
LONGEST = 63


def name_of(machine: str, kind: str) -> str:
    """Return the name of a machine's schedule of a kind."""
    return f"{machine}-{kind}"


def schedule_problems(who: str, machine: dict) -> list[str]:
    """Return a sentence for each invalid value of a machine's schedules."""
    hours, snapshots = machine["hours"], machine["snapshots"]
    problems = [
        f"{who}: with {kind} its name may have {LONGEST - len(name_of('', kind))} characters: the schedule is called "
        f"{name_of(machine['name'], kind)}."
        for kind in KINDS
        if machine[kind] and len(name_of(machine["name"], kind)) > LONGEST
    ]
    if hours:
        if not hours["start"] and not hours["stop"]:
            problems.append(f"{who}: hours has neither start nor stop: set one, such as stop: 0 20 * * *.")
        problems += [
            f"{who}: hours.{when} '{hours[when]}' must be five fields of cron, such as 0 8 * * 1-5."
            for when in ("start", "stop")
            if hours[when] and not CRON.fullmatch(hours[when])
        ]
        if not TIME_ZONE.fullmatch(hours["time_zone"]):
            problems.append(f"{who}: hours.time_zone '{hours['time_zone']}' must be a name such as Asia/Seoul.")
    if snapshots:
        if snapshots["at"] not in SNAPSHOT_TIMES:
            problems.append(
                f"{who}: snapshots.at '{snapshots['at']}' must be one of {declared.listed(SNAPSHOT_TIMES)} (UTC)."
            )
        problems += [
            f"{who}: snapshots.{field} {snapshots[field]} must be 1 or more."
            for field in ("every_days", "keep_days")
            if snapshots[field] < 1
        ]
    return problems


def body(machine: dict, kind: str, fleet: str) -> dict | None:
    """Return the API's ResourcePolicy for a machine's schedule, None where none is declared."""
    requested = machine[kind]
    if not requested:
        return None
    if kind == "hours":
        policy: dict = {
            "timeZone": requested["time_zone"],
            **({"vmStartSchedule": {"schedule": requested["start"]}} if requested["start"] else {}),
            **({"vmStopSchedule": {"schedule": requested["stop"]}} if requested["stop"] else {}),
        }
    else:
        policy = {
            "schedule": {"dailySchedule": {"daysInCycle": requested["every_days"], "startTime": requested["at"]}},
            # Snapshots are for the time after the disk is lost.
            "retentionPolicy": {
                "maxRetentionDays": requested["keep_days"],
                "onSourceDiskDelete": "KEEP_AUTO_SNAPSHOTS",
            },
        }
    return {
        "name": name_of(machine["name"], kind),
        "description": declared.mark(fleet),
        KINDS[kind][0]: policy,
    }


def view(policy: dict) -> dict:
    """Return the fields of the API's ResourcePolicy, or of a body for one, in the form that is compared and shown."""
    hours, snapshots = policy.get("instanceSchedulePolicy"), policy.get("snapshotSchedulePolicy")
    if hours is not None:
        return {
            "start": (hours.get("vmStartSchedule") or {}).get("schedule", ""),
            "stop": (hours.get("vmStopSchedule") or {}).get("schedule", ""),
            "time_zone": hours.get("timeZone", ""),
        }
    if snapshots is not None:
        schedule, kept = snapshots.get("schedule") or {}, snapshots.get("retentionPolicy") or {}
        daily = schedule.get("dailySchedule") or {}
        return {
            "at": daily.get("startTime", ""),
            "every_days": daily.get("daysInCycle", 0),
            "keep_days": kept.get("maxRetentionDays", 0),
            "after_the_disk": kept.get("onSourceDiskDelete", ""),
            "other": sorted(set(schedule) - {"dailySchedule"}),
        }
    return {"other": "a policy of another kind"}


def attached(resource: dict, name: str) -> bool:
    """Return whether an instance or a disk has the policy of that name."""
    return name in [declared.last(url) for url in resource.get("resourcePolicies") or []]


def snapshot_body(machine: str, fleet: str) -> dict:
    """Return the API's Snapshot for a machine; its name ends in the time (UTC), so that each has its own."""
    now = datetime.now(timezone.utc).strftime("-%Y%m%d-%H%M%S")
    return {"name": f"{machine[: LONGEST - len(now)]}{now}", "description": declared.mark(fleet)}


class Policies:
    """Brings the schedules of machines to their declared state; `fleet`: the run that they belong to."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def present(self, client: Client, machine: dict, zone: str, instance: dict | None, result: Result) -> None:
        """Create, update, attach and delete a machine's schedules.

        `instance`: None where check mode has not created it. Raises GcpError where another's schedule has the name.
        """
        for kind, (_, where) in KINDS.items():
            name, region = name_of(machine["name"], kind), declared.region_of(zone)
            wanted, policy = body(machine, kind, self.fleet.fleet), self._get(client, region, name)
            if wanted is None:
                if policy is not None and declared.made_by(policy, self.fleet.fleet):
                    self._delete(client, policy, region, self._holder(zone, where, instance), result)
                continue
            if policy is not None and not declared.made_by(policy, self.fleet.fleet):
                raise GcpError(
                    f"{machine['name']}: a schedule {name} in {region} {declared.origin(policy)} and is left alone: "
                    "give the machine another name, or delete that one (gcloud compute resource-policies delete)."
                )
            self._reconcile(client, name, wanted, policy, self._holder(zone, where, instance), region, result)

    def absent(self, client: Client, instance: dict, result: Result) -> None:
        """Delete the schedules of a deleted machine; they are detached from a disk that stays."""
        zone, fleet = instance["zone"], self.fleet.fleet
        for kind, (_, where) in KINDS.items():
            region = declared.region_of(zone)
            policy = self._get(client, region, name_of(instance["name"], kind))
            if policy is not None and declared.made_by(policy, fleet):
                holder = self._holder(zone, where, instance) if where == ON_DISK else None
                self._delete(client, policy, region, holder, result)

    @staticmethod
    def _get(client: Client, region: str, name: str) -> dict | None:
        return client.get(f"regions/{region}/resourcePolicies/{name}", missing_ok=True)

    @staticmethod
    def _holder(zone: str, where: str, instance: dict | None) -> str | None:
        """Return the path of the instance or disk that a policy is attached to, None where it does not exist yet."""
        if instance is None:
            return None
        name = instance["name"] if where == ON_MACHINE else declared.last(declared.boot_disk(instance).get("source"))
        return f"zones/{zone}/{where}/{name}" if name else None

    def _reconcile(
        self,
        client: Client,
        name: str,
        wanted: dict,
        policy: dict | None,
        holder: str | None,
        region: str,
        result: Result,
    ) -> None:
        """Create the `wanted` schedule, replace `policy` where it differs, and attach it to `holder`."""
        before, after = policy and view(policy), view(wanted)
        is_attached = bool(policy and holder and attached(client.get(holder, missing_ok=True) or {}, name))
        if before == after and is_attached:
            return
        what = f"{'make' if policy is None else 'update'} schedule {name}"
        if before == after:
            what, before, after = f"attach schedule {name}", {"attached": False}, {"attached": True}
        if not self.fleet.check_mode:
            if view(wanted) != (policy and view(policy)):
                if policy is not None:  # the API does not change a policy in use, so it is created again
                    self._detach(client, name, region, holder, is_attached)
                    client.change("DELETE", f"regions/{region}/resourcePolicies/{name}")
                client.change("POST", f"regions/{region}/resourcePolicies", wanted)
                is_attached = False
            if not is_attached and holder:
                client.change("POST", f"{holder}/addResourcePolicies", self._reference(name, region))
        result.changes.append(Change(what, before, after))

    def _delete(self, client: Client, policy: dict, region: str, holder: str | None, result: Result) -> None:
        name = policy["name"]
        if not self.fleet.check_mode:
            is_attached = bool(holder and attached(client.get(holder, missing_ok=True) or {}, name))
            self._detach(client, name, region, holder, is_attached)
            client.change("DELETE", f"regions/{region}/resourcePolicies/{name}")
        result.changes.append(Change(f"delete schedule {name}", view(policy), None))

    def _detach(self, client: Client, name: str, region: str, holder: str | None, is_attached: bool) -> None:
        if is_attached:
            client.change("POST", f"{holder}/removeResourcePolicies", self._reference(name, region))

    def _reference(self, name: str, region: str) -> dict:
        return {"resourcePolicies": [f"projects/{self.fleet.project}/regions/{region}/resourcePolicies/{name}"]}

    def save(self, client: Client, instance: dict, result: Result) -> None:
        """Take a snapshot of a machine's boot disk. Raises GcpError where the machine has none."""
        zone, disk = instance["zone"], declared.last(declared.boot_disk(instance).get("source"))
        if not disk:
            raise GcpError(f"{instance['name']} in {zone} has no boot disk that a snapshot could be taken of.")
        wanted = snapshot_body(instance["name"], self.fleet.fleet)
        if not self.fleet.check_mode:
            client.change("POST", f"zones/{zone}/disks/{disk}/createSnapshot", wanted)
            self.fleet.remarks.append(
                f"{instance['name']}: snapshot {wanted['name']} was taken of its boot disk and costs; snapshot: "
                f"{wanted['name']} in gcp_machines makes a new machine from it, in any zone."
            )
        after = {"disk": disk, "zone": zone}
        result.changes.append(Change(f"take a snapshot of {instance['name']}", None, after))
