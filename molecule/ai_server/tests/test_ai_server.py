"""The application as the role runs it, without vLLM."""

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = "/app/ai-server"
LOG = "/var/log/dojangkok/production/ai-server.log"
SECRETS = ["the-key-of-the-engine", "the-token-of-the-backend", "the-key-of-the-ocr-service", "the-key-of-the-first"]
SERVICE = "ai_server : Run ai-server"


def ask(host, path: str, port: int = 8000, key: str | None = None) -> tuple[int, str]:
    """Send a request on the machine; return status and text (status 0 without an answer)."""
    program = (
        "import sys, urllib.error, urllib.request\n"
        "request = urllib.request.Request(sys.argv[1], headers=dict(zip(sys.argv[2:3], sys.argv[3:])))\n"
        "try:\n    answer = urllib.request.urlopen(request, timeout=20)\n"
        "except urllib.error.HTTPError as error:\n    answer = error\n"
        "except OSError as error:\n    print(0, error)\n    raise SystemExit\n"
        "print(answer.status, answer.read().decode())\n"
    )
    header = f"Authorization 'Bearer {key}'" if key else ""
    output = host.check_output(f"python3 -c \"$(cat <<'END'\n{program}END\n)\" http://127.0.0.1:{port}{path} {header}")
    status, _, text = output.partition(" ")
    return int(status), text


def pid(host) -> str:
    return host.check_output("systemctl show ai-server --property MainPID --value")


def serves(host) -> bool:
    return ask(host, "/health")[0] == 200


def test_it_serves_and_reports_that_vllm_is_down(host):
    assert host.service("ai-server").is_running
    assert host.service("ai-server").is_enabled
    status, text = ask(host, "/health")
    assert status == 200
    assert json.loads(text)["status"] == "degraded"
    assert json.loads(text)["callbacks"] == "on"
    assert ask(host, "/health/ready")[0] == 503
    assert ask(host, "/v1/models")[0] == 401
    assert ask(host, "/v1/models", key="the-key-of-the-second-caller")[0] == 503
    assert "http_requests_total" in ask(host, "/metrics")[1]


def test_it_runs_as_its_own_user_on_the_configured_address(host):
    assert host.check_output(f"ps -o user= -p {pid(host)}") == "ai-server"
    assert host.socket("tcp://0.0.0.0:8000").is_listening
    limits = host.file(f"/proc/{pid(host)}/limits").content_string
    assert int(re.search(r"Max open files\s+(\d+)", limits)[1]) >= 20000
    assert host.file(f"/proc/{pid(host)}/oom_score_adj").content_string == "800\n"


@pytest.mark.parametrize(
    ("path", "mode", "owner", "group"),
    [
        (f"{ROOT}/.env", 0o600, "ai-server", "ai-server"),
        (f"{ROOT}/resources/s3", 0o750, "ai-server", "ai-server"),
        (f"{ROOT}/state", 0o750, "ai-server", "ai-server"),
        (f"{ROOT}/current/app/main.py", 0o644, "root", "root"),
        ("/var/log/dojangkok", 0o755, "root", "root"),
        ("/var/log/dojangkok/production", 0o2750, "ai-server", "adm"),
        (LOG, 0o640, "ai-server", "adm"),
        ("/etc/logrotate.d/ai-server", 0o644, "root", "root"),
        ("/app", 0o755, "root", "root"),
        ("/etc/systemd/system/ai-server.service", 0o644, "root", "root"),
    ],
)
def test_files_belong_to_whom_they_should(host, path, mode, owner, group):
    seen = host.file(path)
    assert (oct(seen.mode), seen.user, seen.group) == (oct(mode), owner, group)


def test_the_service_user_can_change_neither_program_nor_settings_of_others(host):
    for path in (f"{ROOT}", f"{ROOT}/current/app", f"{ROOT}/.venv/bin", "/etc/systemd/system"):
        assert host.run(f"runuser -u ai-server -- test -w {path}").rc == 1


