"""What every store must do, run against the model and against etcd: reads and transactions."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.contract.conftest import Bed
from tests.contract.helpers import DEADLINE, names, now, put

from kontrol.store.protocol import (
    Compacted,
    Compare,
    Delete,
    KeyValue,
    Op,
    Put,
    Range,
    Store,
    TooLarge,
    TxnResult,
)

# Reading


async def test_an_absent_key(bed: Bed) -> None:
    found = await bed.store.range(Range(bed.key("none")))
    assert (found.kvs, found.more, found.count) == ((), False, 0)
    assert found.header.revision > 0
    assert found.header.cluster != 0


async def test_a_key_tells_its_history(bed: Bed) -> None:
    first = await put(bed, "a", value=b"1")
    second = await put(bed, "a", value=b"2")
    found = await bed.store.range(Range(bed.key("a")))
    assert found.kvs == (KeyValue(bed.key("a"), b"2", first, second, 2, 0),)
    assert second == first + 1
    assert found.header.revision >= second


async def test_values_are_bytes(bed: Bed) -> None:
    value = bytes(range(256))
    await bed.store.txn([], [Put(bed.key("all"), value), Put(bed.key("none"), b"")])
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    assert [kv.value for kv in found.kvs] == [value, b""]


async def test_a_prefix_is_read_in_order(bed: Bed) -> None:
    wanted = ["a", "a/1", "a/2", "aé", "a\U0001f600", "b"]
    for name in reversed(wanted):
        await put(bed, name)
    assert await names(bed) == wanted
    found = await bed.store.range(Range(bed.key("a"), prefix=True))
    assert [kv.key for kv in found.kvs] == [bed.key(name) for name in wanted[:-1]]
    assert (await bed.store.range(Range(bed.key("a")))).count == 1


async def test_a_limit_cuts_and_says_so(bed: Bed) -> None:
    await put(bed, "a", "b", "c")
    found = await bed.store.range(Range(bed.prefix, prefix=True, limit=2))
    assert [kv.key for kv in found.kvs] == [bed.key("a"), bed.key("b")]
    assert (found.more, found.count) == (True, 3)
    found = await bed.store.range(Range(bed.prefix, prefix=True, limit=3))
    assert (found.more, found.count) == (False, 3)


async def test_keys_only(bed: Bed) -> None:
    revision = await put(bed, "a")
    found = await bed.store.range(Range(bed.prefix, prefix=True, keys_only=True))
    assert found.kvs == (KeyValue(bed.key("a"), b"", revision, revision),)


async def test_the_last_key_first(bed: Bed) -> None:
    for name in ("b", "c", "a", "b"):
        await put(bed, name)
    found = await bed.store.range(Range(bed.prefix, prefix=True, descending=True))
    assert [kv.key for kv in found.kvs] == [bed.key(name) for name in ("c", "b", "a")]
    found = await bed.store.range(Range(bed.prefix, prefix=True, descending=True, limit=1))
    assert ([kv.key for kv in found.kvs], found.more, found.count) == ([bed.key("c")], True, 3)


async def test_the_past_can_be_read(bed: Bed) -> None:
    first = await put(bed, "a", "b", value=b"1")
    second = await put(bed, "a", value=b"2")
    await bed.store.txn([], [Delete(bed.key("a"))])
    past = await bed.store.range(Range(bed.prefix, prefix=True, revision=second))
    assert [(kv.key, kv.value, kv.mod_revision) for kv in past.kvs] == [
        (bed.key("a"), b"2", second),
        (bed.key("b"), b"1", first),
    ]
    assert await names(bed) == ["b"]


async def test_the_compacted_past_cannot(bed: Bed) -> None:
    first = await put(bed, "a", value=b"1")
    second = await put(bed, "a", value=b"2")
    await put(bed, "a", value=b"3")
    await bed.compact(second)
    found = await bed.store.range(Range(bed.key("a"), revision=second))
    assert found.kvs[0].value == b"2"
    with pytest.raises(Compacted):
        await bed.store.range(Range(bed.key("a"), revision=first))


# Transactions


@pytest.mark.parametrize("target", ["create", "mod", "version", "lease"])
async def test_an_absent_key_compares_as_zero(bed: Bed, target: str) -> None:
    for op, operand, holds in [
        ("=", 0, True), ("=", 1, False), ("!=", 0, False), ("<", 1, True), (">", 0, False),
    ]:  # fmt: skip
        compare = Compare(bed.key("none"), target, op, operand)  # type: ignore[arg-type]  # literals
        assert (await bed.store.txn([compare], [])).succeeded is holds, compare


async def test_compares_on_a_key(bed: Bed) -> None:
    lease = (await bed.store.grant(60)).id
    created = await put(bed, "a")
    modified = await put(bed, "a", lease=lease)
    facts = {"create": created, "mod": modified, "version": 2, "lease": lease}
    for target, fact in facts.items():
        for op, operand, holds in [
            ("=", fact, True), ("=", fact + 1, False), ("!=", fact, False), ("!=", fact - 1, True),
            ("<", fact, False), ("<", fact + 1, True), (">", fact, False), (">", fact - 1, True),
        ]:  # fmt: skip
            compare = Compare(bed.key("a"), target, op, operand)  # type: ignore[arg-type]  # literals
            assert (await bed.store.txn([compare], [])).succeeded is holds, compare
    await bed.store.revoke(lease)


async def test_one_false_compare_takes_the_other_branch(bed: Bed) -> None:
    await put(bed, "a")
    compares = [Compare(bed.key("a"), "version", "=", 1), Compare(bed.key("b"), "version", "=", 1)]
    done = await bed.store.txn(compares, [Put(bed.key("x"), b"")], [Put(bed.key("y"), b"")])
    assert not done.succeeded
    assert done.results == (None,)
    assert await names(bed) == ["a", "y"]


async def test_operations_see_those_before_them(bed: Bed) -> None:
    await put(bed, "a", value=b"1")
    done = await bed.store.txn(
        [],
        [
            Range(bed.key("a")),
            Put(bed.key("a"), b"2"),
            Range(bed.key("a")),
            Delete(bed.key("b"), prefix=True),
            Put(bed.key("c"), b"3"),
            Delete(bed.key("none")),
            Range(bed.prefix, prefix=True),
        ],
    )
    assert done.range(0).kvs[0].value == b"1"
    assert done.results[1] is None
    assert done.range(2).kvs[0] == KeyValue(
        bed.key("a"), b"2", done.header.revision - 1, done.header.revision, 2
    )
    assert (done.results[3], done.results[5]) == (0, 0)
    assert [kv.key for kv in done.range(6).kvs] == [bed.key("a"), bed.key("c")]


async def test_a_delete_counts(bed: Bed) -> None:
    await put(bed, "a", "b/1", "b/2")
    done = await bed.store.txn(
        [], [Delete(bed.key("b/"), prefix=True), Delete(bed.key("b/1")), Delete(bed.key("a"))]
    )
    assert done.results == (2, 0, 1)
    assert await names(bed) == []


async def test_what_changes_nothing_makes_no_revision(bed: Bed) -> None:
    before = await put(bed, "a")
    done = await bed.store.txn([], [Delete(bed.key("none")), Range(bed.key("a"))])
    assert done.header.revision == before
    done = await bed.store.txn([], [])
    assert done.succeeded
    assert await now(bed.store) == before


async def test_writes_of_a_transaction_share_its_revision(bed: Bed) -> None:
    revision = await put(bed, "a", "b")
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    assert {kv.mod_revision for kv in found.kvs} == {revision}


async def test_a_read_that_fails_undoes_the_transaction(bed: Bed) -> None:
    first = await put(bed, "a")
    await bed.compact(await put(bed, "a"))
    with pytest.raises(Compacted):
        await bed.store.txn([], [Put(bed.key("b"), b""), Range(bed.key("a"), revision=first)])
    assert await names(bed) == ["a"]


@pytest.mark.parametrize(
    "twice", [(Put("a", b"1"), Put("a", b"2")), (Put("a", b"1"), Delete("", prefix=True))]
)
async def test_no_key_is_written_twice(bed: Bed, twice: Sequence[Put | Delete]) -> None:
    await put(bed, "z")
    ops = [
        Put(bed.key(op.key), op.value) if isinstance(op, Put) else Delete(bed.prefix, prefix=True)
        for op in twice
    ]
    with pytest.raises(ValueError, match=r"twice|duplicate"):
        await bed.store.txn([], ops)
    assert await names(bed) == ["z"]


async def test_128_operations_and_no_more(bed: Bed) -> None:
    keys = [bed.key(f"{i:03}") for i in range(129)]
    compares = [Compare(key, "create", "=", 0) for key in keys]
    puts = [Put(key, b"") for key in keys]
    done = await bed.store.txn(compares[:128], puts[:128], puts[:128])
    assert done.succeeded
    assert len(await names(bed)) == 128
    arguments: list[tuple[list[Compare], list[Put], list[Put]]] = [
        (compares, [], []), ([], puts, []), ([], [], puts),
    ]  # fmt: skip
    for compare, then, otherwise in arguments:
        with pytest.raises(TooLarge):
            await bed.store.txn(compare, then, otherwise)
    assert len(await names(bed)) == 128


async def test_a_mebibyte_and_a_half(bed: Bed) -> None:
    await put(bed, "a", value=b"." * 1_500_000)
    with pytest.raises(TooLarge):
        await bed.store.txn([], [Put(bed.key(name), b"." * 800_000) for name in "bc"])
    assert await names(bed) == ["a"]
    found = await bed.store.range(Range(bed.key("a")))
    assert len(found.kvs[0].value) == 1_500_000


async def test_compare_and_set_lets_one_win(bed: Bed) -> None:
    key = bed.key("counter")
    await bed.store.txn([], [Put(key, b"0")])

    async def add(store: Store, times: int) -> None:
        while times:
            kv = (await store.range(Range(key))).kvs[0]
            value = str(int(kv.value) + 1).encode()
            compare = Compare(key, "mod", "=", kv.mod_revision)
            times -= (await store.txn([compare], [Put(key, value)])).succeeded

    async with bed.another() as other, asyncio.timeout(DEADLINE):
        await asyncio.gather(*(add(store, 10) for store in (bed.store, other) for _ in range(3)))
        assert (await other.range(Range(key))).kvs[0].value == b"60"


async def test_a_result_that_is_no_range_says_so(bed: Bed) -> None:
    ops: list[Op] = [Put(bed.key("a"), b"")]
    done: TxnResult = await bed.store.txn([], ops)
    with pytest.raises(AssertionError, match="not a range"):
        done.range(0)


async def test_no_alarm_stands(bed: Bed) -> None:
    assert await bed.store.alarms() == ()
