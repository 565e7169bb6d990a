"""What callers may send to the engine: allowed fields, limited values, and media only inside the request.

All other fields are rejected by name, since some of vLLM's control its scheduling, templates or network, and future
versions may add more. An operator allows more fields with EXTRA_FIELDS.
"""

import json
from collections.abc import Iterator
from typing import Any

from app.callers import Caller
from app.errors import Problem
from app.settings import Settings

MAX_DEPTH = 64  # of a body; real schemas have about a dozen levels
MAX_ENTRIES = 1024  # in a list or mapping of tokens
MAX_STOP_CHARACTERS = 1000

_SAMPLING = {
    *("model", "stream", "stream_options", "user", "seed", "stop", "stop_token_ids", "temperature", "top_p", "top_k"),
    *("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "logit_bias"),
    *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "structured_outputs"),
}
_GENERATION = {
    *("n", "max_tokens", "min_tokens", "logprobs", "response_format", "echo", "add_special_tokens"),
    *("return_tokens_as_token_ids", "thinking_token_budget", "truncate_prompt_tokens"),
}
# OpenAI's clients send these; vLLM ignores them.
_OF_CLIENTS = {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}

FIELDS: dict[str, set[str]] = {
    "/chat/completions": _SAMPLING
    | _GENERATION
    | _OF_CLIENTS
    | {
        *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
        *("reasoning_effort", "include_reasoning", "chat_template_kwargs"),
        *("add_generation_prompt", "continue_final_message"),
    },
    "/completions": _SAMPLING | _GENERATION | {"prompt", "suffix"},
    "/embeddings": {"model", "input", "user", "dimensions", "encoding_format", "truncate_prompt_tokens"},
    "/responses": _SAMPLING
    | _OF_CLIENTS
    | {
        *("input", "instructions", "max_output_tokens", "max_tool_calls", "tools", "tool_choice", "text", "reasoning"),
        *("parallel_tool_calls", "include", "include_reasoning", "top_logprobs", "truncation", "chat_template_kwargs"),
    },
}

_ANSWER_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "thinking_token_budget")
_LOGPROBS = ("logprobs", "top_logprobs")
_SCHEMAS = ("response_format", "structured_outputs", "tools", "text")
_CONVERSATIONS = ("messages", "input")
_EMBEDDED = ("_embeds", "_pil")  # tensors and objects that the engine would deserialize


