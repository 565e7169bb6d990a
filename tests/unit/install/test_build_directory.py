"""The directory of a program's builds: one build at a time, and an error that names what is missing."""

from __future__ import annotations

import concurrent.futures
import time

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install.build_directory import BuildDirectory


def test_a_second_build_waits_for_the_first(tmp_path):
    order = []

    def build(name):
        with BuildDirectory(tmp_path / "builds").lock():
            order.append(f"{name} begins")
            time.sleep(0.2)
            order.append(f"{name} ends")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(build, ["one", "two"]))
    first, second = order[0].split()[0], order[2].split()[0]
    assert order == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]


def test_a_full_disk_is_an_error_with_the_cure(tmp_path):
    BuildDirectory(tmp_path).need_room(0)
    with pytest.raises(UserError, match=r"MiB free, 99999999 MiB are needed to build; make room$"):
        BuildDirectory(tmp_path).need_room(99999999, "make room")
