"""`docs/configuration.md` says what the models say."""

from pathlib import Path

from caption_flow.config.document import reference

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_reference_is_current() -> None:
    assert PAGE.read_text("utf-8") == reference()


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row for row in rows if row.endswith("|  |")]
