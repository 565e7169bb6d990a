"""Which engine serves which model: ENGINES_FILE; and which engines are switched off: ENGINE_STATES_FILE.

    {"engines": [{"name": "feedback", "url": "http://127.0.0.1:8002/v1", "api_key": "…", "models": ["small"],
                  "group": "evaluation"}]}
    {"feedback": {"state": "stopped", "instead": "chat", "since": "2026-11-27T02:00:00Z"}}

Both are reloaded when they change. The second file may be missing; engines that it does not name are switched on.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from app.errors import Problem
from app.settings import EngineUrl, Secret, Text
from app.watched import Watched

# X-Should-Retry stops OpenAI's clients from retrying: the switch back takes minutes or hours, so show the reason now.
SWITCHED_OFF = {"Retry-After": "60", "X-Should-Retry": "false"}

logger = logging.getLogger(__name__)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


@dataclass(frozen=True)
class Entry:
    """An engine: its name, its URL with /v1, its key, and the models that it serves.

    group: the engines of one group do not run at the same time; "" for none.
    """

    name: str
    url: str
    api_key: str = field(repr=False)
    models: tuple[str, ...]
    group: str = ""


class _Engine(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    url: EngineUrl
    api_key: Secret
    models: Annotated[list[Text], Field(min_length=1)]
    group: Name | None = None

    def entry(self) -> Entry:
        return Entry(self.name, self.url, self.api_key.get_secret_value(), tuple(self.models), self.group or "")


class State(BaseModel):
    """The state of an engine that is switched off, and the engine that runs instead."""

    state: Literal["stopped", "asleep"]
    instead: str | None = None


_States = TypeAdapter(dict[str, State])


class TableError(ValueError):
    """A file of engines cannot be used; the message has all problems in one line, without keys."""


def read(path: Path, of_a_caller: Callable[[str], bool]) -> list[Entry]:
    """Return the engines of ENGINES_FILE; raise TableError with all problems.

    of_a_caller: returns whether a caller has this key; no engine may have the same one.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise TableError(f"{path} is not JSON") from None
    listed = content.get("engines") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed or set(content) != {"engines"}:
        raise TableError(f'{path}: write {{"engines": [...]}} with at least one engine and no other keys')
    entries, problems = [], []
    for number, given in enumerate(listed):
        try:
            entries.append(_Engine.model_validate(given).entry())
        except ValidationError as error:
            problems += [_sentence(f"engines.{number}", detail) for detail in error.errors(include_input=False)]
    fields = [given for given in listed if isinstance(given, dict)]
    models = [one for given in fields for one in _list(given.get("models"))]
    problems += [f"the name {name} occurs twice" for name in _twice(given.get("name") for given in fields)]
    problems += [f"the model {model} occurs twice: only one engine may serve it" for model in _twice(models)]
    problems += [
        f"{entry.name} has a caller's key as its api_key: give the callers separate keys"
        for entry in entries
        if of_a_caller(entry.api_key)
    ]
    if problems:
        raise TableError(f"{path}: {'; '.join(problems)}")
    return entries


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _twice(values: Any) -> list[str]:
    counted = Counter(value.strip() for value in values if isinstance(value, str))
    return [value[:100] for value, times in counted.items() if times > 1]


def _sentence(where: str, detail: dict) -> str:
    place = ".".join([where, *map(str, detail["loc"])])
    return f"{place} {detail['msg'].removeprefix('Value error, ')}"


def read_states(path: Path) -> dict[str, State]:
    """Return the switched-off engines of ENGINE_STATES_FILE; {} if there is no file. Raises TableError."""
    try:
        return _States.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
        raise TableError(f"{path}: {'; '.join(_sentence('engines', detail) for detail in details)}") from None


class Table:
    """The engines by name and by model.

    The constructor reads ENGINES_FILE and the states, and raises TableError for ENGINES_FILE. Both are read again when
    they change; if a file is invalid, its previous content stays and `trouble` has the reason. `entries` is a new
    object after each change.
    """

    def __init__(
        self,
        file: Path,
        states_file: Path | None,
        of_a_caller: Callable[[str], bool] = lambda key: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._states_file, self._of_a_caller = file, states_file, of_a_caller
        self._watched = Watched(file, clock)
        self._watched_states = Watched(states_file, clock) if states_file else None
        self._troubles: dict[Path, str] = {}
        self._states: dict[str, State] = {}
        self._take(read(file, of_a_caller))
        self._read_states()

    @property
    def trouble(self) -> str:
        """The problems with the current files; "" if there are none."""
        return "; ".join(self._troubles.values())

    def keys(self) -> list[str]:
        return [entry.api_key for entry in self.entries.values()]

    def look(self) -> None:
        """Reload changed files; checks each file at most once per second."""
        if self._watched.changed():
            self._read()
        if self._watched_states and self._watched_states.changed():
            self._read_states()

    def find(self, model: object) -> Entry:
        """Return the engine that serves a model. Raises Problem: 404 if none does, 503 if it is switched off."""
        entry = self._by_model.get(model) if isinstance(model, str) else None
        if entry is None:
            raise Problem(404, f"The model {str(model)[:100]!r} does not exist.")
        if why := self.off(entry.name):
            raise Problem(503, f"{entry.name} is {why}.", SWITCHED_OFF)
        return entry

    def serves(self, model: str) -> bool:
        """Return whether an engine has this model, even if the engine is switched off."""
        return model in self._by_model

    def off_for(self, model: str) -> str:
        """Return why the engine of a model is switched off, as `off` does; "" if no engine has the model."""
        return self.off(self._by_model[model].name) if model in self._by_model else ""

    def off(self, name: str) -> str:
        """Return why an engine is switched off, such as "stopped: chat runs instead (group evaluation)", or ""."""
        state = self._states.get(name)
        if state is None:
            return ""
        group = self.entries[name].group
        instead = f": {state.instead} runs instead" if state.instead else ""
        return f"{state.state}{instead}{f' (group {group})' if group else ''}"

    def _take(self, entries: list[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._by_model = {model: entry for entry in entries for model in entry.models}

    def _read(self) -> None:
        try:
            self._take(read(self._file, self._of_a_caller))
        except TableError as error:
            self._failed(self._file, f"{error}; the previous engines stay in effect")
        else:
            self._troubles.pop(self._file, None)
            logger.info("the engines file was reloaded", extra={"engines": list(self.entries)})

    def _read_states(self) -> None:
        if self._states_file is None:
            return
        try:
            states = read_states(self._states_file)
        except TableError as error:
            self._failed(self._states_file, f"{error}; the previous states stay in effect")
            return
        self._troubles.pop(self._states_file, None)
        if states != self._states:
            off = {name: state.state for name, state in states.items()}
            logger.info("the engine states were reloaded", extra={"switched_off": off})
        self._states = states

    def _failed(self, path: Path, why: str) -> None:
        self._troubles[path] = why
        logger.error("a file of engines cannot be used: %s", why)
