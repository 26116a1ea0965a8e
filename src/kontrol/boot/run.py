"""A boot, from start to end: find the facts, write telegraf's configuration, execute the command.

All sources are queried at the same time, and their facts overlaid. The environment comes first,
then the pod object, the downward API, the node object, the cloud, this host: what a person set
before what was found, the newer before the older.

Invariant: only the pod's own facts can fail a boot; a node, a cloud or a name that is not found is
a line in the log.

As the first process of a container it gets signals that the kernel drops unless they are handled.
There is nothing to clean up before the command is executed, so a signal ends it immediately,
whatever it waits for.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kontrol.boot import BootError, cluster, telegraf
from kontrol.boot.cloud import detect
from kontrol.boot.cluster import Sources
from kontrol.boot.facts import Fact, Facts, fit, layer, overlay, table
from kontrol.settings import host_facts, values
from kontrol.settings import variables as v
from kontrol_common.processes import STRAY_SIGNALS, handled_signals

log = logging.getLogger(__name__)

_NOT_EXECUTED, _NOT_FOUND = 126, 127  # as in shells

# Python ignores these; the command would inherit that.
_IGNORED = tuple(getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process immediately, with 128 + the number.

    SIGUSR1, SIGUSR2 and SIGALRM are ignored with a line.
    """
    before = {number: signal.signal(number, _end) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    stray = number in STRAY_SIGNALS
    with contextlib.suppress(OSError):
        what = "ignored" if stray else "ending"
        os.write(2, f"kontrol: boot: {signal.Signals(number).name}: {what}\n".encode())
    if not stray:
        os._exit(128 + number)


def configure_telegraf(path: Path, facts: Facts, metrics: telegraf.Metrics | None) -> None:
    """Write telegraf's configuration, or remove an old one; a failure is a line in the log.

    `metrics` is where Kontrol's own metrics are served, None if they are not.
    """
    text = None
    annotation = table(facts, v.ANNOTATIONS.name).get(telegraf.ANNOTATION, "").strip()
    if not annotation:
        log.info(
            "no telegraf configuration: the pod has no annotation %s (a host, with an optional"
            " port) to send metrics to",
            telegraf.ANNOTATION,
        )
    else:
        try:
            target = telegraf.opentsdb(annotation)
        except telegraf.BadAnnotation as error:
            log.warning("no telegraf configuration: %s", error)
        else:
            labels = (table(facts, name.name) for name in (v.NODE_LABELS, v.LABELS))
            text = telegraf.render(target, telegraf.tags(*labels), metrics)
            log.info("telegraf sends to %s port %d: %s", target.url, target.port, path)
    try:
        telegraf.write(path, text)
    except OSError as error:
        if text is None and error.errno == errno.ENOTDIR:
            return  # there is nothing to remove
        log.warning(
            "telegraf's configuration %s cannot be %s: %s; set another path in %s",
            path,
            "removed" if text is None else "written",
            (error.strerror or str(error)).lower(),
            v.TELEGRAF_CONF.name,
        )


class NotStarted(Exception):
    """The command could not be executed; `status` is the exit status that shells have for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def become(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by `command`. Raises `NotStarted`."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), dict(environ))  # noqa: S606 - no shell is wanted
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = (error.strerror or str(error)).lower()
        raise NotStarted(
            f"cannot start {command[0]}: {reason}", _NOT_FOUND if missing else _NOT_EXECUTED
        ) from None
    except ValueError as error:
        raise NotStarted(f"cannot start {command[0]!r}: {error}", _NOT_EXECUTED) from None


@dataclass(frozen=True, slots=True)
class Findings:
    """The facts, and the problem that the boot cannot go on with, if any."""

    facts: Mapping[str, Fact]
    problem: BootError | None = None


async def discover(sources: Sources) -> Findings:
    """Query all sources. What cannot be found is a line in the log, or the result's problem."""
    given = layer("environment", {name: sources.environ.get(name) for name in v.FACTS})
    if _debug(sources.environ):
        log.info("KONTROL_MODE has debug: Kubernetes and clouds are not queried")
        return Findings(given)
    sources = replace(sources, retry=sources.retry.start())
    timeout = sources.retry.timeout
    async with asyncio.TaskGroup() as group:
        detecting = group.create_task(
            detect(sources.cloud, sources.machine, sources.providers, timeout)
        )
        querying = group.create_task(cluster.query(sources, given))
    kubernetes, problem = querying.result()
    detected = detecting.result()
    cloud = {} if detected is None else layer(detected[0], detected[1].texts())
    facts, left_out = fit(overlay(given, kubernetes, cloud, layer("system", sources.system)))
    for what in left_out:
        log.warning("%s is not exported: it is longer than an environment variable may be", what)
    if problem is None and not cluster.has_labels(facts):
        log.warning(
            "labels are %s: kontrol requires app and role, and does not start without them",
            dict(table(facts, v.LABELS.name)) or "unknown",
        )
    return Findings(facts, problem)


def system(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of this host. Outside Kubernetes it is the node as well."""
    facts = host_facts(environ)
    if not environ.get("KUBERNETES_SERVICE_HOST", "").strip():
        facts[v.HOSTNAME.name] = socket.gethostname()
    return facts


def _debug(environ: Mapping[str, str]) -> bool:
    try:
        return "debug" in values.modes(environ.get(v.MODE.name, "").strip() or "agent")
    except values.BadValue:
        return False
