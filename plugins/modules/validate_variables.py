#!/usr/bin/python
"""Documentation of the action plugin of the same name, which does its work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_variables
short_description: Say everything that is wrong with a host's variables, at once
description:
  - Templates every variable that the argument specs of the named roles know, checks its presence and type, and then
    what each role keeps in C(__<role>_rules) of its C(vars/main.yml).
  - A rule with C(kind) says what a type cannot, such as C(absolute_path) of its C(variable); the kinds are in
    C(module_utils/role_variables.py). With C(each) it is asked of that key of each mapping in the list, and with
    C(optional) an empty text will do. C(places) are names that a mapping must not have, each with the variable that is
    its place. A rule with C(that) and C(fail_msg) is for what only shows in combination.
  - What an argument spec marks by C(no_log) is a secret, must be text as it was written, and is never shown; nor are
    users and passwords of addresses.
  - A secret that cannot be decrypted is named here instead of failing where it is first used.
  - Works on the controller; asks nothing of the host.
author: The llm-server maintainers (@llm-server)
options:
  roles: {description: Names of the roles that the host will get., type: list, elements: str}
  between:
    description: >-
      Name of a variable with rules between roles; each names in C(roles) those that the host must have for it to be
      asked.
    type: str
  options:
    description: Variables that no role has, in the form of the options of an argument spec.
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
"""
