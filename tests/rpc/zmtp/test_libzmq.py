"""Our endpoints against libzmq's sockets, in both directions, over real connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from tests.rpc.keyed import cluster, guarded
from tests.rpc.ours import Ours
from tests.rpc.support import BEAT, DEADLINE, framed, running, serving, shaken, until
from tests.rpc.zmtp.ping import ping
from zmq.utils.monitor import recv_monitor_message

from kontrol.rpc.client import Client
from kontrol.rpc.connection import Connection
from kontrol.rpc.errors import LostRemote
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keys import Keyring, Kind
from kontrol.rpc.server import Server
from kontrol.rpc.sockets import endpoint

PING = b"\x04\x07\x04PING"


class Sockets:
    """Makes sockets, and keeps them: libzmq's context does not."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.made: list[zmq.asyncio.Socket] = []

    def socket(self, kind: int) -> zmq.asyncio.Socket:
        self.made.append(self.context.socket(kind))
        return self.made[-1]


@pytest.fixture
def context() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.context.destroy(linger=0)


def calling(message_id: object, name: str, *args: object) -> list[bytes]:
    return [b"", msgpack.packb([{"message_id": message_id, "v": 3}, name, args])]


async def answer(peer: zmq.asyncio.Socket) -> list[Any]:
    async with asyncio.timeout(DEADLINE):
        while True:
            event: list[Any] = msgpack.unpackb((await peer.recv_multipart())[-1])
            if event[1] != "_zpc_hb":
                return event


def prove(peer: zmq.asyncio.Socket, keys: Path, kind: Kind, server: Kind | None = None) -> None:
    """Give a socket a key, and the key that it expects; a server's, if it expects none."""
    own = Keyring.load(keys).own(kind)
    peer.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
    peer.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
    if server is None:
        peer.setsockopt(zmq.CURVE_SERVER, 1)
    else:
        peer.setsockopt(zmq.CURVE_SERVERKEY, Keyring.load(keys).own(server).public.encode())


@contextlib.asynccontextmanager
async def echoing(router: zmq.asyncio.Socket, where: str = "tcp://127.0.0.1") -> AsyncIterator[int]:
    """Have a ROUTER of libzmq's answer calls with their first argument; gives its port."""
    port = router.bind_to_random_port(where)

    async def answer() -> None:
        while True:
            *hops, event = await router.recv_multipart()
            header, name, args = msgpack.unpackb(event)
            if name == "echo":
                reply = {"message_id": "r", "v": 3, "response_to": header["message_id"]}
                await router.send_multipart([*hops, msgpack.packb([reply, "OK", [args[0]]])])

    async with asyncio.TaskGroup() as group:
        task = group.create_task(answer())
        try:
            yield port
        finally:
            task.cancel()


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_its_clients_call_our_server(context: Sockets, kind: int, host: str) -> None:
    server = Server(Ours().methods(), heartbeat=BEAT)
    port = await server.bind("*", 0)
    task = asyncio.create_task(server.serve())
    peer = context.socket(kind)
    peer.setsockopt(zmq.IPV6, 1)
    peer.connect(endpoint(host, port))
    for size in (0, 1, 200, 255, 256, 70_000, 2_000_000):
        await peer.send_multipart(calling(size, "echo", "x" * size)[kind == zmq.REQ :])
        assert (await answer(peer))[1:] == ["OK", ["x" * size]]
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_our_client_calls_its_server(context: Sockets, host: str) -> None:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.IPV6, 1)
    async with (
        echoing(router, f"tcp://{host}") as port,
        Client(host.strip("[]"), port, heartbeat=BEAT) as client,
    ):
        for size in (0, 200, 256, 70_000, 2_000_000):
            assert await client.call("echo", "x" * size, timeout=DEADLINE) == "x" * size


async def test_curve_in_both_directions(context: Sockets, tmp_path: Path) -> None:
    keys = cluster(tmp_path / "keys")
    async with guarded(Ours().methods(), keys) as port:
        peer = context.socket(zmq.DEALER)
        prove(peer, keys, "agent", "master")
        peer.connect(endpoint("127.0.0.1", port))
        for size in (0, 200, 256, 70_000, 2_000_000):
            await peer.send_multipart(calling(size, "echo", "x" * size))
            assert (await answer(peer))[1:] == ["OK", ["x" * size]]
    router = context.socket(zmq.ROUTER)
    prove(router, keys, "master")
    keyring = Keyring.load(keys)
    async with echoing(router) as port, Client("127.0.0.1", port, keys=keyring) as client:
        for size in (0, 200, 256, 70_000, 2_000_000):
            assert await client.call("echo", "x" * size, timeout=DEADLINE) == "x" * size


async def test_a_key_that_is_refused_is_told_so_in_its_words(
    context: Sockets, tmp_path: Path
) -> None:
    keys, others = cluster(tmp_path / "keys"), cluster(tmp_path / "others")
    peer = context.socket(zmq.DEALER)
    prove(peer, others, "agent", "master")
    peer.setsockopt(zmq.CURVE_SERVERKEY, Keyring.load(keys).own("master").public.encode())
    async with guarded(Ours().methods(), keys) as port:
        monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        peer.connect(endpoint("127.0.0.1", port))
        async with asyncio.timeout(DEADLINE):
            assert (await recv_monitor_message(monitor))["value"] == 400
        peer.disable_monitor()
        monitor.close()


