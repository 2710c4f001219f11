"""Files become configurations, or errors a person can act on."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caption_flow.config.load import (
    load_monitor,
    load_orchestrator,
    load_worker,
    parse_orchestrator,
)
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError

CONTENT = """\
dataset:
  type: local
  dataset_path: images
vllm:
  model: m
  inference_prompts: [describe]
"""


def under(key: str, content: str = CONTENT) -> str:
    return f"{key}:\n" + "".join(f"  {line}\n" for line in content.splitlines())


def refusals(text: str, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_orchestrator(text, source="f.yaml", overrides=overrides)
    return str(caught.value).splitlines()


# -------------------------------------------------------------------------------------------- form


def test_both_root_forms_mean_the_same() -> None:
    assert parse_orchestrator(CONTENT) == parse_orchestrator(under("orchestrator"))


def test_a_file_may_hold_several_components(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        under("orchestrator") + "worker: {server: 'ws://h'}\nmonitor: {refresh_rate: 2}\n"
    )
    assert load_orchestrator(file).config.dataset.dataset_path == "images"
    assert load_worker(file).config.server == "ws://h"
    assert load_monitor(file).config.refresh_rate == 2
    assert load_monitor(file).path == file


def test_a_file_without_the_component_says_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(under("orchestrator"))
    with pytest.raises(ConfigError) as caught:
        load_worker(file)
    assert str(caught.value) == f"{file}: has no 'worker:' section, only 'orchestrator:'"


def test_keys_beside_the_component_are_refused() -> None:
    assert refusals(under("orchestrator") + "storage: {}\nvlm: {}\nwroker: {}\n") == [
        "f.yaml:8: storage: stands beside 'orchestrator:' and belongs under it",
        "f.yaml:9: vlm: unknown key",
        "f.yaml:10: wroker: unknown key; did you mean worker?",
    ]


def test_a_misspelt_component_is_all_that_is_complained_of() -> None:
    assert refusals(under("orchestartor")) == [
        "f.yaml:1: orchestartor: unknown key; did you mean orchestrator?"
    ]


def test_json_and_yaml_mean_the_same(tmp_path: Path) -> None:
    content = {
        "dataset": {"type": "local", "dataset_path": "a/b"},
        "vllm": {
            "model": "m",
            "inference_prompts": ["tab\there, \U0001f600, slash / and \\"],
            "sampling": {"temperature": 1e-3, "seed": 1e2},
        },
    }
    config = OrchestratorConfig.model_validate(content)
    for number, text in enumerate(
        [
            json.dumps({"orchestrator": content}),
            json.dumps(content, indent="\t").replace("/", "\\/"),
            json.dumps(content, ensure_ascii=False),
        ]
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(text, "utf-8")
        assert load_orchestrator(file).config == config
        assert parse_orchestrator(text).config == config


def test_an_error_in_json_has_its_line_even_with_tabs(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    raw = {"port": -1, "dataset": {"type": "local", "dataset_path": "x"}, "vllm": {"model": "m"}}
    file.write_text(json.dumps(raw, indent="\t"))
    with pytest.raises(ConfigError) as caught:
        load_orchestrator(file)
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (2, "port"),
        (7, "vllm"),
    ]


def test_yaml_in_braces_is_not_taken_for_broken_json() -> None:
    text = "{dataset: {type: local, dataset_path: x}, vllm: {model: m, inference_prompts: [a]}}"
    assert parse_orchestrator(text).config.vllm.model == "m"


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1e-3", 0.001), ("1E2", 100.0), ("-2.5e+1", -25.0), ("0.5", 0.5), ("3", 3)],
)
def test_numbers_are_those_of_json(written: str, expected: float) -> None:
    engine = parse_orchestrator(CONTENT + f"  odd: {written}\n").config.recipe().stages[0].engine
    assert engine["odd"] == expected


def test_dates_and_numbers_may_be_names() -> None:
    text = CONTENT.replace("images", "images\n  name: 2024-01-01\n  version: 7")
    dataset = parse_orchestrator(text).config.dataset
    assert (dataset.name, dataset.version) == ("2024-01-01", "7")


def test_anchors_and_merges_work_and_keep_their_lines() -> None:
    text = (
        "dataset: {type: local, dataset_path: x}\n"
        "vllm:\n"
        "  model: m\n"
        "  stages:\n"
        "    - &base\n"
        "      name: one\n"
        "      prompts: [a]\n"
        "    - <<: *base\n"
        "      name: two\n"
        "      output_field: url\n"
    )
    assert refusals(text)[0].startswith("f.yaml:10: vllm.stages[1].output_field: 'url' is a column")


def test_a_key_that_holds_nothing_is_not_set() -> None:
    text = CONTENT + "  sampling:\n    top_p:\n  quantization:\nssl:\nauth:\nstorage:\nport: ~\n"
    config = parse_orchestrator(text).config
    assert config == parse_orchestrator(CONTENT).config


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + CONTENT.encode())
    config = load_orchestrator(file).config
    assert config.vllm.model == "m"
    as_json = tmp_path / "f.json"
    as_json.write_text(f"\ufeff{config.model_dump_json(exclude_unset=True)}", "utf-8")
    assert load_orchestrator(as_json).config == config


# ------------------------------------------------------------------------------------------ syntax


def test_a_yaml_syntax_error_has_line_and_column() -> None:
    [problem] = refusals("dataset:\n  type: local\n bad: [")
    assert problem.startswith("f.yaml:3:2: is not valid YAML: ")


def test_a_json_syntax_error_is_jsons_own(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ConfigError) as caught:
        load_orchestrator(file)
    assert str(caught.value) == f"{file}:2:6: is not valid JSON: Expecting ':' delimiter"


def test_a_key_that_stands_twice_is_refused() -> None:
    assert refusals(CONTENT + "  model: n\ndataset: {}\n") == [
        "f.yaml:8: dataset: stands here a second time; see line 1",
        "f.yaml:7: vllm.model: stands here a second time; see line 5",
    ]


def test_a_key_that_stands_twice_in_json_is_refused_too() -> None:
    assert refusals('{"a": {"b": 1,\n"b": 2}}') == [
        "f.yaml:2: a.b: stands here a second time; see line 1"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\xfa", "is not UTF-8 text: byte 0 is invalid"),
        (b"- a\n- b\n", "must be a mapping of keys to values"),
        (b"text", "must be a mapping of keys to values"),
        (b"a: \x07", "is not valid YAML: character #x0007 is not allowed"),
        (b"a: !!python/name:os.system x", "is not valid YAML: could not determine a constructor"),
        (b"a: 1\n--- \nb: 2\n", "is not valid YAML: but found another document"),
        (b"a: 99999-99-99 99:99:99\nb: {", "is not valid YAML"),
        (b"orchestrator: 5", "orchestrator: must be a section with keys of its own"),
        (b"a: &a [*a]", "a[0]: is part of itself"),
        (b"dataset: &a {b: *a}", ":1: dataset.b: is part of itself"),
        (b"1: x", "1: keys must be text; put it in quotes"),
        (b"? [a]\n: b", "is not valid YAML"),
    ],
)
def test_what_is_no_configuration_is_refused_with_a_sentence(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_orchestrator(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_orchestrator(tmp_path / "absent.yaml")
    assert str(caught.value) == f"{tmp_path}/absent.yaml: cannot be read: No such file or directory"


def test_an_empty_file_lacks_what_is_required() -> None:
    assert refusals("# nothing\n") == [
        "f.yaml: dataset: is missing",
        "f.yaml: vllm: is missing",
    ]


# ---------------------------------------------------------------------------------------- problems


def test_all_problems_are_reported_at_once_with_their_lines() -> None:
    text = """\
