"""What llama-server prints about itself, and its command line from the role's arguments."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.module_utils.engines.llama_cpp_program import ask, names, unknown, version
from plugins.module_utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
# Lines from the help page of 0.7.0.
PAGE = """----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-tb,   --threads-batch N                number of threads to use (default:
                                        same as --threads)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory ('on' or
--lora-scaled FNAME:SCALE,...           path to LoRA adapter, see --lora-init-without-apply
--metrics                               enable prometheus compatible metrics endpoint (default: disabled)
"""


def filters():
    module = importlib.import_module("plugins.filter.llama_cpp")
    return module.FilterModule().filters()


FILTERS = filters()


def test_the_names_are_those_of_the_first_column():
    assert names(PAGE) == {
        "help", "usage", "ctx-size", "threads-batch", "kv-offload", "no-kv-offload", "fit", "lora-scaled", "metrics",
    }  # fmt: skip


def test_an_unknown_name_is_reported_with_the_nearest():
    known = names(PAGE)
    assert unknown(["ctx_size", "--fit", "no-kv-offload"], known, "llama_cpp_arguments") == []
    assert unknown(["ctx-sise", "xyz"], known, "llama_cpp_arguments") == [
        "llama_cpp_arguments: this version has no argument ctx-sise; did you mean ctx-size?",
        "llama_cpp_arguments: this version has no argument xyz; llama-server --help lists them.",
    ]


def test_the_version_is_read_from_the_program():
    output = "version: 0.7.0 (build 11669, commit Debian)\nbuilt with GNU 16.2.0 for Linux x86_64\n"
    assert version(output) == "0.7.0 (build 11669, commit Debian)"
    assert version("nothing") == ""


def test_a_program_that_does_not_run_here_names_the_cause(tmp_path):
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'libgomp.so.1: cannot open shared object file' >&2\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match=r"llama-server does not run here: libgomp.so.1: cannot open"):
        ask(str(program), "--version", None)
    program.write_text("#!/bin/sh\nkill -ILL $$\n")
    with pytest.raises(UserError, match="this processor lacks instructions"):
        ask(str(program), "--version", None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_it_is_called_as_the_services_user():
    with pytest.raises(UserError, match=r"Permission denied|cannot open"):
        ask("/root/llama-server", "--version", "nobody")


def test_arguments_become_words():
    words = FILTERS["llama_cpp_words"]
    given = {"ctx_size": 256, "metrics": True, "warmup": False, "threads": None, "override-kv": ["a=1", "b=2"]}
    assert words(given) == [
        "--ctx-size", "256", "--metrics", "--no-warmup", "--override-kv", "a=1", "--override-kv", "b=2",
    ]  # fmt: skip
    assert FILTERS["llama_cpp_names"](given) == ["ctx-size", "metrics", "no-warmup", "override-kv"]


def test_adapters_are_loaded_without_effect_unless_a_scale_is_set():
    paths = {"a": "/srv/a.gguf", "b": "/srv/b.gguf"}
    loras = FILTERS["llama_cpp_loras"]
    assert loras([{"name": "a"}, {"name": "b", "scale": 0.5}], paths) == "/srv/a.gguf:0,/srv/b.gguf:0.5"
    assert loras([], {}) is None


def test_what_a_version_does_not_have_is_left_out():
    guards = {"fit": "off", "no-ui": True}
    assert FILTERS["llama_cpp_supported"](guards, ["fit"]) == {"fit": "off"}
    assert FILTERS["llama_cpp_supported"](guards, []) == guards, "in check mode the program is still to come"


@pytest.mark.parametrize(
    ("model", "file", "alias"), [("/srv/m/code-Q4.gguf", "", "code-Q4"), ("Qwen/Coder-GGUF", "sub/coder.gguf", "coder")]
)
def test_a_model_is_named_by_its_file(model, file, alias):
    assert FILTERS["llama_cpp_alias"](model, file) == alias


def test_a_type_of_the_cache_is_for_both_or_for_each():
    assert FILTERS["llama_cpp_kv_types"]("q8_0") == {"cache-type-k": "q8_0", "cache-type-v": "q8_0"}
    assert FILTERS["llama_cpp_kv_types"]("q8_0/q4_0") == {"cache-type-k": "q8_0", "cache-type-v": "q4_0"}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: invalid argument: --x", "llama-server refuses its arguments: invalid argument: --x; correct"),
        (
            'error while handling argument "--ctx-size": stoi\n\nusage:',
            "refuses --ctx-size: it must be a whole number;",
        ),
        ('error while handling argument "--x": error: failed to open file', "refuses --x: failed to open file;"),
        ("", "it leaves without a word"),
    ],
)
def test_what_the_program_refuses_is_one_sentence(tmp_path, output, expected):
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit 1\n")
    program.chmod(0o755)
    script = ROOT / "roles/llama_cpp/files/check_arguments.py"
    done = subprocess.run([sys.executable, script, program, "--x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and expected in done.stderr and len(done.stderr.splitlines()) == 1