def test_keys_are_only_in_the_settings(host):
    unit = "/etc/systemd/system/ai-server.service"
    places = {
        "processes": host.check_output("ps -eo args --no-headers | grep -v sshd"),
        "unit": host.file(unit).content_string,
        "systemctl": host.check_output("systemctl show ai-server"),
        "environment": host.check_output(f"tr '\\0' '\\n' < /proc/{pid(host)}/environ"),
        "journal": host.check_output("journalctl --no-pager --output=cat"),
        "log": host.file(LOG).content_string,
    }
    for secret in SECRETS:
        assert secret in host.file(f"{ROOT}/.env").content_string
        assert [place for place, text in places.items() if secret in text] == []


def test_the_log_is_json_and_its_group_reads_it(host):
    ask(host, "/v1/models")
    host.run_test("useradd --no-create-home --groups adm reader")
    lines = host.check_output(f"runuser -u reader -- cat {LOG}").splitlines()
    host.check_output("userdel reader")
    entries = [json.loads(line) for line in lines]
    assert any(entry["message"] == "ai-server is ready" for entry in entries)
    assert any(entry["message"] == "request" and entry["status"] == 401 for entry in entries)


def test_logs_are_rotated_and_written_on(host):
    host.check_output("logrotate --force /etc/logrotate.d/ai-server")
    ask(host, "/v1/models")
    assert host.file(f"{LOG}.1").user == "ai-server"
    assert "request" in host.file(LOG).content_string
    # Not earlier: before the first rotation, an older logrotate reports the missing state file as an error.
    done = host.run("logrotate --debug /etc/logrotate.d/ai-server")
    assert (done.rc, "error" in done.stderr) == (0, False), done.stderr


def test_another_file_of_logrotate_for_the_same_logs_is_named(host, converge):
    older = "/etc/logrotate.d/x-older"
    host.run_test(
        "printf '%%s\\n' '/var/log/dojangkok/*/ai-server.log {' weekly '}' > %s && chmod 644 %s", older, older
    )
    before = pid(host)
    outcome = converge({"ai_server_keep_alive": 61})
    host.run_test("rm %s", older)
    assert outcome.code != 0
    assert f"{older} rotates /var/log/dojangkok/*/ai-server.log and /etc/logrotate.d/ai-server would" in outcome.message
    assert pid(host) == before
    assert converge().changed == []


def test_the_unit_is_hardened_and_after_the_engine(host):
    scored = host.check_output("systemd-analyze security ai-server.service --no-pager | tail -1")
    assert float(re.search(r"ai-server\.service: ([0-9.]+)", scored)[1]) <= 2.0
    assert "vllm.service" in host.check_output("systemctl show ai-server --property After --value")
    assert host.check_output("systemctl show ai-server --property Wants --value").split().count("vllm.service") == 1
    assert "--timeout-keep-alive 620" in host.check_output(f"ps -o args= -ww -p {pid(host)}")


