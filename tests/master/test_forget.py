"""Forgetting a pod: a registration is cleared once, fenced, and the ledger says who asked."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TypeVar

import pytest
from tests.master.support import CONFIG, KEYS, Stub, alive, nonce, record, running
from tests.master.test_registry import Faulty, stored
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import MAX_COUNTER, key_of
from kontrol.master.leader.requests import Pending
from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.master.records.masters import OperatorRequest
from kontrol.master.records.pods import Registration
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Ambiguous, KeyValue, Put, Range, Unavailable

KEY = key_of("10.0.0.1")
_Answer = TypeVar("_Answer")


async def ledger(master: Master, cluster: MemoryCluster) -> list[dict[str, JSON]]:
    view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")
    return await view.runs(20)


async def forget(master: Master, pod: str) -> dict[str, JSON]:
    return await master.requests.ask("forget", "ann", pod=pod, timeout=5)


@virtual
async def test_a_pod_that_is_locked_out_is_accepted_immediately() -> None:
    cluster = MemoryCluster()
    async with running(cluster, Stub()) as master, alive(master, 2):
        seq = (await master.ping(record(1)))["seq"]
        await master.ping(record(1, nonce="zzz", n=MAX_COUNTER))
        with pytest.raises(Refused, match="Stale"):
            await master.ping(record(1))
        answer = await forget(master, "p1")
        assert (answer["done"], answer["refused"]) == (True, False)
        assert KEY in str(answer["message"])
        assert "under the same number" in str(answer["message"])
        assert nonce("zzz") in str(answer["message"]), "what it had is said"
        assert (await master.ping(record(1)))["seq"] == seq, "and keeps its number"
        [entry] = [each for each in await ledger(master, cluster) if each["reason"] == "forget"]
        assert (entry["by"], entry["ok"], entry["run"]) == ("ann", True, answer["run"])
        assert "p1" in str(entry["why"])


@virtual
async def test_a_pod_that_is_forgotten_has_left() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 2):
        await master.ping(record(1))
        await asyncio.sleep(3)
        answer = await forget(master, KEY)
        await asyncio.sleep(3)
        assert callback.runs[-1].changes == {"left": ["p1"]}
        assert callback.runs[-1].request.run > int(str(answer["run"])), "no number is used twice"
        assert await stored(cluster, KEYS.registration(KEY)) == {
            "id": "p1",
            "nonce": "",
            "seq": 1,
            "left": True,
        }


@virtual
@pytest.mark.parametrize("name", ["p1", KEY, "#0"])
async def test_a_pod_that_is_gone_is_forgotten_by_any_name(name: str) -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await asyncio.sleep(2 * CONFIG.ttl)
        assert master.pods() == []
        assert (await forget(master, name))["refused"] is False
        assert (await stored(cluster, KEYS.registration(KEY)))["left"] is True


@virtual
@pytest.mark.parametrize("name", ["p1", "#0", f"{KEY}.0"])
async def test_a_pod_whose_key_another_one_has_is_not_promised_its_number(name: str) -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await master.ping(record(1, n=1, down=True))
        await master.ping(record(2, ip="10.0.0.1"))
        answer = await forget(master, name)
        assert answer["refused"] is False
        assert "so it gets a new number if it reports again" in str(answer["message"])
        await master.ping(record(2, ip="10.0.0.1", n=1, down=True))
        assert (await master.ping(record(1)))["seq"] == 2


@virtual
@pytest.mark.parametrize("prefix", [KEYS.registrations, KEYS.pods])
@pytest.mark.parametrize("key", ["k9", "k9.7"])
async def test_what_cannot_be_read_is_deleted(prefix: str, key: str) -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    await store.txn([], [Put(prefix + key, b"garbage")])
    async with running(cluster, Stub()) as master:
        answer = await forget(master, key)
        assert (answer["refused"], "cannot be read" in str(answer["message"])) == (False, True)
        assert not (await store.range(Range(prefix + key))).kvs
        assert [each["reason"] for each in await ledger(master, cluster)] == ["forget"]


@virtual
@pytest.mark.parametrize("name", ["p9", "#9", "#", "../x", "#" + "9" * 400, "é", "a b", "x" * 200])
async def test_a_name_that_no_pod_has_is_refused(name: str) -> None:
    async with running(MemoryCluster()) as master, alive(master, 1):
        answer = await forget(master, name)
        assert answer["refused"] is True
        assert "no pod" in str(answer["message"])
        assert len(str(answer["message"])) < 250
        assert len(master.pods()) == 1


@virtual
async def test_a_name_that_is_one_s_key_and_another_s_id_is_refused() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await master.ping(record(2, id=KEY))
        answer = await forget(master, KEY)
        assert answer["refused"] is True
        assert KEY in str(answer["message"])
        assert key_of("10.0.0.2") in str(answer["message"])
        assert len(master.pods()) == 2


def answers(request: Request) -> bool:
    """Tell whether this writes the answer of a request."""
    puts = request.then if isinstance(request, Txn) else ()
    return any(isinstance(op, Put) and b'"message"' in op.value for op in puts)


@virtual
@pytest.mark.parametrize("fault", ["before", "after"])
async def test_it_is_done_once_though_an_answer_is_lost(fault: str) -> None:
    """Whether the lost write was done or not: one entry, and its number is not used again."""
    cluster, network, callback = MemoryCluster(), Faulty(), Stub()
    faults = 1

    def lose(request: Request) -> Exception | None:
        nonlocal faults
        if not faults or not answers(request):
            return None
        faults -= 1
        return Ambiguous("lost") if fault == "after" else Unavailable("cut off")

    rule: Callable[[Request], Exception | None] = lose
    async with running(cluster, callback, network=network) as master, alive(master, 2):
        await master.ping(record(1))
        await asyncio.sleep(3)
        setattr(network, fault, rule)
        answer = await forget(master, "p1")
        assert (answer["refused"], faults) == (False, 0)
        await asyncio.sleep(3)
        entries = await ledger(master, cluster)
        [entry] = [each for each in entries if each["reason"] == "forget"]
        assert entry["run"] == answer["run"]
        runs = [each["run"] for each in entries]
        assert runs == sorted(set(runs), key=lambda run: -int(str(run)))
        assert [run.changes for run in callback.runs[-1:]] == [{"left": ["p1"]}]


@virtual
async def test_any_master_accepts_it_and_a_pod_that_reports_meanwhile_does_not_prevent_it() -> None:
    cluster = MemoryCluster()

    class Busy(Faulty):
        """Lets the pod report between each reading and writing of the leader."""

        async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
            if answers(request) and self.turns:
                self.turns, self.n = self.turns - 1, self.n + 1
                await two.ping(record(1, n=self.n, payload=self.turns))
            return await super().call(request, do)

        turns = n = 0

    network = Busy()
    async with (
        running(cluster, Stub(), network=network) as one,
        running(cluster, id="m2") as two,
    ):
        await two.ping(record(1))
        await asyncio.sleep(3)
        network.turns = 3
        assert (await forget(two, "p1"))["refused"] is False
        network.turns = 100
        answer = await forget(two, "p1")
        assert "try again" in str(answer["message"])
        assert json.loads(json.dumps(answer))["refused"] is True
        assert one.leader_id == "m1"


@virtual
@pytest.mark.parametrize("there", [True, False], ids=["answered", "expired"])
async def test_a_request_that_is_over_is_not_carried_out(
    there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch may show a request for a while after it was answered or has expired."""
    caplog.set_level(logging.INFO)
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    async with running(cluster, Stub()) as master, alive(master, 1):
        await asyncio.sleep(3)
        leadership = master.leader._leadership
        assert leadership is not None
        lease = (await store.grant(60)).id
        key = f"{KEYS.requests}x"
        if there:
            await store.txn([], [Put(key, b"not as it was", lease)])
        run = leadership._ledger.next_run
        before = (await store.range(Range(KEYS.registration(KEY)))).kvs
        request = OperatorRequest("x", "forget", "ann", pod="p1")
        seen = Pending(request, KeyValue(key, b"{}", 1, 1, lease=lease))
        await leadership._actions._forgetting.forget(seen)
        assert (await store.range(Range(KEYS.registration(KEY)))).kvs == before
        assert [each["reason"] for each in await ledger(master, cluster)] == ["ensemble"]
        assert leadership._ledger.next_run == run + 1, "it is not tried again"
    assert "request of ann (forget): it expired, or was done before" in caplog.messages


