"""Dashboards as code: one source, written for Grafana and for VictoriaMetrics' own UI. See docs/dashboards.md."""
