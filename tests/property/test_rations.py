"""However workers come, go and report: nobody's rows exceed its ration, and the run gets done."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy

SESSIONS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
STEPS = st.tuples(
    st.sampled_from(["want", "report", "leave", "durable", "reject", "tick"]),
    st.sampled_from(sorted(SESSIONS)),
    st.integers(1, 9),
)


class Play:
    """A ledger, and whoever works on what it grants; late reports are not part of it."""

    def __init__(self, items: int, ration: int) -> None:
        self.ledger = Ledger(Policy(chunk_size=8, smallest_grant=2, lease_seconds=1e9))
        self.now = 0.0
        self.held: dict[str, dict[int, set[int]]] = {name: {} for name in SESSIONS}
        self.on_the_way: list[tuple[ev.Ticket, str, int]] = []
        self.counted: Counter[str] = Counter()
        self.ration = ration
        self.say(ev.ItemsFound("s", items))
        self.say(ev.ListingFinished())
        self.say(ev.Rationed("a", ration))
        for name in SESSIONS:
            self.join(name)

    def say(self, event: ev.Event) -> None:
        self.now += 0.01
        for effect in self.ledger.handle(event, now=self.now):
            match effect:
                case ev.Grant(session, lease, _, _, _, items):
                    self.held[session][lease] = set(items)
                case ev.Trim(session, lease, items):
                    self.held[session].get(lease, set()).difference_update(items)
                case ev.Commit(ticket, session, accepted=accepted) if accepted:
                    self.on_the_way.append((ticket, SESSIONS[session], len(accepted)))
                    self.counted[SESSIONS[session]] += len(accepted)
                case ev.Recall(session):
                    self.say(ev.Recalled(session, {}))
                case _:
                    pass
        self.ledger.check()
        assert self.counted["a"] <= self.ration
        holds = sum(len(i) for s in ("a1", "a2", "a3") for i in self.held[s].values())
        assert self.counted["a"] + holds <= self.ration, "granted more than may count"

    def join(self, name: str) -> None:
        self.say(ev.SessionJoined(name, name, contributor=SESSIONS[name]))

    def step(self, what: str, name: str, number: int) -> None:
        held = self.held[name]
        match what:
            case "want":
                self.say(ev.Wanted(name, 1 + number % 3, width=1, idle=0))
            case "report" if any(held.values()):
                lease = next(lease for lease, items in held.items() if items)
                items = tuple(sorted(held[lease]))[:number]
                held[lease].difference_update(items)
                self.say(ev.Reported(name, lease, 1, items))
            case "leave":
                held.clear()
                self.say(ev.SessionLeft(name))
                self.join(name)
            case "durable" | "reject" if self.on_the_way:
                ticket, contributor, count = self.on_the_way.pop(0)
                if what == "reject":
                    self.counted[contributor] -= count
                self.say(ev.Committed(ticket) if what == "durable" else ev.CommitRejected(ticket))
            case _:
                self.say(ev.Ticked())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(0, 40), st.lists(STEPS, max_size=60))
def test_a_ration_holds_and_others_finish_the_run(
    items: int, ration: int, steps: list[tuple[str, str, int]]
) -> None:
    play = Play(items, ration)
    for what, name, number in steps:
        play.step(what, name, number)
    for name in ("a1", "a2", "a3"):
        play.step("leave", name, 1)
    for _ in range(4 * items + 4):
        for what in ("want", "report", "durable"):
            play.step(what, "b1", 9)
    assert play.ledger.finished
