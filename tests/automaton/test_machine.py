"""The pure machine, on random manifests and random turns of events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automaton.events import (
    Abandon,
    Begin,
    Effect,
    Ended,
    Entered,
    Event,
    Exit,
    Fired,
    Kill,
    Left,
    Reply,
    Shutdown,
    Start,
    Started,
    Terminate,
    Timer,
    Transit,
    Unstartable,
)
from automaton.machine import GRACE, LEEWAY, QUEUE, IllegalEvent, Machine, Phase
from automaton.manifest import Manifest, Outcome, State

TAGS = ["a", "b", "c", "d", "z"]
SCRIPT = ("/bin/sh", "-c", "true")


def manifest(*states: State) -> Manifest:
    return Manifest("a", "z", {state.tag: state for state in (*states, State("z", SCRIPT))})


def state(tag: str, *reach: str, argv: tuple[str, ...] = SCRIPT, **more: object) -> State:
    return State(tag, argv, frozenset(reach), **more)  # type: ignore[arg-type]  # keys of State


@dataclass
class World:
    """Plays the driver, and keeps what happened."""

    machine: Machine
    startable: Callable[[str], bool] = lambda _: True
    effects: list[Effect] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    timer: float | None = None
    alive: bool = False
    tickets: int = 0
    ends: list[Exit] = field(default_factory=list)

    def tell(self, event: Event) -> list[Effect]:
        done: list[Effect] = []
        events = [event]
        while events:
            for effect in self.machine.handle(events.pop(0)):
                assert not self.ends or isinstance(effect, Reply), f"{effect} after the end"
                done.append(effect)
                match effect:
                    case Start(begun, _, _):
                        assert not self.alive, "two scripts at the same time"
                        self.alive = self.startable(begun.tag)
                        events.append(Started() if self.alive else Unstartable("no"))
                    case Timer(seconds):
                        self.timer = seconds
                    case Reply(ticket, text):
                        assert ticket not in self.answers, "answered twice"
                        self.answers[ticket] = text
                        self.order.append(ticket)
                    case Exit():
                        assert not self.alive
                        self.ends.append(effect)
        self.effects += done
        return done

    def send(self, verb: str, tag: str) -> int:
        self.tickets += 1
        self.tell(Transit(self.tickets, verb, tag))  # type: ignore[arg-type]  # GOTO or WAIT
        return self.tickets

    def end(self, *, success: bool = True, seconds: float = 2.0) -> list[Effect]:
        self.alive = False
        return self.tell(Ended(success, seconds))

    def fire(self) -> list[Effect]:
        assert self.timer is not None
        self.timer = None
        return self.tell(Fired())

    def finish(self) -> None:
        """Run to the end: whatever runs ends, whatever waits fires."""
        for _ in range(50):
            if self.ends:
                return
            if self.alive:
                self.end()
            else:
                self.fire()
        raise AssertionError("it does not end")

    @property
    def moves(self) -> list[Entered]:
        return [effect for effect in self.effects if isinstance(effect, Entered)]

    @property
    def entered(self) -> list[str]:
        return [move.tag for move in self.moves]


def world(*states: State, startable: Callable[[str], bool] = lambda _: True) -> World:
    made = World(Machine(manifest(*states)), startable)
    made.tell(Begin())
    return made


# Random runs.


@st.composite
def manifests(draw: st.DrawFn, *, simple: bool) -> Manifest:
    tags = draw(st.lists(st.sampled_from(TAGS[:-1]), min_size=1, max_size=4, unique=True))
    tags = [*tags, "z"]
    some = st.frozensets(st.sampled_from(tags))
    states = {}
    for tag in tags:
        argv = draw(st.sampled_from([SCRIPT, ()]))
        force = draw(st.booleans())
        if simple:
            states[tag] = State(tag, argv, draw(some), force=force)
            continue
        outcomes = st.dictionaries(st.sampled_from(list(Outcome)), st.sampled_from(tags))
        states[tag] = State(
            tag,
            argv,
            draw(some),
            force,
            timeout=draw(st.sampled_from([None, 3.0])),
            on=draw(outcomes),
            retry=draw(st.integers(0, 2)),
        )
    return Manifest(draw(st.sampled_from(tags)), "z", states)


COMMANDS = st.tuples(st.sampled_from(["GOTO", "WAIT"]), st.sampled_from([*TAGS, "nowhere"]))


@settings(max_examples=300, deadline=None)
@given(manifests(simple=True), st.data())
def test_answers_are_those_of_a_simple_model(machine: Manifest, data: st.DataObject) -> None:
    play = World(Machine(machine))
    play.tell(Begin())
    sent: list[tuple[int, str, str]] = []
    for _ in range(data.draw(st.integers(0, 25))):
        match data.draw(st.sampled_from(["send", "send", "end", "fire"])):
            case "send":
                verb, tag = data.draw(COMMANDS)
                sent.append((play.send(verb, tag), verb, tag))
            case "end" if play.alive:
                play.end(success=data.draw(st.booleans()))
            case "fire" if play.timer is not None:
                play.fire()
    play.tell(Shutdown())
    play.finish()
    # The model: one state, one command after another.
    at, path = machine.initial, [machine.initial]
    for ticket, verb, tag in sent:
        answer = play.answers[ticket]
        reach = machine.states[at].reach | {"z"} if at != "z" else frozenset()
        legal = tag in machine.states and tag in reach
        if answer == "KO shutting down":
            pass  # not judged yet, or a WAIT whose script ran
        elif legal:
            cut = "KO timed out" if tag == "z" else "KO interrupted"
            assert answer == "OK" or (verb == "WAIT" and answer == cut)
        else:
            assert answer.startswith("KO ")
            assert answer not in ("KO interrupted", "KO timed out")
        if legal:
            at = tag
            path.append(tag)
    assert len(play.answers) == len(sent)
    moves = [move.tag for move in play.moves if move.cause != "shutdown"]
    assert moves == path[: len(moves)]
    assert play.entered[-1] == "z"


@settings(max_examples=400, deadline=None)
@given(manifests(simple=False), st.data())
def test_invariants_hold_whatever_happens(machine: Manifest, data: st.DataObject) -> None:
    broken = data.draw(st.frozensets(st.sampled_from(TAGS), max_size=1))
    play = World(Machine(machine), startable=lambda tag: tag not in broken)
    play.tell(Begin())
    abandoned = False
    for _ in range(data.draw(st.integers(0, 30))):
        actions = ["send"] * 4 + ["shutdown", "abandon"] * (data.draw(st.integers(0, 9)) == 0)
        if play.alive:
            actions += ["end"] * 3
        if play.timer is not None:
            actions += ["fire"] * 2
        match data.draw(st.sampled_from(actions)):
            case "send":
                play.send(*data.draw(COMMANDS))
            case "end":
                seconds = data.draw(st.sampled_from([0.01, 5.0]))
                play.end(success=data.draw(st.booleans()), seconds=seconds)
            case "fire":
                play.fire()
            case "shutdown":
                play.tell(Shutdown())
            case "abandon":
                abandoned = True
                play.tell(Abandon())
    play.tell(Shutdown())
    if not play.ends:
        play.finish()
    assert len(play.ends) == 1
    assert sorted(play.answers) == list(range(1, play.tickets + 1)), "each exactly once"
    # Granted or refused in the order in which they were sent, WAITs among WAITs too.
    starts = [effect.state.tag for effect in play.effects if isinstance(effect, Start)]
    scripted = bool(machine.states["z"].argv)
    assert play.entered.count("z") <= 1
    if "z" in play.entered:
        assert play.entered[-1] == "z", "nothing leaves the terminal state"
        assert not scripted or starts[-1] == "z"
    elif not abandoned:
        assert scripted
        assert "z" in broken, "the terminal state is always reached"
    assert starts.count("z") <= 1 or "z" in broken
    legal = _edges(machine)
    previous = None
    for effect in play.effects:
        if isinstance(effect, Entered):
            kind = "moved" if effect.cause in ("GOTO", "WAIT") else effect.cause
            assert (previous, effect.tag, kind) in legal, effect
            previous = effect.tag


def _edges(machine: Manifest) -> set[tuple[str | None, str, str]]:
    edges: set[tuple[str | None, str, str]] = {
        (None, machine.initial, "start"),
        (None, "z", "shutdown"),
    }
    for tag, found in machine.states.items():
        if tag != "z":
            edges |= {(tag, to, "moved") for to in {*found.reach, "z"}}
            edges |= {(tag, to, outcome) for outcome in Outcome if (to := found.follows(outcome))}
            edges.add((tag, "z", "shutdown"))
    return edges


@settings(deadline=None)
@given(st.data())
def test_judgements_are_made_in_order(data: st.DataObject) -> None:
    states = [state(tag, *TAGS, argv=data.draw(st.sampled_from([SCRIPT, ()]))) for tag in TAGS[:-1]]
    play = world(*states)
    for _ in range(data.draw(st.integers(1, 20))):
        play.send("GOTO", data.draw(st.sampled_from(["a", "b", "nowhere"])))
        if play.alive and data.draw(st.booleans()):
            play.end()
    play.tell(Shutdown())
    play.finish()
    assert play.order == sorted(play.order)


# Single behaviours, by name.


def test_goto_is_answered_before_the_running_script_is_touched() -> None:
    play = world(state("a", "b"), state("b"))
    ticket = play.send("GOTO", "b")
    assert play.answers[ticket] == "OK"
    assert play.timer == LEEWAY
    assert play.machine.tag == "a"


def test_leeway_then_sigterm_then_grace_then_sigkill() -> None:
    play = world(state("a", "b"), state("b"))
    play.send("GOTO", "b")
    assert Terminate() in play.fire()
    assert play.timer == GRACE
    assert Kill() in play.fire()
    play.end(success=False)
    assert play.entered == ["a", "b"]


def test_a_script_that_ends_within_leeway_is_not_signalled() -> None:
    play = world(state("a", "b"), state("b"))
    play.send("GOTO", "b")
    effects = play.end()
    assert Terminate() not in effects
    assert play.machine.tag == "b"


def test_wait_is_answered_when_its_script_has_ended_whatever_its_status() -> None:
    play = world(state("a", "b", argv=()), state("b"))
    ticket = play.send("WAIT", "b")
    assert ticket not in play.answers
    play.end(success=False)
    assert play.answers[ticket] == "OK"


def test_wait_is_refused_when_its_script_is_interrupted() -> None:
    play = world(state("a", "b", argv=()), state("b", "a"))
    ticket = play.send("WAIT", "b")
    play.send("GOTO", "a")
    play.fire()
    play.end(success=False)
    assert play.answers[ticket] == "KO interrupted"


def test_a_state_whose_script_cannot_start_is_not_entered() -> None:
    play = world(state("a", "b", argv=()), state("b"), startable=lambda tag: tag != "b")
    ticket = play.send("WAIT", "b")
    assert play.answers[ticket] == "KO could not start: no"
    assert play.machine.tag == "a"


def test_a_machine_whose_initial_state_cannot_start_ends_through_the_terminal_one() -> None:
    play = world(state("a"), startable=lambda tag: tag != "a")
    play.finish()
    assert play.entered == ["z"]
    assert play.effects[-1] == Exit(failed=True)


def test_the_65th_transition_is_refused_and_the_64_are_answered() -> None:
    play = world(state("a", "a"))
    tickets = [play.send("WAIT", "a") for _ in range(QUEUE + 1)]
    assert play.answers == {tickets[-1]: "KO 64 transitions are queued; try again later"}
    for _ in range(QUEUE):
        play.end()
    play.end()
    assert [play.answers[ticket] for ticket in tickets[:-1]] == ["OK"] * QUEUE


def test_a_queued_transition_that_has_become_illegal_is_refused_at_its_turn() -> None:
    play = world(state("a", "b", "c"), state("b"), state("c"))
    first, second = play.send("GOTO", "b"), play.send("GOTO", "c")
    assert second not in play.answers
    play.end()
    assert play.answers == {first: "OK", second: "KO 'b' does not lead to 'c', only to z"}


def test_force_is_not_interrupted_by_commands_but_by_the_end() -> None:
    play = world(state("a", "b", force=True), state("b"))
    ticket = play.send("GOTO", "b")
    assert play.answers[ticket] == "OK"
    assert play.timer is None
    play.tell(Shutdown())
    assert play.timer == LEEWAY


def test_a_queued_command_wins_over_on() -> None:
    play = world(state("a", "b", force=True, on={Outcome.SUCCESS: "c"}), state("b"), state("c"))
    play.send("GOTO", "b")
    play.end()
    assert play.machine.tag == "b"


def test_what_on_says_happens_if_the_command_that_won_cannot_start() -> None:
    play = world(
        state("a", "b", on={Outcome.SUCCESS: "c"}),
        state("b"),
        state("c"),
        startable=lambda tag: tag != "b",
    )
    play.send("GOTO", "b")
    play.end()
    assert play.timer == pytest.approx(0.1)
    play.fire()
    assert play.machine.tag == "c"


@pytest.mark.parametrize(
    ("on", "outcome"),
    [
        ({Outcome.TIMEOUT: "b"}, "timeout"),
        ({Outcome.FAILURE: "b"}, "timeout"),
        ({Outcome.TIMEOUT: "b", Outcome.FAILURE: "a"}, "timeout"),
    ],
)
def test_a_time_out_is_terminated_and_names_the_next_state(
    on: Mapping[Outcome, str], outcome: str
) -> None:
    play = world(state("a", timeout=3.0, on=on), state("b"))
    assert play.timer == pytest.approx(3.0)
    assert Terminate() in play.fire()
    effects = play.end(success=False, seconds=3.0)
    assert Left("a", outcome) in effects
    assert play.machine.tag == "b"


def test_a_wait_for_a_script_that_times_out_is_refused() -> None:
    play = world(state("a", "b", argv=()), state("b", timeout=3.0))
    ticket = play.send("WAIT", "b")
    play.fire()
    play.end(success=False)
    assert play.answers[ticket] == "KO timed out"


def test_short_scripts_back_off_up_to_30_s_and_a_longer_one_resets() -> None:
    play = world(state("a", on={Outcome.SUCCESS: "a"}))
    delays = []
    for _ in range(11):
        play.end(seconds=0.5)
        assert play.timer is not None
        delays.append(play.timer)
        play.fire()
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])
    play.end(seconds=1.0)
    assert play.machine.phase is Phase.RUNNING
    play.end(seconds=0.5)
    assert play.timer == pytest.approx(0.1)


def test_a_command_resets_the_back_off() -> None:
    play = world(state("a", "a", on={Outcome.SUCCESS: "a"}))
    for _ in range(3):
        play.end(seconds=0.5)
        play.fire()
    play.send("GOTO", "a")
    play.end(seconds=0.5)
    play.end(seconds=0.5)
    assert play.timer == pytest.approx(0.1)


def test_retry_runs_the_script_again_and_then_counts_the_failure() -> None:
    play = world(state("a", "b", argv=()), state("b", retry=2, on={Outcome.FAILURE: "a"}))
    ticket = play.send("WAIT", "b")
    for _ in range(2):
        play.end(success=False, seconds=2.0)
        assert ticket not in play.answers
    play.end(success=False, seconds=2.0)
    assert play.answers[ticket] == "OK"
    assert play.entered == ["a", "b", "a"]
    attempts = [effect.attempt for effect in play.effects if isinstance(effect, Start)]
    assert attempts == [1, 2, 3]


def test_a_command_wins_over_a_retry() -> None:
    play = world(state("a", "b", retry=5), state("b"))
    play.end(success=False, seconds=0.0)
    assert play.machine.phase is Phase.BACKOFF
    play.send("GOTO", "b")
    assert play.machine.tag == "b"


def test_the_terminal_state_has_20_s_and_no_grace() -> None:
    play = world(state("a", argv=()))
    play.tell(Shutdown())
    assert play.timer == pytest.approx(20.0)
    assert Kill() in play.fire()
    play.end(success=False)
    assert len(play.ends) == 1


def test_goto_the_terminal_state_then_die_does_not_run_it_again() -> None:
    play = world(state("a", argv=()))
    play.send("GOTO", "z")
    play.end()
    assert not play.ends
    play.tell(Shutdown())
    assert play.entered == ["a", "z"]
    assert len(play.ends) == 1


def test_die_while_the_terminal_script_runs_waits_for_it() -> None:
    play = world(state("a", argv=()))
    ticket = play.send("WAIT", "z")
    play.tell(Shutdown())
    assert play.answers[ticket] == "KO shutting down"
    assert not play.ends
    play.end()
    assert len(play.ends) == 1


def test_die_refuses_all_that_is_pending() -> None:
    play = world(state("a", "a"))
    tickets = [play.send("WAIT", "a"), play.send("GOTO", "a"), play.send("WAIT", "a")]
    play.end()
    play.tell(Shutdown())
    late = play.send("GOTO", "a")
    assert play.answers == dict.fromkeys(tickets, "KO shutting down") | {
        tickets[1]: "OK",
        late: "KO shutting down",
    }


def test_a_second_signal_kills_and_skips_the_terminal_script() -> None:
    play = world(state("a"))
    play.tell(Shutdown())
    assert Kill() in play.tell(Abandon())
    play.end(success=False)
    assert play.entered == ["a"]
    assert len(play.ends) == 1


def test_a_second_signal_kills_the_terminal_script() -> None:
    play = world(state("a", argv=()))
    play.tell(Shutdown())
    assert Kill() in play.tell(Abandon())
    play.end(success=False)
    assert len(play.ends) == 1


def test_an_event_out_of_place_raises_and_changes_nothing() -> None:
    play = world(state("a"))
    before = vars(play.machine).copy()
    with pytest.raises(IllegalEvent):
        play.machine.handle(Started())
    assert vars(play.machine) == before
