"""Build a complete completion from the events of a stream, as vLLM would have answered without `stream`."""

from typing import Any

# vLLM rejects or omits these in a stream (its protocol.py and serving.py, 0.11 to 0.32).
UNSTREAMABLE = ("prompt_logprobs", "use_beam_search", "best_of", "kv_transfer_params", "ec_transfer_params", "echo")
STREAMED = {"/chat/completions": "chat.completion", "/completions": "text_completion"}
PLAIN = {"index", "delta", "logprobs", "finish_reason"}
INSTEAD = ("tool_calls", "reasoning", "reasoning_content")  # instead of a text
REPLACED = {"role", "id", "type", "name"}  # strings of a delta that come complete; all others come in pieces


def can_stream(path: str, body: dict) -> bool:
    """Return whether the complete answer to this request can be built from a stream."""
    # vLLM rejects stream_options without stream; leave that error to it.
    return path in STREAMED and "stream_options" not in body and not any(map(body.get, UNSTREAMABLE))


class Whole:
    """The answer so far. Raises LookupError, TypeError or AttributeError for an event that is not a chunk."""

    def __init__(self, path: str, model: str) -> None:
        self._fields: dict[str, Any] = {"id": None, "object": STREAMED[path], "created": None, "model": model}
        self._chat = path == "/chat/completions"
        self._choices: dict[int, dict] = {}
        self._seen: set[str] = set()

    def add(self, event: dict) -> None:
        choices = event["choices"]
        for choice in choices:
            if not (choice.keys() <= PLAIN and self._add_plain(choice)):
                self._add_choice(choice)
        if not choices or not event.keys() <= self._seen:  # other fields are the same in each event
            self._seen |= event.keys()
            for name, value in event.items():
                if name not in ("choices", "object") and (value is not None or name not in self._fields):
                    self._fields[name] = value

    def _add_plain(self, choice: dict) -> bool:
        """Add a choice that is only a further piece of text, the usual case; change nothing and return False if not."""
        delta, so_far = choice.get("delta"), self._choices.get(choice.get("index"))
        if so_far is None or not delta or len(delta) > 1 or choice.get("logprobs") or choice.get("finish_reason"):
            return False
        new, before = delta.get("content"), so_far["message"].get("content")
        if not isinstance(new, str) or not isinstance(before, str):
            return False
        so_far["message"]["content"] = before + new
        return True

    def _add_choice(self, choice: dict) -> None:
        index = choice.get("index") or 0
        so_far = self._choices.get(index)
        if so_far is None:
            empty = {"message": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
            so_far = self._choices[index] = {"index": index, **empty, "logprobs": None, "finish_reason": None}
        for name, value in choice.items():
            if name == "delta":
                _add_delta(so_far["message"], value or {})
            elif name == "logprobs":
                if value:
                    so_far["logprobs"] = _joined(so_far["logprobs"], value)
            elif name == "text" or isinstance(value, list):
                so_far[name] = _joined(so_far.get(name), value)
            elif name != "index" and (value is not None or name not in so_far):
                so_far[name] = value

    def reasons(self) -> set[str | None]:
        """Return the finish reasons of the choices; {None} if there are no choices yet."""
        return {choice["finish_reason"] for choice in self._choices.values()} or {None}

    def answer(self) -> dict:
        choices = [self._choices[index] for index in sorted(self._choices)]
        for message in (choice["message"] for choice in choices if self._chat):
            # vLLM starts a stream with an empty text; a complete answer with only calls or reasoning has none.
            if message["content"] == "" and any(map(message.get, INSTEAD)):
                message["content"] = None
            for call in message.get("tool_calls", []):
                call.pop("index", None)
        return {name: value for name, value in self._fields.items() if value is not None} | {"choices": choices}


def _add_delta(message: dict, delta: dict) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            if value:
                _add_calls(message.setdefault(name, []), value)
        elif value is not None or name not in message:
            message[name] = value if name in REPLACED else _joined(message.get(name), value)


def _add_calls(calls: list[dict], pieces: list[dict]) -> None:
    """Add pieces of tool calls to the calls with the same index; a piece without index is a new call."""
    for piece in pieces:
        index = piece.get("index")
        call = next((call for call in calls if index is not None and call.get("index") == index), None)
        if call is None:
            calls.append(call := {"index": index})
        for name, value in piece.items():
            if name == "function":
                function = call.setdefault("function", {"name": None, "arguments": ""})
                for part, text in (value or {}).items():
                    if text is not None:
                        function[part] = _joined(function.get(part), text) if part == "arguments" else text
            elif name != "index" and value is not None:
                call[name] = value
    calls.sort(key=lambda call: len(calls) if call["index"] is None else call["index"])


def _joined(before: Any, more: Any) -> Any:
    """Return texts and lists joined, and objects joined by field; any other value replaces the previous one."""
    if before is None or more is None:
        return before if more is None else more
    if isinstance(before, dict) and isinstance(more, dict):
        return before | {name: _joined(before.get(name), value) for name, value in more.items()}
    if isinstance(before, list) and isinstance(more, list):
        before.extend(more)  # in place: a long answer has thousands of pieces
        return before
    return before + more if isinstance(before, str) else more
