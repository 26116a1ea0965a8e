"""Connections to servers that refuse, go away, say nothing, or send what no server should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st
from tests.store.etcd_helpers import DEADLINE, LONG, QUICK, at_most, client, put
from tests.support.etcd import EtcdCluster
from tests.support.fake_etcd import created
from tests.support.h2_server import H2Server, Served
from tests.support.simloop import virtual

from kontrol.store.etcd import EtcdConfig, EtcdStore, connection, frames, leases, members
from kontrol.store.etcd.connection import PING_AFTER, PING_TIMEOUT, Connection
from kontrol.store.etcd.frames import head
from kontrol.store.etcd.http2 import Http2
from kontrol.store.etcd.messages import RANGE, TXN, WATCH
from kontrol.store.protocol import Ambiguous, Put, Range, StoreError, Unavailable

ANSWER = RANGE.response(header={"cluster_id": 7, "revision": 3}).SerializeToString()
WRITTEN = TXN.response(header={"cluster_id": 7, "revision": 4}, succeeded=True).SerializeToString()


class Transport(asyncio.Transport):
    """One that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


async def connected() -> tuple[Connection, Transport]:
    """Return a connection in memory whose peer has sent its settings."""
    peer, transport = Connection("m:1"), Transport()
    peer.connection_made(transport)
    peer.data_received(head(0, frames.SETTINGS))
    await peer.ready()
    await asyncio.sleep(0)
    return peer, transport


async def answer(served: Served) -> None:
    """Answer any call."""
    await served.receive()
    await served.send(WRITTEN if served.method == "Txn" else ANSWER)
    served.end()


async def test_calls_and_their_headers() -> None:
    seen: list[dict[str, str]] = []

    async def serve(served: Served) -> None:
        seen.append(served.headers)
        await answer(served)

    async with H2Server(serve) as server, client([server.endpoint]) as store:
        assert (await store.range(Range("/k"))).header.revision == 3
    assert seen[0][":path"] == "/etcdserverpb.KV/Range"
    assert seen[0][":authority"] == server.endpoint
    assert int(seen[0]["grpc-timeout"].removesuffix("m")) <= 3000
    assert "token" not in seen[0]


async def test_a_thousand_calls_at_once_share_a_connection() -> None:
    async with H2Server(answer) as server, client([server.endpoint], LONG) as store:
        await asyncio.gather(*(store.range(Range("/k")) for _ in range(1000)))
        assert len(server.connections) == 1


async def test_as_many_calls_are_under_way_as_the_server_allows() -> None:
    most = now = 0

    async def serve(served: Served) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await served.receive()
        await asyncio.sleep(0)
        now -= 1
        await answer_to(served)

    async def answer_to(served: Served) -> None:
        await served.send(ANSWER)
        served.end()

    settings = {int(SettingCodes.MAX_CONCURRENT_STREAMS): 3}
    async with H2Server(serve, settings) as server, client([server.endpoint], LONG) as store:
        calls = [asyncio.create_task(store.range(Range("/k"))) for _ in range(100)]
        await asyncio.wait(calls[:10])
        for call in calls[50:60]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, asyncio.CancelledError) for each in done) == 10
    assert most <= 3


async def test_a_call_that_gets_no_stream_was_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALL", 30.0)
    begun = asyncio.Event()

    async def hang(served: Served) -> None:
        begun.set()
        await asyncio.Event().wait()

    settings = {int(SettingCodes.MAX_CONCURRENT_STREAMS): 1}
    async with H2Server(hang, settings) as server, client([server.endpoint], QUICK) as store:
        refresh = store.refresh(8)
        await begun.wait()
        with at_most(3), pytest.raises(Unavailable, match="1 streams that it allows are in use"):
            await store.txn([], [Put("/k", b"")])
        with pytest.raises(Unavailable, match="no answer to the refresh"):
            await refresh


async def test_a_refused_stream_was_not_done_and_the_call_is_repeated() -> None:
    calls = 0

    async def refuse(served: Served) -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            served.connection.http.reset_stream(served.stream, error_code=7)
            served.connection.flush()
        else:
            await answer(served)

    async with H2Server(refuse) as server, client([server.endpoint]) as store:
        assert (await store.txn([], [Put("/k", b"")])).succeeded
    assert calls == 4


