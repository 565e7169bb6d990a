"""Write the configuration of an OpenTelemetry Collector that ships logs and, on request, traces.

Jobs have promtail's form: a journal job names a ``unit``, a file job a ``path``. Plain Python.
Sources: READMEs of journaldreceiver, filelogreceiver, filestorage, otlphttpexporter and of stanza's operators, 0.160;
vllm/logging_utils/formatter.py of 0.32 (every line of a message has the full prefix).
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from ..errors import UserError

STATE = "/var/lib/otel_collector"
JOURNALCTL = "/etc/otel_collector/journalctl"
AUTHORIZATION = "OTEL_COLLECTOR_AUTHORIZATION"  # environment variable with the key
STREAM_FIELDS = "host.name,service.name"  # VictoriaLogs makes a stream of each pair; others ignore the header
# Batch size, and how much memory the program may use before it makes its sources wait.
BATCH = {"flush_timeout": "1s", "sizer": "items", "min_size": 500, "max_size": 2000}
MEMORY_MIB, SPIKE_MIB = 256, 64
UNLIMITED = {"enabled": True, "max_elapsed_time": 0}

# A line of vLLM may begin with the process that wrote it, "(EngineCore_DP0 pid=7) ".
PROCESS = r"^(?:\(\S+ pid=\d+\) )?"
ERROR_LINE = r"(?:ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]"
TRACEBACK = r"Traceback \(most recent call last\):"
FURTHER = (
    r"(?:\s+\S|During handling of the above exception|The above exception was the direct cause"
    r"|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Iteration|Group)(?::|\s*$))"
)
# A line that may belong to a multi-line message is held for a moment; every other line is passed on immediately.
HELD = rf"{PROCESS}(?:{ERROR_LINE}|{TRACEBACK}|{FURTHER})"
CONTINUES = rf"{PROCESS}(?:{ERROR_LINE}(?: (?:{TRACEBACK}|{FURTHER})|\s*$)|{FURTHER})"
HELD_FOR = "1s"
LEVEL_OF_LINE = PROCESS + r"(?P<log_level>DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d |:\s)"
LEVEL_OF_PAIRS = r"(?:^|\s)level=\"?(?P<log_level>[A-Za-z]+)"
PRIORITIES = {"fatal": ["0", "1"], "error3": "2", "error": "3", "warn": "4", "info2": "5", "info": "6", "debug": "7"}
LEVELS = {"fatal": ["critical", "panic"], "warn": ["warning"], "info": ["notice"]}
DATED = r"^\d{4}-\d\d-\d\dT"
RFC3339 = "2006-01-02T15:04:05.999999999Z07:00"
# Names of time and message in programs that log JSON.
TIMES, MESSAGES = ("timestamp", "time", "ts"), ("message", "msg")

# Rotated files in both naming schemes of logrotate: they contain what is not read yet. Compressed ones are not read.
ROTATED, PACKED = (".[0-9]", ".[0-9][0-9]", "-[0-9]*"), ("gz", "xz", "zst", "bz2")

DURATION = re.compile(r"(?:\d+[hms])+")
STAGES = ("regex", "json", "labels", "static_labels", "multiline")


def configuration(settings: dict) -> dict:
    """Return the program's configuration.

    ``settings`` has ``journal_jobs``, ``file_jobs``, ``journal_path``, ``begin``, ``host``, ``endpoint``, ``ca_path``,
    ``headers``, ``authorized``, ``queue_size``, ``address``, ``port``, ``health_port``, ``traces_endpoint`` and
    ``traces_port``.
    """
    receivers = {f"journald/{job['job']}": journal_receiver(job, settings) for job in settings["journal_jobs"]}
    receivers |= {f"file_log/{job['job']}": file_receiver(job, settings) for job in settings["file_jobs"]}
    exporters = {"otlp_http/logs": exporter(settings, settings["endpoint"])} if receivers else {}
    pipelines = {}
    processors = ["memory_limiter", "resource"]
    if receivers:
        pipelines["logs"] = {"receivers": list(receivers), "processors": processors, "exporters": ["otlp_http/logs"]}
    if settings["traces_endpoint"]:
        receivers["otlp"] = {"protocols": {"http": {"endpoint": f"127.0.0.1:{settings['traces_port']}"}}}
        exporters["otlp_http/traces"] = exporter(settings | {"authorized": False}, settings["traces_endpoint"])
        pipelines["traces"] = {"receivers": ["otlp"], "processors": processors, "exporters": ["otlp_http/traces"]}
    written = {
        "extensions": {
            "file_storage": {
                "directory": STATE,
                "create_directory": True,
                "timeout": "5s",
                # With fsync, a kill sends hundreds of lines twice.
                "fsync": False,
                "compaction": {"on_start": True, "on_rebound": True, "directory": STATE, "cleanup_on_start": True},
            },
            "health_check": {"endpoint": f"127.0.0.1:{settings['health_port']}"},
        },
        "receivers": receivers,
        "processors": {
            "memory_limiter": {"check_interval": "1s", "limit_mib": MEMORY_MIB, "spike_limit_mib": SPIKE_MIB},
            "resource": {"attributes": [{"key": "host.name", "value": settings["host"], "action": "upsert"}]},
        },
        "exporters": exporters,
        "service": {
            "extensions": ["file_storage", "health_check"],
            "telemetry": {"logs": {"level": "info"}, "metrics": own_metrics(settings)},
            "pipelines": pipelines,
        },
    }
    return literal(written) | {"exporters": {name: literal_but_key(one) for name, one in exporters.items()}}


def own_metrics(settings: dict) -> dict:
    """Return the settings for the program's own page of metrics."""
    place = {"host": settings["address"], "port": settings["port"]}
    return {"level": "normal", "readers": [{"pull": {"exporter": {"prometheus": place}}}]}


