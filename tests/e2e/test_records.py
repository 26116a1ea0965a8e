"""Records in a real etcd that a later version, or none, can have written, under real masters."""

import json
from collections.abc import Callable, Sequence

from tests.e2e.lab import Lab
from tests.support.etcd import EtcdCluster

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.keys import Keys
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Compare, KeyValue, Put, Range

GARBAGE = b'{"run": \xff'


async def rewrite(
    endpoints: Sequence[str], keys: Keys, change: Callable[[KeyValue], bytes]
) -> set[str]:
    """Rewrite every record of a tier as it is now; returns the keys."""
    async with EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        found: set[str] = set()
        for kv in (await store.range(Range(keys.root, prefix=True))).kvs:
            unmoved = Compare(kv.key, "mod", "=", kv.mod_revision)
            put = Put(kv.key, change(kv), kv.lease)
            if (await store.txn([unmoved], [put])).succeeded:
                found.add(kv.key)
        return found


async def field_of(endpoints: Sequence[str], key: str, name: str) -> JSON:
    async with EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        record: dict[str, JSON] = json.loads((await store.range(Range(key))).kvs[0].value)
        return record.get(name)


async def test_records_of_a_later_version_and_then_garbage() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        # Without the brake: pods whose number is lost count as lost, and join.
        tier = await lab.tier(etcd.endpoints, masters=2, BRAKE="0")
        keys = Keys.of("default", tier.app)
        for pod in "ab":
            await tier.agent(pod)
        first = await tier.hub.settled("ab")
        registrations = {pod["id"]: keys.registration(pod["key"]) for pod in first.pods}

        def later(kv: KeyValue) -> bytes:
            exact = (keys.state, keys.counter, keys.last_run, keys.last_acknowledged)
            if kv.key in exact or kv.key.startswith((keys.states, f"{keys.applied}/")):
                return kv.value
            return json.dumps({**json.loads(kv.value), "later": [1]}).encode()

        await rewrite(etcd.endpoints, keys, later)
        leader = await tier.leader(first.term)
        assert await tier.masters[leader].end() == 0
        await tier.agent("c")
        second = await tier.hub.settled("abc")
        assert second.term > first.term
        assert second.state is not None
        assert first.seqs.items() <= second.seqs.items()
        assert await tier.agents["a"].end() == 0
        await tier.hub.settled("bc")
        assert await field_of(etcd.endpoints, registrations["a"], "left") is True
        assert await field_of(etcd.endpoints, registrations["a"], "later") == [1], (
            "it outlives a rewrite"
        )
        await tier.master(leader)

        # Everything is garbage, under both masters: they go on, and the pods report again.
        marks = [master.mark for master in tier.masters]
        tier.hub.forget()
        damaged = await rewrite(etcd.endpoints, keys, lambda _: GARBAGE)
        assert {keys.counter, keys.applied, keys.meta, keys.state} <= damaged
        await tier.agent("d")
        third = await tier.hub.settled("bcd")
        assert len(set(third.seqs.values())) == 3
        assert third.number > second.number
        assert third.term > second.term
        told = [
            line
            for master, mark in zip(tier.masters, marks, strict=True)
            for line in master.lines[mark:]
            if "is damaged" in line
        ]
        # The registration of a pod that is gone: one that lives may write its own again first.
        for key in (keys.applied, keys.meta, keys.state, registrations["a"]):
            assert any(f"the record {key} is damaged" in line for line in told), key
        # All goes on.
        assert await tier.agents["b"].end() == 0
        await tier.hub.settled("cd")
        assert [await daemon.end() for daemon in tier.masters] == [0, 0]
