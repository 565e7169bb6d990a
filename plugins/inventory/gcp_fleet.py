"""Inventory of the machines that gcp_machines declares, as the Compute API tells them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gcp_fleet
short_description: The machines of gcp_machines that run on Google Cloud
description:
  - Lists the instances of the project C(gcp_project) that C(gcp_machines) names and that run; both are variables of
    the inventory (C(group_vars/all)) or extra variables, so they are written once for playbooks and inventory.
  - Authenticates like the module of the same name; C(gcp_service_account_file) is the key file of a service account.
  - Host variables are C(gcp_external_address), C(gcp_internal_address), C(gcp_zone), C(gcp_machine_type), C(gcp_id),
    C(gcp_tags) (a list), C(gcp_labels) (a dictionary) and C(gcp_open_ports), the ports that the declared firewall rules
    open on it.
author: The llm-server maintainers
extends_documentation_fragment: [constructed]
requirements: [google-auth, requests]
options:
  plugin: {description: The name of this plugin., type: str, required: true, choices: [gcp_fleet]}
"""

EXAMPLES = r"""
plugin: gcp_fleet
groups:
  ai_server: "'ai-server' in gcp_tags"
compose:
  ansible_host: gcp_external_address
"""

from pathlib import Path

import ansible.module_utils
from ansible.errors import AnsibleParserError
from ansible.module_utils.common.text.converters import to_native
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible.utils.display import Display
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

display = Display()

UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(UTILS)

DEFAULTS = {"gcp_service_account_file": None, "gcp_api_tries": 6, "gcp_api_retry_pause": 1.0}


class InventoryModule(BaseInventoryPlugin, Constructable):
    NAME = "gcp_fleet"

    def verify_file(self, path):
        return super().verify_file(path) and path.endswith(("gcp.yml", "gcp.yaml"))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            self._fill(self._settings(path))
        except AnsibleParserError as error:
            self._end(error.message)
        except Exception as error:
            self._end(f"Google Cloud inventory: {to_native(error)}")

    @staticmethod
    def _end(sentence):
        """End the run: no other plugin reads this file, and their complaints would bury the sentence."""
        display.error(sentence)
        raise SystemExit(1)

    def _settings(self, path):
        """Return the variables that the inventory directory gives to all, extra variables on top."""
        known = dict(DEFAULTS)
        # Which of the two stages reads group_vars depends on the setting RUN_VARS_PLUGINS.
        for stage in ("inventory", "task"):
            entities = [self.inventory.groups["all"]]
            known = combine_vars(known, get_vars_from_inventory_sources(self.loader, [path], entities, stage))
        self.templar.available_variables = combine_vars(known, self._vars)
        names = ("gcp_project", "gcp_machines", "gcp_firewall_rules", "gcp_open_to_world", "gcp_open_to_world_ports")
        settings = {}
        for name in (*names, *DEFAULTS):
            if name not in self.templar.available_variables:
                raise AnsibleParserError(f"{name} is not set: write it into group_vars/all beside {path}.")
            settings[name] = self.templar.template(self.templar.available_variables[name])
        return settings

    def _fill(self, settings):
        from ansible.module_utils import gcp_declared
        from ansible.module_utils.gcp_client import Client, credentials_for

        if not settings["gcp_project"]:
            raise AnsibleParserError("gcp_project is empty: set it to the ID of your Google Cloud project.")
        credentials = credentials_for(settings["gcp_service_account_file"])
        tries, pause = int(settings["gcp_api_tries"]), float(settings["gcp_api_retry_pause"])
        client = Client(settings["gcp_project"], credentials, tries, pause)
        rules = [{"state": "present", "source_ranges": [], **one} for one in settings["gcp_firewall_rules"]]
        rules, _, _, _ = gcp_declared.effective_rules(
            rules, settings["gcp_open_to_world"], settings["gcp_open_to_world_ports"]
        )
        declared = {one["name"] for one in settings["gcp_machines"]}
        for scope, content in client.list("aggregated/instances"):
            for instance in content.get("instances") or []:
                if instance["name"] in declared and instance["status"] == "RUNNING":
                    self._add(instance, gcp_declared.last(scope), rules, gcp_declared)

    def _add(self, instance, zone, rules, gcp_declared):
        tags = (instance.get("tags") or {}).get("items") or []
        external, internal = gcp_declared.addresses(instance)
        told = {
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
        for key, value in told.items():
            self.inventory.set_variable(name, key, value)
        self._set_composite_vars(self.get_option("compose"), told, name, strict=True)
        self._add_host_to_composed_groups(self.get_option("groups"), told, name, strict=True)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), told, name, strict=True)
