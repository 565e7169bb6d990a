"""The tiny model: loadable files, the same in every run, and adapters that change its answers."""

import filecmp
import importlib.metadata
import stat
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from lab import hub, model
from plugins.module_utils.gpu.memory.sources import LocalSource
from plugins.module_utils.gpu.memory.tensors import gguf_header


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model.make(folder, misfits=True)
    return folder


def test_making_it_twice_gives_the_same_files(made, tmp_path):
    model.make(tmp_path)
    for part in ("tiny", "adapters/easycontract", "adapters/checklist"):
        names = [path.name for path in (made / part).iterdir()]
        assert filecmp.cmpfiles(made / part, tmp_path / part, names, shallow=False)[0] == names


def test_every_user_can_read_every_file(made):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_tensors_have_the_shapes_of_the_configuration(made):
    tensors = load_file(made / "tiny" / "model.safetensors")
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (32, 64)
    assert tensors["lm_head.weight"].shape == (384, 64)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}


def test_tokenizer_keeps_any_text(made):
    tokenizer = Tokenizer.from_file(str(made / "tiny" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == model.VOCABULARY
    assert tokenizer.decode(tokenizer.encode("계약서 and the deposit").ids) == "계약서 and the deposit"


@pytest.mark.parametrize(("name", "rank"), [("easycontract", 16), ("checklist", 8)])
def test_adapters_fit_the_model_and_weigh_enough(made, name, rank):
    base = load_file(made / "tiny" / "model.safetensors")
    adapter = load_file(made / "adapters" / name / "adapter_model.safetensors")
    for module in ("q_proj", "v_proj"):
        prefix = f"model.layers.0.self_attn.{module}"
        down = adapter[f"base_model.model.{prefix}.lora_A.weight"]
        up = adapter[f"base_model.model.{prefix}.lora_B.weight"]
        assert down.shape[0] == rank
        change = 2 * up @ down
        assert change.shape == base[f"{prefix}.weight"].shape
        assert np.linalg.norm(change) > np.linalg.norm(base[f"{prefix}.weight"])


def test_each_misfit_has_the_fault_it_is_named_after(made):
    def shape(kind, module="q_proj"):
        tensors = load_file(made / "misfits" / kind / "adapter_model.safetensors")
        return tensors[f"base_model.model.model.layers.0.self_attn.{module}.lora_A.weight"].shape

    assert shape("rank") == (32, 64)
    assert shape("shape") == (8, 128)
    assert shape("modules", "query_key_value") == (8, 64)
    assert [path.name for path in (made / "misfits" / "empty").iterdir()] == ["adapter_config.json"]


def test_hub_repository_keeps_older_revisions(made, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HUB", tmp_path)
    first = hub.commit("x", made / "adapters" / "checklist")
    second = hub.commit("x", made / "adapters" / "easycontract")
    assert first != second
    assert (tmp_path / "lab" / "x" / ".main").read_text() == second
    assert (tmp_path / "lab" / "x" / first / "adapter_config.json").exists()


def test_wheel_is_named_vllm_for_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "WHEELS", tmp_path)
    with zipfile.ZipFile(hub.vllm_wheel()) as wheel:
        wheel.extractall(tmp_path / "site")
    (found,) = importlib.metadata.distributions(path=[str(tmp_path / "site")])
    assert (found.name, found.version) == ("vllm", "0.32.0+cpu")


def test_the_gguf_files_have_the_models_tensors_and_the_length_of_their_header(made):
    base = gguf_header(LocalSource(str(made / "gguf")), "tiny.gguf")
    assert base.metadata["general.architecture"] == "llama" and len(base.tensors) == len(
        load_file(made / "tiny" / "model.safetensors")
    )
    assert base.tensors["blk.1.attn_k.weight"].shape == (32, 64)
    for name in model.ADAPTERS:
        adapter = gguf_header(LocalSource(str(made / "gguf")), f"{name}.gguf")
        assert {tensor.partition(".weight.")[2] for tensor in adapter.tensors} == {"lora_a", "lora_b"}
    assert (made / "gguf/code.gguf").read_bytes() != (made / "gguf/tiny.gguf").read_bytes()
