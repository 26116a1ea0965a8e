"""Two senders for one registration: the status names both, and the log those that flip."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.support import CONFIG, nonce, record, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import MAX_COUNTER
from kontrol.master.master import Master
from kontrol.master.operator.notices import read_notice
from kontrol.master.operator.view import View
from kontrol.master.registry import conflicts
from kontrol.master.registry.conflicts import Claim, Conflicts, Flips, Retries, Sender
from kontrol.master.registry.quota import Bounds
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import KeyValue

HONEST = Sender("10.0.0.1", "aa")
FORGER = Sender("10.66.6.6", "bb", key="k3yk3yk3")
FORGED = {"nonce": "zzz", "n": MAX_COUNTER}
PLAIN: dict[str, Any] = {"nonce": "", "n": None}  # as the original's agents report
EVERY = CONFIG.ttl / 9


@asynccontextmanager
async def reporting(
    master: Master,
    number: int,
    sender: Sender,
    **fields: Any,  # noqa: ANN401 - any field of the record
) -> AsyncIterator[list[str]]:
    """A sender that goes on meanwhile, whatever the answers; yields the names of its refusals."""
    refusals: list[str] = []

    async def report() -> None:
        while True:
            try:
                await master.ping(record(number, **fields), sender)
            except Refused as refused:
                refusals.append(refused.name)
            await asyncio.sleep(EVERY)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(report())
        yield refusals
        task.cancel()


async def problems(master: Master, cluster: MemoryCluster) -> list[str]:
    """What the status names as wrong with senders."""
    view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")
    found = (await view.status())["problems"]
    assert isinstance(found, list)
    texts = [str(each["what"]) for each in found if isinstance(each, dict)]
    told = ("registration", "back and forth", "TooMany")
    return [text for text in texts if any(part in text for part in told)]


@virtual
async def test_the_status_names_both_senders_while_both_go_on() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as master,
        reporting(master, 1, FORGER, **FORGED),
        reporting(master, 1, HONEST) as refusals,
    ):
        await asyncio.sleep(3 * CONFIG.ttl)
        assert set(refusals) == {"Stale"}
        [text] = await problems(master, cluster)
        for part in ("10.0.0.1", "10.66.6.6", "k3yk3yk3", nonce("a"), nonce("zzz"), "pod p1"):
            assert part in text
        assert text.index("10.0.0.1") < text.index("10.66.6.6"), "the refused one comes first"


@virtual
async def test_another_master_s_sender_is_named_too() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as one,
        running(cluster, id="m2") as two,
        reporting(one, 1, FORGER, **FORGED),
        reporting(two, 1, HONEST),
    ):
        await asyncio.sleep(3 * CONFIG.ttl)
        [text] = await problems(two, cluster)
        assert "10.66.6.6" in text


@virtual
async def test_every_master_names_them_whichever_sees_them() -> None:
    """The pod goes on at the master that refuses it: no other master sees it."""
    cluster = MemoryCluster()
    async with (
        running(cluster) as one,
        running(cluster, id="m2") as two,
        running(cluster, id="m3", bounds=Bounds(joins=1)) as three,
    ):
        async with (
            reporting(one, 1, FORGER, **FORGED),
            reporting(two, 1, HONEST),
            reporting(three, 5, FORGER),
            reporting(three, 6, FORGER),
        ):
            await asyncio.sleep(3 * CONFIG.ttl)
            for master in (one, two, three):
                texts = await problems(master, cluster)
                [conflict] = [text for text in texts if "for one registration" in text]
                assert "10.0.0.1" in conflict
                assert nonce("zzz") in conflict
                assert conflict.startswith("m2 says: ") == (master is not two)
                assert any("TooManyJoins" in text for text in texts), "a bound that m3 met"
        await asyncio.sleep(100)
        for master in (one, two, three):
            assert await problems(master, cluster) == []


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["master", "problems", "what", "mend", "x"]), inner)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_notice_is_read_tolerantly(raw: bytes) -> None:
    for problem in read_notice(KeyValue("k", raw, 1, 1)):
        assert len(problem.what) < 5000


@virtual
async def test_nothing_is_named_once_one_of_them_stops() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master, reporting(master, 1, HONEST) as refusals:
        async with reporting(master, 1, FORGER, **FORGED):
            await asyncio.sleep(2 * CONFIG.ttl)
            assert await problems(master, cluster)
        await asyncio.sleep(CONFIG.ttl)
        assert await problems(master, cluster) == []
        assert [pod["nonce"] for pod in master.pods()] == [nonce("a")]
        before = len(refusals)
        await asyncio.sleep(CONFIG.ttl)
        assert len(refusals) == before


@virtual
async def test_a_conflict_names_both_ids() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as master,
        reporting(master, 1, HONEST),
        reporting(master, 7, FORGER, ip="10.0.0.1") as refusals,
    ):
        await asyncio.sleep(2 * CONFIG.ttl)
        assert set(refusals) == {"Conflict"}
        [text] = await problems(master, cluster)
        assert "Conflict" in text
        assert "pod p7" in text
        assert "pod p1" in text


@virtual
async def test_the_same_id_elsewhere_names_both_addresses() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as master,
        reporting(master, 1, FORGER, ip="10.0.0.9", **FORGED),
        reporting(master, 1, HONEST) as refusals,
    ):
        await asyncio.sleep(2 * CONFIG.ttl)
        assert set(refusals) == {"Stale"}
        [text] = await problems(master, cluster)
        assert "10.66.6.6" in text
        assert "at 10.0.0.9" in text


@virtual
async def test_a_late_message_and_a_restart_are_no_conflict() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master, reporting(master, 1, HONEST, nonce="b"):
        await asyncio.sleep(1)
        with pytest.raises(Refused, match="Stale"):
            await master.ping(record(1), FORGER)
        await asyncio.sleep(CONFIG.ttl / 2)
        assert await problems(master, cluster) == []
        await master.ping(record(1, nonce="c"), HONEST)
        assert await problems(master, cluster) == []


@virtual
async def test_a_pod_that_reports_under_two_names_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a nonce the last write wins."""
    cluster = MemoryCluster()
    other = Sender(HONEST.address, "cc")
    async with running(cluster) as master, contextlib.AsyncExitStack() as stack:
        for sender, payload in ((HONEST, "by one name"), (other, "by the other")):
            await stack.enter_async_context(reporting(master, 1, sender, payload=payload, **PLAIN))
        await asyncio.sleep(CONFIG.ttl)
        [text] = await problems(master, cluster)
        assert "two names" not in text
        assert "pod p1" in text
    told = [each.getMessage() for each in caplog.records if "back and forth" in each.getMessage()]
    assert 1 <= len(told) <= 3, "and not at each keepalive"
    assert "under two names" in told[0]
    assert "10.0.0.1" in told[0]


