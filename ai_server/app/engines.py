"""The engines: the one at VLLM_BASE_URL, or those of ENGINES_FILE, each of which serves its own models.

The table may change while requests run; a running request stays with its engine.
"""

import asyncio
import logging
from typing import NamedTuple

from app.errors import Problem
from app.settings import Settings
from app.table import Entry, Table
from app.upstream import Engine

ALONE = "vllm"  # the engine's name in metrics and logs if there is no table
LIST_TIMEOUT_SEC = 2  # for an engine's list of models: a hanging engine must not block the others

logger = logging.getLogger(__name__)


class Health(NamedTuple):
    """told: the part of /health. sound: all engines that are switched on are healthy; ready: at least one is."""

    told: dict
    sound: bool
    ready: bool


class Engines:
    """Find the engine for a request. table: from ENGINES_FILE, or None. Create it inside the running event loop."""

    def __init__(self, settings: Settings, table: Table | None) -> None:
        self._table, self._timeout = table, settings.http_timeout_sec
        self._configured = {
            "VLLM_MODEL": settings.vllm_model,
            "VLLM_LORA_ADAPTER_EASYCONTRACT": settings.vllm_lora_adapter_easycontract,
            "VLLM_LORA_ADAPTER_CHECKLIST": settings.vllm_lora_adapter_checklist,
        }
        if table is None:
            models = tuple(self._configured.values())
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
        """The engine that gets all requests if there is no table; otherwise None."""
        return self._engines[ALONE] if self._table is None else None

    @property
    def names(self) -> list[str]:
        return list(self._engines)

    @property
    def trouble(self) -> str:
        """The problem with the files of engines; "" if there is none."""
        return self._table.trouble if self._table else ""

    def find(self, model: object) -> Engine:
        """Return the engine that serves a model.

        Raises Problem: 404 if no engine has the model, 503 if its engine is switched off. Without a table, the engine
        itself rejects unknown models.
        """
        if self._table is None:
            return self._engines[ALONE]
        engines = self._now()
        return engines[self._table.find(model).name]

    def find_for_us(self, model: str) -> Engine:
        """Return the engine of a model from the settings; raises Problem, 502 if no engine has the model."""
        engines = self._now()
        if self._table and not self._table.serves(model):
            raise Problem(502, f"No engine serves {model!r}; the operator must load it.")
        return engines[self._table.find(model).name] if self._table else engines[ALONE]

    def is_off(self, model: str) -> bool:
        """Return whether the engine of this model is switched off now."""
        self._now()
        return self._table is not None and bool(self._table.off_for(model))

    async def models(self) -> list[dict]:
        """Return the models that are available now: those in the table that their engine lists.

        Engines that are switched off or do not answer are left out. Raises Problem 503 if none answers.
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
        """Return the health of the engines; only those that are switched on are asked."""
        engines = self._now()
        off = {name: self._table.off(name) if self._table else "" for name in engines}
        serving = [name for name in engines if not off[name]]
        states = dict(zip(serving, await asyncio.gather(*(engines[name].health() for name in serving)), strict=True))
        states_shown = {name: off[name] or states[name] for name in engines}
        well = [states[name] == "ok" for name in serving]
        return Health({"engines": states_shown} if self._table else {"vllm": states_shown[ALONE]}, all(well), any(well))

    def _now(self) -> dict[str, Engine]:
        """Return the engines of the current files; an unchanged engine keeps its open connections."""
        if self._table is None:
            return self._engines
        self._table.look()
        entries = self._table.entries
        if entries is not self._entries:
            self._entries, before = entries, self._engines
            self._engines = {name: self._engine(entry, before.get(name)) for name, entry in entries.items()}
            for setting, model in self._configured.items():
                if not self._table.serves(model):
                    logger.warning("no engine of ENGINES_FILE serves %s, which %s names", model, setting)
        return self._engines

    def _engine(self, entry: Entry, before: Engine | None) -> Engine:
        if before is not None and before.entry == entry:
            return before
        return Engine(entry, self._timeout, entry.name, f"the api_key of {entry.name} in ENGINES_FILE")


async def _listed(engine: Engine) -> list[dict] | None:
    """Return the models that both the engine and its table entry list; None if the engine does not answer."""
    try:
        listed = await asyncio.wait_for(engine.models(), LIST_TIMEOUT_SEC)
    except (Problem, asyncio.TimeoutError):
        return None
    return [model for model in listed if model["id"] in engine.entry.models]
