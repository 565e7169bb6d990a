"""Each filter's docstring says what it returns; the site's page of filters consists of them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("site_of_the_docs", ROOT / "docs/site.py")
site = sys.modules["site_of_the_docs"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)

FILTERS = {name: function for functions in site.filters().values() for name, function in functions.items()}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_documents_what_it_returns(name):
    first = (inspect.getdoc(FILTERS[name]) or "").partition("\n\n")[0]
    assert len(first.split()) > 3 and first.rstrip().endswith((".", ")", ":"))


def test_the_page_shows_each_with_its_arguments():
    page = site.filters_page()
    assert page.count("\n## llm.server.") == len(FILTERS) > 90
    assert "`settings | llm.server.vmalert_argv(asked, kept)`" in page
    assert "`rows | llm.server.checklist_table(width=60)`" in page
    assert "`argv | llm.server.exec_line`" in page


def test_an_option_of_a_module_has_what_a_fragment_adds_to_it():
    path = ROOT / "plugins/modules/gpu_memory_plan.py"
    page = site.module_page("llm.server.gpu_memory_plan", path)
    assert "| `services` | list of dict | **required** | The services in their start order. |" in page
    assert "| `services[].ubatch` | int |  | llama.cpp: physical batch size. |" in page
