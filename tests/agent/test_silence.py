"""A pod that its masters do not hear is told: when, in which order, and within which time."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, Never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.network import TTL, Master, Network, now, one, running, silent
from tests.agent.test_hooks import ENVIRON, Commands
from tests.support.simloop import virtual

from kontrol.agent import health
from kontrol.agent.hooks import HookRunner, HookStatus
from kontrol.agent.silence import BUDGET, SHARE, SilenceHooks
from kontrol.rpc.errors import RemoteError

Told = tuple[float, str]


@dataclass
class Recorder:
    """Hooks that only note what they are told."""

    told: list[Told] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ttls: list[float] = field(default_factory=list)

    @property
    def statuses(self) -> tuple[HookStatus, ...]:
        return ()

    async def run(self) -> Never:
        while True:
            await asyncio.Event().wait()

    def silent(self, seconds: float, ttl: float, reason: Literal["start", "lost"]) -> None:
        self._note("silent", seconds, reason)
        self.ttls.append(ttl)

    def heard(self, seconds: float, reason: Literal["start", "again"]) -> None:
        self._note("heard", seconds, reason)

    def _note(self, what: str, seconds: float, reason: str) -> None:
        self.told.append((now(), what))
        self.seconds.append(seconds)
        self.reasons.append(reason)

    @property
    def order(self) -> list[str]:
        return [what for _, what in self.told]


def sent(master: Master) -> float:
    """Return when the last keepalive was sent that was acknowledged."""
    return master.answered[-1][0]


def shown(told: Iterable[Told], start: float = 0.0) -> list[Told]:
    """Return it in a form that can be compared: in seconds from `start`, rounded."""
    return [(round(at - start, 6), what) for at, what in told]


def expected(master: Master, start: float, end: float) -> list[Told]:
    """Return what hooks are to be told, by what the master knows."""
    told: list[Told] = []
    last, silent_now = start, None
    for received, acknowledged in (*master.answered, (end, end)):
        if acknowledged >= last + SHARE * TTL and not silent_now:
            told.append((last + SHARE * TTL, "silent"))
            silent_now = True
        if acknowledged < end and silent_now is not False:
            told.append((acknowledged, "heard"))
            silent_now = False
        last = received
    return told


@virtual
async def test_it_is_silent_two_thirds_of_the_ttl_after_the_last_acknowledged_was_sent() -> None:
    master, hooks = Master(delay=1.5), Recorder()
    agent = one(master).agent("10.0.0.1", hooks=hooks)
    async with running(agent):
        await asyncio.sleep(10 * TTL)
        assert hooks.order == ["heard"]
        master.answer = silent
        last = sent(master)
        await asyncio.sleep(3 * TTL)
        assert shown(hooks.told[1:], last) == [(round(SHARE * TTL, 6), "silent")]
        assert agent.status.silent == pytest.approx(now() - last)
        master.answer = lambda _: None
        await asyncio.sleep(TTL)
        assert agent.status.silent is None
    assert hooks.order == ["heard", "silent", "heard"]
    assert hooks.reasons == ["start", "lost", "again"]
    assert hooks.told[2][0] == pytest.approx(master.acknowledged[-3], abs=TTL)
    assert hooks.seconds[1] == pytest.approx(SHARE * TTL)
    assert hooks.ttls == [TTL]


@virtual
async def test_a_pod_that_was_never_heard_counts_from_its_start() -> None:
    master, hooks = Master(silent), Recorder()
    start = now()
    async with running(one(master).agent("10.0.0.1", hooks=hooks)):
        await asyncio.sleep(TTL)
        assert shown(hooks.told, start) == [(round(SHARE * TTL, 6), "silent")]
        master.answer = lambda _: None
        await asyncio.sleep(TTL)
    assert hooks.order == ["silent", "heard"]
    assert hooks.reasons == ["start", "again"]


@virtual
async def test_a_refusal_is_no_acknowledgement() -> None:
    def refuse(_: object) -> object:
        raise RemoteError("Conflict", "another pod")

    master, hooks = Master(), Recorder()
    async with running(one(master).agent("10.0.0.1", hooks=hooks)):
        await asyncio.sleep(TTL)
        master.answer = refuse
        await asyncio.sleep(TTL)
    assert hooks.order == ["heard", "silent"]


@virtual
async def test_one_tier_that_hears_it_is_enough() -> None:
    first, second, hooks = Master(), Master(), Recorder()
    network = Network({}, {"10.0.0.1": first, "10.0.0.2": second})
    async with running(network.agent("10.0.0.1,10.0.0.2", hooks=hooks)):
        await asyncio.sleep(TTL)
        first.answer = silent
        await asyncio.sleep(10 * TTL)
        assert hooks.order == ["heard"]
        second.answer = silent
        last = sent(second)
        await asyncio.sleep(TTL)
        assert shown(hooks.told[1:], last) == [(round(SHARE * TTL, 6), "silent")]
        first.answer = lambda _: None
        await asyncio.sleep(TTL)
    assert hooks.order == ["heard", "silent", "heard"]


@virtual
async def test_each_tier_has_its_own_ttl() -> None:
    short, long = Master(lambda _: {"ttl": 6}), Master(lambda _: {"ttl": 60})
    hooks = Recorder()
    network = Network({}, {"10.0.0.1": short, "10.0.0.2": long})
    async with running(network.agent("10.0.0.1,10.0.0.2", hooks=hooks)):
        await asyncio.sleep(10 * TTL)
        short.answer = long.answer = silent
        last = sent(long)
        await asyncio.sleep(5 * TTL)
    assert shown(hooks.told[1:], last) == [(round(SHARE * 60, 6), "silent")]
    assert hooks.ttls == [6]


@virtual
async def test_a_shorter_ttl_counts_from_the_acknowledgement_that_brings_it() -> None:
    def answer(_: object) -> object:
        master.answer = silent  # there is no further acknowledgement
        return {"ttl": 3}

    master, hooks = Master(), Recorder()
    async with running(one(master).agent("10.0.0.1", hooks=hooks)):
        await asyncio.sleep(10 * TTL)
        master.answer = answer
        await asyncio.sleep(2 * TTL)
        last = sent(master)
    assert shown(hooks.told[1:], last) == [(SHARE * 3, "silent")]


@virtual
async def test_the_age_of_an_acknowledgement_is_taken_off() -> None:
    master, hooks = Master(lambda _: {"ttl": TTL, "age": 4.0}), Recorder()
    async with running(one(master).agent("10.0.0.1", hooks=hooks)):
        await asyncio.sleep(10 * TTL)
        master.answer = silent
        last = sent(master)
        await asyncio.sleep(TTL)
    assert shown(hooks.told[1:], last - 4.0) == [(round(SHARE * TTL, 6), "silent")]


@pytest.mark.parametrize("age", [-5, "x", None, float("nan"), [], 0])
def test_an_age_that_is_none_takes_nothing_off(age: object) -> None:
    @virtual
    async def check() -> None:
        master, hooks = Master(lambda _: {"ttl": TTL, "age": age}), Recorder()
        async with running(one(master).agent("10.0.0.1", hooks=hooks)):
            await asyncio.sleep(10 * TTL)
            master.answer = silent
            last = sent(master)
            await asyncio.sleep(TTL)
        assert shown(hooks.told[1:], last) == [(round(SHARE * TTL, 6), "silent")]

    check()


@virtual
async def test_a_pod_that_leaves_is_not_silent() -> None:
    master, hooks = Master(), Recorder()
    agent = one(master).agent("10.0.0.1", hooks=hooks)
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(TTL)
    await agent.leave()
    master.answer = silent
    await asyncio.sleep(10 * TTL)
    await task
    assert hooks.order == ["heard"]
    assert agent.status.silent is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 3 * TTL)), max_size=20), st.integers(0, 99))
def test_it_is_silent_whenever_nothing_was_acknowledged_for_so_long(
    spells: list[tuple[bool, float]], seed: int
) -> None:
    @virtual
    async def check() -> None:
        rng = Random(seed)
        master, hooks = Master(delay=rng.choice((0.001, 2.0))), Recorder()
        start = now()
        async with running(one(master).agent("10.0.0.1", seed=seed, hooks=hooks)):
            for answers, length in spells:
                master.answer = (lambda _: None) if answers else silent
                await asyncio.sleep(length)
            end = now()
            await asyncio.sleep(0.0005)  # for what is due right now; less than an answer takes
        assert shown(hooks.told) == shown(expected(master, start, end + 0.0005))

    check()


def hooks_of(commands: Commands, *, heard: bool = True) -> SilenceHooks:
    runner = HookRunner(commands.run, environ=ENVIRON, secrets=(), uniform=lambda: 1.0)
    return SilenceHooks(runner, silent=("demote", "now"), heard=("rejoin",) if heard else ())


@virtual
async def test_the_silent_hook_is_over_before_the_ttl_is() -> None:
    commands, master = Commands(seconds=0.2), Master()
    async with running(one(master).agent("10.0.0.1", hooks=hooks_of(commands))):
        await asyncio.sleep(TTL)
        master.answer = silent
        last = sent(master)
        await asyncio.sleep(TTL)
    assert commands.names == ["rejoin", "demote"]
    demote = commands.given[1]
    assert demote.argv == ("demote", "now")
    assert demote.timeout is not None
    assert demote.timeout + demote.grace == pytest.approx(BUDGET * TTL)
    # Of two clocks, one may be 5 percent fast and the other as much slow.
    begun = commands.begun[1][0] - last
    assert (begun + demote.timeout + demote.grace) * 1.05 / 0.95 < TTL * 0.97
    assert demote.env["HOOK"] == "silent"
    assert demote.env["REASON"] == "lost"
    assert float(demote.env["SILENT_SECONDS"]) == pytest.approx(SHARE * TTL, abs=0.01)
    assert commands.given[0].env["REASON"] == "start"


@virtual
async def test_a_silent_hook_that_fails_is_tried_until_the_pod_is_heard() -> None:
    commands, master = Commands(seconds=0.1, status=1), Master()
    agent = one(master).agent("10.0.0.1", hooks=hooks_of(commands, heard=False))
    async with running(agent):
        await asyncio.sleep(TTL)
        master.answer = silent
        await asyncio.sleep(5 * TTL)
        tries = len(commands.begun)
        assert tries > 5
        [check] = [each for each in health.checks(agent.status) if each["name"] == "silence"]
        assert check["ok"] is False
        assert "silent for" in str(check["detail"])
        assert "hook silent failed (exit status 1: no such host)" in str(check["detail"])
        master.answer = lambda _: None
        await asyncio.sleep(TTL)
        tries = len(commands.begun)
        await asyncio.sleep(5 * TTL)
        [check] = [each for each in health.checks(agent.status) if each["name"] == "silence"]
        assert check["ok"] is True
    assert len(commands.begun) == tries
    assert set(commands.names) == {"demote"}


@virtual
async def test_a_heard_hook_that_still_runs_does_not_hold_up_the_silent_one() -> None:
    commands, master = Commands(seconds=1000), Master()
    async with running(one(master).agent("10.0.0.1", hooks=hooks_of(commands))):
        await asyncio.sleep(TTL)
        master.answer = silent
        last = sent(master)
        await asyncio.sleep(TTL)
    assert commands.over[0][1] == "rejoin killed"
    assert shown(commands.begun[1:2], last) == [(round(SHARE * TTL, 6), "demote")]
