"""The fleet against the Compute API on loopback, which checks every request and fails in every known way."""

import copy
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_runs import ZONE_A, ZONE_B, made, run, what

from lab.compute_api import Refused, schema
from plugins.module_utils.cloud import gcp_declared as declared
from plugins.module_utils.cloud.gcp_client import Client, GcpError, credentials_for
from plugins.module_utils.cloud.gcp_fleet import Fleet


@pytest.mark.usefixtures("server")
class TestPresent:
    def test_nothing_becomes_everything_and_then_nothing_changes(self, cloud, options):
        fleet, (result,), problems = run(options)
        assert problems == []
        assert what(fleet) == [
            "make rule allow-ai-server-ports",
            "make rule allow-monitoring-ports",
            f"make llm-server in {ZONE_A}",
        ]
        instance = cloud.instance("llm-server")
        assert instance["machineType"].endswith(f"/{ZONE_A}/machineTypes/g2-standard-4")
        assert instance["scheduling"]["onHostMaintenance"] == "TERMINATE"
        assert instance["scheduling"]["automaticRestart"] is True
        assert instance["disks"][0]["diskSizeGb"] == "200"
        assert cloud.disks[ZONE_A, "llm-server"]["type"].endswith("/pd-ssd")
        assert instance["tags"]["items"] == ["ai-server", "monitoring"]
        assert result.address == instance["networkInterfaces"][0]["accessConfigs"][0]["natIP"]
        rule = cloud.firewalls["allow-monitoring-ports"]
        assert rule["allowed"] == [{"IPProtocol": "tcp", "ports": ["9100", "9400"]}]
        assert (rule["sourceRanges"], rule["targetTags"]) == (["198.51.100.0/24"], ["monitoring"])
        cloud.requests.clear()
        again, _, problems = run(options)
        assert (what(again), problems, cloud.writes()) == ([], [], [])

    def test_check_mode_writes_nothing_and_reports_all(self, cloud, options):
        fleet, _, problems = run(options, check_mode=True)
        assert problems == []
        assert len(what(fleet)) == 3
        assert fleet.changes[2].after["accelerator"] == {"nvidia-l4": 1}
        assert (cloud.writes(), cloud.instances, cloud.firewalls) == ([], {}, {})

    @pytest.mark.parametrize(
        ("spoil", "field"),
        [
            (lambda rule: rule["allowed"][0]["ports"].remove("8001"), "allowed"),
            (lambda rule: rule["allowed"][0]["ports"].append("22"), "allowed"),
            (lambda rule: rule["allowed"].append({"IPProtocol": "icmp"}), "allowed"),
            (lambda rule: rule["sourceRanges"].append("0.0.0.0/0"), "sourceRanges"),
            (lambda rule: rule.update(sourceRanges=["203.0.113.0/24"]), "sourceRanges"),
            (lambda rule: rule["targetTags"].append("other"), "targetTags"),
            (lambda rule: rule.update(priority=10), "priority"),
            (lambda rule: rule.update(disabled=True), "disabled"),
            (lambda rule: rule.update(sourceTags=["other"]), "sourceTags"),
            (lambda rule: rule.update(logConfig={"enable": True}), "logging"),
            (lambda rule: rule.update(direction="EGRESS"), "direction"),
            (lambda rule: rule.update(network=rule["network"].replace("default", "other")), "network"),
        ],
    )
    def test_only_the_rule_that_drifted_is_corrected(self, cloud, options, spoil, field):
        made(options)
        wanted = declared.rule_view("lab-project", copy.deepcopy(cloud.firewalls["allow-ai-server-ports"]))
        spoil(cloud.firewalls["allow-ai-server-ports"])
        foretold, _, _ = run(options, check_mode=True)
        fleet, _, problems = run(options)
        assert problems == []
        assert len(fleet.changes) == 1
        assert what(foretold) == what(fleet)
        assert set(fleet.changes[0].only_differing()[1]) == {field}
        assert declared.rule_view("lab-project", cloud.firewalls["allow-ai-server-ports"]) == wanted
        assert what(run(options)[0]) == []

    @pytest.mark.parametrize(
        ("spoil", "field"),
        [
            (lambda vm: vm["tags"].update(items=["ai-server"]), "tags"),
            (lambda vm: vm["tags"]["items"].append("open-to-all"), "tags"),
            (lambda vm: vm.pop("labels"), "labels"),
            (lambda vm: vm["labels"].update(extra="x"), "labels"),
            (lambda vm: vm["scheduling"].update(automaticRestart=False), "scheduling"),
            (lambda vm: vm["disks"][0].update(autoDelete=False), "disk_auto_delete"),
            (lambda vm: vm["networkInterfaces"][0].pop("accessConfigs"), "external_address"),
        ],
    )
    def test_only_the_field_that_drifted_is_corrected(self, cloud, options, spoil, field):
        made(options)
        spoil(cloud.instance("llm-server"))
        foretold, _, _ = run(options, check_mode=True)
        fleet, _, problems = run(options)
        assert problems == []
        assert what(fleet) == what(foretold) == [f"update {field} of llm-server"]
        assert what(run(options)[0]) == []

    def test_metadata_of_others_stays(self, cloud, options, machine):
        machine["metadata"] = {"purpose": "llm"}
        made(options)
        items = cloud.instance("llm-server")["metadata"]["items"]
        items[0]["value"] = "changed"
        items.append({"key": "ssh-keys", "value": "somebody"})
        assert what(run(options)[0]) == ["update metadata of llm-server"]
        now = {one["key"]: one["value"] for one in cloud.instance("llm-server")["metadata"]["items"]}
        assert now == {"purpose": "llm", "ssh-keys": "somebody"}

    def test_labels_of_google_stay(self, cloud, options):
        made(options)
        labels = cloud.instance("llm-server")["labels"]
        labels["goog-ops"] = "x"
        del labels["gpu"]
        assert what(run(options)[0]) == ["update labels of llm-server"]
        assert cloud.instance("llm-server")["labels"]["goog-ops"] == "x"

    def test_a_disk_grows_and_does_not_shrink(self, cloud, options, machine):
        made(options)
        machine["disk"] = {**machine["disk"], "size_gb": 250}
        assert what(run(options)[0]) == ["update disk_size_gb of llm-server"]
        assert cloud.disks[ZONE_A, "llm-server"]["sizeGb"] == "250"
        machine["disk"] = {**machine["disk"], "size_gb": 100}
        _, _, (problem,) = run(options)
        assert "cannot shrink" in problem

    def test_machine_type_is_corrected_after_a_stop(self, cloud, options, machine):
        made(options)
        machine["machine_type"] = "g2-standard-8"
        cloud.requests.clear()
        fleet, _, (problem,) = run(options)
        assert "playbooks/gcp_stop.yml" in problem
        assert (what(fleet), cloud.writes()) == ([], [])
        run(options, "stopped")
        fleet, (result,), problems = run(options)
        assert problems == []
        assert what(fleet) == ["update machine_type of llm-server", "start llm-server"]
        assert result.status == "RUNNING"
        assert cloud.instance("llm-server")["machineType"].endswith("g2-standard-8")

    def test_spot_needs_a_stop(self, cloud, options, machine):
        made(options)
        machine["spot"] = True
        assert "playbooks/gcp_stop.yml" in run(options)[2][0]
        run(options, "stopped")
        assert what(run(options)[0]) == ["update scheduling of llm-server", "start llm-server"]
        assert cloud.instance("llm-server")["scheduling"]["provisioningModel"] == "SPOT"

    def test_accelerator_needs_a_stop(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["guestAccelerators"] = []
        assert "accelerator is {}" in run(options)[2][0]
        run(options, "stopped")
        assert what(run(options)[0]) == ["update accelerator of llm-server", "start llm-server"]

    def test_scheduling_that_the_api_refuses_while_running(self, cloud, options, machine):
        made(options)
        machine["automatic_restart"] = False
        cloud.schedule_while_running = False
        fleet, _, (problem,) = run(options)
        assert "playbooks/gcp_stop.yml" in problem
        assert what(fleet) == []

    @pytest.mark.parametrize(
        ("field", "value"),
        [("network", "other"), ("disk", {"size_gb": 200, "type": "pd-balanced", "auto_delete": True, "labels": None})],
    )
    def test_a_change_that_needs_a_new_machine_is_refused_with_the_cure(self, cloud, options, machine, field, value):
        made(options)
        machine[field] = value
        cloud.requests.clear()
        problem = run(options)[2][0]
        assert "playbooks/gcp_decommission.yml" in problem
        assert not [one for one in cloud.writes() if "instances" in one]

    def test_another_image_family_is_refused(self, cloud, options, machine):
        made(options)
        machine["image"] = {**machine["image"], "family": "ubuntu-accelerator-2404-amd64-with-nvidia-580"}
        assert "declared is ubuntu-os-accelerator-images/ubuntu-accelerator-2404" in run(options)[2][0]

    def test_an_image_deleted_by_google_does_not_count_as_drift(self, cloud, options):
        made(options)
        cloud.disks[ZONE_A, "llm-server"]["sourceImage"] += "-old"
        fleet, _, problems = run(options)
        assert (what(fleet), problems) == ([], [])

    def test_correctable_fields_are_corrected_beside_a_refused_one(self, cloud, options, machine):
        made(options)
        machine["machine_type"] = "g2-standard-8"
        cloud.instance("llm-server")["tags"]["items"] = []
        fleet, (result,), (problem,) = run(options)
        assert what(fleet) == ["update tags of llm-server"]
        assert result.refused == [problem]

    def test_spot_is_requested_from_the_api(self, cloud, options, machine):
        machine["spot"] = True
        made(options)
        assert cloud.instance("llm-server")["scheduling"] == {
            "provisioningModel": "SPOT",
            "preemptible": True,
            "instanceTerminationAction": "STOP",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }
        assert what(run(options)[0]) == []

    def test_a_rule_that_is_no_longer_wanted_goes_and_a_foreign_one_stays(self, cloud, options):
        made(options)
        options["rules"][1]["state"] = "absent"
        cloud.firewalls["allow-monitoring-ports"]["description"] = "made by hand"
        fleet, _, _ = run(options)
        assert what(fleet) == []
        assert "left alone" in fleet.remarks[0]
        cloud.firewalls["allow-monitoring-ports"]["description"] = declared.MARK
        assert what(run(options)[0]) == ["delete rule allow-monitoring-ports"]

    def test_a_machine_in_a_zone_not_declared_is_named(self, cloud, options, machine):
        made(options)
        machine["zones"] = [ZONE_B]
        assert f"exists in zone {ZONE_A}" in run(options)[2][0]
        assert len(cloud.instances) == 1


@pytest.mark.usefixtures("server")
class TestWorld:
    def test_the_world_opens_the_server_only(self, cloud, options):
        for rule in options["rules"]:
            rule["source_ranges"] = ["0.0.0.0/0"]
        assert len(Fleet(options).declaration_problems()) == 2
        options["open_to_world"] = True
        fleet = made(options)
        assert cloud.firewalls["allow-ai-server-ports"]["allowed"][0]["ports"] == ["8000"]
        assert set(cloud.firewalls) == {"allow-ai-server-ports"}
        assert any("9100, 9400 stays closed" in one for one in fleet.remarks)
        options["open_to_world_ports"] = [8000, 8001, 9100, 9400]
        made(options)
        assert cloud.firewalls["allow-ai-server-ports"]["allowed"][0]["ports"] == ["8000", "8001"]
        assert set(cloud.firewalls) == {"allow-ai-server-ports", "allow-monitoring-ports"}

    def test_narrow_ranges_keep_what_the_world_does_not_get(self, cloud, options):
        options["open_to_world"] = True
        options["rules"][0]["source_ranges"] = ["0.0.0.0/0", "::/0", "198.51.100.0/24"]
        made(options)
        assert cloud.firewalls["allow-ai-server-ports-ipv6"]["sourceRanges"] == ["::/0"]
        assert cloud.firewalls["allow-ai-server-ports-restricted"]["allowed"][0]["ports"] == ["8001"]
        options["open_to_world_ports"] = [8000, 8001]
        assert "delete rule allow-ai-server-ports-restricted" in what(made(options))


@pytest.mark.usefixtures("server")
class TestSeveral:
    def test_machines_are_made_side_by_side_each_in_its_zone(self, cloud, options, machine):
        cloud.polls = 4
        options["machines"] = [
            {**machine, "name": "llm-1"},
            {**machine, "name": "llm-2", "zones": [ZONE_B], "machine_type": "g2-standard-8"},
            {**machine, "name": "llm-3", "zones": ["us-central1-a"]},
        ]
        made(options)
        assert set(cloud.instances) == {(ZONE_A, "llm-1"), (ZONE_B, "llm-2"), ("us-central1-a", "llm-3")}
        inserts = [
            number for number, one in enumerate(cloud.requests) if one.startswith("POST") and "/instances" in one
        ]
        polls = [number for number, one in enumerate(cloud.requests) if "/zones/" in one and "/operations/" in one]
        # All three requests were sent before the first operation could be done (it takes four polls).
        assert inserts[-1] < polls[len(polls) - 3]
        assert len([one for one in polls if one < inserts[-1]]) < 9

    def test_the_failure_of_one_does_not_stop_the_other(self, cloud, options, machine):
        cloud.fail(
            "compute.instances.insert",
            where=ZONE_A,
            operation={"code": "QUOTA_EXCEEDED", "message": "Quota 'NVIDIA_L4_GPUS' exceeded. Limit: 1.0"},
        )
        options["machines"] = [{**machine, "name": "llm-1"}, {**machine, "name": "llm-2", "zones": [ZONE_B]}]
        fleet, results, (problem,) = run(options)
        assert [one.name for one in results] == ["llm-2"]
        assert "llm-1" in problem
        assert "QUOTA_EXCEEDED: Quota 'NVIDIA_L4_GPUS' exceeded" in problem
        assert f"make llm-2 in {ZONE_B}" in what(fleet)

    def test_what_was_done_before_a_failure_is_reported(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["tags"]["items"] = []
        cloud.instance("llm-server")["labels"] = {}
        cloud.fail("compute.instances.setLabels", operation={"code": "INTERNAL_ERROR", "message": "Try again."})
        fleet, results, (problem,) = run(options)
        assert (what(fleet), results) == (["update tags of llm-server"], [])
        assert "INTERNAL_ERROR" in problem

    def test_only_the_named_machine_is_stopped(self, cloud, options, machine):
        options["machines"] = [{**machine, "name": "llm-1"}, {**machine, "name": "llm-2"}]
        made(options)
        run(options, "stopped", names=["llm-2"])
        assert cloud.instance("llm-1")["status"] == "RUNNING"
        assert cloud.instance("llm-2")["status"] == "TERMINATED"


@pytest.mark.usefixtures("server")
class TestStockout:
    def test_the_next_zone_is_tried_and_reported(self, cloud, options, machine):
        machine["zones"] = [ZONE_A, ZONE_B]
        cloud.stockout(ZONE_A)
        fleet, (result,), problems = run(options)
        assert problems == []
        assert result.zone == ZONE_B
        assert f"make llm-server in {ZONE_B}" in what(fleet)
        assert [f"llm-server: {ZONE_A} has no capacity" in one for one in fleet.remarks] == [True, False]
        assert what(run(options)[0]) == []

    def test_no_zone_has_capacity(self, cloud, options, machine):
        machine["zones"] = [ZONE_A, ZONE_B]
        cloud.stockout(ZONE_A)
        cloud.stockout(ZONE_B, available="us-central1-a")
        _, _, (problem,) = run(options)
        assert f"no capacity in {ZONE_A}, {ZONE_B}" in problem
        assert "The API names us-central1-a" in problem

    def test_a_stockout_reported_at_once_by_status(self, cloud, options, machine):
        machine["zones"] = [ZONE_A, ZONE_B]
        cloud.fail("compute.instances.insert", where=ZONE_A, status=503, reason="ZONE_RESOURCE_POOL_EXHAUSTED", times=9)
        assert run(options)[1][0].zone == ZONE_B

    def test_a_stopped_machine_cannot_move(self, cloud, options):
        made(options)
        run(options, "stopped")
        cloud.fail(
            "compute.instances.start",
            operation={"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "does not have enough resources available"},
        )
        assert f"Its disk is in {ZONE_A}" in run(options, "started")[2][0]


@pytest.mark.usefixtures("server")
class TestPower:
    def test_stop_and_start_keep_everything_and_report_the_new_address(self, cloud, options):
        made(options)
        before = copy.deepcopy(cloud.instance("llm-server"))
        fleet, (result,), _ = run(options, "stopped")
        assert (what(fleet), result.status, result.address) == (["stop llm-server"], "TERMINATED", None)
        assert what(run(options, "stopped")[0]) == []
        fleet, (result,), _ = run(options, "started")
        after = cloud.instance("llm-server")
        assert what(fleet) == ["start llm-server"]
        assert (after["labels"], after["tags"]) == (before["labels"], before["tags"])
        old = before["networkInterfaces"][0]["accessConfigs"][0]["natIP"]
        assert result.address == after["networkInterfaces"][0]["accessConfigs"][0]["natIP"] != old
        assert what(run(options, "started")[0]) == []

    def test_check_mode_of_stop_and_start(self, cloud, options):
        made(options)
        cloud.requests.clear()
        assert what(run(options, "stopped", check_mode=True)[0]) == ["stop llm-server"]
        assert cloud.writes() == []

    def test_a_missing_machine_cannot_start(self, options):
        assert "playbooks/gcp_provision.yml" in run(options, "started")[2][0]


@pytest.mark.usefixtures("server")
class TestAbsent:
    def test_exactly_what_was_made_goes(self, cloud, options):
        cloud.firewalls["default-allow-ssh"] = {"name": "default-allow-ssh", "targetTags": ["ai-server"]}
        made(options)
        foretold, _, _ = run(options, "absent", check_mode=True, names=["llm-server"])
        fleet, _, problems = run(options, "absent", names=["llm-server"])
        assert problems == []
        assert what(fleet) == what(foretold)
        assert (cloud.instances, cloud.disks, list(cloud.firewalls)) == ({}, {}, ["default-allow-ssh"])
        assert what(run(options, "absent", names=["llm-server"])[0]) == []

    def test_rules_stay_while_another_machine_uses_them(self, cloud, options, machine):
        options["machines"] = [{**machine, "name": "llm-1"}, {**machine, "name": "llm-2"}]
        made(options)
        fleet, _, _ = run(options, "absent", names=["llm-1"])
        assert len(cloud.firewalls) == 2
        assert "llm-2 uses it" in fleet.remarks[0]

    def test_a_machine_of_somebody_else_is_not_deleted(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["description"] = "mine"
        assert "was not made by" in run(options, "absent", names=["llm-server"])[2][0]
        assert len(cloud.instances) == 1
        assert len(cloud.firewalls) == 2

    def test_names_may_be_typed_with_spaces(self, cloud, options, machine):
        options["machines"] = [{**machine, "name": name} for name in ("llm-1", "llm-2")]
        made(options)
        _, _, problems = run(options, "absent", names=["llm-1", " llm-2"])
        assert (problems, cloud.instances) == ([], {})

    @pytest.mark.parametrize("names", [[], [""], [" "], ["other"], ["llm-server", "other"]])
    def test_the_name_is_required_and_must_be_known(self, cloud, options, names):
        made(options)
        cloud.requests.clear()
        assert run(options, "absent", names=names)[2]
        assert cloud.writes() == []


@pytest.mark.usefixtures("server")
class TestChecked:
    def test_all_is_right(self, cloud, options):
        fleet, problems, (cost,) = run(options, "checked")
        assert (problems, fleet.changes, cloud.writes()) == ([], [], [])
        assert cost["running"] == pytest.approx(0.9073 + 0.005 + 200 * 0.221 / 730, abs=0.001)

    def test_everything_wrong_is_reported_at_once(self, cloud, options, machine):
        cloud.quotas = {"SSD_TOTAL_GB": 100, "NVIDIA_L4_GPUS": 0}
        cloud.project_quotas = {"GPUS_ALL_REGIONS": 0}
        machine["zones"] = ["asia-northeast3-c"]
        machine["image"] = {"project": "ubuntu-os-accelerator-images", "family": "gone"}
        options["rules"][0]["source_ranges"] = []
        _, problems, _ = run(options, "checked")
        text = "\n".join(problems)
        assert "gcp_source_ranges" in text
        assert (
            "zone asia-northeast3-c has no accelerator nvidia-l4: choose another zone, such as asia-northeast3-a"
            in text
        )
        assert "image family gone" in text
        assert "quota SSD_TOTAL_GB is 100, 0 of it in use, 200 more asked for by llm-server: ask Google for 200" in text
        assert "disk.size_gb so that all ask for at most 100" in text
        assert "quota NVIDIA_L4_GPUS" in text
        assert "quota GPUS_ALL_REGIONS" in text

    def test_an_image_that_does_not_fit_g2(self, options, machine):
        machine["image"] = {"project": "deeplearning-platform-release", "family": "common-cu129-ubuntu-2204-nvidia-580"}
        _, problems, _ = run(options, "checked")
        assert "does not fit g2-standard-4: use ubuntu-os-accelerator-images/" in problems[0]

    def test_what_is_named_is_there(self, cloud, options, machine):
        machine |= {"machine_type": "g2-standard-5", "network": "defualt"}
        machine["disk"] = {**machine["disk"], "type": "pd-sd"}
        machine["subnetwork"] = "inner"
        options["rules"][0]["network"] = "prod"
        messages = [
            "rule allow-ai-server-ports: there is no 'prod' in global/networks: set network, such as default",
            "llm-server: there is no 'defualt' in global/networks: set network, such as default",
            "llm-server: there is no 'inner' in regions/asia-northeast3/subnetworks: set subnetwork, such as default",
            f"llm-server: there is no 'pd-sd' in zones/{ZONE_A}/diskTypes: set disk.type, such as pd-ssd",
            f"llm-server: there is no 'g2-standard-5' in zones/{ZONE_A}/machineTypes: set machine_type, such as g2-",
        ]
        for problem, beginning in zip(run(options, "checked")[1], messages, strict=True):
            assert problem.startswith(beginning)

    def test_a_machine_type_brings_its_accelerators(self, options, machine):
        machine["accelerator"] = {"type": "nvidia-l4", "count": 0}
        _, (problem,), _ = run(options, "checked")
        assert "g2-standard-4 comes with 1 nvidia-l4, accelerator says none: make them agree" in problem

    def test_what_may_not_be_read_is_a_remark(self, cloud, options):
        cloud.fail("compute.machineTypes.get", status=403, reason="forbidden", message="Not for you")
        fleet, problems, _ = run(options, "checked")
        assert problems == []
        assert "Not for you" in fleet.remarks[0]

    def test_an_empty_collection_is_ignored(self, cloud, options):
        for method in ("machineTypes.get", "machineTypes.list"):
            cloud.fail(f"compute.{method}", status=404, reason="notFound", message="No such page")
        assert run(options, "checked")[1] == []

    def test_an_unknown_zone_is_reported_with_the_known_ones(self, cloud, options, machine):
        machine["zones"] = ["asia-northeast3-d"]
        other = {**machine, "name": "llm-2", "zones": ["asia-northeast3-c"]}
        options["machines"] = [machine, other]
        first, second = run(options, "checked")[1]
        assert first.startswith("llm-server: there is no zone asia-northeast3-d: choose another, such as asia-")
        assert "us-central1-a" in first
        assert "llm-2: zone asia-northeast3-c has no accelerator nvidia-l4" in second

    def test_quota_counts_all_machines_and_what_is_in_use(self, cloud, options, machine):
        cloud.quotas["SSD_TOTAL_GB"] = 500
        made(options)
        options["machines"] = [machine, *({**machine, "name": f"llm-{number}"} for number in (1, 2))]
        _, (problem,), _ = run(options, "checked")
        assert "500, 200 of it in use, 400 more asked for by llm-1, llm-2: ask Google for 600" in problem

    def test_a_right_project_asks_for_no_quota(self, cloud, options):
        made(options)
        cloud.quotas["SSD_TOTAL_GB"] = 0
        assert run(options, "checked")[1] == []

    def test_a_further_zone_without_quota_is_a_remark(self, cloud, options, machine):
        machine["zones"] = [ZONE_A, "us-central1-a"]
        options["machines"] = [machine, {**machine, "name": "llm-2", "zones": ["us-central1-a"]}]
        cloud.quotas["SSD_TOTAL_GB"] = 300
        fleet, problems, _ = run(options, "checked")
        assert problems == []
        assert fleet.remarks == [one for one in fleet.remarks if one.startswith("Should the first zones")]
        assert "us-central1" in fleet.remarks[0]

    def test_a_machine_type_without_a_price(self, options, machine):
        machine.update(machine_type="e2-small", accelerator={"type": "nvidia-l4", "count": 0})
        _, problems, (cost,) = run(options, "checked")
        assert problems == []
        assert "no on_demand price of e2-small" in cost["missing"]

    @pytest.mark.parametrize("zone", ["europe-west4-a", "us-east4-c", "asia-southeast1-b"])
    def test_regions_beyond_the_default_have_prices(self, options, machine, zone):
        machine["zones"] = [zone]
        (cost,) = run(options, "checked")[2]
        assert cost["running"] > 0.5 and "without its disk" in cost["missing"]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    """Return the path of a service account's key file in Google's format."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {
        "type": "service_account",
        "project_id": "lab-project",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "llm@lab-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    path = tmp_path_factory.mktemp("key") / "key.json"
    path.write_text(json.dumps(account), encoding="utf-8")
    return str(path)


class TestCredentials:
    def test_a_service_account_file(self, server, options, monkeypatch, key_file):
        monkeypatch.delenv("GCP_ACCESS_TOKEN")
        assert run(options, "checked", service_account_file=key_file)[1] == []

    def test_application_default_credentials(self, server, options, monkeypatch, key_file):
        monkeypatch.delenv("GCP_ACCESS_TOKEN")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", key_file)
        assert run(options, "checked")[1] == []

    def test_the_token_takes_precedence_over_the_file(self, server, options, key_file, monkeypatch):
        monkeypatch.setenv("GCP_ACCESS_TOKEN", "old")
        assert "renew GCP_ACCESS_TOKEN" in run(options, "checked", service_account_file=key_file)[1][0]

    def test_a_refused_token(self, server, options, monkeypatch):
        monkeypatch.setenv("GCP_ACCESS_TOKEN", "old")
        _, (problem,), _ = run(options, "checked")
        assert "401 (authError) Request had invalid authentication credentials; " in problem
        assert "renew GCP_ACCESS_TOKEN" in problem

    def test_a_token_with_the_end_of_its_line(self, server, options, monkeypatch):
        monkeypatch.setenv("GCP_ACCESS_TOKEN", f"{server.token}\n")
        assert run(options, "checked")[1] == []

    def test_no_credentials(self, server, options, monkeypatch, tmp_path):
        monkeypatch.delenv("GCP_ACCESS_TOKEN")
        _, (problem,), _ = run(options, "checked", service_account_file=str(tmp_path / "none.json"))
        assert "gcp_service_account_file" in problem

    def test_another_project(self, server, options):
        _, (problem,), _ = run(options, "checked", project="no-such")
        assert "Project 'no-such' does not exist" in problem

    def test_no_permission(self, server, cloud, options):
        cloud.fail("compute.projects.get", status=403, reason="forbidden", message="Required 'compute.projects.get'")
        _, (problem,), _ = run(options, "checked")
        assert "Required 'compute.projects.get'" in problem
        assert "Compute Instance Admin" in problem

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("HTTPS_PROXY", "http://127.0.0.1:9"),
            ("HTTPS_PROXY", "nonsense://127.0.0.1:9"),
            ("REQUESTS_CA_BUNDLE", "/no/such.pem"),
        ],
    )
    def test_an_unreachable_address_is_reported_at_once(self, server, options, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        _, (problem,), _ = run(options, "checked", tries=99, retry_pause=60)
        assert name in problem


@pytest.mark.usefixtures("server")
class TestFaults:
    @pytest.mark.parametrize("status", [409, 429, 500, 502, 503, 504])
    def test_a_transient_error_is_retried(self, cloud, options, status):
        cloud.fail("compute.firewalls.insert", status=status, reason="backendError", times=3)
        cloud.fail("compute.instances.aggregatedList", status=status, reason="backendError", times=2)
        made(options)
        assert len(cloud.firewalls) == 2

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 503])
    def test_a_lasting_error_is_reported_with_the_reason(self, cloud, options, status):
        cloud.fail("compute.firewalls.insert", status=status, reason="someReason", message="Some message.", times=99)
        with pytest.raises(GcpError, match="Some message") as caught:
            run(options)
        assert caught.value.status == status

    def test_a_rate_limit_sent_as_403(self, cloud, options):
        cloud.fail("compute.projects.get", status=403, reason="rateLimitExceeded", times=2)
        assert run(options, "checked")[1] == []

    def test_a_connection_that_breaks_behind_the_proxy(self, cloud, options):
        cloud.fail("compute.instances.aggregatedList", broken=True, times=2)
        cloud.fail("compute.firewalls.insert", broken=True)
        made(options)
        cloud.fail("compute.instances.aggregatedList", broken=True, times=99)
        with pytest.raises(GcpError, match="cannot be reached"):
            run(options)

    @pytest.mark.parametrize("lost", [{"status": 503}, {"broken": True}])
    def test_an_insert_whose_answer_was_lost(self, cloud, options, lost):
        cloud.fail("compute.instances.insert", **lost, done=True)
        cloud.fail("compute.firewalls.insert", **lost, done=True)
        cloud.polls = 0
        original = cloud._operation

        def at_once(values, target, kind, effect, error=None):
            operation = original(values, target, kind, effect, error)
            cloud._poll(operation["name"])
            return operation

        cloud._operation = at_once
        fleet, (result,), problems = run(options)
        assert problems == []
        assert result.status == "RUNNING"
        assert f"make llm-server in {ZONE_A}" in what(fleet)
        assert (len(cloud.instances), len(cloud.firewalls)) == (1, 2)

    def test_a_disk_that_is_left_over_is_not_taken_for_the_machine(self, cloud, options):
        cloud.disks[ZONE_A, "llm-server"] = {"name": "llm-server", "sizeGb": "10"}
        fleet, _, (problem,) = run(options)
        assert f"zones/{ZONE_A}/disks/llm-server' already exists" in problem
        assert f"gcloud compute disks delete llm-server --zone={ZONE_A}" in problem
        assert f"make llm-server in {ZONE_A}" not in what(fleet)

    def test_a_failed_operation_gives_its_reason(self, cloud, options):
        made(options)
        cloud.fail("compute.instances.stop", operation={"code": "RESOURCE_IN_USE", "message": "Held by a snapshot."})
        _, _, (problem,) = run(options, "stopped")
        assert problem.startswith("llm-server: ")
        assert "RESOURCE_IN_USE: Held by a snapshot." in problem

    def test_slow_operations_are_waited_for(self, cloud, options):
        cloud.polls = 6
        made(options)

    def test_an_operation_that_never_ends(self, cloud, options):
        cloud.polls = 10**6
        with pytest.raises(GcpError, match="gcp_operation_timeout"):
            run(options, operation_timeout=0.2)

    def test_lists_in_pages(self, cloud, options, machine):
        cloud.page_size = 1
        options["machines"] = [{**machine, "name": f"llm-{number}"} for number in (1, 2)]
        made(options)
        fleet, _, problems = run(options)
        assert (what(fleet), problems) == ([], [])

    def test_a_change_between_reading_and_writing(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["tags"]["items"] = []
        cloud.fail("compute.instances.setTags", status=412, reason="conditionNotMet")
        assert what(run(options)[0]) == ["update tags of llm-server"]


class TestTheApiItself:
    """The laboratory's server refuses what Google's schema does not allow; otherwise the tests would prove nothing."""

    @pytest.mark.parametrize(
        ("verb", "path", "query", "body"),
        [
            ("POST", "projects/p/global/firewalls", {}, {"name": "a", "prots": []}),
            ("POST", "projects/p/global/firewalls", {}, {"name": "a", "priority": "1000"}),
            ("POST", "projects/p/global/firewalls", {}, {"name": "a", "direction": "IN"}),
            ("POST", "projects/p/global/firewalls", {}, {"name": "a", "creationTimestamp": "now"}),
            ("POST", "projects/p/global/firewalls", {"wait": "1"}, {"name": "a"}),
            ("POST", "projects/p/global/firewalls", {}, None),
            ("POST", "projects/p/zones/z/instances/i/stop", {}, {}),
            ("POST", "projects/p/zones/z/instances/i/addAccessConfig", {}, {}),
            ("POST", "projects/p/zones/z/disks/d/resize", {}, {"sizeGb": 250}),
            ("POST", "projects/p/zones/z/instances/i/halt", {}, None),
            ("PATCH", "projects/p/zones/z/instances/i", {}, {}),
        ],
    )
    def test_a_request_that_does_not_fit_is_refused(self, verb, path, query, body):
        with pytest.raises(Refused):
            method, values = schema().match(verb, path)
            schema().check(method, values, query, body)

    def test_without_a_token_nothing_is_reported(self, server):
        client = Client("lab-project", credentials_for(environ={"GCP_ACCESS_TOKEN": "wrong"}), tries=1)
        with pytest.raises(GcpError) as caught:
            client.get("")
        assert caught.value.status == 401
