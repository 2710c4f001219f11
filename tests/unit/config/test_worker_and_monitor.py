"""What a worker's and a monitor's configuration means."""

from pathlib import Path
from typing import Any

import pytest

from caption_flow.config.load import Loaded, load_monitor, load_worker
from caption_flow.config.problems import ConfigError
from caption_flow.config.secret import Secret
from caption_flow.config.worker import EngineConfig, WorkerConfig
from caption_flow.worker.engines.openai import OpenAIOptions
from caption_flow.worker.engines.synthetic import SyntheticOptions


def worker(**overrides: Any) -> Loaded[WorkerConfig]:
    return load_worker(None, {"server": "ws://127.0.0.1:8765", **overrides})


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        worker(**overrides)
    return str(caught.value)


def test_a_worker_has_the_documented_defaults() -> None:
    config = worker().config
    assert config.engine.type == "vllm"
    assert config.when_finished == "stay_connected"
    assert config.verify_ssl
    assert config.token is None
    assert (config.engine_stall_seconds, config.max_engine_restarts) == (600, 3)
    assert config.vllm.engine_keys() == {}
    assert not config.vllm.trust_remote_code


def test_a_worker_needs_no_file() -> None:
    config = worker(token="abc", name="SimpleTuner caption worker 1").config
    assert config.token == Secret("abc")
    assert config.name == "SimpleTuner caption worker 1"


def test_stages_are_a_list_or_names_with_commas_between() -> None:
    assert worker().config.stages == ()
    assert worker(stages=["describe", "condense, too"]).config.stages == (
        "describe",
        "condense, too",
    )
    assert worker(stages="describe, condense").config.stages == ("describe", "condense")


@pytest.mark.parametrize("stages", ["", "describe,", [""]])
def test_a_stage_to_run_has_a_name(stages: object) -> None:
    assert refusal(stages=stages) == "command line: stages: one of the names is empty"


@pytest.mark.parametrize(
    ("written", "numbers"),
    [(0, (0,)), ("1", (1,)), ("0,1", (0, 1)), (" 3 , 2", (3, 2)), ([0, 2], (0, 2)), (["1"], (1,))],
)
def test_a_workers_gpus_are_a_number_a_list_or_numbers_with_commas_between(
    written: object, numbers: tuple[int, ...]
) -> None:
    assert worker(gpu_id=written).config.gpu_id == numbers


@pytest.mark.parametrize("written", ["", "0,", "x", "0 1", -1, 0.5, True, [], [0, None]])
def test_a_gpu_is_named_by_its_number(written: object) -> None:
    says = "command line: gpu_id: must be the number of a GPU, or several such as 0,1"
    assert refusal(gpu_id=written) == says


def test_a_gpu_is_named_once() -> None:
    assert refusal(gpu_id="1,0,1") == "command line: gpu_id: names a GPU twice"


def test_a_worker_without_a_server_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_worker(None)
    assert str(caught.value) == "command line: server: is missing"


@pytest.mark.parametrize("server", ["", "localhost:8765", "http://h", "ws://", "ws://h:x"])
def test_a_server_is_a_websocket_address(server: str) -> None:
    assert "command line: server: must be an address such as" in refusal(server=server)


def test_an_engine_may_be_a_type_alone_or_a_section() -> None:
    assert worker(engine="synthetic").config.engine.type == "synthetic"
    engine = worker(engine={"type": "synthetic", "latency_ms": 20}).config.engine
    assert engine.options == {"latency_ms": 20}


