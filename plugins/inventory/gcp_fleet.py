"""Inventory of the machines in gcp_machines, from the Compute API."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gcp_fleet
short_description: The machines of gcp_machines that run on Google Cloud
description:
  - Lists the running instances of the project C(gcp_project) that C(gcp_machines) names, in its zones, if they were
    created by this project or are named by C(gcp_adopt). All are variables of the inventory (C(group_vars/all)) or
    extra variables, so they are written once for playbooks and inventory.
  - The variable C(gcp_not_running) of all hosts is a list of the declared machines that do not run, each with its
    C(name), C(status) (V(absent) if it does not exist), and what it will have (C(groups), C(open_ports),
    C(inventory_dir), C(inventory_file)).
  - Authenticates like the module of the same name; C(gcp_service_account_file) is the key file of a service account.
  - Host variables are C(gcp_external_address), C(gcp_internal_address), C(gcp_zone), C(gcp_machine_type), C(gcp_id),
    C(gcp_tags) (a list), C(gcp_labels) (a dictionary) and C(gcp_open_ports), the ports that the declared firewall rules
    open on it.
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment: [constructed]
requirements: [google-auth, requests]
options:
  plugin: {description: The name of this plugin., type: str, required: true, choices: [llm.server.gcp_fleet]}
"""

EXAMPLES = r"""
plugin: gcp_fleet
groups:
  ai_server: "'ai-server' in gcp_tags"
compose:
  ansible_host: gcp_external_address
"""

from pathlib import Path
from typing import NoReturn

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_native
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible.utils.display import Display
from ansible.utils.vars import combine_vars, merge_hash
from ansible.vars.plugins import get_vars_from_inventory_sources

from ..module_utils.cloud import gcp_declared

display = Display()

# The module gives its parameters the same types, so a range written as text means the same to both.
VARIABLES: dict[str, dict] = {
    "gcp_project": {"type": "str", "required": True},
    "gcp_machines": {"type": "list", "elements": "dict", "required": True},
    "gcp_machine_defaults": {"type": "dict", "default": {}},
    "gcp_fleet_name": {"type": "str", "default": "llm-server"},
    "gcp_adopt": {"type": "list", "elements": "str", "default": []},
    "gcp_firewall_rules": {"type": "list", "elements": "dict", "options": gcp_declared.RULE, "required": True},
    "gcp_open_to_world": {"type": "bool", "required": True},
    "gcp_open_to_world_ports": {"type": "list", "elements": "int", "required": True},
    "gcp_service_account_file": {"type": "path"},
    "gcp_api_tries": {"type": "int", "default": 6},
    "gcp_api_retry_pause": {"type": "float", "default": 1.0},
}