def test_it_comes_back_when_it_is_killed(host):
    before = pid(host)
    host.check_output(f"kill -9 {before}")
    host.check_output("for n in $(seq 60); do sleep 0.5; [ $(systemctl is-active ai-server) = active ] && break; done")
    host.check_output(
        "python3 -c 'import socket, time\n"
        "for n in range(120):\n"
        '    if not socket.socket().connect_ex(("127.0.0.1", 8000)): break\n'
        "    time.sleep(0.25)'"
    )
    assert serves(host)
    assert pid(host) != before


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ai_server_vllm_api_key": ""}, "ai_server_vllm_api_key is empty"),
        ({"ai_server_vllm_base_url": "http://127.0.0.1:8001"}, "ends in /v1"),
        ({"ai_server_backend_callback_base_url": "https://backend.example/api/v1"}, "does not end in /v1"),
        ({"ai_server_port": "eighty"}, "ai_server_port"),
        ({"ai_server_environment": {"RATE_LIMIT_PER_MINUTE": "many"}}, "which must be a whole number above 0"),
        ({"ai_server_environment": {"RATE_LIMIT_PER_MIN": 5}}, "did you mean RATE_LIMIT_PER_MINUTE"),
        ({"ai_server_environment": {"RATE_LIMIT_PER_MINUTE": 9999999}}, "RATE_LIMIT_PER_MINUTE is wrong"),
        ({"ai_server_environment": {"VLLM_API_KEY": "x"}}, "whose place is ai_server_vllm_api_key"),
        ({"ai_server_api_keys": [0x123456789ABCDEF0]}, "ai_server_api_keys[0] is a number and not text"),
    ],
)
def test_bad_settings_are_refused_by_name_and_change_nothing(host, converge, variables, message):
    before = pid(host)
    settings = host.file(f"{ROOT}/.env").content_string
    outcome = converge(variables)
    assert outcome.code != 0
    assert message in outcome.message
    assert outcome.changed == []
    assert (pid(host), host.file(f"{ROOT}/.env").content_string) == (before, settings)
    assert serves(host)


def test_a_port_that_is_taken_is_refused(host, converge):
    host.check_output("systemd-run --unit holder python3 -m http.server 8099")
    before = pid(host)
    outcome = converge({"ai_server_port": 8099})
    host.check_output("systemctl stop holder")
    assert outcome.code != 0
    assert "port 8099 is taken by python3" in outcome.message
    assert pid(host) == before
    assert serves(host)


def test_a_changed_setting_restarts_once(host, converge):
    changed = {"ai_server_environment": {"RATE_LIMIT_PER_MINUTE": 7}}
    first = pid(host)
    foreseen = converge(changed, check=True)
    assert (foreseen.code, foreseen.changed) == (0, [SERVICE])
    assert pid(host) == first
    assert converge(changed).changed == [SERVICE]
    second = pid(host)
    assert second != first
    assert converge(changed).changed == []
    assert pid(host) == second
    assert converge().changed == [SERVICE]


PROMPT = '\u3000全角\tfirst line\n second line: it\'s "${HOME}" #1 \u2028 50% \\'


def test_callers_come_and_go_without_a_restart(host, converge):
    def answers(key: str, status: int) -> bool:
        ask_for = "for _ in 1 2 3 4 5 6; do sleep 0.5; done"  # the file is checked once a second
        host.check_output(ask_for)
        return ask(host, "/v1/models", key=key)[0] == status

    old, new = "canary-old-key-0123456", "canary-new-key-0123456"
    callers = [{"name": "backend", "keys": [{"key": old}]}]
    assert converge({"ai_server_callers": callers}, check=True).code == 0
    outcome = converge({"ai_server_callers": callers}, verbose=True)
    assert (outcome.code, outcome.changed) == (0, [SERVICE]), outcome.message
    assert answers(old, 503) and answers(new, 401)
    before = pid(host)
    callers = [{"name": "backend", "keys": [{"key": old, "expires": "2020-01-31"}, {"key": new}]}]
    assert converge({"ai_server_callers": callers}, check=True).changed == [SERVICE]
    assert converge({"ai_server_callers": callers}).changed == [SERVICE]
    assert converge({"ai_server_callers": callers}).changed == []
    assert answers(old, 401) and answers(new, 503)
    assert pid(host) == before
    file = host.file(f"{ROOT}/callers.json")
    assert (file.mode, file.user, file.group) == (0o640, "root", "ai-server")
    journal = host.check_output("journalctl --no-pager --quiet").splitlines()
    # sudo logs this test's own requests.
    written = [line for line in journal if " sudo[" not in line]
    assert "canary" not in "".join([file.content_string, outcome.text, *written])
    refused = converge({"ai_server_callers": [{"name": "Backend", "keys": [{"key": new}]}]})
    assert "ai_server_callers: Backend needs a name of small letters" in refused.message
    assert pid(host) == before and "canary" not in refused.text
    assert converge().code == 0
    assert not file.exists and answers(new, 401)


