"""The engines: the one of VLLM_BASE_URL, or those of ENGINES_FILE, each asked for the models that it serves.

The table may change while requests run: what has begun goes on at the engine where it began.
"""

import asyncio
import logging
from typing import NamedTuple

from app.errors import Problem
from app.settings import Settings
from app.table import Entry, Table
from app.upstream import Engine

ALONE = "vllm"  # in metrics and logs: the engine of a server that has no table
LIST_TIMEOUT_SEC = 2  # for an engine's list of models: one that hangs must not hold the others' up

logger = logging.getLogger(__name__)


class Health(NamedTuple):
    """told: what /health says. sound: every engine that is to serve does; ready: one of them does."""

    told: dict
    sound: bool
    ready: bool


class Engines:
    """Find the engine of a request. table: ENGINES_FILE's, or None. Made inside the running event loop."""

    def __init__(self, settings: Settings, table: Table | None) -> None:
        self._table, self._timeout = table, settings.http_timeout_sec
        self._asked_for = {
            "VLLM_MODEL": settings.vllm_model,
            "VLLM_LORA_ADAPTER_EASYCONTRACT": settings.vllm_lora_adapter_easycontract,
            "VLLM_LORA_ADAPTER_CHECKLIST": settings.vllm_lora_adapter_checklist,
        }
        if table is None:
            models = tuple(self._asked_for.values())
            entry = Entry(ALONE, settings.vllm_base_url, settings.vllm_api_key.get_secret_value(), models)
            self._engines = {ALONE: Engine(entry, self._timeout, "vLLM", "VLLM_API_KEY")}
        else:
            self._engines, self._entries = {}, None
            self._now()

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()

    @property
    def alone(self) -> Engine | None:
        """The engine that everything is passed to, where there is no table."""
        return self._engines[ALONE] if self._table is None else None

    @property
    def names(self) -> list[str]:
        return list(self._engines)

    @property
    def trouble(self) -> str:
        """What is wrong with the files of engines; "" where nothing is."""
        return self._table.trouble if self._table else ""

    def find(self, model: object) -> Engine:
        """Return the engine that serves a model.

        Raises Problem: 404 for a model of no engine, 503 where its engine is switched off. Without a table the engine
        itself says what it lacks.
        """
        if self._table is None:
            return self._engines[ALONE]
        engines = self._now()
        return engines[self._table.find(model).name]

    def find_for_us(self, model: str) -> Engine:
        """Return the engine of a model that the settings name; raises Problem, 502 where no engine has it."""
        engines = self._now()
        if self._table and not self._table.serves(model):
            raise Problem(502, f"No engine serves {model!r}; the operator has to load it.")
        return engines[self._table.find(model).name] if self._table else engines[ALONE]

    def is_off(self, model: str) -> bool:
        """Whether the engine of a model is switched off now."""
        self._now()
        return self._table is not None and bool(self._table.off_for(model))

    async def models(self) -> list[dict]:
        """Return the models that can be asked for now: those of the table that their engine lists.

        An engine that is switched off or does not answer is left out. Raises Problem 503 where none answers.
        """
        if self._table is None:
            return await self._engines[ALONE].models()
        engines = self._now()
        serving = [engine for name, engine in engines.items() if not self._table.off(name)]
        lists = [listed for listed in await asyncio.gather(*map(_listed, serving)) if listed is not None]
        if not lists:
            raise Problem(503, "No engine answers; try again later.", {"Retry-After": "10"})
        return [model for listed in lists for model in listed]

    async def health(self) -> Health:
        """Ask every engine that is to serve."""
        engines = self._now()
        off = {name: self._table.off(name) if self._table else "" for name in engines}
        serving = [name for name in engines if not off[name]]
        states = dict(zip(serving, await asyncio.gather(*(engines[name].health() for name in serving)), strict=True))
        told = {name: off[name] or states[name] for name in engines}
        well = [states[name] == "ok" for name in serving]
        return Health({"engines": told} if self._table else {"vllm": told[ALONE]}, all(well), any(well))

    def _now(self) -> dict[str, Engine]:
        """Return the engines as the files have them now; one that did not change keeps what it has open."""
        if self._table is None:
            return self._engines
        self._table.look()
        entries = self._table.entries
        if entries is not self._entries:
            self._entries, before = entries, self._engines
            self._engines = {name: self._engine(entry, before.get(name)) for name, entry in entries.items()}
            for setting, model in self._asked_for.items():
                if not self._table.serves(model):
                    logger.warning("no engine of ENGINES_FILE serves %s, which %s names", model, setting)
        return self._engines

    def _engine(self, entry: Entry, before: Engine | None) -> Engine:
        if before is not None and before.entry == entry:
            return before
        return Engine(entry, self._timeout, entry.name, f"the api_key of {entry.name} in ENGINES_FILE")


async def _listed(engine: Engine) -> list[dict] | None:
    """Return what the engine lists of its models in the table; None where it does not answer."""
    try:
        listed = await asyncio.wait_for(engine.models(), LIST_TIMEOUT_SEC)
    except (Problem, asyncio.TimeoutError):
        return None
    return [model for model in listed if model["id"] in engine.entry.models]
