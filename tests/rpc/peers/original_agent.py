"""An agent of the original, as far as its commands go: prints its port, and runs `invoke`."""

import json
import os
import subprocess

import zerorpc


class Methods:
    def invoke(self, raw: str) -> object:
        try:
            command = json.loads(raw)["cmd"]
        except (ValueError, KeyError):
            return None
        environ = {**os.environ, "INPUT": raw}
        ran = subprocess.run(
            ["/bin/sh", "-c", command], stdout=subprocess.PIPE, env=environ, check=False
        )
        return "\n".join(ran.stdout.decode().splitlines())


server = zerorpc.Server(Methods())
server.bind("tcp://127.0.0.1:*")
print(server._events._socket.last_endpoint.decode().rpartition(":")[2], flush=True)
server.run()
