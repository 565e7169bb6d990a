"""Filters of the dcgm_exporter role: the release that matches the installed DCGM, and its counters file."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ..module_utils.install import go_program


def exporter_release(dcgm: str, table: list, tag: str = "", commits: dict | None = None) -> dict:
    """Return ``{"tag", "commit"}`` of the exporter for the installed version ``dcgm``, such as "3.3.9".

    ``table`` is data/dcgm/exporters.yml; ``tag`` chooses a release, empty means the newest of DCGM's major version;
    ``commits`` adds or replaces ``{tag: commit}``. Raises an error for an unknown tag, and for one whose library is not
    the installed one.
    """
    commits = {**{row["tag"]: row["commit"] for row in table}, **(commits or {})}
    major = dcgm.partition(".")[0]
    fitting = [row["tag"] for row in table if str(row["dcgm"]) == major]
    if not tag and not fitting:
        raise AnsibleFilterError(
            f"no release of dcgm-exporter is known for DCGM {dcgm}; give dcgm_exporter_tag and its commit in "
            "dcgm_exporter_commits"
        )
    tag = tag or fitting[-1]
    if tag not in commits:
        known = ", ".join(row["tag"] for row in table)
        raise AnsibleFilterError(
            f"dcgm_exporter_tag: {tag} is not known (known: {known}); choose one of these, or add its commit to "
            "dcgm_exporter_commits"
        )
    wanted = tag.partition(".")[0]
    if wanted != major:
        library = "libdcgm.so" if wanted == "3" else f"libdcgm.so.{wanted}"
        raise AnsibleFilterError(
            f"dcgm_exporter_tag: {tag} needs the {library} of DCGM {wanted}.x and DCGM {dcgm} is installed, so it "
            f"would not start; leave dcgm_exporter_tag empty{' or choose ' + fitting[-1] if fitting else ''}"
        )
    return {"tag": tag, "commit": commits[tag]}


def counters_csv(counters: list) -> str:
    """Return the counters file: ``FIELD, type, help`` per line, exactly two commas each."""
    return "".join(f"{row['field']}, {row['type']}, {row['help']}\n" for row in counters)


class FilterModule:
    def filters(self):
        return {
            "counters_csv": counters_csv,
            "exporter_release": exporter_release,
            "go_build_environment": go_program.environment_of,
        }
