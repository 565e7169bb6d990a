"""Makes one plan of a GPU from the user's input: services in start order, budgets, total, verdict."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import permutations

from . import journal
from .checks import adapter_problems
from .engines import Gpu, capability, card, cuda_mib, parse_version
from .errors import PlanError
from .figures import MIB, Figure
from .llamacpp import LlamaService, plan_llamacpp
from .options import ARGUMENTS, ENGINES, SERVICE, VLLM
from .quantization import QUANTIZED_BITS, quantized_bits
from .shape import Shape, shape_from_config, shape_from_gguf
from .sources import cached_snapshot, open_model, read_json
from .tensors import gguf_header, model_tensors
from .verdicts import REFUSED, VERDICTS
from .vllm import plan_vllm
from .vllm_start import VllmService
from .weights import from_tensors

MOST_ORDERED = 4  # up to this many services, every start order is tried
LEAST_SHARE = 0.1  # a smaller share of the GPU is not offered as a cure


def gpu_from(given: dict) -> Gpu:
    """Return the GPU from `name`, `total_mib`, `free_mib` (and `cuda_total_mib`), read by nvidia-smi or given by hand.

    nvidia-smi's total includes what the driver keeps. If only that total is known, the card's CUDA total is looked up.
    With `wsl` both totals are the same.
    """
    name = str(given.get("name") or "")
    known = card(name)
    try:
        total = float(given["total_mib"])
        free = float(given["free_mib"]) if given.get("free_mib") is not None else None
        cuda = float(given["cuda_total_mib"]) if given.get("cuda_total_mib") else 0.0
    except (KeyError, TypeError, ValueError):
        raise PlanError(
            "gpu needs total_mib (and free_mib) as numbers of MiB, such as "
            "{name: L4, total_mib: 23034, free_mib: 22500}."
        ) from None
    if total <= 0 or (free is not None and not 0 <= free <= total):
        shown = f"{given['total_mib']}" + ("" if free is None else f" and free_mib {given['free_mib']}")
        raise PlanError(
            f"gpu: total_mib is {shown}: the total must be above 0, and what is free between 0 and the total."
        )
    note = "measured: used and free of nvidia-smi"
    if _yes(given, "wsl"):
        cuda, note = total, "as given, which is CUDA's figure under WSL2"
    elif not cuda and known and abs(total - known.smi_mib) < 0.02 * known.smi_mib:
        cuda, note = known.cuda_gib * 1024, f"CUDA's figure for {name}"
    elif not cuda:
        cuda, note = cuda_mib(total), "as given, less what the driver keeps"
    # Memory that is not free is used by others or by the driver, whose share is the difference of the two totals.
    free = cuda if free is None else min(cuda, free)
    return Gpu(name or "GPU", int(cuda * MIB), int(free * MIB), capability(name), note)


def plan(services: list[dict], gpu: dict, hub_url: str = "", hub_token: str = "", history_path: str = "") -> dict:
    """Plan all `services` on one GPU, in their start order; of the services of one `group` at most one runs.

    Returns `verdict` (the worst of them), `services` (one plan each with `runs` and `group`, figures as Figure),
    `order` (the names in the order in which to start them), `counted` (those whose memory is held at the same time: of
    a group the largest), `gpu`, `used` and `free_after` (bytes) and `reasons`. Raises PlanError for input that cannot
    be used.
    """
    if not services:
        raise PlanError("services is empty: name at least one service to plan.")
    names = [str(s.get("name") or f"service {n + 1}") for n, s in enumerate(services)]
    if len(set(names)) != len(names):
        raise PlanError(f"services: the names {', '.join(names)} are not unique: give each service its own.")
    card_now = gpu_from(gpu)
    history = journal.read_history(history_path)
    prepared = [
        prepare({**given, "name": name}, hub_url, hub_token, history)
        for name, given in zip(names, services, strict=True)
    ]  # fmt: skip
    plans = in_turn(prepared, card_now)
    order, cures = names, []
    if not all(p["runs"] for p in plans):
        order = best_order(prepared, card_now, plans)
        cures = smaller_shares(prepared, card_now, plans) + one_at_a_time(prepared, card_now)
    used = held(plans)
    return {
        "verdict": max((p["verdict"] for p in plans), key=VERDICTS.index),
        "gpu": card_now,
        "services": plans,
        "order": order,
        "counted": [p["name"] for p in counted(plans)],
        "used": used,
        "held_by_others": card_now.total - card_now.free,
        "free_after": card_now.free - used,
        "reasons": _reasons(plans, names, order),
        "cures": cures,
    }


def in_turn(prepared: list[Prepared], card_now: Gpu) -> list[dict]:
    """Return the plans of services that start one after the other, each with the memory that the earlier ones leave.

    A service of a group does not share the GPU with its group. But it must also be able to start while all other
    services run, because that is the situation when it is switched to.
    """
    plans: list[dict] = []
    for plan_on in prepared:
        plans.append(_planned(plan_on, card_now, plans))
    return [
        _planned(plan_on, card_now, plans) if plan_on.group else one
        for plan_on, one in zip(prepared, plans, strict=True)
    ]


def _planned(plan_on: Prepared, card_now: Gpu, others: list[dict]) -> dict:
    """Return the plan of one service with the memory that `others` leave; those of its own group do not run."""
    mates = [p for p in others if plan_on.group and p["group"] == plan_on.group]
    taken = held([p for p in others if p not in mates]) + sum(p["asleep"] for p in mates if p["name"] != plan_on.name)
    one = plan_on(replace(card_now, free=int(max(0.0, card_now.free - taken))))
    runs = one["verdict"] != REFUSED
    return {**one, "group": plan_on.group, "runs": runs, "asleep": plan_on.asleep if runs else 0}


def counted(plans: list[dict]) -> list[dict]:
    """Return the plans whose memory is held at the same time: of each group its largest."""
    largest: dict[tuple[str, str], dict] = {}
    for one in plans:
        key = (one["group"], "" if one["group"] else one["name"])
        if key not in largest or one["used"] > largest[key]["used"]:
            largest[key] = one
    return list(largest.values())


def held(plans: list[dict]) -> float:
    """Return the bytes held at the same time: of each group its largest service, plus what the others keep asleep."""
    running = counted(plans)
    return sum(p["used"] for p in running) + sum(p["asleep"] for p in plans if p not in running)


def one_at_a_time(prepared: list[Prepared], card_now: Gpu) -> list[str]:
    """Return a cure if services that do not fit together fit one at a time."""
    apart = in_turn([replace(one, group="one at a time") for one in prepared], card_now)
    ours = all(p["runs"] and p["engine"] != "reserved" for p in apart)
    if len(apart) < 2 or not ours:
        return []
    return ["run one at a time: give them one group, for each of them runs alone"]


def smaller_shares(prepared: list[Prepared], card_now: Gpu, plans: list[dict]) -> list[str]:
    """Return by how much one service would have to take less so that all of them run; each cure has been planned."""
    cures = []
    for number, (one, planned) in enumerate(zip(prepared, plans, strict=True)):
        share = math.floor(planned["utilization"] * 20 - 0.01) / 20 if one.takes_a_share and planned["runs"] else 0
        while share >= LEAST_SHARE:
            changed = [*prepared[:number], one.with_share(share), *prepared[number + 1 :]]
            if all(p["runs"] for p in in_turn(changed, card_now)):
                cures.append(f"lower gpu_memory_utilization of {planned['name']} to {share:.2f}: then all of them run")
                break
            share = round(share - 0.05, 2)
    return cures


def best_order(prepared: list[Prepared], card_now: Gpu, plans: list[dict]) -> list[str]:
    """Return the order in which most of the services run; those that do not run come last."""

    def merit(found: list[dict]) -> tuple[int, int]:
        return sum(p["runs"] for p in found), -max(VERDICTS.index(p["verdict"]) for p in found)

    best = plans
    for other in permutations(prepared) if len(prepared) <= MOST_ORDERED else ():
        found = in_turn(list(other), card_now)
        if merit(found) > merit(best):
            best = found
    return [p["name"] for p in sorted(best, key=lambda p: not p["runs"])]


def _reasons(plans: list[dict], names: list[str], order: list[str]) -> list[str]:
    """Return remarks about several services together."""
    if len(plans) < 2:
        return []
    reasons = [f"start in this order: {', '.join(order)}"]
    if order != names:
        reasons[0] += " (more of them run then than in the order given)"
    for group in dict.fromkeys(p["group"] for p in plans if p["group"]):
        members = [p for p in plans if p["group"] == group]
        largest = max(members, key=lambda p: p["used"])
        reasons.append(
            f"one of {', '.join(p['name'] for p in members)} runs at a time (group {group}): "
            f"{largest['name']} takes the most and is counted"
            + (", with what the others keep while they sleep" if any(p["asleep"] for p in members) else "")
        )
    if any(p["engine"] == "vllm" for p in plans):
        reasons.append("start one after the other: engines that start together mis-size each other's KV cache")
    return reasons


def with_arguments(given: dict) -> dict:
    """Return the service with its `engine_arguments` (command-line names) merged in; irrelevant ones are left out."""
    arguments = given.get("engine_arguments") or {}
    told = {str(key).lstrip("-").replace("-", "_"): value for key, value in arguments.items()}
    return {**given, **{key: value for key, value in told.items() if key in VLLM}}


@dataclass(frozen=True)
class Prepared:
    """A service that is planned on a GPU by a call: its model is read once, however often it is planned."""

    planned: Callable[..., dict]
    service: VllmService | None = None
    name: str = ""
    group: str = ""
    asleep: int = 0  # bytes that it keeps while another service of its group runs

    def __call__(self, gpu: Gpu) -> dict:
        return self.planned(gpu) if self.service is None else self.planned(self.service, gpu)

    @property
    def takes_a_share(self) -> bool:
        return self.service is not None and not self.service.kv_cache_memory_bytes

    def with_share(self, share: float) -> Prepared:
        return replace(self, service=replace(self.service, gpu_memory_utilization=share))


def prepare(given: dict, hub_url: str, hub_token: str, history: dict) -> Prepared:
    """Return the service with its model read."""
    given = with_arguments(given)
    engine = str(given.get("engine") or "vllm")
    if engine not in ENGINES:
        raise PlanError(f"{given['name']}: engine {engine} is not known: use one of {', '.join(ENGINES)}.")
    group = str(given.get("group") or "")
    turns = {"name": given["name"], "group": group, "asleep": (_whole(given, "asleep_mib") or 0) * MIB if group else 0}
    if engine == "reserved":
        return Prepared(partial(_reserved, given), **turns)
    if engine == "llamacpp":
        llama = _llama(given, hub_url, hub_token)
        return Prepared(lambda gpu: plan_llamacpp(llama, gpu) | {"fingerprint": _fingerprint(given)}, **turns)
    return Prepared(partial(_planned_vllm, given, history), _vllm(given, hub_url, hub_token), **turns)


def _planned_vllm(given: dict, history: dict, service: VllmService, gpu: Gpu) -> dict:
    """Return the plan with a cold compile cache, corrected by what earlier starts on this host measured.

    The correction is the extra KV memory that a start had compared with the plan of its own kind, cold or warm.
    """
    result = plan_vllm(service, gpu)
    warm = plan_vllm(service, gpu, warm=True)
    more = {
        "fingerprint": _fingerprint(given),
        "uncorrected_kv_cache": {
            "cold": result["figures"]["kv_cache"].value,
            "warm": warm["figures"]["kv_cache"].value,
        },
    }
    known = history.get(journal.history_key(result | more))
    if known:
        compiled = known.get("max_model_len") == result["max_model_len"]
        result = plan_vllm(service, gpu, correction=float(known["kv_cache_difference"]), warm=compiled)
    return result | more


def _fingerprint(given: dict) -> str:
    """Return a short text of the other settings that decide the memory of a start."""
    told = {k: str(given[k]) for k, one in SERVICE.items() if one.fingerprint and given.get(k) is not None}
    told["adapters"] = str(len(given.get("adapters") or []))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _reserved(given: dict, gpu: Gpu) -> dict:
    """Return the plan of memory that another process is going to take: only its amount is known."""
    size = _whole(given, "memory_mib")
    if size is None:
        raise PlanError(f"{given['name']}: engine reserved needs memory_mib, the GPU memory it will take.")
    size *= MIB
    refused = size > gpu.free
    return {
        "name": given["name"], "engine": "reserved", "version": "", "model": "", "reasons": [],
        "verdict": "refused" if refused else "fits",
        "message": f"{size // MIB} MiB are asked for, {gpu.free // MIB} MiB are free" if refused else "",
        "cures": [f"free {(size - gpu.free) // MIB} MiB, or plan it on another GPU"] if refused else [],
        "figures": {"total": Figure(gpu.total, "read")}
        | ({} if refused else {"used_after_start": Figure(size, "read", note="as given")}),
        "max_model_len": 0, "utilization": 0.0, "concurrency": 0.0, "needed": 0, "used": 0 if refused else size,
        "margin_tokens": 0,
        "assumptions": [], "rules": "as given", "fingerprint": "",
    }  # fmt: skip


def _whole(given: dict, key: str) -> int | None:
    """Return the integer under `key`; None if it is missing. Text from the command line (`-e`) counts as a number."""
    value = given.get(key)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise PlanError(f"{given['name']}: {key} is {value!r}, it must be a whole number.") from None


def _share(given: dict, key: str) -> float | None:
    value = given.get(key)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise PlanError(f"{given['name']}: {key} is {value!r}, it must be a number above 0 and at most 1.") from None


def _yes(given: dict, key: str) -> bool:
    return str(given.get(key, "")).lower() in ("true", "yes", "1", "on")


def _text(given: dict, key: str) -> str:
    return str(given.get(key) or "")


_READ = {"str": _text, "int": _whole, "float": _share, "bool": _yes}


def _fields(given: dict, kind: type) -> dict:
    """Return the fields of the service class `kind` that are arguments of the engine and given; 0 means the default.

    A field whose default is None keeps a 0: the plan refuses it, or knows what it means.
    """
    told = {}
    for one in fields(kind):
        if one.name not in ARGUMENTS or given.get(one.name) is None:
            continue
        value = _READ[ARGUMENTS[one.name].type](given, one.name)
        if value or one.default is None or isinstance(value, bool):
            told[one.name] = value
    return told


def _load(given: dict, hub_url: str, hub_token: str, gguf: bool) -> tuple[Shape, dict, object]:
    """Return (shape, tensors, GGUF header) of a service's model; tensors are empty if no weight file is available."""
    model = str(given.get("model") or "")
    if isinstance(given.get("config"), dict):
        return shape_from_config(given["config"], model or given["name"]), {}, None
    if not model:
        raise PlanError(f"{given['name']}: model is not given: a path, or a name on the hub.")
    cache = str(given.get("hf_home") or "")
    source, file = open_model(model, str(given.get("revision") or ""), hub_url, cache, hub_token)
    if file or gguf:
        if not file:
            found = [n for n in source.names() if n.endswith(".gguf") and ("-of-" not in n or "-00001-of-" in n)]
            if len(found) != 1:
                raise PlanError(f"{given['name']}: {source.label} has {len(found)} GGUF files: give the path of one.")
            file = found[0]
        header = gguf_header(source, file)
        return shape_from_gguf(header.metadata, header.tensors, file), {}, header
    shape = shape_from_config(read_json(source, "config.json"), source.label)
    return shape, model_tensors(source), None


