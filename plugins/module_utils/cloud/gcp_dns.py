"""Keep the names of machines in a managed zone of Cloud DNS.

Each machine has an A record, and a TXT record of the same name with the fleet's mark, since records have no
description. Source: https://cloud.google.com/dns/docs/reference/rest/v1/resourceRecordSets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import gcp_declared as declared
from .gcp_client import DNS, Client, GcpError
from .gcp_declared import Change

if TYPE_CHECKING:
    from .gcp_fleet import Fleet, Result

TTL = 300  # seconds that resolvers may cache an address


class Records:
    """Keeps the records of machines in a managed zone; `zone`: its name, "" for none, `fleet`: the run."""

    def __init__(self, fleet: Fleet, zone: str) -> None:
        self.fleet, self.zone = fleet, zone
        self._suffix: str | None = None

    def suffix(self, client: Client) -> str:
        """Return the zone's DNS name, with the dot at its end. Raises GcpError where the zone does not exist."""
        if self._suffix is None:
            found = client.get(f"managedZones/{self.zone}", missing_ok=True, root=DNS)
            if found is None:
                raise GcpError(
                    f"there is no zone '{self.zone}' in Cloud DNS of project {self.fleet.project}: make it (gcloud dns "
                    "managed-zones create), or set gcp_dns_zone to one that there is."
                )
            self._suffix = str(found["dnsName"])
        return self._suffix

    def present(self, client: Client, machine: str, address: str | None, result: Result) -> None:
        """Point the machine's name to `address`, None where check mode does not know it yet.

        Raises GcpError where another's record has the name.
        """
        if not self.zone:
            return
        name = f"{machine}.{self.suffix(client)}"
        record = self._get(client, name, "A")
        owner = self._get(client, name, "TXT")
        if record is not None and not self._ours(owner):
            raise GcpError(
                f"{name} in zone {self.zone} was not made by playbooks/gcp_provision.yml and is left alone: delete "
                "that record, or give the machine of gcp_machines another name."
            )
        before = record and record.get("rrdatas")
        if before == [address] and self._ours(owner):
            return
        if not self.fleet.check_mode:
            # The mark first: the next run can finish one that ends between the two.
            self._set(client, owner, name, "TXT", f'"{declared.mark(self.fleet.fleet)}"')
            self._set(client, record, name, "A", address)
        what = f"{'update' if record else 'make'} record {name}"
        result.changes.append(Change(what, record and {"address": before}, {"address": [address]}))

    def absent(self, client: Client, machine: str, result: Result) -> None:
        """Delete the records of a deleted machine, where they have the fleet's mark."""
        if not self.zone:
            return
        name = f"{machine}.{self.suffix(client)}"
        if not self._ours(self._get(client, name, "TXT")):
            return
        record = self._get(client, name, "A")
        if not self.fleet.check_mode:
            for kind in ("A", "TXT") if record else ("TXT",):
                client.request("DELETE", f"{self._path(name)}/{kind}", root=DNS)
        result.changes.append(Change(f"delete record {name}", record and {"address": record.get("rrdatas")}, None))

    def _path(self, name: str) -> str:
        return f"managedZones/{self.zone}/rrsets/{name}"

    def _get(self, client: Client, name: str, kind: str) -> dict | None:
        return client.get(f"{self._path(name)}/{kind}", missing_ok=True, root=DNS)

    def _ours(self, owner: dict | None) -> bool:
        """Return whether a TXT record has the fleet's mark."""
        values = (owner or {}).get("rrdatas") or []
        return any(declared.made_by({"description": one.strip('"')}, self.fleet.fleet) for one in values)

    def _set(self, client: Client, record: dict | None, name: str, kind: str, value: str | None) -> None:
        """Create the record of a kind, or change `record` to the value."""
        body = {"name": name, "type": kind, "ttl": TTL, "rrdatas": [value]}
        if record is None:
            client.request("POST", f"managedZones/{self.zone}/rrsets", body, root=DNS)
        elif record.get("rrdatas") != [value]:
            client.request("PATCH", f"{self._path(name)}/{kind}", body, root=DNS)
