"""Ten thousand pods: one callback gets them all, whatever the size of an environment."""

import asyncio
import json
import logging
import time

from tests.e2e.feed import Feeder, feeding
from tests.e2e.lab import Lab
from tests.support.etcd import EtcdCluster

from kontrol.rpc.errors import RemoteError

PODS = 10_000
AT_ONCE = 200  # calls under way

log = logging.getLogger(__name__)


async def joined(feeder: Feeder, name: str) -> bool:
    """Report a pod; False if the master has too much to do, as an agent would be told."""
    try:
        await feeder.ping(name)
    except RemoteError as refusal:
        if refusal.name == "Unavailable":
            return False
        raise
    return True


async def test_ten_thousand_pods_in_one_callback() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="3600", FOVER="15", DAMPER="2", DAMPER_MAX="600")
        names = iter([f"pod{i:05}" for i in range(PODS)])
        async with feeding(tier) as feeder:

            async def feed() -> None:
                for name in names:
                    while not await joined(feeder, name):
                        pass

            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(feed())
            log.info("%d pods joined in %.1f s", PODS, time.monotonic() - began)
            everyone = {f"pod{i:05}" for i in range(PODS)}
            run = await tier.hub.settled(everyone)
            assert run.number == 1
            assert run.changes("joined") == everyone
            assert sorted(run.seqs.values()) == list(range(PODS))
            # Too large for the environment; the hub has seen files and standard input agree.
            assert not {"PODS", "CHANGES"} & run.env.keys()
            pods = run.files["PODS_FILE"]
            assert pods is not None
            assert len(json.loads(pods)) == PODS

            await feeder.ping("pod07777", payload={"state": "READY"})
            changed = await tier.hub.settled(everyone, lambda later: later.number == 2)
            assert changed.changes("changed") == {"pod07777"}
            assert json.loads(changed.env["CHANGES"])["joined"] == []
            assert changed.seqs == run.seqs
        assert await tier.masters[0].end() == 0
