"""Only what is declared is open, runs or costs money, and nothing of other owners is touched."""

import copy

import pytest
from gcp_runs import ZONE_A, ZONE_B, made, run, what

from plugins.module_utils.cloud import gcp_client
from plugins.module_utils.cloud import gcp_declared as declared
from plugins.module_utils.cloud.gcp_client import Client, GcpError
from plugins.module_utils.cloud.gcp_fleet import Fleet

OTHER = declared.mark("other")
pytestmark = pytest.mark.usefixtures("server")


def undeclared(fleet):
    return [one for one in fleet.remarks if one.startswith("Made here, no longer declared")]


class TestUndeclared:
    @pytest.fixture
    def left(self, options, machine):
        """Make a second machine and a rule that is then renamed; return the declaration without both."""
        options["machines"] = [machine, {**machine, "name": "llm-2", "zones": [ZONE_B]}]
        made(options)
        del options["machines"][1]
        options["rules"][0] = {**options["rules"][0], "name": "allow-llm"}
        return options

    @pytest.mark.parametrize("state", ["present", "started", "stopped"])
    @pytest.mark.parametrize("check_mode", [True, False])
    def test_every_run_reports_what_is_no_longer_declared(self, left, state, check_mode):
        fleet, _, problems = run(left, state, check_mode=check_mode)
        (message,) = undeclared(fleet)
        assert problems == []
        assert f"machine llm-2 in {ZONE_B} (RUNNING), rule allow-ai-server-ports." in message
        assert "gcp_delete_undeclared=llm-2,allow-ai-server-ports" in message

    def test_decommission_reports_it_too(self, left):
        assert "machine llm-2" in undeclared(run(left, "absent", names=["llm-server"])[0])[0]

    def test_the_switch_names_what_goes(self, cloud, left):
        names = ["allow-ai-server-ports", " llm-2"]
        foretold, _, _ = run(left, check_mode=True, delete_undeclared=names)
        assert len(cloud.instances) == 2
        fleet, _, problems = run(left, delete_undeclared=names)
        assert problems == []
        assert what(fleet) == what(foretold)
        assert "delete rule allow-ai-server-ports" in what(fleet)
        assert f"delete llm-2 in {ZONE_B} and its boot disk llm-2 (200 GB)" in what(fleet)
        assert set(cloud.firewalls) == {"allow-llm", "allow-monitoring-ports"}
        assert list(cloud.instances) == list(cloud.disks) == [(ZONE_A, "llm-server")]
        assert undeclared(fleet) == []
        again, _, problems = run(left, delete_undeclared=names)
        assert (what(again), problems) == ([], [])

    @pytest.mark.parametrize("name", ["llm-server", "allow-llm"])
    def test_what_is_declared_is_not_deleted_by_the_switch(self, cloud, left, name):
        cloud.requests.clear()
        assert "which is declared" in run(left, delete_undeclared=[name])[2][0]
        assert cloud.writes() == []

    @pytest.mark.parametrize("description", ["", OTHER])
    def test_foreign_resources_are_neither_reported_nor_deleted(self, cloud, left, description):
        cloud.instance("llm-2")["description"] = description
        cloud.disks[ZONE_B, "llm-2"]["description"] = description
        cloud.firewalls["allow-ai-server-ports"]["description"] = description
        fleet, _, _ = run(left, delete_undeclared=["llm-2", "allow-ai-server-ports"])
        assert undeclared(fleet) == []
        assert what(fleet) == ["make rule allow-llm"]

    def test_decommission_knows_a_machine_that_is_no_longer_declared(self, cloud, left):
        fleet, _, problems = run(left, "absent", names=["llm-2"])
        assert problems == []
        assert what(fleet) == [f"delete llm-2 in {ZONE_B} and its boot disk llm-2 (200 GB)"]
        assert list(cloud.instances) == [(ZONE_A, "llm-server")]

    def test_a_kept_disk_is_reported_until_it_is_deleted(self, cloud, options):
        made(options)
        run(options, "absent", names=["llm-server"], keep_boot_disk=True)
        options["machines"][0]["name"] = "llm-9"
        fleet, _, _ = run(options, check_mode=True)
        assert f"disk llm-server in {ZONE_A}" in undeclared(fleet)[0]
        assert f"delete disk llm-server in {ZONE_A}" in what(run(options, delete_undeclared=["llm-server"])[0])
        assert list(cloud.disks) == [(ZONE_A, "llm-9")]

    def test_disks_that_may_not_be_listed(self, cloud, options):
        made(options)
        cloud.fail("compute.disks.aggregatedList", status=403, reason="forbidden", times=9)
        assert run(options)[2] == []


