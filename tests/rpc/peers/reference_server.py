"""A server of the reference library, for our client: `reference_server.py HEARTBEAT`."""

import sys
from collections.abc import Iterator

import gevent
import zerorpc


class Methods:
    def __init__(self) -> None:
        self._produced = 0

    def echo(self, value: object) -> object:
        return value

    def fail(self, message: str) -> object:
        raise ValueError(message)

    def slow(self, seconds: float) -> object:
        gevent.sleep(seconds)
        return "slept"

    @zerorpc.stream  # type: ignore[untyped-decorator]  # the library has no types
    def count(self, n: int) -> Iterator[object]:
        for i in range(n):
            self._produced = i + 1
            yield i

    @zerorpc.stream  # type: ignore[untyped-decorator]  # the library has no types
    def drip(self, n: int, pause: float) -> Iterator[object]:
        for i in range(n):
            yield i
            gevent.sleep(pause)

    @zerorpc.stream  # type: ignore[untyped-decorator]  # the library has no types
    def broken(self, n: int) -> Iterator[object]:
        yield from range(n)
        raise ValueError("no more")

    def produced(self) -> object:
        return self._produced

    def text(self) -> object:
        return b"python 2 says h\xc3\xa9llo"


server = zerorpc.Server(Methods(), heartbeat=float(sys.argv[1]))
server.bind("tcp://127.0.0.1:*")
print(server._events._socket.last_endpoint.decode().rpartition(":")[2], flush=True)
server.run()
