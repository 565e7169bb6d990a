"""Headers of model files: what is read, and what a damaged file is told to be."""

import json

import gpu_memory_samples as samples
import pytest
from ansible.module_utils.gpu_memory.checks import check_adapter, check_model
from ansible.module_utils.gpu_memory.errors import PlanError
from ansible.module_utils.gpu_memory.shape import LINEAR, SLIDING, shape_from_config, shape_from_gguf
from ansible.module_utils.gpu_memory.sources import LocalSource, cached_snapshot, open_model
from ansible.module_utils.gpu_memory.tensors import gguf_header, model_tensors, safetensors_header

ADAPTER_TENSORS = "adapter_model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def test_tensors_of_one_file_and_of_shards_are_the_same(tmp_path):
    one = model_tensors(LocalSource(str(samples.write_model(tmp_path / "one", samples.TINY, "F32"))))
    many = model_tensors(LocalSource(str(samples.write_model(tmp_path / "many", samples.TINY, "F32", shards=3))))
    assert one == many
    assert one["lm_head.weight"].size == 384 * 64 * 4


def test_only_headers_are_read(tmp_path):
    directory = samples.write_model(tmp_path, samples.MISTRAL)
    read = []

    class Counting(LocalSource):
        def read(self, name, start=0, length=None):
            piece = super().read(name, start, length)
            read.append(len(piece))
            return piece

    tensors = model_tensors(Counting(str(directory)))
    assert sum(t.size for t in tensors.values()) > 14e9
    assert sum(read) < 100_000


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_safetensors_file(tmp_path, cut):
    file = tmp_path / "model.safetensors"
    size = samples.write_safetensors(file, {"a": (64, 64)})
    with file.open("r+b") as handle:
        handle.truncate(size + cut if cut < 0 else cut)
    with pytest.raises(PlanError, match="truncated"):
        safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")


def test_something_else_in_a_safetensors_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\noid sha256:0\n")
    with pytest.raises(PlanError, match="not a safetensors file"):
        safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")


@pytest.mark.parametrize("cut", [4, 40, 4000, -5000])
def test_a_truncated_gguf_file(tmp_path, cut):
    file = tmp_path / "model.gguf"
    size = samples.qwen_gguf(file, "3B")
    with file.open("r+b") as handle:
        handle.truncate(size + cut if cut < 0 else cut)
    with pytest.raises(PlanError, match="truncated"):
        gguf_header(LocalSource(str(tmp_path)), "model.gguf")


def test_no_gguf_file_at_all(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not this format")
    with pytest.raises(PlanError, match="not a GGUF file"):
        gguf_header(LocalSource(str(tmp_path)), "model.gguf")


def test_shape_of_a_gguf_file(tmp_path):
    samples.qwen_gguf(tmp_path / "m.gguf", "7B")
    header = gguf_header(LocalSource(str(tmp_path)), "m.gguf")
    shape = shape_from_gguf(header.metadata, header.tensors, "m.gguf")
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.vocab, shape.tied) == (28, 4, 128, 152064, False)


def test_shape_of_a_configuration_in_other_words():
    shape = shape_from_config(samples.EXAONE, "exaone")
    assert (shape.layers, shape.head_dim, shape.tied, shape.max_position, shape.known) == (30, 80, True, 32768, True)


def test_shape_of_mixed_layers():
    shape = shape_from_config(
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"], "vision_config": {},
            "text_config": {
                "num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 24, "num_key_value_heads": 4,
                "head_dim": 256, "vocab_size": 248320, "intermediate_size": 17408, "full_attention_interval": 4,
            },
        },
        "mixed",
    )  # fmt: skip
    assert [(g.kind, g.count) for g in shape.groups] == [(LINEAR, 48), ("full", 16)]
    assert (shape.multimodal, shape.hybrid) == (True, True)
    gemma = shape_from_config(
        {
            "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 26, "hidden_size": 1152,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
            "sliding_window": 512, "sliding_window_pattern": 6,
        },
        "gemma",
    )  # fmt: skip
    assert [(g.kind, g.count, g.window) for g in gemma.groups] == [(SLIDING, 22, 512), ("full", 4, 0)]


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_configuration_without_a_field_names_it(field):
    config = {key: value for key, value in samples.MISTRAL.items() if key != field}
    with pytest.raises(PlanError, match=f"lacks {field}"):
        shape_from_config(config, "model")


def test_an_architecture_never_seen_is_said():
    shape = shape_from_config({**samples.MISTRAL, "architectures": ["NovelForCausalLM"]}, "novel")
    assert not shape.known
    assert "NovelForCausalLM has not been seen" in shape.assumptions[0]


