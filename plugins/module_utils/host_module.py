"""The beginning of every module of this project."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule

UMASK = 0o022


class HostModule(AnsibleModule):
    """An `AnsibleModule` whose files, directories and child processes get their modes from here, not from the login.

    Hardened hosts give 027 or 077 to logins and to sudo, and what root then makes no service can read.
    """

    def __init__(self, *arguments, **options):
        os.umask(UMASK)
        super().__init__(*arguments, **options)
