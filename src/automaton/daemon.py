"""Runs an automaton: puts log, socket, driver and server together, and returns the exit status.

asyncio is imported here first, without OpenSSL: automaton does not speak TLS, and it would cost a
fifth of the memory (decision 0051).
"""

import os
import traceback
from pathlib import Path

from automaton.log import configure
from automaton.manifest import Manifest
from automaton.protocol import decode
from kontrol_common.openssl import without_openssl


def run(manifest: Manifest, socket: Path, log: Path, *, debug: bool) -> int:
    """Run a machine to its end; return the exit status."""
    without_openssl()
    import asyncio

    from automaton.driver import Driver
    from automaton.script import Environment
    from automaton.server import Listener, Server, SocketError

    try:
        listener = Listener(socket)
    except SocketError as error:
        os.write(2, f"automaton: {error}\n".encode())
        return 2
    configure(log, debug=debug)

    async def live() -> bool:
        driver = Driver(manifest, Environment(os.environb, decode(os.fsencode(listener.path))))
        return await driver.run(Server(listener, driver.obey).serving)

    try:
        return 0 if asyncio.run(live()) else 1
    except Exception:  # noqa: BLE001  # the last resort: report it, and clean up
        traceback.print_exc()
        os.write(2, b"automaton: an internal error; please report it with the lines above\n")
        return 1
    finally:
        listener.remove()
