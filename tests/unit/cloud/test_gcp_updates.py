"""The requests that change one field of an instance."""

import pytest

from plugins.module_utils.cloud import gcp_declared as declared
from plugins.module_utils.cloud import gcp_updates as updates

PATH = "zones/asia-northeast3-a/instances/llm-1"
DISK = "zones/asia-northeast3-a/disks/llm-1-boot"
GPU = [{"acceleratorType": "https://x/acceleratorTypes/nvidia-l4", "acceleratorCount": 1}]


class Disks:
    """Replaces the client: the only read is that of the boot disk."""

    def get(self, path):
        assert path == DISK
        return {"labels": {"goog-x": "1", "old": "2"}, "labelFingerprint": "d"}


def requests(field, machine=None, body=None, **instance):
    disk = {"boot": True, "source": f"https://x/{DISK}", "deviceName": "sda"}
    there = {"zone": "asia-northeast3-a", "disks": [disk], **instance}
    update = updates.Update(Disks(), {"name": "llm-1", **(machine or {})}, body or {}, there)
    return [tuple(one) for one in updates.requests_for(field, update)]


def test_a_change_carries_the_fingerprint_that_was_read():
    request = {"tags": {"items": ["a"]}}
    assert requests("tags", body=request, tags={"fingerprint": "f"}) == [
        ("POST", f"{PATH}/setTags", {"items": ["a"], "fingerprint": "f"}, {})
    ]


def test_labels_and_metadata_of_others_are_kept():
    assert requests("labels", body={"labels": {"a": "b"}}, labels={"goog-x": "1", "c": "d"}, labelFingerprint="f") == [
        ("POST", f"{PATH}/setLabels", {"labels": {"goog-x": "1", "a": "b"}, "labelFingerprint": "f"}, {})
    ]
    assert requests("disk_labels", machine={"disk": {"labels": {"a": 1}}}) == [
        ("POST", f"{DISK}/setLabels", {"labels": {"goog-x": "1", "a": "1"}, "labelFingerprint": "d"}, {})
    ]
    keys = {"items": [{"key": "ssh-keys", "value": "k"}, {"key": "a", "value": "old"}], "fingerprint": "m"}
    items = [{"key": "ssh-keys", "value": "k"}, {"key": "a", "value": "new"}]
    assert requests("metadata", body={"metadata": {"items": [{"key": "a", "value": "new"}]}}, metadata=keys) == [
        ("POST", f"{PATH}/setMetadata", {"items": items, "fingerprint": "m"}, {})
    ]


def test_gpus_that_the_machine_type_has_changed_already_are_not_set():
    assert requests("accelerator", body={"guestAccelerators": GPU}, guestAccelerators=GPU) == []
    assert requests("accelerator", body={"guestAccelerators": GPU}) == [
        ("POST", f"{PATH}/setMachineResources", {"guestAccelerators": GPU}, {})
    ]


@pytest.mark.parametrize(
    ("wanted", "there", "verbs"),
    [
        (True, [], [("addAccessConfig", dict(declared.ACCESS), {"networkInterface": "nic0"})]),
        (False, ["x"], [("deleteAccessConfig", None, {"networkInterface": "nic0", "accessConfig": "x"})]),
        (False, [], []),
    ],
)
def test_an_external_address_comes_and_goes(wanted, there, verbs):
    interface = {"name": "nic0", "accessConfigs": [{"name": name} for name in there]}
    found = requests("external_address", machine={"external_address": wanted}, networkInterfaces=[interface])
    assert found == [("POST", f"{PATH}/{verb}", body, params) for verb, body, params in verbs]


def test_the_disk_is_named_by_its_source_and_its_device():
    machine = {"disk": {"size_gb": 200, "auto_delete": False}}
    assert requests("disk_size_gb", machine=machine) == [("POST", f"{DISK}/resize", {"sizeGb": "200"}, {})]
    assert requests("disk_auto_delete", machine=machine) == [
        ("POST", f"{PATH}/setDiskAutoDelete", None, {"autoDelete": "false", "deviceName": "sda"})
    ]
