"""Every mutant still fits the source: otherwise `python -m tests.mutants` proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_s_text_is_in_its_file_exactly_once(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")

    assert source.count(mutant.old) == 1, f"update the mutant in {mutant.file}"
    assert mutant.new != mutant.old
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_mutants_and_their_promises_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.new, mutant.old) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_tests_that_are_to_kill_them_exist() -> None:
    assert all((ROOT / tests).exists() for mutant in MUTANTS for tests in mutant.tests)
