"""What a tier may store: new pods beyond a bound are refused by name, and known ones go on."""

import asyncio
from dataclasses import replace

import pytest
from tests.master.support import CONFIG, KEYS, alive, record, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.holds import Damper
from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.master import Master
from kontrol.master.mirror import Mirror
from kontrol.master.operator.metrics import METRICS
from kontrol.master.operator.view import View
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.registry import admission
from kontrol.master.registry.conflicts import Sender
from kontrol.master.registry.quota import (
    SMALL_RECORD,
    Addition,
    Bounds,
    Quota,
    origin_of,
)
from kontrol.metrics import render
from kontrol.rpc.errors import Refused

FEW = Bounds(pods=3, size=1 << 20, joins=1000)
NODE, UNKNOWN = Sender("10.0.0.1", "aa"), Sender("10.66.6.6", "bb")


async def refusal(master: Master, raw: str, sender: Sender = NODE) -> str:
    """The name of the error that a keepalive gets, and whether its message names the setting."""
    with pytest.raises(Refused) as caught:
        await master.ping(raw, sender)
    setting = caught.value.name.removeprefix("TooMany").upper()
    assert f"KONTROL_MAX_{setting}" in caught.value.message
    return caught.value.name


async def problems(master: Master, cluster: MemoryCluster) -> str:
    view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")
    return str((await view.status())["problems"])


@virtual
async def test_one_pod_too_many_is_refused_by_name_metric_and_status() -> None:
    cluster = MemoryCluster()
    async with running(cluster, bounds=FEW) as master, alive(master, 1, 2):
        assert "KONTROL_MAX" not in await problems(master, cluster)
        await master.ping(record(3))
        assert await refusal(master, record(4), UNKNOWN) == "TooManyPods"
        assert await refusal(master, record(4), UNKNOWN) == "TooManyPods"
        told = await problems(master, cluster)
        assert "TooManyPods, 2 times" in told
        assert "10.66.6.6 (2)" in told
        text = render(METRICS, master)
        assert 'kontrol_master_bound_refusals_total{outcome="TooManyPods"} 2' in text
        assert 'kontrol_master_keepalives_total{outcome="TooManyPods"} 2' in text
        await asyncio.sleep(2 * CONFIG.ttl)  # the third is gone
        assert [pod["id"] for pod in master.pods()] == ["p1", "p2"]
        await master.ping(record(4))
        await asyncio.sleep(61)
        assert "TooManyPods, " not in await problems(master, cluster)


@virtual
@pytest.mark.parametrize(
    "bounds", [FEW, Bounds(pods=100, size=1 << 10), Bounds(pods=1, size=1 << 10, joins=1)]
)
async def test_an_ensemble_beyond_the_bound_keeps_its_pods(bounds: Bounds) -> None:
    """The setting was lowered, or the version before had none."""
    cluster, large = MemoryCluster(), "x" * 40_000
    async with running(cluster) as master:
        for number in range(1, 6):
            await master.ping(record(number, payload=large))
    async with running(cluster, id="m2", bounds=bounds) as master:
        for number in range(1, 6):
            await master.ping(record(number, payload=large))
            await master.ping(record(number, nonce="b", payload=large))
            await master.ping(record(number, nonce="b", n=1, payload="short"))
            await master.ping(record(number, nonce="b", n=2, payload="longer" * 100))
        assert len(master.pods()) == 5
        assert await refusal(master, record(9, payload=large))
        await asyncio.sleep(2 * CONFIG.ttl)
        assert master.pods() == []
        for number in range(1, 6):  # they were lost, and come back
            await master.ping(record(number, nonce="c"))
        assert [pod["seq"] for pod in master.pods()] == [0, 1, 2, 3, 4]


@virtual
async def test_one_that_moves_or_takes_an_unresponsive_one_s_place_adds_none() -> None:
    cluster = MemoryCluster()
    async with running(cluster, bounds=FEW) as master, alive(master, 1, 2):
        await master.ping(record(3))
        await master.ping(record(3, ip="10.0.0.33", nonce="b"))
        assert [pod["ip"] for pod in master.pods()][-1] == "10.0.0.33"
        assert await refusal(master, record(4)) == "TooManyPods"


@virtual
async def test_bytes_are_bounded_over_all_records() -> None:
    cluster, large = MemoryCluster(), "x" * 60_000
    async with running(cluster, bounds=Bounds(size=200_000)) as master:
        for number in (1, 2, 3):
            await master.ping(record(number, payload=large))
        assert await refusal(master, record(4, payload=large)) == "TooManyBytes"
        await master.ping(record(4))
        before = master.pods()
        assert await refusal(master, record(4, n=1, payload=large)) == "TooManyBytes"
        assert master.pods() == before, "its record stays as it was"
        await master.ping(record(4, n=2, payload="y" * 3000))
        await master.ping(record(3, n=1, payload=large[1:]))
        assert "KONTROL_MAX_BYTES" in await problems(master, cluster)
        assert f"kontrol_master_record_bytes {master.mirror.size}" in render(METRICS, master)
        assert 180_000 < master.mirror.size < 200_000
        await master.ping(record(3, n=2, down=True))
        await asyncio.sleep(1)
        await master.ping(record(4, n=3, payload=large))