@pytest.mark.parametrize("code", [0, 2, 8, 11, 12, 13, 4_000_000_000])
async def test_a_reset_leaves_a_write_ambiguous(code: int) -> None:
    async def reset(served: Served) -> None:
        served.connection.http.reset_stream(served.stream, error_code=code)
        served.connection.flush()

    async with H2Server(reset) as server, client([server.endpoint]) as store:
        with pytest.raises(Ambiguous, match=f"reset the stream, code {code}"):
            await store.txn([], [Put("/k", b"")])


async def test_a_server_that_goes_away_did_nothing_above_its_last_stream() -> None:
    async def leave(served: Served) -> None:
        if len(server.connections) > 1:
            await answer(served)
            return
        await served.receive()
        served.connection.transport.write(head(8, 7) + bytes(8))

    async with H2Server(leave) as server, client([server.endpoint]) as store:
        assert (await store.txn([], [Put("/k", b"")])).succeeded
        assert len(server.connections) == 2


async def test_a_call_that_a_leaving_server_accepted_is_answered() -> None:
    going = asyncio.Event()

    async def leave(served: Served) -> None:
        await served.receive()
        if len(server.connections) == 1:
            # As grpc-go begins: h2 itself would end here.
            served.connection.transport.write(head(8, 7) + b"\x7f\xff\xff\xff" + bytes(4))
            going.set()
            await asyncio.sleep(0.05)  # another call comes meanwhile
        await served.send(WRITTEN)
        served.end()

    async with H2Server(leave) as server, client([server.endpoint]) as store:
        first = asyncio.create_task(store.txn([], [Put("/k", b"")]))
        await going.wait()
        second = asyncio.create_task(store.txn([], [Put("/k", b"")]))
        assert (await first).succeeded
        assert (await second).succeeded
        assert len(server.connections) in (1, 2)
        assert (await store.txn([], [Put("/k", b"")])).succeeded
        assert len(server.connections) == 2


async def test_a_watch_leaves_a_server_that_goes_away() -> None:
    async def serve(served: Served) -> None:
        if served.method != "Watch":
            await answer(served)
            return
        await served.receive()
        await served.send(created(3).SerializeToString())
        if len(server.connections) == 1:
            served.connection.transport.write(head(8, 7) + b"\x7f\xff\xff\xff" + bytes(4))
        else:
            event = {"kv": {"key": b"/k", "mod_revision": 4}}
            await served.send(
                WATCH.response(
                    header={"cluster_id": 7, "revision": 4}, events=[event]
                ).SerializeToString()
            )
        await asyncio.Event().wait()

    async with (
        H2Server(serve) as server,
        client([server.endpoint]) as store,
        store.watch("/k", start=4) as watch,
    ):
        with at_most(1):
            assert (await anext(aiter(watch))).events[0].kv.mod_revision == 4


async def test_a_connection_whose_ids_are_used_up_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "Http2", lambda: Http2((1 << 31) - 5))
    async with H2Server(answer) as server, client([server.endpoint]) as store:
        for _ in range(7):
            await store.range(Range("/k"))
        assert len(server.connections) == 3


@virtual
async def test_a_quiet_connection_is_pinged_and_a_dead_one_ended() -> None:
    peer, transport = await connected()
    call = asyncio.create_task(peer.unary(b"", b"x", timeout=100, most=1000))
    await asyncio.sleep(PING_AFTER - 1)
    peer.data_received(head(0, 0xEE))  # anything: it lives
    await asyncio.sleep(PING_AFTER - 1)
    transport.written.clear()
    await asyncio.sleep(2)
    assert transport.written == head(8, frames.PING) + bytes(8)
    peer.data_received(head(8, frames.PING, frames.ACK) + bytes(8))
    await asyncio.sleep(PING_AFTER + PING_TIMEOUT - 2)
    assert not call.done()
    await asyncio.sleep(3)
    with pytest.raises(Ambiguous, match="nor an answer to a ping"):
        await call
    assert peer.lost
    assert transport.closed


