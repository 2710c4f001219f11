"""A run over a hub dataset that is begun again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import parquet
from tests.support.hub import Hub, Repository
from tests.support.hub_runs import caption_all, check_rows, files_in, fleet_for


async def test_a_hub_dataset_is_captioned_and_a_resume_reads_nothing_again(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    repository = Repository({"main": files_in(parquet.dataset(tmp_path / "set", 3, 10))})
    async with Hub(pictures=repository) as hub, fleet_for(tmp_path, "org/pictures") as fleet:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        await caption_all(fleet)
        check_rows(fleet, 3, 10)
        assert hub.ranges
        hub.forget()
        # The branch has moved on: the run goes on with the commit that it began with.
        repository.branches["main"] = {"data/train-00000-of-00001.parquet": b"another"}
        fleet.write_configuration(chunk_size=3)
        await caption_all(fleet)
        check_rows(fleet, 3, 10)
        assert hub.ranges == []
