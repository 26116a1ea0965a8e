"""HTTP/2 without I/O: against h2, another implementation, and against what no peer should send."""

import struct
from collections.abc import Callable

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived as H2Data
from h2.events import Event as H2Event
from h2.events import (
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
)
from h2.events import StreamReset as H2Reset
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from kontrol.store.etcd import frames, http2
from kontrol.store.etcd.frames import (
    MAX_FRAME,
    Code,
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    Http2Error,
    Pong,
    Ready,
    StreamReset,
    head,
)
from kontrol.store.etcd.hpack import MAX_LIST, Decoder, HpackError, encode
from kontrol.store.etcd.http2 import MAX_BLOCK, WINDOW, Http2

REQUEST = encode((":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "m"))
ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
SETTINGS = head(0, frames.SETTINGS)

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=30)
VALUES = st.binary(max_size=200)


class Pair:
    """Our client and h2's server, connected in memory."""

    def __init__(self, **settings: int) -> None:
        self.client = Http2()
        self.server = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.server.initiate_connection()
        if settings:
            self.server.update_settings({SettingCodes[n]: value for n, value in settings.items()})
        self.seen: list[H2Event] = []
        self.events: list[Event] = []

    def exchange(self, most: int = 1 << 30) -> list[Event]:
        """Carry bytes back and forth, `most` at a time, until both are quiet."""
        events: list[Event] = []
        while True:
            ours, theirs = self.client.take(), self.server.data_to_send()
            if not ours and not theirs:
                self.events += events
                return events
            for at in range(0, len(ours), most):
                self.seen += self.server.receive_data(ours[at : at + most])
            for at in range(0, len(theirs), most):
                events += self.client.receive(theirs[at : at + most])

    def of(self, kind: type[H2Event]) -> list[H2Event]:
        return [event for event in self.seen if isinstance(event, kind)]

    def received(self) -> bytes:
        return b"".join(event.data for event in self.seen if isinstance(event, H2Data))


def ready() -> Http2:
    client = Http2()
    assert client.receive(SETTINGS) == [Ready()]
    client.take()
    return client


# HPACK.


@given(st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=20), max_size=5), st.booleans())
def test_headers_of_another_encoder_are_decoded(
    blocks: list[list[tuple[str, bytes]]], huffman: bool
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for block in blocks:
        headers = [(name.encode(), value) for name, value in block]
        assert decoder.decode(encoder.encode(headers, huffman=huffman)) == headers


@given(st.lists(st.tuples(NAMES, VALUES), max_size=9), st.lists(st.integers(0, 4096), max_size=4))
def test_the_table_may_change_its_size(headers: list[tuple[str, bytes]], sizes: list[int]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for size in [*sizes, 4096]:
        encoder.header_table_size = size
        sent = [(name.encode(), value) for name, value in headers]
        assert decoder.decode(encoder.encode(sent)) == sent


def test_every_byte_has_its_word() -> None:
    every = bytes(range(256))
    block = hpack.Encoder().encode([(b"x", every), (b"y", every[::-1])], huffman=True)
    assert Decoder().decode(block) == [(b"x", every), (b"y", every[::-1])]


@given(st.lists(st.tuples(NAMES, st.text(max_size=400)), max_size=5))
def test_another_decoder_reads_what_is_encoded(headers: list[tuple[str, str]]) -> None:
    found = hpack.Decoder(max_header_list_size=1 << 20).decode(encode(*headers), raw=True)
    assert [tuple(each) for each in found] == [(n.encode(), v.encode()) for n, v in headers]
    assert Decoder().decode(encode(*headers)) == [(n.encode(), v.encode()) for n, v in headers]


@given(st.binary(max_size=300))
def test_any_bytes_are_headers_or_an_error(block: bytes) -> None:
    ours: list[tuple[bytes, bytes]] | None
    try:
        ours = Decoder().decode(block)
    except HpackError:
        ours = None
    other = hpack.Decoder(max_header_list_size=MAX_LIST)
    try:
        theirs = [(bytes(n), bytes(v)) for n, v in other.decode(block, raw=True)]
    except (hpack.HPACKError, UnicodeDecodeError):
        assert ours is None or block[:1] >= b"\x20"
    else:
        assert ours is None or ours == theirs


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x80", "entry 0"),
        (b"\xbe", "entry 62"),
        (b"\xff\xff\xff\xff\xff\xff", "four bytes"),
        (b"\x40", "within a header"),
        (b"\x40\x05abc", "within a string"),
        (b"\x82\x20", "within a block"),
        (b"\x3f\xe2\x1f", "4097 bytes"),
        (b"\x00\x81\x00\x00", "padded wrongly"),
        (b"\x00\x82\xff\xff\x00", "padded wrongly"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "end of its string"),
    ],
)
def test_blocks_that_break_the_rules(block: bytes, why: str) -> None:
    with pytest.raises(HpackError, match=why):
        Decoder().decode(block)


