"""Filters about the engines of a host; their logic is in module_utils/engines/engines.py."""

from __future__ import annotations

from ..module_utils.addresses import local_url
from ..module_utils.engines import engines

# The series that show an engine's work: counters that grow with it, and gauges that are above zero during it.
# Sources: data/vllm/metrics.yml, data/llama_cpp/metrics.yml.
WORK = {
    "vllm": {
        "counters": ["vllm:prompt_tokens_total", "vllm:generation_tokens_total"],
        "gauges": ["vllm:num_requests_running", "vllm:num_requests_waiting"],
    },
    "llama_cpp": {
        "counters": ["llamacpp:n_decode_total", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"],
        "gauges": ["llamacpp:requests_processing", "llamacpp:requests_deferred"],
    },
}


def planned_variables(kind: str) -> list[str]:
    """Return the names of the variables of the role of ``kind`` that decide about an engine's memory."""
    return engines.planned_variables(kind)


def planned_engine(settings: dict, name: str, kind: str) -> dict:
    """Return the question to gpu_memory_plan about one engine, from the variables of its role."""
    return engines.planned(name, kind, settings)


def free_at_start(plans: dict, name: str) -> dict:
    """Return ``{mib, gpus}``, what the engine ``name`` needs free at its start, from its plan in ``plans``."""
    return engines.free_at_start(plans.get(name) or {}, name)


def engines_before(resolved: list[dict], name: str) -> list[dict]:
    """Return the engines that start before ``name``, in order, as ``{unit, url, seconds}``; see engine_turn.py."""
    return engines.before(resolved, name)


def listed_engine(engine: dict) -> dict:
    """Return ``{name, kind, group}`` of an engine of the list, resolved or not; it contains no secret."""
    return {"name": engine["name"], "kind": engine["kind"], "group": engine.get("group") or None}


def engine_table(resolved: list[dict]) -> list[dict]:
    """Return the table with which ai-server finds the engine of a model; [] if there is only one engine."""
    return engines.table(resolved)


def engine_services(listed: list[dict], defaults: dict) -> list[dict]:
    """Return the services of a host's engines as ``{name, kind, unit}``, for vLLM with ``metrics``, their address.

    ``defaults`` has the inventory's ``host`` and ``port`` of each kind, for entries without them. llama.cpp's metrics
    require a key, so they are left out.
    """
    services = []
    for one in listed:
        entry = {**defaults[one["kind"]], **one}
        service = {"name": one["name"], "kind": one["kind"], "unit": f"{one['name']}.service"}
        if one["kind"] == "vllm":
            service["metrics"] = f"{local_url(entry['host'], entry['port'])}/metrics"
        services.append(service)
    return services


def engine_targets(listed: list[dict], defaults: dict, keys: dict) -> list[dict]:
    """Return ``vmagent_engines`` of a host's engines; ``keys`` has the inventory's key of each kind that needs one."""
    targets = []
    for one in listed:
        entry = {**defaults[one["kind"]], **one}
        target = {"name": one["name"], "kind": one["kind"], "host": entry["host"], "port": entry["port"]}
        key = one.get("api_key") or keys.get(one["kind"]) if one["kind"] in keys else ""
        targets.append(target | ({"key": key} if key else {}))
    return targets


def engine_units(listed: list[dict]) -> list[str]:
    """Return the units of a host's engines."""
    return [f"{one['name']}.service" for one in listed]


def engine_secrets(listed: list[dict]) -> list[str]:
    """Return the secret values of a host's engines, as far as the list has them."""
    return [str(one[key]) for one in listed for key in ("api_key", "huggingface_token", "otlp_headers") if one.get(key)]


def engine_journal_jobs(given: list[dict], listed: list[dict]) -> list[dict]:
    """Return the journal jobs of a log shipper: the given ones, and one for each engine whose unit has none."""
    named = {job.get("unit") for job in given}
    more = [{"job": one["name"], "unit": f"{one['name']}.service"} for one in listed]
    return [*given, *(job for job in more if job["unit"] not in named)]


def _metrics(entry: dict, defaults: dict) -> tuple[str, dict]:
    """Return ``(the address of an engine, the key file for its metrics)``."""
    merged = {**defaults[entry["kind"]], **entry}
    keyed = {"bearer_file": f"/etc/{entry['name']}/secrets.env"} if entry["kind"] == "llama_cpp" else {}
    return local_url(merged["host"], merged["port"]), keyed


def engine_watches(listed: list[dict], defaults: dict) -> list[dict]:
    """Return ``watchdog_services`` of a host's engines; ``defaults`` as for `engine_services`."""
    watches = []
    for one in listed:
        url, keyed = _metrics(one, defaults)
        watch = {"unit": f"{one['name']}.service", "health": f"{url}/health", "metrics": f"{url}/metrics", **keyed}
        if one["kind"] == "llama_cpp":
            watch |= {"pending": WORK["llama_cpp"]["gauges"], "progress": WORK["llama_cpp"]["counters"]}
        watches.append(watch)
    return watches


def engine_sources(listed: list[dict], defaults: dict) -> list[dict]:
    """Return ``idle_stop_sources`` of a host's engines; ``defaults`` as for `engine_services`."""
    sources = []
    for one in listed:
        url, keyed = _metrics(one, defaults)
        sources.append({"url": f"{url}/metrics", **WORK[one["kind"]], **keyed})
    return sources


def engine_load_targets(resolved: list[dict], application: str, key: str, models: list[str]) -> list[dict]:
    """Return ``load_targets`` of the engines that vLLM's own tool can load, which are those of kind vllm.

    ``application`` is the address of the server in front of them, and ``key`` its caller's key; if it is empty, the
    engines are called with their own keys. If ``models`` is not empty, each engine is tested with those that it serves.
    """
    targets = []
    for one in (each for each in resolved if each["kind"] == "vllm"):
        requested = [model for model in one["served"] if model in models] if models and len(resolved) > 1 else models
        if models and not requested:
            continue
        targets.append(
            {
                "name": one["name"],
                "unit": one["unit"],
                "metrics": f"{one['url']}/metrics",
                "url": application or one["url"],
                "key": key if application else one["settings"].get("vllm_api_key", ""),
                "models": requested or one["served"],
            }
        )
    return targets


def together_checks(resolved: list[dict], gpu: bool) -> list[dict]:
    """Return the checklist rows about all serving engines of a host together."""
    return engines.together_checks(resolved, gpu)


def with_model(plan: dict, prepared: dict) -> dict:
    """Return the question to gpu_memory_plan with the host's model file."""
    return engines.with_model(plan, prepared)


def planned_together(resolved: list[dict], prepared: dict) -> list[dict]:
    """Return the questions to gpu_memory_plan about all engines of a host that use its GPU, in order."""
    return engines.planned_together(resolved, prepared)


class FilterModule:
    """The filters by name."""

    def filters(self):
        return {
            "planned_variables": planned_variables,
            "planned_engine": planned_engine,
            "free_at_start": free_at_start,
            "engines_before": engines_before,
            "together_checks": together_checks,
            "engine_table": engine_table,
            "with_model": with_model,
            "planned_together": planned_together,
            "listed_engine": listed_engine,
            "engine_services": engine_services,
            "engine_targets": engine_targets,
            "engine_units": engine_units,
            "engine_secrets": engine_secrets,
            "engine_journal_jobs": engine_journal_jobs,
            "engine_watches": engine_watches,
            "engine_sources": engine_sources,
            "engine_load_targets": engine_load_targets,
        }