def _adapter(given: dict, adapter: dict, tensors: dict, rank: int, hub_url: str, hub_token: str) -> str:
    """Refuse an adapter that does not match; return what had to be assumed if its files are not available."""
    name = f"{given['name']}: adapter {adapter.get('name') or adapter.get('source')}"
    origin = str(adapter.get("path") or adapter.get("source") or "")
    if not origin:
        return ""
    cache, revision = str(given.get("hf_home") or ""), str(adapter.get("revision") or "")
    by_hand = isinstance(given.get("config"), dict)
    if (by_hand or not hub_url) and not origin.startswith("/") and not cached_snapshot(cache, origin, revision):
        return f"adapter {origin} is not at hand: whether it fits is not checked"
    source, _ = open_model(origin, revision, hub_url, cache, hub_token)
    problems = adapter_problems(source, tensors, rank)
    if problems:
        raise PlanError(f"{name}: {problems[0]}")
    return ""


def _vllm(given: dict, hub_url: str, hub_token: str) -> VllmService:
    name = given["name"]
    version = str(given.get("version") or "")
    if not version:
        raise PlanError(f"{name}: version is not given: the arithmetic depends on the engine's version.")
    parse_version(version)
    method = str(given.get("quantization") or "")
    if method and method.lower() not in QUANTIZED_BITS:
        quantized_bits(method)
    shape, tensors, _ = _load(given, hub_url, hub_token, gguf=False)
    told = _fields(given, VllmService)
    adapters = given.get("adapters") or []
    rank = told.get("max_lora_rank", VllmService.max_lora_rank)
    assumptions = [text for text in (_adapter(given, a, tensors, rank, hub_url, hub_token) for a in adapters) if text]
    service = VllmService(
        name=name, version=version, model=str(given.get("model") or name), shape=shape,
        lora=bool(adapters) or _yes(given, "enable_lora"), prefix_caching=_prefix_caching(given),
        capture_size=_whole(given, "max_cudagraph_capture_size") or 0,
        assumptions=assumptions, **told, **_speculation(given, assumptions),
    )  # fmt: skip
    dtype, tp, pp = service.dtype, service.tensor_parallel_size, service.pipeline_parallel_size
    if tensors:
        loaded = dtype if dtype != "auto" else ("float16" if shape.dtype == "float32" else shape.dtype)
        with_bits = shape if not method or shape.quantization else replace(shape, bits=quantized_bits(method))
        service.weights = from_tensors(tensors, with_bits, loaded, method, tp, pp)
    elif _whole(given, "model_size_mib"):
        service.weights = Figure(_whole(given, "model_size_mib") * MIB / (tp * pp), "read", note="size as given")
    return service


