"""The lifecycle of one process: its parts, and how it ends.

One `TaskGroup` owns every task. On the first SIGTERM, SIGINT, SIGHUP or SIGQUIT the agent
deregisters while the masters still listen, then the master ends its callback, records the run and
resigns, then the endpoints close, and with them the commands that were run here for others. On a
second signal everything is cancelled immediately, and what is left of a command is killed by its
guard.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from kontrol import __version__
from kontrol.agent import control
from kontrol.agent.agent import Agent
from kontrol.daemon.notify import Notifier
from kontrol.daemon.process import Children, StartupError, check_port
from kontrol.daemon.wire_agent import (
    command_methods,
    make_agent,
    make_published,
    make_silence_hooks,
    takes_commands,
)
from kontrol.rpc.security.keys import Keyring, KeysError
from kontrol.settings import Settings
from kontrol.settings import variables as v
from kontrol.settings.private import make_token
from kontrol_common.processes import SAME_SIGNAL, STRAY_SIGNALS, handled_signals

if TYPE_CHECKING:  # an agent does not load what only masters need, or agents that can be called
    from kontrol.master.master import Master
    from kontrol.master.operator.view import View
    from kontrol.rpc.methods import Method
    from kontrol.rpc.security.keys import ServerKind
    from kontrol.rpc.server import Server, Shortcut

log = logging.getLogger(__name__)

_ANSWERABLE = 2.0  # seconds for etcd to answer a master that starts

Serve = Callable[[Coroutine[Any, Any, Any]], None]
"""Runs a service until the daemon ends."""


class Daemon:
    """An agent, a master, or both."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], notifier: Notifier) -> None:
        self._settings = settings
        self._environ = environ
        self._notifier = notifier
        self._children = Children()
        self._stop = asyncio.Event()
        self._signalled: float | None = None  # loop time
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run until a signal. Raises `StartupError` and `BindError`, in groups."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in handled_signals():
            loop.add_signal_handler(number, self._signal, number)
        try:
            async with AsyncExitStack() as stack:
                await self._run(stack)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            log.warning("ended immediately by a second signal")
        log.info("ended")

    def _signal(self, number: signal.Signals) -> None:
        if number in STRAY_SIGNALS:
            log.info("%s: ignored", number.name)
            return
        log.info("%s: ending", number.name)
        now = asyncio.get_running_loop().time()
        if self._signalled is None:
            self._signalled = now
            self._notifier.ending()
            self._stop.set()
        # SIGHUP comes with other signals when a session ends: it is not a request to hurry.
        elif number != signal.SIGHUP and now - self._signalled >= SAME_SIGNAL and self._task:
            self._task.cancel()

    async def _run(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        keys = self._keys()
        async with asyncio.TaskGroup() as group:
            services: list[asyncio.Task[Any]] = []

            def serve(work: Coroutine[Any, Any, Any]) -> None:
                services.append(group.create_task(work))

            emit = self._statsd(serve)
            hooks = await make_silence_hooks(settings, self._environ, stack, self._children)
            published = await make_published(settings, self._environ, stack, self._children)
            agent = make_agent(settings, keys, emit, hooks, published) if settings.agent else None
            master: Master | None = None
            view: View | None = None
            if settings.master:
                from kontrol.daemon.wire_master import make_master

                master, view = await make_master(
                    settings, self._environ, stack=stack, children=self._children, emit=emit
                )
            server = await self._server(stack, keys, master)
            await self._rest(stack, serve, agent, master, view)
            waits = {"etcd": master.mirror.cache.complete} if master is not None else {}
            waits |= agent.acknowledged if agent is not None else {}
            serve(self._notifier.run(waits))
            # Stopped first, so started last.
            listening = asyncio.Event()
            if server is not None:
                serve(self._listen(server, master, listening))
            else:
                listening.set()
            if master is not None:
                serve(master.run())
            if agent is None:
                await self._stop.wait()
            else:
                await self._report(group, agent, listening)
            for task in reversed(services):
                task.cancel()
                await asyncio.wait([task])

    def _keys(self) -> Keyring | None:
        folder = self._settings[v.KEYS]
        if folder is None:
            return None
        try:
            keys = Keyring.load(folder)
        except KeysError as error:
            raise StartupError(f"KONTROL_KEYS: {error}") from None
        log.info("keys: %s", keys.summary())
        return keys

    async def _server(
        self, stack: AsyncExitStack, keys: Keyring | None, master: "Master | None"
    ) -> "Server | None":
        """Return the ZeroRPC endpoint, not yet bound; None if there is nothing to call here."""
        settings = self._settings
        methods: dict[str, Method] = {}
        shortcuts: dict[str, Shortcut] = {}
        if master is not None:
            from kontrol.daemon.wire_master import master_methods

            methods |= master_methods(master)
            shortcuts["ping"] = master.registry.refresh_known
        if settings.agent and (master is not None or takes_commands(settings)):
            methods |= await command_methods(settings, self._environ, stack, self._children)
        if not methods:
            return None
        from kontrol.rpc.server import Server

        try:
            own: ServerKind = "master" if settings.master else "agent"
            server = Server(methods, keys=keys, own=own, shortcuts=shortcuts)
        except KeysError as error:
            raise StartupError(f"KONTROL_KEYS: {error}") from None
        check_port(settings[v.BIND], settings[v.PORT])  # before anything starts that others see
        return server

    async def _listen(
        self, server: "Server", master: "Master | None", listening: asyncio.Event
    ) -> None:
        """Serve the endpoint until cancelled: a master's once it can answer, or after 2 s.

        Until it listens, agents go to another master immediately. If etcd does not answer in time,
        it listens nevertheless, to tell them. Raises `BindError`.
        """
        settings = self._settings
        try:
            if master is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ANSWERABLE):
                        await master.answerable()
            port = await server.bind(settings[v.BIND], settings[v.PORT])
            if master is None:
                log.info("accepting commands on port %d", port)
            else:
                addresses = ", ".join(settings.etcd.addresses)
                log.info(
                    "kontrol %s: master on port %d, of %s/%s, with %s",
                    __version__,
                    port,
                    settings[v.NAMESPACE],
                    settings.app,
                    f"etcd at {addresses}" if addresses else "its own etcd",
                )
            listening.set()
            await server.serve()
        finally:
            server.close()

    async def _rest(
        self,
        stack: AsyncExitStack,
        serve: Serve,
        agent: Agent | None,
        master: "Master | None",
        view: "View | None",
    ) -> None:
        settings = self._settings
        if not settings[v.HTTP_PORT]:
            return
        from kontrol.daemon.wire_rest import make_web

        web = make_web(settings, agent, master, view)
        port = await web.bind(settings[v.BIND], settings[v.HTTP_PORT])
        log.info("REST on port %d", port)
        if master is not None and settings[v.TOKEN_FILE] is None:
            try:
                path, token = make_token(self._environ, settings[v.BIND], port)
            except OSError as error:
                log.warning(
                    "no token for commands on this host (set KONTROL_TOKEN_FILE): %s", error
                )
            else:
                stack.callback(path.unlink, missing_ok=True)
                web.accept(token)
        serve(web.serve())

    def _statsd(self, serve: Serve) -> Callable[[str], None]:
        """Return a function that counts an event by name: for statsd, if that is configured."""
        where = self._settings[v.STATSD]
        if where is None:
            return lambda _name: None
        from kontrol.daemon.wire_rest import make_statsd

        statsd = make_statsd(where)
        serve(statsd.run())
        return statsd.count

    async def _report(
        self, group: asyncio.TaskGroup, agent: Agent, listening: asyncio.Event
    ) -> None:
        """Report until the process is to end, and the pod is deregistered.

        Reports begin when this process is `listening`: the agent's master may be in it.
        """
        log.info(
            "kontrol %s: pod %s (key %s) reports to %s",
            __version__,
            agent.status.id,
            agent.status.key,
            ", ".join(str(tier) for tier in self._settings.tiers),
        )
        path = self._settings[v.CONTROL] or control.default_path(
            self._settings[v.PORT], self._environ
        )
        tiers = tuple(str(tier) for tier in self._settings.tiers)
        who = control.Who(agent.status.id, agent.status.key, tiers)
        controlled = group.create_task(control.serve(path, who, agent.leave))
        stopping = group.create_task(self._stop.wait())
        ready = group.create_task(listening.wait())
        await asyncio.wait([stopping, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        reporting = group.create_task(agent.run())
        await asyncio.wait([reporting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            for tier, reason in (await agent.leave()).items():
                if reason is not None:
                    log.warning("not deregistered from %s: %s", tier, reason)
        await reporting
        # A process that has deregistered sends nothing more, but runs until it is stopped:
        # otherwise its supervisor would start it again, and it would register again.
        await self._stop.wait()
        controlled.cancel()
