"""A contributor is granted no more than may still count of its rows."""

from __future__ import annotations

import pytest

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy


class Scene:
    """A ledger over one shard, and sessions named after their contributor's first letter."""

    def __init__(self, items: int = 40, **policy: int) -> None:
        self.ledger = Ledger(Policy(**{"chunk_size": 8, **policy}))
        self.now = 0.0
        self.say(ev.ItemsFound("s", items))
        self.granted: dict[int, tuple[int, ...]] = {}

    def say(self, event: ev.Event) -> list[ev.Effect]:
        self.now += 0.01
        effects = self.ledger.handle(event, now=self.now)
        self.ledger.check()
        return effects

    def join(self, session: str, contributor: str) -> None:
        self.say(ev.SessionJoined(session, session, contributor=contributor))

    def want(self, session: str, chunks: int = 1) -> list[ev.Grant | ev.Wait]:
        found = self.say(ev.Wanted(session, chunks))
        return [one for one in found if isinstance(one, ev.Grant | ev.Wait)]

    def report(self, session: str, grant: ev.Grant, *, durable: bool = True) -> ev.Ticket:
        effects = self.say(ev.Reported(session, grant.lease, 1, grant.items))
        (commit,) = [one for one in effects if isinstance(one, ev.Commit)]
        if durable:
            self.say(ev.Committed(commit.ticket))
        return commit.ticket


def only_grant(found: list[ev.Grant | ev.Wait]) -> ev.Grant:
    (grant,) = found
    assert isinstance(grant, ev.Grant)
    return grant


def only_wait(found: list[ev.Grant | ev.Wait]) -> ev.Wait:
    (wait,) = found
    assert isinstance(wait, ev.Wait)
    return wait


def test_a_ration_bounds_what_is_granted_and_what_is_over_waits_for_others() -> None:
    scene = Scene(items=8)
    scene.say(ev.Rationed("a", 3))
    scene.join("a1", "a")
    scene.join("b1", "b")
    assert len(only_grant(scene.want("a1")).items) == 3
    assert only_wait(scene.want("a1")).rationed
    assert len(only_grant(scene.want("b1")).items) == 5


def test_sessions_of_one_contributor_share_its_ration() -> None:
    scene = Scene()
    scene.say(ev.Rationed("a", 10))
    scene.join("a1", "a")
    scene.join("a2", "a")
    first = only_grant(scene.want("a1"))
    assert len(first.items) + len(only_grant(scene.want("a2")).items) == 10
    assert only_wait(scene.want("a2")).rationed
    scene.say(ev.SessionLeft("a1"))
    again = [one for one in scene.want("a2", 2) if isinstance(one, ev.Grant)]
    assert sum(len(one.items) for one in again) == len(first.items)


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_reported_is_spent_whether_it_is_on_disk_yet_or_not(durable: bool) -> None:
    scene = Scene()
    scene.say(ev.Rationed("a", 9))
    scene.join("a1", "a")
    scene.report("a1", only_grant(scene.want("a1")), durable=durable)
    assert len(only_grant(scene.want("a1")).items) == 1


def test_what_was_rejected_is_not_spent() -> None:
    scene = Scene()
    scene.say(ev.Rationed("a", 8))
    scene.join("a1", "a")
    ticket = scene.report("a1", only_grant(scene.want("a1")), durable=False)
    assert only_wait(scene.want("a1")).rationed
    scene.say(ev.CommitRejected(ticket))
    assert len(only_grant(scene.want("a1")).items) == 8


def test_who_has_no_ration_is_not_bounded_and_a_ration_can_be_taken_away() -> None:
    scene = Scene()
    scene.say(ev.Rationed("a", 0))
    scene.join("a1", "a")
    scene.join("b1", "b")
    assert only_wait(scene.want("a1")).rationed
    assert len(only_grant(scene.want("b1")).items) == 8
    scene.say(ev.Rationed("a", None))
    assert len(only_grant(scene.want("a1")).items) == 8


def test_at_the_end_nobody_is_asked_to_share_with_who_may_have_no_more() -> None:
    scene = Scene(items=8, smallest_grant=8)
    scene.say(ev.ListingFinished())
    scene.join("b1", "b")
    only_grant(scene.want("b1"))
    scene.say(ev.Rationed("a", 0))
    scene.join("a1", "a")
    effects = scene.say(ev.Wanted("a1", 1))
    effects += scene.say(ev.Ticked())
    assert not any(isinstance(one, ev.Recall | ev.Grant) for one in effects)


def test_the_end_waits_for_what_the_shell_waits_for() -> None:
    scene = Scene(items=8)
    scene.say(ev.ListingFinished())
    scene.join("b1", "b")
    grant = only_grant(scene.want("b1"))
    scene.say(ev.Awaited(still=True))
    scene.report("b1", grant)
    assert scene.ledger.all_terminal
    assert not scene.ledger.finished
    assert only_wait(scene.want("b1"))
    assert ev.Finish() in scene.say(ev.Awaited(still=False))
    assert scene.ledger.finished


def test_a_reserved_number_is_no_lease_of_the_ledgers() -> None:
    scene = Scene()
    scene.join("a1", "a")
    before = only_grant(scene.want("a1")).lease
    reserved = scene.ledger.reserve_lease()
    after = only_grant(scene.want("a1")).lease
    assert len({before, reserved, after}) == 3
    assert not scene.ledger.knows(reserved)
