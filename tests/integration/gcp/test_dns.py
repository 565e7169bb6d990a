"""The machines' names in Cloud DNS."""

import pytest
from gcp_runs import made, run, what

NAME = "llm-server.llm.example.com."
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def zone(cloud, options):
    cloud.dns_zones = {"llm-zone": "llm.example.com."}
    options["dns_zone"] = "llm-zone"


def leads_to(cloud):
    return cloud.records[NAME, "A"]["rrdatas"]


def test_a_name_leads_to_its_machine_and_follows_it(cloud, options):
    foretold, _, _ = run(options, check_mode=True)
    fleet = made(options)
    assert what(fleet) == what(foretold)
    assert what(fleet)[-1] == f"make record {NAME}"
    (before,) = leads_to(cloud)
    assert before == cloud.instance("llm-server")["networkInterfaces"][0]["accessConfigs"][0]["natIP"]
    cloud.requests.clear()
    assert (what(made(options)), cloud.writes()) == ([], [])
    run(options, "stopped")
    fleet, (result,), _ = run(options, "started")
    assert what(fleet) == ["start llm-server", f"update record {NAME}"]
    assert leads_to(cloud) == [result.address] != [before]


def test_without_an_external_address_it_is_the_internal_one(cloud, options, machine):
    machine["external_address"] = False
    made(options)
    assert leads_to(cloud) == [cloud.instance("llm-server")["networkInterfaces"][0]["networkIP"]]


def test_it_goes_with_the_machine(cloud, options):
    made(options)
    foretold, _, _ = run(options, "absent", check_mode=True, names=["llm-server"])
    assert cloud.records
    fleet, _, problems = run(options, "absent", names=["llm-server"])
    assert (problems, cloud.records) == ([], {})
    assert f"delete record {NAME}" in what(fleet) and what(fleet) == what(foretold)


def test_anothers_record_is_left_alone(cloud, options):
    cloud.records[NAME, "A"] = {"name": NAME, "type": "A", "rrdatas": ["192.0.2.7"]}
    assert f"{NAME} in zone llm-zone was not made by" in run(options)[2][0]
    assert leads_to(cloud) == ["192.0.2.7"]
    run(options, "absent", names=["llm-server"])
    assert leads_to(cloud) == ["192.0.2.7"]


def test_a_run_that_was_cut_off_is_finished_by_the_next(cloud, options):
    cloud.fail("dns.resourceRecordSets.create", status=400, reason="invalid")
    assert "rrsets" in run(options)[2][0]
    made(options)
    assert leads_to(cloud) and (NAME, "TXT") in cloud.records


def test_permissions_are_checked_first(cloud, options):
    options["dns_zone"] = "elsewhere"
    cloud.denied = {"dns.changes.create"}
    first, second = run(options, "checked")[1]
    assert "dns.changes.create" in first and "DNS Administrator" in first
    assert "there is no zone 'elsewhere' in Cloud DNS of project lab-project" in second
    assert cloud.writes() == []


def test_without_a_zone_no_request_is_sent(cloud, options):
    options["dns_zone"] = ""
    made(options)
    assert not any("dns/" in one for one in cloud.requests)
