"""The daemon: what the settings ask for, wired together, run, and ended in order.

One `TaskGroup` owns every task. On the first SIGTERM or SIGINT the agent says farewell while the
masters still listen, then the master ends its callback, books it and resigns, then the endpoint
closes. A second signal does not wait: everything is cancelled at once, and what is then left of
the callback is killed by its guard.

Exit statuses: 0 ended by a signal, or after `kontrol leave` on a mere agent; 1 internal error;
2 configuration (the address is taken, a certificate cannot be read, ...).
"""

import asyncio
import logging
import os
import random
import resource
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kontrol import __version__
from kontrol.agent import control
from kontrol.agent.addresses import Resolver
from kontrol.agent.agent import Agent, AgentSettings
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Keepalive, key_of
from kontrol.errors import leaves
from kontrol.rpc.client import Client
from kontrol.rpc.errors import BindError, Refused
from kontrol.rpc.methods import Call, Method
from kontrol.rpc.server import Server
from kontrol.settings import SECRETS, Settings

if TYPE_CHECKING:  # an agent does not load what only masters need
    from kontrol.master.master import Master
    from kontrol.store.protocol import Store

log = logging.getLogger(__name__)

_ZONE = "topology.kubernetes.io/zone"


class Hopeless(Exception):
    """The daemon cannot do what it was configured to; the message says what to change."""


def run(settings: Settings, environ: Mapping[str, str] | None = None) -> int:
    """Run until a signal; returns the exit status."""
    daemon = Daemon(settings, os.environ if environ is None else environ)
    for level, text in settings.notes:
        log.log(level, text)
    _raise_limits()
    status = 0
    try:
        asyncio.run(daemon.run())
    except* (Hopeless, BindError) as group:
        for error in leaves(group):
            log.error("%s", error)
        status = 2
    return status


