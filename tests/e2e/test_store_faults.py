"""Real daemons on a full etcd, on a slow one, and with a TTL that changes: no pod drops out."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Lab, Tier
from tests.e2e.observed import Run
from tests.e2e.test_rest import Operator, master, rest
from tests.support.etcd import EtcdCluster, free_port
from tests.support.proxy import Proxy
from tests.web.support import WRITER

from kontrol.master.records.keys import Keys
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Event, NoSpace, Put, Range

QUOTA = 1024 * 1024


class Witness:
    """Watches the pods in etcd, past whatever lies between it and the masters."""

    def __init__(self, store: EtcdStore, keys: Keys) -> None:
        self.store = store
        self.events: list[tuple[float, Event]] = []
        self._keys = keys
        self._news = asyncio.Condition()

    async def watch(self) -> None:
        start = (await self.store.range(Range(self._keys.pods))).header.revision + 1
        async with self.store.watch(self._keys.pods, prefix=True, start=start) as watch:
            async for batch in watch:
                now = asyncio.get_running_loop().time()
                self.events += [(now, event) for event in batch.events]
                async with self._news:
                    self._news.notify_all()

    async def pods(self) -> dict[str, Any]:
        """The pods' records, by id, each with its create revision and its lease."""
        found = (await self.store.range(Range(self._keys.pods, prefix=True))).kvs
        records = [(json.loads(kv.value), kv) for kv in found]
        return {
            pod["id"]: {**pod, "created": kv.create_revision, "lease": kv.lease}
            for pod, kv in records
        }

    @property
    def dropped(self) -> list[float]:
        """When pods were deleted."""
        return [at for at, event in self.events if event.type == "delete"]

    async def written(self, pod: str, since: int, within: float = DEADLINE) -> dict[str, Any]:
        """Wait for a write of this pod, among the events from `since` on."""

        def found() -> list[dict[str, Any]]:
            puts = [event.kv for _, event in self.events[since:] if event.type == "put"]
            records = [(json.loads(kv.value), kv.lease) for kv in puts]
            return [{**record, "lease": lease} for record, lease in records if record["id"] == pod]

        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(found)
        return found()[0]

    async def dropping(self, within: float) -> float:
        """Wait until one is deleted; return when. Raises `TimeoutError`."""
        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(lambda: self.dropped)
        return self.dropped[0]

    async def no_pod_drops(self, seconds: float) -> None:
        """See that for so long no pod is deleted."""
        with pytest.raises(TimeoutError):
            await self.dropping(seconds)


@asynccontextmanager
async def witnessed(etcd: EtcdCluster, tier: Tier) -> AsyncIterator[Witness]:
    async with EtcdStore(EtcdConfig(tuple(etcd.endpoints))) as store:
        witness = Witness(store, Keys.of("default", tier.app))
        watching = asyncio.create_task(witness.watch())
        try:
            yield witness
        finally:
            watching.cancel()
            await asyncio.wait({watching})


def report(path: Path, value: int) -> None:
    """Have a pod report a payload."""
    new = path.with_suffix(".new")
    new.write_text(str(value), "utf-8")
    new.replace(path)


async def fill(store: EtcdStore) -> None:
    """Put until etcd raises its alarm; it looks at its size when it commits, every 100 ms."""
    async with asyncio.timeout(DEADLINE):
        while "NOSPACE" not in await store.alarms():
            try:
                await store.txn([], [Put("/filling", b"." * 32768)])
            except NoSpace:
                continue


async def status(asked: Operator) -> Any:  # noqa: ANN401 - as json.loads
    return json.loads((await asked.get("/v1/status", token=WRITER)).body)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{WRITER}\n", "utf-8")
    return path