@virtual
@pytest.mark.parametrize(
    "payload",
    ["[" + ",".join(["1e15"] * 700) + "]", '"' + "\N{SNOWMAN}" * 3900 + '"'],
    ids=["numbers", "characters"],
)
async def test_what_is_stored_counts_and_not_what_was_sent(payload: str) -> None:
    """A number is stored with all its digits, and a character may take four bytes."""
    cluster = MemoryCluster()
    async with running(cluster, bounds=Bounds(size=20_000)) as master:
        for number in range(1, 9):
            await master.ping(record(number))
        grown = [record(number, n=1).replace('""', payload) for number in range(1, 9)]
        assert all(len(raw) <= SMALL_RECORD for raw in grown)
        await master.ping(grown[0])
        for raw in grown[1:]:
            assert await refusal(master, raw) == "TooManyBytes"
        assert master.mirror.size <= 20_000


@virtual
async def test_a_pod_whose_change_is_too_large_lives_on() -> None:
    cluster = MemoryCluster()
    async with running(cluster, bounds=Bounds(size=10_000)) as master:
        await master.ping(record(1))
        for _ in range(20):
            assert await refusal(master, record(1, n=1, payload="x" * 20_000)) == "TooManyBytes"
            await asyncio.sleep(CONFIG.ttl / 3)
        assert [(pod["id"], pod["payload"]) for pod in master.pods()] == [("p1", "")]


@virtual
async def test_new_identities_are_bounded_per_address_and_minute() -> None:
    cluster = MemoryCluster()
    async with running(cluster, bounds=Bounds(joins=10)) as master, alive(master, 200):
        ghosts = [record(number) for number in range(60)]
        got = await asyncio.gather(
            *(master.ping(raw, UNKNOWN) for raw in ghosts), return_exceptions=True
        )
        taken = [each for each in got if isinstance(each, dict)]
        assert len(taken) == 10, "though all came before the mirror showed any"
        assert {each.name for each in got if isinstance(each, Refused)} == {"TooManyJoins"}
        told = await problems(master, cluster)
        assert "TooManyJoins, 50 times" in told
        assert "10.66.6.6" in told
        await master.ping(record(100), NODE)
        await master.ping(record(1, n=1, payload="known"), UNKNOWN)
        await asyncio.sleep(CONFIG.ttl * 2)
        await master.ping(record(1, n=2), UNKNOWN)  # it was lost, and is known
        for number in range(101, 104):  # 18 s are worth three
            await master.ping(record(number), UNKNOWN)
        assert await refusal(master, record(104), UNKNOWN) == "TooManyJoins"
        await asyncio.sleep(60)
        await master.ping(record(104), UNKNOWN)


@virtual
async def test_what_was_not_written_does_not_count() -> None:
    """As when etcd is full, or cannot be reached: agents try again, and again."""
    cluster = MemoryCluster()
    async with running(cluster, bounds=Bounds(joins=3)) as master:
        cluster.core.full = True
        for _ in range(20):
            with pytest.raises(Refused, match="Unavailable"):
                await master.ping(record(1), NODE)
            await asyncio.sleep(1)
        cluster.core.full = False
        for number in range(3):
            await master.ping(record(number), NODE)


def complete() -> Mirror:
    records = Records(KEYS)
    store = MemoryStore(MemoryCluster())
    mirror = Mirror(store, records, ttl=25, damper=Damper(1, 5))
    mirror.cache.complete.set()
    return mirror


def keepalive(number: int) -> Keepalive:
    ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return Keepalive("app", f"p{number}", ip, f"k{number}", "r", nonce="a" * 24, n=0)


def joining(number: int, size: int = 2000, address: str = "10.0.0.1") -> Addition:
    join = admission.Join(keepalive(number), None)
    return Addition(f"p{number}", size, address, admission.View(), join)


def name(refused: admission.Refuse | None) -> str:
    """The name of a refusal, which there must be."""
    assert refused is not None
    return refused.name


@virtual
async def test_20_000_honest_pods_behind_one_address_meet_no_default() -> None:
    quota = Quota(Bounds(), complete(), news=asyncio.Event())
    for number in range(20_000):
        with quota.plan() as planned:
            assert quota.judge(joining(number, 16 * 1024), planned, 0.0) is None
            quota.wrote(planned, 10**9, 0.0)
        if number % 1000 == 0:  # the mirror shows what was written
            quota._mirror._sizes |= {f"k{i}": 16 * 1024 for i in range(number)}
            quota._mirror.size = 16 * 1024 * number
            quota._written.clear()
    assert not quota.limited(0.0)


