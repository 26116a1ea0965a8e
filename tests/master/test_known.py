"""Keepalives that are recognised by their bytes: they get the answer that a read one would get."""

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.master.support import CONFIG, KEYS, running
from tests.master.support import record as any_record
from tests.master.test_refresh_first import Held
from tests.support.memory import MemoryCluster, MemoryStore, Refresh, Request
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import MAX_COUNTER, BadRecord, Keepalive, Pod, key_of, parse_keepalive
from kontrol.master.master import Master
from kontrol.master.records.pods import Live
from kontrol.master.registry import registry as module
from kontrol.master.registry.admission import unchanged
from kontrol.master.registry.known import text_of
from kontrol.master.registry.registry import Registry
from kontrol.master.registry.waiting import Waiting
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Delete, Put, Range, Unavailable

KEY = key_of("10.0.0.1")
TTL = CONFIG.ttl
ACK = {"seq": 0, "ttl": TTL, "leader": "m1", "live": True}


def record(number: int, **changes: Any) -> str:  # noqa: ANN401 - any field of the record
    """The keepalive of pod `number` as an agent of ours sends it."""
    ip = changes.get("ip", f"10.0.0.{number}")
    return any_record(number, **{"key": key_of(ip), **changes})


async def known(master: Master, text: str) -> dict[str, JSON] | None:
    """The acknowledgement of a text that is known; None if it is not, or if `ping` must see it."""
    answer = master.registry.refresh_known(text.encode())
    return None if answer is None else await answer


def begin(master: Master, text: str) -> asyncio.Future[dict[str, JSON] | None]:
    """The answer to a text that is known, before there is one."""
    answer = master.registry.refresh_known(text.encode())
    assert answer is not None
    return answer


def is_refresh(request: Request) -> bool:
    """Tell whether a request refreshes a lease."""
    return isinstance(request, Refresh)


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
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        assert len(read) == 1
        network.requests.clear()
        before = cluster.core.revision
        for raw in (record(1), record(1).encode()):
            assert await master.ping(raw) == ACK
        assert await known(master, record(1)) == ACK
        assert len(read) == 1
        assert [type(request) for request in network.requests] == [Refresh] * 3
        assert cluster.core.revision == before
        assert master.registry.outcomes == {"written": 1, "refreshed": 3}


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
        assert await known(master, record(1)) is None
        assert await known(master, record(1, n=1, payload="new")) == ACK
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

    still_the_text = {the_same_under_another_lease, the_same_under_another_number, the_same_again}
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
            before = master.registry._known.find(record(1).encode())
            await change()
            await asyncio.sleep(0.1)
            after = master.registry._known.find(record(1).encode())
            assert after is not before, change
            assert (after is None) == (change not in still_the_text), change
            moved = record(1, ip="10.0.0.9", nonce="b").encode()
            assert master.registry._known.find(moved) is None, "its id is at two addresses"
            if after is not None:
                live = master.mirror.live(KEY)
                assert live is not None
                assert (after.lease, after.seq) == (live.lease, live.pod.seq)


@virtual
async def test_the_agents_of_another_master_are_known_when_they_come() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2") as two:
        named = record(2, named=True, key="by-hand")
        for text in (record(1), named):
            await one.ping(text)
        await asyncio.sleep(0.1)
        assert await known(two, record(1)) == ACK
        # How its agent spells a key that was chosen by hand is not in the record.
        assert await known(two, named) is None
        await two.ping(named)
        assert await known(two, named) == {**ACK, "seq": 1}


def decoded(raw: bytes) -> tuple[bytes, Pod] | None:
    """A record as some client of etcd wrote it, and the pod that it is, if it is one."""
    try:
        return raw, Pod.decode(raw)
    except BadRecord:
        return None


def check_text(raw: bytes, pod: Pod) -> None:
    """What counts as the text of a record says nothing new of it, when it is read."""
    text = text_of(raw, pod)
    if text is not None:
        keepalive = parse_keepalive(text)
        assert not keepalive.down
        assert keepalive.key == pod.key
        assert unchanged(keepalive, Live(pod, 1, 1))