def test_a_table_of_engines_changes_without_a_restart(host, converge):
    def engines(model: str) -> dict:
        chat = {"name": "chat", "url": "http://127.0.0.1:8001/v1", "api_key": "canary-key-of-chat"}
        feedback = {"name": "feedback", "url": "http://127.0.0.1:8002/v1", "api_key": "canary-key-of-feedback"}
        models = ["lab/tiny-llama", "easycontract", "checklist"]
        return {
            "ai_server_engines": [{**chat, "models": models}, {**feedback, "models": [model], "group": "evaluation"}]
        }

    assert converge(engines("small"), check=True).code == 0
    outcome = converge(engines("small"), verbose=True)
    assert (outcome.code, outcome.changed) == (0, [SERVICE]), outcome.message
    before = pid(host)
    assert set(json.loads(ask(host, "/health")[1])["engines"]) == {"chat", "feedback"}
    after, wants = (
        host.check_output("systemctl show ai-server --property %s --value", name).split() for name in ("After", "Wants")
    )
    # The unit only waits for the first engine: the others start in their turn.
    assert "chat.service" in after and not {"feedback.service", "vllm.service"} & {*after}
    assert "chat.service" in wants and "feedback.service" not in wants, "it would start what the switch stopped"
    assert converge(engines("other"), check=True).changed == [SERVICE]
    assert converge(engines("other")).changed == [SERVICE]
    assert converge(engines("other")).changed == []
    assert pid(host) == before
    file = host.file(f"{ROOT}/engines.json")
    assert (file.mode, file.user, file.group) == (0o640, "root", "ai-server")
    journal = host.check_output("journalctl --no-pager --quiet").splitlines()
    # sudo logs this test's own requests.
    written = [line for line in journal if " sudo[" not in line]
    assert "canary" not in "".join([outcome.text, *written])
    assert converge().code == 0
    assert not file.exists


def test_it_serves_by_ipv6_and_reads_what_was_written(host, converge):
    written = {"CHECKLIST_PROMPT": PROMPT}
    changed = {
        "ai_server_host": "::1",
        "ai_server_vllm_base_url": "http://[::1]:8001/v1",
        "ai_server_environment": written,
    }
    outcome = converge(changed)
    assert (outcome.code, outcome.changed) == (0, [SERVICE]), outcome.message
    assert host.socket("tcp://::1:8000").is_listening and not host.socket("tcp://127.0.0.1:8000").is_listening
    program = "from app.settings import load; import json; print(json.dumps(load().checklist_prompt))"
    read = f"cd {ROOT} && PYTHONPATH={ROOT}/current .venv/bin/python -B -c %s"
    assert json.loads(host.check_output(read, program)) == PROMPT
    assert converge(changed).changed == []
    assert converge().changed == [SERVICE]


def test_what_the_installers_are_given_stays_out_of_the_journal(host, converge):
    outcome = converge({"ai_server_build_environment": {"NO_PROXY": "canary-proxy-password"}})
    assert (outcome.code, outcome.changed) == (0, [])
    assert "canary-proxy-password" not in host.check_output("journalctl --no-pager")


# -- other sources -----------------------------------------------------------------------------------------------------

BREAK = {
    "import": (
        "app/main.py",
        "import a_module_that_nobody_declared\n",
        "No module named 'a_module_that_nobody_declared'",
    ),
    "requirement": ("requirements.txt", "pip==0.0.999 --hash=sha256:" + "0" * 64 + "\n", "pip==0.0.999"),
}


def built_things(host):
    """Return the applications and environments that are on the machine."""
    return {path for kind in ("releases", "environments") for path in host.file(f"{ROOT}/{kind}").listdir()}


