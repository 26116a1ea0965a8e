"""What is fuzzed: `fuzzed_server.py [FOLDER [KIND]]`, with keys if there is a folder.

Prints its port. KIND is whose key it has, `master` or `agent`.

Like a master's endpoint, but for the store: keepalives are parsed and forgotten. `faults` tells
what was logged as an error, which nothing from outside may cause.
"""

import asyncio
import logging
import resource
import sys
from collections.abc import AsyncIterator

from kontrol.ensemble.pod import BadRecord, parse_keepalive
from kontrol.rpc.errors import Refused
from kontrol.rpc.security.keys import Keyring, ServerKind
from kontrol.rpc.server import Call, Method, Server, restricted

faulty: list[str] = []


class Faults(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        faulty.append(self.format(record))


async def ping(_call: Call, raw: object) -> object:
    if not isinstance(raw, str | bytes):
        raise Refused("InvalidRecord", "expected JSON text")
    try:
        return {"seq": 0, "ttl": 25, "leader": parse_keepalive(raw).id}
    except BadRecord as error:
        raise Refused("InvalidRecord", str(error)) from None


async def echo(_call: Call, value: object) -> object:
    return value


async def count(_call: Call, n: object) -> AsyncIterator[object]:
    for i in range(n if isinstance(n, int) else 3):
        yield i


async def wait(_call: Call, *_args: object) -> object:
    return await asyncio.get_running_loop().create_future()


async def nothing(_call: Call) -> object:
    return None


async def faults(_call: Call) -> object:
    return faulty[:10]


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logging.basicConfig(handlers=[Faults(logging.ERROR)])
    keys = Keyring.load(sys.argv[1]) if sys.argv[1:] else None
    methods: dict[str, Method] = {
        "ping": ping,
        "echo": echo,
        "count": count,
        "wait": wait,
        "pods": nothing,
        "leader": nothing,
        "state": restricted(nothing, "master", "operator"),
        "invoke": restricted(echo, "master", "operator"),
        "faults": faults,
    }
    own: ServerKind = "agent" if sys.argv[2:] == ["agent"] else "master"
    server = Server(methods, heartbeat=1.0, keys=keys, own=own)
    print(await server.bind("0.0.0.0", 0), flush=True)
    await server.serve()


asyncio.run(main())