@virtual
async def test_a_connection_without_calls_is_not_pinged() -> None:
    peer, transport = await connected()
    transport.written.clear()
    await asyncio.sleep(10 * PING_AFTER)
    assert not transport.written
    assert peer.usable


async def test_a_call_given_up_by_its_caller_ends_at_the_server() -> None:
    begun = asyncio.Event()

    async def hang(served: Served) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with H2Server(hang) as server, client([server.endpoint]) as store:
        call = asyncio.create_task(store.range(Range("/k")))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(DEADLINE):
            while not server.resets:  # noqa: ASYNC110 - the server's loop is this one
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("end", "kind", "why"),
    [
        ((0, ""), Ambiguous, "without a message"),
        ((14, "etcdserver: no leader"), Unavailable, "no leader"),
        ((13, "50%25 %E2%82%AC"), Ambiguous, "50% \u20ac"),
        ((99, "new"), Ambiguous, "new"),
    ],
)
async def test_an_end_without_a_message(
    end: tuple[int, str], kind: type[StoreError], why: str
) -> None:
    async def refuse(served: Served) -> None:
        await served.receive()
        served.end(*end)

    async with (
        H2Server(refuse) as server,
        client([server.endpoint], replace(QUICK, timeout=0.3)) as store,
    ):
        with pytest.raises(kind, match=why):
            await store.txn([], [Put("/k", b"")])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0\0\0\x03abc", "cannot be decoded"),
        (b"\x01\0\0\0\x01a", "compressed"),
        (b"\0\xff\xff\xff\xff", "at most 2147483647 are read"),
    ],
)
async def test_an_answer_that_is_none(data: bytes, why: str) -> None:
    async def serve(served: Served) -> None:
        await served.receive()
        await served.send_raw(data)
        with suppress(Exception):
            served.end()

    async with H2Server(serve) as server, client([server.endpoint]) as store:
        with pytest.raises(Ambiguous, match=why):
            await store.txn([], [Put("/k", b"")])


async def test_a_long_answer_and_a_long_question_pass_the_windows() -> None:
    value = bytes(i % 251 for i in range(3_000_000))
    asked: list[int] = []

    async def serve(served: Served) -> None:
        message = await served.receive()
        assert message is not None
        asked.append(len(message))
        kv = {"key": b"/k", "value": value}
        await served.send(RANGE.response(kvs=[kv], count=1).SerializeToString())
        served.end()

    async with H2Server(serve) as server, client([server.endpoint], LONG) as store:
        found = await asyncio.gather(*(store.range(Range("/" + "k" * 500_000)) for _ in range(3)))
    assert all(each.kvs[0].value == value for each in found)
    assert min(asked) > 500_000


async def test_a_watch_that_is_not_read_holds_its_server_back() -> None:
    sent = 0

    async def serve(served: Served) -> None:
        nonlocal sent
        if served.method != "Watch":
            await answer(served)
            return
        await served.receive()
        await served.send(created(3).SerializeToString())
        for revision in range(4, 1000):
            event = {"kv": {"key": b"/k", "value": bytes(20_000), "mod_revision": revision}}
            message = WATCH.response(header={"cluster_id": 7, "revision": 3}, events=[event])
            await served.send(message.SerializeToString())
            sent += 1
        await asyncio.Event().wait()

    async with (
        H2Server(serve) as server,
        client([server.endpoint]) as store,
        store.watch("/k", start=4) as watch,
    ):
        batches = aiter(watch)
        await anext(batches)
        before = -1
        while before != sent:
            before = sent
            await store.range(Range("/k"))  # other calls pass
            await asyncio.sleep(0.02)
        assert 256 < sent < 400  # the queue, and a window
        revisions = [4]
        while len(revisions) < 996:
            revisions += [e.kv.mod_revision for e in (await anext(batches)).events]
    assert revisions == list(range(4, 1000))


# What is no HTTP/2.