@pytest.fixture
def copy(tmp_path):
    """A copy of the application on the controller that tests may change."""
    source = Path(__file__).resolve().parents[3] / "ai_server"
    names = shutil.ignore_patterns(".*", "__pycache__", "tests")
    return Path(shutil.copytree(source, tmp_path / "application", ignore=names))


@pytest.mark.full
@pytest.mark.parametrize("kind", BREAK)
def test_a_broken_application_never_replaces_the_one_that_serves(host, converge, copy, kind):
    name, text, message = BREAK[kind]
    (copy / name).write_text((copy / name).read_text() + text)
    before, current, built = pid(host), host.file(f"{ROOT}/current").linked_to, built_things(host)
    outcome = converge({"ai_server_source_path": str(copy)})
    assert outcome.code != 0
    assert message in outcome.message
    assert (pid(host), host.file(f"{ROOT}/current").linked_to) == (before, current)
    assert serves(host)
    # The next successful run removes what was built for the refused release; the process stays.
    assert built_things(host) > built
    assert converge().changed == [SERVICE]
    assert (built_things(host), pid(host)) == (built, before)
    assert converge().changed == []


@pytest.mark.full
def test_a_release_that_never_gets_ready_is_rolled_back(host, converge, copy):
    main = copy / "app/main.py"
    main.write_text(main.read_text().replace('"/health"', '"/elsewhere"'))
    current = host.file(f"{ROOT}/current").linked_to
    outcome = converge({"ai_server_source_path": str(copy), "ai_server_start_timeout": 15})
    assert outcome.code != 0
    assert "serves again" in outcome.message
    assert host.file(f"{ROOT}/current").linked_to == current
    assert serves(host)


@pytest.mark.full
def test_the_source_goes_up_and_down_and_an_archive_serves_too(host, converge, copy):
    current = host.file(f"{ROOT}/current").linked_to
    (copy / "app/version.py").write_text('VERSION = "2"\n')
    assert converge({"ai_server_source_path": str(copy)}).changed == [
        "ai_server : Stage the application release",
        SERVICE,
    ]
    assert host.file(f"{ROOT}/current/app/version.py").exists
    assert serves(host)
    assert converge().changed == [SERVICE]
    assert host.file(f"{ROOT}/current").linked_to == current

    host.check_output("mkdir -p /srv/www")
    host.check_output(f"tar -C {current} -czf /srv/www/app.tar.gz .")
    host.check_output("systemd-run --unit www python3 -m http.server 8098 --directory /srv/www")
    sum_ = host.check_output("sha256sum /srv/www/app.tar.gz").split()[0]
    archive = {"ai_server_source_archive": "http://127.0.0.1:8098/app.tar.gz"}
    wrong = converge({**archive, "ai_server_source_checksum": "sha256:" + "0" * 64})
    assert f"it has sha256:{sum_}, expected sha256:000" in wrong.message
    assert host.file(f"{ROOT}/current").linked_to == current
    right = {**archive, "ai_server_source_checksum": f"sha256:{sum_}"}
    assert SERVICE in converge(right).changed
    host.check_output("systemctl stop www")
    # No request is sent any more: the server is stopped.
    assert (again := converge(right)).code == 0, again.message
    assert again.changed == []
    assert SERVICE in converge().changed


@pytest.mark.full
def test_a_tag_of_a_repository_serves_and_a_branch_is_refused(host, converge):
    current = host.file(f"{ROOT}/current").linked_to
    git = {"ai_server_source_git": "file:///srv/repository", "ai_server_source_version": "v1.0.0"}
    first = converge(git)  # installs git; the repository does not exist yet
    assert first.code != 0
    assert "/srv/repository" in first.message
    host.check_output(f"cp -r {current} /srv/repository && rm /srv/repository/.source.json")
    host.check_output(
        "cd /srv/repository && git init -q -b main && git add . && "
        "git -c user.name=t -c user.email=t@example.com commit -qm v1 && git tag v1.0.0"
    )
    branch = converge({**git, "ai_server_source_version": "main"})
    assert branch.code != 0
    assert "there is no tag main (newest tags: v1.0.0)" in branch.message
    assert SERVICE in converge(git).changed
    assert serves(host)
    assert not host.file(f"{ROOT}/current/.git").exists
    assert converge(git).changed == []
    converge()
    assert host.file(f"{ROOT}/current").linked_to == current


