"""The REST endpoint of this process, and the counters that it sends to statsd."""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from kontrol.agent import health
from kontrol.agent.agent import Agent
from kontrol.daemon.process import StartupError
from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.metrics import PROCESS, Process, Statsd, render
from kontrol.resolver import Resolver
from kontrol.settings import Settings
from kontrol.settings import variables as v
from kontrol.settings.resolve import MASTER
from kontrol.web.hosts import names_of
from kontrol.web.web import Web, WebError

if TYPE_CHECKING:  # an agent does not load what only masters need
    from kontrol.master.master import Master
    from kontrol.master.operator.view import View


def make_web(
    settings: Settings, agent: Agent | None, master: "Master | None", view: "View | None"
) -> Web:
    """Return the endpoint. Raises `StartupError`."""
    process = Process.since_now(",".join(sorted(settings[v.MODE])))
    metrics: list[Callable[[], str]] = [lambda: render(PROCESS, process)]
    ready = []
    outages: tuple[type[Exception], ...] = ()
    full: tuple[type[Exception], ...] = ()
    if agent is not None:
        metrics.append(lambda: render(health.METRICS, agent.status))
        ready.append(lambda: health.checks(agent.status))
    if master is not None:
        from kontrol.master.operator.metrics import METRICS
        from kontrol.store.protocol import NoSpace, StoreError

        metrics.append(lambda: render(METRICS, master))
        outages, full = (StoreError,), (NoSpace,)
    cert, key = settings[v.TLS_CERT], settings[v.TLS_KEY]
    tls = None if cert is None or key is None else (cert, key)
    try:
        return Web(
            names=_names(settings),
            ready=ready,
            metrics=metrics,
            view=view,
            token_file=settings[v.TOKEN_FILE],
            tls=tls,
            outages=outages,
            full=full,
        )
    except WebError as error:
        raise StartupError(str(error)) from None


def _names(settings: Settings) -> frozenset[str]:
    """Return the names of this process: its own, KONTROL_NAMES, and those of its tiers.

    Without an agent, a master's annotation, if it has one, names its tier.
    """
    tiers = settings.tiers
    if not tiers:
        with contextlib.suppress(BadTiers):
            tiers = parse_tiers(settings[v.ANNOTATIONS].get(MASTER, ""), settings[v.PORT])
    return names_of(
        ident=settings[v.ID],
        ip=settings[v.IP],
        hostname=os.uname().nodename,
        namespace=settings[v.NAMESPACE],
        masters=[*settings[v.NAMES], *(host for tier in tiers for host in tier.hosts)],
    )


def make_statsd(where: Tier) -> Statsd:
    """Return a sender of the counters to the server of KONTROL_STATSD."""
    return Statsd(where.hosts[0], where.port, resolve=Resolver())
