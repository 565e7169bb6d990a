"""Check whether a service serves: each probe returns None, or one sentence that says why not.

A probe is a dictionary with exactly one of the keys ``http``, ``metric``, ``models``, ``completion`` and ``gpu_free``;
its value holds the options below. Instead of ``bearer`` it may have ``bearer_file`` and ``bearer_variable``: the key is
read from that variable in that file when the probe runs, so a stored probe contains no key. Instead of ``password`` it
may have ``password_file``, whose full text is the password.

All URLs are requested directly, never through a proxy: a probe checks this machine or its neighbour, and a proxy's
error page must not count as an answer.
"""

from __future__ import annotations

import base64
import inspect
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ..engines import vllm_api
from ..gpu import nvidia_smi
from ..watch import metrics_page

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(
    url: str, bearer: str | None = None, body: dict | None = None, timeout: float = 5, headers: dict | None = None,
    authorities: str = "",
) -> tuple[int, str]:  # fmt: skip
    """Return ``(status, text)`` of one request; ``authorities`` is a file of CAs to trust, the system's if empty.

    Raises `OSError` whose text is one cause without a stack (connection refused, time-out, TLS, bad URL).
    """
    headers = {"Accept": "*/*", **(headers or {})}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    try:
        request = urllib.request.Request(url, data=data, headers=headers)
        with _opener(authorities).open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except urllib.error.URLError as error:
        raise OSError(_cause(error.reason)) from None
    except HTTPException as error:
        raise OSError(f"no answer in HTTP: {error!r}") from None
    except ValueError as error:
        raise OSError(str(error)) from None
    except (OSError, ssl.SSLError) as error:
        raise OSError(_cause(error)) from None


def _opener(authorities: str) -> urllib.request.OpenerDirector:
    if not authorities:
        return DIRECT
    trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authorities))
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), trusted)


