"""A trial of flags reports the program's complaint with the variable's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plugins.module_utils.release.flag_trial import complaint

TRIAL = Path(__file__).resolve().parents[3] / "plugins/module_utils/release/flag_trial.py"


@pytest.mark.parametrize(
    "said, wrong",
    [
        ("flag provided but not defined: -x\n\nvmagent collects.\n\nRun -help.\n", "flag provided but not defined: -x"),
        ('invalid value "a" for flag -y: cannot parse\n\nusage\n', 'invalid value "a" for flag -y: cannot parse'),
        ("2026-11-26T20:40:37.873Z\tinfo\tlib/flag.go:12\tversion\n2026Z\tfatal\tmain.go:1\tno disk.\n", "no disk"),
        ("info\tlib/flag.go:12\tversion\nfatal\tmain.go:1\tno disk\n", "no disk"),
        ("info\tlib/flag.go:12\tversion\nSIGABRT: abort\n", "SIGABRT: abort"),
        ("", "it leaves without a word"),
    ],
)
def test_the_complaint_is_the_programs_own(said, wrong):
    assert complaint(said) == wrong


def test_it_names_the_variable_and_is_silent_where_all_is_well():
    def tried(code):
        program = f"import sys; print('flag provided but not defined: -x'); sys.exit({code})"
        argv = [sys.executable, str(TRIAL), "vmagent_arguments", sys.executable, "-c", program]
        return subprocess.run(argv, capture_output=True, text=True)

    assert (tried(0).returncode, tried(0).stderr) == (0, "")
    assert tried(2).stderr == "vmagent_arguments: flag provided but not defined: -x; correct it.\n"
