"""The requests that change one field of an instance to its declared value.

Source: https://cloud.google.com/compute/docs/reference/rest/v1/instances and …/disks. A fingerprint of the resource as
it was read lets the API refuse (412) a change that would undo one made meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import gcp_declared as declared
from .gcp_client import Client


class Request(NamedTuple):
    """One request below the project; `params` go to its query."""

    method: str
    path: str
    body: dict | None
    params: dict[str, str]


@dataclass(frozen=True)
class Update:
    """What the requests for a field need.

    `machine`: the declaration, `body`: the API's Instance for it, `instance`: the existing one as it was just read,
    with its `zone`.
    """

    client: Client
    machine: dict
    body: dict
    instance: dict

    @property
    def path(self) -> str:
        """The instance's path below the project."""
        return f"zones/{self.instance['zone']}/instances/{self.machine['name']}"

    @property
    def boot_disk_path(self) -> str:
        """The path of the instance's boot disk below the project."""
        return f"zones/{self.instance['zone']}/disks/{declared.last(declared.boot_disk(self.instance)['source'])}"

    def post(self, verb: str, body: dict | None = None, **params: str) -> Request:
        """Return the request that calls a method of the instance."""
        return Request("POST", f"{self.path}/{verb}", body, params)


def requests_for(field: str, update: Update) -> list[Request]:
    """Return the requests that change a field, in order; `field`: one of `gcp_declared.declared_view`.

    None where another field's change has already made this one. Raises GcpError where the boot disk cannot be read.
    """
    return FIELDS[field](update)


def _tags(update: Update) -> list[Request]:
    tags = {"items": update.body["tags"]["items"], **_fingerprint(update.instance.get("tags"))}
    return [update.post("setTags", tags)]


def _labels(update: Update) -> list[Request]:
    labels = {**_google_labels(update.instance), **update.body["labels"]}
    fingerprint = update.instance.get("labelFingerprint", "")
    return [update.post("setLabels", {"labels": labels, "labelFingerprint": fingerprint})]


def _metadata(update: Update) -> list[Request]:
    metadata = update.instance.get("metadata")
    items = {one["key"]: one for one in (metadata or {}).get("items") or []}
    items.update({one["key"]: one for one in update.body["metadata"]["items"]})
    return [update.post("setMetadata", {"items": list(items.values()), **_fingerprint(metadata)})]


def _scheduling(update: Update) -> list[Request]:
    return [update.post("setScheduling", update.body["scheduling"])]


def _service_account(update: Update) -> list[Request]:
    account = (update.body["serviceAccounts"] or [{"email": "", "scopes": []}])[0]
    return [update.post("setServiceAccount", account)]


def _deletion_protection(update: Update) -> list[Request]:
    protection = str(update.machine["deletion_protection"]).lower()
    return [update.post("setDeletionProtection", deletionProtection=protection)]


def _shielded(update: Update) -> list[Request]:
    config = declared.shielded_body(update.machine["shielded"])
    return [Request("PATCH", f"{update.path}/updateShieldedInstanceConfig", config, {})]


def _machine_type(update: Update) -> list[Request]:
    return [update.post("setMachineType", {"machineType": update.body["machineType"]})]


def _accelerator(update: Update) -> list[Request]:
    # A machine type with built-in GPUs has changed them already.
    if _gpus(update.instance) == _gpus(update.body):
        return []
    return [update.post("setMachineResources", {"guestAccelerators": update.body["guestAccelerators"]})]


def _disk_labels(update: Update) -> list[Request]:
    disk = update.client.get(update.boot_disk_path)
    labels = {**_google_labels(disk), **declared.label_values(update.machine["disk"]["labels"])}
    body = {"labels": labels, "labelFingerprint": disk["labelFingerprint"]}
    return [Request("POST", f"{update.boot_disk_path}/setLabels", body, {})]


def _disk_size(update: Update) -> list[Request]:
    size = str(update.machine["disk"]["size_gb"])
    return [Request("POST", f"{update.boot_disk_path}/resize", {"sizeGb": size}, {})]


def _disk_auto_delete(update: Update) -> list[Request]:
    device = declared.boot_disk(update.instance).get("deviceName", update.machine["name"])
    auto_delete = str(update.machine["disk"]["auto_delete"]).lower()
    return [update.post("setDiskAutoDelete", autoDelete=auto_delete, deviceName=device)]


def _external_address(update: Update) -> list[Request]:
    interface = declared.first_interface(update.instance)
    name = interface.get("name", "nic0")
    if update.machine["external_address"]:
        return [update.post("addAccessConfig", dict(declared.ACCESS), networkInterface=name)]
    return [
        update.post("deleteAccessConfig", networkInterface=name, accessConfig=access["name"])
        for access in interface.get("accessConfigs") or []
    ]


FIELDS: dict[str, Callable[[Update], list[Request]]] = {
    "machine_type": _machine_type,
    "accelerator": _accelerator,
    "disk_size_gb": _disk_size,
    "disk_auto_delete": _disk_auto_delete,
    "disk_labels": _disk_labels,
    "external_address": _external_address,
    "service_account": _service_account,
    "deletion_protection": _deletion_protection,
    "shielded": _shielded,
    "scheduling": _scheduling,
    "tags": _tags,
    "labels": _labels,
    "metadata": _metadata,
}


def _fingerprint(part: dict | None) -> dict[str, str]:
    return {"fingerprint": part["fingerprint"]} if part and part.get("fingerprint") else {}


def _google_labels(resource: dict) -> dict[str, str]:
    """Return the labels that Google has set itself: a change of labels must keep them."""
    return {key: value for key, value in (resource.get("labels") or {}).items() if key.startswith("goog-")}


def _gpus(resource: dict) -> dict[str, int]:
    return {
        declared.last(one["acceleratorType"]): one["acceleratorCount"]
        for one in resource.get("guestAccelerators") or []
    }
