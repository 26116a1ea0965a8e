"""The daemon: the parts that the settings require, wired together, run, and stopped in order.

`run` is the only public name; each module wires one part.
"""

import asyncio
import logging
import os
from collections.abc import Mapping

from kontrol.daemon.daemon import Daemon
from kontrol.daemon.notify import Notifier
from kontrol.daemon.process import StartupError, raise_limits
from kontrol.errors import leaves
from kontrol.listener import BindError
from kontrol.process.loop import BootLoop
from kontrol.settings import Settings

__all__ = ["run"]

log = logging.getLogger(__name__)

_SECOND = (
    "a second daemon on this host requires its own values of KONTROL_PORT, KONTROL_HTTP_PORT (0 "
    "turns REST off), KONTROL_CONTROL, KONTROL_ID, and KONTROL_IP or KONTROL_POD_KEY"
)


def run(settings: Settings, environ: Mapping[str, str] | None = None) -> int:
    """Run until a signal; returns the exit status: 0, or 2 for a bad configuration."""
    notifier = Notifier.take(os.environ)
    daemon = Daemon(settings, os.environ if environ is None else environ, notifier)
    for level, text in settings.notes:
        log.log(level, text)
    raise_limits()
    status = 0
    try:
        with asyncio.Runner(loop_factory=BootLoop) as runner:
            runner.run(daemon.run())
    except* (StartupError, BindError) as group:
        for error in leaves(group):
            log.error("%s", error)
        if any(isinstance(error, BindError) and error.taken for error in leaves(group)):
            log.error("%s", _SECOND)
        status = 2
    return status