@pytest.mark.full
def test_uv_stays_while_another_service_builds_environments(host, converge):
    other = "/var/lib/llm-server/services/other"
    state = {"created": {"directories": [{"path": "/app/other/environments"}]}}
    host.check_output(f"mkdir {other} && echo '{json.dumps(state)}' > {other}/state.json")
    assert converge({"ai_server_state": "absent"}).code == 0
    assert host.file("/opt/uv/current").exists
    assert host.package("python3-venv").is_installed
    host.check_output(f"rm -r {other}")
    assert converge().code == 0


PROFILE = "../../playbooks/profile.yml"


def test_a_profile_of_the_hardened_unit_is_brought_and_nothing_stays(host, converge, tmp_path):
    before, packages = pid(host), host.check_output("dpkg-query -W | sha256sum")
    wanted = {"profile_unit": "ai-server.service", "profile_seconds": 2, "profile_directory": str(tmp_path)}
    assert converge(wanted, check=True, playbook=PROFILE).changed == []
    assert not list(tmp_path.iterdir())
    # An idle server produces no graph.
    requests = "import urllib.request as r; any(not r.urlopen('http://127.0.0.1:8000/health') for _ in iter(int, 1))"
    host.check_output(f'systemd-run --unit requests python3 -c "{requests}"')
    outcome = converge(wanted, playbook=PROFILE)
    host.check_output("systemctl stop requests")
    assert outcome.code == 0, outcome.message
    (brought,) = tmp_path.iterdir()
    assert brought.name.startswith("machine-ai-server.service-")
    text = brought.read_text()
    assert text.lstrip().startswith("<?xml") and "uvicorn" in text
    assert pid(host) == before and serves(host)
    assert not host.file("/var/lib/llm-profile").exists
    assert host.check_output("dpkg-query -W | sha256sum") == packages


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("systemd-journald.service", "systemd-journald.service is not Python (systemd-journald)"),
        ("vllm.service", "vllm.service is not on this host"),
        ("ai-server", "profile_unit is ai-server; give the unit name with its suffix"),
    ],
)
def test_what_has_no_profile_is_refused(host, converge, unit, message):
    outcome = converge({"profile_unit": unit}, playbook=PROFILE)
    assert outcome.code != 0
    assert message in outcome.message
    assert not host.file("/var/lib/llm-profile").exists


@pytest.mark.full
def test_removal_keeps_data_and_purging_takes_it(host, converge):
    host.check_output(f"runuser -u ai-server -- touch {ROOT}/resources/s3/contract.pdf")
    assert converge({"ai_server_state": "absent"}).code == 0
    assert not host.file("/etc/systemd/system/ai-server.service").exists
    assert not host.file("/etc/logrotate.d/ai-server").exists
    assert host.check_output(f"ls -A {ROOT}").split() == ["resources", "state"]
    assert host.file(f"{ROOT}/resources/s3/contract.pdf").exists
    assert host.file(LOG).exists
    assert not host.file("/opt/uv").exists
    assert not host.package("python3-venv").is_installed
    assert converge({"ai_server_state": "absent"}).changed == []
    assert converge({"ai_server_state": "absent", "ai_server_purge": True}).code == 0
    for path in (ROOT, "/app", "/var/log/dojangkok"):
        assert not host.file(path).exists
    assert not host.user("ai-server").exists
    assert converge().code == 0
    assert serves(host)
