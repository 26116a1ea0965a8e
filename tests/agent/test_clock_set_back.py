"""A process whose clock went back: against masters that answer as we say, and against real ones."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.network import CLOCK, IDENTITY, TTL, Master, Network, named, now, running, tier
from tests.master import support
from tests.support.memory import MemoryCluster
from tests.support.simloop import virtual

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.connection import Caller
from kontrol.agent.schedule import LONGEST_SKEW, SECOND, nonce, skew_past
from kontrol.ensemble.pod import Keepalive
from kontrol.ensemble.tiers import parse_tiers
from kontrol.master.master import Master as RealMaster
from kontrol.master.registry.admission import Refuse, _stale
from kontrol.rpc.errors import Refused, RemoteError

DOCS = Path(__file__).parents[2] / "docs"
HOUR = 3600
YEAR = 365 * 24 * HOUR


def stale(record: Keepalive, newest: str, n: int = 0) -> RemoteError:
    """What a master answers."""
    refusal: Refuse = _stale(record, newest, n, "of this pod")
    return RemoteError(refusal.name, refusal.message)


def has(newest: str) -> Master:
    """A master that has a record with this nonce."""

    def answer(record: Keepalive) -> object:
        if record.nonce < newest:
            raise stale(record, newest)
        return {"seq": 1}

    return Master(answer)


def agent_of(network: Network, started: int, *, seed: int = 0) -> Agent:
    return Agent(
        AgentSettings(named(IDENTITY), parse_tiers("10.0.0.1", 8000), TTL),
        connect=network.connect,
        resolve=network.resolve,
        random=Random(seed),
        clock=lambda: started,
    )


@pytest.mark.parametrize("back", [0, 1, HOUR, 30 * YEAR])
def test_it_is_taken_after_one_refusal(back: int) -> None:
    @virtual
    async def check() -> None:
        master = has(nonce(CLOCK + back * SECOND, 2**32 - 1))
        network = Network({}, {"10.0.0.1": master})
        agent = agent_of(network, CLOCK)
        start = now()
        async with running(agent):
            await asyncio.sleep(3 * TTL)
            assert tier(agent).refused == 1
            assert tier(agent).error is None
        assert master.acknowledged[0] - start < 1
        first, *others = (record.nonce for record in master.records)
        assert first == nonce(CLOCK, int(first[16:], 16))
        assert set(others) == {nonce(CLOCK + back * SECOND + 1, int(first[16:], 16))}

    check()


@pytest.mark.parametrize("text", ["a newer process has reported", "record a/0 of pod x is older"])
def test_where_no_nonce_is_named_it_is_found_by_doubling(text: str) -> None:
    @virtual
    async def check() -> None:
        newest = nonce(CLOCK + 8 * HOUR * SECOND, 0)

        def answer(record: Keepalive) -> object:
            if record.nonce < newest:
                raise RemoteError("Stale", text)
            return None

        master = Master(answer)
        start = now()
        async with running(agent_of(Network({}, {"10.0.0.1": master}), CLOCK)):
            await asyncio.sleep(3 * TTL)
        assert master.acknowledged[0] - start < 2 * TTL
        taken = [record.nonce for record in master.records if record.nonce >= newest]
        assert len(set(taken)) == 1
        assert len(taken) >= 3

    check()


@virtual
async def test_a_nonce_at_the_very_top_is_not_passed(caplog: pytest.LogCaptureFixture) -> None:
    master = has("f" * 24)
    agent = agent_of(Network({}, {"10.0.0.1": master}), CLOCK)
    async with running(agent):
        await asyncio.sleep(3 * TTL)
        assert (tier(agent).error or "").startswith("Stale: ")
    assert len({record.nonce for record in master.records}) == 1
    assert "has a nonce that is 68 years or more ahead of this process" in caplog.text


@virtual
async def test_a_master_that_lies_gets_no_further_than_68_years() -> None:
    ahead = 0

    def answer(record: Keepalive) -> object:
        nonlocal ahead
        ahead += LONGEST_SKEW // 5
        raise stale(record, nonce(CLOCK + ahead, 0))

    master = Master(answer)
    async with running(agent_of(Network({}, {"10.0.0.1": master}), CLOCK)):
        await asyncio.sleep(10 * TTL)
    nonces = [int(record.nonce[:16], 16) for record in master.records]
    assert len(nonces) > 20
    assert len(set(nonces)) == 5
    assert max(nonces) <= CLOCK + LONGEST_SKEW


def test_what_was_acknowledged_gives_way_to_a_newer_process() -> None:
    @virtual
    async def check() -> None:
        master = Master()
        agent = agent_of(Network({}, {"10.0.0.1": master}), CLOCK)
        async with running(agent):
            await asyncio.sleep(TTL)
            master.answer = has(nonce(CLOCK + HOUR * SECOND, 0)).answer
            await asyncio.sleep(3 * TTL)
            assert tier(agent).refused > 10
        assert len({record.nonce for record in master.records}) == 1

    check()


# Against the real registry.


class _Direct:
    """A connection to a real master."""

    def __init__(self, master: RealMaster) -> None:
        self._master = master

    async def call(self, method: str, *args: object, timeout: float) -> object:
        (raw,) = args
        assert isinstance(raw, str)
        try:
            return await self._master.ping(raw)
        except Refused as refused:
            raise RemoteError(refused.name, refused.message) from None


def direct(master: RealMaster, started: int, *, seed: int) -> Agent:
    @asynccontextmanager
    async def connect(host: str, port: int) -> AsyncIterator[Caller]:
        yield _Direct(master)

    async def resolve(host: str, port: int) -> list[str]:
        return [host]

    return Agent(
        AgentSettings(replace(named(IDENTITY), app="app"), parse_tiers("10.0.0.1", 8000), TTL),
        connect=connect,
        resolve=resolve,
        random=Random(seed),
        clock=lambda: started,
    )


@pytest.mark.parametrize("back", [1, HOUR, 30 * YEAR])
@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_real_master_takes_it_after_one_refusal(back: int, how: str) -> None:
    @virtual
    async def check() -> None:
        async with support.running(MemoryCluster()) as master:
            former = direct(master, CLOCK + back * SECOND, seed=1)
            task = asyncio.create_task(former.run())
            await asyncio.sleep(1)
            assert tier(former).accepted == 1
            if how == "left":
                await former.leave()
            task.cancel()
            await asyncio.wait([task])
            agent = direct(master, CLOCK, seed=2)
            async with running(agent):
                await asyncio.sleep(1)
                assert (tier(agent).refused, tier(agent).error) == (1, None)
                assert tier(agent).seq == tier(former).seq

    check()


@pytest.mark.parametrize("seeds", [(1, 2), (2, 1)])
@pytest.mark.parametrize("together", [False, True])
def test_two_processes_of_one_pod_do_not_outbid_each_other(
    seeds: tuple[int, int], together: bool
) -> None:
    @virtual
    async def check() -> None:
        async with support.running(MemoryCluster()) as master:
            if together:  # and both after one whose clock was ahead
                async with running(direct(master, CLOCK + HOUR * SECOND, seed=3)):
                    await asyncio.sleep(1)
            one = direct(master, CLOCK + 60 * SECOND * (not together), seed=seeds[0])
            two = direct(master, CLOCK, seed=seeds[1])
            nonces = set()
            async with running(one):
                if not together:
                    await asyncio.sleep(1)
                async with running(two):
                    await asyncio.sleep(TTL)
                    for _ in range(100):
                        await asyncio.sleep(1)
                        nonces |= {str(pod["nonce"]) for pod in master.pods()}
                    errors = [tier(agent).error for agent in (one, two)]
        assert len(nonces) == 1
        assert sum(error is None for error in errors) == 1

    check()


# The message, at both ends.


@given(
    ours=st.integers(0, 2**63),
    newest=st.integers(0, 2**64 - 1),
    salts=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    n=st.integers(0, 2**63 - 1),
    skew=st.integers(0, LONGEST_SKEW),
)
def test_the_skew_puts_the_nonce_past_the_one_that_is_named(
    ours: int, newest: int, salts: tuple[int, int], n: int, skew: int
) -> None:
    record = replace(IDENTITY, nonce=nonce(ours, salts[0]), n=0)
    found = skew_past(stale(record, nonce(newest, salts[1]), n).message, ours, skew)
    if found is None:
        assert max(newest + 1 - ours, 2 * skew) > LONGEST_SKEW
    else:
        assert skew < found <= LONGEST_SKEW
        assert nonce(ours + found, salts[0]) > nonce(newest, salts[1])


@given(text=st.text() | st.from_regex(r"record .* is older than [0-9a-f]{20,26}/[0-9]*,? ?"))
def test_any_message_has_a_bounded_effect(text: str) -> None:
    found = skew_past(text, CLOCK, 0)
    assert found is None or 0 < found <= LONGEST_SKEW


def test_the_form_of_the_message_is_documented() -> None:
    page = (DOCS / "rpc.rst").read_text("utf-8")
    (line,) = re.findall(r"^   (record .*)$", page, re.MULTILINE)
    ours, pod, newest = re.fullmatch(
        r"record (\w+/\d+) of pod (\S+) is older than (\w+/\d+), the newest", line
    ).groups()  # type: ignore[union-attr]  # None fails, as it should
    (own, _), (other, n) = ours.split("/"), newest.split("/")
    record = replace(IDENTITY, id=pod, nonce=own, n=0)
    assert stale(record, other, int(n)).message.startswith(line)
    started = int(own[:16], 16)
    assert skew_past(line + " of this pod", started, 0) == int(other[:16], 16) + 1 - started