orchestrator:
  port: 99999
  chunk_sise: 3
  dataset:
    type: locl
    dataset_path: x
    recursive: perhaps
  vllm:
    model: m
    stages:
      - name: describe
        prompts: [x]
        output_field: caption
      - name: condense
        prompts:
          - fine
          - "{captoin}"
        requires: [descirbe]
  storage:
    checkpoint_interval: soon
    caption_buffer_size: 0
"""
    assert refusals(text) == [
        "f.yaml:2: port: must be at most 65535 (got 99999)",
        "f.yaml:3: chunk_sise: unknown key; did you mean chunk_size?",
        "f.yaml:5: dataset.type: must be 'huggingface', 'local_filesystem', 'webdataset' or "
        "'local' (got 'locl'); did you mean local?",
        "f.yaml:7: dataset.recursive: must be true or false (got 'perhaps')",
        "f.yaml:17: vllm.stages[1].prompts[1]: {captoin} is neither an earlier stage's output "
        "field nor a column of the dataset; did you mean {caption}?",
        "f.yaml:18: vllm.stages[1].requires: no stage is named 'descirbe'; "
        "did you mean 'describe'?",
        "f.yaml:20: storage.checkpoint_interval: must be a number (got 'soon')",
        "f.yaml:21: storage.caption_buffer_size: must be at least 1 (got 0)",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("port", "x", "must be a whole number (got 'x')"),
        ("port", 1.5, "must be a whole number (got 1.5)"),
        ("port", True, "must be a number, not true"),
        ("port", [1], "must be a whole number (got a list)"),
        ("host", "", "is empty"),
        ("host", {}, "must be text (got a section)"),
        ("lease_seconds", 0, "must be greater than 0 (got 0)"),
        ("lease_seconds", float("inf"), "must be a finite number (got inf)"),
        ("ssl", "yes", "must be a section with keys of its own (got 'yes')"),
        ("storage.data_dir", 5, "must be a path (got 5)"),
        ("vllm.stages", {}, "must be a list (got a section)"),
        ("vllm.dtype", "x" * 99, ""),
        ("vllm.gpu_memory_utilization", 92, "must be at most 1 (got 92)"),
        ("vllm.stages", "x" * 99, f"must be a list (got '{'x' * 57}...')"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key: str, value: Any, message: str) -> None:
    if message:
        assert refusals(CONTENT, {key: value})[0] == f"command line: {key}: {message}"
    else:
        assert parse_orchestrator(CONTENT, overrides={key: value})


def test_a_missing_key_is_placed_at_the_section_that_lacks_it() -> None:
    assert refusals(CONTENT + "ssl:\n  cert: c\n") == ["f.yaml:7: ssl.key: is missing"]
    assert refusals(under("orchestrator", "vllm: {model: m, inference_prompts: [a]}")) == [
        "f.yaml:1: dataset: is missing"
    ]


def test_an_unknown_key_is_sent_to_the_section_that_knows_it() -> None:
    assert refusals(CONTENT + "data_dir: x\n") == [
        "f.yaml:7: data_dir: unknown key; it belongs under storage"
    ]


def test_an_unknown_key_is_refused_even_when_it_holds_nothing() -> None:
    assert refusals(CONTENT + "wibble:\n") == ["f.yaml:7: wibble: unknown key"]


def test_a_token_belongs_to_one_role_only() -> None:
    text = CONTENT + "auth:\n  worker_tokens: [same]\n  admin_tokens:\n    - other\n    - same\n"
    assert refusals(text) == [
        "f.yaml:11: auth.admin_tokens[1].token: is a token of the role 'worker' already; "
        "each role needs its own"
    ]


# --------------------------------------------------------------------------------------- overrides


def test_overrides_win_over_the_file() -> None:
    overrides = {"port": 1, "storage.data_dir": "elsewhere", "vllm.model": "n"}
    config = parse_orchestrator(CONTENT + "port: 2\n", overrides=overrides).config
    assert (config.port, str(config.storage.data_dir), config.vllm.model) == (1, "elsewhere", "n")


def test_an_override_of_nothing_takes_the_key_away() -> None:
    text = CONTENT + "ssl: {cert: a, key: b}\n"
    assert parse_orchestrator(text).config.ssl is not None
    assert parse_orchestrator(text, overrides={"ssl": None}).config.ssl is None


def test_paths_stay_relative_to_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    text = CONTENT + "ssl: {cert: ./c.pem, key: ~/k.pem}\n"
    config = parse_orchestrator(text).config
    assert config.ssl is not None
    assert (str(config.ssl.cert), str(config.ssl.key)) == ("c.pem", "/home/ann/k.pem")
    assert str(config.storage.data_dir) == "caption_data"
    assert config.dataset.dataset_path == "images"


# ------------------------------------------------------------------------------------ what it means


def test_the_documented_defaults_hold() -> None:
    config = parse_orchestrator(CONTENT).config
    assert (config.host, config.port, config.ssl, config.auth) == ("127.0.0.1", 8765, None, None)
    assert (config.chunk_size, config.chunks_per_request) == (1000, 2)
    assert (config.chunk_buffer_multiplier, config.min_chunk_buffer) == (3, 10)
    assert (config.lease_seconds, config.max_attempts) == (120, 3)
    assert config.storage.checkpoint_interval == 60
    assert config.storage.caption_buffer_size == 1000
    dataset = config.dataset
    assert (dataset.dataset_image_column, dataset.dataset_url_column) == ("image", "image_url")
    assert (dataset.split, dataset.recursive, dataset.follow_symlinks) == ("train", True, False)
    assert (dataset.include_hidden, dataset.include, dataset.exclude) == (False, (), ())
    assert config.vllm.sampling.parameters() == {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 256,
        "repetition_penalty": 1.05,
        "skip_special_tokens": True,
    }


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("type: local", "local_filesystem"),
        ("type: local_filesystem", "local_filesystem"),
        ("type: huggingface", "huggingface_datasets"),
        ("type: webdataset", "webdataset"),
        ("{type: huggingface, processor_type: huggingface_webdataset}", "huggingface_datasets"),
        ("{type: webdataset, processor_type: huggingface_webdataset}", "webdataset"),
        ("{type: huggingface, processor_type: webdataset}", "webdataset"),
        ("processor_type: huggingface_datasets", "huggingface_datasets"),
        ("processor_type: local_filesystem", "local_filesystem"),
    ],
)
def test_the_source_follows_from_the_type(dataset: str, source: str) -> None:
    inner = dataset.strip("{}")
    text = CONTENT.replace("dataset:\n  type: local\n", "dataset: {" + inner + ", ", 1)
    text = text.replace("  dataset_path: images", "dataset_path: images}", 1)
    assert parse_orchestrator(text).config.dataset.processor_type == source


def test_a_dataset_without_any_type_is_refused() -> None:
    assert refusals(CONTENT.replace("  type: local\n", "")) == [
        "f.yaml:1: dataset.type: is missing"
    ]


def test_both_spellings_of_the_split_mean_the_same() -> None:
    one = parse_orchestrator(CONTENT.replace("images", "images\n  dataset_split: test"))
    assert one.config.dataset.split == "test"
    [problem] = refusals(CONTENT.replace("images", "images\n  dataset_split: a\n  split: b"))
    assert problem.startswith("f.yaml:1: dataset: split is 'b' and dataset_split is 'a'")


def test_keys_without_a_use_are_accepted_with_one_warning_each() -> None:
    text = (
        CONTENT.replace("images", "images\n  http_port: 8766\n  buffer_size: 1000")
        + "backpressure_threshold: 5\nshard_cache_gb: 2\nbuffer_size: 1\nmax_file_size: 9\n"
        + "storage: {checkpoint_dir: ./c, job_buffer_size: 1, contributor_buffer_size: 1}\n"
    )
    warnings = parse_orchestrator(text).warnings
    assert [warning.split(" has no effect: ")[0] for warning in warnings] == [
        "dataset.http_port",
        "dataset.buffer_size",
        "storage.checkpoint_dir",
        "storage.job_buffer_size",
        "storage.contributor_buffer_size",
        "shard_cache_gb",
        "backpressure_threshold",
        "buffer_size",
        "max_file_size",
    ]
    assert all(len(warning.split(" has no effect: ")[1]) > 20 for warning in warnings)


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_orchestrator(CONTENT).config
    with pytest.raises(ValidationError, match="frozen"):
        config.port = 5


def test_what_simpletuner_writes_loads_as_it_is(tmp_path: Path) -> None:
    raw = {
        "orchestrator": {
            "host": "127.0.0.1",
            "port": 41573,
            "ssl": None,
            "chunk_size": 256,
            "chunks_per_request": 1,
            "chunk_buffer_multiplier": 2,
            "min_chunk_buffer": 4,
            "dataset": {
                "type": "local_filesystem",
                "processor_type": "local_filesystem",
                "dataset_path": "/data/my images",
                "name": "my \u201cimages\u201d \U0001f600",
                "version": "1.0",
                "recursive": True,
                "follow_symlinks": False,
                "http_bind_address": "127.0.0.1",
                "public_address": "127.0.0.1",
                "http_port": 41574,
            },
            "vllm": {
                "model": "Qwen/Qwen2.5-VL-3B-Instruct",
                "tensor_parallel_size": 1,
                "max_model_len": 16384,
                "dtype": "float16",
                "gpu_memory_utilization": 0.92,
                "enforce_eager": True,
                "disable_mm_preprocessor_cache": True,
                "limit_mm_per_prompt": {"image": 1},
                "batch_size": 8,
                "sampling": {
                    "temperature": 0.7,
                    "top_p": 0.95,
                    "max_tokens": 256,
                    "repetition_penalty": 1.05,
                    "skip_special_tokens": True,
                },
                "inference_prompts": ["describe this image in detail \U0001f600"],
            },
            "storage": {
                "data_dir": "/jobs/1/storage",
                "checkpoint_dir": "/jobs/1/checkpoints",
                "caption_buffer_size": 16,
                "checkpoint_interval": 30,
            },
            "auth": {
                "worker_tokens": [{"token": "w", "name": "SimpleTuner caption worker"}],
                "admin_tokens": [{"token": "a", "name": "SimpleTuner admin"}],
                "monitor_tokens": [],
            },
        }
    }
    file = tmp_path / "orchestrator.json"
    file.write_text(json.dumps(raw, indent=2))
    loaded = load_orchestrator(file, {"ssl": None})
    [stage] = loaded.config.recipe().stages
    assert stage.prompts == ("describe this image in detail \U0001f600",)
    assert stage.output_field == "captions"
    assert stage.engine["mm_processor_cache_gb"] == 0
    assert loaded.config.dataset.processor_type == "local_filesystem"
    assert len(loaded.warnings) == 5