@asynccontextmanager
async def raw(*parts: bytes, close: bool = True) -> AsyncIterator[str]:
    """A server that sends `parts`, then closes; yields its endpoint."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError):
            for part in parts:
                await reader.read(1)
                writer.write(part)
                await writer.drain()
            if close:
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "HTTP/2"),
        (b"\x15\x03\x01\x00\x02\x02\x46\x00\x00", "HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/2"),
        (b"", "closed the connection"),
    ],
)
async def test_another_server_at_the_port_is_named_and_nothing_was_done(
    first: bytes, why: str
) -> None:
    async with raw(first) as endpoint, client([endpoint], replace(QUICK, timeout=0.3)) as store:
        with pytest.raises(Unavailable, match=f"cannot connect: etcd at {endpoint}: .*{why}"):
            await store.txn([], [Put("/k", b"")])


async def test_tls_at_a_port_without_it_and_the_other_way_round(tmp_path: Path) -> None:
    async with EtcdCluster() as cluster:
        config = EtcdConfig(tuple(cluster.endpoints), tls=True, timeout=0.5)
        async with EtcdStore(config) as store:
            with pytest.raises(Unavailable, match="cannot connect"):
                await put(store, "/k")
    async with (
        EtcdCluster(tls=True) as cluster,
        client(cluster.endpoints, replace(QUICK, timeout=0.5)) as store,
    ):
        with pytest.raises(Unavailable, match="cannot connect"):
            await put(store, "/k")


async def test_certificates_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_text("no certificate", "utf-8")
    with pytest.raises(OSError, match=r"x\.pem.*expected PEM"):
        EtcdStore(EtcdConfig(("127.0.0.1:1",), ca=path))
    with pytest.raises(OSError, match=r"x\.pem and .*x\.pem.*without a passphrase"):
        EtcdStore(EtcdConfig(("127.0.0.1:1",), cert=path, key=path))


async def test_an_address_of_ipv6() -> None:
    async with H2Server(answer, host="::1") as server, client([server.endpoint]) as store:
        assert server.endpoint.startswith("[::1]:")
        assert (await store.range(Range("/k"))).header.revision == 3


async def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Resolver:
        async def __call__(self, host: str, port: int) -> list[str]:
            assert host == "etcd.example"
            return ["127.0.0.9", "127.0.0.1"]

    monkeypatch.setattr(members, "Resolver", Resolver)
    async with H2Server(answer) as server:
        port = server.endpoint.rpartition(":")[2]
        async with client([f"etcd.example:{port}"]) as store:
            assert (await store.range(Range("/k"))).header.revision == 3


async def test_a_peer_that_asks_for_endless_answers_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT", 100_000)
    pings = head(0, 4) + (head(8, 6) + bytes(8)) * 10_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:  # never reads
                writer.write(pings)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with client([endpoint], replace(QUICK, timeout=20.0, attempt_timeout=20.0)) as store:
        with pytest.raises(Ambiguous, match="does not read"):
            await store.txn([], [Put("/k", b"")])
    server.close()


GARBAGE = st.lists(
    st.binary(max_size=60)
    | st.builds(
        lambda payload, kind, flags, stream: head(len(payload), kind, flags, stream) + payload,
        st.binary(max_size=40),
        st.integers(0, 10),
        st.sampled_from([0, 1, 4, 5, 8, 0x20]),
        st.sampled_from([0, 1, 3]),
    ),
    max_size=12,
)


@given(GARBAGE)
def test_whatever_a_member_sends_only_errors_of_the_store_are_raised(parts: list[bytes]) -> None:
    """In memory: the same bytes through a connection, with a call, a stream and a watch on it."""
    asyncio.run(_garbage(parts))


async def _garbage(parts: list[bytes]) -> None:
    peer, _ = await connected()
    call = asyncio.create_task(peer.unary(b"", b"x", timeout=9, most=1000))
    await asyncio.sleep(0)
    for part in parts:
        peer.data_received(part)
    peer.connection_lost(None)
    with suppress(StoreError, ValueError):  # ValueError: of a key given twice
        await call
    assert peer.lost
