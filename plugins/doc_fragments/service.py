"""Options that the modules of a service share; their types are in module_utils.release.arguments."""

from __future__ import annotations


class ModuleDocFragment:
    """The name of a service, and its options by subject."""

    DOCUMENTATION = r"""
options:
  name:
    description: Name of the service; its unit is C(<name>.service).
    type: str
    required: true
"""

    START = r"""
options:
  kind:
    description:
      - What runs in the service, such as V(vllm) or V(llama_cpp), if the name does not say it. The cause of a failure
        is looked for among the causes of this kind.
    type: str
  start_timeout:
    description: Seconds until the probes must have answered. It only limits the wait; changing it restarts nothing.
    type: int
    default: 60
"""

    ROTATION = r"""
options:
  drain_command:
    description:
      - Command that takes this host out of rotation, such as at a load balancer. It runs on the controller, after all
        checks and before a serving service is interrupted. If it fails, the service is not touched.
    type: list
    elements: str
    default: []
  restore_command:
    description:
      - Command that puts this host back into rotation. It runs on the controller once the service serves again, also
        after a rollback, and only if the host was taken out. The next run makes up for an interrupted one.
    type: list
    elements: str
    default: []
"""

    ACCOUNT = r"""
options:
  user:
    description:
      - System user of the service, created if it is missing. An existing user is used unchanged.
      - In an option that takes a group, the name of a user means that user's own group, whatever it is called.
    type: str
  groups:
    description:
      - Groups that the process joins in addition to its user's own. The role's variable C(<name>_groups) sets them. A
        group that the host does not have is refused.
    type: list
    elements: str
    default: []
  home:
    description: Home directory named in the user's entry; it is not created.
    type: path
    default: /nonexistent
  directories:
    description: Directories the service needs.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory., type: path, required: true}
      owner: {description: Its owner., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0755"}
      keep: {description: Whether it holds data that outlives the service., type: bool, default: false}
"""

    PROGRAM = r"""
options:
  program:
    description:
      - The released program that the service runs, named as the service. It is installed into
        C(/opt/<name>/<version>) as by M(llm.server.released_program) before anything else is written, and the link
        C(/opt/<name>/current), a part of the release, selects it. Commands that check a file or run a trial use the new
        version where they name the link.
    type: dict
    suboptions:
      version: {description: Its version., type: str, required: true}
      url: {description: The archive (.tar.gz or .zip)., type: str, required: true}
      checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>).", type: str, required: true}
      member:
        description: The program inside the archive, without the archive's top folder; O(name) by default.
        type: str
      ca_path: {description: Certificate authorities to trust for the download., type: path}
"""

    CONTENTS = r"""
options:
  conflicts:
    description:
      - Services that must not run beside this one. If one runs, nothing is changed. In check mode they may run, since
        an earlier task of the same run may be about to remove them.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The other service., type: str, required: true}
      reason: {description: "What would happen, and the cure.", type: str, required: true}
  peers:
    description:
      - Addresses, networks or C(localhost), the only peers with which the service may exchange packets. systemd drops
        all other packets, whatever the process listens on. An empty list means no filter.
      - "Source: systemd.resource-control(5), IPAddressAllow."
    type: list
    elements: str
    default: []
  files:
    description: Files that the service depends on at its start.
    type: list
    elements: dict
    default: []
    suboptions:
      path: &path {description: The file., type: path, required: true}
      content: &content {description: Its full text., type: str, required: true}
      owner: &owner {description: Its owner., type: str, default: root}
      group: &group {description: Its group., type: str, default: root}
      mode: {description: Its mode in octal digits., type: str, default: "0644"}
      validate:
        description: Command that checks the file before it replaces the old one; C(%s) stands for the staged file.
        type: list
        elements: str
      live: &live
        description:
          - The process reads the file again while it runs, through the unit's C(ExecReload) if it has one. Changing,
            adding or removing such a file restarts nothing, and a rollback keeps the current one.
        type: bool
        default: false
  secrets:
    description:
      - Files like O(files), with lines C(NAME=value), whose text appears in no result, diff or log. A release stores
        keyed digests of the values instead of the values. So another value makes another release, and a release that is
        restored gets the current values.
      - A file that a later release no longer has stays until no kept release needs it, a live one until the later
        release serves.
      - With O(secrets[].whole) the text has no names, such as a file that contains only one password.
    type: list
    elements: dict
    default: []
    suboptions:
      path: *path
      content: *content
      owner: *owner
      group: *group
      mode: {description: Its mode in octal digits., type: str, default: "0600"}
      validate:
        description: Like O(files[].validate); the program must not print what it reads.
        type: list
        elements: str
      plain:
        description: Names in the file that are not secrets; a release stores their values and restores them.
        type: list
        elements: str
        default: []
      whole: {description: Whether the full text is one secret., type: bool, default: false}
      live: *live
  links:
    description: Links that change with the release, such as the one that selects the program's version.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The link., type: path, required: true}
      target:
        description: Directory that the link points to. It is removed when no kept release points to it any more.
        type: path
        required: true
  beside:
    description:
      - Programs and environments that this run built for other services, which are started after this one. They are
        kept although no release refers to them yet.
    type: list
    elements: path
    default: []
  inputs:
    description:
      - Named values that the process depends on and that are in none of its files, such as the digest of data that it
        reads when it starts. Another value makes another release and restarts the service.
    type: dict
    default: {}
  unit:
    description: >-
      Sections of the unit as C({section: {directive: value}}), merged over the project's hardened defaults. A list
      repeats the directive; null removes a default. Values are literal: C(%) does not start a specifier.
    type: dict
    default: {}
  timer:
    description:
      - >-
        Sections of the unit C(<name>.timer), like O(unit), such as C({Timer: {OnCalendar: daily}}). The timer starts
        the service, whose type is C(oneshot) then.
      - The timer is enabled instead of the service, and a release counts as serving once its timer is active and
        O(probes) answer. The service is not started outside its time, and a service that runs is left alone. A
        persistent timer makes up for a time that it missed when the host boots, not when its times change.
    type: dict
    default: {}
  schedule_variable:
    description: Variable that sets C(OnCalendar) of O(timer), such as V(backup_schedule). A refusal of a time names it.
    type: str
  limits:
    description:
      - Memory limit and OOM score of the service. A change takes effect without a restart, and a rollback keeps it. A
        limit below the current use is refused.
      - "Source: systemd.exec(5), OOMScoreAdjust, and systemd.resource-control(5), MemoryMax."
    type: dict
    suboptions:
      oom_score_adjust:
        description: How early the OOM killer chooses the service; child processes inherit the value.
        type: int
        required: true
      memory_max:
        description: Maximum memory without swap, in systemd's format. The kernel kills a service that exceeds it.
        type: str
        default: infinity
  trials:
    description:
      - Scripts that must succeed before a release is written. They run in the unit's sandbox, as its user and with its
        variables but without its files of variables. They run only if the service is about to be restarted, and not in
        check mode. The last line that a script prints is the reason of a refusal.
    type: list
    elements: dict
    default: []
    suboptions:
      script: {description: Text of the script., type: str, required: true}
      argv:
        description: Command that runs the script; C(%s) stands for the file with the script.
        type: list
        elements: str
        required: true
  listens:
    description: TCP ports that must be free, or in use by this service, before anything is written.
    type: list
    elements: int
    default: []
  probes:
    description:
      - What must answer, in this order, before the release counts as serving. Each entry is one probe of one kind.
      - C(bearer_file) and C(bearer_variable) name the API key that a probe sends. It is one of the lines C(NAME=value)
        of a file of O(secrets) and is read when the probe runs. So is the password of C(user), named by
        C(password_file), a file with O(secrets[].whole).
    type: list
    elements: dict
    default: []
    suboptions: &probes
      http:
        description: The URL answers.
        type: dict
        suboptions:
          url: &url {description: Address of the request., type: str, required: true}
          bearer_file: &file {description: File with the API key., type: path}
          bearer_variable: &variable {description: Name of the key in that file., type: str}
          timeout: &timeout {description: Seconds to wait for the answer; 5 by default., type: float}
          status: {description: Expected status of the answer; 200 by default., type: int}
          contains: {description: Text that the answer must contain., type: str}
          user: {description: User who logs in., type: str}
          password_file: {description: File that contains only the password., type: path}
      metric:
        description: The URL is a page of Prometheus metrics.
        type: dict
        suboptions:
          url: *url
          timeout: *timeout
          series: {description: Names of series that it must have., type: list, elements: str, required: true}
      models:
        description: An engine lists exactly these models.
        type: dict
        suboptions:
          url: *url
          bearer_file: *file
          bearer_variable: *variable
          timeout: *timeout
          expected:
            description: Names of the models, the base model before its adapters.
            type: list
            elements: str
            required: true
          max_model_len: {description: Context length of the base model in tokens., type: int}
      completion:
        description: An engine completes a prompt.
        type: dict
        suboptions:
          url: *url
          bearer_file: *file
          bearer_variable: *variable
          timeout: {description: Seconds to wait for the answer; 60 by default., type: float}
          model: {description: Name of the model., type: str, required: true}
          prompt: {description: The prompt; Hello by default., type: str}
          max_tokens: {description: Maximum length of the answer in tokens; 8 by default., type: int}
      gpu_free:
        description: GPUs have free memory.
        type: dict
        suboptions:
          mib: {description: Free memory that each GPU must have (MiB)., type: int, required: true}
          gpus: {description: "Number of GPUs, counted from the first; 1 by default.", type: int}
          timeout: {description: Seconds to wait for nvidia-smi., type: float}
  before_start:
    description:
      - Probes that must succeed after the old process has stopped and before the new one starts, such as C(gpu_free).
        If one does not succeed within a minute, nothing is started, and the release before is restored.
    type: list
    elements: dict
    default: []
    suboptions: *probes
"""
