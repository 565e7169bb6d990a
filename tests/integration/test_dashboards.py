"""The dashboards on a real VictoriaMetrics: every expression returns series, and a real browser shows every panel."""

import pytest

from dashboards import check
from lab import figures, pictures

# The stored metrics are not older than this.
MINUTES = 5


@pytest.fixture(scope="module")
def store():
    with figures.live() as url:
        yield url


def test_every_expression_has_series(store):
    wrong, _ = check.judge(check.expressions(), check.Store(store, MINUTES).series, figures.has())
    assert wrong == []


def test_a_browser_shows_every_panel(store):
    assert pictures.run(store, MINUTES, None, figures.has()) == []
