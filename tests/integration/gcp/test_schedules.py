"""Schedules in Google Cloud, snapshots, machines made from snapshots, and the maximum run time of a machine."""

import pytest
from gcp_runs import ZONE_A, made, run, what

from plugins.module_utils.cloud import gcp_declared as declared

REGION = "asia-northeast3"
HOURS = {"start": "0 8 * * 1-5", "stop": "0 20 * * 1-5", "time_zone": "Asia/Seoul"}
SNAPSHOTS = {"at": "20:00", "every_days": 1, "keep_days": 14}
POLICIES = [f"regions/{REGION}/resourcePolicies/llm-server-{kind}" for kind in ("hours", "snapshots")]
pytestmark = pytest.mark.usefixtures("server")


def held(cloud):
    """Return the policies of the machine and its disk, as the ends of their URLs."""
    found = [cloud.instance("llm-server"), cloud.disks[ZONE_A, "llm-server"]]
    return ["/".join(url.split("/")[-4:]) for one in found for url in one.get("resourcePolicies", [])]


def test_they_are_made_attached_and_left_alone_by_the_second_run(cloud, options, machine):
    machine.update(hours=HOURS, snapshots=SNAPSHOTS)
    foretold, _, _ = run(options, check_mode=True)
    fleet = made(options)
    assert what(fleet) == what(foretold)
    assert what(fleet)[-2:] == ["make schedule llm-server-hours", "make schedule llm-server-snapshots"]
    assert held(cloud) == POLICIES
    policy = cloud.policies[REGION, "llm-server-hours"]["instanceSchedulePolicy"]
    assert (policy["vmStopSchedule"], policy["timeZone"]) == ({"schedule": "0 20 * * 1-5"}, "Asia/Seoul")
    kept = cloud.policies[REGION, "llm-server-snapshots"]["snapshotSchedulePolicy"]["retentionPolicy"]
    assert kept == {"maxRetentionDays": 14, "onSourceDiskDelete": "KEEP_AUTO_SNAPSHOTS"}
    cloud.requests.clear()
    fleet = made(options)
    assert (what(fleet), cloud.writes()) == ([], [])


@pytest.mark.parametrize(
    ("kind", "declared_as", "other"),
    [("hours", HOURS, {**HOURS, "stop": ""}), ("snapshots", SNAPSHOTS, {**SNAPSHOTS, "keep_days": 30})],
)
def test_another_schedule_replaces_it_and_none_removes_it(cloud, options, machine, kind, declared_as, other):
    machine[kind] = declared_as
    made(options)
    machine[kind] = other
    for check_mode in (True, False):
        assert what(run(options, check_mode=check_mode)[0]) == [f"update schedule llm-server-{kind}"]
    assert held(cloud) == [one for one in POLICIES if one.endswith(kind)]
    assert what(made(options)) == []
    machine[kind] = None
    assert what(made(options)) == [f"delete schedule llm-server-{kind}"]
    assert (cloud.policies, held(cloud)) == ({}, [])
    assert what(made(options)) == []


def test_one_that_was_taken_off_by_hand_is_attached_again(cloud, options, machine):
    machine["snapshots"] = SNAPSHOTS
    made(options)
    cloud.disks[ZONE_A, "llm-server"]["resourcePolicies"] = []
    assert what(made(options)) == ["attach schedule llm-server-snapshots"]
    assert held(cloud) == POLICIES[1:]


def test_a_run_that_was_cut_off_between_two_requests_is_finished_by_the_next(cloud, options, machine):
    machine["hours"] = HOURS
    cloud.fail("compute.instances.addResourcePolicies", status=400, reason="invalid")
    assert "addResourcePolicies" in run(options)[2][0]
    assert what(made(options)) == ["attach schedule llm-server-hours"]
    assert held(cloud) == POLICIES[:1]


def test_anothers_of_that_name_is_left_alone(cloud, options, machine):
    machine["hours"] = HOURS
    cloud.policies[REGION, "llm-server-hours"] = {"name": "llm-server-hours", "description": "by hand"}
    assert "a schedule llm-server-hours in asia-northeast3 was not made by" in run(options)[2][0]
    assert cloud.policies[REGION, "llm-server-hours"]["description"] == "by hand"


@pytest.mark.parametrize("keep", [False, True])
def test_decommission_takes_them_along(cloud, options, machine, keep):
    machine.update(hours=HOURS, snapshots=SNAPSHOTS)
    made(options)
    fleet, _, problems = run(options, "absent", names=["llm-server"], keep_boot_disk=keep)
    assert problems == []
    assert what(fleet)[1:3] == ["delete schedule llm-server-hours", "delete schedule llm-server-snapshots"]
    assert cloud.policies == {} and bool(cloud.disks) == keep


def test_schedules_of_an_undeclared_machine_are_reported_and_deleted(cloud, options, machine):
    machine["hours"] = HOURS
    made(options)
    cloud.instances.clear(), cloud.disks.clear()
    options["machines"] = [{**machine, "name": "llm-9", "hours": None}]
    fleet, _, _ = run(options, check_mode=True)
    assert any("schedule llm-server-hours in asia-northeast3" in one for one in fleet.remarks)
    fleet, _, _ = run(options, delete_undeclared=["llm-server-hours"])
    assert "delete schedule llm-server-hours" in what(fleet)
    assert cloud.policies == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hours": {**HOURS, "start": "", "stop": ""}}, "hours has neither start nor stop"),
        ({"hours": {**HOURS, "stop": "20:00"}}, "hours.stop '20:00' must be five fields of cron"),
        ({"hours": {**HOURS, "time_zone": "KST 9"}}, "hours.time_zone 'KST 9' must be a name such as"),
        ({"snapshots": {**SNAPSHOTS, "at": "03:00"}}, "snapshots.at '03:00' must be one of 00:00, 04:00"),
        ({"snapshots": {**SNAPSHOTS, "keep_days": 0}}, "snapshots.keep_days 0 must be 1 or more"),
        ({"snapshots": SNAPSHOTS, "name": "m" * 60}, "its name may have 53 characters"),
        ({"max_run_hours": 2881}, "max_run_hours 2881 must be between 1 and 2880"),
        ({"snapshot": "My_Snapshot"}, "snapshot 'My_Snapshot' must be the name alone"),
    ],
)
def test_bad_input_is_refused(cloud, options, machine, changes, message):
    machine.update(changes)
    assert message in run(options)[2][0]
    assert cloud.requests == []


