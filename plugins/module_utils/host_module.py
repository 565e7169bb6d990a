"""Base class of all modules of this project."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule

UMASK = 0o022


class HostModule(AnsibleModule):
    """An `AnsibleModule` that sets the modes of new files, directories and child processes itself.

    Hardened hosts give logins and sudo a umask of 027 or 077, and services cannot read files that root then creates.
    """

    def __init__(self, *arguments, **options):
        os.umask(UMASK)
        super().__init__(*arguments, **options)
