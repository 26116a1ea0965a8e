"""Real daemons with keys: unknown clients change and see nothing; keys are replaced under load."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.e2e.daemon import Daemon
from tests.e2e.feed import NONCE, keepalive
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Lab, Tier
from tests.rpc.keyed import cluster, part
from tests.rpc.support import until
from tests.support.etcd import EtcdCluster

from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError, RpcError
from kontrol.rpc.security.keyfolder import NEEDS, rotate
from kontrol.rpc.security.keys import KINDS, Keyring, Kind

PODS = 20  # fed by the test, each to both masters
RATE = 5  # pings per second and connection: 200 in all
SECRET = "what only this pod's friends should know"


async def pod(tier: Tier, ident: str, **settings: str) -> tuple[str, Daemon]:
    """Start an agent that listens on an address of its own; returns both."""
    address = tier.lab.address()
    environ = tier.environ("agent", ident, address, {"KONTROL_BIND": address, **settings})
    return address, await tier.lab.start(f"{tier.app}/{ident}", environ)


def payload(folder: Path) -> str:
    path = folder / "payload.json"
    path.write_text(json.dumps({"secret": SECRET}), encoding="utf-8")
    return str(path)


async def tried(client: Client, tier: Tier, token: Path) -> list[str]:
    """Try everything that there is to call; returns what came of each."""
    record = {"app": tier.app, "id": "forged", "ip": "10.66.6.6", "role": "test", "nonce": NONCE}
    command = json.dumps({"cmd": f"touch {token}"})
    calls: tuple[tuple[object, ...], ...] = (
        ("ping", json.dumps({**record, "key": "aHhuh", "payload": "forged"})),
        ("pods",),
        ("state",),
        ("leader",),
        ("invoke", command),
        ("exec", command),
        ("_zerorpc_inspect",),
    )
    found = []
    async with client:
        for name, *arguments in calls:
            try:
                found.append(repr(await client.call(str(name), *arguments, timeout=DEADLINE)))
            except RpcError as error:
                found.append(f"{type(error).__name__} {error}")
    return found


async def test_unknown_clients_do_and_see_nothing_where_keys_are_used(tmp_path: Path) -> None:
    keys, others = cluster(tmp_path / "keys"), cluster(tmp_path / "others")
    both = (*NEEDS["master"], "agent.secret")
    folders = {
        "pod": part(tmp_path / "pod", keys, *NEEDS["agent"]),
        "master": part(tmp_path / "master", keys, *both),
    }
    token = tmp_path / "token"
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, KEYS=str(folders["master"]))
        more = {"KONTROL_PAYLOAD": payload(tmp_path)}
        await tier.master(0, mode="master,agent", **more)
        address, _ = await pod(tier, "a", KONTROL_KEYS=str(folders["pod"]), **more)
        before = await tier.hub.settled({"m0", "a"})

        mistaken = Keyring.load(others)
        forged = part(tmp_path / "forged", keys, *NEEDS["agent"])
        (forged / "agent.secret").write_bytes((others / "agent.secret").read_bytes())
        unknown, thief = Keyring.load(forged), Keyring.load(folders["pod"])

        def unknown_clients(host: str, to: Kind) -> list[Client]:
            port = tier.port
            own: tuple[Kind, ...] = (to,)
            return [
                Client(host, port),
                Client(host, port, keys=mistaken, as_="operator", to=own),
                *([Client(host, port, keys=unknown)] if to == "master" else []),
            ]

        for host, kind in ((tier.addresses[0], "master"), (address, "agent")):
            for client in unknown_clients(host, kind):  # type: ignore[arg-type]  # literals
                found = await tried(client, tier, token)
                assert all(one.startswith("LostRemote") for one in found), found

        # An agent's key is for keepalives, and for nothing else; not even for other pods' payloads.
        stolen = Client(tier.addresses[0], tier.port, keys=thief)
        found = await tried(stolen, tier, token)
        assert SECRET not in str(found)
        assert [one.startswith("RemoteError Forbidden") for one in found] == [
            *(False, False, True, False),
            *(True, True, False),
        ], found
        assert not token.exists()

        friend = Client(tier.addresses[0], tier.port, keys=Keyring.load(keys), as_="operator")
        async with friend:
            assert SECRET in str(await friend.call("pods", timeout=DEADLINE))
            with pytest.raises(RemoteError, match=r"Forbidden: ping is for holders of agent keys"):
                await friend.call("ping", "{}", timeout=DEADLINE)
        # What an agent's key can do was done: it forged a record.
        forgery = await tier.hub.settled({"m0", "a", "forged"})
        assert forgery.number > before.number


async def test_unknown_clients_see_no_content_where_no_keys_are_used(tmp_path: Path) -> None:
    token = tmp_path / "token"
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        await tier.master(0, mode="master,agent", KONTROL_PAYLOAD=payload(tmp_path))
        run = await tier.hub.settled({"m0"})
        # By design, every client that reaches the port without keys may report a pod: here, one's
        # own name again from elsewhere is refused, and no content is sent.
        found = await tried(Client(tier.addresses[0], tier.port), tier, token)
        assert SECRET not in str(found)
        assert found[2].startswith("RemoteError Forbidden")
        assert all("KONTROL_KEYS" in found[i] for i in (2, 4, 5)), found
        assert "'payload'" not in found[1]
        assert not token.exists()
        later = await tier.hub.settled({"m0", "forged"})
        assert later.number > run.number
        assert later.seqs["m0"] == run.seqs["m0"]


@contextlib.asynccontextmanager
async def feeding(tier: Tier, keys: Callable[[], Keyring]) -> AsyncIterator[list[int]]:
    """Report pods to both masters, as agents do; gives the count of pings of each connection."""
    counts = [0] * (PODS * len(tier.addresses))

    async def feed(at: int) -> None:
        ident, address = f"fed{at % PODS}", tier.addresses[at // PODS]
        keyring = keys()
        while True:
            with contextlib.suppress(RpcError, TimeoutError):
                async with Client(address, tier.port, keys=keyring) as client:
                    while True:
                        async with asyncio.timeout(1):
                            await client.call("ping", records[ident], timeout=1)
                        counts[at] += 1
                        await asyncio.sleep(1 / RATE)
            await asyncio.sleep(0.05)

    records = {f"fed{i}": record(tier, i) for i in range(PODS)}
    tasks = [asyncio.create_task(feed(at)) for at in range(len(counts))]
    try:
        yield counts
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_keys_are_replaced_under_load_and_no_pod_is_lost(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "keys")
    folders: dict[Path, Kind] = {tmp_path / f"m{i}": "master" for i in range(2)}
    folders |= {tmp_path / f"a{i}": "agent" for i in range(3)}

    def hand_out() -> None:
        for folder in random.sample(list(folders), len(folders)):
            part(folder, whole, *NEEDS[folders[folder]])

    hand_out()
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=2)
        masters = [await tier.master(i, KONTROL_KEYS=str(tmp_path / f"m{i}")) for i in range(2)]
        real = {f"a{i}" for i in range(3)}
        for ident in real:
            await pod(tier, ident, KONTROL_KEYS=str(tmp_path / ident))
        async with feeding(tier, lambda: Keyring.load(tmp_path / "a0")) as counts:
            run = await tier.hub.settled(real | {f"fed{i}" for i in range(PODS)})
            for kind in KINDS:
                for number in (1, 2, 3):
                    assert rotate(whole, kind, "2026-11-23").number == number
                    marks = [master.mark for master in masters]
                    hand_out()
                    for master, mark in zip(masters, marks, strict=True):
                        if (kind, number) not in {("agent", 2), ("operator", 2)}:
                            await master.logged("KONTROL_KEYS: read again: own .*; accepted ", mark)
                    await each(counts, RATE)
            await each(counts, 6 * RATE)  # for longer than a silent pod would be kept
            assert tier.hub.runs[-1] is run, tier.hub.story()
            for master in masters:
                assert master.find("listening with the key")
        assert sum(counts) > 1000


async def each(counts: list[int], more: int) -> None:
    """Wait until each connection has had that many pings more."""
    seen = list(counts)
    await until(
        lambda: all(now >= then + more for now, then in zip(counts, seen, strict=True)), DEADLINE
    )


def record(tier: Tier, i: int) -> str:
    """Return the keepalive of a pod that the test feeds."""
    return keepalive(tier.app, f"fed{i}", f"10.7.7.{i}", nonce=NONCE, n=1)
