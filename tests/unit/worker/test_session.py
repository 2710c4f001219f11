"""What a worker says and does next: the promises of its session."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from caption_flow.protocol.messages import (
    DRAIN_ACK_SECONDS,
    DRAIN_WORK_SECONDS,
    Ack,
    Drain,
    Fetch,
    Finished,
    Grant,
    GrantedLease,
    Hello,
    Image,
    ItemDescription,
    LeaseId,
    Limits,
    OrchestratorMessage,
    Recall,
    Recalled,
    RecipeChanged,
    RecipeSpec,
    Release,
    StageSpec,
    Trim,
    Wait,
    Want,
    Welcome,
)
from caption_flow.worker.core.events import (
    Abandon,
    Adopt,
    BytesWanted,
    Closed,
    Deliver,
    EngineLost,
    EngineReady,
    Event,
    Heard,
    Leave,
    Opened,
    Outcome,
    RecipeUnusable,
    Redial,
    RowFinished,
    Send,
    SendBatch,
    SendHeartbeat,
    StopAsked,
    Ticked,
    Withdraw,
    Withdrawn,
)
from caption_flow.worker.core.outbox import Outbox
from caption_flow.worker.core.session import (
    FINISHED_ACK_SECONDS,
    FINISHED_PAUSE_SECONDS,
    Session,
)

RECIPE = RecipeSpec(stages=(), fingerprint="recipe one")
OTHER_RECIPE = RecipeSpec(stages=(), fingerprint="recipe two")
LIMITS = Limits(
    lease_seconds=120.0,
    heartbeat_seconds=10.0,
    chunks_per_request=2,
    max_frame_bytes=2**20,
    max_unacknowledged_batches=4,
)
WIDTH = 4


class Worker:
    """A session under test: keeps the time, and sorts out what it says."""

    def __init__(self, *, leaves: bool = True, outbox: Outbox[str] | None = None) -> None:
        self.session: Session[str] = Session(
            Hello(name="w", session="s" * 16), leaves_when_finished=leaves, outbox=outbox
        )
        self.now = 0.0

    def do(self, event: Event[str], *, later: float = 0.0) -> list[Any]:
        self.now += later
        effects = self.session.handle(event, now=self.now)
        self.session.check()
        return effects

    def hear(self, message: OrchestratorMessage, *, later: float = 0.0) -> list[Any]:
        return self.do(Heard(message), later=later)

    def tick(self, seconds: float) -> list[Any]:
        return self.do(Ticked(), later=seconds)

    def open(
        self, *leases: int, recipe: RecipeSpec = RECIPE, total: int | None = None
    ) -> list[Any]:
        welcome = Welcome("w", recipe, LIMITS, tuple(leases), total)
        return self.do(Opened(welcome))

    def grant(self, lease: int, *items: int) -> list[Any]:
        described = tuple(ItemDescription(index) for index in items)
        return self.hear(Grant((GrantedLease(LeaseId(lease), "s", "c", described),)))

    def begin(self, count: int = 1) -> list[tuple[int, int]]:
        jobs = [self.session.begin() for _ in range(count)]
        return [job.key for job in jobs if job is not None]

    def finish(self, lease: int, item: int) -> list[Any]:
        return self.do(RowFinished(LeaseId(lease), item, f"row {item}"))


def at_work(*, leaves: bool = True, **options: Any) -> Worker:
    """Return a worker that is connected, has its engine, and has asked for leases."""
    worker = Worker(leaves=leaves, **options)
    worker.open()
    worker.do(EngineReady(WIDTH))
    return worker


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def batches(effects: list[Any]) -> list[tuple[int, int, tuple[int, ...]]]:
    return [
        (e.batch.seq, e.batch.lease, e.batch.items) for e in effects if isinstance(e, SendBatch)
    ]


def leaving(effects: list[Any]) -> Leave | None:
    return next((effect for effect in effects if isinstance(effect, Leave)), None)


# --------------------------------------------------------------------------- asking and working


def test_leases_are_asked_for_only_when_the_engine_is_ready() -> None:
    worker = Worker()
    effects = worker.open()
    assert Adopt(RECIPE) in effects
    assert SendHeartbeat() in effects
    assert not sent(effects, Want)

    assert sent(worker.do(EngineReady(WIDTH)), Want) == [Want(2, WIDTH)]


def test_heartbeats_go_on_while_the_engine_loads() -> None:
    worker = Worker()
    worker.open()

    assert SendHeartbeat() not in worker.tick(9.9)
    assert SendHeartbeat() in worker.tick(0.1)
    assert SendHeartbeat() in worker.tick(10.0)


def test_the_next_lease_is_asked_for_before_the_present_one_runs_dry() -> None:
    worker = at_work()
    assert not sent(worker.grant(1, *range(6)), Want)

    worker.begin(2)
    assert not sent(worker.tick(0.1), Want), "four wait, the engine takes four"
    worker.begin(1)
    assert sent(worker.tick(0.1), Want) == [Want(2, WIDTH, 3)]
    assert not sent(worker.tick(0.1), Want), "one question at a time"


def test_wait_is_respected() -> None:
    worker = at_work()
    assert not sent(worker.hear(Wait(40.0)), Want)

    assert not sent(worker.tick(39.9), Want)
    assert sent(worker.tick(0.1), Want)


def test_that_all_is_handed_out_holds_until_something_is_granted_or_the_connection_closes() -> None:
    worker = at_work()
    assert not worker.session.all_handed_out
    worker.hear(Wait(40.0))
    assert not worker.session.all_handed_out

    worker.hear(Wait(40.0, all_handed_out=True))
    assert worker.session.all_handed_out
    worker.grant(1, 0)
    assert not worker.session.all_handed_out

    worker.hear(Wait(40.0, all_handed_out=True))
    worker.do(Closed())
    assert not worker.session.all_handed_out


def test_a_finished_run_has_nothing_more_to_hand_out() -> None:
    worker = at_work(leaves=False)
    worker.hear(Finished(0, 0))
    assert worker.session.all_handed_out


def test_a_full_outbox_pauses_beginning_and_asking() -> None:
    worker = at_work(outbox=Outbox(capacity_rows=3))
    worker.grant(1, *range(6))

    assert len(worker.begin(6)) == 3, "each item begun has a place for its row"
    for item in range(3):
        effects = worker.finish(1, item)
    assert worker.begin() == []
    effects = worker.tick(1.0)
    assert batches(effects) == [(1, 1, (0, 1, 2))]
    assert not sent(effects, Want)
    worker.hear(Ack(1))
    assert len(worker.begin(6)) == 3


def test_trimmed_items_are_not_begun() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2, 3)
    worker.begin()

    worker.hear(Trim(1, (0, 2, 3)))

    assert worker.begin(9) == [(1, 1)]


def test_rows_leave_by_age_and_sooner_when_nothing_else_is_to_do() -> None:
    worker = at_work()
    worker.grant(1, 0, 1)
    worker.begin(2)
    worker.finish(1, 0)
    assert batches(worker.tick(0.9)) == []
    assert batches(worker.tick(0.1)) == [(1, 1, (0,))]

    worker.finish(1, 1)
    assert batches(worker.tick(0.2)) == [(2, 1, (1,))]


def test_total_is_the_runs_if_known_else_what_was_granted() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    assert worker.session.total == 3

    worker.open(1, total=1000)
    assert worker.session.total == 1000


def test_bytes_are_asked_for_and_delivered() -> None:
    worker = at_work()
    worker.grant(1, 5)
    worker.begin()

    assert sent(worker.do(BytesWanted(LeaseId(1), 5)), Fetch) == [Fetch(1, (5,))]
    image = Image(1, 5, b"bytes")
    assert Deliver(image) in worker.hear(image)


def test_an_orchestrator_that_sends_no_images_is_dialled_again() -> None:
    worker = at_work()
    worker.grant(1, 5)
    worker.begin()
    worker.do(BytesWanted(LeaseId(1), 5))

    assert not any(isinstance(e, Redial) for e in worker.tick(119.0))
    assert any(isinstance(e, Redial) for e in worker.tick(1.0))


# --------------------------------------------------------------------------- recalls


def test_a_recall_is_answered_with_half_of_what_is_not_begun() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.grant(2, 0, 1, 2)
    worker.begin(2)

    effects = worker.hear(Recall())
    assert Withdraw(0) in effects
    effects = worker.do(Withdrawn(()))

    assert sent(effects, Recalled) == [Recalled({2: (1, 2)})]
    assert worker.begin(9) == [(1, 2), (2, 0)]


def test_what_is_begun_but_in_no_engine_is_given_up_when_nothing_waits() -> None:
    worker = at_work()
    worker.grant(1, *range(8))
    worker.begin(8)
    worker.do(BytesWanted(LeaseId(1), 7))

    effects = worker.hear(Recall())
    assert Withdraw(2) in effects, "half of what is beyond the engine's width"
    effects = worker.do(Withdrawn(((LeaseId(1), 7), (LeaseId(1), 6))))

    assert sent(effects, Recalled) == [Recalled({1: (7, 6)})]
    assert worker.session.begun == 6
    assert worker.session.hello().leases == {1: (0, 1, 2, 3, 4, 5)}
    assert not sent(worker.tick(0.1), Fetch)


def test_a_worker_that_has_nothing_to_spare_says_so() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.hear(Recall())

    assert sent(worker.do(Withdrawn(())), Recalled) == [Recalled()]


def test_a_row_of_an_item_given_up_is_nobody_s() -> None:
    worker = at_work()
    worker.grant(1, *range(6))
    worker.begin(6)
    worker.hear(Recall())
    worker.do(Withdrawn(((LeaseId(1), 5),)))

    worker.finish(1, 5)

    assert worker.session.unacknowledged == 0


def test_a_worker_whose_models_are_loaded_in_turn_asks_until_it_has_a_slab() -> None:
    worker = Worker()
    worker.open()
    worker.do(EngineReady(WIDTH, 20))
    (want,) = sent(worker.grant(1, *range(10)), Want)
    assert want.width == WIDTH, "what engines work on at once is no larger for it"

    worker.begin(7)
    assert sent(worker.grant(2, *range(9)), Want), "19 are held"
    assert not sent(worker.grant(3, 0), Want), "20 are held"
    assert not sent(worker.tick(1.0), Want)

    assert sent(worker.finish(1, 0), Want), "the next slab is asked for while this one is finished"


def test_the_question_for_more_says_what_is_left_to_begin() -> None:
    worker = at_work()
    worker.hear(Wait(1.0))
    worker.grant(1, *range(6))
    worker.begin(5)
    (want,) = sent(worker.tick(60.0), Want)
    assert (want.width, want.idle) == (WIDTH, 2)
    worker.hear(Wait(40.0))

    worker.finish(1, 0)
    worker.begin(1)
    effects = worker.finish(1, 1)

    assert [want.idle for want in sent(effects, Want)] == [0], "asked again: it is urgent now"


# --------------------------------------------------------------------------- reconnecting


def test_hello_names_what_is_held_and_what_is_not_acknowledged() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.grant(2, 0, 1)
    worker.begin()
    worker.finish(1, 0)
    worker.tick(1.0)

    assert worker.session.hello().leases == {1: (0,), 2: (0, 1)}
    worker.hear(Ack(1))
    assert worker.session.hello().leases == {2: (0, 1)}


def test_after_a_reconnect_unacknowledged_rows_leave_before_anything_else() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.begin(3)
    worker.finish(1, 0)
    worker.tick(1.0)
    worker.do(BytesWanted(LeaseId(1), 2))
    worker.do(Closed())
    worker.finish(1, 1)
    assert worker.tick(1.0) == []

    effects = worker.open(1)

    assert batches(effects) == [(1, 1, (0,)), (2, 1, (1,))]
    rest = effects[2:]
    assert sent(rest, Fetch) == [Fetch(1, (2,))]
    assert sent(rest, Want) == [Want(2, WIDTH)]
    assert not any(isinstance(effect, SendBatch) for effect in rest)


def test_a_blink_of_the_socket_loses_no_work() -> None:
    worker = at_work()
    worker.grant(1, 0, 1)
    worker.begin()
    worker.do(Closed())

    effects = worker.open(1)

    assert not any(isinstance(effect, Abandon) for effect in effects)
    assert worker.begin() == [(1, 1)]


def test_a_lost_lease_is_dropped_and_its_finished_rows_are_still_sent() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.begin(2)
    worker.finish(1, 0)
    worker.do(Closed())

    effects = worker.open()

    assert Abandon(((LeaseId(1), 1),)) in effects
    assert batches(effects) == [(1, 1, (0,))], "at once: they must be gone before a new lease comes"
    assert worker.begin() == []
    assert worker.finish(1, 1) == [], "nobody wants it any more"
    assert worker.session.unacknowledged == 1


def test_nothing_is_asked_for_while_rows_of_lost_leases_wait_for_the_window() -> None:
    worker = at_work(outbox=Outbox(batch_rows=1))
    worker.grant(1, *range(6))
    worker.begin(6)
    worker.do(Closed())
    for item in range(6):
        worker.finish(1, item)

    effects = worker.open()
    assert len(batches(effects)) == 4, "the window"
    assert not sent(effects, Want)
    assert not sent(worker.hear(Ack(1)), Want)
    effects = worker.hear(Ack(2))
    assert batches(effects) == [(6, 1, (5,))]
    assert sent(effects, Want)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(SendBatch) < kinds.index(Send)


# --------------------------------------------------------------------------- the recipe


def test_leases_keep_the_recipe_they_were_granted_under() -> None:
    worker = at_work()
    worker.grant(1, 0)
    jobs = [worker.session.begin()]
    assert Adopt(OTHER_RECIPE) in worker.hear(RecipeChanged(OTHER_RECIPE))
    worker.do(Withdrawn(()))  # the engine has it
    worker.grant(2, 0)

    jobs.append(worker.session.begin())

    assert [job.recipe for job in jobs if job] == ["recipe one", "recipe two"]
    assert batches(worker.finish(1, 0) + worker.tick(10.0)) == [(1, 1, (0,))], "and it counts"


def test_when_the_recipe_changes_what_is_in_no_engine_is_given_up_at_once() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.grant(2, 7, 8)
    worker.begin(2)

    effects = worker.hear(RecipeChanged(OTHER_RECIPE))
    assert Withdraw(2) in effects, "those begun, as far as they are in no engine"
    said = sent(worker.do(Withdrawn(((LeaseId(1), 1),))), Recalled)

    assert said == [Recalled({1: (2, 1), 2: (7, 8)})]
    assert (worker.session.waiting, worker.session.begun) == (0, 1)
    assert worker.session.hello().leases == {1: (0,)}


def test_a_worker_that_holds_nothing_has_nothing_to_give_up_for_another_recipe() -> None:
    worker = at_work()
    effects = worker.hear(RecipeChanged(OTHER_RECIPE))
    assert Adopt(OTHER_RECIPE) in effects
    assert not any(isinstance(effect, Withdraw) for effect in effects)


def test_a_recipe_with_other_engine_options_is_another_though_its_rows_are_alike() -> None:
    stages = [StageSpec("s", "m", ("p",), "captions", engine={"dtype": one}) for one in ("a", "b")]
    first, second = (RecipeSpec((stage,), "alike") for stage in stages)
    worker = Worker()
    worker.open(recipe=first)
    assert Adopt(second) in worker.hear(RecipeChanged(second))
    assert Adopt(second) not in worker.hear(RecipeChanged(second))


def test_limits_that_come_with_a_recipe_are_kept_to() -> None:
    worker = at_work()
    hurried = msgspec.structs.replace(LIMITS, heartbeat_seconds=1.0, chunks_per_request=7)
    worker.tick(2.0)
    assert SendHeartbeat() in worker.hear(RecipeChanged(RECIPE, hurried)), "two seconds are over"
    assert SendHeartbeat() in worker.tick(1.0)
    assert [want.chunks for want in sent(worker.open(), Want)] == [2], "a new welcome says it anew"


def test_the_same_recipe_is_adopted_once() -> None:
    worker = at_work()

    assert not any(isinstance(e, Adopt) for e in worker.open())
    assert any(isinstance(e, Adopt) for e in worker.open(recipe=OTHER_RECIPE))


def test_an_unusable_recipe_ends_the_worker_with_its_reason() -> None:
    worker = Worker()
    worker.open()

    end = leaving(worker.do(RecipeUnusable("no such stage")))

    assert end == Leave(Outcome.FAILED, "no such stage")


# --------------------------------------------------------------------------- the end


def test_a_finished_run_ends_the_worker_once_everything_is_acknowledged() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.finish(1, 0)

    effects = worker.hear(Finished(1, 0))
    assert batches(effects) == [(1, 1, (0,))]
    assert leaving(effects) is None
    assert leaving(worker.hear(Ack(1))) == Leave(Outcome.FINISHED)


def test_a_finished_run_ends_the_worker_within_a_second_whatever_is_open() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.begin(2)
    worker.finish(1, 0)

    effects = worker.hear(Finished(3, 0))
    assert Abandon(((LeaseId(1), 1),)) in effects
    assert leaving(worker.tick(FINISHED_ACK_SECONDS)) == Leave(Outcome.FINISHED)


def test_a_finished_run_ends_a_worker_that_still_loads_its_engine() -> None:
    worker = Worker()
    worker.open()

    assert leaving(worker.hear(Finished(1, 0))) == Leave(Outcome.FINISHED)


def test_a_worker_that_stays_asks_again_after_a_finished_run() -> None:
    worker = at_work(leaves=False)

    assert leaving(worker.hear(Finished(1, 0))) is None
    assert not sent(worker.tick(FINISHED_PAUSE_SECONDS * 0.9), Want)
    assert sent(worker.tick(FINISHED_PAUSE_SECONDS), Want)
    worker.grant(7, 0)
    assert worker.begin() == [(7, 0)]


def test_an_engine_that_dies_after_the_end_fails_nobody() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.finish(1, 0)
    worker.hear(Finished(1, 0))
    worker.do(EngineLost("dead"))

    assert leaving(worker.hear(Ack(1))) == Leave(Outcome.FINISHED)


def test_drain_gives_back_what_is_not_begun_and_finishes_the_rest() -> None:
    worker = at_work()
    worker.grant(1, 0, 1)
    worker.grant(2, 0)
    worker.begin()

    effects = worker.do(StopAsked())
    assert sent(effects, Release) == [Release(2, reason="the worker is stopping")]
    assert worker.begin() == []

    effects = worker.finish(1, 0)
    assert batches(effects) == [(1, 1, (0,))]
    assert sent(effects, Release) == [Release(1, reason="the worker is stopping")]
    assert [type(e) for e in effects][:2] == [SendBatch, Send], "rows before the release"
    assert leaving(effects) is None
    assert leaving(worker.hear(Ack(1))) == Leave(Outcome.DRAINED)


def test_a_lease_is_not_given_back_while_its_rows_wait_for_the_window() -> None:
    worker = at_work(outbox=Outbox(batch_rows=1))
    worker.grant(1, *range(9))
    worker.begin(5)
    for item in range(5):
        worker.finish(1, item)

    effects = worker.do(StopAsked())
    assert not sent(effects, Release), "the fifth row has not left"
    effects = worker.hear(Ack(1))
    assert batches(effects) == [(5, 1, (4,))]
    assert sent(effects, Release) == [Release(1, reason="the worker is stopping")]
    assert [type(effect) for effect in effects] == [SendBatch, Send]


def test_drain_gives_up_on_items_that_take_too_long() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.do(StopAsked())
    assert leaving(worker.tick(DRAIN_WORK_SECONDS * 0.9)) is None

    effects = worker.tick(DRAIN_WORK_SECONDS * 0.1)

    assert Abandon(((LeaseId(1), 0),)) in effects
    assert sent(effects, Release) == [Release(1, reason="the worker is stopping")]
    assert leaving(effects) == Leave(Outcome.DRAINED)


def test_drain_waits_for_acknowledgements_but_not_for_ever() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.finish(1, 0)
    worker.do(StopAsked())

    assert leaving(worker.tick(DRAIN_ACK_SECONDS * 0.9)) is None
    assert leaving(worker.tick(DRAIN_ACK_SECONDS * 0.1)) == Leave(Outcome.DRAINED)


def test_a_worker_with_nothing_in_hand_stops_at_once() -> None:
    assert leaving(Worker().do(StopAsked())) == Leave(Outcome.DRAINED)
    assert leaving(at_work().do(StopAsked())) == Leave(Outcome.DRAINED)


def test_leases_that_come_while_draining_go_straight_back() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.do(StopAsked())

    assert sent(worker.grant(2, 0, 1), Release) == [Release(2, reason="the worker is stopping")]
    assert worker.begin() == []


def test_nothing_follows_a_farewell() -> None:
    worker = at_work()
    worker.do(StopAsked())

    assert worker.grant(1, 0) == []
    assert worker.tick(100.0) == []


def test_the_orchestrators_drain_lasts_until_it_closes() -> None:
    worker = at_work()
    worker.grant(1, 0, 1)
    worker.begin()

    effects = worker.hear(Drain("maintenance"))
    assert leaving(effects) is None
    worker.finish(1, 0)
    assert leaving(worker.hear(Ack(1))) is None
    assert leaving(worker.tick(60.0)) is None
    assert leaving(worker.do(Closed())) == Leave(Outcome.DRAINED)


def test_a_worker_that_stays_works_on_after_the_orchestrators_drain() -> None:
    worker = at_work(leaves=False)
    worker.grant(1, 0, 1)
    worker.begin()
    worker.hear(Drain())
    worker.finish(1, 0)
    worker.hear(Ack(1))

    assert leaving(worker.do(Closed())) is None
    assert sent(worker.open(), Want)
    worker.grant(2, 0)
    assert worker.begin() == [(2, 0)]


def test_a_signal_while_the_orchestrator_is_gone_waits_for_it_only_so_long() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.finish(1, 0)
    worker.do(Closed())

    assert leaving(worker.do(StopAsked())) is None
    effects = worker.open(1)
    assert batches(effects) == [(1, 1, (0,))]
    assert leaving(worker.hear(Ack(1))) == Leave(Outcome.DRAINED)


def test_a_lost_engine_blames_its_suspects_and_gives_the_rest_back_in_peace() -> None:
    worker = at_work()
    worker.grant(1, 0, 1, 2)
    worker.grant(2, 5)
    worker.begin(2)

    effects = worker.do(EngineLost("it died", ((LeaseId(1), 1), (LeaseId(1), 0))))

    assert sent(effects, Release) == [
        Release(1, engine_died=True, suspects=(0, 1), reason="it died"),
        Release(2, reason="it died"),
    ]
    assert leaving(effects) == Leave(Outcome.FAILED, "it died")


def test_blame_that_could_not_be_told_is_told_after_a_reconnect() -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.do(Closed())
    worker.do(EngineLost("it died", ((LeaseId(1), 0),)))
    assert worker.session.hello().leases == {1: (0,)}

    effects = worker.open(1)

    assert sent(effects, Release) == [Release(1, engine_died=True, suspects=(0,), reason="it died")]


@pytest.mark.parametrize("first", [StopAsked(), Heard(Drain())])
def test_a_failure_during_a_drain_is_still_a_failure(first: Event[str]) -> None:
    worker = at_work()
    worker.grant(1, 0)
    worker.begin()
    worker.do(first)

    assert leaving(worker.do(EngineLost("it died"))) == Leave(Outcome.FAILED, "it died")