def test_permissions_are_checked_first(cloud, options, machine):
    machine["hours"] = HOURS
    cloud.denied = {"compute.resourcePolicies.create"}
    fleet, problems, _ = run(options, "checked")
    assert "compute.resourcePolicies.create" in problems[0]
    assert any("Compute Engine service agent" in one for one in fleet.remarks)


# --- snapshots ----------------------------------------------------------------------------------------------------


def saved(cloud, options):
    """Take a snapshot and return its name."""
    assert run(options, "saved")[2] == []
    return list(cloud.snapshots)[-1]


def test_a_snapshot_is_taken_and_reported(cloud, options):
    made(options)
    fleet, _, problems = run(options, "saved", check_mode=True)
    assert (what(fleet), problems, cloud.snapshots) == (["take a snapshot of llm-server"], [], {})
    name = saved(cloud, options)
    assert cloud.snapshots[name]["description"] == declared.mark("llm-server")
    fleet = made(options)
    assert any(f"Snapshots that were taken here and cost: {name} (200 GB disk)" in one for one in fleet.remarks)
    assert what(run(options, delete_undeclared=[name])[0]) == [f"delete snapshot {name}"]
    assert cloud.snapshots == {}


def test_a_machine_moves_to_another_zone_by_its_snapshot(cloud, options, machine):
    made(options)
    name = saved(cloud, options)
    run(options, "absent", names=["llm-server"])
    machine.update(zones=["us-central1-a"], snapshot=name)
    assert run(options, "checked")[1] == []
    made(options)
    assert cloud.disks["us-central1-a", "llm-server"]["sourceSnapshot"].endswith(f"/global/snapshots/{name}")
    assert what(made(options)) == []
    machine["snapshot"] = None  # it only counted when the machine was made
    assert what(made(options)) == []


def test_before_a_delete_on_request_and_without_it_nothing_is_deleted(cloud, options):
    made(options)
    cloud.fail("compute.disks.createSnapshot", status=403, reason="forbidden")
    assert "createSnapshot" in run(options, "absent", names=["llm-server"], snapshot_before=True)[2][0]
    assert cloud.instances
    fleet, _, problems = run(options, "absent", names=["llm-server"], snapshot_before=True)
    assert (what(fleet)[0], problems) == ("take a snapshot of llm-server", [])
    assert (len(cloud.snapshots), cloud.instances) == (1, {})


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({}, "is not in project lab-project: there is none at all"),
        ({"name": "old", "status": "CREATING"}, "is CREATING"),
        ({"name": "old", "status": "READY", "diskSizeGb": "500"}, "needs a disk of 500 GB, declared is 200"),
    ],
)
def test_a_snapshot_that_cannot_be_used_is_refused_before_anything_is_made(cloud, options, machine, there, message):
    cloud.snapshots = {there["name"]: there} if there else {}
    machine["snapshot"] = "old"
    assert message in run(options, "checked")[1][0]
    assert cloud.writes() == []


def test_the_playbook_takes_them(cloud, playbook):
    playbook("gcp_provision")
    done = playbook("gcp_snapshot")
    assert done.returncode == 0 and "was taken of its boot disk" in done.said
    assert len(cloud.snapshots) == 1


# --- run time, interface, disk --------------------------------------------------------------------------------------


def test_how_long_a_machine_may_run(cloud, options, machine):
    made(options)
    machine["max_run_hours"] = 12
    assert what(made(options)) == ["update scheduling of llm-server"]
    plan = cloud.instance("llm-server")["scheduling"]
    assert (plan["maxRunDuration"], plan["instanceTerminationAction"]) == ({"seconds": "43200"}, "STOP")
    assert what(made(options)) == []
    machine["max_run_hours"] = 0
    assert what(made(options)) == ["update scheduling of llm-server"]
    assert "maxRunDuration" not in cloud.instance("llm-server")["scheduling"]
    assert what(made(options)) == []


def test_the_network_interface_is_fixed_when_the_machine_is_made(cloud, options, machine):
    machine["nic_type"] = "GVNIC"
    made(options)
    assert cloud.instance("llm-server")["networkInterfaces"][0]["nicType"] == "GVNIC"
    assert what(made(options)) == []
    machine["nic_type"] = "VIRTIO_NET"
    assert "nic_type is GVNIC, declared is VIRTIO_NET: this is fixed" in run(options)[2][0]
    machine["nic_type"] = "auto"
    assert what(made(options)) == []


def test_hyperdisk_has_a_quota_of_its_own(cloud, options, machine):
    machine["disk"] = {**machine["disk"], "type": "hyperdisk-balanced"}
    assert run(options, "checked")[1] == []
    made(options)
    assert what(made(options)) == []
    options["machines"] = [{**machine, "name": "llm-2", "disk": {**machine["disk"], "size_gb": 600}}]
    assert "quota HDB_TOTAL_GB is 500" in run(options, "checked")[1][0]
