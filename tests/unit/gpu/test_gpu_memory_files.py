"""Headers of model files: what is read, and the errors for damaged files."""

import json

import gpu_memory_samples as samples
import pytest

from plugins.module_utils.gpu.memory.checks import check_adapter, check_model, own_model_type
from plugins.module_utils.gpu.memory.errors import PlanError
from plugins.module_utils.gpu.memory.shape import LINEAR, SLIDING, shape_from_config, shape_from_gguf
from plugins.module_utils.gpu.memory.sources import LocalSource, cached_snapshot, open_model
from plugins.module_utils.gpu.memory.tensors import INDEX, gguf_header, model_tensors, safetensors_header

ADAPTER_TENSORS = "adapter_model.safetensors"


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


def test_an_unknown_architecture_is_reported():
    shape = shape_from_config({**samples.MISTRAL, "architectures": ["NovelForCausalLM"]}, "novel")
    assert not shape.known
    assert "NovelForCausalLM has not been seen" in shape.assumptions[0]


def test_an_unknown_quantization_in_the_configuration():
    config = {**samples.MISTRAL, "quantization_config": {"quant_method": "magic"}}
    with pytest.raises(PlanError, match="Quantization magic is not known"):
        shape_from_config(config, "model")


def test_where_a_model_is_searched(tmp_path):
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


def test_a_complete_model_has_no_problems(tmp_path):
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
    ],
)
def test_an_incomplete_model_is_reported_with_what_is_missing(tmp_path, breaking, words):
    directory = samples.write_model(tmp_path, samples.TINY, "F32", shards=2)
    breaking(directory)
    problems = check_model(str(directory))
    assert len(problems) == 1
    assert words in problems[0]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9085698\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *(
            (name, POINTER, f"{name} of {{}} is a large-file pointer and not the file itself: run git lfs pull, or")
            for name in (
                "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                "chat_template.jinja", "tokenizer.model", "merges.txt", INDEX, "special_tokens_map.json", "code.py",
            )
        ),
        ("model-00001-of-00002.safetensors", POINTER, "is a large-file pointer and not a safetensors file: run git"),
        ("tokenizer.json", "", "tokenizer.json of {} is not valid JSON: download it again."),
        ("tokenizer.model", "", "tokenizer.model of {} is empty: download it again."),
        ("chat_template.jinja", "", "chat_template.jinja of {} is empty: download it again."),
        ("tokenizer_config.json", "[]", "tokenizer_config.json of {} is not a JSON object: download it again."),
        ("generation_config.json", "{'a': 1}", "generation_config.json of {} is not valid JSON: download it again."),
        (INDEX, '{"weight_map": {"a": 5}}', "names no files: download it again."),
        (INDEX, '{"weight_map": {"a": "../x"}}', "names no files: download it again."),
        (INDEX, '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "no a, which the index says it has"),
    ],
)  # fmt: skip
def test_a_file_that_the_engine_reads_and_cannot(tmp_path, name, text, words):
    directory = samples.write_model(tmp_path, samples.TINY, "F32", shards=2)
    (directory / name).write_text(text)
    (said,) = check_model(str(directory))
    assert words.format(directory) in said


def test_a_pointer_in_the_place_of_what_is_not_read_harms_nothing(tmp_path):
    directory = samples.write_model(tmp_path, samples.TINY, "F32")
    for name in ("pytorch_model.bin", "README.md", "model.onnx", "diagram.png"):
        (directory / name).write_text(POINTER)
    assert check_model(str(directory)) == []
    (directory / "model.safetensors").unlink()
    assert "pytorch_model.bin of" in check_model(str(directory))[0]


@pytest.mark.parametrize("name", ["adapter_config.json", ADAPTER_TENSORS, "tokenizer.json"])
def test_a_pointer_in_an_adapter(tmp_path, name):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    (adapter / name).write_text(POINTER)
    (said,) = check_adapter(str(base), str(adapter), 8)
    assert f"{name} of {adapter} is a large-file pointer" in said


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (["tokenizer_config.json"], "has no tokenizer files"),
        (["vocab.json"], "has vocab.json and no merges.txt"),
        (["vocab.json", "merges.txt"], ""),
        (["tokenizer.model"], ""),
        (["qwen.tiktoken"], ""),
    ],
)
def test_a_tokenizer_is_its_vocabulary(tmp_path, there, words):
    directory = samples.write_model(tmp_path, samples.TINY, "F32")
    (directory / "tokenizer.json").unlink()
    for name in there:
        (directory / name).write_text("{}")
    problems = check_model(str(directory))
    assert len(problems) == bool(words) and all(words in said for said in problems)


