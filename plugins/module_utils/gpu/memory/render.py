"""A plan as text for people (a table, a bar of the GPU's memory, and sentences) and as data for programs."""

from __future__ import annotations

import math

from .figures import GIB, MIB, Figure, gib

BAR_WIDTH = 72
LABELS = {
    "weights": "weights",
    "lora": "adapter slots",
    "activation": "activation",
    "overhead": "overhead",
    "cuda_graphs": "CUDA graphs",
    "kv_cache": "KV cache",
    "states": "recurrent states",
    "used_after_start": "in use after start",
}


def as_json(result: dict) -> dict:
    """Return the plan in plain types: sizes in MiB, each figure with value, low, high, origin, note and unit."""
    gpu = result["gpu"]
    services = []
    for service in result["services"]:
        left_out = ("figures", "needed", "used", "asleep", "context", "free_at_start")
        entry = {k: v for k, v in service.items() if k not in left_out}
        if "free_at_start" in service:
            entry["free_at_start_mib"] = math.ceil(service["free_at_start"] / MIB)
        entry.pop("uncorrected_kv_cache", None)
        entry["asleep_mib"] = round(service["asleep"] / MIB)
        entry["used_mib"] = round(service["used"] / MIB)
        entry["figures"] = {name: figure.as_dict() for name, figure in service["figures"].items()}
        services.append(entry)
    return {
        "verdict": result["verdict"],
        "gpu": {
            "name": gpu.name,
            "total_mib": round(gpu.total / MIB),
            "free_mib": round(gpu.free / MIB),
            "note": gpu.note,
        },
        "held_by_others_mib": round(result["held_by_others"] / MIB),
        "used_mib": round(result["used"] / MIB),
        "free_after_mib": round(result["free_after"] / MIB),
        "reasons": result["reasons"],
        "start_order": result["order"],
        "counted": result["counted"],
        "cures": result["cures"],
        "services": services,
    }


def as_metrics(result: dict, only: str | None = None) -> str:
    """Return what each service, or one of them, should hold on its GPU, for node_exporter's textfile collector.

    The label `group` is the service's own name if it has no group: an alert counts the largest of each group.
    """
    planned = [
        (f'group="{s["group"] or s["name"]}", service="{s["name"]}"', s["figures"]["used_after_start"])
        for s in result["services"]
        if "used_after_start" in s["figures"] and only in (None, s["name"])
    ]
    lines = []
    for name, text, value in (
        ("llm_gpu_planned_bytes", "Memory that a service was planned to hold on its GPU.", lambda figure: figure.value),
        ("llm_gpu_planned_max_bytes", "The upper end of what was planned.", lambda figure: figure.most),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"] if planned else []
        # Rounded to MiB: more digits would not be meaningful.
        lines += [f"{name}{{{labels}}} {round(value(figure) / MIB) * MIB}" for labels, figure in planned]
    return "".join(f"{line}\n" for line in lines)


def _range(figure: Figure) -> str:
    if figure.low is None and figure.high is None:
        return ""
    return f"{figure.least / GIB:.2f} .. {figure.most / GIB:.2f}"


def _service_lines(service: dict) -> list[str]:
    head = f"{service['name']}: {service['engine']} {service['version']}".rstrip()
    head += f", {service['model']}" if service["model"] else ""
    lines = [f"{head}: {service['verdict'].upper()}"]
    shown = [(label, service["figures"].get(name)) for name, label in LABELS.items()]
    shown = [(label, figure) for label, figure in shown if figure and (figure.value or label != LABELS["cuda_graphs"])]
    if shown:
        lines.append(f"  {'':<20}{'GiB':>8}  {'range':<18}{'origin':<11}note")
    for label, figure in shown:
        row = f"  {label:<20}{figure.value / GIB:>8.2f}  {_range(figure):<18}{figure.origin:<11}{figure.note}"
        lines.append(row.rstrip())
    figures = service["figures"]
    if service["engine"] == "vllm":
        per_token, tokens = figures["kv_bytes_per_token"].value, figures["kv_tokens"]
        lines.append(
            f"  {per_token:.0f} bytes a token: {tokens.value:.0f} tokens ({tokens.least:.0f} .. {tokens.most:.0f}), "
            f"{service['concurrency']:.2f} requests of {service['max_model_len']} tokens at once"
        )
    elif service["engine"] == "llamacpp":
        lines.append(
            f"  {figures['kv_bytes_per_token'].value:.0f} bytes a token, context {service['max_model_len']}, "
            f"{service['gpu_layers']} layers on the GPU"
        )
    if service["verdict"] == "fits" and service["margin_tokens"]:
        lines.append(f"  margin: {service['margin_tokens']} tokens beyond one request of full length")
    if service["message"]:
        lines.append(f"  the engine would say: {service['message']}")
    lines += [f"  because {reason}" for reason in service["reasons"]]
    lines += [f"  cure: {cure}" for cure in service["cures"]]
    lines += [f"  assumed: {text}" for text in service["assumptions"]]
    return lines


def _runs(service: dict) -> str:
    if not service["runs"]:
        return "does not run"
    return f"runs, alone of group {service['group']}" if service["group"] else "runs"


def bar(result: dict) -> str:
    """Return the GPU's memory as one line of letters and the legend below it; of a group its largest service."""
    total = result["gpu"].total
    parts = [("x", "held by others", result["held_by_others"])]
    for number, service in enumerate(s for s in result["services"] if s["name"] in result["counted"]):
        letter = "ABCDEFGHIJKLMNOPQRSTUVW"[number % 23]
        parts.append((letter, service["name"], service["used"]))
    line = ""
    for letter, _, size in parts:
        line += letter * round(size / total * BAR_WIDTH)
    line = line[:BAR_WIDTH] + "." * (BAR_WIDTH - len(line)) + "]"
    legend = ", ".join(f"{letter} {name} {gib(size)}" for letter, name, size in parts if size >= MIB)
    free = f"free {gib(result['free_after'])}" if result["free_after"] >= 0 else f"over by {gib(-result['free_after'])}"
    return f"[{line}\n {legend}, . {free} of {gib(total)} GiB"


def as_text(result: dict) -> str:
    """Return the complete plan for a terminal."""
    gpu = result["gpu"]
    lines = [f"{gpu.name}: {gib(gpu.total)} GiB, {gib(gpu.free)} GiB free ({gpu.note})", bar(result), ""]
    for service in result["services"]:
        lines += [*_service_lines(service), ""]
    if len(result["services"]) > 1:
        wide = max(len(service["name"]) for service in result["services"])
        for service in result["services"]:
            lines.append(f"{service['name']:<{wide}}  {_runs(service)}")
    lines += [f"note: {reason}" for reason in result["reasons"]]
    lines += [f"cure: {cure}" for cure in result["cures"]]
    lines.append(f"verdict: {result['verdict']}")
    return "\n".join(lines)


def comparison_text(rows: list[dict]) -> str:
    """Return planned and measured figures side by side."""
    lines = [f"{'':<20}{'planned':>12}{'measured':>12}{'difference':>12}  in range"]
    for row in rows:
        scale, unit = (GIB, " GiB") if row["unit"] == "bytes" else (1, "")
        digits = 2 if row["unit"] == "bytes" else 0
        values = [f"{row[key] / scale:.{digits}f}{unit}" for key in ("planned", "measured", "difference")]
        within = "yes" if row["within"] else "no"
        lines.append(f"{row['figure']:<20}{values[0]:>12}{values[1]:>12}{values[2]:>12}  {within}")
    return "\n".join(lines)
