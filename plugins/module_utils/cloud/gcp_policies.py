"""A machine's schedules in Google Cloud (resource policies), and snapshots that are taken now.

`hours`: when the machine is started and stopped. `snapshots`: when its boot disk is copied.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from . import gcp_declared as declared
from .gcp_client import GcpError
from .gcp_declared import Change

ON_MACHINE, ON_DISK = "instances", "disks"
# kind -> (the policy's field in the API, what it is attached to). The kind ends the policy's name.
KINDS = {"hours": ("instanceSchedulePolicy", ON_MACHINE), "snapshots": ("snapshotSchedulePolicy", ON_DISK)}
SNAPSHOT_TIMES = ("00:00", "04:00", "08:00", "12:00", "16:00", "20:00")  # UTC; the API takes no other
CRON = re.compile(r"\S+( \S+){4}")
TIME_ZONE = re.compile(r"[A-Za-z_+-]+(/[A-Za-z0-9_+-]+)*")
LONGEST = 63


def name_of(machine, kind):
    return f"{machine}-{kind}"


def schedule_problems(who, machine):
    """Return a sentence for each value of a machine's schedules that cannot be meant."""
    problems, hours, snapshots = [], machine["hours"], machine["snapshots"]
    problems += [
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


def body(machine, kind, fleet):
    """Word a machine's schedule as the API's ResourcePolicy; None where none is declared."""
    asked = machine[kind]
    if not asked:
        return None
    if kind == "hours":
        policy = {
            "timeZone": asked["time_zone"],
            **({"vmStartSchedule": {"schedule": asked["start"]}} if asked["start"] else {}),
            **({"vmStopSchedule": {"schedule": asked["stop"]}} if asked["stop"] else {}),
        }
    else:
        policy = {
            "schedule": {"dailySchedule": {"daysInCycle": asked["every_days"], "startTime": asked["at"]}},
            # What was copied outlives the disk: that is what it is for.
            "retentionPolicy": {
                "maxRetentionDays": asked["keep_days"],
                "onSourceDiskDelete": "KEEP_AUTO_SNAPSHOTS",
            },
        }
    return {
        "name": name_of(machine["name"], kind),
        "description": declared.mark(fleet),
        KINDS[kind][0]: policy,
    }


def view(policy):
    """Bring a ResourcePolicy of the API, or a body for it, into the one form that is compared and shown."""
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


def attached(resource, name):
    """Say whether an instance or a disk has the policy of that name."""
    return name in [declared.last(url) for url in resource.get("resourcePolicies") or []]


def snapshot_body(machine, fleet):
    """Word a snapshot that is taken now; the time ends its name, as each is another."""
    now = datetime.now(timezone.utc).strftime("-%Y%m%d-%H%M%S")
    return {"name": f"{machine[: LONGEST - len(now)]}{now}", "description": declared.mark(fleet)}


class Policies:
    """Brings the schedules of machines to what is declared. `fleet`: the Fleet of the run."""

    def __init__(self, fleet):
        self.fleet = fleet

    def present(self, client, machine, zone, instance, result):
        """Make, mend, attach and delete a machine's schedules. `instance`: None before it is made, in check mode."""
        for kind, (_, where) in KINDS.items():
            name, region = name_of(machine["name"], kind), declared.region_of(zone)
            wanted, there = body(machine, kind, self.fleet.fleet), self._get(client, region, name)
            if wanted is None:
                if there is not None and declared.made_by(there, self.fleet.fleet):
                    self._delete(client, there, region, self._holder(zone, where, instance), result)
                continue
            if there is not None and not declared.made_by(there, self.fleet.fleet):
                raise GcpError(
                    f"{machine['name']}: a schedule {name} in {region} {declared.maker(there)} and is left alone: give "
                    "the machine another name, or delete that one (gcloud compute resource-policies delete)."
                )
            self._bring(client, name, wanted, there, self._holder(zone, where, instance), region, result)

    def absent(self, client, instance, result):
        """Delete the schedules of a machine that is gone; they are taken off a disk that stays."""
        zone, fleet = instance["zone"], self.fleet.fleet
        for kind, (_, where) in KINDS.items():
            region = declared.region_of(zone)
            there = self._get(client, region, name_of(instance["name"], kind))
            if there is not None and declared.made_by(there, fleet):
                holder = self._holder(zone, where, instance) if where == ON_DISK else None
                self._delete(client, there, region, holder, result)

    @staticmethod
    def _get(client, region, name):
        return client.get(f"regions/{region}/resourcePolicies/{name}", missing_ok=True)

    @staticmethod
    def _holder(zone, where, instance):
        """Return the path of what a policy is attached to, None where that is not there yet."""
        if instance is None:
            return None
        name = instance["name"] if where == ON_MACHINE else declared.last(declared.boot_disk(instance).get("source"))
        return f"zones/{zone}/{where}/{name}" if name else None

    def _bring(self, client, name, wanted, there, holder, region, result):
        before, after = there and view(there), view(wanted)
        on_it = bool(there and holder and attached(client.get(holder, missing_ok=True) or {}, name))
        if before == after and on_it:
            return
        what = f"{'make' if there is None else 'mend'} schedule {name}"
        if before == after:
            what, before, after = f"attach schedule {name}", {"attached": False}, {"attached": True}
        if not self.fleet.check_mode:
            if view(wanted) != (there and view(there)):
                if there is not None:  # a policy in use is not changed: it is made anew
                    self._off(client, name, region, holder, on_it)
                    client.change("DELETE", f"regions/{region}/resourcePolicies/{name}")
                client.change("POST", f"regions/{region}/resourcePolicies", wanted)
                on_it = False
            if not on_it and holder:
                client.change("POST", f"{holder}/addResourcePolicies", self._named(name, region))
        result.changes.append(Change(what, before, after))

    def _delete(self, client, there, region, holder, result):
        name = there["name"]
        if not self.fleet.check_mode:
            on_it = bool(holder and attached(client.get(holder, missing_ok=True) or {}, name))
            self._off(client, name, region, holder, on_it)
            client.change("DELETE", f"regions/{region}/resourcePolicies/{name}")
        result.changes.append(Change(f"delete schedule {name}", view(there), None))

    def _off(self, client, name, region, holder, on_it):
        if on_it:
            client.change("POST", f"{holder}/removeResourcePolicies", self._named(name, region))

    def _named(self, name, region):
        return {"resourcePolicies": [f"projects/{self.fleet.project}/regions/{region}/resourcePolicies/{name}"]}

    def save(self, client, instance, result):
        """Take a snapshot of a machine's boot disk."""
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