class InventoryModule(BaseInventoryPlugin, Constructable):
    """Lists the declared machines that run; those that do not run are the variable gcp_not_running."""

    NAME = "gcp_fleet"

    def verify_file(self, path: str) -> bool:
        """Return whether a file is one of this plugin: gcp.yml, or a name that ends so."""
        return super().verify_file(path) and path.endswith(("gcp.yml", "gcp.yaml"))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Fill the inventory; end the run with one sentence if that fails."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            self._fill(self._settings(path), str(Path(path).absolute()))
        except AnsibleParserError as error:
            self._end(error.message)
        except Exception as error:
            self._end(f"Google Cloud inventory: {to_native(error)}")

    @staticmethod
    def _end(sentence: str) -> NoReturn:
        """End the run: other plugins would try this file too, and their errors would hide the sentence."""
        display.error(sentence)
        raise SystemExit(1)

    def _settings(self, path: str) -> dict:
        """Return the values of `VARIABLES` for the group all, extra variables over those of the inventory.

        Raises AnsibleParserError if one is missing or of the wrong type.
        """
        known: dict = {}
        # Which of the two stages reads group_vars depends on the setting RUN_VARS_PLUGINS.
        for stage in ("inventory", "task"):
            entities = [self.inventory.groups["all"]]
            known = combine_vars(known, get_vars_from_inventory_sources(self.loader, [path], entities, stage))
        known = self.templar.available_variables = combine_vars(known, self._vars)
        given = {name: self.templar.template(known[name]) for name in VARIABLES if name in known}
        for name, one in VARIABLES.items():
            if one.get("required") and given.get(name) is None:
                raise AnsibleParserError(f"{name} is not set: write it into group_vars/all beside {path}.")
        typed = ArgumentSpecValidator(VARIABLES).validate(given)
        if typed.error_messages:
            raise AnsibleParserError(f"What is declared cannot be used: {'; '.join(typed.error_messages)}")
        return typed.validated_parameters

    def _fill(self, settings: dict, path: str) -> None:
        """Add the machines that run, and the variable gcp_not_running. Raises AnsibleParserError and GcpError."""
        from ..module_utils.cloud.gcp_client import Client, GcpError, credentials_for, project_sentence

        project = settings["gcp_project"]
        if not project:
            raise AnsibleParserError("gcp_project is empty: set it to the ID of your Google Cloud project.")
        credentials = credentials_for(settings["gcp_service_account_file"])
        client = Client(project, credentials, settings["gcp_api_tries"], settings["gcp_api_retry_pause"])
        rules, _, _, _ = gcp_declared.effective_rules(
            settings["gcp_firewall_rules"], settings["gcp_open_to_world"], settings["gcp_open_to_world_ports"]
        )
        machines: dict[str, dict] = {}
        for one in settings["gcp_machines"]:
            machine = merge_hash(settings["gcp_machine_defaults"], one)
            machines[machine.get("name")] = machine
        try:
            found, unreached = client.aggregated("aggregated/instances", "instances")
        except GcpError as error:
            raise GcpError(project_sentence(project, error)) from error
        instances: dict[str, dict] = {}
        for instance in found:
            name, zone = instance["name"], instance["scope"]
            if name not in machines:
                continue
            ours = gcp_declared.made_by(instance, settings["gcp_fleet_name"]) or name in settings["gcp_adopt"]
            if ours and zone in (machines[name].get("zones") or []):
                instances[name] = instance
            elif instance.get("status") == "RUNNING":
                why = f"is in zone {zone}, which gcp_machines does not name" if ours else gcp_declared.origin(instance)
                display.warning(f"{name} in {zone} {why}; it is left out of the inventory.")
        not_running = []
        for name, machine in machines.items():
            if name in instances and instances[name].get("status") == "RUNNING":
                self._add(instances[name], instances[name]["scope"], rules)
                continue
            if name not in instances and set(machine.get("zones") or []) & set(unreached):
                raise GcpError(
                    f"The Compute API cannot reach zone {gcp_declared.listed(unreached)} at present (UNREACHABLE), so "
                    f"it is not known whether {name} runs: try later."
                )
            status = instances[name].get("status") if name in instances else "absent"
            where = {"inventory_dir": str(Path(path).parent), "inventory_file": path}
            not_running.append({"name": name, "status": status, **where, **self._planned(machine, rules)})
        self.inventory.set_variable("all", "gcp_not_running", not_running)

    def _planned(self, machine: dict, rules: list[dict]) -> dict:
        """Return {groups, open_ports} that a machine will have once it runs."""
        tags, labels = machine.get("tags") or [], machine.get("labels") or {}
        labels = {key: str(value) for key, value in labels.items()}
        variables = {**self._vars, "gcp_tags": tags, "gcp_labels": labels}
        groups = [name for name, that in self.get_option("groups").items() if self._compose(that, variables)]
        return {"groups": groups, "open_ports": gcp_declared.open_ports(rules, tags)}

    def _add(self, instance: dict, zone: str, rules: list[dict]) -> None:
        """Add an instance as a host with its variables and groups."""
        tags = (instance.get("tags") or {}).get("items") or []
        external, internal = gcp_declared.addresses(instance)
        variables = {
            "gcp_id": str(instance["id"]),
            "gcp_zone": zone,
            "gcp_machine_type": gcp_declared.last(instance.get("machineType")),
            "gcp_tags": tags,
            "gcp_labels": instance.get("labels") or {},
            "gcp_external_address": external,
            "gcp_internal_address": internal,
            "gcp_open_ports": gcp_declared.open_ports(rules, tags),
        }
        name = instance["name"]
        self.inventory.add_host(name)
        for key, value in variables.items():
            self.inventory.set_variable(name, key, value)
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=True)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=True)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=True)
