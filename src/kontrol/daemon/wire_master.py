"""The master's side of the daemon: its store, its callback, and its ZeroRPC methods."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from kontrol.daemon.process import Children, StartupError
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.urgent import Urgent
from kontrol.master.callback import Callback
from kontrol.master.master import Master, MasterConfig
from kontrol.master.operator.view import View
from kontrol.master.registry.conflicts import Sender
from kontrol.master.registry.quota import Bounds
from kontrol.process.clock import boottime
from kontrol.process.guard import Guard
from kontrol.ratelimit import RateLimiter
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call, Method, restricted
from kontrol.rpc.security.keys import Kind
from kontrol.settings import SECRETS, Settings
from kontrol.settings import variables as v
from kontrol.store.embedded import EmbeddedError, embedded_etcd
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Store, StoreError
from kontrol.web.redaction import POD_FIELDS
from kontrol_common.processes import become_subreaper

log = logging.getLogger(__name__)

_RATE, _BURST = 2.0, 20
"""How often an unknown client may call `pods`: per second and address, and in a burst."""

_FACTS = 1.0  # seconds for etcd to answer; without an answer, pods are told without live facts

_TRUSTED: tuple[Kind, ...] = ("master", "operator")


def wall() -> str:
    """Return the date and time, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def open_store(settings: Settings, stack: AsyncExitStack, children: Children) -> Store:
    """Return the store, closed with `stack`; starts the embedded etcd. Raises `StartupError`."""
    endpoints, tls = settings.etcd
    if not endpoints:
        embedded = embedded_etcd(
            settings[v.DATA], unsafe=settings[v.ETCD_UNSAFE], children=children.pids
        )
        try:
            endpoints = await stack.enter_async_context(embedded)
        except EmbeddedError as error:
            raise StartupError(str(error)) from None
    config = EtcdConfig(
        endpoints=endpoints,
        tls=tls,
        ca=settings[v.ETCD_CA],
        cert=settings[v.ETCD_CERT],
        key=settings[v.ETCD_KEY],
        user=settings[v.ETCD_USER] or "",
        password_file=settings[v.ETCD_PASSWORD_FILE],
    )
    try:
        store = EtcdStore(config)
    except (OSError, ValueError) as error:
        raise StartupError(f"KONTROL_ETCD: {error}") from None
    return await stack.enter_async_context(store)


async def make_master(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    stack: AsyncExitStack,
    children: Children,
    emit: Callable[[str], None],
) -> tuple[Master, View]:
    """Return the master and its view; its store and guard end with `stack`.

    Raises `StartupError`.
    """
    store = await open_store(settings, stack, children)
    become_subreaper()  # adopts, and kills, what a dying guard leaves
    callback = None
    command = settings[v.CALLBACK]
    if command is None:
        log.warning("KONTROL_CALLBACK is not set: nothing runs when the ensemble changes")
    else:
        guard = Guard(known=children.known)
        children.of(lambda: () if guard.pid is None else (guard.pid,))
        await stack.enter_async_context(guard)
        callback = Callback(
            command,
            argv=settings.argv,
            shell=settings[v.SHELL_CALLBACK],
            timeout=settings[v.CALLBACK_TIMEOUT],
            environ=environ,
            secrets=SECRETS,
            guard=guard,
            on_stderr=logging.getLogger("kontrol.callback").info,
            clock=boottime,
            tier=f"{settings[v.NAMESPACE]}/{settings.app}",
        )
    master = Master(
        store,
        MasterConfig(
            namespace=settings[v.NAMESPACE],
            app=settings.app,
            id=settings[v.ID],
            address=settings[v.IP],
            port=settings[v.PORT],
            ttl=settings[v.TTL],
            fover=settings[v.FOVER],
            damper=settings[v.DAMPER],
            damper_max=settings[v.DAMPER_MAX],
            brake=settings[v.BRAKE],
            every=settings[v.EVERY],
            urgent=settings[v.URGENT] or Urgent(),
            bounds=Bounds(settings[v.PODS_BOUND], settings[v.BYTES_BOUND], settings[v.JOINS_BOUND]),
        ),
        runner=callback,
        boot_clock=boottime,
        wall=wall,
        rng=random.Random(),  # noqa: S311 - jitter
        emit=emit,
    )
    return master, View(master, store, wall=wall)


async def _with_facts(master: Master) -> list[dict[str, JSON]]:
    """Return the pods, with live facts if etcd answers."""
    try:
        async with asyncio.timeout(_FACTS):
            return await master.pods_with_facts()
    except (StoreError, TimeoutError):
        return master.pods()


def master_methods(master: Master) -> dict[str, Method]:
    """Return the methods of a master's ZeroRPC endpoint."""
    rate = RateLimiter(_RATE, _BURST)

    async def ping(call: Call, raw: object) -> object:
        """Accept a keepalive, a JSON text; returns seq, ttl and leader once etcd has it."""
        if not isinstance(raw, str | bytes):
            raise Refused("InvalidRecord", f"record is {type(raw).__name__}; expected JSON text")
        address, _, connection = call.peer.rpartition("#")
        return await master.ping(raw, Sender(address, connection, call.key))

    async def pods(call: Call, *fields: object) -> object:
        """Return the ordered pods; only these fields of them, if any are named.

        Payloads, live facts, annotations and the like require a master's or an operator's key.
        """
        trusted = call.caller in _TRUSTED
        address = call.peer.rpartition("#")[0]
        # A call is small, its answer is not: unread answers would fill the memory of this process.
        if not trusted and not rate.allow(address, asyncio.get_running_loop().time()):
            raise Refused(
                "Busy",
                f"{address} calls pods() more than {_RATE:g} times per second: call it less often,"
                " or with a master's or an operator's key",
            )
        named = dict.fromkeys(field for field in fields if isinstance(field, str))
        shown = tuple(field for field in named if trusted or field in POD_FIELDS)
        whole = trusted and not fields
        found = await _with_facts(master) if whole or "live" in shown else master.pods()
        if whole:
            return found
        if not fields:
            shown = POD_FIELDS
        return [{name: pod[name] for name in shown if name in pod} for pod in found]

    async def published(call: Call, version: object = 0, about: object = None) -> object:
        """Wait until a version later than that is published; returns it, a JSON text.

        `about` is a JSON text about the pod that asks. Null: too many wait, ask again later.
        """
        return await master.publications.later(call.peer, version, about)

    async def leader(_call: Call) -> object:
        """Return the leader's id, address and term, or null."""
        return master.leader_record

    async def state(_call: Call) -> object:
        """Return the callback's last state; requires a master's or an operator's key."""
        return await master.state()

    return {
        "ping": restricted(ping, "agent", insecure=True),
        "published": restricted(published, "agent", insecure=True),
        "pods": pods,
        "leader": leader,
        "state": restricted(state, *_TRUSTED),
    }
