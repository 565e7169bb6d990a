"""The engines of one host: from the user's list to the variables of the roles that run them.

An entry has a name, a kind, optionally a group of engines of which one runs at a time, and any variable of its kind's
role without the role's prefix. For a variable that is not in an entry, the inventory's ``vllm_*`` or ``llama_cpp_*``
applies.

Plain Python, tested alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from ..addresses import local_url
from ..gpu.memory.options import LLAMA_CPP, VLLM, role_variables
from ..role_variables import ENGINE_NAME, RENAMED

ROLES = {"vllm": "vllm", "llama_cpp": "llama_cpp"}
# The only engine of a host without a list; its unit, paths and port are the role's defaults.
SINGLE = {"name": "vllm", "kind": "vllm"}
# Variable of an engine's key in its /etc/NAME/secrets.env.
KEY_VARIABLES = {"vllm": "VLLM_API_KEY", "llama_cpp": "API_KEY"}
OWN_KEYS = ("name", "kind", "group")
# Names that are shorter in an entry than in the role.
ALIASES = {"vllm": {"revision": "model_revision"}, "llama_cpp": {}}
# Not per engine, or not to be set in an entry: to remove an engine, take it out of the list.
NOT_IN_AN_ENTRY = ("name", "state", "purge", "memory_services", "earlier")


def variable(kind: str, key: str) -> str:
    """Return the role's variable that ``key`` of an entry sets."""
    return f"{ROLES[kind]}_{ALIASES[kind].get(key, key)}"


def overlay(entry: Mapping) -> dict:
    """Return the role's variables that an entry sets, and the engine's name."""
    kind = entry["kind"]
    own = {variable(kind, key): value for key, value in entry.items() if key not in OWN_KEYS}
    return {**own, f"{ROLES[kind]}_name": entry["name"]}