@virtual
async def test_what_was_forgotten_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(MemoryCluster(), Stub()) as master:
        await master.ping(record(1))
        answer = await forget(master, "p1")
        await asyncio.sleep(1)
    assert f"request of ann (forget): {answer['message']}" in caplog.messages


@virtual
async def test_a_live_pod_is_found_by_its_number_although_its_registration_is_damaged() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await MemoryStore(cluster).txn([], [Put(KEYS.registration(KEY), b"garbage")])
        answer = await forget(master, "#0")
        assert (answer["refused"], "pod p1" in str(answer["message"])) == (False, True)
        registration = await stored(cluster, KEYS.registration(KEY))
        assert (registration["id"], registration["seq"], registration["left"]) == ("p1", 0, True)


@virtual
@pytest.mark.parametrize("name", ["p1", "#0"])
async def test_a_damaged_registration_does_not_hide_others(name: str) -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await MemoryStore(cluster).txn([], [Put(KEYS.registration("k0"), b"garbage")])
        await master.ping(record(1))
        await asyncio.sleep(2 * CONFIG.ttl)
        assert (await forget(master, name))["refused"] is False


@virtual
async def test_nothing_is_read_at_no_key() -> None:
    network = Faulty()
    async with running(MemoryCluster(), network=network) as master:
        assert (await forget(master, "#9"))["refused"] is True
        assert not [each for each in network.requests if isinstance(each, Txn) and not each.then]


@virtual
@pytest.mark.parametrize(
    ("pods", "keys"),
    [(2, "k1, k2"), (5, "k1, k2, k3, k4, k5"), (6, "k1, k2, k3, k4, k5, ...")],
)
async def test_a_name_of_several_pods_is_refused_with_some_of_their_keys(
    pods: int, keys: str
) -> None:
    cluster = MemoryCluster()
    for number in range(1, pods + 1):
        registration = Registration(f"p{number // 100}", nonce("a"), 0, number, left=True)
        put = Put(KEYS.registration(f"k{number}"), registration.encode())
        await MemoryStore(cluster).txn([], [put])
    async with running(cluster) as master:
        answer = await forget(master, "p0")
        assert answer["refused"] is True
        assert str(answer["message"]).endswith(f"give a key instead, one of {keys}")


@virtual
@pytest.mark.parametrize("runs", [0, 1])
async def test_the_entry_names_the_acknowledged_callback(runs: int) -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, damper=runs or 60, damper_max=60) as master:
        await master.ping(record(1))
        await asyncio.sleep(3)
        assert len(callback.runs) == runs
        answer = await forget(master, "p1")
        entry = await stored(cluster, KEYS.run(int(str(answer["run"]))))
        assert entry["fingerprint"] == runs * "f1"
