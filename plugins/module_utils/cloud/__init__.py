"""Google Cloud: declared machines, its API, schedules."""
