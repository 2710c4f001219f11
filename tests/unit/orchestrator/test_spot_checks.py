"""Which items are checked, by whom, and what follows."""

from __future__ import annotations

import pytest

from caption_flow.orchestrator.core.spot_checks import (
    MOST_PENDING,
    Check,
    CheckPolicy,
    SpotChecks,
    likeness,
)
from caption_flow.protocol.messages import LeaseId

SEED = b"s" * 32
LIAR, HONEST, OTHER = "liar", "honest", "other"


def checks(**policy: object) -> SpotChecks:
    return SpotChecks(CheckPolicy(**{"min_samples": 3, **policy}), SEED)  # type: ignore[arg-type]


def judged(spot: SpotChecks, answer: str | None, said: str | None, *, trusted: bool) -> None:
    spot.judge(Check("s", 0, LIAR, said), answer, HONEST, trusted=trusted)


# ---------------------------------------------------------------- which


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_about_the_share_that_was_asked_for_is_chosen(share: float) -> None:
    spot = checks(share=share)
    chosen = sum(spot.chooses("shard", item) for item in range(10_000))
    assert abs(chosen / 10_000 - share) < 0.02


def test_the_same_items_are_chosen_each_time_and_others_with_another_seed() -> None:
    policy = CheckPolicy(share=0.5)
    first, again = SpotChecks(policy, SEED), SpotChecks(policy, SEED)
    other = SpotChecks(policy, b"t" * 32)
    drawn = [[one.chooses("shard", item) for item in range(200)] for one in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != [first.chooses("another shard", item) for item in range(200)]


# ---------------------------------------------------------------- by whom


def test_nobody_checks_what_came_with_its_own_token() -> None:
    spot = checks()
    spot.add(Check("s", 1, LIAR, "x"))
    assert not spot.is_waiting_for({LIAR})
    assert spot.take(LIAR) == []
    assert spot.is_waiting_for({LIAR, HONEST})
    assert [check.item for check in spot.take(HONEST)] == [1]
    assert not spot.has_waiting


def test_checks_of_one_lease_are_of_one_shard_and_ascend() -> None:
    spot = checks()
    for shard, item in (("a", 7), ("b", 1), ("a", 3), ("a", 5)):
        spot.add(Check(shard, item, LIAR, "x"))
    assert [(check.shard, check.item) for check in spot.take(HONEST)] == [
        ("a", 3),
        ("a", 5),
        ("a", 7),
    ]
    assert [(check.shard, check.item) for check in spot.take(HONEST)] == [("b", 1)]


def test_checks_that_wait_are_bounded() -> None:
    spot = checks()
    for item in range(MOST_PENDING + 10):
        spot.add(Check("s", item, LIAR, "x"))
    taken = 0
    while found := spot.take(HONEST):
        taken += len(found)
    assert taken == MOST_PENDING


def leased(spot: SpotChecks, *items: int) -> LeaseId:
    for item in items:
        spot.add(Check("s", item, LIAR, "x"))
    spot.grant(LeaseId(9), "session", spot.take(HONEST))
    return LeaseId(9)


def test_a_report_within_the_lease_takes_its_checks_and_no_other_does() -> None:
    spot = checks()
    lease = leased(spot, 1, 2, 3)
    assert spot.holder(lease) == "session"
    assert spot.answered(lease, (1, 4)) is None
    assert spot.answered(lease, (1, 1)) is None
    assert [check.item for check in spot.answered(lease, (1, 2)) or ()] == [1, 2]
    assert spot.answered(lease, (1,)) is None
    assert spot.under_way == 1
    spot.answered(lease, (3,))
    assert spot.holder(lease) is None


def test_what_is_given_up_waits_again_but_not_for_ever() -> None:
    spot = checks()
    lease = leased(spot, 1)
    for _ in range(2):
        spot.lose("session")
        assert spot.holder(lease) is None
        spot.grant(lease, "session", spot.take(HONEST))
        assert spot.under_way == 1
    spot.give_back(lease)
    assert not spot.has_waiting


def test_a_contributor_that_is_cut_off_is_checked_no_more_and_its_checkers_are_not_to_blame() -> (
    None
):
    spot = checks()
    lease = leased(spot, 1, 2)
    spot.add(Check("s", 3, LIAR, "x"))
    spot.forget(LIAR)
    assert not spot.has_waiting
    assert not spot.under_way
    assert spot.answered(lease, (1, 2)) == []


def test_items_may_be_read_within_a_lease_for_checks_only() -> None:
    spot = checks()
    lease = leased(spot, 1, 2)
    assert spot.shard_of(lease, (1, 2)) == "s"
    assert spot.shard_of(lease, (1, 3)) is None
    assert spot.shard_of(7, (1,)) is None


# ---------------------------------------------------------------- what follows


SAME, ELSE = "a dog on a lawn", "two cups and one red table"


def test_too_few_checks_tell_nothing() -> None:
    spot = checks()
    for _ in range(2):
        judged(spot, SAME, ELSE, trusted=True)
    assert not spot.scores[LIAR].flagged


def test_who_differs_is_flagged_and_who_agrees_is_not() -> None:
    spot = checks()
    for _ in range(3):
        judged(spot, SAME, ELSE, trusted=True)
    assert spot.scores[LIAR].flagged
    assert not spot.scores[LIAR].cut_off
    assert HONEST not in spot.scores
    honest = checks()
    for _ in range(50):
        judged(honest, SAME, SAME, trusted=True)
    assert honest.scores[LIAR].mean == 1.0
    assert not honest.scores[LIAR].flagged


@pytest.mark.parametrize("trusted", [True, False])
def test_only_who_is_trusted_can_have_another_cut_off(trusted: bool) -> None:
    spot = checks(revokes=True)
    for _ in range(50):
        judged(spot, SAME, ELSE, trusted=trusted)
    assert spot.scores[LIAR].flagged
    assert spot.scores[LIAR].cut_off == trusted


def test_of_two_of_low_trust_either_may_be_wrong() -> None:
    spot = checks()
    for _ in range(3):
        judged(spot, SAME, ELSE, trusted=False)
    assert spot.scores[HONEST].flagged
    assert spot.scores[HONEST].checks == 3


def test_an_image_that_others_caption_was_no_failure_and_one_that_nobody_can_is() -> None:
    spot = checks()
    judged(spot, SAME, None, trusted=True)
    assert spot.scores[LIAR].mean == 0.0
    spot = checks()
    judged(spot, None, None, trusted=True)
    assert spot.scores[LIAR].mean == 1.0
    assert spot.judge(Check("s", 0, OTHER, SAME), None, HONEST, trusted=True) == []
    assert OTHER not in spot.scores


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a dog", "A  dog!", 1.0),
        ("a dog", "a cat", 0.5),
        ("a dog", "", 0.0),
        ("", "", 1.0),
        ("a", "a dog runs over a wide green lawn", 0.25),
        ("犬が走る", "犬が寝る", 0.75),
        ("word " * 50, "word", 1.0),
        (".,;", "?", 1.0),
    ],
)
def test_likeness_is_the_share_of_words_in_common(one: str, other: str, expected: float) -> None:
    assert likeness(one, other) == expected
    assert likeness(other, one) == expected


def test_a_text_that_is_part_of_another_does_not_pass_for_it() -> None:
    """Measures that look for the one in the other give this full marks."""
    long = "a golden retriever lies on a green lawn in front of a white fence in bloom"
    assert likeness("a", long) < 0.2
    assert likeness("a golden", long) < 0.3