def test_flags_add_to_an_engine_named_by_its_type(tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text("server: ws://h\nengine: openai\n")
    flags = {"engine.base_url": "http://h/v1", "engine.api_key": "env:KEY"}
    engine = load_worker(file, flags).config.engine
    assert (engine.type, engine.base_url) == ("openai", "http://h/v1")
    assert engine.api_key == Secret("env:KEY")


def test_an_openai_engine_needs_an_address() -> None:
    assert "engine: type openai needs base_url" in refusal(engine="openai")


@pytest.mark.parametrize(
    "url", ["h:8000/v1", "ws://h/v1", "http://", "http://h:x/v1", "http://h/v1?a=b", "http://[h/v1"]
)
def test_a_model_servers_address_is_a_web_address(url: str) -> None:
    told = refusal(engine={"type": "openai", "base_url": url})
    assert "engine.base_url: must be an address such as http://127.0.0.1:8000/v1" in told


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    told = refusal(engine={"type": "openai", "base_url": "https://me:hush@h/v1"})
    assert "engine.base_url: has a name or password in it" in told
    assert "hush" not in told


def test_an_engines_options_are_its_own_and_those_of_its_server() -> None:
    engine = {
        "type": "openai",
        "base_url": "http://h/v1",
        "api_key": "env:K",
        "image_format": "png",
    }
    assert worker(engine=engine).config.engine.options == {
        "base_url": "http://h/v1",
        "api_key": Secret("env:K"),
        "image_format": "png",
    }
    without = worker(engine={"type": "openai", "base_url": "http://h/v1"}).config.engine
    assert without.options == {"base_url": "http://h/v1"}
    assert worker(engine={"type": "synthetic", "tokens": 3}).config.engine.options == {"tokens": 3}


def test_every_option_of_the_engines_is_documented_and_taken() -> None:
    for kind, options in (("openai", OpenAIOptions), ("synthetic", SyntheticOptions)):
        given = {name: 1 for name in options.__struct_fields__ if name != "base_url"}
        section = {"type": kind, "base_url": "http://h/v1", **given}
        assert worker(engine=section).config.engine.options.keys() >= given.keys()
        for name in given:
            assert f"`{name}`" in (EngineConfig.__doc__ or "") or name == "api_key"


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    assert refusal(engine="vlm").endswith("(got 'vlm'); did you mean vllm?")
    assert "engine.base_ur: unknown key; did you mean base_url?" in refusal(engine={"base_ur": "x"})


def test_an_engine_is_given_some_time_and_no_negative_number_of_restarts() -> None:
    config = worker(engine_stall_seconds=0.5, max_engine_restarts=0).config
    assert (config.engine_stall_seconds, config.max_engine_restarts) == (0.5, 0)
    assert "engine_stall_seconds: must be greater than 0" in refusal(engine_stall_seconds=0)
    assert "max_engine_restarts: must be" in refusal(max_engine_restarts=-1)


def test_a_workers_owner_may_let_code_run() -> None:
    config = worker(vllm={"trust_remote_code": True, "worker_cls": "mine.W", "dtype": "half"})
    assert config.config.vllm.trust_remote_code
    assert config.config.vllm.engine_keys() == {"dtype": "half", "worker_cls": "mine.W"}
    assert config.warnings == ()


def test_an_older_file_may_switch_vllm_on() -> None:
    assert worker(vllm=True).config.vllm.engine_keys() == {}


def test_a_hook_needs_a_command() -> None:
    assert "post_exec_hook names no command" in refusal(when_finished="post_exec_hook")
    with_command = worker(when_finished="post_exec_hook", post_exec_hook="true")
    assert with_command.config.post_exec_hook == "true"


def test_keys_that_do_nothing_are_accepted_with_one_warning_each() -> None:
    loaded = worker(
        inference_queue_size=128,
        local_storage_path="./local",
        batch_image_processing=True,
        readahead_size=256,
    )
    assert [warning.split(" ")[0] for warning in loaded.warnings] == [
        "inference_queue_size",
        "local_storage_path",
    ]


def test_a_monitor_watches_this_machine_unless_told_otherwise() -> None:
    config = load_monitor(None).config
    assert config.server == "ws://127.0.0.1:8765"
    assert config.refresh_rate == 1.0
    assert config.show_contributors


def test_a_monitor_takes_every_documented_key(tmp_path: Path) -> None:
    file = tmp_path / "monitor.yaml"
    file.write_text(
        """
monitor:
  server: wss://h:1
  token: env:T
  refresh_rate: 0.5
  show_contributors: false
  show_quality_metrics: no
  max_activity_items: 5
  show_chunk_progress: off
  show_worker_queues: false
  show_throughput_graph: false
"""
    )
    config = load_monitor(file).config
    assert not config.show_quality_metrics
    assert not config.show_chunk_progress
    assert config.max_activity_items == 5
