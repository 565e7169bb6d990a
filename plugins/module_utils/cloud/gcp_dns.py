"""The names of machines in a zone of Cloud DNS: an A record each, with a TXT record beside it that says whose it is."""

from __future__ import annotations

from . import gcp_declared as declared
from .gcp_client import DNS, GcpError
from .gcp_declared import Change

TTL = 300  # s for which others may keep an address


class Records:
    """Keeps the records of machines in the managed zone `zone` ("" for none). `fleet`: the Fleet of the run."""

    def __init__(self, fleet, zone):
        self.fleet, self.zone = fleet, zone
        self._suffix = None

    def suffix(self, client):
        """Return the zone's own name, with the dot at its end. Raises GcpError where there is no such zone."""
        if self._suffix is None:
            found = client.get(f"managedZones/{self.zone}", missing_ok=True, root=DNS)
            if found is None:
                raise GcpError(
                    f"there is no zone '{self.zone}' in Cloud DNS of project {self.fleet.project}: make it (gcloud dns "
                    "managed-zones create), or set gcp_dns_zone to one that there is."
                )
            self._suffix = found["dnsName"]
        return self._suffix

    def present(self, client, machine, address, result):
        """Let the machine's name lead to `address`; None where it is not known yet, in check mode."""
        if not self.zone:
            return
        name = f"{machine}.{self.suffix(client)}"
        there = self._get(client, name, "A")
        owner = self._get(client, name, "TXT")
        if there is not None and not self._ours(owner):
            raise GcpError(
                f"{name} in zone {self.zone} was not made by playbooks/provision.yml and is left alone: delete that "
                "record, or give the machine of gcp_machines another name."
            )
        before = there and there.get("rrdatas")
        if before == [address] and self._ours(owner):
            return
        if not self.fleet.check_mode:
            # Whose it is is said first: a run that is cut off between the two may be finished by the next.
            self._set(client, owner, name, "TXT", f'"{declared.mark(self.fleet.fleet)}"')
            self._set(client, there, name, "A", address)
        what = f"{'mend' if there else 'make'} record {name}"
        result.changes.append(Change(what, there and {"address": before}, {"address": [address]}))

    def absent(self, client, machine, result):
        """Delete the records of a machine that is gone, where they are ours."""
        if not self.zone:
            return
        name = f"{machine}.{self.suffix(client)}"
        if not self._ours(self._get(client, name, "TXT")):
            return
        there = self._get(client, name, "A")
        if not self.fleet.check_mode:
            for kind in ("A", "TXT") if there else ("TXT",):
                client.request("DELETE", f"{self._path(name)}/{kind}", root=DNS)
        result.changes.append(Change(f"delete record {name}", there and {"address": there.get("rrdatas")}, None))

    def _path(self, name):
        return f"managedZones/{self.zone}/rrsets/{name}"

    def _get(self, client, name, kind):
        return client.get(f"{self._path(name)}/{kind}", missing_ok=True, root=DNS)

    def _ours(self, record):
        said = (record or {}).get("rrdatas") or []
        return any(declared.made_by({"description": one.strip('"')}, self.fleet.fleet) for one in said)

    def _set(self, client, there, name, kind, value):
        body = {"name": name, "type": kind, "ttl": TTL, "rrdatas": [value]}
        if there is None:
            client.request("POST", f"managedZones/{self.zone}/rrsets", body, root=DNS)
        elif there.get("rrdatas") != [value]:
            client.request("PATCH", f"{self._path(name)}/{kind}", body, root=DNS)