class Daemon:
    """An agent, a master, or both."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run until a signal, `kontrol leave` on a mere agent, or an error."""
        if self._settings.security.keys is not None:
            raise Hopeless(
                "KONTROL_KEYS is set, and this version cannot encrypt or authenticate port "
                f"{self._settings.port}: unset it only if the network itself can be trusted"
            )
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal, number)
        try:
            async with AsyncExitStack() as stack:
                await self._run(stack)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            log.warning("ended at once, as asked by a second signal")
        log.info("ended")

    def _signal(self, number: int) -> None:
        if self._stop.is_set() and self._task is not None:
            self._task.cancel()
        log.info("%s: ending", signal.Signals(number).name)
        self._stop.set()

    async def _run(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as group:
            master: asyncio.Task[None] | None = None
            serving: asyncio.Task[None] | None = None
            if settings.master:
                kept = await self._master(stack)
                server = Server(_methods(kept))
                port = await server.bind(settings.bind, settings.port)
                serving = group.create_task(server.serve())
                master = group.create_task(kept.run())
                log.info(
                    "kontrol %s: master on port %d, of %s/%s, with etcd at %s",
                    __version__,
                    port,
                    settings.pod.namespace,
                    settings.pod.app,
                    ", ".join(settings.etcd.endpoints) or "its own",
                )
            if settings.agent:
                await self._report(group)
            else:
                await self._stop.wait()
            for task in (master, serving):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])

    async def _report(self, group: asyncio.TaskGroup) -> None:
        """Report until the end is asked for, and the farewells are said."""
        agent = Agent(agent_settings(self._settings), connect=Client, resolve=Resolver())
        log.info(
            "kontrol %s: pod %s (key %s) reports to %s",
            __version__,
            agent.status.id,
            agent.status.key,
            ", ".join(str(tier) for tier in self._settings.tiers),
        )
        path = self._settings.control or control.default_path(self._settings.port, self._environ)
        listening = group.create_task(control.serve(path, agent.leave))
        reporting = group.create_task(agent.run())
        stopping = group.create_task(self._stop.wait())
        await asyncio.wait([reporting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            for tier, reason in (await agent.leave()).items():
                if reason is not None:
                    log.warning("%s was not told that we left: %s", tier, reason)
        await reporting
        # A process that said farewell sends nothing more, but stays until it is stopped: its
        # supervisor would start it again, and undo the farewell.
        await self._stop.wait()
        listening.cancel()

    async def _master(self, stack: AsyncExitStack) -> "Master":
        from automaton.processes import become_subreaper
        from kontrol.master.callback import Callback, CallbackError
        from kontrol.master.master import Master, MasterConfig
        from kontrol.process.clock import boottime
        from kontrol.process.guard import Guard

        settings = self._settings
        become_subreaper()  # so that what a dying guard leaves falls to us, and is killed
        children: set[int] = set()
        store = await self._store(stack, children)
        callback = None
        if settings.callback is None:
            log.warning("KONTROL_CALLBACK is not set: the ensemble is kept, and nothing is run")
        else:
            guard = Guard(known=lambda: children | ({guard.pid} if guard.pid else set()))
            await stack.enter_async_context(guard)
            try:
                callback = Callback(
                    settings.callback.command,
                    shell=settings.callback.shell,
                    timeout=settings.callback.timeout,
                    environ=self._environ,
                    secrets=SECRETS,
                    guard=guard,
                    on_stderr=logging.getLogger("kontrol.callback").info,
                )
            except CallbackError as error:
                raise Hopeless(f"KONTROL_CALLBACK: {error}") from None
        return Master(
            store,
            MasterConfig(
                namespace=settings.pod.namespace,
                app=settings.pod.app,
                id=settings.pod.id,
                address=settings.pod.ip,
                ttl=settings.ttl,
                fover=settings.fover,
                damper=settings.damper,
                damper_max=settings.damper_max,
                brake=settings.brake,
            ),
            runner=callback,
            boot_clock=boottime,
            wall=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"),
            rng=random.Random(),  # noqa: S311 - jitter
        )

    async def _store(self, stack: AsyncExitStack, children: set[int]) -> "Store":
        from kontrol.store.etcd import EtcdConfig, EtcdStore

        etcd = self._settings.etcd
        endpoints = etcd.endpoints
        if etcd.embedded:
            from kontrol.store.embedded import EmbeddedError, embedded_etcd

            try:
                endpoints = await stack.enter_async_context(
                    embedded_etcd(self._settings.data, children=children)
                )
            except EmbeddedError as error:
                raise Hopeless(str(error)) from None
        try:
            config = EtcdConfig(
                endpoints=endpoints,
                tls=etcd.tls,
                ca=etcd.ca,
                cert=etcd.cert,
                key=etcd.key,
                user=etcd.user or "",
                password_file=etcd.password_file,
            )
            return await stack.enter_async_context(EtcdStore(config))
        except (OSError, ValueError) as error:
            raise Hopeless(f"KONTROL_ETCD: {error}") from None


def agent_settings(settings: Settings) -> AgentSettings:
    """Return what the agent is told: the pod's identity, and facts of its node where known."""
    pod, node = settings.pod, settings.node
    facts = {
        "port": settings.port if settings.master else None,
        "eip": node.eip,
        "node": node.host,
        "zone": node.labels.get(_ZONE),
        "version": __version__,
    }
    more: dict[str, JSON] = {name: fact for name, fact in facts.items() if fact is not None}
    identity = Keepalive(
        app=pod.app,
        id=pod.id,
        ip=pod.ip,
        key=pod.key or key_of(pod.ip),
        role=pod.role,
        named=pod.key is not None,
        more=more,
    )
    return AgentSettings(identity, settings.tiers, settings.ttl, pod.payload)


def _methods(master: "Master") -> dict[str, Method]:
    """Return what the ZeroRPC endpoint of a master answers."""

    async def ping(_call: Call, raw: object) -> object:
        """Take a keepalive, a JSON text; returns seq, ttl and leader once etcd has it."""
        if not isinstance(raw, str | bytes):
            raise Refused("InvalidRecord", f"record is {type(raw).__name__}; expected JSON text")
        return await master.ping(raw)

    async def pods(_call: Call) -> object:
        """Return the ordered pods, without payloads: those are not for strangers."""
        shown = ("app", "id", "ip", "key", "role", "seq", "nonce")
        return [{name: pod[name] for name in shown} for pod in master.pods()]

    async def leader(_call: Call) -> object:
        """Return the leader's id, address and term, or null."""
        return master.leader_record

    async def state(_call: Call) -> object:
        """Refuse: the state is not for strangers."""
        raise Refused("Forbidden", "the state is told to holders of keys only: set KONTROL_KEYS")

    return {"ping": ping, "pods": pods, "leader": leader, "state": state}


def _raise_limits() -> None:
    """Take as many file descriptors as the system lets us: a pod is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20), hard))
