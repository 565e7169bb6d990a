"""Dashboards: the committed files match the source, for both UIs, and the check finds errors."""

import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as models

from dashboards import check, generate, to_grafana, to_vmui
from dashboards.content import ALL
from dashboards.model import BYTES, COLUMNS, COUNT, GIB, SHARE, Limit, LogPanel, Panel, quantile, share
from lab import pictures, png

ROOT = Path(__file__).resolve().parents[3]
GRAFANA = sorted((ROOT / "dashboards/grafana").glob("*.json"))
VMUI = sorted((ROOT / "dashboards/vmui").glob("*.json"))


def each_panel():
    return [
        pytest.param(panel, id=f"{dashboard.name}: {panel.title}") for dashboard in ALL for panel in dashboard.panels()
    ]


def by_file(paths):
    return [pytest.param(json.loads(path.read_text()), id=path.name) for path in paths]


def queried(prefix):
    """Return the metrics in all expressions that begin with ``prefix``."""
    text = "\n".join(query for dashboard in ALL for panel in dashboard.panels() for query, _ in panel.queries)
    return set(re.findall(rf"\b{prefix}\w*", text))


def test_what_is_committed_is_what_the_source_says():
    assert generate.out_of_date() == [], "run `make dashboards`"


def test_the_page_shows_every_dashboard():
    page = (ROOT / "docs/dashboards.md").read_text()
    for dashboard in ALL:
        picture = ROOT / "docs/pictures" / f"{dashboard.name}.png"
        assert f"| {dashboard.name} |" in page and f"(pictures/{picture.name})" in page
        assert picture.stat().st_size < png.LARGEST
        assert int.from_bytes(picture.read_bytes()[16:20], "big") == pictures.WIDTH
    for link in re.findall(r"\]\(([\w./-]+)", page):
        assert (ROOT / "docs" / link).is_file(), link


@pytest.mark.parametrize("content", by_file(GRAFANA))
def test_grafana_json_is_what_the_sdk_reads(content):
    register_default_plugins()
    assert json.loads(JSONEncoder().encode(models.Dashboard.from_json(content))) == content