def test_an_unknown_quantization_in_the_configuration():
    config = {**samples.MISTRAL, "quantization_config": {"quant_method": "magic"}}
    with pytest.raises(PlanError, match="Quantization magic is not known"):
        shape_from_config(config, "model")


def test_where_a_model_is_looked_for(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/models--org--name/refs").mkdir()
    (tmp_path / "hub/models--org--name/refs/main").write_text("abc\n")
    assert cached_snapshot(str(tmp_path), "org/name") == str(snapshot)
    assert cached_snapshot(str(tmp_path), "org/name", "abc") == str(snapshot)
    assert cached_snapshot(str(tmp_path), "org/name", "other") is None
    source, file = open_model("org/name", hf_home=str(tmp_path))
    assert (source.label, file) == (str(snapshot), "")
    with pytest.raises(PlanError, match="no hub_url is given"):
        open_model("org/other", hf_home=str(tmp_path))
    with pytest.raises(PlanError, match="does not exist"):
        open_model(str(tmp_path / "absent"))
    with pytest.raises(PlanError, match="does not exist"):
        open_model(str(tmp_path / "absent.gguf"))


def test_a_whole_model_has_no_problems(tmp_path):
    assert check_model(str(samples.write_model(tmp_path / "m", samples.TINY, "F32", shards=2))) == []
    samples.qwen_gguf(tmp_path / "m.gguf", "3B")
    assert check_model(str(tmp_path / "m.gguf")) == []


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors is named"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda d: (d / "model-00001-of-00002.safetensors").write_bytes(b"x" * 20), "truncated"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "names no files"),
        (lambda d: [f.unlink() for f in d.glob("model*")], "no weight files"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["b"]}}'), "names no files"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json of "),
        (lambda d: (d / "tokenizer.json").write_text(""), "tokenizer.json of "),
        (lambda d: (d / "generation_config.json").write_bytes(b"\xff"), "generation_config.json of "),
        (lambda d: (d / "tokenizer.json").write_text(POINTER), "tokenizer.json of "),
        (lambda d: [f.write_text(POINTER) for f in d.glob("*.safetensors")], "is a pointer of git-lfs"),
    ],
)
def test_an_incomplete_model_is_told_by_its_gap(tmp_path, breaking, words):
    directory = samples.write_model(tmp_path, samples.TINY, "F32", shards=2)
    breaking(directory)
    problems = check_model(str(directory))
    assert len(problems) == 1
    assert words in problems[0]


CONFIGURATION = "from transformers import PretrainedConfig\nclass Own(PretrainedConfig):\n    pass\n"
MODEL = "from .configuration_own import Own\nfrom . import kernels\n"
OWN = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.OwnModel"}


@pytest.mark.parametrize(
    ("auto_map", "files", "words"),
    [
        (OWN, {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODEL, "kernels.py": ""}, None),
        (OWN, {"configuration_own.py": CONFIGURATION}, "needs modeling_own.py of the model's own code"),
        (OWN, {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODEL}, "needs kernels.py of the model's own"),
        (OWN, {"configuration_own.py": CONFIGURATION, "modeling_own.py": "<html>"}, "modeling_own.py of "),
        ({"AutoConfig": "other/repository--configuration_own.Own"}, {}, "from the repository other/repository, which"),
        ({"AutoTokenizer": ["tokenization_own.Own", None]}, {}, "needs tokenization_own.py"),
        (None, {}, None),
        ("nonsense", {}, None),
    ],
)
def test_the_code_that_a_model_brings_is_in_its_directory(tmp_path, auto_map, files, words):
    directory = samples.write_model(tmp_path, {**samples.TINY, "auto_map": auto_map}, "F32")
    for name, text in files.items():
        (directory / name).write_text(text)
    problems = check_model(str(directory))
    assert [words in problem for problem in problems] == ([True] if words else [])
    # What the engine does not run need not be there.
    assert check_model(str(directory), trust_remote_code=False) == []


def test_an_adapter_that_fits(tmp_path):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    assert check_adapter(str(base), str(samples.write_adapter(tmp_path / "a", samples.TINY)), 8) == []
    everything = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert check_adapter(str(base), str(samples.write_adapter(tmp_path / "b", samples.TINY, 16, everything)), 16) == []