AUTO = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
BESIDE = {"configuration_own.py": "X = 1\n", "modeling_own.py": "from .configuration_own import OwnConfig\n"}


def own_code(directory, auto_map, files, name="config.json"):
    samples.write_model(directory, samples.TINY, "F32")
    config = {**samples.TINY, "model_type": "own"} if name == "config.json" else {}
    (directory / name).write_text(json.dumps({**config, "auto_map": auto_map}))
    for file, text in files.items():
        (directory / file).write_text(text)
    return str(directory)


@pytest.mark.parametrize(
    ("auto_map", "files", "words"),
    [
        (AUTO, BESIDE, ""),
        ({**AUTO, "AutoTokenizer": ["modeling_own.Slow", None]}, BESIDE, ""),
        (AUTO, {**BESIDE, "modeling_own.py": None}, "auto_map in config.json names modeling_own.py, which is not in"),
        (AUTO, {**BESIDE, "modeling_own.py": ""}, "auto_map in config.json names modeling_own.py, which is not in"),
        (AUTO, {**BESIDE, "modeling_own.py": "from .absent import x\n"}, "modeling_own.py names absent.py, which"),
        ({"AutoConfig": "other/repo--own.OwnConfig"}, BESIDE, "takes own.OwnConfig from other/repo, which the engine"),
        ({"AutoTokenizer": [None, "other/repo--tok.Fast"]}, BESIDE, "takes tok.Fast from other/repo"),
        ({"AutoConfig": "OwnConfig"}, BESIDE, "names no class of a file"),
        ({"AutoConfig": 5}, BESIDE, "names no class of a file"),
        ("configuration_own", BESIDE, "names no class of a file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_models_own_must_be_beside_it(tmp_path, auto_map, files, words, name):
    directory = own_code(tmp_path, auto_map, {file: text for file, text in files.items() if text is not None}, name)
    problems = check_model(directory)
    assert len(problems) == bool(words), problems
    assert all(words.replace("config.json", name) in said for said in problems)
    assert check_model(directory, trust_remote_code=False) == [], "nobody reads it"


def test_the_type_that_only_the_code_beside_it_knows(tmp_path):
    assert own_model_type(own_code(tmp_path / "a", AUTO, BESIDE)) == "own"
    assert own_model_type(own_code(tmp_path / "b", {"AutoModel": "x.Y"}, {})) == ""
    assert own_model_type(str(samples.write_model(tmp_path / "c", samples.TINY))) == ""


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
        ({"config": samples.TINY}, 9, "max_lora_rank 9 is not one of"),
    ],
)
def test_an_adapter_that_does_not_fit(tmp_path, arguments, rank, words):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", **arguments)
    problems = check_adapter(str(base), str(adapter), rank)
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        *(({"r": r}, "rank r, a whole number above 0") for r in (True, "8", 0, -1, 8.5, [8])),
        *(({"lora_alpha": a}, "lora_alpha, a number above 0") for a in (None, "16", True, 0, {})),
        *(({"target_modules": t}, "target_modules, a list of the modules' names") for t in (None, [], "", 5, {}, [1])),
        *(({"rank_pattern": p}, "rank_pattern that maps modules' names to numbers") for p in ([8], "a", {"a": True})),
        *(({"alpha_pattern": p}, "alpha_pattern that maps modules' names to numbers") for p in (["a"], 3, {"a": None})),
    ],
)
def test_an_adapters_configuration_must_have_what_the_engine_needs(tmp_path, changes, lacks):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY, **changes)
    said = f"adapter_config.json of {adapter} has no {lacks}: save the adapter again."
    assert check_adapter(str(base), str(adapter), 8) == [said]


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj", "c_attn"]},
        {"lora_alpha": 0.5, "rank_pattern": None, "alpha_pattern": {}},
        {"r": 4, "rank_pattern": {r".*\.q_proj": 8, "v_proj": 8}},
        {"r": 4, "rank_pattern": {"q_proj": 8, "layers.*self_attn.v_proj": 8}},
    ],
)
def test_other_spellings_are_accepted(tmp_path, changes):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    assert check_adapter(str(base), str(samples.write_adapter(tmp_path / "a", samples.TINY, **changes)), 8) == []


Q = "model.layers.0.self_attn.q_proj"


