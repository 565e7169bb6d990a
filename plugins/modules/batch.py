#!/usr/bin/python
"""Thin module over module_utils.batch and module_utils.doors; the action plugin runs the steps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: batch
short_description: Run several of this collection's modules as one task
description:
  - Compares all steps with the host in one call. If a run would do nothing, the task ends there. Otherwise the steps
    from the first that differs run one after the other, each by its own module, and their names are shown.
  - Each module is compared by its own check mode, and M(llm.server.service_release) by its option C(compare_only).
  - A call costs about 0.2 s before its module does anything, so a run without changes is faster by that for each step.
author: The llm-server maintainers (@llm-server)
options:
  steps:
    description: The steps in their order.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: What the step does; shown while it runs., type: str}
      module:
        description: The module.
        type: str
        choices:
          - application_source
          - checklist
          - engine_list
          - logrotate_file
          - model_files
          - python_environment
          - released_program
          - service_account
          - service_release
          - system_packages
      options: {description: Options of the module., type: dict}
      options_from:
        description: Options, or parts of them, taken from results of earlier steps, as C(links.0.target=NAME.KEY),
          where NAME is a O(steps[].register).
        type: dict
        default: {}
      register: {description: Name of the result in RV(steps)., type: str}
      when: {description: Whether the step belongs to the batch., type: bool, default: true}
      role:
        description: Instead of the other options, the role whose steps belong here, C(__ROLE_steps) in its
          C(vars/main.yml).
        type: str
      vars:
        description: Variables for the steps of O(steps[].role).
        type: dict
        default: {}
      group:
        description:
          - The steps of one group are compared in their order. A difference leaves out only later steps of the group,
            and O(steps[].options_from) sees only results of the group. Groups are compared at the same time.
          - The action sets it for O(compare).
        type: str
        default: ""
  compare:
    description: Instead of O(steps), roles whose C(__ROLE_steps) are only compared, all at the same time; RV(same)
      lists those that need no run. A service without differences is checked by its probes, as in a run.
    type: list
    elements: str
attributes:
  check_mode: {description: Reports what the modules report in check mode; changes nothing., support: full}
  diff_mode: {description: Shows what the modules show., support: full}
"""

EXAMPLES = r"""
- name: Build the environment of a service
  llm.server.batch:
    steps:
      - role: uv
      - name: Create the service's user and directories
        module: service_account
        options: {name: app, user: app, directories: [{path: /opt/app, owner: app, group: app}]}
      - name: Build its environment beside the running one
        module: python_environment
        register: environment
        options: {root: /opt/app/environments, requirements: httpx==0.28.1, runs_as: app}
  register: __app_installed
"""

RETURN = r"""
steps:
  description: The results of the steps with a O(steps[].register), up to the first that failed.
  type: dict
  returned: always
  sample: {environment: {changed: false, path: /opt/app/environments/3f2a9b01c4de}}
changed_steps:
  description: Names of the steps that changed something.
  type: list
  elements: str
  returned: always
compared: {description: The roles that were compared., type: list, elements: str, returned: with O(compare)}
same:
  description: Roles that need no run.
  type: list
  elements: str
  returned: with O(compare)
step: {description: Name of the step that failed., type: str, returned: on failure}
"""

from ..module_utils.batch import MODULES, compare
from ..module_utils.doors.runner import at_once, call, load
from ..module_utils.host_module import HostModule


def main() -> None:
    step = {
        "name": {"type": "str"},
        "module": {"type": "str", "choices": list(MODULES)},
        "options": {"type": "dict"},
        "options_from": {"type": "dict", "default": {}},
        "register": {"type": "str"},
        "when": {"type": "bool", "default": True},
        "role": {"type": "str"},
        "vars": {"type": "dict", "default": {}},
        "group": {"type": "str", "default": ""},
    }
    module = HostModule(
        argument_spec={
            "steps": {"type": "list", "elements": "dict", "default": [], "options": step},
            "compare": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    steps = module.params["steps"]
    # Each module hides its own secrets; here the options are not shown at all.
    shown = {"module_args": {"steps": [each["name"] for each in steps]}}
    load({each["module"] for each in steps})
    module.exit_json(changed=False, compared=compare(steps, module.check_mode, call, at_once), invocation=shown)


if __name__ == "__main__":
    main()