class TestStrangers:
    def test_anothers_machine_in_a_declared_zone_is_refused_everywhere(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["description"] = "mine"
        cloud.requests.clear()
        for state in ("present", "started", "stopped"):
            assert "gcp_adopt: [llm-server]" in run(options, state)[2][0]
        assert "gcp_adopt: [llm-server]" in run(options, "checked")[1][0]
        assert cloud.writes() == []

    def test_a_foreign_machine_in_another_zone_does_not_matter(self, cloud, options, machine):
        made(options)
        cloud.instance("llm-server")["description"] = OTHER
        machine["zones"] = [ZONE_B]
        fleet, _, problems = run(options)
        assert problems == []
        assert f"llm-server in {ZONE_A} was made by another fleet ('other') and is left alone." in fleet.remarks
        assert (ZONE_B, "llm-server") in cloud.instances

    def test_an_adopted_machine_is_corrected_and_never_deleted(self, cloud, options):
        made(options)
        cloud.instance("llm-server").update(description="by hand", labels={})
        options["adopt"] = ["llm-server"]
        assert what(run(options)[0]) == ["update labels of llm-server"]
        cloud.requests.clear()
        assert "was adopted" in run(options, "absent", names=["llm-server"])[2][0]
        assert cloud.writes() == []

    def test_a_rule_that_anothers_machine_of_that_name_wears_stays(self, cloud, options):
        made(options)
        stranger = copy.deepcopy(cloud.instance("llm-server"))
        stranger["description"] = "mine"
        cloud.instances["us-central1-a", "llm-server"] = stranger
        fleet, _, problems = run(options, "absent", names=["llm-server"])
        assert problems == []
        assert set(cloud.firewalls) == {"allow-ai-server-ports", "allow-monitoring-ports"}
        assert any("llm-server uses it" in one for one in fleet.remarks)

    def test_one_of_several_that_is_anothers_keeps_all(self, cloud, options, machine):
        options["machines"] = [machine, {**machine, "name": "llm-2"}]
        made(options)
        cloud.instance("llm-2")["description"] = "mine"
        assert len(run(options, "absent", names=["llm-server", "llm-2"])[2]) == 1
        assert len(cloud.instances) == 2


class TestForeignRules:
    @pytest.fixture
    def foreign(self, cloud, options):
        made(options)
        rule = cloud.firewalls["allow-ai-server-ports"]
        rule.update(description="by hand", priority=7)
        cloud.requests.clear()
        return rule

    def test_it_is_refused_before_anything_is_done(self, cloud, options, foreign):
        for problem in (run(options)[2][0], run(options, "checked")[1][0], run(options, check_mode=True)[2][0]):
            assert problem.startswith("rule allow-ai-server-ports was not made by playbooks/gcp_provision.yml")
            assert "gcp_adopt=allow-ai-server-ports" in problem
        assert cloud.writes() == []

    def test_an_adopted_one_gets_the_mark(self, cloud, options, foreign):
        options["adopt"] = ["allow-ai-server-ports"]
        foretold, _, _ = run(options, check_mode=True)
        fleet, _, problems = run(options)
        assert problems == []
        assert what(fleet) == what(foretold) == ["update rule allow-ai-server-ports"]
        assert fleet.changes[0].only_differing()[1] == {"priority": 1000, "description": declared.mark("llm-server")}
        options["adopt"] = []
        assert what(run(options)[0]) == []

    def test_a_rule_of_an_earlier_release_is_ours(self, cloud, options, foreign):
        foreign.update(description=declared.MARK, priority=1000)
        fleet, _, problems = run(options)
        assert (what(fleet), problems) == ([], [])

    def test_a_rule_that_cannot_be_recreated_is_reported_as_deleted(self, cloud, options):
        made(options)
        cloud.firewalls["allow-ai-server-ports"]["direction"] = "EGRESS"
        cloud.fail("compute.firewalls.insert", status=403, reason="forbidden", message="Not for you")
        fleet = None
        with pytest.raises(GcpError, match="was deleted to be made anew") as caught:
            fleet = Fleet({**options, "state": "present"})
            fleet.present()
        assert "Not for you" in str(caught.value)
        assert what(fleet) == ["delete rule allow-ai-server-ports"]
        assert what(run(options)[0]) == ["make rule allow-ai-server-ports"]


class TestDisks:
    @pytest.fixture
    def data(self, cloud, options):
        """A machine with a second disk whose auto-delete is on; the disk has no mark."""
        made(options)
        cloud.disks[ZONE_A, "data"] = {"name": "data", "sizeGb": "500", "users": ["llm-server"]}
        source = f"https://www.googleapis.com/compute/v1/projects/lab-project/zones/{ZONE_A}/disks/data"
        disk = {"deviceName": "sdb", "source": source, "autoDelete": True, "diskSizeGb": "500"}
        cloud.instance("llm-server")["disks"].append(disk)

    def test_a_further_disk_stays_and_every_disk_is_named(self, cloud, options, data):
        foretold, _, _ = run(options, "absent", check_mode=True, names=["llm-server"])
        assert what(foretold)[0] == f"delete llm-server in {ZONE_A} and its boot disk llm-server (200 GB)"
        assert f"llm-server: disk data (500 GB) in {ZONE_A} would stay and costs." in foretold.remarks
        _, _, problems = run(options, "absent", names=["llm-server"])
        assert problems == []
        assert list(cloud.disks) == [(ZONE_A, "data")]

    def test_a_further_disk_goes_when_it_is_named(self, cloud, options, data):
        cloud.instance("llm-server")["disks"][1]["autoDelete"] = False
        fleet, _, _ = run(options, "absent", names=["llm-server"], delete_disks=["data"])
        assert "boot disk llm-server (200 GB), disk data (500 GB)" in what(fleet)[0]
        assert cloud.disks == {}

    def test_the_boot_disk_stays_on_request(self, cloud, options):
        made(options)
        fleet, _, _ = run(options, "absent", names=["llm-server"], keep_boot_disk=True)
        assert what(fleet)[0] == f"delete llm-server in {ZONE_A}"
        assert list(cloud.disks) == [(ZONE_A, "llm-server")]
        _, (problem,), _ = run(options, "checked")
        assert f"gcloud compute disks delete llm-server --zone={ZONE_A}" in problem

    def test_an_auto_delete_that_was_switched_off_is_respected(self, cloud, options):
        made(options)
        cloud.instance("llm-server")["disks"][0]["autoDelete"] = False
        fleet, _, _ = run(options, "absent", names=["llm-server"])
        assert list(cloud.disks) == [(ZONE_A, "llm-server")]
        assert any("boot disk llm-server (200 GB)" in one and "stays and costs" in one for one in fleet.remarks)

    def test_a_disk_declared_to_stay(self, cloud, options, machine):
        machine["disk"] = {**machine["disk"], "auto_delete": False}
        made(options)
        assert what(run(options)[0]) == []
        run(options, "absent", names=["llm-server"])
        assert list(cloud.disks) == [(ZONE_A, "llm-server")]


class TestOnTheWayOut:
    @pytest.fixture
    def leaving(self, cloud, options):
        """A machine whose deletion was sent and takes a while."""
        made(options)
        cloud.polls = 4
        key = {"project": "lab-project", "zone": ZONE_A, "instance": "llm-server"}
        url = f"https://www.googleapis.com/compute/v1/projects/lab-project/zones/{ZONE_A}/instances/llm-server"
        cloud.instances_delete(key, {}, None, url)
        assert cloud.instance("llm-server")["status"] == "STOPPING"

    def test_decommission_waits_for_it(self, cloud, options, leaving):
        assert run(options, "absent", names=["llm-server"])[2] == []
        assert (cloud.instances, cloud.disks, cloud.firewalls) == ({}, {}, {})

    def test_provision_waits_for_it_and_makes_it_anew(self, cloud, options, leaving):
        fleet, _, problems = run(options)
        assert problems == []
        assert what(fleet) == [f"make llm-server in {ZONE_A}"]
        assert cloud.instance("llm-server")["status"] == "RUNNING"

    def test_start_and_stop_find_it_missing(self, options, leaving):
        assert run(options, "stopped")[2] == []
        assert "does not exist" in run(options, "started")[2][0]

    def test_a_delete_refused_as_not_ready_is_sent_again(self, cloud, options):
        made(options)
        cloud.fail("compute.instances.delete", status=400, reason="resourceNotReady", times=6)
        assert run(options, "absent", names=["llm-server"])[2] == []
        assert cloud.instances == {}

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 404, "reason": "notFound", "done": True},
            {"operation": {"code": "RESOURCE_NOT_FOUND", "message": "The resource was not found"}},
        ],
    )
    def test_absent_is_absent(self, cloud, options, fault):
        made(options)
        for kind in ("instances", "firewalls"):
            cloud.fail(f"compute.{kind}.delete", **fault)
        cloud.polls = 0
        assert run(options, "absent", names=["llm-server"])[2] == []

    def test_a_disk_that_is_still_being_deleted_is_waited_for(self, cloud, options):
        cloud.disks[ZONE_A, "llm-server"] = {"name": "llm-server", "sizeGb": "1", "status": "DELETING"}
        original, rounds = cloud.disks_get, []

        def get(values, *rest):
            rounds.append(1)
            if len(rounds) > 2:
                cloud.disks.pop((ZONE_A, "llm-server"), None)
            return original(values, *rest)

        cloud.disks_get = get
        assert run(options, "checked")[1] == []
        made(options)


