"""Reserved addresses: kept over stop and start, reported while they cost, released on request."""

import pytest
from gcp_runs import ZONE_A, ZONE_B, made, run, what

from plugins.module_utils.cloud import gcp_declared as declared

REGION = "asia-northeast3"
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def reserved(machine):
    machine["reserved_address"] = True


def nat_ip(cloud):
    return cloud.instance("llm-server")["networkInterfaces"][0]["accessConfigs"][0].get("natIP")


def test_it_is_reserved_before_the_machine_and_stays_over_stop_and_start(cloud, options):
    foretold, _, _ = run(options, check_mode=True)
    fleet = made(options)
    assert what(fleet) == what(foretold)
    assert what(fleet)[-2:] == [f"reserve address llm-server in {REGION}", f"make llm-server in {ZONE_A}"]
    address = cloud.addresses[REGION, "llm-server"]
    assert address["description"] == declared.mark("llm-server")
    assert nat_ip(cloud) == address["address"]
    run(options, "stopped")
    _, (result,), _ = run(options, "started")
    assert result.address == nat_ip(cloud) == address["address"]
    assert what(run(options)[0]) == []


def test_the_address_that_a_machine_has_is_kept(cloud, options, machine):
    machine["reserved_address"] = False
    made(options)
    before = nat_ip(cloud)
    machine["reserved_address"] = True
    assert what(run(options)[0]) == [f"reserve address llm-server in {REGION}"]
    assert nat_ip(cloud) == cloud.addresses[REGION, "llm-server"]["address"] == before
    assert what(run(options)[0]) == []


def test_a_machine_with_another_address_gets_its_own(cloud, options):
    made(options)
    cloud.instance("llm-server")["networkInterfaces"][0]["accessConfigs"][0]["natIP"] = "203.0.113.250"
    foretold, _, _ = run(options, check_mode=True)
    fleet, _, problems = run(options)
    assert problems == []
    assert what(fleet) == what(foretold) == ["give llm-server its reserved address"]
    assert nat_ip(cloud) == cloud.addresses[REGION, "llm-server"]["address"]


def test_decommission_keeps_it_and_releases_it_on_request(cloud, options):
    made(options)
    fleet, _, _ = run(options, "absent", names=["llm-server"])
    assert any("stays reserved and costs; -e gcp_release_addresses=true" in one for one in fleet.remarks)
    assert list(cloud.addresses) == [(REGION, "llm-server")]
    fleet, _, problems = run(options, "absent", names=["llm-server"], release_addresses=True)
    assert (what(fleet), problems) == ([f"give address llm-server in {REGION} back"], [])
    assert cloud.addresses == {}
    assert what(run(options, "absent", names=["llm-server"], release_addresses=True)[0]) == []


def test_the_next_machine_of_that_name_gets_it_again(cloud, options):
    made(options)
    before = nat_ip(cloud)
    run(options, "absent", names=["llm-server"])
    made(options)
    assert nat_ip(cloud) == before


def test_one_that_is_no_longer_declared_is_reported(cloud, options, machine):
    made(options)
    run(options, "absent", names=["llm-server"])
    machine["reserved_address"] = False
    fleet = made(options)
    assert any("no longer declared" in one and f"address llm-server in {REGION}" in one for one in fleet.remarks)
    run(options, "absent", names=["llm-server"])
    options["machines"] = [{**machine, "name": "llm-9"}]
    fleet, _, _ = run(options, delete_undeclared=["llm-server"])
    assert f"give address llm-server in {REGION} back" in what(fleet)
    assert cloud.addresses == {}


def test_one_of_another_region_is_reported_after_a_stockout(cloud, options, machine):
    machine["zones"] = [ZONE_A, ZONE_B, "us-central1-a"]
    cloud.stockout(ZONE_A)
    cloud.stockout(ZONE_B)
    made(options)
    fleet = made(options)
    assert any(f"address llm-server in {REGION}" in one for one in fleet.remarks)
    assert nat_ip(cloud) == cloud.addresses["us-central1", "llm-server"]["address"]


def test_anothers_is_refused_before_anything_is_made(cloud, options):
    cloud.addresses[REGION, "llm-server"] = {"name": "llm-server", "address": "203.0.113.9"}
    assert "an address of that name" in run(options, "checked")[1][0]


@pytest.mark.parametrize("permission", ["compute.addresses.create", "compute.addresses.use"])
def test_permissions_are_checked_first(cloud, options, permission):
    cloud.quotas["STATIC_ADDRESSES"] = 0
    cloud.denied = {permission}
    first, second = run(options, "checked")[1]
    assert permission in first
    assert "quota STATIC_ADDRESSES is 0" in second


def test_it_needs_an_external_address(options, machine):
    machine["external_address"] = False
    assert "reserved_address needs external_address" in run(options)[2][0]


def test_it_costs_while_the_machine_is_stopped(options, machine):
    (cost,) = run(options, "checked")[2]
    machine["reserved_address"] = False
    (without,) = run(options, "checked")[2]
    assert cost["stopped"] == pytest.approx(without["stopped"] + 0.01)
    assert cost["running"] == without["running"]
