"""Configuration files are found where they are promised to be, the nearest first."""

from pathlib import Path

import pytest

from caption_flow.config.discovery import Component, config_folders, find_config

COMPONENTS: tuple[Component, ...] = ("orchestrator", "worker", "monitor")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "XDG_CONFIG_DIRS": f"{tmp_path / 'one'}:relative:{tmp_path / 'two'}",
    }


def test_the_order_is_the_promised_one(tmp_path: Path, env: dict[str, str]) -> None:
    assert list(config_folders(tmp_path, env)) == [
        tmp_path,
        tmp_path / "config",
        tmp_path / "home" / ".caption-flow",
        tmp_path / "xdg" / "caption-flow",
        Path("/etc/caption-flow"),
        tmp_path / "one" / "caption-flow",
        tmp_path / "two" / "caption-flow",
        tmp_path / "configs",
    ]


def test_xdg_folders_have_their_usual_defaults(tmp_path: Path) -> None:
    folders = list(config_folders(tmp_path, {"HOME": "/home/ann", "XDG_CONFIG_HOME": ""}))
    assert Path("/home/ann/.config/caption-flow") in folders
    assert Path("/etc/xdg/caption-flow") in folders


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_place_wins_over_all_that_come_later(
    component: Component, tmp_path: Path, env: dict[str, str]
) -> None:
    etc = tmp_path / "etc"
    assert find_config(component, None, tmp_path, env, etc=etc) is None
    folders = list(config_folders(tmp_path, env, etc=etc))
    assert len(folders) == 8
    for folder in reversed(folders):
        folder.mkdir(parents=True, exist_ok=True)
        expected = folder / f"{component}.yaml"
        expected.write_text(f"{component}:")
        assert find_config(component, None, tmp_path, env, etc=etc) == expected
    for other in set(COMPONENTS) - {component}:
        assert find_config(other, None, tmp_path, env, etc=etc) is None


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_other_suffixes_are_as_good(suffix: str, tmp_path: Path, env: dict[str, str]) -> None:
    file = tmp_path / f"monitor.{suffix}"
    file.write_text("{}")
    assert find_config("monitor", None, tmp_path, env) == file


def test_an_explicit_file_wins_even_when_it_is_missing(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "worker.yaml").write_text("worker:")
    explicit = tmp_path / "elsewhere.yaml"
    assert find_config("worker", explicit, tmp_path, env) == explicit
