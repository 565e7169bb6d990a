"""vmalert's command line has the store to query and the store for its state."""

from __future__ import annotations

from pathlib import Path

from plugins.filter import vmalert

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = {
    "program": "/vmalert", "rules": "/rules.yml", "listen": "127.0.0.1:8880", "interval": "30s", "delay": "10s",
    "notifiers": ["http://a:9093", "http://b:9093"], "labels": {}, "external_url": "",
}  # fmt: skip
OPEN = {"url": "http://m:8428", "user": "", "password_file": "/password"}


def test_each_store_has_its_own_login_and_no_password_stands_in_the_command():
    logs = {"url": "http://l:9428", "user": "reader", "password_file": "/logs_password"}
    argv = vmalert.vmalert_argv(SETTINGS, logs, OPEN)
    stores = [word for word in argv if word.startswith(("-datasource", "-remote"))]
    assert stores == [
        "-datasource.url=http://l:9428",
        "-datasource.basicAuth.username=reader",
        "-datasource.basicAuth.passwordFile=/logs_password",
        "-remoteWrite.url=http://m:8428",
        "-remoteRead.url=http://m:8428",
    ]
    assert [word for word in argv if "notifier" in word] == [
        "-notifier.url=http://a:9093",
        "-notifier.url=http://b:9093",
    ]


def test_labels_and_the_address_come_last_and_sorted():
    more = {"labels": {"z": "1", "fleet": "b"}, "external_url": "http://w"}
    argv = vmalert.vmalert_argv({**SETTINGS, **more}, OPEN, OPEN)
    assert argv[-3:] == ["-external.label=fleet=b", "-external.label=z=1", "-external.url=http://w"]