@virtual
async def test_what_was_written_counts_until_the_mirror_shows_it() -> None:
    quota = Quota(Bounds(pods=2, size=5000), complete(), news=asyncio.Event())
    with quota.plan() as planned:
        assert quota.judge(joining(1), planned, 0.0) is None
        assert quota.judge(joining(2), planned, 0.0) is None
        assert name(quota.judge(joining(3), planned, 0.0)) == "TooManyPods"
        quota.wrote(planned, 10, 0.0)
    with quota.plan() as planned:
        assert name(quota.judge(joining(3), planned, 0.0)) == "TooManyPods"
        live = Live(Pod.of(keepalive(1), 1), 10, 7)
        view, decision = admission.View(live=live), admission.Write(live.pod, live)
        grown = replace(joining(1, 4500), view=view, decision=decision)
        assert name(quota.judge(grown, planned, 0.0)) == "TooManyBytes"
        quota._mirror.cache.revision = 10
        assert quota.judge(joining(3), planned, 0.0) is None


@virtual
async def test_what_is_planned_counts_for_all_batches_that_are_under_way() -> None:
    quota = Quota(Bounds(pods=3, size=9000, joins=2), complete(), news=asyncio.Event())
    with quota.plan() as one:
        assert quota.judge(joining(1), one, 0.0) is None
        with quota.plan() as two:
            assert quota.judge(joining(2), two, 0.0) is None
            assert name(quota.judge(joining(3), one, 0.0)) == "TooManyJoins"
            assert quota.judge(joining(3, address="10.0.0.2"), one, 0.0) is None
            assert name(quota.judge(joining(4, 10, "10.0.0.3"), two, 0.0)) == "TooManyPods"
            assert name(quota.judge(joining(4, 4000, "10.0.0.3"), two, 0.0)) == "TooManyPods"
        # Nothing of the second was written.
        assert name(quota.judge(joining(4, 6000, "10.0.0.3"), one, 0.0)) == "TooManyBytes"
        assert quota.judge(joining(4, 4000, "10.0.0.3"), one, 0.0) is None
    with quota.plan() as three:
        for number in (5, 6):
            assert quota.judge(joining(number), three, 0.0) is None


@virtual
async def test_a_batch_that_is_shown_does_not_hide_an_earlier_one_that_ended_later() -> None:
    quota = Quota(Bounds(pods=1), complete(), news=asyncio.Event())
    for revision in (12, 11):
        with quota.plan() as planned:
            quota.judge(joining(revision), planned, 0.0)
            quota.wrote(planned, revision, 0.0)
    quota._mirror.cache.revision = 11
    with quota.plan() as planned:
        assert name(quota.judge(joining(3), planned, 0.0)) == "TooManyPods"
    quota._mirror.cache.revision = 12
    with quota.plan() as planned:
        assert quota.judge(joining(3), planned, 0.0) is None


@virtual
async def test_what_was_written_before_a_restore_does_not_count_after_it() -> None:
    cluster = MemoryCluster()
    async with running(cluster, bounds=Bounds(pods=4)) as master, alive(master, 1):
        early = cluster.snapshot()
        for number in (2, 3):
            await master.ping(record(number))
        for n in range(1, 10):  # a restore is noticed by its lower revision
            await master.ping(record(3, n=n, payload=n))
        cluster.restore(early)
        await asyncio.sleep(CONFIG.ttl / 2)
        for number in (2, 3, 4):
            await master.ping(record(number, nonce="b"))
        assert len(master.pods()) == 4
        assert await refusal(master, record(5)) == "TooManyPods"


def test_the_memory_of_addresses_is_bounded() -> None:
    quota = Quota(Bounds(joins=1), complete(), news=asyncio.Event())
    for i in range(3000):
        address = f"10.0.{i >> 8}.{i & 255}"
        with quota.plan() as planned:
            quota.judge(joining(i, address=address), planned, 0.0)
            quota.wrote(planned, 0, 0.0)
        with quota.plan() as planned:
            assert quota.judge(joining(i, address=address), planned, 0.0) is not None
    [limited] = quota.limited(0.0)
    assert (limited.times, len(limited.by)) == (3000, 100)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00:1:2:3:4::5", "fd00:1:2:3::/64"),
        ("fd00:1:2:3:ffff::", "fd00:1:2:3::/64"),
        ("", ""),
        ("junk", "junk"),
    ],
)
def test_ipv6_networks_count_as_one_address(address: str, origin: str) -> None:
    assert origin_of(address) == origin


@virtual
async def test_plans_that_are_equal_are_not_the_same() -> None:
    quota = Quota(Bounds(pods=1), complete(), news=asyncio.Event())
    with quota.plan() as one:
        with quota.plan():
            pass
        assert quota.judge(joining(1), one, 0.0) is None
        with quota.plan() as two:
            assert name(quota.judge(joining(2), two, 0.0)) == "TooManyPods"