async def test_on_a_full_etcd_pods_live_the_status_tells_and_the_change_is_run_after_it(
    tokens: Path, tmp_path: Path
) -> None:
    ttl = 4.0
    async with (
        EtcdCluster(options=(f"--quota-backend-bytes={QUOTA}",)) as etcd,
        Lab() as lab,
    ):
        tier = await lab.tier(etcd.endpoints, masters=0, places=2, TTL=str(ttl))
        masters = [await master(tier, i, tokens) for i in range(2)]
        payload = tmp_path / "payload.json"
        report(payload, 0)
        agents = [await tier.agent("a", KONTROL_PAYLOAD=str(payload)), await tier.agent("b")]
        first = await tier.hub.settled("ab")
        async with witnessed(etcd, tier) as witness:
            before = await witness.pods()
            await fill(witness.store)
            report(payload, 1)
            await agents[0].logged("NotWritten: pod a is alive: its lease was refreshed")
            await witness.no_pod_drops(3 * ttl)
            assert await witness.pods() == before
            assert not agents[1].find("NotWritten|keepalive failed")
            for asked in masters:
                found = (await status(asked))["problems"][0]
                assert found["what"].startswith("etcd is full (alarm NOSPACE). Pods that report")
                refused = await asked.ask("POST", "/v1/runs", token=WRITER)
                assert refused.status == 503
                assert "etcd is full: " in json.loads(refused.body)["error"]["message"]
                assert "`etcdctl alarm disarm`" in json.loads(refused.body)["error"]["message"]
            for i, daemon in enumerate(tier.masters):
                assert not daemon.find("term .* ended"), i
            # As the status has it, but that what fills this etcd goes first.
            await etcd.ctl("del", "/filling")
            found = (await status(masters[0]))["problems"][0]
            commands = [word for word in found["fix"].split("`") if word.startswith("etcdctl ")]
            for command in commands[:3]:
                await etcd.ctl(*command.split()[1:])
            assert [command.split()[1] for command in commands[:3]] == [
                "compact",
                "defrag",
                "alarm",
            ]

            def changed(run: Run) -> bool:
                return any(pod["id"] == "a" and pod["payload"] == 1 for pod in run.pods)

            await tier.hub.settled("ab", changed)
            assert tier.hub.since(first)["changed"] == {"a"}
            assert tier.hub.since(first)["lost"] == set()
            assert witness.dropped == []
            after = await witness.pods()
            assert {name: pod["seq"] for name, pod in after.items()} == {
                name: pod["seq"] for name, pod in before.items()
            }
            assert (await status(masters[0]))["etcd"]["alarms"] == []


@pytest.mark.parametrize("ttl", [6.0, 10.0, 25.0])
@pytest.mark.timeout(400)
async def test_a_slow_etcd_drops_no_pod_and_gets_the_change(ttl: float, tmp_path: Path) -> None:
    async with (
        EtcdCluster() as etcd,
        Lab() as lab,
        Proxy(etcd.endpoints[0]) as proxy,
    ):
        tier = await lab.tier([proxy.endpoint], masters=1, TTL=str(ttl), FOVER="15")
        payloads = [tmp_path / f"{name}.json" for name in "abc"]
        for name, path in zip("abc", payloads, strict=True):
            report(path, 0)
            await tier.agent(name, KONTROL_PAYLOAD=str(path))
        await tier.hub.settled("abc")
        async with witnessed(etcd, tier) as witness:
            before = await witness.pods()
            proxy.delay = 1.75  # a round trip of 3.5 s
            await witness.no_pod_drops(2 * ttl)
            mark = len(witness.events)
            for path in payloads:
                report(path, 1)
            written = await asyncio.gather(
                *(witness.written(name, mark, within=60) for name in "abc")
            )
            assert [pod["payload"] for pod in written] == [1, 1, 1]
            await witness.no_pod_drops(2 * ttl)
            after = await witness.pods()
            assert {name: pod["created"] for name, pod in after.items()} == {
                name: pod["created"] for name, pod in before.items()
            }
            proxy.delay = 0


async def restart(tier: Tier, i: int, tokens: Path, ttl: float) -> Operator:
    """Restart a master with another TTL."""
    assert await tier.masters[i].end() == 0
    port = str(free_port())
    daemon: Daemon = await tier.master(
        i, KONTROL_TTL=str(ttl), KONTROL_HTTP_PORT=port, KONTROL_TOKEN_FILE=str(tokens)
    )
    return await rest(daemon, tier.addresses[i])


@pytest.mark.parametrize(("before", "after"), [(4.0, 12.0), (12.0, 4.0)])
@pytest.mark.timeout(400)
async def test_a_rolling_restart_with_another_ttl_drops_no_pod(
    before: float, after: float, tokens: Path
) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=2, TTL=str(before))
        for name in "abcd":
            await tier.agent(name)
        run = await tier.hub.settled("abcd")
        numbers = run.seqs
        async with witnessed(etcd, tier) as witness:
            leader = await tier.leader(run.term)
            asked = await restart(tier, 1 - leader, tokens, after)
            # Its candidacy is in etcd before it says so, and so is what its status shows of it.
            await tier.masters[1 - leader].logged("candidate, behind")
            shown = await status(asked)
            values = f"m{leader} has {before:g} s, m{1 - leader} has {after:g} s"
            told = f"the masters have different KONTROL_TTL: {values}; the leader's rules"
            assert told in [problem["what"] for problem in shown["problems"]]
            assert shown["ttl"] == before
            ran = len(tier.hub.runs)
            mark = len(witness.events)
            await restart(tier, leader, tokens, after)
            # Each gets a lease of the new TTL, under its number.
            moved = await asyncio.gather(
                *(witness.written(name, mark, within=before + DEADLINE) for name in "abcd")
            )
            assert {pod["id"]: pod["seq"] for pod in moved} == numbers
            await witness.no_pod_drops(max(before, after) + 1)
            assert len(tier.hub.runs) == ran
            killed = asyncio.get_running_loop().time()
            await tier.agents["d"].kill()
            assert await witness.dropping(after + 10) - killed <= after + 2
            await tier.hub.settled("abc")
            assert len(tier.hub.runs) == ran + 1