class Policy:
    """Check request bodies: the fields of each route and the limits of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._extra = set(settings.extra_fields)
        self._choices, self._tokens = settings.max_choices, settings.max_answer_tokens
        self._logprobs, self._stops = settings.max_logprobs, settings.max_stops
        self._schema = settings.max_schema_bytes

    def check(self, path: str, body: dict[str, Any]) -> None:
        """Raise Problem 400 with the first field that this route of vLLM does not allow, or whose value it does not."""
        unknown = [name for name in body if name not in FIELDS[path] and name not in self._extra]
        if unknown:
            raise Problem(400, f"{_shown(unknown[0])} is not a field that this server supports.")
        if too_deep(body, MAX_DEPTH):
            raise Problem(400, f"The body is nested deeper than {MAX_DEPTH} levels.")
        for name in _ANSWER_TOKENS:
            _bounded(name, body.get(name), 0, self._tokens)
        for name in _LOGPROBS:
            _bounded(name, body.get(name), 0, self._logprobs)
        _bounded("n", body.get("n"), 1, self._choices)
        self._check_prompts(body)
        self._check_stops(body.get("stop"))
        for name in ("stop_token_ids", "logit_bias"):
            if isinstance(body.get(name), (list, dict)) and len(body[name]) > MAX_ENTRIES:
                raise Problem(400, f"{name} has {len(body[name])} entries; at most {MAX_ENTRIES} are allowed.")
        for name in _SCHEMAS:
            size = len(json.dumps(body[name])) if isinstance(body.get(name), (list, dict)) else 0
            if size > self._schema:
                raise Problem(400, f"{name} has {size} bytes; at most {self._schema} are allowed.")
        switches = body.get("chat_template_kwargs")
        if switches is not None and "chat_template_kwargs" not in self._extra and not _are_switches(switches):
            raise Problem(400, "chat_template_kwargs only takes true or false values, such as enable_thinking.")
        if body.get("echo") and (body.get("logprobs") or body.get("top_logprobs")):
            raise Problem(400, "echo and logprobs together ask for the prompt's log probabilities; send one of them.")
        options = body.get("stream_options")
        if options is not None and not _are_switches(options):
            raise Problem(400, "stream_options only takes true or false values, such as include_usage.")
        tools = body.get("tools")
        if isinstance(tools, list) and any(isinstance(one, dict) and one.get("type") != "function" for one in tools):
            raise Problem(400, "tools only takes functions; this server runs no built-in tools.")
        for name in _CONVERSATIONS:
            _check_media(body.get(name))

    def _check_prompts(self, body: dict[str, Any]) -> None:
        """Raise Problem 400 if the prompts times the answers for each (n) exceed the limit."""
        prompts = body.get("prompt")
        if isinstance(prompts, list) and not all(isinstance(one, int) for one in prompts):
            answers = len(prompts) * int(_number(body.get("n")) or 1)
            if answers > self._choices:
                raise Problem(400, f"prompt and n ask for {answers} answers; at most {self._choices} are allowed.")

    def _check_stops(self, stop: object) -> None:
        stops = stop if isinstance(stop, list) else [stop]
        if len(stops) > self._stops:
            raise Problem(400, f"stop has {len(stops)} entries; at most {self._stops} are allowed.")
        if any(isinstance(one, str) and len(one) > MAX_STOP_CHARACTERS for one in stops):
            raise Problem(400, f"stop has an entry of more than {MAX_STOP_CHARACTERS} characters.")


def may_name(caller: Caller, model: object) -> None:
    """Raise Problem 404, as OpenAI does, if this caller may not use the model."""
    if caller.models is not None and not (isinstance(model, str) and model in caller.models):
        raise Problem(404, f"The model {_shown(model)} does not exist, or this key may not use it.")


def _are_switches(value: object) -> bool:
    return isinstance(value, dict) and all(one is None or isinstance(one, bool) for one in value.values())


def too_deep(value: object, limit: int) -> bool:
    """Return whether lists and objects are nested deeper than ``limit``. Works level by level, without recursion."""
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> list:
    """Return the lists and objects directly inside a value."""
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, (dict, list))]


def _number(value: object) -> float | None:
    """Return the value as a number; None if it is not one. "4" and 4.0 are numbers, since the engine accepts both."""
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):
        return None


def _bounded(name: str, value: object, least: int, most: int) -> None:
    number = _number(value)
    if number is not None and not least <= number <= most:
        raise Problem(400, f"{name} is {_shown(value)}; from {least} to {most} is allowed.")


def _check_media(conversation: object) -> None:
    """Raise Problem 400 for media that is not in the request: a URL could make the engine query internal hosts."""
    for name, value in _members(conversation):
        if name.endswith("url") and isinstance(value, str) and value[:5].lower() != "data:":
            raise Problem(400, f"{name} must be a data: URL; this server fetches nothing for a caller.")
        # A uuid refers to a picture in the engine's cache, perhaps another caller's.
        if name.endswith(_EMBEDDED) or name == "uuid":
            raise Problem(400, f"{_shown(name)} is not a content part that this server supports.")
        if name == "type" and isinstance(value, str) and value.endswith(_EMBEDDED):
            raise Problem(400, f"{_shown(value)} is not a content part that this server supports.")


def _members(value: object) -> Iterator[tuple[str, object]]:
    """Yield each name and value of all objects in a value, at any depth."""
    waiting = [value]
    while waiting:
        outer = waiting.pop()
        if isinstance(outer, dict):
            yield from outer.items()
        waiting.extend(_inside(outer))


def _shown(value: object) -> str:
    """Return a caller's value, shortened and quoted, for an error message."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