WORDS = st.sampled_from(["seq", "down", "named", "n", "key", 'x,"seq":7', "\N{SNOWMAN}", "\\u"])
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(0, 9), st.booleans(), st.none(), st.just(7), st.floats(0, 9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
MORE = st.dictionaries(
    st.sampled_from(["x", "seq ", "alive", "zone", "Seq", 'a"seq', "version"]),
    st.one_of(st.just("v1"), VALUES),
    max_size=3,
)


@given(VALUES, MORE, st.sampled_from([0, 7, 70]), st.sampled_from([None, 0, 7]), st.booleans())
def test_the_text_of_a_record_is_what_its_agent_sends(
    payload: Any,  # noqa: ANN401 - JSON
    more: dict[str, Any],
    seq: int,
    n: int | None,
    by_hand: bool,
) -> None:
    with contextlib.suppress(BadRecord):
        sent = Keepalive(
            "app",
            "p1",
            "10.0.0.1",
            "hand" if by_hand else KEY,
            "r",
            payload,
            "a" * 24,
            n,
            more=more,
        )
        pod = Pod.of(parse_keepalive(replace(sent, named=by_hand).encode()), seq)
        check_text(pod.encode(), pod)
        text = text_of(pod.encode(), pod)
        if text is not None:
            assert text.decode() == sent.encode()
        if payload == 7 and not more and not by_hand:
            assert text is not None


@given(st.data())
def test_what_another_client_wrote_counts_only_where_it_is_certain(data: st.DataObject) -> None:
    fields: dict[str, object] = {
        "app": "app",
        "id": "p1",
        "ip": data.draw(st.sampled_from(["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"])),
        "key": data.draw(st.sampled_from([KEY, "hand"])),
        "role": "r",
        "payload": data.draw(VALUES),
        "nonce": data.draw(st.sampled_from(["", "a" * 24, "zzzz"])),
        "n": data.draw(st.sampled_from([0, 7, MAX_COUNTER, MAX_COUNTER + 1])),
        "seq": 7,
        **data.draw(st.dictionaries(st.sampled_from(["down", "named"]), st.booleans())),
    }
    order = data.draw(st.permutations(list(fields)))
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (",", ": ")]))
    raw = json.dumps({name: fields[name] for name in order}, separators=separators)
    for plain, escaped in (('"seq"', '"s\\u0065q"'), ('"down"', '"\\u0064own"')):
        if data.draw(st.booleans()):
            at = data.draw(st.sampled_from([0, 1]))
            raw = raw.replace(plain, escaped, 1) if at == 0 else escaped.join(raw.rsplit(plain, 1))
    found = decoded(raw.encode())
    if found is not None:
        check_text(*found)


def raw_pod(**changes: Any) -> tuple[bytes, Pod]:  # noqa: ANN401 - any field of the record
    """A record as it is stored, with other fields."""
    fields = {**json.loads(Pod.of(parse_keepalive(record(1)), 7).encode()), **changes}
    raw = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    return raw, Pod.decode(raw)


def test_each_condition_for_a_text_is_needed_and_holds_up_to_its_limit() -> None:
    certain: list[dict[str, Any]] = [
        {},
        {"nonce": ""},
        {"n": MAX_COUNTER},
        {"payload": {"Seq": 7, "x": "seq"[1:]}},
        {"ip": "fd00::1", "key": key_of("fd00::1")},
    ]
    for changes in certain:
        text = text_of(*raw_pod(**changes))
        assert text is not None, changes
        assert b'"seq"' not in text
    uncertain: list[dict[str, Any]] = [
        {"payload": {"seq": 1}},
        {"payload": {"a": 1, "seq": 7}},
        {"payload": "seq"},
        {"down": True},
        {"down": False},
        {"named": True},
        {"payload": "\u0001"},
        {"nonce": "zzzz"},
        {"n": MAX_COUNTER + 1},
        {"key": "by-hand"},
    ]
    for changes in uncertain:
        assert text_of(*raw_pod(**changes)) is None, changes
    raw, pod = raw_pod()
    assert text_of(raw.replace(b'"seq":7', b'"seq": 7'), pod) is None, "it is not certain where"


def test_a_record_of_more_bytes_than_a_keepalive_may_have_has_no_text() -> None:
    room = 65_536 - len(raw_pod(payload="")[0])
    for length, has in ((room - 1, True), (room, True), (room + 1, False)):
        raw, pod = raw_pod(payload="x" * length)
        assert (text_of(raw, pod) is not None) == has


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
        assert await known(master, record(2, n=1)) == {**ACK, "seq": 1}


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
        network.holds = is_refresh
        answer = begin(master, record(1))
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
        network.holds = is_refresh
        answers = []
        for number in (1, 2, 3):
            answers.append((loop.time(), begin(master, record(number))))
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
        network.holds = is_refresh
        answers = [begin(master, record(1)) for _ in range(2)]
        assert master.registry.refresh_known(record(1).encode()) is None
        answers[0].cancel()
        await asyncio.sleep(0.1)
        assert await known(master, record(1)) is None
        network.go.set()
        assert await answers[1] == {**ACK, "age": pytest.approx(0.1)}
        assert await known(master, record(1)) == ACK
        # The one that was cancelled was refreshed without an answer.
        assert master.registry.outcomes["refreshed"] == 3


@virtual
async def test_what_waits_when_the_master_stops_is_refused() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.holds = is_refresh
        answer = begin(master, record(1))
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
