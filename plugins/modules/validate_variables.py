#!/usr/bin/python
"""Documentation of the action plugin of the same name, which does its work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_variables
short_description: Report all errors in a host's variables at once
description:
  - Templates every variable that is in the argument specs of the named roles, checks its presence and type, and then
    the rules of each role, C(__<role>_rules) in its C(vars/main.yml).
  - A rule with C(kind) checks what a type cannot express, such as C(absolute_path), for its C(variable). The kinds are
    in C(module_utils/role_variables.py). With C(each) it checks that key of each mapping in the list. With C(optional)
    an empty text is allowed. C(places) are names that a mapping must not have, each with the variable to set instead.
    A rule with C(that) and C(fail_msg) is for combinations of variables.
  - A variable that an argument spec marks with C(no_log) is a secret. It must be text as it was written and is never
    shown; neither are users and passwords in addresses.
  - A variable of the inventory that is the default of several roles, such as C(download_mirror), is checked with every
    role and reported once.
  - A secret that cannot be decrypted is reported here instead of failing where it is first used.
  - Runs on the controller. It uses the connection to the host only with O(connect).
author: The llm-server maintainers (@llm-server)
options:
  roles: {description: Names of the host's roles., type: list, elements: str}
  engines:
    description: Entries of the list C(engines); each is validated with the variables of its kind's role.
    type: list
    elements: dict
  engine_groups: {description: Groups of engines of which one serves at a time., type: dict}
  services:
    description: Names that an engine cannot have, besides those of released programs.
    type: list
    elements: str
  connect:
    description: Opens the connection to the host meanwhile, for the next task. It does not matter if that fails.
    type: bool
    default: false
  only: {description: Variables to validate; others may be missing., type: list, elements: str}
  between:
    description: >-
      Name of a variable with rules between roles. Each rule names in C(roles) the roles that the host must have for
      the rule to be checked.
    type: str
  options:
    description: Variables that belong to no role, in the form of the options of an argument spec.
    type: dict
  rules:
    description: Rules with a C(kind) for O(options).
    type: list
    elements: dict
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
"""

EXAMPLES = r"""
- name: Check the variables
  llm.server.validate_variables:
    roles: [vllm, ai_server]
"""

RETURN = r"""
problems: {description: One sentence each., type: list, elements: str, returned: always}
engines:
  description: Engines of the host with all variables of their roles. API keys are among them, so the result is hidden.
  type: list
  elements: dict
  returned: with O(engines)
present:
  description: Those of RV(engines) whose state is present.
  type: list
  elements: dict
  returned: with O(engines)
by_name: {description: "RV(engines) by name, whatever their state.", type: dict, returned: with O(engines)}
"""