WIDER = {**samples.TINY, "hidden_size": 96}
DEEPER = {**samples.TINY, "num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("arguments", "rank", "words"),
    [
        ({"config": samples.TINY, "rank": 16}, 8, "rank 16, max_lora_rank is 8: set max_lora_rank to 16"),
        ({"config": samples.TINY, "rank_pattern": {"q_proj": 64}}, 8, "rank 64"),
        ({"config": WIDER}, 8, "does not fit the model's shape"),
        ({"config": DEEPER}, 8, "targets model.layers.2.self_attn.q_proj, which the model does not have"),
        ({"config": samples.TINY, "peft_type": "IA3"}, 8, "type IA3"),
        ({"config": samples.TINY, "use_dora": True}, 8, "use_dora"),
        ({"config": samples.TINY, "modules_to_save": ["lm_head"]}, 8, "modules_to_save"),
        ({"config": samples.TINY, "bias": "all"}, 8, "biases"),
        ({"config": samples.TINY, "r": None}, 8, "no rank r"),
        ({"config": samples.TINY, "r": True}, 8, "has r true, which must be a whole number above 0"),
        ({"config": samples.TINY, "r": "8"}, 8, 'has r "8"'),
        ({"config": samples.TINY, "lora_alpha": None}, 8, "has no lora_alpha"),
        ({"config": samples.TINY, "lora_alpha": False}, 8, "has lora_alpha false"),
        ({"config": samples.TINY, "target_modules": None}, 8, "has no target_modules"),
        ({"config": samples.TINY, "target_modules": []}, 8, "has target_modules []"),
        ({"config": samples.TINY, "target_modules": [1]}, 8, "has target_modules [1]"),
        (
            {"config": samples.TINY, "rank_pattern": ["q_proj"]},
            8,
            'has rank_pattern ["q_proj"], which must be a mapping',
        ),
        ({"config": samples.TINY, "rank_pattern": {"q_proj": "8"}}, 8, "has rank_pattern"),
        ({"config": samples.TINY, "alpha_pattern": 3}, 8, "has alpha_pattern 3"),
        ({"config": samples.TINY}, 9, "max_lora_rank 9 is not one of"),
    ],
)
def test_an_adapter_that_does_not_fit(tmp_path, arguments, rank, words):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", **arguments)
    problems = check_adapter(str(base), str(adapter), rank)
    assert len(problems) == 1
    assert words in problems[0]


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("tensors", "dtype", "words"),
    [
        ({}, "F32", "has no weights of an adapter"),
        ({"something.weight": (8, 8)}, "F32", "has no weights of an adapter"),
        ({A: (8, 64)}, "F32", "has no lora_B of model.layers.0.self_attn.q_proj (1 modules lack a half)"),
        ({B: (64, 8)}, "F32", "has no lora_A of model.layers.0.self_attn.q_proj"),
        ({A: (8, 64), B: (64, 4)}, "F32", "lora_A has rank [8] and lora_B [4]"),
        ({A: (16, 64), B: (64, 16)}, "F32", "has rank 16, max_lora_rank is 8"),
        ({A: (8, 64), B: (64, 8)}, "I32", "as I32, which is not a floating-point type"),
    ],
)
def test_an_adapter_without_what_must_be_there(tmp_path, tensors, dtype, words):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    samples.write_safetensors(adapter / ADAPTER_TENSORS, tensors, dtype)
    problems = check_adapter(str(base), str(adapter), 8)
    assert words in problems[0]


def test_an_adapter_that_is_a_pointer(tmp_path):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    (adapter / ADAPTER_TENSORS).write_text(POINTER)
    (problem,) = check_adapter(str(base), str(adapter), 8)
    assert f"{ADAPTER_TENSORS} of {adapter} is a pointer of git-lfs" in problem


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 128]},
        {"dtype": "F32", "shape": [-8, -4], "data_offsets": [0, 128]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]},
    ],
)
def test_a_header_whose_sizes_disagree_is_damaged(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(512))
    with pytest.raises(PlanError, match="truncated or not a safetensors file"):
        safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")


def test_an_adapter_that_is_not_whole(tmp_path):
    base = str(samples.write_model(tmp_path / "base", samples.TINY, "F32"))
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    (adapter / ADAPTER_TENSORS).rename(adapter / "adapter_model.bin")
    assert "only adapter_model.bin" in check_adapter(base, str(adapter), 8)[0]
    (adapter / "adapter_config.json").unlink()
    assert "no adapter_config.json" in check_adapter(base, str(adapter), 8)[0]
    assert "does not exist" in check_adapter(base, str(tmp_path / "absent"), 8)[0]


def test_an_adapter_of_a_quantized_model_is_judged_by_its_modules(tmp_path):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    names = {
        name.replace(".weight", ".qweight") if "proj" in name else name: shape
        for name, shape in samples.llama_tensors(samples.TINY).items()
    }
    samples.write_safetensors(base / "model.safetensors", names, "I32")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    assert check_adapter(str(base), str(adapter), 8) == []
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 8


def test_a_damaged_number_of_layers_is_not_counted_out():
    with pytest.raises(PlanError, match="has 99999999 layers"):
        shape_from_config({**samples.MISTRAL, "num_hidden_layers": 99999999}, "model")