def list_problems(entries: object, options: Mapping[str, Iterable[str]], units: Iterable[str] = ()) -> list[str]:
    """Return one sentence for each error in the list of engines ``entries``.

    ``options`` are the variables of each kind's role, and ``units`` the services that other roles of the host run.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return ["engines is not a list of mappings, each with name, kind and what its role takes; write it so."]
    problems: list[str] = []
    names: set[str] = set()
    for number, entry in enumerate(entries):
        name, kind = entry.get("name"), entry.get("kind")
        at = f"engines: {name}" if isinstance(name, str) else f"engines[{number}]"
        if not isinstance(name, str) or not ENGINE_NAME.fullmatch(name):
            problems.append(
                f"{at} needs a name: a lowercase letter, then at most 30 lowercase letters, digits and dashes."
            )
        elif name in names:
            problems.append(f"{at} appears twice; give each engine a name of its own.")
        elif name in units:
            problems.append(f"{at} has the name of another service of this host; choose another name.")
        if isinstance(name, str):
            names.add(name)
        if kind not in ROLES:
            problems.append(f"{at} has no valid kind ({kind}); set kind to one of {', '.join(ROLES)}.")
            continue
        if "group" in entry and not (isinstance(entry["group"], str) and ENGINE_NAME.fullmatch(entry["group"])):
            problems.append(f"{at} has the group {entry['group']}; it must be a name like an engine's.")
        problems += _unknown_keys(at, kind, entry, set(options[kind]))
    return problems


def _unknown_keys(at: str, kind: str, entry: Mapping, known: set[str]) -> list[str]:
    prefix = f"{ROLES[kind]}_"
    free = {name.removeprefix(prefix) for name in known} - set(NOT_IN_AN_ENTRY)
    words = {*free, *ALIASES[kind], "group"}
    problems = []
    for key in entry:
        if key in OWN_KEYS or key in words:
            continue
        if str(key).removeprefix(prefix) in words:
            problems.append(f"{at} has {key}; in an entry it is {str(key).removeprefix(prefix)}.")
            continue
        if renamed := RENAMED.get(f"{prefix}{str(key).removeprefix(prefix)}"):
            problems.append(f"{at} has {key}, which is now called {renamed.removeprefix(prefix)}; rename it.")
            continue
        near = difflib.get_close_matches(str(key), words, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; it takes the variables of the role {ROLES[kind]}."
        problems.append(f"{at} has {key}, which is not known{hint}")
    return problems


def group_problems(entries: list[Mapping], groups: object) -> list[str]:
    """Return the errors in ``engine_groups``, the options of the groups that ``entries`` name."""
    if not isinstance(groups, Mapping) or not all(isinstance(one, Mapping) for one in groups.values()):
        return ["engine_groups is not a mapping of groups, such as {evaluation: {sleep: 1}}; write it so."]
    problems = []
    used = {entry.get("group") for entry in entries}
    for name, options in groups.items():
        if name not in used:
            problems.append(
                f"engine_groups names {name}, but no engine on this host has that group; correct one of them."
            )
        for key in options:
            if key != "sleep":
                problems.append(f"engine_groups.{name} has {key}, which is not known; it takes sleep.")
        level = options.get("sleep", 0)
        if isinstance(level, bool) or level not in (0, 1, 2):
            problems.append(f"engine_groups.{name}.sleep is {level}; it must be 0 (stop), or vLLM's level 1 or 2.")
        elif level and any(entry.get("kind") != "vllm" for entry in entries if entry.get("group") == name):
            problems.append(f"engine_groups.{name}.sleep is {level}, but only vLLM can sleep; set it to 0.")
    return problems


def resting(entries: list[Mapping], noted: Iterable[str]) -> list[str]:
    """Return the names of the engines that should not serve: of each group all but one.

    The one that serves is the first of the group that is not in ``noted``, the engines that a switch stopped or put to
    sleep.
    """
    serving: dict[str, str] = {}
    for entry in entries:
        group = entry.get("group")
        if group and group not in serving and entry["name"] not in noted:
            serving[group] = entry["name"]
    for entry in entries:  # if a switch was interrupted between the two, the first one serves
        if entry.get("group"):
            serving.setdefault(entry["group"], entry["name"])
    return [e["name"] for e in entries if e.get("group") and serving[e["group"]] != e["name"]]


# Variables that decide about memory. The planner uses the role's names without the prefix.
PLANNED = {
    "vllm": ("version", "engine_arguments", *role_variables(VLLM)),
    "llama_cpp": role_variables(LLAMA_CPP),
}


# Variables that `planned` translates for the planner.
TRANSLATED = {
    "vllm": ("model", "model_path", "model_revision", "root", "lora_adapters"),
    "llama_cpp": ("model", "model_file", "version", "revision", "flash_attention", "kv_cache_type"),
}


def planned_variables(kind: str) -> list[str]:
    """Return the names of the role's variables that decide about an engine's memory."""
    return [f"{ROLES[kind]}_{key}" for key in (*PLANNED[kind], *TRANSLATED[kind])]


def planned(name: str, kind: str, settings: Mapping) -> dict:
    """Return the question to the memory planner about one engine; see the module gpu_memory_plan for its keys.

    ``settings`` are the variables of the role, at least those that decide about memory.
    """

    def own(key: str):
        return settings.get(f"{ROLES[kind]}_{key}")

    result = {"name": name, "unit": f"{name}.service"}
    result |= {key: own(key) for key in PLANNED[kind] if own(key) not in (None, "")}
    if kind == "llama_cpp":
        return result | _planned_llama_cpp(own)
    return result | {
        "engine": "vllm",
        "model": own("model_path") or own("model"),
        "revision": own("model_revision"),
        "hf_home": f"{own('root')}/.cache/huggingface",
        # One slot per adapter, as in the engine's configuration.
        "max_loras": len(own("lora_adapters") or []),
        "adapters": own("lora_adapters") or [],
    }


def _planned_llama_cpp(own) -> dict:
    file = own("model_file")
    return {
        "engine": "llamacpp",
        "model": f"{own('model')}/{file}" if file else own("model"),
        "version": str(own("version") or ""),
        "revision": own("revision") or "",
        "flash_attention": own("flash_attention") != "off",
        "kv_cache_dtype": own("kv_cache_type"),
    }


def with_model(plan: Mapping, prepared: Mapping) -> dict:
    """Return the question with the file on the host, taken from what a role ``prepared``.

    In check mode on a new host the file does not exist yet (it is in ``fetched``): then the hub is asked.
    """
    if prepared.get("model") and "fetched" in prepared and not prepared["fetched"]:
        return {**plan, "model": prepared["model"]}
    return dict(plan)


def planned_together(engines: list[dict], prepared: Mapping) -> list[dict]:
    """Return the questions about the engines that use the GPU, in order; ``prepared`` is what the roles prepared."""
    return [with_model(one["plan"], prepared.get(one["name"]) or {}) for one in engines if _in_plan(one)]


def _in_plan(one: Mapping) -> bool:
    """Return whether an engine is in the plan because it uses the GPU; memory of others counts as used by others."""
    role, settings = ROLES[one["kind"]], one["settings"]
    return settings.get(f"{role}_gpu", True) and settings.get(f"{role}_memory_plan") != "off"


def by_group(entry: Mapping, groups: Mapping) -> dict:
    """Return the role's variables that the options of an engine's group set."""
    level = (groups.get(entry.get("group")) or {}).get("sleep", 0)
    return {"vllm_sleep_mode": True} if level and entry["kind"] == "vllm" else {}


def resolved(entry: Mapping, settings: Mapping) -> dict:
    """Return one engine in the form that the playbooks use.

    It has ``name``, ``kind``, ``group`` ("" without one), ``unit``, ``port``, ``url`` (without a path), ``key``
    (where its key is on the host), ``state`` (present, absent), ``served`` (names of its models), ``memory_plan`` (the
    role's variable), ``settings`` (all variables of the role, with its secrets) and ``plan`` (see `planned`).
    """
    kind, name = entry["kind"], entry["name"]
    address, port = (settings.get(f"{ROLES[kind]}_{key}", "") for key in ("host", "port"))
    return {
        "name": name,
        "kind": kind,
        "group": entry.get("group", ""),
        "unit": f"{name}.service",
        "port": port,
        "key": {"bearer_file": f"/etc/{name}/secrets.env", "bearer_variable": KEY_VARIABLES[kind]},
        "state": settings.get(f"{ROLES[kind]}_state", "present"),
        "url": local_url(address, port),
        "served": _served(kind, settings),
        "memory_plan": settings.get(f"{ROLES[kind]}_memory_plan", ""),
        "settings": dict(settings),
        "plan": planned(name, kind, settings) | _turns(entry, settings),
    }


# GPU memory that a sleeping engine keeps, in MiB; 925 were measured (docs/gpu-memory.md, "Sleep mode").
ASLEEP_MIB = 1024


def _turns(entry: Mapping, settings: Mapping) -> dict:
    """Return the planner's keys for an engine that takes turns with its group."""
    if not entry.get("group"):
        return {}
    return {"group": entry["group"], **({"asleep_mib": ASLEEP_MIB} if settings.get("vllm_sleep_mode") else {})}


def _served(kind: str, settings: Mapping) -> list[str]:
    if kind == "llama_cpp":
        return [settings.get("llama_cpp_alias") or settings.get("llama_cpp_model", "")]
    return [settings.get("vllm_model", ""), *(one["name"] for one in settings.get("vllm_lora_adapters") or [])]


def asked(engines: list[dict], address: str) -> dict:
    """Return the engine on whose port the application's ``address`` is, or the first engine."""
    ports = [str(one["port"]) for one in engines]
    wanted = re.search(r":(\d+)(/|$)", address)
    return engines[ports.index(wanted[1])] if wanted and wanted[1] in ports else engines[0]


def free_at_start(plan: Mapping, name: str) -> dict:
    """Return ``{mib, gpus}``: the free memory that an engine needs on each of so many GPUs; {} if unknown."""
    for service in plan.get("services") or []:
        if service["name"] == name and service.get("runs", True):
            return {"mib": service["free_at_start_mib"], "gpus": service["gpus"]}
    return {}


def before(engines: list[dict], name: str) -> list[dict]:
    """Return the engines of `resolved` that start before ``name``, in order.

    Each has ``unit``, ``url`` that answers 200 once it serves, and ``seconds`` that its start may take.
    """
    earlier = []
    for one in engines:
        if one["name"] == name:
            break
        prefix = ROLES[one["kind"]]
        earlier.append(
            {
                "unit": one["unit"],
                "url": f"{one['url']}/health",
                "seconds": one["settings"].get(f"{prefix}_start_timeout", 600),
            }
        )
    return earlier


def taken(wanted: list[dict], noted: Iterable[Mapping], foreign: Iterable[str]) -> list[str]:
    """Return a sentence for each of ``wanted`` whose name the host uses for something else.

    ``noted`` are the host's engines, ``foreign`` the names of units of its distribution.
    """
    kinds = {one["name"]: one["kind"] for one in noted}
    problems = [f"engines: {name} is the name of a service of this host; choose another name." for name in foreign]
    for one in wanted:
        kind = kinds.get(one["name"], one["kind"])
        if kind != one["kind"]:
            problems.append(
                f"engines: {one['name']} is of the kind {kind} on this host and {one['kind']} in the list; give the "
                "new one another name."
            )
    return problems


def no_longer_listed(present: Iterable[str], noted: Iterable[Mapping], served_before: bool) -> list[dict]:
    """Return the engines, as ``{name, kind}``, that are on the host but no longer in the list.

    ``noted`` is what the last run recorded on the host. Before that record existed the only engine was `SINGLE`;
    ``served_before`` says whether it is there.
    """
    there = [dict(one) for one in noted] or ([dict(SINGLE)] if served_before else [])
    return [{"name": one["name"], "kind": one["kind"]} for one in there if one["name"] not in set(present)]


def recorded(wanted: list[dict], noted: list[dict], removed: list[dict]) -> bool:
    """Return whether ``noted`` is the list ``wanted`` in any order, and no engine has to be ``removed``."""
    return not removed and sorted(noted, key=str) == sorted(wanted, key=str)


OTHERS_MIB = 1000  # of a GPU's memory, before the first engine and next to all of them


def together_checks(engines: list[dict], gpu: bool) -> list[dict]:
    """Return the checklist rows about all serving engines of a host together; see release/checklist.py."""
    if len(engines) < 2:
        return []
    questions = [{**one["key"], "url": f"{one['url']}/v1", "model": one["served"][0]} for one in engines]
    checks = [
        {
            "what": "engines: answer at the same time",
            "kind": "at_once",
            "options": {"questions": questions},
            "cure": "Run playbooks/diagnose.yml: it says which engine does not answer, and why.",
        }
    ]
    memory = {
        "what": "engines: GPU memory",
        "kind": "gpu_memory",
        "options": {"units": [one["unit"] for one in engines], "others_mib": OTHERS_MIB},
        "cure": "Run nvidia-smi: stop what else uses the GPU, or plan again with playbooks/plan.yml.",
    }
    return [*checks, memory] if gpu else checks


def table(engines: list[dict]) -> list[dict]:
    """Return the engines of `resolved` in ai-server's form: name, url, api_key, models, and the group if any."""
    if len(engines) < 2:
        return []
    rows = []
    for one in engines:
        row = {"name": one["name"], "url": f"{one['url']}/v1", "models": one["served"]}
        row["api_key"] = one["settings"][f"{ROLES[one['kind']]}_api_key"]
        rows.append(row | ({"group": one["group"]} if one["group"] else {}))
    return rows