def literal(value):
    """Return a value escaped so that the program expands nothing in it."""
    if isinstance(value, dict):
        return {literal(name): literal(one) for name, one in value.items()}
    if isinstance(value, list):
        return [literal(one) for one in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def literal_but_key(one: dict) -> dict:
    """Return an exporter escaped by `literal`, except for the variable that has its key."""
    written = literal(one)
    if "Authorization" in one["headers"]:
        written["headers"]["Authorization"] = f"${{env:{AUTHORIZATION}}}"
    return written


def exporter(settings: dict, endpoint: str) -> dict:
    """Return the exporter for an endpoint that speaks OTLP over HTTP: a queue on disk that makes its sources wait."""
    headers = {"VL-Stream-Fields": STREAM_FIELDS} | settings["headers"]
    if settings["authorized"]:
        headers["Authorization"] = ""
    return {
        "endpoint": endpoint.rstrip("/"),
        **({"tls": {"ca_file": settings["ca_path"]}} if settings["ca_path"] else {}),
        "headers": headers,
        "compression": "gzip",
        "timeout": "10s",
        "retry_on_failure": {**UNLIMITED, "initial_interval": "1s", "max_interval": "10s"},
        "sending_queue": {
            "enabled": True,
            "storage": "file_storage",
            "queue_size": settings["queue_size"],
            "sizer": "items",
            "block_on_overflow": True,
            "num_consumers": 1,
            "batch": dict(BATCH),
        },
    }


def journal_receiver(job: dict, settings: dict) -> dict:
    """Return the receiver of the lines of one unit's processes from the journal."""
    return {
        "directory": settings["journal_path"],
        # Not `units`, which also brings systemd's own lines about the unit.
        "matches": [{"_SYSTEMD_UNIT": job["unit"]}],
        "journalctl_path": JOURNALCTL,
        "priority": "debug",
        "start_at": "beginning",  # of the output of the script at journalctl_path
        "all": True,  # otherwise journalctl leaves out fields longer than 4 KiB
        "convert_message_bytes": True,
        "storage": "file_storage",
        "retry_on_failure": UNLIMITED,
        "operators": [
            *(added("resource", name, text) for name, text in resource_of(job).items()),
            {
                "type": "severity_parser",
                "parse_from": "body.PRIORITY",
                "mapping": PRIORITIES,
                "overwrite_text": True,
                "on_error": "send_quiet",
            },
            moved("body._PID", 'attributes["process.pid"]', "body._PID != nil"),
            moved("body.MESSAGE", "body", "type(body.MESSAGE) == 'string'"),
            *put_together('attributes["process.pid"]'),
            *levels(),
            *stages(job),
            *(job.get("operators") or []),
        ],
    }


def file_receiver(job: dict, settings: dict) -> dict:
    """Return the receiver of the lines of a glob's files, and of files that were rotated out of it."""
    path = job["path"]
    multiline = next((stage["multiline"] for stage in job.get("pipeline_stages") or [] if "multiline" in stage), None)
    begin = moment(settings["begin"])
    source = 'attributes["log.file.path"]'
    old = [{"type": "filter", "expr": f"timestamp.Unix() > 0 && timestamp.Unix() < {begin}"}] if begin else []
    return {
        "include": [path, *(path + ending for ending in ROTATED)],
        "exclude": [f"{path}*.{ending}" for ending in PACKED],
        "start_at": "beginning",
        "storage": "file_storage",
        "include_file_name": False,
        "include_file_path": True,
        "preserve_leading_whitespaces": True,
        "retry_on_failure": UNLIMITED,
        **({"multiline": {"line_start_pattern": multiline["firstline"]}} if multiline else {}),
        "operators": [
            *(added("resource", name, text) for name, text in resource_of(job).items()),
            *([] if multiline else put_together(source)),
            *levels(with_time=True),
            *old,
            *stages(job),
            *(job.get("operators") or []),
        ],
    }


def resource_of(job: dict) -> dict:
    """Return the attributes of every line of a job, in addition to the host's name."""
    unit = job.get("unit")
    service = job.get("service") or (unit.removesuffix(".service") if unit else job["job"])
    fixed = {"service.name": service, "job": job["job"], **({"systemd.unit": unit} if unit else {})}
    labels = {name: str(text) for name, text in (job.get("labels") or {}).items()}
    if "service" in labels:  # as in promtail's file jobs
        labels["service.name"] = labels.pop("service")
    return {**fixed, **labels}


def put_together(source: str) -> list[dict]:
    """Return the operators that join a traceback into one record; ``source`` says which lines belong together."""
    held = f"type(body) == 'string' && body matches {quoted(HELD)}"
    mark = 'attributes["log.part_of"]'
    process = quoted(r"^\(\S+ pid=\d+\) ")
    return [
        # The processes of an engine write into one stream.
        added("attributes", "log.part_of", f"EXPR({source} ?? '')", held),
        {
            "type": "add",
            "field": mark,
            "value": f"EXPR(({source} ?? '') + split(body, ' pid=')[0])",
            "if": f"{held} && body matches {process}",
        },
        {
            "type": "recombine",
            "if": held,
            "combine_field": "body",
            "is_first_entry": f"not (body matches {quoted(CONTINUES)})",
            "source_identifier": mark,
            "overwrite_with": "oldest",
            "force_flush_period": HELD_FOR,
            "max_log_size": "256KiB",
        },
        {"type": "remove", "field": mark, "if": f"{mark} != nil"},
    ]


def levels(with_time: bool = False) -> list[dict]:
    """Return the operators that read a line's severity from JSON or from its text, and in files the time as well."""
    level = "attributes.log_level"
    text = "type(body) == 'string'"
    operators: list[dict] = [
        {
            "type": "json_parser",
            "if": f"{text} && body matches {quoted('^{.*}$')}",
            "parse_to": "attributes",
            "on_error": "send_quiet",
        }
    ]
    for name in TIMES if with_time else ():
        when = f"type(attributes.{name}) == 'string' && attributes.{name} matches {quoted(DATED)}"
        parse = {"type": "time_parser", "parse_from": f"attributes.{name}", "layout_type": "gotime", "layout": RFC3339}
        operators.append({**parse, "if": when, "on_error": "send_quiet"})
        operators.append({"type": "remove", "field": f"attributes.{name}", "if": when})
    operators.append(moved("attributes.level", level, "type(attributes.level) == 'string'"))
    for name in MESSAGES:
        operators.append(moved(f"attributes.{name}", "body", f"type(attributes.{name}) == 'string'"))
    for pattern in (LEVEL_OF_LINE, LEVEL_OF_PAIRS):
        unnamed = quoted(pattern.replace("?P<log_level>", "?:"))
        when = f"{level} == nil && {text} && body matches {unnamed}"
        operators.append({"type": "regex_parser", "regex": pattern, "if": when, "on_error": "send_quiet"})
    raw = f"{level} == nil && {text} && body matches {quoted(PROCESS + TRACEBACK)}"
    grave = {"type": "severity_parser", "parse_from": level, "overwrite_text": True, "mapping": LEVELS}
    return [
        *operators,
        added("attributes", "log_level", "ERROR", raw),
        {**grave, "if": f"{level} != nil", "on_error": "send_quiet"},
        {"type": "remove", "field": level, "if": f"{level} != nil"},
    ]


def stages(job: dict) -> list[dict]:
    """Return promtail's pipeline stages as operators. Raises UserError for a stage without an equivalent."""
    found: list[dict] = []
    for stage in job.get("pipeline_stages") or []:
        ((name, options),) = stage.items()
        options = options or {}
        if name == "regex":
            pattern = options["expression"]
            unnamed = quoted(re.sub("[?]P<[^>]*>", "?:", pattern))
            when = f"type(body) == 'string' && body matches {unnamed}"
            found.append({"type": "regex_parser", "regex": pattern, "if": when, "on_error": "send_quiet"})
        elif name == "static_labels":
            found += [added("resource", label, str(text)) for label, text in options.items()]
        elif name == "multiline" and "unit" in job:
            raise UserError(
                f"job {job['job']}: the stage multiline is for jobs of files; of a unit's lines tracebacks are put "
                "together by themselves"
            )
        elif name not in STAGES:  # json: every line of JSON is read; labels: what was read is kept
            raise UserError(
                f"job {job['job']}: promtail's stage {name} has no counterpart here ({', '.join(STAGES)} have one); "
                "say it in operators of the collector instead"
            )
    return found


def added(where: str, name: str, value: str, when: str = "") -> dict:
    """Return an operator that adds an attribute to a resource or a record."""
    return {"type": "add", "field": f'{where}["{name}"]', "value": value, **({"if": when} if when else {})}


def moved(source: str, target: str, when: str) -> dict:
    """Return an operator that moves a field if a condition holds."""
    return {"type": "move", "from": source, "to": target, "if": when}


def quoted(pattern: str) -> str:
    """Return a regular expression as a text of the operators' expression language."""
    return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'


def begin_problem(value: str) -> str:
    """Return the error in a begin, empty if there is none."""
    if DURATION.fullmatch(value):
        return ""
    try:
        moment(value)
    except ValueError:
        return f"{value!r} is neither a time such as 2026-11-26T20:00:00Z nor a span such as 12h"
    return ""


def moment(value: str) -> int:
    """Return a time in seconds since 1970; 0 for a duration, which counts from the start. Raises ValueError."""
    if DURATION.fullmatch(value):
        return 0
    read = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    if not read.tzinfo:
        raise ValueError(f"{value} has no time zone")
    return int(read.astimezone(timezone.utc).timestamp())


def since(value: str) -> str:
    """Return a begin in the form of journalctl's option ``--since``."""
    return f"-{value}" if DURATION.fullmatch(value) else f"@{moment(value)}"


def begin_script(jobs: list[dict], begin: str) -> str:
    """Return the wrapper script for journalctl: the receiver itself can begin only at an end, not at a time."""
    cases = {job["unit"]: since(job.get("max_age") or begin) for job in reversed(jobs)}
    lines = [
        f'  *" _SYSTEMD_UNIT={unit} "*) exec journalctl --since="{value}" "$@" ;;' for unit, value in cases.items()
    ]
    return "\n".join(
        [
            "#!/bin/sh",
            "# The collector reads the journal by this: of a unit without a cursor it shows what is not too old.",
            'case " $* " in',
            '  *" --after-cursor "*) exec journalctl "$@" ;;',
            *lines,
            "esac",
            'exec journalctl "$@"',
            "",
        ]
    )


def problems(settings: dict) -> list[str]:
    """Return one sentence for each error in the jobs and the begin."""
    found = []
    jobs = settings["journal_jobs"] + settings["file_jobs"]
    for variable, value in [("otel_collector_begin", settings["begin"])] + [
        (f"otel_collector_journal_jobs, {job['job']}: max_age", job["max_age"])
        for job in settings["journal_jobs"] if job.get("max_age")
    ]:  # fmt: skip
        if wrong := begin_problem(str(value)):
            found.append(f"{variable}: {wrong}.")
    for kind in ("journal", "file"):
        names = [job["job"] for job in settings[f"{kind}_jobs"]]
        found += [
            f"otel_collector_{kind}_jobs: {name} occurs twice; give each job a name of its own."
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        found += [
            f"otel_collector_{kind}_jobs: {name!r} must be a name of letters, digits, - and _."
            for name in names if not re.fullmatch(r"[\w-]+", name)
        ]  # fmt: skip
    for job in jobs:
        variable = f"otel_collector_{'journal' if 'unit' in job else 'file'}_jobs"
        try:
            stages(job)
        except UserError as error:
            found.append(f"{variable}: {error}.")
        if not re.fullmatch(r"[\w.@:\\-]+", job.get("unit", "x")):
            found.append(f"{variable}: {job['unit']!r} is no name of a unit.")
    return found