class Killed(BaseException):
    """The run ends here, without any handler."""


class TestKilled:
    """A run that is killed before or after any of its requests; the next run reaches the declared state."""

    def cut(self, monkeypatch, number, after):
        """End the run at its nth request, before it is sent or after it was answered."""
        original, sent = Client.request, []

        def request(self, *words, **more):
            sent.append(words)
            if len(sent) < number:
                return original(self, *words, **more)
            if after and len(sent) == number:
                original(self, *words, **more)
            raise Killed

        monkeypatch.setattr(Client, "request", request)

    def requests(self, cloud, options, state, **more):
        cloud.requests.clear()
        assert run(options, state, **more)[2] == []
        return len(cloud.requests)

    @pytest.mark.parametrize("reserved", [False, True])
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("state", ["present", "started", "stopped", "absent"])
    def test_at_every_request(self, cloud, options, machine, monkeypatch, state, after, reserved):
        machine["reserved_address"] = reserved
        more = {"names": ["llm-server"], "release_addresses": True} if state == "absent" else {}

        def prepared():
            for kept in (cloud.instances, cloud.disks, cloud.firewalls, cloud.addresses, cloud.operations):
                kept.clear()
            if state != "present":
                made(options)
            if state == "started":
                run(options, "stopped")

        cloud.polls = 2
        prepared()
        total = self.requests(cloud, options, state, **more)
        for number in range(1, total + 1):
            prepared()
            with monkeypatch.context() as patch:
                self.cut(patch, number, after)
                with pytest.raises(Killed):
                    run(options, state, **more)
            _, _, problems = run(options, state, **more)
            assert problems == [], number
            assert {one["status"] for one in cloud.instances.values()} == {
                "present": {"RUNNING"},
                "started": {"RUNNING"},
                "stopped": {"TERMINATED"},
                "absent": set(),
            }[state], number
            assert len(cloud.firewalls) == len(cloud.disks) * 2 == (0 if state == "absent" else 2), number
            assert len(cloud.addresses) == (reserved and state != "absent"), number
            again, _, problems = run(options, state, **more)
            assert (what(again), problems) == ([], []), number