def adapter_tensors(**changes):
    """Return the tensors of an adapter of rank 8 for TINY's q_proj, updated by `changes`; None removes one."""
    at = f"base_model.model.{Q}"
    own = {"lora_A": (8, 64), "lora_B": (64, 8), **changes}
    return {f"{at}.{name}.weight": shape for name, shape in own.items() if shape is not None}


@pytest.mark.parametrize(
    ("tensors", "dtype", "words"),
    [
        ({}, "F32", "has no LoRA weights (lora_A and lora_B): save the adapter again."),
        ({"model.norm.weight": (64,)}, "F32", "has no LoRA weights (lora_A and lora_B): save the adapter again."),
        (adapter_tensors(lora_B=None), "F32", f"the lora_A of {Q} and not its lora_B (1 in all)"),
        (adapter_tensors(lora_A=None), "F32", f"the lora_B of {Q} and not its lora_A (1 in all)"),
        (adapter_tensors(lora_A=(4, 64), lora_B=(64, 4)), "F32", f"rank 4 for {Q}, and adapter_config.json says 8"),
        (adapter_tensors(lora_B=(64, 4)), "F32", "has rank 4 for"),
        (adapter_tensors(lora_A=(8, 8, 8)), "F32", f"a lora_A of {Q} that is no matrix"),
        (adapter_tensors(lora_A=(0, 64)), "F32", f"a lora_A of {Q} that is no matrix"),
        (adapter_tensors(), "I32", "has weights of type I32 for"),
        (adapter_tensors(), "F32", "has nothing for the target module v_proj: save"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_base", [True, False])
def test_an_adapters_weights_are_judged_by_what_must_be_there(tmp_path, tensors, dtype, words, with_base):
    base = samples.write_model(tmp_path / "base", samples.TINY, "F32")
    if not with_base:  # nothing to compare with, as if the base's weights were not safetensors
        (base / "model.safetensors").rename(base / "pytorch_model.bin")
    adapter = samples.write_adapter(tmp_path / "a", samples.TINY)
    samples.write_safetensors(adapter / ADAPTER_TENSORS, tensors, dtype)
    problems = check_adapter(str(base), str(adapter), 8)
    if "target module" in words and not with_base:  # the model's modules are unknown
        assert problems == []
        return
    (said,) = problems
    assert said.startswith(f"{ADAPTER_TENSORS} of {adapter} has ") and words in said


def spoil(path, change):
    """Write a file of two tensors, with its valid header modified by `change`."""
    header = {"a": {"shape": [2, 2], "data_offsets": [0, 16]}, "b": {"shape": [4], "data_offsets": [16, 32]}}
    header = {name: {"dtype": "F32", **entry} for name, entry in header.items()}
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: None, ""),
        (lambda h: h.update(__metadata__={"format": "pt"}), ""),
        (lambda h: h["a"].update(dtype="F16"), "damaged where a stands"),
        (lambda h: h["a"].update(shape=[2, 3]), "damaged where a stands"),
        (lambda h: h["b"].update(data_offsets=[8, 24]), "damaged where b stands"),
        (lambda h: h["a"].update(data_offsets=[4, 20]), "damaged where a stands"),
        (lambda h: h.pop("b"), "damaged: it has"),
        (lambda h: h["b"].update(data_offsets=[32, 16]), "not a safetensors file"),
        (lambda h: h["b"].update(data_offsets=[-16, 0]), "not a safetensors file"),
        (lambda h: h["b"].update(data_offsets=["16", "32"]), "not a safetensors file"),
        (lambda h: h["b"].update(shape="4"), "not a safetensors file"),
        (lambda h: h["b"].update(shape=[True, 4]), "not a safetensors file"),
        (lambda h: h["b"].update(dtype=None), "not a safetensors file"),
        (lambda h: h.update(b=[16, 32]), "not a safetensors file"),
        (lambda h: h["b"].update(shape=[8], data_offsets=[16, 48]), "truncated: it has"),
    ],
)
def test_a_wrong_header(tmp_path, change, words):
    spoil(tmp_path / "model.safetensors", change)
    if not words:
        assert len(safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")) == 2
        return
    with pytest.raises(PlanError, match=words):
        safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")


@pytest.mark.parametrize("body", [b"[" * 200_000, b"[]", b'{"a": ', b"\xff" * 8, b"null"])
def test_an_invalid_header(tmp_path, body):
    (tmp_path / "model.safetensors").write_bytes(len(body).to_bytes(8, "little") + body)
    with pytest.raises(PlanError, match="not a safetensors file"):
        safetensors_header(LocalSource(str(tmp_path)), "model.safetensors")


def test_an_incomplete_adapter(tmp_path):
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
