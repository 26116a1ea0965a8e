"""The agent's side of the daemon: what it reports, and the commands that it runs for others."""

import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kontrol import __version__
from kontrol.agent.agent import Agent, AgentSettings
from kontrol.daemon.process import Children, StartupError
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Keepalive, key_of
from kontrol.resolver import Resolver
from kontrol.rpc.client import ANSWERS, Client
from kontrol.rpc.security.keys import Keyring, KeysError
from kontrol.settings import SECRETS, Settings
from kontrol.settings import variables as v

if TYPE_CHECKING:
    from kontrol.agent.published import PublishedFile
    from kontrol.agent.silence import SilenceHooks
    from kontrol.process.pool import Guards
    from kontrol.rpc.methods import Method


def takes_commands(settings: Settings) -> bool:
    """Return whether this pod runs commands for others."""
    return settings.agent and settings.invoke != "off"


def make_agent(
    settings: Settings,
    keys: Keyring | None,
    emit: Callable[[str], None],
    hooks: "SilenceHooks | None" = None,
    published: "PublishedFile | None" = None,
) -> Agent:
    """Return the agent. Raises `StartupError`."""
    ttl = settings[v.TTL]
    # A busy master may be late. A network that carries nothing is noticed within an attempt.
    limits = replace(ANSWERS, deaf=min(max(1.0, ttl / 6), 5.0), handshake=max(10.0, ttl))
    connect = partial(Client, limits=limits, keys=keys, as_="agent", to=("master",))
    if keys is not None:
        try:
            keys.own("agent")
            keys.accepted("master")
        except KeysError as error:
            raise StartupError(f"KONTROL_KEYS: {error}") from None
    return Agent(
        agent_settings(settings),
        connect=connect,
        resolve=Resolver(),
        emitted=lambda: emit("keepalive_emitted"),
        hooks=hooks,
        published=published,
    )


async def make_published(
    settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack, children: Children
) -> "PublishedFile | None":
    """Return what keeps published documents, None if nothing is to. Its guard ends with `stack`."""
    path, command = settings[v.PUBLISHED], settings[v.ON_PUBLISHED]
    if not settings.agent or path is None:
        return None
    from kontrol.agent.published import PublishedFile

    hook = None
    if command is not None:
        from kontrol.agent.hooks import HookRunner
        from kontrol.process.command import Command, Outcome

        guards = await _guards(1, stack, children)

        async def run(command: Command, **more: Any) -> Outcome:  # noqa: ANN401 - as `Guard.run`
            async with guards.guard() as guard:
                return await guard.run(command, **more)

        hook = HookRunner(run, environ=environ, secrets=SECRETS, uniform=random.random)
    return PublishedFile(
        path,
        [str(tier) for tier in settings.tiers],
        pod=settings[v.POD_KEY] or key_of(settings[v.IP]),
        uniform=random.random,
        hook=hook,
        command=command or (),
    )


async def make_silence_hooks(
    settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack, children: Children
) -> "SilenceHooks | None":
    """Return the hooks of silence, None if there are none. Their guard ends with `stack`.

    Raises `StartupError`.
    """
    silent, heard = settings[v.ON_SILENT] or (), settings[v.ON_HEARD] or ()
    if not settings.agent or not (silent or heard):
        return None
    from kontrol.agent.hooks import HookRunner
    from kontrol.agent.silence import SilenceHooks
    from kontrol.process.guard import Guard, GuardError
    from kontrol_common.processes import become_subreaper

    become_subreaper()  # adopts, and kills, what a dying guard leaves
    # Its own, and started now: when a pod is cut off there is no time to wait for one.
    guard = Guard(known=children.known)
    children.of(lambda: () if guard.pid is None else (guard.pid,))
    try:
        await stack.enter_async_context(guard)
    except GuardError as error:
        raise StartupError(f"{v.ON_SILENT.name}, {v.ON_HEARD.name}: {error}") from None
    runner = HookRunner(guard.run, environ=environ, secrets=SECRETS, uniform=random.random)
    return SilenceHooks(runner, silent=silent, heard=heard)


async def _guards(most: int, stack: AsyncExitStack, children: Children) -> "Guards":
    """Return guards for `most` commands at a time, until `stack` ends."""
    from kontrol.process.pool import Guards
    from kontrol_common.processes import become_subreaper

    become_subreaper()  # adopts, and kills, what a dying guard leaves
    guards = await stack.enter_async_context(Guards(most=most, known=children.known))
    children.of(lambda: guards.pids)
    return guards


def agent_settings(settings: Settings) -> AgentSettings:
    """Return the agent's settings: the pod's identity, and facts of its node where known."""
    serves = settings.master or takes_commands(settings)
    facts = {
        "port": settings[v.PORT] if serves else None,
        "eip": settings[v.EIP],
        "node": settings[v.HOSTNAME] or settings[v.HOST],
        "zone": settings.zone,
        "version": __version__,
    }
    more: dict[str, JSON] = {name: fact for name, fact in facts.items() if fact is not None}
    identity = Keepalive(
        app=settings.app,
        id=settings[v.ID],
        ip=settings[v.IP],
        key=settings[v.POD_KEY] or key_of(settings[v.IP]),
        role=settings.role,
        named=settings[v.POD_KEY] is not None,
        more=more,
    )
    return AgentSettings(
        identity, settings.tiers, settings[v.TTL], settings[v.PAYLOAD], settings[v.LIVE]
    )


async def command_methods(
    settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack, children: Children
) -> "Mapping[str, Method]":
    """Return `invoke` and `exec`, which run commands until `stack` ends, or refuse to.

    Raises `StartupError`.
    """
    from kontrol.agent.allow import AllowListError
    from kontrol.agent.executor import Bounds, Executor, refusing

    if not takes_commands(settings):
        return refusing()
    bounds = Bounds()
    guards = await _guards(bounds.commands, stack, children)
    try:
        executor = Executor(
            guards,
            environ=environ,
            secrets=SECRETS,
            allow=settings[v.INVOKE_ALLOW],
            insecure=settings.invoke == "insecure",
            bounds=bounds,
        )
    except AllowListError as error:
        raise StartupError(f"KONTROL_INVOKE_ALLOW: {error}") from None
    return (await stack.enter_async_context(executor)).methods()