class TestAnswers:
    @pytest.mark.parametrize("answer", [[], None, "ok", 7, {"items": 5}, {"items": [None]}, {"items": {"z": []}}])
    @pytest.mark.parametrize("method", ["instances.aggregatedList", "firewalls.list"])
    def test_an_invalid_list(self, cloud, options, method, answer):
        made(options)
        cloud.requests.clear()
        if method == "firewalls.list" and answer == {"items": {"z": []}}:
            answer = {"items": [{"kind": "compute#firewall"}]}
        for state in ("present", "started", "stopped", "absent"):
            cloud.fail(f"compute.{method}", answer=answer)
            with pytest.raises(GcpError, match="is not what the Compute API says"):
                run(options, state, names=["llm-server"])
        assert cloud.writes() == []

    @pytest.mark.parametrize(
        "answer", [[], None, {}, {"name": "operation-1"}, {"status": "DONE"}, {"name": 1, "status": 1}]
    )
    def test_an_invalid_operation(self, cloud, options, answer):
        cloud.fail("compute.instances.insert", answer=answer)
        assert "is not what the Compute API says" in run(options)[2][0]

    @pytest.mark.parametrize("answer", [[], None, {"name": "llm-server"}])
    def test_an_invalid_instance(self, cloud, options, answer):
        cloud.fail("compute.instances.get", answer=answer)
        assert "is not what the Compute API says" in run(options)[2][0]

    def test_a_zone_that_cannot_be_read_does_not_count_as_empty(self, cloud, options):
        made(options)
        cloud.unreachable = {ZONE_A}
        cloud.requests.clear()
        for state in ("present", "started", "stopped", "absent"):
            assert "(UNREACHABLE)" in run(options, state, names=["llm-server"])[2][0]
        assert "(UNREACHABLE)" in run(options, "checked")[1][0]
        assert cloud.writes() == []

    def test_rules_stay_while_a_zone_cannot_be_read(self, cloud, options):
        made(options)
        cloud.unreachable = {"us-central1-a"}
        fleet, _, problems = run(options, "absent", names=["llm-server"])
        assert (problems, cloud.instances, len(cloud.firewalls)) == ([], {}, 2)
        assert any("us-central1-a cannot be reached" in one for one in fleet.remarks)

    def test_rules_that_cannot_all_be_listed_are_not_absent(self, cloud, options):
        cloud.fail("compute.firewalls.list", answer={"warning": {"code": "UNREACHABLE"}})
        with pytest.raises(GcpError, match="UNREACHABLE"):
            run(options)
        assert cloud.writes() == []

    def test_the_same_request_is_done_once(self, cloud, options):
        client = Client("lab-project", gcp_client.credentials_for(), tries=1)
        body = declared.rule_body("lab-project", {**options["rules"][0], "priority": 1000}, "llm-server")
        same = {"requestId": "3f2c7a52-0d57-4c7e-9a44-3a5a4b5c6d7e"}
        first = client.request("POST", "global/firewalls", body, same)
        assert client.request("POST", "global/firewalls", body, same)["name"] == first["name"]
        with pytest.raises(GcpError):
            client.change("POST", "global/firewalls", body)
            client.change("POST", "global/firewalls", body)


