"""A pod that is cut off is told before masters treat it as lost: real processes, a real etcd."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.daemon import exited
from tests.e2e.lab import MASTER, Lab, Tier
from tests.support.etcd import EtcdCluster, free_port
from tests.support.proxy import Proxy

from kontrol.httpclient import request

# Appends what it is run for, when it begins (of the clock of the callback's `started`), and when it
# ends, which is after $1 seconds.
SCRIPT = """
import json, os, sys, time
def say(what):
    line = {"at": time.monotonic(), "what": what, "pid": os.getpid()}
    line |= {name: os.environ.get(name) for name in ("HOOK", "REASON", "SILENT_SECONDS", "TOKEN")}
    with open(os.environ["E2E_HOOKS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\\n")
say("begin")
time.sleep(float(sys.argv[1]))
say("end")
"""
# Ignores SIGTERM, and leaves a process in a session of its own that does, too.
STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
"""


class Hooks:
    """What the hooks of one pod have said."""

    def __init__(self, folder: Path, script: str = SCRIPT) -> None:
        self.script = folder / "hook.py"
        self.script.write_text(script, encoding="utf-8")
        self.path = folder / "hooks"

    def environ(self, seconds: float) -> dict[str, str]:
        line = f"{sys.executable} -IS {self.script} {seconds}"
        hooks = {"KONTROL_ON_SILENT": line, "KONTROL_ON_HEARD": line}
        return {**hooks, "E2E_HOOKS": str(self.path)}

    @property
    def said(self) -> list[dict[str, str | float]]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def order(self) -> list[str]:
        return [f"{line['HOOK']} {line['what']}" for line in self.said]


@asynccontextmanager
async def behind_a_proxy(lab: Lab, tier: Tier, hooks: Hooks, **more: str) -> AsyncIterator[Proxy]:
    """An agent "a" whose only way to its master leads over a proxy."""
    async with Proxy(f"{tier.addresses[0]}:{tier.port}") as proxy:
        at = json.dumps({MASTER: proxy.endpoint})
        await tier.agent("a", KONTROL_ANNOTATIONS=at, KONTROL_TTL="5", **more)
        yield proxy


async def test_the_silent_hook_is_done_before_the_loss_is_told() -> None:
    port = free_port()
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="5", DAMPER="0", BRAKE="0")
        hooks = Hooks(lab.folder)
        more = {**hooks.environ(0.3), "KONTROL_HTTP_PORT": str(port), "KONTROL_BIND": "127.0.0.1"}
        async with behind_a_proxy(lab, tier, hooks, **more) as proxy:
            await tier.agent("b")
            before = await tier.hub.settled("ab")
            agent = tier.agents["a"]
            await agent.logged(r"hook heard: done")
            proxy.dead()
            run = await tier.hub.started(after=before)
            assert list(run.changes("lost")) == ["a"]
            assert hooks.order == ["heard begin", "heard end", "silent begin", "silent end"]
            silent = hooks.said[2:]
            assert all(float(line["at"]) < run.started for line in silent)
            assert silent[0]["REASON"] == "lost"
            assert 3.3 < float(silent[0]["SILENT_SECONDS"]) < 4.5
            answer = await request(f"http://127.0.0.1:{port}/readyz")
            [check] = [c for c in json.loads(answer.body)["checks"] if c["name"] == "silence"]
            assert check["ok"] is False
            assert "hook silent done" in check["detail"]
            metrics = (await request(f"http://127.0.0.1:{port}/metrics")).body.decode()
            assert "\nkontrol_agent_silent 1\n" in metrics
            assert '\nkontrol_agent_hook_runs_total{hook="silent"} 1\n' in metrics
            proxy.heal()
            mark = agent.mark
            await tier.hub.settled("ab")
            await agent.logged(r"hook heard: done", mark)
            assert hooks.order[4:] == ["heard begin", "heard end"]
            assert hooks.said[-1]["REASON"] == "again"
            assert await agent.end() == 0
            await tier.hub.settled("b")
            assert len(hooks.order) == 6


async def test_a_hook_that_hangs_is_gone_before_the_loss_is_told_and_is_tried_again() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="5", DAMPER="0", BRAKE="0")
        hooks = Hooks(lab.folder, STUBBORN + SCRIPT)
        more = {**hooks.environ(1000), "KONTROL_ON_HEARD": ""}
        async with behind_a_proxy(lab, tier, hooks, **more) as proxy:
            await tier.agent("b")
            before = await tier.hub.settled("ab")
            proxy.dead()
            agent = tier.agents["a"]
            await agent.logged(r"hook silent failed: timed out after 0.75 s; it is tried again")
            gone = hooks.said[:2]
            run = await tier.hub.started(after=before)
            assert [line["what"] for line in gone] == ["begin", "begin"]
            alive = lab.processes()
            assert not [line["pid"] for line in gone if line["pid"] in alive]
            assert all(float(line["at"]) < run.started for line in gone)
            while len(hooks.said) < 4:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
            proxy.heal()
            await agent.logged("acknowledged again after")


async def test_a_pod_that_starts_cut_off_is_silent_two_thirds_of_the_ttl_later() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="5", DAMPER="0", BRAKE="0")
        hooks = Hooks(lab.folder)
        async with Proxy(f"{tier.addresses[0]}:{tier.port}") as proxy:
            proxy.dead()
            at = json.dumps({MASTER: proxy.endpoint})
            environ = hooks.environ(0)
            agent = await tier.agent("a", KONTROL_ANNOTATIONS=at, KONTROL_TTL="5", **environ)
            await agent.logged("hook silent: done")
            assert [line["REASON"] for line in hooks.said] == ["start", "start"]
            assert 3.3 < float(hooks.said[0]["SILENT_SECONDS"]) < 4.5
            proxy.heal()
            await agent.logged("hook heard: done")
            await tier.hub.settled("a")
            assert hooks.order[2:] == ["heard begin", "heard end"]


async def test_an_agent_that_was_stopped_runs_its_silent_hook_first_when_it_goes_on() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="5", DAMPER="0", BRAKE="0")
        hooks = Hooks(lab.folder)
        agent = await tier.agent("a", KONTROL_TTL="5", **hooks.environ(0.1))
        await tier.agent("b")
        before = await tier.hub.settled("ab")
        await agent.logged("hook heard: done")
        agent.signal(signal.SIGSTOP)
        run = await tier.hub.started(after=before)
        assert list(run.changes("lost")) == ["a"]
        assert hooks.order == ["heard begin", "heard end"]  # it cannot run one
        mark = agent.mark
        agent.signal(signal.SIGCONT)
        await agent.logged("hook heard: done", mark)
        await tier.hub.settled("ab")
        assert hooks.order[2:] == ["silent begin", "silent end", "heard begin", "heard end"]
        assert float(hooks.said[2]["SILENT_SECONDS"]) > 5


async def test_nothing_of_a_hook_is_left_when_its_agent_is_killed() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="5", DAMPER="0", BRAKE="0")
        hooks = Hooks(lab.folder, STUBBORN + SCRIPT)
        more = {**hooks.environ(1000), "KONTROL_ON_SILENT": ""}
        agent = await tier.agent("a", **more)
        await tier.hub.settled("a")
        await agent.logged("reporting to")
        while len(hooks.said) < 2:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        await agent.kill()
        for line in hooks.said:
            assert await exited(int(line["pid"]), 30)
