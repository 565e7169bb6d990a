"""Google's Compute API on loopback: the part that the project uses, with strict checks of each request.

One listener is both the CONNECT proxy and, behind TLS with its own certificate authority, the API for
compute.googleapis.com and www.googleapis.com, the Resource Manager that lists the account's permissions, and the
token endpoint of service accounts. Every request to the API is checked against Google's published discovery document
(path, parameters, body; it comes with the PyPI package google-api-python-client) and refused if it does not match.
Tests configure faults beforehand (`fail`). Nothing is forwarded anywhere.
"""

from __future__ import annotations

import base64
import copy
import datetime
import functools
import http.server
import importlib.resources
import json
import re
import secrets
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOSTS = (
    "compute.googleapis.com",
    "www.googleapis.com",
    "dns.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "oauth2.googleapis.com",
)
URL = "https://www.googleapis.com/compute/v1/"
IMAGES = "ubuntu-os-accelerator-images"
FAMILY = "ubuntu-accelerator-2204-amd64-with-nvidia-580"
MACHINE_TYPES = {  # name -> number of NVIDIA L4 that come with it, vCPUs
    "g2-standard-4": (1, 4),
    "g2-standard-8": (1, 8),
    "g2-standard-16": (1, 16),
    "g2-standard-24": (2, 24),
    "n1-standard-4": (0, 4),
    "n1-standard-8": (0, 8),
    "e2-small": (0, 2),
}
ATTACHABLE = {"n1": ("nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4")}
QUOTAS = {  # per region, by Google's names
    "CPUS": 72,
    "N2_CPUS": 24,
    "PREEMPTIBLE_CPUS": 0,
    "DISKS_TOTAL_GB": 4096,
    "SSD_TOTAL_GB": 500,
    "HDB_TOTAL_GB": 500,
    "IN_USE_ADDRESSES": 8,
    "STATIC_ADDRESSES": 8,
    "INSTANCES": 72,
    "NVIDIA_L4_GPUS": 4,
    "NVIDIA_T4_GPUS": 4,
    "NVIDIA_V100_GPUS": 1,
    "NVIDIA_P100_GPUS": 1,
    "NVIDIA_P4_GPUS": 1,
    "NVIDIA_A100_GPUS": 0,
    "NVIDIA_A100_80GB_GPUS": 0,
    "PREEMPTIBLE_NVIDIA_T4_GPUS": 0,
}
STILL = ("RUNNING", "TERMINATED", "SUSPENDED")
DISK_TYPES = ("pd-ssd", "pd-balanced", "pd-standard", "hyperdisk-balanced")
COMMON_PARAMETERS = {"alt", "fields", "key", "prettyPrint", "quotaUser", "userIp"}


class Refused(Exception):
    """A response other than 200: status (0: no response), the API's reason, a message."""

    def __init__(self, status, reason, message):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass
class Fault:
    """A fault of the next `times` requests of `method` whose path contains `where`.

    With `status` the request is refused; with `operation` (code, message, details) it is accepted and its operation
    fails; with `broken` the connection ends without an answer. With `done`, a refused or unanswered request still takes
    effect, as when the response is lost.
    """

    method: str
    where: str = ""
    status: int = 0
    reason: str = "backendError"
    message: str = "A fault of the laboratory"
    operation: dict | None = None
    times: int = 1
    done: bool = False
    broken: bool = False
    answer: object = ...  # any other answer to send, with status 200

    def refuse(self):
        raise Refused(self.status, self.reason, self.message)


# --- the published schema -----------------------------------------------------------------------------------------


