"""The dashboards, in the order of their tabs."""

from dashboards.content import engine, fleet, gpu, host, logs, server

ALL = tuple(
    sorted(
        (module.DASHBOARD for module in (engine, fleet, gpu, host, logs, server)),
        key=lambda dashboard: dashboard.order,
    )
)
