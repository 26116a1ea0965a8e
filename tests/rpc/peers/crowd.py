"""Many idle connections: `crowd.py PORT`; each line read is a number to have open from then on.

Every other one has said that it is a ZeroMQ dealer; the rest say nothing. Prints the number when
they are all connected.
"""

import resource
import socket
import sys

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
crowd: list[socket.socket] = []
for line in sys.stdin:
    while len(crowd) > int(line):
        crowd.pop().close()
    while len(crowd) < int(line):
        # Linux finds only half of the ports quickly, for each address that is connected to.
        host = f"127.0.0.{1 + len(crowd) // 10_000}"
        one = socket.create_connection((host, int(sys.argv[1])))
        if len(crowd) % 2:
            one.sendall(GREETING + READY)
        crowd.append(one)
    print(len(crowd), flush=True)