class Schema:
    """Paths, parameters and bodies of a discovery document."""

    def __init__(self, document="compute.v1"):
        package = importlib.resources.files("googleapiclient.discovery_cache.documents")
        document = json.loads((package / f"{document}.json").read_text(encoding="utf-8"))
        self.schemas = document["schemas"]
        self.methods = []
        for resource in document["resources"].values():
            for method in resource.get("methods", {}).values():
                names = re.findall(r"{(\w+)}", method["flatPath"])
                pattern = re.sub(r"{\w+}", "([^/]+)", method["flatPath"])
                self.methods.append((method["httpMethod"], re.compile(pattern), names, method))

    def match(self, verb, path):
        """Return (method, path parameters); the most literal path wins, as images/family/{family} does."""
        found = []
        for known_verb, pattern, names, method in self.methods:
            fits = pattern.fullmatch(path)
            if fits and known_verb == verb:
                found.append((len(names), method, dict(zip(names, fits.groups(), strict=True))))
        if not found:
            raise Refused(404, "notFound", f"{verb} {path} is no method of the Compute API")
        _, method, values = min(found, key=lambda one: one[0])
        return method, values

    def check(self, method, values, query, body):
        known = method.get("parameters", {})
        for name, value in {**query, **values}.items():
            if name not in known:
                if name in COMMON_PARAMETERS:
                    continue
                raise Refused(400, "invalid", f"{method['id']}: unknown parameter '{name}'")
            rule = known[name]
            if "pattern" in rule and not re.fullmatch(rule["pattern"], value):
                raise Refused(400, "invalid", f"{method['id']}: parameter {name}='{value}' does not fit")
            if rule["type"] == "boolean" and value not in ("true", "false"):
                raise Refused(400, "invalid", f"{method['id']}: parameter {name}='{value}' is no boolean")
            if rule["type"] == "integer" and not value.isdigit():
                raise Refused(400, "invalid", f"{method['id']}: parameter {name}='{value}' is no integer")
        missing = [name for name, rule in known.items() if rule.get("required") and name not in {**query, **values}]
        if missing:
            raise Refused(400, "required", f"{method['id']}: parameter {missing[0]} is missing")
        if "request" in method:
            if not isinstance(body, dict):
                raise Refused(400, "required", f"{method['id']}: a body is required")
            self.fits(self.schemas[method["request"]["$ref"]], body, method["request"]["$ref"])
        elif body is not None:
            raise Refused(400, "invalid", f"{method['id']}: takes no body")

    def fits(self, schema, value, where):
        """Refuse a value that its schema does not allow: unknown, of the wrong type, output-only, not in the enum."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]]
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
        kind = schema.get("type", "any")
        if kind != "any" and (
            not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))
        ):
            raise Refused(400, "invalid", f"Invalid value at '{where}' ({kind}), {json.dumps(value)[:80]}")
        if kind == "object":
            for name, one in value.items():
                inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
                if inner is None:
                    raise Refused(400, "invalid", f"Invalid JSON payload: unknown name '{name}' at '{where}'")
                if inner.get("readOnly") or "[Output Only]" in inner.get("description", "")[:16]:
                    raise Refused(400, "invalid", f"'{where}.{name}' is output only")
                self.fits(inner, one, f"{where}.{name}")
        elif kind == "array":
            for number, one in enumerate(value):
                self.fits(schema["items"], one, f"{where}[{number}]")
        elif kind == "string":
            if "enum" in schema and value not in schema["enum"]:
                raise Refused(400, "invalid", f"Invalid value for field '{where}': '{value}'")
            if schema.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
                raise Refused(400, "invalid", f"Invalid value for field '{where}': '{value}' is no number")
            if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
                raise Refused(400, "invalid", f"Invalid value for field '{where}': '{value}'")


schema = functools.cache(Schema)


# --- the cloud ----------------------------------------------------------------------------------------------------


def new_fingerprint():
    return base64.b64encode(secrets.token_bytes(8)).decode()


@dataclass
class Cloud:
    """State of one project, and the API's methods on it. Methods are named after the discovery document's ids."""

    project: str = "lab-project"
    zones: dict = field(
        default_factory=lambda: {
            "asia-northeast3-a": ["nvidia-l4", "nvidia-tesla-t4"],
            "asia-northeast3-b": ["nvidia-l4"],
            "asia-northeast3-c": ["nvidia-tesla-t4"],
            "us-central1-a": ["nvidia-l4"],
        }
    )
    quotas: dict = field(default_factory=lambda: dict(QUOTAS))
    project_quotas: dict = field(
        default_factory=lambda: {"GPUS_ALL_REGIONS": 4, "CPUS_ALL_REGIONS": 72, "FIREWALLS": 100}
    )
    routers: list = field(default_factory=list)  # (region, router)
    denied: set = field(default_factory=set)  # permissions that the account lacks
    unreachable: set = field(default_factory=set)  # zones that lists cannot reach
    networks: tuple = ("default",)
    page_size: int = 500
    polls: int = 1  # how many polls an operation needs until it is done
    schedule_while_running: bool = True
    address: str | None = None  # the external address of every VM instead of one from a test network
    on_power: object = None  # called with (name, "on", "off" or "gone"); may return the address of the machine

    def __post_init__(self):
        self.lock = threading.RLock()
        self.firewalls, self.instances, self.disks, self.operations = {}, {}, {}, {}
        self.addresses = {}  # (region, name)
        self.policies, self.snapshots = {}, {}  # (region, name); name
        self.dns_zones, self.records = {}, {}  # name -> its DNS name; (name, type)
        self.faults, self.requests, self.known_requests = [], [], {}
        self.counter = 100

    # --- for tests

    def fail(self, method, **what):
        self.faults.append(Fault(method, **what))

    def stockout(self, zone, times=1, available=""):
        details = [{"errorInfo": {"reason": "resource_availability", "metadatas": {"zonesAvailable": available}}}]
        self.fail(
            "compute.instances.insert",
            where=f"/zones/{zone}/",
            times=times,
            operation={
                "code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                "message": f"The zone 'projects/{self.project}/zones/{zone}' does not have enough resources available.",
                "errorDetails": details,
            },
        )

    def instance(self, name):
        return next(one for (_, own), one in self.instances.items() if own == name)

    def writes(self):
        return [one for one in self.requests if not one.startswith("GET ")]

    # --- one request

    def answer(self, verb, path, query, body):
        with self.lock:
            self.requests.append(f"{verb} {path}")
            method, values = schema().match(verb, path)
            schema().check(method, values, query, body)
            fault = next(
                (one for one in self.faults if one.times and method["id"] == one.method and one.where in f"/{path}/"),
                None,
            )
            if fault:
                fault.times -= 1
            if fault and fault.answer is not ...:
                return fault.answer
            if fault and (fault.status or fault.broken) and not fault.done:
                fault.refuse()
            self._known_project(method["id"], values)
            handler = getattr(self, method["id"].removeprefix("compute.").replace(".", "_"), None)
            if handler is None:
                raise Refused(501, "notImplemented", f"the laboratory does not know {method['id']}")
            # A repeated change with the same requestId is the same operation; nothing is done twice.
            once = (verb, path, query.get("requestId"))
            if once[2] and once in self.known_requests:
                return dict(self.operations[self.known_requests[once]][0])
            if fault and fault.operation:
                return self._operation(values, f"{URL}{path}", method["id"], lambda: None, fault.operation)
            result = handler(values, query, copy.deepcopy(body), f"{URL}{path}")
            if once[2]:
                self.known_requests[once] = result["name"]
            if fault and fault.done:
                fault.refuse()
            return result

    def _known_project(self, method, values):
        if values["project"] not in (self.project, IMAGES):
            raise Refused(404, "notFound", f"The resource 'projects/{values['project']}' was not found")
        if values["project"] == IMAGES and not method.startswith("compute.images."):
            raise Refused(403, "forbidden", f"Required permission for 'projects/{IMAGES}'")
        if "zone" in values and values["zone"] not in self.zones:
            raise Refused(400, "invalid", f"Invalid value for field 'zone': '{values['zone']}'. Unknown zone.")

    def _number(self):
        self.counter += 1
        return self.counter

    def _operation(self, values, target, kind, effect, error=None):
        number = self._number()
        scope = f"regions/{values['region']}" if "region" in values else "global"
        scope = f"zones/{values['zone']}" if "zone" in values else scope
        operation = {
            "kind": "compute#operation",
            "id": str(number),
            "name": f"operation-{number}",
            "operationType": kind.rsplit(".", 1)[-1],
            "targetLink": target,
            "status": "RUNNING",
            "progress": 0,
            "selfLink": f"{URL}projects/{self.project}/{scope}/operations/operation-{number}",
        }
        if "zone" in values:
            operation["zone"] = f"{URL}projects/{self.project}/zones/{values['zone']}"
        self.operations[operation["name"]] = [operation, self.polls, effect, error]
        return dict(operation)

    def _poll(self, name):
        if name not in self.operations:
            raise Refused(404, "notFound", f"operation '{name}' was not found")
        entry = self.operations[name]
        operation, left, effect, error = entry
        entry[1] -= 1
        if operation["status"] != "DONE" and left <= 1:
            operation.update(status="DONE", progress=100)
            if error:
                operation.update(error={"errors": [error]}, httpErrorStatusCode=400, httpErrorMessage="BAD REQUEST")
            else:
                effect()
        return operation

    def _pass_time(self, target=""):
        """Advance the operations of a target, as they do on Google Cloud when nobody polls them."""
        for name, (operation, *_) in list(self.operations.items()):
            if operation["status"] != "DONE" and target in operation["targetLink"]:
                self._poll(name)

    def zoneOperations_get(self, values, query, body, url):
        return self._poll(values["operation"])

    globalOperations_get = regionOperations_get = zoneOperations_get

    def _page(self, items, query):
        start = int(query.get("pageToken", "0"))
        page = items[start : start + self.page_size]
        more = {"nextPageToken": str(start + self.page_size)} if start + self.page_size < len(items) else {}
        return page, more

    # --- the project

    def projects_get(self, values, query, body, url):
        usage = {"GPUS_ALL_REGIONS": sum(self._gpus(one) for one in self.instances.values())}
        quotas = [
            {"metric": metric, "limit": float(limit), "usage": float(usage.get(metric, 0))}
            for metric, limit in self.project_quotas.items()
        ]
        return {"kind": "compute#project", "name": self.project, "quotas": quotas, "selfLink": url}

    @staticmethod
    def _gpus(instance, kind=""):
        on = instance["status"] != "TERMINATED"
        gpus = [one for one in instance.get("guestAccelerators", []) if one["acceleratorType"].endswith(kind)]
        return sum(one["acceleratorCount"] for one in gpus) if on else 0

    @staticmethod
    def _cpus(instance):
        kind = instance["machineType"].rsplit("/", 1)[-1]
        return MACHINE_TYPES.get(kind, (0, 0))[1] if instance["status"] != "TERMINATED" else 0

    def regions_get(self, values, query, body, url):
        region = values["region"]
        if region not in {zone.rsplit("-", 1)[0] for zone in self.zones}:
            raise Refused(404, "notFound", f"The resource 'projects/{self.project}/regions/{region}' was not found")
        here = [one for (zone, _), one in self.instances.items() if zone.startswith(region)]
        disks = [one for (zone, _), one in self.disks.items() if zone.startswith(region)]
        standard = [one for one in disks if one.get("type", "").endswith("pd-standard")]
        usage = {
            "SSD_TOTAL_GB": sum(int(one["sizeGb"]) for one in disks if one not in standard),
            "DISKS_TOTAL_GB": sum(int(one["sizeGb"]) for one in standard),
            "NVIDIA_L4_GPUS": sum(self._gpus(one, "nvidia-l4") for one in here),
            "NVIDIA_T4_GPUS": sum(self._gpus(one, "nvidia-tesla-t4") for one in here),
            "CPUS": sum(self._cpus(one) for one in here),
            "INSTANCES": len(here),
            "STATIC_ADDRESSES": sum(at == region for at, _ in self.addresses),
            "IN_USE_ADDRESSES": sum(
                "natIP" in access for one in here for access in one["networkInterfaces"][0].get("accessConfigs", [])
            ),
        }
        quotas = [
            {"metric": metric, "limit": float(limit), "usage": float(usage.get(metric, 0))}
            for metric, limit in self.quotas.items()
        ]
        return {"kind": "compute#region", "name": region, "quotas": quotas, "selfLink": url}

    def zones_list(self, values, query, body, url):
        return self._all("zone", [{"name": zone, "status": "UP"} for zone in self.zones], query)

    def permissions(self, requested):
        return {"permissions": [one for one in requested if one not in self.denied]}

    def acceleratorTypes_get(self, values, query, body, url):
        if values["acceleratorType"] not in self.zones[values["zone"]]:
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        return {"kind": "compute#acceleratorType", "name": values["acceleratorType"], "maximumCardsPerInstance": 8}

    def acceleratorTypes_aggregatedList(self, values, query, body, url):
        items = [
            (f"zones/{zone}", {"acceleratorTypes": [{"name": one} for one in kinds]})
            for zone, kinds in self.zones.items()
        ]
        page, more = self._page(items, query)
        return {"kind": "compute#acceleratorTypeAggregatedList", "items": dict(page), **more}

    def _named(self, kind, resources, name, url):
        """Return one of a few resources that differ only in their names."""
        for one in resources:
            if one["name"] == name:
                return {"kind": f"compute#{kind}", **one}
        raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")

    def _all(self, kind, resources, query):
        page, more = self._page(resources, query)
        return {"kind": f"compute#{kind}List", **({"items": page} if page else {}), **more}

    def _machine_types(self):
        return [
            {
                "name": name,
                "guestCpus": cpus,
                **(
                    {"accelerators": [{"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": count}]}
                    if count
                    else {}
                ),
            }
            for name, (count, cpus) in MACHINE_TYPES.items()
        ]

    def machineTypes_get(self, values, query, body, url):
        return self._named("machineType", self._machine_types(), values["machineType"], url)

    def machineTypes_list(self, values, query, body, url):
        return self._all("machineType", self._machine_types(), query)

    def diskTypes_get(self, values, query, body, url):
        return self._named("diskType", [{"name": one} for one in DISK_TYPES], values["diskType"], url)

    def diskTypes_list(self, values, query, body, url):
        return self._all("diskType", [{"name": one} for one in DISK_TYPES], query)

    def networks_get(self, values, query, body, url):
        return self._named("network", [{"name": one} for one in self.networks], values["network"], url)

    def networks_list(self, values, query, body, url):
        return self._all("network", [{"name": one} for one in self.networks], query)

    def subnetworks_get(self, values, query, body, url):
        return self._named("subnetwork", [{"name": one} for one in self.networks], values["subnetwork"], url)

    def subnetworks_list(self, values, query, body, url):
        return self._all("subnetwork", [{"name": one} for one in self.networks], query)

    def images_getFromFamily(self, values, query, body, url):
        if (values["project"], values["family"]) != (IMAGES, FAMILY):
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        return {
            "kind": "compute#image",
            "name": f"{FAMILY}-v20261101",
            "family": FAMILY,
            "architecture": "X86_64",
            "diskSizeGb": "30",
            "status": "READY",
            "selfLink": f"{URL}projects/{IMAGES}/global/images/{FAMILY}-v20261101",
        }

    def images_get(self, values, query, body, url):
        image = self.images_getFromFamily({"project": IMAGES, "family": FAMILY}, {}, None, url)
        if values["image"] != image["name"]:
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        return image

    # --- firewall rules

    def _firewall(self, name):
        if name not in self.firewalls:
            raise Refused(
                404, "notFound", f"The resource 'projects/{self.project}/global/firewalls/{name}' was not found"
            )
        return self.firewalls[name]

    def firewalls_list(self, values, query, body, url):
        page, more = self._page(list(self.firewalls.values()), query)
        return {"kind": "compute#firewallList", **({"items": page} if page else {}), **more}

    def firewalls_get(self, values, query, body, url):
        return self._firewall(values["firewall"])

    def firewalls_insert(self, values, query, body, url):
        name = body["name"]
        if name in self.firewalls:
            raise Refused(409, "alreadyExists", f"The resource '{name}' already exists")
        if not body.get("allowed") and not body.get("denied"):
            raise Refused(400, "required", "Required field 'resource.allowed' not specified")
        self._one_family(body)
        rule = {
            "kind": "compute#firewall",
            "id": str(self._number()),
            "direction": "INGRESS",
            "priority": 1000,
            "disabled": False,
            "logConfig": {"enable": False},
            "selfLink": f"{url}/{name}",
            **body,
        }
        return self._operation(values, url, "insert", lambda: self.firewalls.update({name: rule}))

    @staticmethod
    def _one_family(body):
        if len({":" in one for one in body.get("sourceRanges", [])}) > 1:
            raise Refused(400, "invalid", "Firewall source ranges must not mix IPv4 and IPv6.")

    def firewalls_patch(self, values, query, body, url):
        rule = self._firewall(values["firewall"])
        for fixed in ("network", "direction", "name"):
            if fixed in body and body[fixed] != rule[fixed]:
                raise Refused(400, "invalid", f"{fixed} cannot be changed")
        self._one_family(body)

        def effect():
            rule.update(body)
            for name in [one for one, value in rule.items() if value == []]:
                del rule[name]

        return self._operation(values, url, "patch", effect)

    def firewalls_delete(self, values, query, body, url):
        self._firewall(values["firewall"])
        return self._operation(values, url, "delete", lambda: self.firewalls.pop(values["firewall"], None))

    # --- machines

    def _instance(self, values):
        key = (values["zone"], values["instance"])
        if key not in self.instances:
            raise Refused(
                404,
                "notFound",
                f"The resource 'projects/{self.project}/zones/{key[0]}/instances/{key[1]}' was not found",
            )
        return self.instances[key]

    def instances_get(self, values, query, body, url):
        instance = copy.deepcopy(self._instance(values))
        self._pass_time(url)
        return instance

    def instances_aggregatedList(self, values, query, body, url):
        answer = self._aggregated("instances", self.instances, query)
        self._pass_time()
        return answer

    def disks_aggregatedList(self, values, query, body, url):
        return self._aggregated("disks", self.disks, query)

    def _aggregated(self, kind, resources, query):
        """Return a page of an aggregated list, with the API's warning for a scope without items."""
        items = [
            (f"zones/{zone}", copy.deepcopy(one))
            for (zone, _), one in resources.items()
            if zone not in self.unreachable
        ]
        full = {scope for scope, _ in items}
        items += [(f"zones/{zone}", None) for zone in sorted(self.zones) if f"zones/{zone}" not in full]
        page, more = self._page(items, query)
        merged = {}
        for scope, one in page:
            dark = scope.removeprefix("zones/") in self.unreachable
            empty = {"code": "UNREACHABLE" if dark else "NO_RESULTS_ON_PAGE", "message": f"{scope} has nothing to tell"}
            content = merged.setdefault(scope, {} if one else {"warning": empty})
            if one:
                content.setdefault(kind, []).append(one)
        return {"kind": f"compute#{kind[:-1]}AggregatedList", "items": merged, **more}

    def instances_insert(self, values, query, body, url):
        zone, name = values["zone"], body["name"]
        for kind, there in (("instances", self.instances), ("disks", self.disks)):
            if (zone, name) in there:
                raise Refused(
                    409,
                    "alreadyExists",
                    f"The resource 'projects/{self.project}/zones/{zone}/{kind}/{name}' already exists",
                )
        here = f"projects/{self.project}/zones/{zone}/"
        if here not in body["machineType"]:
            raise Refused(400, "invalid", f"Invalid value for field 'machineType': '{body['machineType']}'")
        plan = body.get("scheduling", {})
        if body.get("guestAccelerators") and plan.get("onHostMaintenance") != "TERMINATE":
            raise Refused(400, "invalid", "Instances with guest accelerators do not support live migration.")
        if plan.get("provisioningModel") == "SPOT" and plan.get("automaticRestart"):
            raise Refused(400, "invalid", "Automatic restart is not allowed for spot instances.")
        machine_type = body["machineType"].rsplit("/", 1)[-1]
        brings, series = MACHINE_TYPES.get(machine_type, (0, 0))[0], machine_type.split("-")[0]
        for gpu in body.get("guestAccelerators", []):
            kind = gpu["acceleratorType"].rsplit("/", 1)[-1]
            if not brings and kind not in ATTACHABLE.get(series, ()):
                raise Refused(400, "invalid", f"[{machine_type}, {kind}] features are not compatible.")
            if gpu["acceleratorType"].rsplit("/", 1)[-1] not in self.zones[zone]:
                raise Refused(404, "notFound", f"The resource '{gpu['acceleratorType']}' was not found")
        disk = body["disks"][0]
        image, snapshot = (disk["initializeParams"].get(one, "") for one in ("sourceImage", "sourceSnapshot"))
        if snapshot and snapshot.rsplit("/", 1)[-1] not in self.snapshots:
            raise Refused(404, "notFound", f"The resource '{snapshot}' was not found")
        if not snapshot and not image.endswith(f"{IMAGES}/global/images/family/{FAMILY}"):
            raise Refused(404, "notFound", f"The resource '{image}' was not found")
        origin = {"sourceImage": f"{URL}projects/{IMAGES}/global/images/{FAMILY}-v20261101"}
        origin = {"sourceSnapshot": snapshot} if snapshot else origin
        number = self._number()
        instance = {
            "kind": "compute#instance",
            "id": str(number),
            **body,
            "zone": f"{URL}projects/{self.project}/zones/{zone}",
            "selfLink": f"{url}/{name}",
            "status": "PROVISIONING",
            "labelFingerprint": new_fingerprint(),
            "tags": {**body.get("tags", {}), "fingerprint": new_fingerprint()},
            "metadata": {**body.get("metadata", {}), "fingerprint": new_fingerprint()},
        }
        if plan.get("provisioningModel") == "SPOT":
            instance["scheduling"] = {**plan, "preemptible": True}
        network = instance["networkInterfaces"][0]
        network.update(name="nic0", networkIP=f"10.178.0.{number % 250 + 2}", fingerprint=new_fingerprint())
        size, kind = disk["initializeParams"]["diskSizeGb"], disk["initializeParams"]["diskType"]
        instance["disks"] = [
            {
                **{key: value for key, value in disk.items() if key != "initializeParams"},
                "index": 0,
                "kind": "compute#attachedDisk",
                "mode": "READ_WRITE",
                "diskSizeGb": size,
                "source": f"{URL}{here}disks/{name}",
            }
        ]

        # It exists from now on, in a transition state; only the operation is not done yet.
        self.instances[zone, name] = instance
        self.disks[zone, name] = {
            "kind": "compute#disk",
            "name": name,
            "sizeGb": size,
            "status": "READY",
            "type": kind,
            "description": disk["initializeParams"].get("description", ""),
            **origin,
            "users": [f"{url}/{name}"],
            "labels": disk["initializeParams"].get("labels", {}),
            "labelFingerprint": new_fingerprint(),
        }
        return self._operation(values, f"{url}/{name}", "insert", lambda: self._power(instance, "on"))

    def _reserved(self):
        return {one["address"] for one in self.addresses.values()}

    def addresses_get(self, values, query, body, url):
        key = (values["region"], values["address"])
        if key not in self.addresses:
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        address = self.addresses[key]
        users = [one["name"] for one in self.instances.values() if self._nat_ip(one) == address["address"]]
        return {**address, "status": "IN_USE" if users else "RESERVED", **({"users": users} if users else {})}

    @staticmethod
    def _nat_ip(instance):
        return next(iter(instance["networkInterfaces"][0].get("accessConfigs", [])), {}).get("natIP")

    def addresses_aggregatedList(self, values, query, body, url):
        items = {}
        for (region, _), one in self.addresses.items():
            items.setdefault(f"regions/{region}", {}).setdefault("addresses", []).append(one)
        return {"kind": "compute#addressAggregatedList", "items": items}

    def addresses_insert(self, values, query, body, url):
        key = (values["region"], body["name"])
        if key in self.addresses:
            raise Refused(409, "alreadyExists", f"The resource '{body['name']}' already exists")
        given = body.get("address")
        if given and given not in {self._nat_ip(one) for one in self.instances.values()}:
            raise Refused(400, "invalid", f"Specified IP address '{given}' is not in use in this project.")
        address = {"kind": "compute#address", "address": f"198.18.0.{self._number() % 250 + 1}", **body}
        self.addresses[key] = address  # the name is taken from now on
        return self._operation(values, url, "insert", lambda: None)

    def addresses_delete(self, values, query, body, url):
        if self.addresses_get(values, query, None, url).get("users"):
            raise Refused(400, "resourceInUseByAnotherResource", "The address resource is already being used")
        key = (values["region"], values["address"])
        return self._operation(values, url, "delete", lambda: self.addresses.pop(key, None))

    def _power(self, instance, state):
        instance["status"] = "RUNNING" if state == "on" else "TERMINATED"
        booted = self.on_power(instance["name"], state) if self.on_power else None
        network = instance["networkInterfaces"][0]
        if booted:
            network["networkIP"] = booted
        for access in network.get("accessConfigs", []):
            # An ephemeral address is lost at power-off and a new one is assigned later; a reserved one stays.
            if access.get("natIP") in self._reserved():
                continue
            access.pop("natIP", None)
            if state == "on":
                access["natIP"] = booted or self.address or f"203.0.113.{self._number() % 250 + 1}"

    def _moving(self, values, url, verb, status, effect):
        """Start a state transition of an instance; until it ends, the instance accepts no further change."""
        instance = self._instance(values)
        self._still(instance)
        instance["status"] = status
        return self._operation(values, url, verb, lambda: effect(instance))

    @staticmethod
    def _still(instance):
        if instance["status"] not in STILL:
            raise Refused(400, "resourceNotReady", f"The resource '{instance['selfLink']}' is not ready")

    def instances_start(self, values, query, body, url):
        target = url.rsplit("/", 1)[0]
        if self._instance(values)["status"] == "RUNNING":
            return self._operation(values, target, "start", lambda: None)
        return self._moving(values, target, "start", "STAGING", lambda instance: self._power(instance, "on"))

    def instances_stop(self, values, query, body, url):
        target = url.rsplit("/", 1)[0]
        if self._instance(values)["status"] == "TERMINATED":
            return self._operation(values, target, "stop", lambda: None)
        return self._moving(values, target, "stop", "STOPPING", lambda instance: self._power(instance, "off"))

    def instances_delete(self, values, query, body, url):
        key = (values["zone"], values["instance"])
        if self._instance(values).get("deletionProtection"):
            raise Refused(400, "invalid", "Resource cannot be deleted if it's protected against deletion.")

        def effect(instance):
            self.instances.pop(key)
            for disk in instance["disks"]:
                at = (values["zone"], disk.get("source", "").rsplit("/", 1)[-1])
                if disk.get("autoDelete"):
                    self.disks.pop(at, None)
                elif at in self.disks:
                    self.disks[at].pop("users", None)
            if self.on_power:
                self.on_power(instance["name"], "gone")

        return self._moving(values, url, "delete", "STOPPING", effect)

    def _only_stopped(self, instance):
        if instance["status"] != "TERMINATED":
            raise Refused(400, "resourceNotReady", f"Instance {instance['name']} must be stopped first.")

    def _fresh(self, given, known):
        if given != known:
            raise Refused(412, "conditionNotMet", "Supplied fingerprint does not match current fingerprint.")

    def instances_setTags(self, values, query, body, url):
        instance = self._instance(values)
        self._fresh(body.get("fingerprint"), instance["tags"]["fingerprint"])
        tags = {"items": body.get("items", []), "fingerprint": new_fingerprint()}
        return self._operation(values, url, "setTags", lambda: instance.update(tags=tags))

    def instances_setLabels(self, values, query, body, url):
        instance = self._instance(values)
        self._fresh(body.get("labelFingerprint"), instance["labelFingerprint"])
        labels = {"labels": body.get("labels", {}), "labelFingerprint": new_fingerprint()}
        return self._operation(values, url, "setLabels", lambda: instance.update(labels))

    def instances_setMetadata(self, values, query, body, url):
        instance = self._instance(values)
        self._fresh(body.get("fingerprint"), instance["metadata"]["fingerprint"])
        metadata = {"items": body.get("items", []), "fingerprint": new_fingerprint()}
        return self._operation(values, url, "setMetadata", lambda: instance.update(metadata=metadata))

    def instances_setScheduling(self, values, query, body, url):
        instance = self._instance(values)
        if not self.schedule_while_running:
            self._only_stopped(instance)
        return self._operation(values, url, "setScheduling", lambda: instance.update(scheduling=body))

    def routers_list(self, values, query, body, url):
        here = [one for region, one in self.routers if region == values["region"]]
        return self._all("router", here, query)

    def instances_setServiceAccount(self, values, query, body, url):
        instance = self._instance(values)
        self._only_stopped(instance)
        accounts = [body] if body.get("email") else []
        return self._operation(values, url, "setServiceAccount", lambda: instance.update(serviceAccounts=accounts))

    def instances_setDeletionProtection(self, values, query, body, url):
        instance = self._instance({**values, "instance": values["resource"]})
        protect = query.get("deletionProtection", "true") == "true"
        return self._operation(values, url, "update", lambda: instance.update(deletionProtection=protect))

    def instances_updateShieldedInstanceConfig(self, values, query, body, url):
        instance = self._instance(values)
        self._only_stopped(instance)
        return self._operation(values, url, "update", lambda: instance.update(shieldedInstanceConfig=body))

    def disks_setLabels(self, values, query, body, url):
        disk = self.disks_get({**values, "disk": values["resource"]}, query, None, url)
        self._fresh(body.get("labelFingerprint"), disk["labelFingerprint"])
        labels = {"labels": body.get("labels", {}), "labelFingerprint": new_fingerprint()}
        return self._operation(values, url, "setLabels", lambda: disk.update(labels))

    # --- Cloud DNS: the records of managed zones

    def dns(self, verb, path, query, body):
        """Answer a request to Cloud DNS, whose paths begin with dns/v1/."""
        with self.lock:
            self.requests.append(f"{verb} {path}")
            method, values = schema("dns.v1").match(verb, path)
            schema("dns.v1").check(method, values, query, body)
            for fault in [one for one in self.faults if one.times and one.method == method["id"]]:
                fault.times -= 1
                fault.refuse()
            zone = values["managedZone"]
            if values["project"] != self.project or zone not in self.dns_zones:
                raise Refused(404, "notFound", f"The 'parameters.managedZone' resource named '{zone}' does not exist.")
            if method["id"] == "dns.managedZones.get":
                return {"kind": "dns#managedZone", "name": zone, "dnsName": self.dns_zones[zone]}
            key = (values["name"], values["type"]) if "name" in values else (body["name"], body["type"])
            if method["id"] == "dns.resourceRecordSets.create":
                if key in self.records:
                    raise Refused(409, "alreadyExists", f"The resource '{key[0]} ({key[1]})' already exists")
                if not key[0].endswith("." + self.dns_zones[zone]):
                    raise Refused(400, "invalid", f"'{key[0]}' is not in zone {self.dns_zones[zone]}")
                self.records[key] = body
                return body
            if key not in self.records:
                raise Refused(404, "notFound", f"The 'parameters.name' resource named '{key[0]}' does not exist.")
            if verb == "PATCH":
                self.records[key].update(body)
            return self.records[key] if verb != "DELETE" else (self.records.pop(key), {})[1]

    # --- schedules and snapshots

    def resourcePolicies_get(self, values, query, body, url):
        key = (values["region"], values["resourcePolicy"])
        if key not in self.policies:
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        return self.policies[key]

    def resourcePolicies_aggregatedList(self, values, query, body, url):
        items = {}
        for (region, _), one in self.policies.items():
            items.setdefault(f"regions/{region}", {}).setdefault("resourcePolicies", []).append(one)
        return {"kind": "compute#resourcePolicyAggregatedList", "items": items}

    def resourcePolicies_insert(self, values, query, body, url):
        key = (values["region"], body["name"])
        if key in self.policies:
            raise Refused(409, "alreadyExists", f"The resource '{body['name']}' already exists")
        daily = body.get("snapshotSchedulePolicy", {}).get("schedule", {}).get("dailySchedule", {})
        if daily and daily["startTime"] not in ("00:00", "04:00", "08:00", "12:00", "16:00", "20:00"):
            raise Refused(400, "invalid", f"Invalid value for field 'startTime': '{daily['startTime']}'")
        policy = {"kind": "compute#resourcePolicy", "status": "READY", "selfLink": f"{url}/{body['name']}", **body}
        return self._operation(values, url, "insert", lambda: self.policies.update({key: policy}))

    def resourcePolicies_delete(self, values, query, body, url):
        policy = self.resourcePolicies_get(values, query, None, url)
        for one in (*self.instances.values(), *self.disks.values()):
            if policy["selfLink"] in one.get("resourcePolicies", []):
                raise Refused(400, "resourceInUseByAnotherResource", f"'{policy['name']}' is used by '{one['name']}'")
        key = (values["region"], values["resourcePolicy"])
        return self._operation(values, url, "delete", lambda: self.policies.pop(key, None))

    def _attach(self, values, body, url, resource):
        found = []
        for named in body["resourcePolicies"]:
            region, _, name = named.split("/")[-3:]
            policy = self.resourcePolicies_get({"region": region, "resourcePolicy": name}, {}, None, url)
            kind = next(one for one in policy if one.endswith("SchedulePolicy"))
            for there in resource.get("resourcePolicies", []):
                if any(kind in one for one in self.policies.values() if one["selfLink"] == there):
                    raise Refused(400, "invalid", f"'{resource['name']}' has a policy of this kind already")
            found.append(policy["selfLink"])
        after = [*resource.get("resourcePolicies", []), *found]
        return self._operation(values, url, "addResourcePolicies", lambda: resource.update(resourcePolicies=after))

    def _detach(self, values, body, url, resource):
        names = [one.rsplit("/", 1)[-1] for one in body["resourcePolicies"]]
        after = [one for one in resource.get("resourcePolicies", []) if one.rsplit("/", 1)[-1] not in names]
        return self._operation(values, url, "removeResourcePolicies", lambda: resource.update(resourcePolicies=after))

    def instances_addResourcePolicies(self, values, query, body, url):
        return self._attach(values, body, url, self._instance(values))

    def instances_removeResourcePolicies(self, values, query, body, url):
        return self._detach(values, body, url, self._instance(values))

    def disks_addResourcePolicies(self, values, query, body, url):
        return self._attach(values, body, url, self.disks_get(values, query, None, url))

    def disks_removeResourcePolicies(self, values, query, body, url):
        return self._detach(values, body, url, self.disks_get(values, query, None, url))

    def disks_createSnapshot(self, values, query, body, url):
        disk = self.disks_get(values, query, None, url)
        if body["name"] in self.snapshots:
            raise Refused(409, "alreadyExists", f"The resource '{body['name']}' already exists")
        snapshot = {"kind": "compute#snapshot", "diskSizeGb": disk["sizeGb"], "status": "READY", **body}
        return self._operation(values, url, "createSnapshot", lambda: self.snapshots.update({body["name"]: snapshot}))

    def snapshots_list(self, values, query, body, url):
        return self._all("snapshot", list(self.snapshots.values()), query)

    def snapshots_get(self, values, query, body, url):
        return self._named("snapshot", self.snapshots.values(), values["snapshot"], url)

    def snapshots_delete(self, values, query, body, url):
        self.snapshots_get(values, query, None, url)
        return self._operation(values, url, "delete", lambda: self.snapshots.pop(values["snapshot"], None))

    def instances_setMachineType(self, values, query, body, url):
        instance = self._instance(values)
        self._only_stopped(instance)
        return self._operation(values, url, "setMachineType", lambda: instance.update(body))

    def instances_setMachineResources(self, values, query, body, url):
        instance = self._instance(values)
        self._only_stopped(instance)
        return self._operation(values, url, "setMachineResources", lambda: instance.update(body))

    def instances_setDiskAutoDelete(self, values, query, body, url):
        disks = {one["deviceName"]: one for one in self._instance(values)["disks"]}
        disk = disks.get(query["deviceName"])
        if disk is None:
            raise Refused(400, "invalid", f"No such device: {query['deviceName']}")
        auto = query["autoDelete"] == "true"
        return self._operation(values, url, "setDiskAutoDelete", lambda: disk.update(autoDelete=auto))

    def instances_addAccessConfig(self, values, query, body, url):
        instance = self._instance(values)
        network = instance["networkInterfaces"][0]
        if network.get("accessConfigs"):
            raise Refused(400, "invalid", "At most one access config currently supported.")
        access = {"natIP": self.address or f"203.0.113.{self._number() % 250 + 1}", **body}
        return self._operation(values, url, "addAccessConfig", lambda: network.update(accessConfigs=[access]))

    def instances_deleteAccessConfig(self, values, query, body, url):
        network = self._instance(values)["networkInterfaces"][0]
        return self._operation(values, url, "deleteAccessConfig", lambda: network.pop("accessConfigs"))

    def disks_get(self, values, query, body, url):
        key = (values["zone"], values["disk"])
        if key not in self.disks:
            raise Refused(404, "notFound", f"The resource '{url.removeprefix(URL)}' was not found")
        return self.disks[key]

    def disks_delete(self, values, query, body, url):
        disk = self.disks_get(values, query, None, url)
        if disk.get("users"):
            raise Refused(
                400, "resourceInUseByAnotherResource", f"The disk resource '{disk['name']}' is already in use"
            )
        return self._operation(values, url, "delete", lambda: self.disks.pop((values["zone"], values["disk"]), None))

    def disks_resize(self, values, query, body, url):
        disk = self.disks_get(values, query, None, url.removesuffix("/resize"))
        if int(body["sizeGb"]) <= int(disk["sizeGb"]):
            raise Refused(400, "invalid", "The new size must be larger than the old one.")
        instance = self.instances[values["zone"], values["disk"]]

        def effect():
            disk.update(body)
            instance["disks"][0]["diskSizeGb"] = body["sizeGb"]

        return self._operation(values, url, "resize", effect)


