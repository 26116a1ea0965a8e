"""Many pods in one process, for tests and benchmarks: `python -m tests.e2e.pods COUNT [NAME]`.

Each pod is a real server on a port of its own with a real executor; they share guards, as many as
one agent has, and the process. `pods` answers with all of them, as a master would. Prints one line:
the pods, as JSON.
"""

import asyncio
import json
import os
import sys

from kontrol.agent.executor import Executor
from kontrol.process.pool import Guards
from kontrol.rpc.server import Call, Server
from kontrol_common.processes import become_subreaper

AT_ONCE = 16


async def main(count: int, name: str) -> None:
    become_subreaper()
    pods: list[dict[str, object]] = []

    async def list_pods(call: Call, *fields: object) -> object:
        return [{name: pod[name] for name in pod if name in fields} for pod in pods]

    async with Guards(most=AT_ONCE, known=list) as guards, asyncio.TaskGroup() as group:
        for number in range(count):
            executor = Executor(guards, environ=os.environ, secrets=(), insecure=True)
            server = Server({**executor.methods(), "pods": list_pods})
            port = await server.bind("127.0.0.1", 0)
            group.create_task(server.serve())
            pods.append(
                {
                    "id": f"{name}-{number}",
                    "key": f"{name}{number}",
                    "seq": number,
                    "role": name,
                    "ip": "127.0.0.1",
                    "port": port,
                    "payload": {"state": "READY" if number % 2 else "BUSY"},
                }
            )
        print(json.dumps(pods), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "pod"))