class TestBefore:
    @pytest.mark.parametrize(
        ("metric", "limit", "message"),
        [
            ("CPUS", 3, "region asia-northeast3: quota CPUS is 3, 0 of it in use, 4 more asked for by llm-server"),
            ("IN_USE_ADDRESSES", 0, "quota IN_USE_ADDRESSES is 0, 0 of it in use, 1 more"),
            ("INSTANCES", 0, "quota INSTANCES is 0"),
            ("NVIDIA_L4_GPUS", 0, "quota NVIDIA_L4_GPUS is 0"),
        ],
    )
    def test_every_quota_of_the_region(self, cloud, options, metric, limit, message):
        cloud.quotas[metric] = limit
        _, (problem,), _ = run(options, "checked")
        assert message in problem

    @pytest.mark.parametrize(("metric", "limit"), [("CPUS_ALL_REGIONS", 3), ("GPUS_ALL_REGIONS", 0), ("FIREWALLS", 1)])
    def test_every_quota_of_the_project(self, cloud, options, metric, limit):
        cloud.project_quotas[metric] = limit
        _, (problem,), _ = run(options, "checked")
        assert f"project lab-project: quota {metric} is {limit}" in problem

    def test_the_quota_of_an_attached_gpu(self, cloud, options, machine):
        cloud.quotas["NVIDIA_T4_GPUS"] = 0
        machine.update(machine_type="n1-standard-4", accelerator={"type": "nvidia-tesla-t4", "count": 1})
        _, (problem,), _ = run(options, "checked")
        assert "quota NVIDIA_T4_GPUS is 0" in problem
        cloud.quotas["NVIDIA_T4_GPUS"] = 1
        assert run(options, "checked")[1] == []
        made(options)

    @pytest.mark.parametrize("permission", ["compute.firewalls.create", "compute.instances.create"])
    def test_a_permission_that_lacks(self, cloud, options, permission):
        cloud.denied = {permission}
        _, (problem,), _ = run(options, "checked")
        assert problem.startswith(f"The account lacks {permission} on project lab-project")
        made(options)
        assert run(options, "checked")[1] == []

    def test_permissions_that_cannot_be_read(self, cloud, options, monkeypatch):
        monkeypatch.setattr(gcp_client, "PERMISSIONS", "https://elsewhere.googleapis.com/{}")
        fleet, problems, _ = run(options, "checked")
        assert problems == []
        assert "could not be asked" in fleet.remarks[0]

    def test_all_machines_are_checked(self, cloud, options, machine):
        options["machines"] = [
            {**machine, "zones": ["asia-northeast9-a"]},
            {**machine, "name": "llm-2", "accelerator": {"type": "nvidia-l4", "count": 3}},
            {**machine, "name": "llm-3", "machine_type": "e2-small"},
            {**machine, "name": "llm-4", "zones": ["asia-northeast3-c"]},
        ]
        _, problems, _ = run(options, "checked")
        for number, message in enumerate(("no zone asia-northeast9-a", "can have 1, 2, 4, 8", "e2-small cannot have")):
            assert any(message in one for one in problems), number
        assert any("llm-4: zone asia-northeast3-c has no accelerator" in one for one in problems)
        assert cloud.writes() == []


