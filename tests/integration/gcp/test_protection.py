"""A machine's permissions in the project, its boot options, and its protection against deletion."""

import pytest
from gcp_runs import made, run, what

from plugins.module_utils.cloud import gcp_declared as declared

pytestmark = pytest.mark.usefixtures("server")
ACCOUNT = {
    "email": "llm@lab-project.iam.gserviceaccount.com",
    "scopes": ["https://www.googleapis.com/auth/logging.write"],
}
SECURE = {"secure_boot": True, "vtpm": True, "integrity_monitoring": True}


def test_a_machine_has_no_service_account_unless_declared(cloud, options):
    made(options)
    assert cloud.instance("llm-server")["serviceAccounts"] == []


def test_a_declared_account_is_given(cloud, options, machine):
    machine["service_account"] = ACCOUNT
    made(options)
    assert cloud.instance("llm-server")["serviceAccounts"] == [ACCOUNT]
    assert what(run(options)[0]) == []


@pytest.mark.parametrize(
    ("field", "value", "api", "there"),
    [
        ("service_account", ACCOUNT, "serviceAccounts", [ACCOUNT]),
        (
            "shielded",
            SECURE,
            "shieldedInstanceConfig",
            {"enableSecureBoot": True, "enableVtpm": True, "enableIntegrityMonitoring": True},
        ),
    ],
)
def test_what_changes_on_a_stopped_machine_only(cloud, options, machine, field, value, api, there):
    made(options)
    before = cloud.instance("llm-server").get(api) or declared.shielded_body(machine["shielded"])
    before = [] if api == "serviceAccounts" else before
    undeclared = machine[field]
    machine[field] = value
    cloud.requests.clear()
    assert f"{field} is" in run(options)[2][0]
    assert cloud.writes() == []
    run(options, "stopped")
    assert what(run(options)[0]) == [f"update {field} of llm-server", "start llm-server"]
    assert cloud.instance("llm-server")[api] == there
    assert what(run(options)[0]) == []
    machine[field] = undeclared
    run(options, "stopped")
    run(options)
    assert cloud.instance("llm-server")[api] == before


def test_an_account_that_was_added_by_hand_is_found(cloud, options):
    made(options)
    cloud.instance("llm-server")["serviceAccounts"] = [ACCOUNT]
    assert "service_account is {'llm@lab-project" in run(options)[2][0]


def test_a_protected_machine_is_not_deleted(cloud, options, machine):
    machine["deletion_protection"] = True
    made(options)
    cloud.requests.clear()
    for check_mode in (True, False):
        assert "is protected from deletion" in run(options, "absent", check_mode, names=["llm-server"])[2][0]
    assert cloud.writes() == []
    machine["deletion_protection"] = False
    assert what(run(options)[0]) == ["update deletion_protection of llm-server"]
    assert run(options, "absent", names=["llm-server"])[2] == []
    assert cloud.instances == {}


def test_secure_boot_with_a_gpu_names_its_requirements(options, machine):
    machine["shielded"] = SECURE
    fleet, problems, _ = run(options, "checked")
    assert problems == []
    assert "NVIDIA's driver must be signed" in fleet.remarks[0]


def test_labels_of_the_disk_are_compared_where_they_are_declared(cloud, options, machine):
    made(options)
    (disk,) = cloud.disks.values()
    disk["labels"] = {"by": "hand", "goog-x": "1"}
    assert what(run(options)[0]) == []
    machine["disk"] = {**machine["disk"], "labels": {"cost": "llm"}}
    assert what(run(options)[0]) == ["update disk_labels of llm-server"]
    assert disk["labels"] == {"cost": "llm", "goog-x": "1"}
    assert what(run(options)[0]) == []