def test_a_block_that_stands_for_megabytes_is_not_unpacked() -> None:
    entry = b"\x40" + encode(("a", "x" * 4000))[1:]
    decoder = Decoder()
    with pytest.raises(HpackError, match="more than 65536"):
        decoder.decode(entry + b"\xbe" * 10_000)


# A connection, with h2 at the other end.


@given(st.integers(1, 40))
def test_a_call_with_another_implementation(most: int) -> None:
    pair = Pair()
    assert pair.exchange(most) == [Ready()]
    stream = pair.client.open(REQUEST)
    pair.client.send(stream, b"question", end=True)
    pair.exchange(most)
    [request] = pair.of(RequestReceived)
    assert isinstance(request, RequestReceived)
    assert any(str(value) == "/a/b" for _, value in request.headers)
    assert pair.received() == b"question"
    assert pair.of(StreamEnded)
    pair.server.send_headers(stream, ANSWER)
    pair.server.send_data(stream, b"answer")
    pair.server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    wanted = [(n.encode(), v.encode()) for n, v in ANSWER]
    assert pair.exchange(most) == [
        HeadersReceived(stream, wanted, ended=False),
        DataReceived(stream, b"answer", ended=False),
        HeadersReceived(stream, [(b"grpc-status", b"0")], ended=True),
    ]
    assert pair.client.open_streams == 0
    assert not pair.of(H2Reset)


def test_what_is_sent_together_is_one_frame() -> None:
    client = ready()
    stream = client.open(REQUEST)
    client.take()
    for i in range(1000):
        client.send(stream, bytes((i % 256,)))
    assert client.take() == head(1000, frames.DATA, 0, stream) + bytes(i % 256 for i in range(1000))


@given(st.integers(0, 200_000), st.integers(0, 70_000), st.integers(1, 9))
def test_windows_of_the_peer_hold_what_is_sent(size: int, window: int, parts: int) -> None:
    step = size // parts + 1
    pair = Pair(INITIAL_WINDOW_SIZE=window)
    pair.exchange()
    stream = pair.client.open(REQUEST)
    data = bytes(i % 251 for i in range(size))
    pair.client.send(stream, data, end=True)
    pair.exchange()
    while len(pair.received()) < size:
        before = len(pair.received())
        pair.server.increment_flow_control_window(step, stream)
        pair.server.increment_flow_control_window(step)
        pair.exchange()
        assert before < len(pair.received()) <= before + step + 65_535
    pair.exchange()
    assert pair.received() == data
    assert pair.of(StreamEnded)


def test_a_window_that_shrinks_below_nothing_holds_what_is_sent() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=100)
    pair.exchange()
    stream = pair.client.open(REQUEST)
    pair.client.send(stream, bytes(90))
    pair.exchange()
    pair.server.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    pair.exchange()
    pair.client.send(stream, bytes(50))
    pair.exchange()
    assert len(pair.received()) == 90
    pair.server.increment_flow_control_window(120, stream)
    pair.exchange()
    assert len(pair.received()) == 130
    assert len(pair.of(RemoteSettingsChanged)) == 1