@virtual
async def test_a_forged_record_does_not_stand_in_for_the_one_that_the_pod_sends_next() -> None:
    """A client that knows a pod's nonce and counter can forge its next record, once."""
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1, n=4), HONEST)
        await master.ping(record(1, n=5, payload="forged"), FORGER)
        await master.ping(record(1, n=5, payload="its own"), HONEST)
        await master.ping(record(1, n=5, payload="its own"), HONEST)
        await asyncio.sleep(1)
        assert [pod["payload"] for pod in master.pods()] == ["its own"]


@virtual
async def test_two_that_report_under_an_equal_nonce_and_counter_are_named() -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as master,
        reporting(master, 1, HONEST, payload="its own"),
        reporting(master, 1, FORGER, payload="forged"),
    ):
        await asyncio.sleep(CONFIG.ttl)
        [text] = await problems(master, cluster)
        assert "back and forth" in text
        assert "10.0.0.1" in text
        assert "10.66.6.6 (agent key k3yk3yk3)" in text


@virtual
async def test_an_id_that_is_at_two_addresses_in_turn_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = MemoryCluster()
    async with (
        running(cluster) as master,
        reporting(master, 1, HONEST, **PLAIN),
        reporting(master, 1, Sender("10.0.0.9", "dd"), ip="10.0.0.9", **PLAIN),
    ):
        await asyncio.sleep(CONFIG.ttl)
        [text] = await problems(master, cluster)
        assert "10.0.0.9" in text
    assert "back and forth" in caplog.text


@virtual
async def test_a_pod_that_changes_its_mind_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        for i in range(20):
            payload: JSON = i % 2
            await master.ping(record(1, n=i, payload=payload), Sender("10.0.0.1", f"{i}"))
            await master.ping(record(2, payload=payload, **PLAIN), HONEST)
            await asyncio.sleep(EVERY)
        assert await problems(master, cluster) == []
    assert "back and forth" not in caplog.text


NAMES = st.text("abc", min_size=1, max_size=3)


@given(st.lists(st.tuples(NAMES, NAMES, st.floats(0, 5)), max_size=60))
def test_what_is_remembered_is_what_is_recent(asked: list[tuple[str, str, float]]) -> None:
    found, flips, now, ttl = Conflicts(), Flips(), 0.0, 9.0
    last: dict[str, float] = {}
    for id_, name, passed in asked:
        now += passed
        claim = Claim(id_, "k", "10.0.0.1", name, 0, "10.0.0.1")
        found.note(claim, claim, "Stale", now, ttl)
        flips.wrote(claim, name, Sender("10.0.0.1", name), now, ttl)
        last[id_ + "/" + name] = now
    standing = {f"{each.refused.id}/{each.refused.nonce}" for each in found.lasting(now, ttl)}
    assert standing == {who for who, at in last.items() if now - at <= ttl}
    assert all(each.times >= 4 for each in flips.lasting(now, ttl))


TTL = 8.0
PROCESS = ("k1", "p1", "a")


def test_a_process_that_reports_three_times_over_a_quarter_of_the_ttl_keeps_reporting() -> None:
    assert [Retries().add(PROCESS, at, TTL) for at in (0, 1, 2)] == 3 * [False]
    for times, verdicts in (
        ((0, 1, 2), [False, False, True]),
        ((0, 0.5, 1.9, 2), [False, False, False, True]),
        ((0, 4), [False, False]),
    ):
        retries = Retries()
        assert [retries.add(PROCESS, at, TTL) for at in times] == verdicts


def test_a_process_that_did_not_report_for_a_ttl_begins_again() -> None:
    for pause, verdict in ((TTL, True), (TTL + 0.1, False)):
        retries = Retries()
        retries.add(PROCESS, 0, TTL)
        retries.add(PROCESS, 1, TTL)
        assert retries.add(PROCESS, 1 + pause, TTL) == verdict


def test_so_many_processes_are_remembered_the_last_to_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conflicts, "_RETRIES", 2)
    processes = [(f"k{number}", "p", "a") for number in range(3)]
    retries = Retries()
    for process in processes:
        retries.add(process, 0, TTL)
        retries.add(process, 1, TTL)
    assert [retries.add(process, 2, TTL) for process in reversed(processes[1:])] == [True, True]
    assert not retries.add(processes[0], 2, TTL)