def login(user: str, password: str) -> dict:
    """Return the header with which a user logs in; {} without a user. Source: RFC 7617."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"} if user else {}


def _cause(reason) -> str:
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    if isinstance(reason, (socket.timeout, TimeoutError)):
        return "no answer in time"
    if isinstance(reason, ConnectionResetError):
        return "connection reset"
    return str(reason)


def http(
    url: str, status: int = 200, contains: str | None = None, bearer: str | None = None, timeout: float = 5,
    user: str = "", password: str = "",
):  # fmt: skip
    """The URL answers with ``status`` and, if given, a text that contains ``contains``."""
    seen, text = ask(url, bearer, timeout=timeout, headers=login(user, password))
    if seen != status:
        return f"{url} answered {seen} instead of {status}: {_short(text)}"
    if contains is not None and contains not in text:
        return f"{url} answered {seen} without {contains!r}: {_short(text)}"
    return None


def metric(url: str, series: list[str], timeout: float = 5):
    """The Prometheus page at the URL has all of ``series``: an open port alone proves nothing."""
    seen, text = ask(url, timeout=timeout)
    if seen != 200:
        return f"{url} answered {seen} instead of 200: {_short(text)}"
    present = metrics_page.names(text)
    missing = [name for name in series if name not in present]
    return f"{url} has no series {', '.join(missing)} yet" if missing else None


def models(
    url: str, expected: list[str], bearer: str | None = None, max_model_len: int | None = None, timeout: float = 5
):
    """``<url>/models`` lists exactly ``expected``, the base model before its adapters, with its context length."""
    try:
        listed = vllm_api.fetch(url, bearer or "", timeout)
    except vllm_api.ApiError as error:
        return str(error).rstrip(".")
    base, *adapters = expected
    wrong = vllm_api.describe(listed, vllm_api.difference(listed, base, adapters, max_model_len))
    return f"{vllm_api.models_url(url)}: {wrong}" if wrong else None


def completion(
    url: str, model: str, bearer: str | None = None, prompt: str = "Hello", max_tokens: int = 8, timeout: float = 60
):
    """``model`` completes ``prompt``: an engine can be ready, list its models and still crash at its first request."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    seen, text = ask(f"{url}/completions", bearer, body, timeout=timeout)
    if seen != 200:
        return f"a completion by {model} at {url} answered {seen} instead of 200: {_short(text)}"
    try:
        tokens = json.loads(text)["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError):
        return f"a completion by {model} at {url} answered no completion: {_short(text)}"
    return None if tokens else f"a completion by {model} at {url} produced no token"


def gpu_free(mib: int, gpus: int = 1, timeout: float = nvidia_smi.TIMEOUT_S):
    """Each of the first ``gpus`` GPUs has ``mib`` MiB free; the sentence names who holds the rest, with its unit."""
    try:
        return nvidia_smi.shortfall(nvidia_smi.read(timeout)["gpus"][:gpus], {"minimum_free_mib": mib}) or None
    except nvidia_smi.GpuError as error:
        return str(error).rstrip(".")


# What replaces a secret in a stored probe.
STORED = {
    "bearer": {"bearer_file": {"type": "path"}, "bearer_variable": {"type": "str"}},
    "password": {"password_file": {"type": "path", "no_log": False}},
}
KINDS = {function.__name__: function for function in (http, metric, models, completion, gpu_free)}


def options() -> dict:
    """Return the kinds and their options as part of a module's argument spec.

    Keys and passwords are not options: a probe names the file, and the variable in it, that has them.
    """
    spec = {}
    for kind, probe in KINDS.items():
        of_kind = spec[kind] = {"type": "dict", "options": {}}
        for name, parameter in inspect.signature(probe).parameters.items():
            if name in STORED:
                of_kind["options"].update(STORED[name])
                continue
            what = parameter.annotation.removesuffix(" | None")
            option = {"type": "list", "elements": "str"} if what == "list[str]" else {"type": what}
            if parameter.default is parameter.empty:
                option["required"] = True
            if "tokens" in name:
                option["no_log"] = False  # a number
            of_kind["options"][name] = option
    return spec


def secret(file: str, variable: str) -> str:
    """Return the value of ``variable`` in a file of lines ``NAME=value``, as systemd reads it.

    Raises `OSError` if there is none. The programs of watchdog and idle_stop have the same loop.
    """
    found = None
    for line in Path(file).read_text(errors="replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals and name.strip() == variable:
            value = value.strip()
            quoted = len(value) > 1 and value[0] in "\"'" and value[0] == value[-1]
            found = value[1:-1] if quoted else value
    if found is None:
        raise OSError(f"{file} has no {variable}")
    return found


def awaited(conditions: list[dict], seconds: float) -> str | None:
    """Repeat the probes until all succeed, for up to ``seconds``; return the last failure, or None."""
    begun = time.monotonic()
    while True:
        why = first_failure(conditions)
        waited = time.monotonic() - begun
        if not why or waited >= seconds:
            return why and f"{why} after {waited:.0f} s"
        time.sleep(1)


def first_failure(probes: list[dict], within: float | None = None) -> str | None:
    """Run ``probes`` in order; return the first sentence that says why the service does not serve, or None.

    If ``within`` is given, no request waits longer than that many seconds.
    """
    for probe in probes:
        for kind, options in probe.items():
            if options is None:
                continue
            given = {key: value for key, value in options.items() if value is not None}
            file, variable = given.pop("bearer_file", None), given.pop("bearer_variable", None)
            password_file = given.pop("password_file", None)
            if within is not None:
                usual = inspect.signature(KINDS[kind]).parameters["timeout"].default
                given["timeout"] = min(given.get("timeout", usual), within)
            try:
                if file:
                    given["bearer"] = secret(file, variable)
                if password_file:
                    given["password"] = Path(password_file).read_text()
                failure = KINDS[kind](**given)
            except OSError as error:
                failure = f"{options['url']}: {error}"
            if failure:
                return failure
    return None


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    if not text:
        return "(empty body)"
    return text if len(text) <= limit else text[: limit - 1] + "…"