def test_a_peer_sends_as_much_as_is_read() -> None:
    pair = Pair()
    pair.exchange()
    stream = pair.client.open(REQUEST)
    pair.exchange()
    pair.server.send_headers(stream, ANSWER)
    sent = 0
    while (room := pair.server.local_flow_control_window(stream)) > 0:
        size = min(room, MAX_FRAME)
        pair.server.send_data(stream, bytes(size))
        sent += size
        pair.exchange()
    assert sent == WINDOW  # and the connection's window was given back
    pair.client.credit(stream, WINDOW // 2 - 1)
    pair.exchange()
    assert not pair.server.local_flow_control_window(stream)
    pair.client.credit(stream, 1)
    pair.exchange()
    assert pair.server.local_flow_control_window(stream) == WINDOW // 2
    other = pair.client.open(REQUEST)
    pair.exchange()
    assert pair.server.local_flow_control_window(other) == WINDOW


def test_a_stream_that_is_not_read_holds_up_no_other() -> None:
    pair = Pair()
    pair.exchange()
    for _ in range(20):  # more than the connection's window in all
        stream = pair.client.open(REQUEST)
        pair.exchange()
        pair.server.send_headers(stream, ANSWER)
        for _ in range(WINDOW // MAX_FRAME):
            pair.server.send_data(stream, bytes(MAX_FRAME))  # raises if there is no window
            pair.exchange()


def test_an_answer_before_the_end_of_the_question_ends_the_stream() -> None:
    pair = Pair()
    pair.exchange()
    stream = pair.client.open(REQUEST)
    pair.client.send(stream, b"more follows")
    pair.exchange()
    pair.server.send_headers(stream, [*ANSWER, ("grpc-status", "7")], end_stream=True)
    pair.exchange()
    assert pair.client.open_streams == 0
    [reset] = pair.of(H2Reset)
    assert isinstance(reset, H2Reset)
    assert reset.error_code == Code.CANCEL
    pair.client.send(stream, b"too late")
    pair.client.reset(stream)
    assert pair.exchange() == []


def test_the_number_of_streams_is_the_peers() -> None:
    pair = Pair(MAX_CONCURRENT_STREAMS=2)
    assert pair.client.room > 1_000_000
    pair.exchange()
    assert pair.client.room == 2
    stream = pair.client.open(REQUEST)
    pair.client.open(REQUEST)
    assert pair.client.room == 0
    pair.client.reset(stream)
    assert pair.client.room == 1
    pair.server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    pair.exchange()
    assert pair.client.room < 0


def test_pings_go_both_ways() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.ping()
    pair.server.ping(b"12345678")
    assert Pong() in pair.exchange()
    assert pair.of(PingReceived)


def test_a_peer_that_goes_away_gets_no_more_streams() -> None:
    pair = Pair()
    pair.exchange()
    stream = pair.client.open(REQUEST)
    pair.exchange()
    assert pair.client.accepts
    pair.server.close_connection(error_code=11, additional_data=b"calm\xff", last_stream_id=1)
    assert pair.exchange() == [GoneAway(stream, 11, "calm\ufffd")]
    assert not pair.client.accepts


def test_ids_of_streams_come_to_an_end() -> None:
    client = Http2((1 << 31) - 3)
    client.receive(SETTINGS)
    assert client.accepts
    client.open(REQUEST)
    assert client.open(REQUEST) == (1 << 31) - 1
    assert not client.accepts


def test_what_comes_for_a_stream_that_was_given_up_is_ignored() -> None:
    pair = Pair()
    pair.exchange()
    stream = pair.client.open(REQUEST)
    pair.exchange()
    pair.server.send_headers(stream, [*ANSWER, ("x-first", "1")])
    pair.server.send_data(stream, bytes(1000))
    pair.client.reset(stream)
    theirs = pair.server.data_to_send()
    assert pair.client.receive(theirs) == []
    other = pair.client.open(REQUEST)
    pair.exchange()
    pair.server.send_headers(other, [*ANSWER, ("x-first", "1")])  # from the table that was filled
    [event] = pair.exchange()
    assert isinstance(event, HeadersReceived)
    assert event.headers[-1] == (b"x-first", b"1")


def test_padding_and_priorities_are_taken_off() -> None:
    client = ready()
    stream = client.open(REQUEST)
    block = hpack.Encoder().encode(ANSWER)
    payload = b"\x03" + bytes(5) + block[:3]
    flags = frames.PADDED | frames.PRIORITIZED
    received = client.receive(
        head(len(payload) + 3, frames.HEADERS, flags, stream)
        + payload
        + bytes(3)
        + head(len(block) - 3, frames.CONTINUATION, frames.END_HEADERS, stream)
        + block[3:]
        + head(6, frames.DATA, frames.PADDED, stream)
        + b"\x02abc\0\0"
    )
    wanted = [(n.encode(), v.encode()) for n, v in ANSWER]
    assert received == [
        HeadersReceived(stream, wanted, ended=False),
        DataReceived(stream, b"abc", ended=False),
    ]


def number(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


BROKEN: list[tuple[str, Callable[[int], bytes]]] = [
    ("16385 bytes, and at most 16384", lambda s: head(MAX_FRAME + 1, frames.DATA, 0, s)),
    ("never opened", lambda s: head(0, frames.DATA, 0, s + 2)),
    ("never opened", lambda _: head(0, frames.DATA, 0, 2)),
    ("never opened", lambda _: head(0, frames.DATA, 0, 0)),
    ("never opened", lambda s: head(4, frames.RST_STREAM, 0, s + 2) + bytes(4)),
    ("never opened", lambda s: head(4, frames.WINDOW_UPDATE, 0, s + 2) + number(1)),
    ("never opened", lambda s: head(0, frames.HEADERS, frames.END_HEADERS, s + 2)),
    ("all padding", lambda s: head(2, frames.DATA, frames.PADDED, s) + b"\x02\0"),
    ("all padding", lambda s: head(0, frames.HEADERS, frames.PADDED, s)),
    ("not continued", lambda s: head(0, frames.HEADERS, 0, s) + head(8, frames.PING) + bytes(8)),
    ("not continued", lambda s: head(0, frames.HEADERS, 0, s) + head(0, frames.CONTINUATION)),
    ("no headers", lambda s: head(0, frames.CONTINUATION, 0, s)),
    ("grows by 0", lambda _: head(4, frames.WINDOW_UPDATE) + number(0)),
    ("grows by", lambda _: head(4, frames.WINDOW_UPDATE) + number((1 << 31) - 1)),
    ("grows by", lambda s: head(4, frames.WINDOW_UPDATE, 0, s) + number((1 << 31) - 1)),
    ("3 bytes, not 4", lambda _: head(3, frames.WINDOW_UPDATE) + bytes(3)),
    ("5 bytes, not 4", lambda s: head(5, frames.RST_STREAM, 0, s) + bytes(5)),
    ("7 bytes, not 8", lambda _: head(7, frames.PING) + bytes(7)),
    ("too short", lambda _: head(7, frames.GOAWAY) + bytes(7)),
    ("part of a setting", lambda _: head(5, frames.SETTINGS) + bytes(5)),
    ("6 bytes, not 0", lambda _: head(6, frames.SETTINGS, frames.ACK) + bytes(6)),
    ("more than 2147483647", lambda _: head(6, frames.SETTINGS) + b"\0\x04" + number(1 << 31)),
    ("pushes", lambda s: head(4, frames.PUSH_PROMISE, frames.END_HEADERS, s) + number(2)),
    ("entry 0", lambda s: head(1, frames.HEADERS, frames.END_HEADERS, s) + b"\x80"),
]


@pytest.mark.parametrize(("why", "broken"), BROKEN)
def test_a_peer_that_breaks_the_rules_is_an_error(why: str, broken: Callable[[int], bytes]) -> None:
    client = ready()
    stream = client.open(REQUEST)
    client.take()
    with pytest.raises(Http2Error, match=why):
        client.receive(broken(stream))
    client.go_away(Code.PROTOCOL_ERROR)
    assert client.take() == head(8, frames.GOAWAY) + number(0, 1)


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46..."]
)
def test_another_protocol_is_no_http2(first: bytes) -> None:
    with pytest.raises(Http2Error):
        Http2().receive(first)


def test_the_first_frame_is_settings() -> None:
    with pytest.raises(Http2Error, match="not SETTINGS"):
        Http2().receive(head(8, frames.PING) + bytes(8))


def test_a_window_that_is_exceeded_is_an_error() -> None:
    client = ready()
    stream = client.open(REQUEST)
    full = head(MAX_FRAME, frames.DATA, 0, stream) + bytes(MAX_FRAME)
    for _ in range(WINDOW // MAX_FRAME):
        client.receive(full)
    with pytest.raises(Http2Error, match="window"):
        client.receive(head(1, frames.DATA, 0, stream) + b"x")


def test_headers_without_an_end_are_not_gathered() -> None:
    client = ready()
    stream = client.open(REQUEST)
    client.receive(head(0, frames.HEADERS, 0, stream))
    more = head(MAX_FRAME, frames.CONTINUATION, 0, stream) + bytes(MAX_FRAME)
    for _ in range(MAX_BLOCK // MAX_FRAME):
        client.receive(more)
    with pytest.raises(Http2Error, match="more than 65536"):
        client.receive(more)


def test_frames_of_a_kind_that_is_not_known_are_ignored() -> None:
    client = ready()
    stream = client.open(REQUEST)
    client.take()
    assert client.receive(head(5, frames.PRIORITY, 0, stream) + bytes(5)) == []
    assert client.receive(head(3, 0xEE, 0xFF, 99) + bytes(3)) == []
    assert client.receive(head(4, frames.RST_STREAM, 0, stream) + number(99)) == [
        StreamReset(stream, 99)
    ]
    assert client.take() == b""


FRAMES = st.builds(
    lambda payload, kind, flags, stream: head(len(payload), kind, flags, stream) + payload,
    st.binary(max_size=40),
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 3, 5, 7, 2]),
)


@given(st.lists(FRAMES | st.binary(max_size=30), max_size=30), st.integers(1, 50))
def test_any_bytes_are_events_or_an_error(parts: list[bytes], step: int) -> None:
    client = ready()
    streams = [client.open(REQUEST) for _ in range(3)]
    for stream in streams:
        client.send(stream, bytes(100_000))
    data = b"".join(parts)
    try:
        for at in range(0, len(data), step):
            client.receive(data[at : at + step])
            client.take()
    except Http2Error:
        pass
    client.go_away()
    client.take()
    assert client.open_streams <= 3
    assert len(client._received) <= MAX_FRAME + 9


def test_the_window_is_wide_enough_for_a_frame() -> None:
    assert http2.WINDOW // 2 >= MAX_FRAME