@pytest.mark.parametrize("content", by_file(GRAFANA))
def test_grafana_panels_have_a_place_and_a_number_of_their_own(content):
    taken = set()
    for panel in content["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < to_grafana.GRID, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in content["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("content", by_file(GRAFANA))
def test_grafana_expressions_use_variables_that_the_dashboard_has(content):
    defined = {variable["name"] for variable in content["templating"]["list"]} | {"__rate_interval", "__interval"}
    text = json.dumps([panel.get("targets") for panel in content["panels"]])
    assert set(re.findall(r"\$\{?(\w+)", text)) <= defined


@pytest.mark.parametrize("content", by_file(VMUI))
def test_vmui_knows_no_variables(content):
    assert "$" not in json.dumps(content)


@pytest.mark.parametrize("dashboard", ALL, ids=lambda dashboard: dashboard.name)
def test_titles_are_unique_and_rows_are_full(dashboard):
    titles = [panel.title for row in dashboard.rows for panel in row.panels]
    assert len(set(titles)) == len(titles)
    for row in dashboard.rows:
        assert sum(panel.width for panel in row.panels) % COLUMNS == 0, row.title


@pytest.mark.parametrize("panel", each_panel())
def test_legends_name_labels_that_the_expression_keeps(panel):
    for query, legend in panel.queries:
        kept = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
        assert set(re.findall(r"{{(.*?)}}", legend)) <= kept - {"le"}, legend


@pytest.mark.parametrize("panel", each_panel())
def test_brackets_match_and_the_choice_of_host_comes_first(panel):
    for query, _ in panel.queries:
        for opening, closing in ("()", "[]", "{}"):
            assert query.count(opening) == query.count(closing), query
        assert not re.search(r"[^{]\$(host|service)\b", query), query


def test_metrics_of_ai_server_are_those_of_its_source():
    source = "\n".join(path.read_text() for path in (ROOT / "ai_server/app").glob("*.py"))
    made = re.findall(r'\b(Counter|Gauge|Histogram)\(\s*"(\w+)"', source)
    endings = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
    there = {name + ending for kind, name in made for ending in endings[kind]}
    assert queried("ai_server_") | queried("http_") <= there | {"ai_server_first_token_seconds", "ai_server"}


def test_gpu_metrics_match_the_exporters_configuration():
    counters = yaml.safe_load((ROOT / "roles/dcgm_exporter/defaults/main.yml").read_text())["dcgm_exporter_counters"]
    # The same field by its name since DCGM 4.
    renamed = {"DCGM_FI_DEV_CLOCKS_EVENT_REASONS"}
    assert queried("DCGM_") <= {counter["field"] for counter in counters} | renamed


@pytest.mark.parametrize(
    "prefix, source",
    [
        ("llm_watchdog_", "roles/watchdog/files/watchdog.py"),
        ("llm_backup_", "roles/backup/files/backup.py"),
        ("llm_release_", "roles/watchdog/files/watchdog.py"),
        ("llm_gpu_", "plugins/module_utils/gpu/memory/render.py"),
    ],
)
def test_textfile_metrics_are_written_by_the_program_that_has_them(prefix, source):
    text = (ROOT / source).read_text()
    for name in queried(prefix):
        assert name in text or f'"{name.removeprefix(prefix)}"' in text, name


def test_every_requirement_is_named_in_both_uis():
    for dashboard in ALL:
        for panel in dashboard.panels():
            if panel.needs:
                assert panel.needs in to_vmui.panel_json(panel)["description"]
                assert panel.needs in to_grafana.metric_panel(panel).build().description


@pytest.mark.parametrize(
    "source, grafana, vmui",
    [
        ("up", "up", "up"),
        ("up{$host}", 'up{host=~"$host"}', "up"),
        ('up{$host,job="vllm"}', 'up{host=~"$host",job="vllm"}', 'up{job="vllm"}'),
        ("rate(x{$service}[$rate])", 'rate(x{host=~"$host",service=~"$service"}[$__rate_interval])', "rate(x[2m])"),
    ],
)
def test_an_expression_is_written_for_both(source, grafana, vmui):
    assert (to_grafana.expression(source), to_vmui.expression(source)) == (grafana, vmui)


@pytest.mark.parametrize(
    "unit, expression",
    [(COUNT, "x"), (BYTES, "(x) / 1073741824"), (SHARE, "(x) * 100")],
    ids=["count", "bytes", "share"],
)
def test_vmui_gets_figures_that_need_no_unit(unit, expression):
    shown = to_vmui.panel_json(Panel("t", unit, (("x{$host}", "{{host}}"),)))
    assert shown["expr"] == [expression]


def test_a_limit_is_a_line_in_both():
    panel = Panel("t", BYTES, (("x", "x"),), limit=Limit(5 * GIB, least=True))
    shown = to_vmui.panel_json(panel)
    assert (shown["expr"][1], shown["alias"][1]) == ('label_set(5, "host", "all")', "at least")
    steps = to_grafana.metric_panel(panel).build().field_config.defaults.thresholds.steps
    assert [(step.value, step.color) for step in steps] == [(None, "red"), (5 * GIB, "green")]


def test_a_share_of_nothing_is_zero():
    assert share("a", "b") == "(a or 0 * b) / clamp_min(b, 1e-9)"
    assert (
        quantile(0.5, "x", "host", "$host")
        == "histogram_quantile(0.5, sum by (le, host) (rate(x_bucket{$host}[$rate])))"
    )


def test_log_panels_query_the_chosen_store():
    panel = LogPanel("t", "logsql", "logql", lines=True)
    queries = {
        store.type_val: json.loads(JSONEncoder().encode(to_grafana.log_panel(panel, store).build().targets[0]))
        for store in (to_grafana.VICTORIA_LOGS, to_grafana.LOKI)
    }
    assert {kind: query["expr"] for kind, query in queries.items()} == {
        "victoriametrics-logs-datasource": "logsql",
        "loki": "logql",
    }
    assert all(query["datasource"]["type"] == kind for kind, query in queries.items())


# The check


def test_every_expression_is_queried_and_no_limit():
    found = check.expressions()
    wanted = sum(len(panel.queries) for dashboard in ALL for panel in dashboard.panels())
    assert {kind: sum(one.kind == kind for one in found) for kind in ("grafana", "vmui")} == {
        "grafana": wanted,
        "vmui": wanted,
    }
    assert not any("$" in one.text for one in found)


@pytest.mark.parametrize(
    "needs, answer, has, wrong, lacking",
    [
        ("", 1, set(), 0, 0),
        ("", 0, set(), 1, 0),
        ("a GPU", 0, set(), 0, 1),
        ("a GPU", 0, {"a GPU"}, 1, 0),
        ("a GPU", 3, set(), 0, 0),
        ("a GPU", check.Refused("parse error"), set(), 1, 0),
    ],
)
def test_an_expression_is_judged(needs, answer, has, wrong, lacking):
    def ask(text):
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = check.judge([check.Expression("vmui", "d", "p", "up", needs)], ask, has)
    assert tuple(map(len, found)) == (wrong, lacking)


def test_the_stores_refusal_is_reported(server):
    url, answers = server.url, server.pages
    answers["/api/v1/query_range"] = (200, json.dumps({"data": {"result": [{}, {}]}}))
    ask = check.Store(url, 5).series
    assert ask("up") == 2
    answers["/api/v1/query_range"] = (422, "cannot parse")
    with pytest.raises(check.Refused, match="cannot parse"):
        ask("up{")


def test_a_store_of_logs_is_queried_for_series_and_lines(server):
    server.pages["/select/logsql/stats_query_range"] = (200, json.dumps({"data": {"result": [{}]}}))
    server.pages["/select/logsql/query"] = (200, '{"_msg": "a"}\n{"_msg": "b"}\n')
    counts = [check.Store(server.url, user="me", password="secret").logs(one.text) for one in check.log_queries()]
    assert sorted(counts) == [1, 1, 2, 2]
    assert {login for _, login, _ in server.asked} == {"Basic bWU6c2VjcmV0"}


def test_the_program_ends_with_1_when_a_store_has_nothing(server, capsys):
    url, answers = server.url, server.pages
    answers["/api/v1/query_range"] = (200, json.dumps({"data": {"result": []}}))
    assert check.main([url]) == 1
    output = capsys.readouterr().out
    assert "NO SERIES" in output and "needs a GPU" in output