class TestEgress:
    NETWORK = "https://www.googleapis.com/compute/v1/projects/lab-project/global/networks/"

    @pytest.fixture(autouse=True)
    def inner(self, machine):
        machine["external_address"] = False

    @pytest.mark.parametrize(
        "routers",
        [
            [],
            [("asia-northeast3", {"name": "r", "network": f"{NETWORK}default"})],
            [("asia-northeast3", {"name": "r", "network": f"{NETWORK}other", "nats": [{"name": "n"}]})],
            [("us-central1", {"name": "r", "network": f"{NETWORK}default", "nats": [{"name": "n"}]})],
        ],
    )
    def test_without_an_address_and_without_nat(self, cloud, options, routers):
        cloud.routers = routers
        _, (problem,), _ = run(options, "checked")
        assert "no Cloud NAT in asia-northeast3" in problem
        assert run(options, "checked", egress="other")[1] == []

    def test_with_nat(self, cloud, options):
        network = f"{self.NETWORK}default"
        cloud.routers = [("asia-northeast3", {"name": "r", "network": network, "nats": [{"name": "n"}]})]
        assert run(options, "checked")[1] == []
        _, (result,), problems = run(options)
        assert (result.address, problems) == (None, [])

    def test_what_cannot_be_read_is_a_remark(self, cloud, options):
        cloud.fail("compute.routers.list", status=403, reason="forbidden")
        fleet, problems, _ = run(options, "checked")
        assert problems == []
        assert any("has a Cloud NAT cannot be asked" in one for one in fleet.remarks)


class TestLimit:
    def test_only_the_machines_that_limit_names(self, cloud, options, machine):
        options["rules"][1]["target_tags"] = ["exporters"]
        options["machines"] = [machine, {**machine, "name": "llm-2", "tags": ["exporters"]}]
        fleet, _, problems = run(options, limit="llm-2")
        assert problems == []
        assert what(fleet) == ["make rule allow-monitoring-ports", f"make llm-2 in {ZONE_A}"]
        fleet, _, _ = run(options, "stopped", limit="llm-2")
        assert what(fleet) == ["stop llm-2"]

    def test_a_limit_that_names_none(self, cloud, options):
        assert "--limit nobody names no machine" in run(options, limit="nobody")[2][0]
        assert cloud.writes() == []

    def test_decommission_of_what_limit_leaves_out(self, cloud, options):
        made(options)
        assert "is not among what --limit names" in run(options, "absent", names=["llm-server"], limit="x")[2][0]
        assert len(cloud.instances) == 1
