"""Our server in a process of its own, with as many descriptors as it may have; prints its port."""

import asyncio
import resource

from kontrol.rpc.server import Call, Server


async def echo(_call: Call, value: object) -> object:
    return value


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = Server({"echo": echo})
    print(await server.bind("127.0.0.1", 0), flush=True)
    await server.serve()


asyncio.run(main())
