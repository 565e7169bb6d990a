"""Dashboards as code: one source for Grafana and for VictoriaMetrics' own UI. See docs/dashboards.md."""