# --- the wire -----------------------------------------------------------------------------------------------------


def authority(folder):
    """Create a certificate authority and a certificate for Google's hosts below `folder`; return their paths."""
    now = datetime.datetime.now(datetime.timezone.utc)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Laboratory authority")])
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOSTS[0])])

    def certificate(subject, public_key, *extensions):
        builder = x509.CertificateBuilder(ca_name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=7))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256())

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = certificate(
        ca_name, ca_key.public_key(), (x509.BasicConstraints(True, 0), True), (usage, True), (identifier, False)
    )
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    leaf = certificate(own, key.public_key(), (names, False), (x509.BasicConstraints(False, None), True), (by, False))
    folder = Path(folder)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(leaf.public_bytes(pem) + secret)
    return folder / "ca.pem", folder / "server.pem"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_CONNECT(self):
        host = self.path.rpartition(":")[0]
        if host not in HOSTS:
            return self.send_error(403, f"{host} is not part of the laboratory")
        self.send_response(200, "Connection established")
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False
        return None

    def do_GET(self):
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        try:
            if not isinstance(self.connection, ssl.SSLSocket):
                raise Refused(400, "badRequest", "The API speaks TLS only")
            if split.path == "/token" and dict(parse_qsl(text.decode())).get("assertion"):
                # Any service account is accepted.
                self._send(200, {"access_token": self.server.token, "expires_in": 3600, "token_type": "Bearer"})
                return
            if self.headers.get("Authorization") != f"Bearer {self.server.token}":
                raise Refused(401, "authError", "Request had invalid authentication credentials.")
            permissions = re.fullmatch(r"/v1/projects/([^/]+):testIamPermissions", split.path)
            if permissions and self.command == "POST":
                self._send(200, self.server.cloud.permissions(json.loads(text)["permissions"]))
                return
            if split.path.startswith("/dns/v1/") and self.headers.get("Host") == "dns.googleapis.com":
                body = json.loads(text) if text else None
                query = dict(parse_qsl(split.query))
                self._send(200, self.server.cloud.dns(self.command, split.path[1:], query, body))
                return
            if not split.path.startswith("/compute/v1/"):
                raise Refused(404, "notFound", f"{split.path} is not below /compute/v1/")
            body = json.loads(text) if text else None
            path = split.path.removeprefix("/compute/v1/")
            status, answer = 200, self.server.cloud.answer(self.command, path, dict(parse_qsl(split.query)), body)
        except Refused as refused:
            if not refused.status:
                self.close_connection = True
                return
            error = {"message": refused.message, "domain": "global", "reason": refused.reason}
            status = refused.status
            answer = {"error": {"code": refused.status, "message": refused.message, "errors": [error]}}
        self._send(status, answer)

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def _send(self, status, answer):
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


class Server:
    """The listener, a context manager. `environment` has all variables that a client needs."""

    def __init__(self, folder, cloud=None):
        self.cloud = cloud or Cloud()
        self.token = secrets.token_hex(16)
        ca, certificate = authority(folder)
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.cloud, self.http.token = self.cloud, self.token
        self.http.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.http.tls.load_cert_chain(certificate)
        self.environment = {
            "HTTPS_PROXY": f"http://127.0.0.1:{self.http.server_port}",
            "REQUESTS_CA_BUNDLE": str(ca),
            "GCP_ACCESS_TOKEN": self.token,
        }

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.http.shutdown()
        self.http.server_close()
