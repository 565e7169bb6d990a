"""One run of the fleet, as the tests start it."""

from plugins.module_utils.cloud.gcp_fleet import Fleet

ZONE_A, ZONE_B = "asia-northeast3-a", "asia-northeast3-b"


def run(options, state="present", check_mode=False, **changed):
    fleet = Fleet({**options, "state": state, **changed}, check_mode)
    if state == "checked":
        problems, estimates, _ = fleet.checked()
        return fleet, problems, estimates
    problems = fleet.declaration_problems()
    results = []
    if not problems:
        results, problems = getattr(fleet, state)()
    return fleet, results, problems + fleet.refused


def made(options):
    fleet, _, problems = run(options)
    assert problems == []
    return fleet


def what(fleet):
    return [change.what for change in fleet.changes]
