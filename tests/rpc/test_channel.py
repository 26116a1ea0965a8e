"""The channel: legal conversations pass, everything else raises and changes nothing."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kontrol.rpc.channel import Channel, Channels, Illegal, Lost, Side, State
from kontrol.rpc.events import Beat, Done, Event, Failure, Item, More, Open, Result

OPEN, RESULT, ITEM, DONE = Open("m", ()), Result(1), Item(1), Done()
FAILURE, MORE, BEAT = Failure("E", "", ""), More(5), Beat()
ALL: tuple[Event, ...] = (OPEN, RESULT, ITEM, DONE, FAILURE, MORE, BEAT)


def pair() -> tuple[Channel, Channel]:
    caller = Channel(Side.CALLER, 0.0, heartbeat=5.0, window=10)
    return caller, Channel(Side.ANSWERER, 0.0, heartbeat=5.0)


def snapshot(channel: Channel) -> list[Any]:
    return [getattr(channel, slot) for slot in Channel.__slots__]


def tell(sender: Channel, receiver: Channel, *events: Event) -> None:
    for event in events:
        sender.send(event)
        receiver.receive(event, 0.0)
    assert sender.state == receiver.state


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("cO aR", State.CLOSED),
        ("cO aF", State.CLOSED),
        ("cO aD", State.CLOSED),
        ("cO aB cB aR", State.CLOSED),
        ("cO aI cM aI aI aD", State.CLOSED),
        ("cO aI cM aI cB aF", State.CLOSED),
        ("cO cF", State.CLOSED),
        ("cO aI cF", State.CLOSED),
        ("cO aI cM", State.STREAMING),
    ],
)
def test_conversations(events: str, end: State) -> None:
    caller, answerer = pair()
    letters: dict[str, Event] = {
        "O": OPEN,
        "R": RESULT,
        "I": ITEM,
        "D": DONE,
        "F": FAILURE,
        "M": MORE,
        "B": BEAT,
    }
    for who, what in map(tuple, events.split()):
        sides = (caller, answerer) if who == "c" else (answerer, caller)
        if isinstance(letters[what], Item) and not caller.granted:
            caller.grant(0)
        tell(*sides, letters[what])
    assert caller.state is end


LEGAL = {
    (Side.CALLER, State.IDLE): (OPEN,),
    (Side.CALLER, State.OPEN): (FAILURE, MORE, BEAT),
    (Side.CALLER, State.STREAMING): (FAILURE, MORE, BEAT),
    (Side.CALLER, State.CLOSED): (),
    (Side.ANSWERER, State.IDLE): (),
    (Side.ANSWERER, State.OPEN): (RESULT, FAILURE, ITEM, DONE, MORE, BEAT),
    (Side.ANSWERER, State.STREAMING): (FAILURE, ITEM, DONE, MORE, BEAT),
    (Side.ANSWERER, State.CLOSED): (),
}


@pytest.mark.parametrize(("sender", "state", "event"), list(itertools.product(Side, State, ALL)))
def test_every_event_in_every_state(sender: Side, state: State, event: Event) -> None:
    sending, receiving = pair() if sender is Side.CALLER else reversed(pair())
    sending.state = receiving.state = state
    sending.credit = 9
    before = snapshot(sending), snapshot(receiving)
    if event in LEGAL[sender, state]:
        tell(sending, receiving, event)
        return
    with pytest.raises(Illegal):
        sending.send(event)
    with pytest.raises(Illegal):
        receiving.receive(event, 3.0)
    assert (snapshot(sending), snapshot(receiving)) == before


def test_the_answerer_sends_no_more_than_was_asked_for() -> None:
    caller, answerer = pair()
    tell(caller, answerer, OPEN)
    tell(answerer, caller, ITEM)
    before = snapshot(answerer)
    for event in (ITEM, DONE, FAILURE):
        with pytest.raises(Illegal, match="asked for no more"):
            answerer.send(event)
    answerer.send(BEAT)
    assert snapshot(answerer) == before
    more = caller.grant(0)
    assert more == More(10)
    tell(caller, answerer, more)
    tell(answerer, caller, *[ITEM] * 10)
    with pytest.raises(Illegal):
        answerer.send(ITEM)


def test_the_caller_takes_no_more_than_it_asked_for() -> None:
    caller, answerer = pair()
    tell(caller, answerer, OPEN)
    tell(answerer, caller, ITEM)
    with pytest.raises(Illegal, match="more than the 10"):
        caller.receive(ITEM, 0.0)
    caller.receive(DONE, 0.0)
    assert caller.closed


def test_the_caller_asks_again_only_when_half_of_its_window_is_free() -> None:
    caller, answerer = pair()
    tell(caller, answerer, OPEN)
    assert caller.grant(0) is None
    tell(answerer, caller, ITEM)
    assert caller.grant(1) == More(9)
    for _ in range(9):
        caller.receive(ITEM, 0.0)
    assert [caller.grant(queued) for queued in range(9, 3, -1)] == [None] * 5 + [More(6)]


def test_a_call_shorter_than_an_interval_sees_no_beat() -> None:
    channel = Channel(Side.ANSWERER, 100.0, heartbeat=5.0)
    assert channel.due == 105.0


def test_a_peer_that_never_beats_is_lost_after_three_intervals() -> None:
    channel = Channel(Side.ANSWERER, 0.0, heartbeat=5.0)
    channel.receive(OPEN, 0.0)
    assert [channel.tick(t) for t in (5.0, 10.0, 15.0)] == [BEAT] * 3
    lost = channel.tick(15.1)
    assert isinstance(lost, Lost)
    assert lost.silence == pytest.approx(10.1)


def test_a_passive_peer_that_beats_once_it_has_heard_us_is_not_lost() -> None:
    channel = Channel(Side.ANSWERER, 0.0, heartbeat=5.0)
    channel.receive(OPEN, 0.0)
    for t in range(5, 500, 5):
        assert channel.tick(t + 0.01) == BEAT
        if t > 5:
            channel.receive(BEAT, t + 0.02)


def test_a_peer_that_falls_silent_is_lost_within_three_intervals() -> None:
    channel = Channel(Side.ANSWERER, 0.0, heartbeat=5.0)
    channel.receive(OPEN, 0.0)
    channel.receive(BEAT, 7.0)
    assert [channel.tick(t) for t in (5.0, 10.0, 15.0)] == [BEAT] * 3
    assert channel.tick(20.0) == Lost(13.0)


def test_our_own_sleep_is_no_silence_of_the_peer() -> None:
    channel = Channel(Side.ANSWERER, 0.0, heartbeat=5.0)
    channel.receive(OPEN, 0.0)
    channel.receive(BEAT, 4.0)
    assert channel.tick(60.0) == BEAT
    assert channel.tick(65.0) == BEAT
    assert channel.tick(70.0) == BEAT
    assert channel.tick(75.0) == Lost(15.0)


def test_silence_while_we_are_behind_with_reading_is_forgiven() -> None:
    channel = Channel(Side.ANSWERER, 0.0, heartbeat=5.0)
    channel.receive(OPEN, 0.0)
    for t in range(5, 100, 5):
        assert channel.tick(float(t), behind=True) == BEAT
    assert [channel.tick(t) for t in (100.0, 105.0)] == [BEAT] * 2
    assert isinstance(channel.tick(110.0), Lost)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(ALL)), max_size=30))
def test_both_ends_stay_in_step(steps: list[tuple[bool, Event]]) -> None:
    """Whatever is tried, an end that accepts to send has an end that accepts to receive."""
    caller, answerer = pair()
    for from_caller, event in steps:
        sides = (caller, answerer) if from_caller else (answerer, caller)
        if isinstance(event, More):
            granted = caller.grant(0)
            if not from_caller or granted is None:
                continue
            event = granted
        before = snapshot(sides[0])
        try:
            sides[0].send(event)
        except Illegal:
            assert snapshot(sides[0]) == before
            continue
        sides[1].receive(event, 0.0)
        assert caller.state == answerer.state


class Timeline(RuleBasedStateMachine):
    """Many channels under one timer, on virtual time."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.made = 0
        self.channels: Channels[int, Channel] = Channels()
        self.ticked: dict[int, float] = {}

    @rule()
    def add(self) -> None:
        self.made += 1
        self.channels.add(self.made, Channel(Side.ANSWERER, self.now, heartbeat=5.0))
        self.ticked[self.made] = self.now

    @precondition(lambda self: self.ticked)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.ticked)))
        assert self.channels.remove(key) is not None
        assert self.channels.remove(key) is None
        del self.ticked[key]

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        keys = {id(self.channels.get(key)): key for key in self.ticked}
        due = {key for key, at in self.ticked.items() if at + 5.0 <= self.now}
        ticked = [keys[id(channel)] for channel, _ in self.channels.tick(self.now)]
        assert sorted(ticked) == sorted(due)
        self.ticked.update(dict.fromkeys(ticked, self.now))

    @invariant()
    def the_first_is_due_first(self) -> None:
        expected = min(self.ticked.values()) + 5.0 if self.ticked else None
        assert self.channels.due == expected
        assert len(self.channels) == len(self.ticked)


TestTimeline = Timeline.TestCase