@pytest.mark.parametrize("keyed", [False, True])
async def test_its_heartbeats_are_answered(context: Sockets, tmp_path: Path, keyed: bool) -> None:
    keys = cluster(tmp_path / "keys")
    served = guarded(Ours().methods(), keys) if keyed else serving(Ours().methods())
    async with served as port:
        peer = context.socket(zmq.DEALER)
        if keyed:
            prove(peer, keys, "agent", "master")
        for option, value in (
            (zmq.HEARTBEAT_IVL, 50),
            (zmq.HEARTBEAT_TIMEOUT, 1000),
            (zmq.HEARTBEAT_TTL, 2000),
        ):
            peer.setsockopt(option, value)
        monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.connect(endpoint("127.0.0.1", port))
        await peer.send_multipart(calling(1, "echo", 1))
        assert (await answer(peer))[1:] == ["OK", [1]]
        with pytest.raises(TimeoutError):  # it is not disconnected in twice its timeout
            async with asyncio.timeout(2.5):
                await recv_monitor_message(monitor)
        peer.disable_monitor()
        monitor.close()


async def test_ours_are_answered(context: Sockets) -> None:
    got: list[object] = []

    class Noting(Connection):
        def _work(self, now: float) -> None:
            machine, next_ = self.machine, self.machine.next
            while (event := next_()) is not None:
                got.append(event)
                if hasattr(event, "metadata"):
                    ping(machine, 5.0)
                    self._flush()

    router = context.socket(zmq.ROUTER)
    async with echoing(router) as port:
        connection = Noting("127.0.0.1", port, heartbeat=BEAT, limits=Limits())
        task = asyncio.create_task(connection.connect())
        await until(lambda: any(getattr(event, "name", b"") == b"PONG" for event in got))
        task.cancel()
        await asyncio.wait([task])


async def test_a_peer_is_lost_when_its_ttl_is_over() -> None:
    ours = Ours()
    async with serving(ours.methods(), heartbeat=300.0) as port:
        reader, writer = await shaken(port)
        writer.write(framed(b"", msgpack.packb([{"message_id": 1, "v": 3}, "wait", []])))
        writer.write(PING + (5).to_bytes(2))
        async with asyncio.timeout(DEADLINE):
            assert await reader.readexactly(7) == b"\x04\x05\x04PONG"
            assert ours.running == 1
            await reader.read()  # until it is closed
        await until(lambda: ours.running == 0)
        writer.close()


async def test_its_client_goes_on_with_a_server_that_restarts(
    context: Sockets,
) -> None:
    async with serving(Ours().methods()) as port:
        peer = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.RECONNECT_IVL, 20)
        monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.connect(endpoint("127.0.0.1", port))
        await peer.send_multipart(calling(1, "echo", 1))
        await answer(peer)
    async with asyncio.timeout(DEADLINE):
        await recv_monitor_message(monitor)  # what is sent before is lost with the connection
    peer.disable_monitor()
    monitor.close()
    async with running(Server(Ours().methods()), port):
        await peer.send_multipart(calling(2, "echo", 2))
        assert (await answer(peer))[1:] == ["OK", [2]]


async def test_our_client_goes_on_with_its_server_that_restarts(
    context: Sockets,
) -> None:
    router = context.socket(zmq.ROUTER)
    async with echoing(router) as port, Client("127.0.0.1", port, heartbeat=BEAT) as client:
        assert await client.call("echo", 1, timeout=DEADLINE) == 1
        waiting = asyncio.create_task(client.call("none", timeout=DEADLINE))
        await asyncio.sleep(0)
        router.close(linger=0)
        with pytest.raises(LostRemote, match="closed"):
            await waiting
    again = context.socket(zmq.ROUTER)
    async with echoing(again) as port, Client("127.0.0.1", port, heartbeat=BEAT) as client:
        assert await client.call("echo", 2, timeout=DEADLINE) == 2


async def test_a_peer_at_its_high_water_mark_gets_everything_in_the_end(
    context: Sockets,
) -> None:
    ours, items = Ours(), 300
    fat = "x" * 100_000

    async def stream(_call: object, n: int) -> AsyncIterator[object]:
        for i in range(n):
            ours.produced = i + 1
            yield [i, fat]

    methods = {"stream": stream}
    async with serving(methods, heartbeat=300.0, limits=Limits(unread=200_000)) as port:
        peer = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.RCVHWM, 1)
        peer.setsockopt(zmq.RCVBUF, 100_000)
        peer.connect(endpoint("127.0.0.1", port))
        await peer.send_multipart(calling("m", "stream", items))
        header = {"message_id": "n", "v": 3, "response_to": "m"}
        await peer.send_multipart([b"", msgpack.packb([header, "_zpc_more", [items]])])
        await until(lambda: ours.produced > 5)
        with pytest.raises(TimeoutError):
            await until(lambda: ours.produced > items // 2, within=0.5)
        got = [(await answer(peer))[2][0] for _ in range(items)]
        assert got == list(range(items))
        assert (await answer(peer))[1] == "STREAM_DONE"


async def test_a_peer_that_sends_nothing_more_is_closed() -> None:
    """It is half closed: what it has not got by then, it does not wait for."""
    ours = Ours()
    async with serving(ours.methods()) as port:
        reader, writer = await shaken(port)
        writer.write(framed(b"", msgpack.packb([{"message_id": 1, "v": 3}, "wait", []])))
        await until(lambda: ours.running == 1)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            await reader.read()
        await until(lambda: ours.running == 0)
        writer.close()


async def test_a_caller_whose_connection_breaks_ends_its_call_at_once() -> None:
    ours = Ours()
    async with serving(ours.methods(), heartbeat=300.0) as port:
        _, writer = await shaken(port)
        writer.write(framed(b"", msgpack.packb([{"message_id": 1, "v": 3}, "wait", []])))
        await until(lambda: ours.running == 1)
        writer.transport.abort()
        await until(lambda: ours.running == 0, within=5.0)
