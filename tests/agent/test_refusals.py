"""Refusals, and names that are not found, on virtual time."""

import asyncio

import pytest
from tests.agent.network import TTL, Master, Network, now, one, running, silent, tier
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Keepalive
from kontrol.rpc.errors import RemoteError


@pytest.mark.parametrize(
    "name",
    [
        *("InvalidRecord", "Conflict", "Stale", "NotWritten"),
        *("TooManyPods", "TooManyBytes", "TooManyJoins"),
    ],
)
def test_a_refusal_is_shown_and_tried_again_on_the_same_connection(name: str) -> None:
    @virtual
    async def check() -> None:
        def refuse(_: Keepalive) -> object:
            raise RemoteError(name, "by pod-2")

        master = Master()
        agent = one(master).agent("10.0.0.1")
        async with running(agent):
            await asyncio.sleep(TTL)
            master.answer = refuse
            await asyncio.sleep(TTL)
            assert tier(agent).error == f"{name}: by pod-2"
            assert tier(agent).failures > 2
            master.answer = lambda _: None
            await asyncio.sleep(TTL / 8)
            assert tier(agent).error is None
        assert master.opened == 1
        assert len({record.nonce for record in master.records}) == 1

    check()


@virtual
async def test_a_deregistration_that_another_sender_made_is_contradicted() -> None:
    gone = ""

    def answer(record: Keepalive) -> object:
        if record.nonce == gone:
            raise RemoteError("Gone", "deregistered")
        return None

    master = Master(answer)
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        await asyncio.sleep(TTL)
        gone = master.records[-1].nonce
        await asyncio.sleep(TTL)
        assert tier(agent).error is None
    assert master.records[-1].nonce > gone


@virtual
async def test_an_unknown_name_is_looked_up_again_until_it_is_there() -> None:
    master = Master()
    network = Network({"masters": ["10.0.0.1"]}, {"10.0.0.1": master})
    there = False
    network.dns = lambda: there
    agent = network.agent("masters")
    async with running(agent):
        await asyncio.sleep(3 * TTL)
        assert tier(agent).error == "no such name"
        assert tier(agent).address is None
        there = True
        came = now()
        await asyncio.sleep(TTL)
    assert master.acknowledged[0] - came < TTL / 3


@virtual
async def test_an_empty_look_up_is_a_failure() -> None:
    network = Network({"masters": []}, {})
    agent = network.agent("masters")
    async with running(agent):
        await asyncio.sleep(TTL)
        assert tier(agent).error == "the look-up found no address"


@pytest.mark.parametrize("hangs", [False, True])
def test_without_dns_the_addresses_last_found_serve(hangs: bool) -> None:
    @virtual
    async def check() -> None:
        masters = {"10.0.0.1": Master(), "10.0.0.2": Master()}
        network = Network({"masters": list(masters)}, masters)
        async with running(network.agent("masters")):
            await asyncio.sleep(TTL)
            network.dns, network.hanging = (lambda: False), {"masters"} if hangs else set()
            (current,) = [master for master in masters.values() if master.open]
            current.answer = silent
            await asyncio.sleep(TTL)
        (other,) = [master for master in masters.values() if master is not current]
        assert other.acknowledged[0] - current.times[-1] < TTL / 3 + TTL / 12

    check()


@virtual
async def test_a_name_that_hangs_hides_no_other_master_of_its_tier() -> None:
    masters = {"10.0.0.1": Master()}
    network = Network({}, masters)
    network.hanging = {"masters"}
    start = now()
    async with running(network.agent("masters|10.0.0.1")):
        await asyncio.sleep(TTL)
    assert masters["10.0.0.1"].acknowledged[0] - start < TTL / 6


@virtual
async def test_a_name_that_is_lost_keeps_its_addresses_while_others_are_found() -> None:
    masters = {"10.0.0.1": Master(), "10.0.0.2": Master()}
    network = Network({"one": ["10.0.0.1"], "two": ["10.0.0.2"]}, masters)
    async with running(network.agent("one|two")):
        await asyncio.sleep(TTL)
        (current,) = [name for name, master in masters.items() if master.open]
        lost = "one" if current == "10.0.0.2" else "two"
        network.dns = lambda: network.looked_up[-1] != lost
        masters[current].answer = silent
        await asyncio.sleep(TTL)
    (other,) = [master for name, master in masters.items() if name != current]
    assert other.acknowledged
