"""The end of a boot: telegraf's configuration is written, and the process becomes another one.

As the first process of a container it is sent signals that the kernel drops unless they are
handled. There is nothing to clean up before the other program runs, so a signal ends it there and
then, whatever it waits for.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from automaton.processes import STRAY_SIGNALS, handled_signals
from kontrol.boot import telegraf
from kontrol.boot.facts import Facts, table
from kontrol.settings import variables as v

log = logging.getLogger(__name__)

_NOT_EXECUTED, _NOT_FOUND = 126, 127  # as shells have it

# Python ignores these for itself; what is executed would inherit that.
_IGNORED = tuple(getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process at once, with 128 and their number.

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
    """Write telegraf's configuration, or remove an old one; what goes wrong is a line in the log.

    `metrics` is where Kontrol's own metrics are, None if they are nowhere.
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
            return  # nothing is there to be removed
        log.warning(
            "telegraf's configuration %s cannot be %s: %s; name another place in %s",
            path,
            "removed" if text is None else "written",
            (error.strerror or str(error)).lower(),
            v.TELEGRAF_CONF.name,
        )


class NotStarted(Exception):
    """The command could not be executed; `status` is what shells end with then."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def become(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Execute `command` in place of this process. Raises `NotStarted`."""
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
