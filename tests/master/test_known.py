"""Keepalives that are recognised by their bytes: they get the answer that a read one would get."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.master.support import CONFIG, KEYS, record, running
from tests.master.test_refresh_first import Held
from tests.support.memory import MemoryCluster, MemoryStore, Refresh, Request
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Pod, key_of, parse_keepalive
from kontrol.master.master import Master
from kontrol.master.registry import registry as module
from kontrol.master.registry.registry import Registry
from kontrol.master.registry.waiting import Waiting
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Delete, Put, Range, Unavailable

KEY = key_of("10.0.0.1")
TTL = CONFIG.ttl
ACK = {"seq": 0, "ttl": TTL, "leader": "m1"}


async def known(master: Master, text: str) -> dict[str, JSON] | None:
    """The acknowledgement of a text that is known; None if it is not, or if `ping` must see it."""
    answer = master.registry.refresh_known(text.encode())
    return None if answer is None else await answer


async def join(master: Master, *texts: str) -> None:
    """Have pods accepted, and their texts known."""
    for text in texts:
        await master.ping(text)
        await asyncio.sleep(0.1)
        await master.ping(text)


@virtual
async def test_a_text_that_said_nothing_new_is_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []

    def parse(raw: str | bytes) -> object:
        read.append(raw)
        return parse_keepalive(raw)

    monkeypatch.setattr(module, "parse_keepalive", parse)
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        assert await known(master, record(1)) is None
        await join(master, record(1))
        assert len(read) == 2
        network.requests.clear()
        before = cluster.core.revision
        for raw in (record(1), record(1).encode()):
            assert await master.ping(raw) == ACK
        assert await known(master, record(1)) == ACK
        assert len(read) == 2
        assert [type(request) for request in network.requests] == [Refresh] * 3
        assert cluster.core.revision == before
        assert master.registry.outcomes == {"written": 1, "refreshed": 4}


@virtual
async def test_the_pod_of_a_known_text_lives_and_only_as_long_as_it_reports() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await join(master, record(1))
        for _ in range(6):
            await asyncio.sleep(TTL * 0.9)
            assert await known(master, record(1)) == ACK
        await asyncio.sleep(TTL + 2)
        assert master.pods() == []
        assert await known(master, record(1)) is None


@virtual
async def test_a_text_with_other_white_space_is_another_text() -> None:
    async with running(MemoryCluster()) as master:
        await join(master, record(1))
        spaced = record(1) + " "
        assert await known(master, spaced) is None
        assert await master.ping(spaced) == ACK
        # There is one text for each pod, the last one.
        assert await known(master, spaced) == ACK
        assert await known(master, record(1)) is None
        assert len(master.registry._known) == 1


@virtual
async def test_what_changes_or_deregisters_is_never_known() -> None:
    async with running(MemoryCluster()) as master:
        await join(master, record(1))
        await master.ping(record(1, n=1, payload="new"))
        await asyncio.sleep(0.1)
        for text in (record(1), record(1, n=1, payload="new")):
            assert await known(master, text) is None
        left = record(1, n=2, down=True)
        for _ in range(2):
            await master.ping(left)
            assert await known(master, left) is None
        await asyncio.sleep(0.1)
        assert len(master.registry._known) == 0


@virtual
async def test_whatever_the_mirror_shows_of_the_pod_makes_its_text_unknown() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    me = parse_keepalive(record(1))

    async def put(pod: Pod, lease: int) -> None:
        await store.txn([], [Put(KEYS.pod(pod.key), pod.encode(), lease)])

    async def another_record() -> None:
        await put(Pod.of(parse_keepalive(record(1, n=9, payload="by another master")), 0), lease)

    async def the_same_under_another_lease() -> None:
        await put(Pod.of(me, 0), (await store.grant(int(TTL))).id)

    async def the_same_under_another_number() -> None:
        await put(Pod.of(me, 7), lease)

    async def the_same_again() -> None:
        await put(Pod.of(me, 0), lease)

    async def another_id() -> None:
        await put(Pod.of(parse_keepalive(record(9, ip="10.0.0.1")), 3), lease)

    async def junk() -> None:
        await store.txn([], [Put(KEYS.pod(KEY), b"junk", lease)])

    async def nothing() -> None:
        await store.txn([], [Delete(KEYS.pod(KEY))])

    async def no_lease() -> None:
        await store.revoke(lease)

    async def its_id_elsewhere() -> None:
        await put(Pod.of(parse_keepalive(record(1, ip="10.0.0.9", nonce="b")), 4), lease)

    async with running(cluster) as master:
        for change in (
            another_record,
            the_same_under_another_lease,
            the_same_under_another_number,
            the_same_again,
            another_id,
            junk,
            nothing,
            no_lease,
            its_id_elsewhere,
        ):
            lease = (await store.grant(int(TTL))).id
            await store.txn([], [Delete(KEYS.pods, prefix=True)])
            await store.txn([], [Delete(KEYS.registrations, prefix=True)])
            await put(Pod.of(me, 0), lease)
            await asyncio.sleep(0.1)
            await master.ping(record(1))
            assert await known(master, record(1)) is not None, change
            await change()
            await asyncio.sleep(0.1)
            assert await known(master, record(1)) is None, change


@virtual
async def test_other_pods_changes_leave_a_text_known() -> None:
    async with running(MemoryCluster()) as master:
        await join(master, record(1))
        await join(master, record(2))
        await master.ping(record(2, n=1))
        await master.ping(record(3))
        await asyncio.sleep(0.1)
        assert await known(master, record(1)) == ACK
        assert await known(master, record(2)) is None


@virtual
async def test_a_mirror_that_is_not_current_or_lags_behind_recognises_nothing() -> None:
    cluster, network = MemoryCluster(), Held()
    store = MemoryStore(cluster)
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.delivers = False
        await asyncio.sleep(0.1)
        live = master.mirror.live(KEY)
        assert live is not None
        await store.revoke(live.lease)
        # The lease is gone: the text has to be read, and the pod gets another lease.
        assert await known(master, record(1)) is None
        assert await master.ping(record(1)) == ACK
        # The mirror shows the old lease still; the new one must be refreshed.
        assert await known(master, record(1)) is None
        await asyncio.sleep(TTL / 3 + 0.1)
        assert await known(master, record(1)) is None
        assert not master.mirror.cache.current


@virtual
async def test_a_lease_that_is_gone_or_unfit_is_answered_by_ping() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.holds = lambda request: isinstance(request, Refresh)
        answer = master.registry.refresh_known(record(1).encode())
        assert answer is not None
        await asyncio.sleep(0.1)
        live = master.mirror.live(KEY)
        assert live is not None
        await MemoryStore(cluster).revoke(live.lease)
        network.go.set()
        assert await answer is None
        assert await master.ping(record(1)) == ACK
        await asyncio.sleep(0.1)
        await master.ping(record(1))
        master.registry._ttl = lambda: 60.0
        master.registry._leases._ttl = lambda: 60.0
        assert await known(master, record(1)) is None


@virtual
async def test_a_refresh_without_an_answer_is_refused_in_time_by_one_timer() -> None:
    cluster, network = MemoryCluster(), Held()
    loop = asyncio.get_running_loop()
    async with running(cluster, network=network) as master:
        await join(master, *map(record, (1, 2, 3)))
        network.holds = lambda request: isinstance(request, Refresh)
        answers = []
        for number in (1, 2, 3):
            answer = master.registry.refresh_known(record(number).encode())
            assert answer is not None
            answers.append((loop.time(), answer))
            await asyncio.sleep(0.1)
        for begun, answer in answers:
            with pytest.raises(Refused, match=r"Unavailable: .* \(not in time\)"):
                await answer
            assert loop.time() - begun == pytest.approx(TTL / 7)
        assert master.registry.outcomes["Unavailable"] == 3
        network.go.set()
        await asyncio.sleep(0.1)
        assert await known(master, record(1)) == ACK


@virtual
async def test_an_error_of_the_store_is_its_answer() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))

        def fail(request: Request) -> bool:
            if isinstance(request, Refresh):
                raise errors[0]
            return False

        network.holds = fail
        errors: list[Exception] = [Unavailable("no quorum")]
        for _ in range(3):
            with pytest.raises(Refused, match=r"^Unavailable: .*no quorum"):
                await known(master, record(1))
        errors[0] = RuntimeError("a bug")
        with pytest.raises(RuntimeError, match="a bug"):
            await known(master, record(1))
        network.holds = lambda _: False
        assert await known(master, record(1)) == ACK
        assert master.registry.outcomes["Unavailable"] == 3


@virtual
async def test_no_more_than_two_wait_for_one_pod_and_one_that_gave_up_counts() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.holds = lambda request: isinstance(request, Refresh)
        answers = [master.registry.refresh_known(record(1).encode()) for _ in range(3)]
        assert answers[0] is not None
        assert answers[1] is not None
        assert answers[2] is None
        answers[0].cancel()
        await asyncio.sleep(0.1)
        assert await known(master, record(1)) is None
        network.go.set()
        assert await answers[1] == ACK
        assert await known(master, record(1)) == ACK
        # The one that was cancelled was refreshed without an answer.
        assert master.registry.outcomes["refreshed"] == 3


@virtual
async def test_what_waits_when_the_master_stops_is_refused() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.holds = lambda request: isinstance(request, Refresh)
        answer = master.registry.refresh_known(record(1).encode())
        assert answer is not None
        await asyncio.sleep(0.1)
    with pytest.raises(Refused, match="shutting down"):
        await answer
    assert master.registry.refresh_known(record(1).encode()) is None


@virtual
async def test_what_is_known_is_bounded_by_the_pods_whatever_is_reported() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        for number in range(1, 4):
            await join(master, record(number))
        for spaces in range(100):
            await master.ping(record(1) + " " * spaces)
            with contextlib.suppress(Refused):
                await master.ping(record(2, id="p9") + " " * spaces)  # a conflict
            with contextlib.suppress(Refused):
                await master.ping("junk" * spaces)
        texts = master.registry._known
        assert len(texts) == len(texts._by_key) == 3
        assert {len(digest) for digest in texts._by_digest} == {16}
        await asyncio.sleep(TTL + 2)
        assert len(texts) == len(texts._by_key) == 0


@virtual
async def test_answers_that_are_waited_for_have_deadlines_of_their_own() -> None:
    loop, late = asyncio.get_running_loop(), []

    def refuse(answer: asyncio.Future[int]) -> None:
        late.append(loop.time())
        answer.set_result(0)

    waiting: Waiting[int] = Waiting(refuse)
    begun = loop.time()
    first = waiting.add(1.0)
    await asyncio.sleep(0.5)
    second, third = waiting.add(1.0), waiting.add(1.0)
    third.set_result(7)
    assert (await first, await second, await third) == (0, 0, 7)
    assert [at - begun for at in late] == pytest.approx([1.0, 1.5])
    for _ in range(100):
        waiting.add(1.0).set_result(1)
    assert len(waiting) <= 2, "those that are done are not kept"
    await asyncio.sleep(2)
    assert len(waiting) == 0
    last = waiting.add(0.5)
    also = waiting.add(0.1)
    await asyncio.gather(last, also)
    assert len(late) == 4, "a later one with an earlier deadline is late with the one before"


# Whatever happens, with and without recognition.

TEXTS = [
    record(1),
    record(1) + " ",
    record(1, n=1, payload="new"),
    record(1, nonce="b"),
    record(1, ip="10.0.0.9", nonce="b"),
    record(1, n=2, down=True),
    record(9, ip="10.0.0.1"),
    record(2),
    record(2, nonce="", n=None),
    record(2, nonce="", n=None, payload=1),
]
FAULTS = [
    *("revoke", "lag", "deliver", "full", "empty", "fail", "heal", "hold", "ttl"),
    *("other", "moved", "snapshot", "restore"),
]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ping"), st.sampled_from(TEXTS)),
        st.tuples(st.just("ping"), st.sampled_from([TEXTS[0], TEXTS[7]])),
        st.tuples(st.just("twice"), st.sampled_from([TEXTS[0], TEXTS[7]])),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, TTL / 3, TTL / 2, TTL + 2])),
        st.tuples(st.sampled_from(FAULTS), st.none()),
    ),
    max_size=25,
)


async def told(events: list[tuple[str, Any]]) -> list[object]:
    """All that is answered, and what the store has in the end."""
    cluster, network, result = MemoryCluster(), Held(), list[object]()
    store = MemoryStore(cluster)
    broken = False

    def faults(request: Request) -> bool:
        if broken:
            raise Unavailable("no quorum")
        return held and isinstance(request, Refresh)

    held = False
    network.holds = faults
    early = cluster.snapshot()

    def answered(answer: object) -> None:
        result.append(str(answer) if isinstance(answer, BaseException) else answer)

    async with running(cluster, network=network) as one, running(cluster, id="m2") as two:
        await asyncio.sleep(1)
        await join(one, TEXTS[0], TEXTS[7])
        for what, which in events:
            match what:
                case "ping":
                    answers = await asyncio.gather(one.ping(which), return_exceptions=True)
                    answered(answers[0])
                case "twice":
                    tries = (one.ping(which), one.ping(which), two.ping(which))
                    for answer in await asyncio.gather(*tries, return_exceptions=True):
                        answered(answer)
                case "wait":
                    await asyncio.sleep(which)
                case "revoke":
                    for kv in cluster.core.range(Range(KEYS.pods, prefix=True)).kvs[:1]:
                        await store.revoke(kv.lease)
                case "lag" | "deliver":
                    network.delivers = what == "deliver"
                case "full" | "empty":
                    cluster.core.full = what == "full"
                case "fail" | "heal":
                    broken, held = what == "fail", False
                    network.go.set()
                case "hold":
                    held = True
                    network.go.clear()
                case "ttl":
                    one._ttl = two._ttl = 20.0 if one._ttl == TTL else TTL
                case "other":
                    with contextlib.suppress(Refused):
                        await two.ping(record(1, n=5, payload="other"))
                case "moved":
                    with contextlib.suppress(Refused):
                        await two.ping(record(1, ip="10.0.0.9", nonce="b"))
                case "snapshot":
                    early = cluster.snapshot()
                case "restore":
                    cluster.restore(early)
            await asyncio.sleep(0.01)
        pods = cluster.core.range(Range(KEYS.pods, prefix=True)).kvs
        result += [(kv.key, json.loads(kv.value), kv.lease != 0) for kv in pods]
        result += [dict(master.registry.outcomes) for master in (one, two)]
        result += [
            cluster.core.remaining(kv.lease, asyncio.get_running_loop().time()) for kv in pods
        ]
    return result


@settings(max_examples=60)
@given(EVENTS)
def test_whatever_happens_a_known_text_is_answered_like_one_that_is_read(
    events: list[tuple[str, Any]],
) -> None:
    found: list[list[object]] = []

    @virtual
    async def scenario() -> None:
        found.append(await told(events))

    scenario()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "refresh_known", lambda *_: None)
        scenario()
    assert found[0] == found[1]