def _prefix_caching(given: dict) -> bool | None:
    """Return whether prefix caching is requested; None leaves the engine's default."""
    if _yes(given, "no_enable_prefix_caching"):
        return False
    return None if given.get("enable_prefix_caching") is None else _yes(given, "enable_prefix_caching")


def _speculation(given: dict, assumptions: list[str]) -> dict:
    """Return the drafter's layers and tokens per step of multi-token prediction; another drafter is an assumption."""
    told = given.get("speculative_config")
    if isinstance(told, str) and told:
        try:
            told = json.loads(told)
        except ValueError:
            told = None
    if not told:
        return {}
    if not isinstance(told, dict):
        raise PlanError(f'{given["name"]}: speculative_config is not a JSON object such as {{"method": "mtp"}}.')
    if "mtp" not in str(told.get("method") or ""):
        assumptions.append("the draft model's weights and cache are not planned")
        return {}
    return {"draft_layers": 1, "drafted": _whole({**told, "name": given["name"]}, "num_speculative_tokens") or 1}


def _llama(given: dict, hub_url: str, hub_token: str) -> LlamaService:
    shape, _, header = _load(given, hub_url, hub_token, gguf=True)
    size = _whole(given, "model_size_mib")
    if header is None and not size:
        raise PlanError(f"{given['name']}: model_size_mib is not given: without a GGUF file its size is needed.")
    told = _fields(given, LlamaService)
    layers = _whole(given, "gpu_layers")
    if layers is not None:
        told["gpu_layers"] = layers  # 0 means none
    told.setdefault("context", shape.max_position or LlamaService.context)
    return LlamaService(
        name=given["name"], shape=shape, header=header, file_size=(size or 0) * MIB,
        kv_type=str(given.get("kv_cache_dtype") or LlamaService.kv_type),
        model=str(given.get("model") or given["name"]), version=str(given.get("version") or ""), **told,
    )  # fmt: skip
